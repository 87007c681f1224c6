"""Kill -9 of the assistant in the middle of turns: no half item, no lost response."""

from __future__ import annotations

from pathlib import Path

from tests.assistant.crashes import crash
from tests.assistant.standin import assistant_running
from tests.conftest import wait_until


def test_a_kill_leaves_failed_responses_and_no_half_items(tmp_path: Path) -> None:
    with assistant_running(tmp_path, forked=True) as assistant, assistant.client() as client:
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


def test_ten_kills_at_random_moments(tmp_path: Path) -> None:
    with assistant_running(tmp_path, forked=True) as assistant:
        assert crash(assistant, kills=10, seed=7).completed
