"""Controls: without one line of the code, the test of that line fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from openai import OpenAI

from appliance.assistant.store import conversations
from appliance.assistant.store.database import Database
from appliance.assistant.turns.buffer import EventBuffer
from tests.assistant import test_crashes
from tests.assistant.api import test_responses, test_responses_through_the_gateway
from tests.assistant.running import AssistantUnderTest, whole_service
from tests.assistant.store import test_conversations
from tests.assistant.turns import test_buffer
from tests.conftest import RunningService, wait_until

FAILED = (AssertionError, pytest.fail.Exception)
SHORT_S = 3.0
"""Seconds after which a control stops to wait for what does not happen."""


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningService, AssistantUnderTest]]:
    users = {"bob": {"requests_per_minute": 3}}
    with whole_service(tmp_path_factory.mktemp("controls"), "--context", "4096", users=users) as one:
        yield one


Control = Callable[[RunningService, AssistantUnderTest, OpenAI], None]

CONTROLS: dict[str, Control] = {
    "turns_at_once": lambda _, assistant, ada: test_responses.test_turns_of_one_conversation_are_serialised(
        assistant, ada
    ),
    "deaf_turns": lambda _, assistant, ada: (
        test_responses.test_a_client_that_disconnects_leaves_one_incomplete_response(assistant, ada)
    ),
    "no_recovery": lambda _, assistant, ada: test_crashes.check_a_kill(assistant, ada),
    "always_stored": lambda _, assistant, ada: (
        test_responses.test_without_store_a_conversation_is_read_and_nothing_is_appended(assistant, ada)
    ),
    "no_fit": lambda _, assistant, ada: test_responses.test_a_context_overflow_is_a_400_or_drops_the_oldest_rounds(
        assistant, ada
    ),
    "quiet_failures": lambda service, _, __: through_the_gateway(service),
    "shared_responses": lambda _, assistant, ada: (
        test_responses.test_another_tenant_gets_the_same_404_as_for_an_unknown_id(assistant, ada, "bob")
    ),
}
"""By the defect: the test that must fail."""


REASONS = {
    "turns_at_once": "the last turn had all the others before it",
    "deaf_turns": "the abort of the engine",
    "no_recovery": "in_progress",
    "always_stored": "2 more items",
    "no_fit": "DID NOT RAISE",
    "quiet_failures": "completed",
    "shared_responses": "200 == 404",
}
"""By the defect: words of the failure, so that no other one counts."""


def through_the_gateway(service: RunningService) -> None:
    with OpenAI(base_url=service.url + "/v1", api_key=service.key, max_retries=0) as client:
        test_responses_through_the_gateway.test_a_quota_that_ends_in_the_loop_fails_the_response(service, client)


@pytest.mark.parametrize("defect", CONTROLS)
def test_the_test_of_a_line_fails_without_it(
    both: tuple[RunningService, AssistantUnderTest], monkeypatch: pytest.MonkeyPatch, defect: str
) -> None:
    service, assistant = both
    for module in (test_responses, test_crashes, test_responses_through_the_gateway):
        monkeypatch.setattr(module, "wait_until", briefly)
    assistant.kill()
    assistant.defect = defect
    assistant.start()
    try:
        with assistant.client() as ada, pytest.raises(FAILED) as raised:
            CONTROLS[defect](service, assistant, ada)
        assert REASONS[defect] in str(raised.value)
    finally:
        assistant.kill()
        assistant.defect = ""
        assistant.start()
        wait_until(lambda: assistant.stats()["active"] == 0, "the end of the engine's work")


def briefly(condition: Callable[[], bool], what: str, _timeout_s: float = 0.0) -> float:
    # A store that is indexed for the quota's test takes longer than what never happens.
    return wait_until(condition, what, 60.0 if "passages" in what else SHORT_S)


async def test_expired_events_pass_without_the_check_of_the_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EventBuffer, "check", lambda *_: None)
    with pytest.raises(FAILED):
        await test_buffer.test_expired_events_are_an_error_and_never_a_gap()


@pytest.mark.parametrize("function", ["delete_unused", "_remove_passages"])
def test_rows_remain_without_the_deletion(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    monkeypatch.setattr(conversations, function, lambda *_: 0)
    database = Database(tmp_path)
    try:
        with pytest.raises(FAILED):
            test_conversations.test_a_deleted_conversation_leaves_no_row(database)
    finally:
        database.close()
