"""A real UPS of NUT: upsd and the driver dummy-ups from Debian, in a folder of their own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import opens, wait_until
from tests.ports import free_port

# Programs of Debian in /usr/sbin are wrappers that read /etc/nut.
PATHS = os.pathsep.join(["/lib/nut", "/usr/sbin", "/sbin", os.environ.get("PATH", "")])
NAME = "ups"


def program(name: str) -> str:
    """Return the path of a program of NUT; skip the test if it is not installed."""
    found = shutil.which(name, path=PATHS)
    if found is None:
        pytest.skip(f"NOT CHECKED: {name} is not installed; install nut-server and nut-client")
    return found


@dataclass
class Nut:
    """A running upsd with one UPS."""

    folder: Path
    port: int
    processes: dict[str, subprocess.Popen[bytes]]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "NUT_CONFPATH": str(self.folder), "NUT_STATEPATH": str(self.folder / "state"),
                "NUT_ALTPIDPATH": str(self.folder / "state")}  # fmt: skip

    def start_driver(self) -> None:
        self._run("driver", [program("dummy-ups"), "-a", NAME, "-D", "-u", "root"])
        wait_until(lambda: any((self.folder / "state").glob("dummy-ups-*")), "the driver's socket", 60)

    def start_upsd(self) -> None:
        self._run("upsd", [program("upsd"), "-D", "-u", "root"])
        wait_until(lambda: opens(self.port), "upsd listens", 60)

    def stop(self, name: str) -> None:
        """Kill upsd or the driver, without a chance to report it."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def set(self, **variables: str) -> None:
        """Set variables of the UPS, with an underscore for each dot, and wait until upsd reports them."""
        variables = {name: value for name, value in variables.items() if self.get(name.replace("_", ".")) != value}
        for name, value in variables.items():
            self.command(f'SET VAR {NAME} {name.replace("_", ".")} "{value}"')
        for name, value in variables.items():
            dotted = name.replace("_", ".")
            wait_until(lambda dotted=dotted, value=value: self.get(dotted) == value, f"{dotted} is {value}", 60)  # type: ignore[misc]

    def get(self, name: str) -> str | None:
        response = self._send([f"GET VAR {NAME} {name}"])[-1]
        return response.split('"')[1] if response.startswith("VAR ") else None

    def command(self, line: str) -> None:
        """Send a command as the user of the tests; retry while the driver is not connected yet."""
        login = ["USERNAME tester", "PASSWORD secret", line]
        until = time.monotonic() + 60
        while not (response := self._send(login)[-1]).startswith("OK"):
            if time.monotonic() > until:
                pytest.fail(f"{line}: {response}")
            time.sleep(0.05)

    def _send(self, lines: list[str]) -> list[str]:
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            stream = connection.makefile("rw", newline="\n")
            responses = []
            for line in lines:
                stream.write(line + "\n")
                stream.flush()
                responses.append(stream.readline().strip())
            return responses

    def _run(self, name: str, argv: list[str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(argv, stdout=log, stderr=log, env=self.environment)


@contextmanager
def running(folder: Path) -> Iterator[Nut]:
    """Run upsd and a UPS on mains."""
    if os.geteuid() != 0:
        pytest.skip("NOT CHECKED: upsd of Debian changes its user, which needs root")
    (folder / "state").mkdir(parents=True)
    port = free_port()
    figures = {"ups.status": "OL", "battery.charge": "100", "battery.runtime": "900", "ups.load": "40",
               "device.model": 'Smart "UPS" \\ 900'}  # fmt: skip
    (folder / "ups.dev").write_text("".join(f"{name}: {value}\n" for name, value in figures.items()))
    (folder / "ups.conf").write_text(
        f"[{NAME}]\n driver = dummy-ups\n port = {folder}/ups.dev\n mode = dummy-once\n pollinterval = 1\n"
    )
    (folder / "upsd.conf").write_text(f"LISTEN 127.0.0.1 {port}\nMAXAGE 15\n")
    (folder / "upsd.users").write_text(
        "[tester]\n password = secret\n actions = SET\n instcmds = ALL\n upsmon master\n"
    )
    for file in folder.glob("upsd.*"):
        file.chmod(0o600)
    nut = Nut(folder, port, {})
    try:
        nut.start_driver()
        nut.start_upsd()
        wait_until(lambda: nut.get("ups.status") == "OL", "the UPS is on mains", 60)
        yield nut
    finally:
        for name in list(nut.processes):
            nut.stop(name)
