"""Defects for controls: each one removes a line of defence, so that the test of that line must fail.

A defect is a function that changes the modules of the process in which it runs.
``python -m tests.assistant.sabotage DEFECT …`` is ``appliance assistant …`` with one.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from appliance.assistant.api import responses as endpoint
from appliance.assistant.store import responses as store
from appliance.assistant.store.responses import ResponseStore
from appliance.assistant.store.schema import RESPONSES
from appliance.assistant.turns.prompt_fit import PromptFit
from appliance.assistant.turns.turn import ResponseTurn, TurnEnd
from appliance.assistant.turns.turn_queue import TurnQueue
from appliance.cli import main as appliance


def _replace(owner: Any, name: str, value: Any) -> None:
    setattr(owner, name, value)


def turns_at_once() -> None:
    """Let the turns of one conversation run at once."""

    @asynccontextmanager
    async def turn(_self: object, _tenant: str, _conversation: str) -> AsyncIterator[None]:
        yield

    _replace(TurnQueue, "turn", turn)


def deaf_turns() -> None:
    """Let a turn run on after its client has disconnected."""
    stop = ResponseTurn.stop

    def stop_unless_left(self: ResponseTurn, reason: Any) -> None:
        if reason != "client_disconnected":
            stop(self, reason)

    _replace(ResponseTurn, "stop", stop_unless_left)


def no_recovery() -> None:
    """Leave the responses of a killed process as they are."""
    _replace(ResponseStore, "recover", lambda *_: 0)


def always_stored() -> None:
    """Ignore ``store: false``."""
    read: Any = vars(endpoint)["read_turn"]
    _replace(endpoint, "read_turn", lambda body, **options: replace(read(body, **options), store=True))


def no_fit() -> None:
    """Send prompts that are too long for the context."""

    async def prompt(self: PromptFit, request: Any, history: Any, model: str, _caller: object) -> Any:
        return self.whole_prompt(request, history, model)

    _replace(PromptFit, "prompt", prompt)


def quiet_failures() -> None:
    """End a turn whose engine failed as completed."""
    ended: Any = vars(ResponseTurn)["_how_it_ended"]

    def completed(self: ResponseTurn, work: Any) -> TurnEnd:
        end: TurnEnd = ended(self, work)
        return TurnEnd("completed") if end.status == "failed" else end

    _replace(ResponseTurn, "_how_it_ended", completed)


def shared_responses() -> None:
    """Read responses without the tenant in the condition."""
    _replace(store, "_is", lambda _tenant, identifier: RESPONSES.c.id == identifier)


DEFECTS: dict[str, Callable[[], None]] = {
    one.__name__: one
    for one in (
        turns_at_once,
        deaf_turns,
        no_recovery,
        always_stored,
        no_fit,
        quiet_failures,
        shared_responses,
    )
}


def main() -> int:
    """Run the assistant with a defect."""
    DEFECTS[sys.argv[1]]()
    return appliance(["assistant", *sys.argv[2:]])


if __name__ == "__main__":
    sys.exit(main())
