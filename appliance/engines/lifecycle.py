"""The start and stop of engines while the gateway runs: as units of systemd, or as children of this process."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Protocol

from appliance.contract.model import Site
from appliance.engines.argv import command, find, unit_name
from appliance.engines.cpu_dtype import read_cpuinfo
from appliance.engines.gguf_examination import require_loadable
from appliance.engines.load_format import weights_store
from appliance.engines.processes import ChildProcesses, ProcessSpec
from appliance.errors import FileAccessError, StartError, StoreError

LOG = logging.getLogger(__name__)


class EngineControl(Protocol):
    """Starts and stops replicas by name; the swap controller calls it in the gateway's event loop."""

    async def examine(self, replica: str) -> None:
        """Read the files that it would load; raises :class:`StartError` if its server cannot load them."""

    async def start(self, replica: str) -> None:
        """Begin to start it; raises :class:`StartError` if that is impossible."""

    async def stop(self, replica: str) -> None:
        """Stop it and wait for its end."""

    async def alive(self, replica: str) -> bool:
        """Return whether its process runs, and has not ended by itself since it was started."""

    async def close(self) -> None:
        """Stop the engines that must not outlive the gateway."""


class ChildControl:
    """Replicas as children of the gateway, on a laptop and in tests. They end with it."""

    def __init__(self, site: Site, base: Path, logs: Path) -> None:
        self._site = site
        self._base = base
        self._logs = logs
        self._processes = ChildProcesses()
        self._started: set[str] = set()

    async def examine(self, replica: str) -> None:
        """Read its files as this user, which is that of its process."""
        one = find(self._site, replica)
        try:
            await asyncio.to_thread(require_loadable, self._site, one, self._base, weights_store())
        except StoreError as error:
            raise StartError(str(error)) from error

    async def start(self, replica: str) -> None:
        """Run the command of ``appliance engine exec`` as a child."""
        await self.examine(replica)
        one = find(self._site, replica)
        built = command(self._site, one, self._base, read_cpuinfo())
        if built.notice:
            LOG.warning(built.notice)
        log = self._logs / f"engine-{replica}.log"
        unit = ProcessSpec(
            name=replica,
            argv=built.argv,
            log=log,
            environment=built.environment,
            stop_timeout_s=one.engine.shutdown_timeout_s + 10.0,
        )
        try:
            await self._processes.start(unit)
        except StoreError as error:
            # If its log cannot be written, that is a failed start like any other to the caller.
            raise StartError(str(error)) from error
        self._started.add(replica)

    async def stop(self, replica: str) -> None:
        """Stop its process group."""
        if replica in self._started:
            self._started.discard(replica)
            await self._processes.stop(replica)

    async def alive(self, replica: str) -> bool:
        """Return whether it runs and was never restarted."""
        if replica not in self._started:
            return False
        state = self._processes.state(replica)
        return state.phase == "running" and not state.restarts

    async def close(self) -> None:
        """Stop all replicas."""
        for replica in sorted(self._started):
            await self.stop(replica)


class SystemdControl:
    """Replicas as units ``appliance-engine-NAME.service``; polkit lets the gateway's user manage exactly those."""

    def __init__(self, site: Site, systemctl: str = "systemctl") -> None:
        self._site = site
        self._systemctl = systemctl

    async def examine(self, replica: str) -> None:
        """Read its files as the gateway's user; a file that only its unit can read is examined by the unit."""
        one = find(self._site, replica)
        try:
            # A unit without a working directory runs in the root folder.
            await asyncio.to_thread(require_loadable, self._site, one, Path("/"), weights_store())
        except FileAccessError as error:
            LOG.warning("%s: its weights are examined when its unit starts: %s", replica, error)
        except StoreError as error:
            raise StartError(str(error)) from error

    async def start(self, replica: str) -> None:
        """Start its unit, without waiting for its model."""
        await self._run("start", "--no-block", unit_name(replica))

    async def stop(self, replica: str) -> None:
        """Stop its unit."""
        await self._run("stop", unit_name(replica))

    async def alive(self, replica: str) -> bool:
        """Return whether the unit is active or being started for the first time.

        A start may wait for another unit (weights are verified first): then a job is queued and the unit is still
        inactive. A unit that waits to be restarted has ended by itself. It counts as failed at once: an engine
        that crashes again and again would otherwise block the other models until its start timeout.
        """
        shown = await self._run("show", "--property=ActiveState,SubState,Job", unit_name(replica))
        unit = dict(line.partition("=")[::2] for line in shown.splitlines())
        if unit.get("SubState", "").startswith("auto-restart"):
            return False
        return unit.get("ActiveState") in ("active", "activating", "reloading") or bool(unit.get("Job"))

    async def close(self) -> None:
        """Leave the units running: the gateway reads their states when it starts again."""

    async def _run(self, *words: str) -> str:
        code, output = await self._call(*words)
        if code != 0:
            raise StartError(f"systemctl {' '.join(words)} failed ({output}); see journalctl -u {words[-1]}")
        return output

    async def _call(self, *words: str) -> tuple[int, str]:
        try:
            process = await asyncio.create_subprocess_exec(
                self._systemctl,
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
        except OSError as error:
            raise StartError(
                f"{self._systemctl} cannot be run ({error.strerror}); is this a systemd host?"
            ) from None
        output, _ = await process.communicate()
        return process.returncode or 0, output.decode("utf-8", "replace").strip()[:200]
