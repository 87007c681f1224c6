"""The drained replicas of a gateway: closed and opened one by one, and kept over a restart.

A drained replica gets no new request and its running ones finish. The watchdog drains the replica of a card that
fails. A restart of the gateway must not send requests to that card, so the drains are in a file.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from appliance.contract.violation import suggest
from appliance.errors import NotFoundError, StoreError
from appliance.gateway.routing import Replica, Router
from appliance.system import files

LOG = logging.getLogger(__name__)

NAME = "drained.json"
"""Name of the file in the gateway's data folder."""

REASONS = msgspec.json.Decoder(dict[str, str], strict=True)


@dataclass(frozen=True, slots=True)
class DrainFile:
    """The file with the reason of each drained replica. It is replaced as a whole and synced."""

    path: Path

    def load(self) -> dict[str, str]:
        """Return the reasons by replica: none if the file does not exist or cannot be read.

        A damaged file is logged and renamed, so that it can be inspected.
        """
        try:
            content = files.read(self.path)
            return {} if content is None else REASONS.decode(content)
        except StoreError as error:
            LOG.error("no replica is drained: %s", error)  # noqa: TRY400 - one line suffices
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            aside = self.path.with_suffix(".damaged")
            LOG.error(  # noqa: TRY400 - one line suffices
                "%s is damaged (%s) and is now %s; no replica is drained: drain again what must be closed",
                self.path,
                error,
                aside.name,
            )
            try:
                files.move(self.path, aside)
            except StoreError as refused:
                LOG.error("%s", refused)  # noqa: TRY400 - one line suffices
        return {}

    def save(self, reasons: Mapping[str, str]) -> None:
        """Write ``reasons``; a power cut leaves the old file or the new one. Raises :class:`StoreError`."""
        files.replace(self.path, msgspec.json.encode(reasons).decode(), mode=0o600)
        files.sync_folder(self.path.parent)


def known_drains(reasons: Mapping[str, str], replicas: Collection[str]) -> dict[str, str]:
    """Return the ``reasons`` of those replicas that the site has: a file may be older than the site."""
    return {name: reason for name, reason in reasons.items() if name in replicas}


class Drains:
    """Drains and undrains the replicas of ``router``, and keeps that in ``file``.

    A drain takes effect at once, also if the file cannot be written: a full disk must not keep a failed card open.
    The next call that changes or repeats it writes the file again.

    Args:
        router: The replicas.
        file: The file that keeps the drains.
        notice: Called when the set of open replicas has changed.
    """

    def __init__(self, router: Router, file: DrainFile, notice: Callable[[], None]) -> None:
        self._router = router
        self._file = file
        self._notice = notice
        self._replicas = {replica.name: replica for replica in router.replicas}
        self._lock = asyncio.Lock()
        self._saved = file.load()
        """The content of the file."""
        self._unwritable = ""
        """The error of the last write, which is logged once."""
        known = known_drains(self._saved, self._replicas)
        for name, reason in known.items():
            self._replicas[name].drained = reason
            LOG.warning("%s is still drained: %s; `appliance models undrain %s` ends that", name, reason, name)
        dropped = sorted(self._saved.keys() - known.keys())
        if dropped:
            LOG.warning("the site has no replica %s any more; its drain is dropped", ", ".join(dropped))

    async def drain(self, name: str, reason: str) -> bool:
        """Send no new request to the replica ``name``; return whether the file has it.

        Repeating it changes nothing; another ``reason`` replaces the first one.

        Raises :class:`NotFoundError` with the most similar name.
        """
        replica = self._find(name)
        if replica.drained != reason:
            LOG.warning("%s is drained: %s", name, reason)
            self._router.service_of(replica).drain(replica, reason)
            self._notice()
        return await self._save()

    async def undrain(self, name: str) -> bool:
        """Send requests to the replica ``name`` again; return whether the file has it.

        Raises :class:`NotFoundError` with the most similar name.
        """
        replica = self._find(name)
        if replica.drained is not None:
            LOG.warning("%s is not drained any more", name)
            self._router.service_of(replica).undrain(replica)
            self._notice()
        return await self._save()

    def status(self, name: str) -> dict[str, object]:
        """Return the drain of the replica ``name`` and its sequences in flight, for JSON."""
        replica = self._find(name)
        return {"draining": replica.drained, "in_flight": replica.in_flight}

    def _find(self, name: str) -> Replica:
        replica = self._replicas.get(name)
        if replica is None:
            hint = suggest(name[:80], list(self._replicas))
            raise NotFoundError(
                f"Replica {name[:80]!r} does not exist; {hint}", code="replica_not_found", param="replica"
            )
        return replica

    async def _save(self) -> bool:
        """Write the present drains unless the file has them; return whether it has them now."""
        async with self._lock:
            reasons = {r.name: r.drained for r in self._router.replicas if r.drained is not None}
            if reasons == self._saved:
                return True
            try:
                # In a thread: a slow disk must not block a stream.
                await asyncio.to_thread(self._file.save, reasons)
            except StoreError as error:
                if str(error) != self._unwritable:
                    self._unwritable = str(error)
                    LOG.error("a restart of the gateway forgets the drains: %s", error)  # noqa: TRY400
                return False
            self._saved = reasons
            self._unwritable = ""
            return True
