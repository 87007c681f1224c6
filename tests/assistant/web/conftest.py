"""An assistant with web search whose model follows a script, and the small web behind it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest
import uvicorn

from appliance.assistant.app import make_app
from appliance.assistant.context import AssistantContext
from appliance.assistant.main import open_context
from appliance.contract.model import Site
from tests.assistant.api.conftest import headers
from tests.assistant.gateway_stand_in import ActingRequest, GatewayStandIn, serve_stand_in
from tests.conftest import wait_until
from tests.search.running import FETCHER_KEY, SmallWeb, small_web

CHAT = "/v1/chat/completions"
Message = str | list[tuple[str, dict[str, Any]]]
"""A message of the model: its text, or the calls of functions by name."""
Reply = Message | Callable[[Any], Message]
"""A message, or a function from the body of the request to one."""


@dataclass
class ScriptedModel:
    """A model that sends its replies in their order; then it sends `done`."""

    replies: list[Any] = field(default_factory=list)
    """Of the type :data:`Reply`."""
    finish: str | None = None
    """The finish reason of every message; by default that of its content."""
    counts: bool = True
    """Whether its messages have usage."""
    requests: list[dict[str, Any]] = field(default_factory=list)

    def respond(self, request: ActingRequest) -> Any:
        self.requests.append(request.body)
        reply = self.replies.pop(0) if self.replies else "done"
        if callable(reply):
            reply = reply(request.body)
        calls = [
            {
                "index": at,
                "id": f"call_{at}",
                "type": "function",
                "function": {"name": n, "arguments": json.dumps(a)},
            }
            for at, (n, a) in enumerate(reply if isinstance(reply, list) else ())
        ]
        text = reply if isinstance(reply, str) else None
        finish = self.finish or ("tool_calls" if calls else "stop")
        base = {"id": f"chatcmpl-{len(self.requests)}", "created": 1, "model": "fake"}
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        if not request.body.get("stream"):
            message = {"role": "assistant", "content": text, "tool_calls": calls}
            choice = {"index": 0, "message": message, "finish_reason": finish}
            return {**base, "object": "chat.completion", "choices": [choice], "usage": usage}
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        half = len(text) // 2 if text else 0
        deltas += [{"content": piece} for piece in (text[:half], text[half:])] if text else []
        deltas += [{"tool_calls": [call]} for call in calls]
        frames: list[dict[str, Any]] = [
            *({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas),
            {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]},
            *([{"choices": [], "usage": usage}] if self.counts else []),
        ]
        lines = [json.dumps({**base, "object": "chat.completion.chunk", **frame}) for frame in frames]
        return "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"]).encode()

    def tool_texts(self) -> list[str]:
        """Return the results of tools in the last request."""
        return [one["content"] for one in self.requests[-1]["messages"] if one["role"] == "tool"]


@dataclass
class SearchingAssistant:
    """The assistant, its model and its web."""

    url: str
    model: ScriptedModel
    web: SmallWeb
    gateway: GatewayStandIn
    context: AssistantContext

    def client(self, user: str = "ada") -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key="unused", default_headers=headers(user), max_retries=0, timeout=60
        )


def site_with(web: SmallWeb, folder: Path, *, context: int = 32768, **search: Any) -> Site:
    """Return a site with web search and an engine of ``context`` tokens; ``search`` are fields of its section."""
    key = folder / "fetcher-key"
    key.write_text(FETCHER_KEY)
    section = {"url": web.search_url, "fetcher_url": web.fetcher_url, "key_file": str(key), "timeout_s": 60.0}
    engine = {"kind": "mock", "host": "here", "model": "fake", "device": "cpu", "context": context}
    return Site.model_validate_json(
        json.dumps(
            {
                "version": 1,
                "hosts": {"here": {"memory_gib": 8}},
                "models": {"fake": {"source": "./fake"}},
                "engines": {"chat": {**engine, "concurrency": 64, "port": 8100}},
                "roles": {"seeker": {"model": "fake", "search": True}},
                "assistant": {"acting_socket": str(folder / "acting.sock"), "data_dir": str(folder / "data")},
                "search": {**section, **search},
            }
        )
    )


@contextmanager
def searching_assistant(folder: Path, web: SmallWeb, **search: Any) -> Iterator[SearchingAssistant]:
    """Serve an assistant in this process."""
    model = ScriptedModel()
    stand_in = serve_stand_in(folder)
    gateway = next(stand_in)
    gateway.responses[CHAT] = model.respond
    context = open_context(site_with(web, folder, **search), folder)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        server = uvicorn.Server(uvicorn.Config(make_app(context), log_level="warning", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_until(lambda: server.started or not thread.is_alive(), "the start of the assistant", 60)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            yield SearchingAssistant(url, model, web, gateway, context)
        finally:
            server.should_exit = True
            thread.join()
            next(stand_in, None)


@pytest.fixture(scope="module")
def web() -> Iterator[SmallWeb]:
    with small_web() as running:
        yield running


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, web: SmallWeb) -> Iterator[SearchingAssistant]:
    with searching_assistant(tmp_path_factory.mktemp("searching"), web) as running:
        yield running


@pytest.fixture
def assistant(whole: SearchingAssistant) -> SearchingAssistant:
    """The assistant with an empty script and the results of one search."""
    whole.web.reset()
    whole.model.replies.clear()
    whole.model.requests.clear()
    whole.gateway.errors.clear()
    return whole


@pytest.fixture
def ada(assistant: SearchingAssistant) -> Iterator[openai.OpenAI]:
    with assistant.client() as client:
        yield client
