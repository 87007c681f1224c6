"""The chat page in Firefox, by WebDriver BiDi: ``python -m tests.page.in_firefox``; needs the package firefox-esr.

It logs in, follows a link of another site, and sends a message. `make test` does not run it: Debian's Firefox is
250 MB, and Chromium covers the same steps there.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from tests.assistant.running import whole_service
from tests.conftest import wait_until
from tests.page.other_site import other_site
from tests.ports import free_port

PATIENCE_S = 120.0
NAMES = ("firefox-esr", "firefox")


class FirefoxTab:
    """One tab of a running Firefox; its commands wait for their results."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self.loads: list[str] = []
        """The address of each loaded document."""
        self.send("session.new", capabilities={})
        self.send("session.subscribe", events=["browsingContext.domContentLoaded"])
        self._tab = self.send("browsingContext.getTree")["contexts"][0]["context"]

    def send(self, method: str, **params: Any) -> Any:
        """Send a command and return its result; raises :class:`RuntimeError` with Firefox's message."""
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            found = json.loads(self._connection.recv(timeout=PATIENCE_S))
            if found.get("method") == "browsingContext.domContentLoaded":
                self.loads.append(found["params"]["url"])
            if found.get("id") == number:
                if found["type"] == "error":
                    raise RuntimeError(f"{method}: {found['message']}")
                return found["result"]

    def open(self, url: str) -> None:
        """Open ``url`` and wait for its document."""
        self.send("browsingContext.navigate", context=self._tab, url=url, wait="complete")

    def evaluate(self, expression: str) -> Any:
        """Return the value of ``expression`` in the page."""
        found = self.send(
            "script.evaluate", expression=expression, target={"context": self._tab}, awaitPromise=True
        )
        return found.get("result", {}).get("value")

    def until(self, expression: str, what: str) -> None:
        """Wait until ``expression`` is true, also across a navigation."""

        def holds() -> bool:
            try:
                return self.evaluate(expression) is True
            except RuntimeError:
                return False

        wait_until(holds, what, PATIENCE_S)


@contextmanager
def firefox(folder: Path) -> Iterator[FirefoxTab]:
    """Run Firefox without a window until the block ends."""
    program = next((path for name in NAMES if (path := shutil.which(name))), None)
    if program is None:
        sys.exit("Firefox is missing; apt-get install firefox-esr")
    profile, port = folder / "profile", free_port()
    profile.mkdir()
    argv = [program, "--headless", "--no-remote", "--profile", str(profile), f"--remote-debugging-port={port}"]
    with (folder / "firefox.log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, env={"HOME": str(folder), "PATH": "/usr/bin:/bin"})
    try:
        with _opened(f"ws://127.0.0.1:{port}/session") as connection:
            yield FirefoxTab(connection)
    finally:
        process.terminate()
        process.wait(60)


def _opened(url: str) -> ClientConnection:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return connect(url, max_size=None, open_timeout=10)
        except (OSError, WebSocketException):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def main() -> int:
    """Run the steps and print each; an error ends the command."""
    with tempfile.TemporaryDirectory(prefix="firefox-") as scratch:
        folder = Path(scratch)
        with (
            whole_service(folder / "service") as (service, _),
            other_site(f"{service.url}/") as elsewhere,
            firefox(folder) as tab,
        ):
            steps: dict[str, Callable[[], None]] = {
                "a key opens a session": lambda: log_in(tab, service.url, service.key),
                "a link of another site opens the session at the second load": lambda: follow(
                    tab, elsewhere, service.url
                ),
                "a reply streams": lambda: say(tab),
            }
            for name, step in steps.items():
                step()
                print(f"ok: {name}", flush=True)
    return 0


def log_in(tab: FirefoxTab, url: str, key: str) -> None:
    """Log in with ``key``."""
    tab.open(url)
    tab.evaluate(f"document.getElementById('key').value = {json.dumps(key)}; document.forms[0].requestSubmit()")
    tab.until("document.querySelector('#model option') !== null", "the chat page")


def follow(tab: FirefoxTab, elsewhere: str, url: str) -> None:
    """Follow a link of another site, and count the loads of the page."""
    tab.open(elsewhere)
    tab.loads.clear()
    tab.evaluate("document.querySelector('a').click()")
    tab.until("document.querySelector('#model option') !== null", "the chat page of the session")
    loads = [one for one in tab.loads if one.startswith(url)]
    assert len(loads) == 2, loads


def say(tab: FirefoxTab) -> None:
    """Send a message and wait for the reply."""
    tab.evaluate(
        "const field = document.getElementById('message'); field.value = 'fake: tokens=4';"
        "field.dispatchEvent(new Event('input', { bubbles: true })); field.form.requestSubmit()"
    )
    tab.until("document.querySelectorAll('article.assistant:not(.live)').length === 1", "the reply")


if __name__ == "__main__":
    sys.exit(main())
