"""The assistant: its sockets, and the state that it reports about database, memory and Qdrant."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.contract.model import Assistant, Site
from appliance.doctor.check import NotApplicable, check, site_with_gateway
from appliance.doctor.context import CheckContext
from appliance.doctor.finding import Finding, fail, ok, unknown, warn
from appliance.doctor.host import CannotLookError
from appliance.system.http_request import NO_RESPONSE, send_to_socket

STATE_S = 20.0
STUCK_S = 3600.0
"""Age of the oldest waiting file above which the processing counts as stuck."""
MANY_CHATS = 100
UNIT = "appliance-assistant"


@dataclass(frozen=True, slots=True)
class SocketFacts:
    """A Unix socket: whether it exists, and the permission bits of it."""

    path: str
    exists: bool
    is_socket: bool = False
    mode: int = 0


def read_socket(path: Path) -> SocketFacts:
    """Read the socket at ``path``. Raises :class:`CannotLookError` if its folder may not be read."""
    try:
        found = path.stat()
    except PermissionError as error:
        raise CannotLookError(f"{path}: {error.strerror}", "run `appliance doctor` as root") from error
    except OSError:
        return SocketFacts(str(path), exists=False)
    return SocketFacts(
        str(path), exists=True, is_socket=stat.S_ISSOCK(found.st_mode), mode=stat.S_IMODE(found.st_mode)
    )


def read_assistant(path: Path) -> Mapping[str, Any] | str:
    """Return the state that the assistant at the socket ``path`` reports, or why there is none."""
    try:
        response = send_to_socket(path, "/state", method="GET", timeout_s=STATE_S)
        found: Any = response.json()
    except (*NO_RESPONSE, ValueError) as error:
        return type(error).__name__
    if response.status != 200 or not isinstance(found, dict):
        return f"status {response.status}"
    return found


def judge_sockets(own: SocketFacts, acting: SocketFacts) -> Iterator[Finding]:
    """Judge whether both sockets exist, for their owner and group only."""
    for subject, facts, unit in (("socket", own, UNIT), ("acting socket", acting, "appliance-gateway")):
        if not facts.exists or not facts.is_socket:
            yield fail(
                f"{facts.path} is not a socket",
                meaning="Gateway and assistant cannot reach each other: its requests get 503.",
                fix=f"systemctl status {unit}; journalctl -u {unit}",
                subject=subject,
            )
        elif facts.mode & 0o007:
            yield fail(
                f"{facts.path} has the permissions {facts.mode:o}",
                meaning="Every local process can act as any user.",
                fix=f"systemctl restart {unit}",
                subject=subject,
            )
        else:
            yield ok(f"{facts.path}, of its owner and group only", subject=subject)


def judge_memory(state: Mapping[str, Any]) -> Iterator[Finding]:
    """Judge the stores, the queue of files and the ended chats."""
    other, stores = state.get("stores_of_another_embedder"), state.get("stores_with_vectors")
    if other is None and stores:
        yield unknown(
            f"{stores} stores have vectors, and the embedder has not responded yet",
            fix="appliance doctor --only engines",
            subject="embedder",
        )
    elif other:
        yield warn(
            f"{other} of {stores} stores have vectors of another embedder",
            meaning="Searches in them get 409, and new files wait.",
            fix="appliance memory reindex",
            subject="embedder",
        )
    else:
        yield ok(f"{state.get('passages')} passages, all of the present embedder", subject="embedder")
    files, age_s = state.get("files_waiting") or 0, float(state.get("oldest_file_s") or 0)
    if files and age_s > STUCK_S:
        yield warn(
            f"{files} files wait, the oldest since {age_s / 3600:.1f} h",
            meaning="They are not found by searches until they are processed.",
            fix=f"journalctl -u {UNIT} -n 100",
            subject="files",
        )
    else:
        yield ok(f"{files} files wait", subject="files")
    chats = state.get("chats_waiting") or 0
    if chats > MANY_CHATS:
        yield warn(
            f"{chats} ended chats wait for the memory",
            meaning="The memory lacks them until then.",
            fix=f"appliance memory status; journalctl -u {UNIT} -n 100",
            subject="chats",
        )
    else:
        yield ok(f"{chats} ended chats wait", subject="chats")


def judge_qdrant(reported: object) -> Iterator[Finding]:
    """Judge Qdrant by what the assistant reports of it; a site without it has no finding."""
    if not isinstance(reported, dict):
        return
    fix = "systemctl status qdrant; journalctl -u qdrant"
    if reported.get("error"):
        yield fail(
            str(reported["error"]),
            meaning="Searches in large stores get 503.",
            fix=fix,
            subject="Qdrant",
            fault_domain="external",
        )
    elif reported.get("open"):
        yield fail(
            "it accepts requests without a key",
            meaning="Every process that reaches it can read and change all vectors.",
            fix="set appliance.assistant.qdrant.keyFile, then systemctl restart qdrant",
            subject="Qdrant",
        )
    elif reported.get("incomplete"):
        yield warn(
            f"{reported['incomplete']} large stores are not complete yet",
            meaning="Searches in them get 503 until their points exist.",
            fix="wait, or see `journalctl -u appliance-assistant`",
            subject="Qdrant",
        )
    else:
        yield ok(f"responds, requires a key; {reported.get('ready')} large stores", subject="Qdrant")


def assistant_of_host(context: CheckContext) -> tuple[Site, Assistant] | NotApplicable:
    """Require a site with an assistant whose gateway runs on this host."""
    site = site_with_gateway(context)
    if isinstance(site, NotApplicable):
        return site
    return NotApplicable("the site has no assistant") if site.assistant is None else (site, site.assistant)


@check(
    "assistant",
    looks="its socket and the acting socket, with their permissions; its database; embedder, files and chats of "
    "the memory; Qdrant and its key",
    means="Conversations, files and searches get 503; plain chats work without their memory.",
    fix="`journalctl -u appliance-assistant`",
    requires=assistant_of_host,
    fault_domain="generation",
    exceptions="`external` if Qdrant does not respond: it loads its data for minutes",
)
def check_assistant(context: CheckContext, found: tuple[Site, Assistant]) -> Iterator[Finding]:
    """Check the assistant of this host."""
    _, settings = found
    own, acting = context.place(settings.socket), context.place(settings.acting_socket)
    listening = read_socket(own)
    yield from judge_sockets(listening, read_socket(acting))
    if not listening.is_socket:
        return
    state = read_assistant(own)
    if isinstance(state, str):
        yield fail(
            f"does not respond ({state})",
            meaning="Conversations, files and searches get 503 or 502.",
            fix=f"systemctl status {UNIT}; journalctl -u {UNIT} -n 100",
        )
        return
    yield ok("responds; its database can be read")
    yield from judge_memory(state)
    yield from judge_qdrant(state.get("qdrant"))
