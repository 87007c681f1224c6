"""A gateway, its admin API and a stand-in of Alertmanager for the tests of the operator's page."""

from __future__ import annotations

import http.client
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.conftest import RunningService, StartedProcess, serving, start
from tests.doctor.servers import start_server
from tests.ports import free_port

TOKEN = "a-token-of-enough-characters"
EVIL = '<script>alert("x")</script>'


@dataclass
class PageResponse:
    status: int
    headers: dict[str, str]
    text: str


@dataclass
class OperatorBrowser:
    """A browser without scripts: it keeps the cookie and sends the origin with each form."""

    port: int
    cookie: str = ""

    def send(self, method: str, path: str, form: dict[str, str] | None = None, **headers: str) -> PageResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        sent = {"Host": f"127.0.0.1:{self.port}"}
        if self.cookie:
            sent["Cookie"] = self.cookie
        body = None
        if form is not None:
            body = urlencode(form)
            sent |= {"Content-Type": "application/x-www-form-urlencoded", "Origin": f"http://127.0.0.1:{self.port}"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in sent.items():
            if value:
                connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(body or "")))
        connection.endheaders((body or "").encode())
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        found = {name.lower(): value for name, value in response.getheaders()}
        if "set-cookie" in found:
            self.cookie = found["set-cookie"].partition(";")[0]
        return PageResponse(response.status, found, text)

    def get(self, path: str, **headers: str) -> PageResponse:
        return self.send("GET", path, None, **headers)

    def post(self, path: str, form: dict[str, str], **headers: str) -> PageResponse:
        return self.send("POST", path, form, **headers)

    def log_in(self) -> None:
        done = self.post("/login", {"token": TOKEN})
        assert (done.status, done.headers["location"]) == (303, "/")


@dataclass
class OperatedService:
    """A running gateway and its admin API."""

    service: RunningService
    process: StartedProcess

    @property
    def url(self) -> str:
        """Address of the page."""
        return self.process.url

    def log_in(self) -> OperatorBrowser:
        """Return a browser with a session."""
        browser = OperatorBrowser(self.process.port)
        browser.log_in()
        return browser


CARD = {"index": 0, "model": "pretended", "memory_mib": 97887}

FIRED = [
    {
        "labels": {"alertname": "GatewayDown", "severity": "page"},
        "startsAt": "2026-11-28T04:00:00Z",
        "annotations": {"summary": EVIL, "fix": "appliance doctor --only gateway"},
    },
    {"labels": {"alertname": "Watchdog", "severity": "beat"}, "annotations": {}},
]


def on_demand(model: str, **options: Any) -> dict[str, Any]:
    """Return a mock engine that needs nine tenths of the only card."""
    return {
        "kind": "mock",
        "host": "here",
        "model": model,
        "gpus": [0],
        "context": 4096,
        "concurrency": 16,
        "port": free_port(),
        "residency": "on-demand",
        "gpu_memory_utilization": 0.9,
        **options,
    }


def swapping_site() -> dict[str, Any]:
    """Return the parts of a site whose models ``a`` (sleeps), ``b`` and ``c`` (fails) take turns on one card."""
    return {
        "hosts": {"here": {"memory_gib": 8, "gpus": [CARD]}},
        "models": {name: {"source": f"./{name}"} for name in "abc"},
        "engines": {
            "ea": on_demand("a", sleep=True),
            "eb": on_demand("b"),
            "ec": on_demand("c", options={"fail-load": 1}),
        },
        "gateway": {
            "engine_control": "child",
            "swap": {"max_wait_s": 1.0, "min_residency_s": 0.0, "batch": 8},
        },
    }


@contextmanager
def admin_of(config: Path, port: int, **environment: str) -> Iterator[StartedProcess]:
    """Run the admin API of the site ``config``; its log must have no secret and no traceback."""
    folder = config.parent
    token, log = folder / "token", folder / "admin.log"
    token.write_text(TOKEN + "\n")
    argv = [sys.executable, "-m", "appliance", "admin", "--config", str(config)]
    process = start(argv, port, log, APPLIANCE_ADMIN_TOKEN_FILE=str(token), **environment)
    try:
        yield process
    finally:
        process.stop()
        text = log.read_text()
        assert "Traceback" not in text, text
        for secret in (TOKEN, "sk-", "invite-"):
            assert secret not in text


@contextmanager
def operated_site(folder: Path, **parts: Any) -> Iterator[OperatedService]:
    """Run a gateway, its admin API and a stand-in of Alertmanager with :data:`FIRED`."""
    port = free_port()
    alertmanager = start_server(json.dumps(FIRED).encode(), 200)
    url = f"http://127.0.0.1:{alertmanager.server_address[1]}"
    plans = {"basic": {"tokens_per_day": 1000, "price": EVIL}}
    try:
        with (
            serving(folder, admin={"port": port}, plans=plans, **parts) as service,
            admin_of(service.config, port, APPLIANCE_ALERTMANAGER_URL=url) as process,
        ):
            yield OperatedService(service, process)
    finally:
        alertmanager.shutdown()
        alertmanager.server_close()


def secret_of(page: PageResponse) -> str:
    """Return the key or the code that a page shows once."""
    found = re.search(r'<code class="secret"[^>]*>([^<]+)</code>', page.text)
    assert found is not None, page.text
    return found[1]
