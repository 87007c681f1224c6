"""Prometheus, Alertmanager, exporters and pages of metrics as real processes, and a recorder of webhooks."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from appliance.watch import alerts, metric_names
from tests.conftest import START_S, StartedProcess, http, start, wait_until
from tests.ports import free_port

HERE = Path(__file__).resolve().parent
RECORDED = HERE / "vllm_metrics.txt"
"""A page of real vLLM 0.33 after some requests; a test on real vLLM holds it to the present one."""

UNITS = {"appliance-engine-chat.service": "active", "appliance-backup-vps.timer": "active"}
"""Units whose states a text file has: the systemd collector needs the system's D-Bus."""

DISCOVERY_MS = 6000
"""Time after its start in which Prometheus has no target."""

UNIT_STATES = ("activating", "active", "deactivating", "failed", "inactive")


def program(name: str) -> str:
    """Return the path of a program of Debian; skip the test if it is missing."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"NOT CHECKED: {name} is missing; apt-get install $(cat tests/nix/apt.txt)")
    return found


class Pages:
    """A server for pages of metrics, and the recorder of webhooks: ``POST`` keeps the body by its path."""

    def __init__(self) -> None:
        self.pages: dict[str, Callable[[], str]] = {}
        self.posts: list[tuple[str, dict[str, Any]]] = []
        pages = self

        class PagesHandler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                page = pages.pages.get(self.path)
                self._respond(200 if page else 404, (page() if page else "").encode())

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                pages.posts.append((self.path, json.loads(body)))
                self._respond(200, b"")

            def _respond(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("content-type", "text/plain; version=0.0.4")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), PagesHandler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def close(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def messages(self, path: str) -> list[tuple[str, str]]:
        """Return status and name of the alert of each message that was posted to ``path``."""
        return [(body["status"], body["groupLabels"].get("alertname", "")) for to, body in self.posts if to == path]


def growing(text: str) -> Callable[[], str]:
    """Return a page whose counters grow with each scrape, by their recorded values."""
    scrapes = 0

    def page() -> str:
        nonlocal scrapes
        scrapes += 1
        return re.sub(
            r"^(\S+_(?:total|bucket|count|sum)(?:\{.*\})?) (\S+)$",
            lambda found: f"{found[1]} {float(found[2]) * scrapes}",
            text,
            flags=re.MULTILINE,
        )

    return page


def fresh(source: metric_names.SourceName) -> Callable[[], str]:
    """Return the page of ``source`` on a healthy machine, at the time of each scrape."""
    return lambda: metric_names.example_text(source, time.time())


def write_text_files(folder: Path, units: Mapping[str, str] = UNITS) -> None:
    """Write the agents' text files, and the states of ``units`` in the form of the systemd collector."""
    for source in metric_names.TEXT_FILES:
        _replace(folder / f"{source}.prom", metric_names.example_text(source, time.time()))
    lines = ["# TYPE node_systemd_unit_state gauge"]
    lines += [
        f'node_systemd_unit_state{{name="{name}",state="{one}",type="simple"}} {int(one == state)}'
        for name, state in units.items()
        for one in UNIT_STATES
    ]
    _replace(folder / "units.prom", "\n".join([*lines, ""]))


def _replace(file: Path, text: str) -> None:
    draft = file.with_suffix(".draft")
    draft.write_text(text)
    draft.replace(file)


def faster(config: dict[str, Any], factor: int) -> dict[str, Any]:
    """Return ``config`` with the times of its rules or routes divided by ``factor``, half a second at least."""

    def change(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: change(one, name) for name, one in value.items()}
        if isinstance(value, list):
            return [change(one) for one in value]
        if key == "for" or key.startswith(("group_w", "group_int", "repeat")):
            number, unit = int(value[:-1]), {"s": 1, "m": 60, "h": 3600}[value[-1]]
            least = DISCOVERY_MS if key == "for" and factor > 1 else 0
            return f"{max(number * unit * 1000 // factor, 500) + least}ms"
        return value

    changed: dict[str, Any] = change(config)
    return changed


def start_node_exporter(folder: Path, texts: Path) -> StartedProcess:
    """Start node_exporter with the text files in ``texts``."""
    port = free_port()
    argv = [program("prometheus-node-exporter"), f"--web.listen-address=127.0.0.1:{port}"]
    return start([*argv, f"--collector.textfile.directory={texts}"], port, folder / "node.log")


def start_alertmanager(folder: Path, pages: Pages, factor: int) -> StartedProcess:
    """Start Alertmanager with the route of the site, ``factor`` times faster; it posts to ``pages``."""
    port = free_port()
    routing = faster(alerts.routing(), factor)
    receivers = [
        {"name": name, "webhook_configs": [{"url": f"http://127.0.0.1:{pages.port}/{name}", "send_resolved": True}]}
        for name in ("notices", "beat")
    ]
    config = folder / "alertmanager.json"
    config.write_text(json.dumps({**routing, "receivers": receivers}))
    argv = [
        program("prometheus-alertmanager"),
        f"--config.file={config}",
        f"--storage.path={folder}/alertmanager",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    ]
    return start(argv, port, folder / "alertmanager.log")


def scrape(job: str, port: int, path: str = "/metrics", **labels: str) -> dict[str, Any]:
    """Return the entry of a target."""
    return {
        "job_name": job,
        "metrics_path": path,
        "static_configs": [{"targets": [f"127.0.0.1:{port}"], "labels": labels}],
    }


class Prometheus:
    """A running Prometheus."""

    def __init__(self, started: StartedProcess) -> None:
        self.started = started

    def query(self, expr: str) -> list[dict[str, Any]]:
        """Return the result of a query."""
        response = http(f"{self.started.url}/api/v1/query?{urlencode({'query': expr})}")
        assert response.status == 200, f"{expr}: {response.body.decode()}"
        data = response.json["data"]
        result: list[dict[str, Any]] = data["result"]
        return result

    def value(self, expr: str) -> float | None:
        """Return the value of a query with one result at most."""
        found = self.query(expr)
        return float(found[0]["value"][1]) if found else None

    def rules(self) -> list[dict[str, Any]]:
        """Return the rules, once each was evaluated."""
        found: list[dict[str, Any]] = []

        def evaluated() -> bool:
            groups = http(f"{self.started.url}/api/v1/rules").json["data"]["groups"]
            found[:] = [rule for group in groups for rule in group["rules"]]
            return all(rule["health"] != "unknown" for rule in found)

        wait_until(evaluated, "the evaluation of the rules", 60)
        return found

    def firing(self) -> set[str]:
        """Return the names of the firing alerts."""
        return {one["metric"]["alertname"] for one in self.query('ALERTS{alertstate="firing"}')}


@contextmanager
def start_prometheus(
    folder: Path, targets: list[dict[str, Any]], *, alertmanager: int | None = None, factor: int = 1
) -> Iterator[Prometheus]:
    """Start Prometheus with the rules of the site, ``factor`` times faster, a scrape each half second."""
    port = free_port()
    (folder / "rules.json").write_text(json.dumps(faster(alerts.rules(), factor)))
    managers = [{"static_configs": [{"targets": [f"127.0.0.1:{alertmanager}"]}]}] if alertmanager else []
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "1s"},
        "rule_files": ["rules.json"],
        "alerting": {"alertmanagers": managers},
        "scrape_configs": targets,
    }
    (folder / "prometheus.json").write_text(json.dumps(config))
    argv = [
        program("prometheus"),
        f"--config.file={folder}/prometheus.json",
        f"--storage.tsdb.path={folder}/tsdb",
        f"--web.listen-address=127.0.0.1:{port}",
        # The first alerts are dropped, because Alertmanager is discovered after some seconds.
        "--rules.alert.resend-delay=1s",
    ]
    started = start(argv, port, folder / "prometheus.log")
    try:
        wait_until(lambda: http(f"{started.url}/-/ready").status == 200, "Prometheus is ready", START_S)
        yield Prometheus(started)
    finally:
        started.stop()
