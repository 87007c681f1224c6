"""The table of clients: every API of every SDK that generates text, and how to run a call of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.clients.conftest import MODEL, Sdks
from tests.clients.sdk import Call, SdkOutcome
from tests.conftest import RunningService


@dataclass(frozen=True)
class ClientSoftware:
    """One API of one SDK that generates text."""

    sdk: str
    api: str
    finish: str
    """The SDK's finish reason of a complete output."""
    tool_finish: str | None
    """Its finish reason of a tool call; ``None`` for an API without tools."""
    usage_on_request: bool = False
    """Whether a stream has usage only if the call requests it."""

    @property
    def anthropic(self) -> bool:
        """Return whether it uses Anthropic's API."""
        return self.api in ("messages", "helper")

    def __str__(self) -> str:
        return f"{self.sdk}-{self.api}"


CLIENTS = [
    ClientSoftware(sdk="openai-py", api="chat", finish="stop", tool_finish="tool_calls", usage_on_request=True),
    ClientSoftware(sdk="openai-py", api="completions", finish="stop", tool_finish=None, usage_on_request=True),
    ClientSoftware(sdk="openai-py", api="responses", finish="completed", tool_finish="completed"),
    ClientSoftware(sdk="openai-node", api="chat", finish="stop", tool_finish="tool_calls", usage_on_request=True),
    ClientSoftware(sdk="openai-node", api="completions", finish="stop", tool_finish=None, usage_on_request=True),
    ClientSoftware(sdk="openai-node", api="responses", finish="completed", tool_finish="completed"),
    ClientSoftware(sdk="anthropic-py", api="messages", finish="end_turn", tool_finish="tool_use"),
    ClientSoftware(sdk="anthropic-py", api="helper", finish="end_turn", tool_finish="tool_use"),
    ClientSoftware(sdk="anthropic-node", api="messages", finish="end_turn", tool_finish="tool_use"),
    ClientSoftware(sdk="anthropic-node", api="helper", finish="end_turn", tool_finish="tool_use"),
    ClientSoftware(sdk="vercel", api="compatible", finish="stop", tool_finish="tool-calls", usage_on_request=True),
    ClientSoftware(sdk="vercel", api="completions", finish="stop", tool_finish=None, usage_on_request=True),
    ClientSoftware(sdk="vercel", api="chat", finish="stop", tool_finish="tool-calls"),
    ClientSoftware(sdk="vercel", api="responses", finish="stop", tool_finish="tool-calls"),
    ClientSoftware(sdk="vercel", api="messages", finish="stop", tool_finish="tool-calls"),
]
WHOLE = [client for client in CLIENTS if client.api != "helper"]
"""The clients with calls that are not streamed, which the stream helpers do not have."""

each_client = pytest.mark.parametrize("client", CLIENTS, ids=str)
WAYS = [(client, stream) for client in CLIENTS for stream in (False, True) if stream or client in WHOLE]


def way_id(value: ClientSoftware | bool) -> str:
    return str(value) if isinstance(value, ClientSoftware) else ("streamed" if value else "plain")


each_way = pytest.mark.parametrize(("client", "stream"), WAYS, ids=way_id)


def running(sdks: Sdks) -> list[ClientSoftware]:
    """Return the clients that run on this machine."""
    return [client for client in CLIENTS if client.sdk in sdks]


def run(
    sdks: Sdks,
    service: RunningService,
    client: ClientSoftware,
    text: str = "fake: tokens=4",
    begun: Callable[[], None] = lambda: None,
    **more: Any,
) -> SdkOutcome:
    """Run one call of ``client`` against ``service``."""
    defaults = {"url": service.url, "key": service.key, "model": MODEL, "text": text}
    call = Call(client.api, **(defaults | more))
    return sdks[client.sdk].run(call, begun)


def words(outcome: SdkOutcome) -> str:
    """Return the message of the exception in ``outcome``."""
    assert outcome.problem, f"no exception: {outcome}"
    message = outcome.problem.message
    if "validation failed" in message:
        pytest.fail(f"the SDK rejects this event: {message[:300]}")
    return message


def assert_problem(
    client: ClientSoftware, outcome: SdkOutcome, status: int, text: str, openai: object, anthropic: str
) -> None:
    """Assert that the exception has the status, the text and the type of the client's API."""
    problem = outcome.problem
    assert problem, f"no exception: {outcome}"
    assert text in problem.message
    assert problem.status == status
    if client.anthropic:
        assert problem.type == anthropic
    else:
        assert (problem.type, str(problem.code)) == openai
