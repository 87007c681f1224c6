"""Kill -9 in the middle of turns: no half item, no lost response, no double billing. The checks find each."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from openai import OpenAI

from tests.assistant.crashes import (
    VICTIMS,
    Acknowledged,
    AcknowledgedTurn,
    check_billing,
    check_items,
    crash,
    unbilled,
)
from tests.assistant.running import AssistantUnderTest, assistant_running
from tests.conftest import wait_until


def test_a_kill_leaves_failed_responses_and_no_half_items(tmp_path: Path) -> None:
    with assistant_running(tmp_path) as assistant, assistant.client() as client:
        check_a_kill(assistant, client)


def check_a_kill(assistant: AssistantUnderTest, client: OpenAI) -> None:
    """Kill the assistant in a turn; the response must be failed after the start, and the engine's work ended."""
    made = client.responses.create(model="fake", input="x fake: tokens=9 hold=2", background=True)
    wait_until(lambda: assistant.stats()["active"] == 1, "the call of the engine")
    assistant.kill()
    assistant.start()
    found = client.responses.retrieve(made.id)
    assert found.status == "failed"
    assert found.error is not None
    assert found.error.code == "server_error"
    assert found.output == []
    wait_until(lambda: assistant.stats()["active"] == 0, "the abort of the engine")


def test_an_orderly_stop_ends_running_turns_as_failed(tmp_path: Path) -> None:
    with assistant_running(tmp_path) as assistant, assistant.client() as client:
        made = client.responses.create(model="fake", input="x fake: tokens=9 hold=2", background=True)
        wait_until(lambda: assistant.stats()["active"] == 1, "the call of the engine")
        assistant.stop()
        wait_until(lambda: assistant.stats()["active"] == 0, "the abort of the engine")
        assistant.start()
        assert client.responses.retrieve(made.id).status == "failed"


def test_kills_of_each_process_at_random_moments(tmp_path: Path) -> None:
    crashed = crash(tmp_path, VICTIMS, kills=2, seed=7)
    assert crashed.lives == dict.fromkeys(VICTIMS, 2)
    assert len(crashed.known.all) >= 6


WHOLE = {"id": "r", "status": "completed", "items": 3, "outputs": 2, "there": 3, "halves": 0}


@pytest.mark.parametrize(
    "damage",
    [
        {"there": 0},
        {"outputs": 1, "items": 2, "there": 2},
        {"halves": 1},
        {"status": "failed"},
        {"status": "incomplete", "there": 2},
        {"status": "in_progress"},
    ],
    ids=str,
)
def test_the_check_finds_half_turns(damage: dict[str, Any]) -> None:
    check_items([SimpleNamespace(**WHOLE)], [])
    with pytest.raises(AssertionError):
        check_items([SimpleNamespace(**WHOLE | damage)], [])


def test_the_check_finds_items_of_no_response() -> None:
    with pytest.raises(AssertionError):
        check_items([], [SimpleNamespace(id="msg_1")])


ROW = {"request_id": "a.1", "outcome": "ok", "prompt_tokens": 5, "completion_tokens": 6}


@pytest.mark.parametrize(
    "rows",
    [
        [ROW, ROW],
        [ROW, ROW | {"request_id": "a.2"}],
        [ROW | {"outcome": "aborted"}],
        [ROW | {"completion_tokens": 7}],
        [ROW | {"prompt_tokens": 10}],
    ],
    ids=["twice", "two calls", "aborted", "more tokens", "a longer prompt"],
)
def test_the_check_finds_double_billing(rows: list[dict[str, Any]]) -> None:
    turn = AcknowledgedTurn("a", {"usage": {"input_tokens": 5, "output_tokens": 6}})
    known = Acknowledged({("conv_1", 0): [turn]})
    check_billing([ROW], known)
    with pytest.raises(AssertionError):
        check_billing(rows, known)


def test_only_the_last_rows_of_a_killed_gateway_are_lost() -> None:
    turns = [AcknowledgedTurn(name, {}) for name in "abc"]
    known = Acknowledged({("conv_1", 0): turns})
    assert unbilled({"a", "b"}, known, kills=1) == []
    assert unbilled({"a", "b"}, known, kills=0) == [turns[2]]
    assert unbilled({"a", "c"}, known, kills=1) == [turns[1]]
