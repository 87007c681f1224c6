"""The notices: whether they are sent, by the state that the sender writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from appliance.contract.machine import NoticeSender
from appliance.doctor.check import check, machine_part
from appliance.doctor.context import CheckContext
from appliance.doctor.finding import Finding, fail, ok, warn
from appliance.doctor.host import HostReader

SILENT_S = 120.0
"""Age of the state from which on the sender counts as stopped; it writes it every 15 s."""
LATE_S = 900.0
"""Age of a notice that is due from which on it counts as late."""


@dataclass(frozen=True, slots=True)
class SenderState:
    """The state of the sender, as :class:`appliance.watch.notify.NotifyStatus` writes it."""

    at: float
    waiting: int
    due_since: float | None
    refused: int
    problem: str
    misconfigured: bool


def read_sender(host: HostReader, file: str) -> SenderState | None:
    """Return the state in ``file``; ``None`` if there is none, or if it is of another version."""
    text = host.text(file)
    try:
        table: dict[str, Any] = json.loads(text or "")
        due = table["due_since"]
        return SenderState(
            at=float(table["at"]),
            waiting=int(table["waiting"]),
            due_since=None if due is None else float(due),
            refused=int(table["refused"]),
            problem=str(table["problem"]),
            misconfigured=bool(table["misconfigured"]),
        )
    except (ValueError, KeyError, TypeError):
        return None


def judge_sender(state: SenderState | None, now: float) -> Iterator[Finding]:
    """Judge whether the sender runs, its settings are valid, and no notice is late or refused."""
    if state is None or now - state.at > SILENT_S:
        since = "" if state is None else f" since {(now - state.at) / 60:.0f} min"
        yield fail(
            f"the sender does not run{since}",
            meaning="No message reaches the operator: no page, no digest.",
            fix="systemctl status appliance-notify; journalctl -u appliance-notify -n 20",
        )
        return
    late_s = 0.0 if state.due_since is None else now - state.due_since
    if state.misconfigured:
        yield fail(
            f"{state.waiting} waiting, none can be sent: {state.problem}",
            meaning="No message reaches the operator until token and chat are valid.",
            fix="correct appliance.notify.tokenFile or chatId, nixos-rebuild switch; sudo appliance notify test",
        )
    elif late_s > LATE_S:
        yield warn(
            f"{state.waiting} waiting, the oldest for {late_s / 60:.0f} min: {state.problem or 'held back'}",
            meaning="The line to Telegram is down, or it is blocked. Nothing is lost: they are sent later.",
            fix="journalctl -u appliance-notify -n 20; curl -sSI https://api.telegram.org",
        )
    else:
        yield ok(f"sent; {state.waiting} waiting" if state.waiting else "sent; none waiting")
    if state.refused:
        yield warn(
            f"{state.refused} were refused and set aside",
            meaning="Their texts did not arrive; the journal has them.",
            fix="sudo appliance notify status; then delete the files in /var/lib/appliance-notices/refused",
            subject="refused",
        )


@check(
    "notices",
    looks="whether the sender of notices runs, and whether a notice is late or refused",
    means="No message reaches the operator.",
    fix="`systemctl status appliance-notify`; `sudo appliance notify test`",
    requires=machine_part(lambda machine: machine.notices, "this host sends no notices"),
    fault_domain="external",
)
def check_notices(context: CheckContext, sender: NoticeSender) -> Iterator[Finding]:
    """Check the sender of notices."""
    yield from judge_sender(read_sender(context.host, sender.status), context.now)
