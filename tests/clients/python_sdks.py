"""The Python SDKs ``openai`` and ``anthropic`` as :class:`tests.clients.sdk.Sdk`."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import openai

from tests.clients.sdk import Begun, Call, SdkOutcome, SdkProblem

PARAMETERS = {
    "type": "object",
    "properties": {"place": {"type": "string"}},
    "required": ["place"],
    "additionalProperties": False,
}
WEATHER: dict[str, Any] = {"name": "weather", "description": "The weather of a place."}


class _DisconnectRequested(Exception):  # noqa: N818 - a request of the call, not an error
    """The call closes its stream at the first text."""


class _Progress:
    """Reports the first text of a stream, and disconnects if the call requests it."""

    def __init__(self, call: Call, outcome: SdkOutcome, begun: Begun) -> None:
        self._call, self._outcome, self._begun, self._first = call, outcome, begun, True

    def __call__(self, text: str) -> None:
        self._outcome.text += text
        if self._first and self._outcome.text:
            self._first = False
            self._begun()
            if self._call.disconnect:
                raise _DisconnectRequested


class OpenAISdk:
    """``openai``: chat, completions, responses, embeddings, models."""

    def run(self, call: Call, begun: Begun) -> SdkOutcome:
        """Run ``call``; the exception of the SDK becomes the outcome's problem."""
        outcome = SdkOutcome()
        progress = _Progress(call, outcome, begun)
        with openai.OpenAI(base_url=f"{call.url}/v1", api_key=call.key, max_retries=call.retries) as client:
            try:
                getattr(self, f"_{call.api}")(client, call, outcome, progress)
            except _DisconnectRequested:
                pass
            except openai.APIError as error:
                outcome.problem = _openai_problem(error)
        return outcome

    def _chat(self, client: openai.OpenAI, call: Call, outcome: SdkOutcome, progress: _Progress) -> None:
        request: dict[str, Any] = {
            "model": call.model,
            "messages": [{"role": "user", "content": call.text}],
            "max_completion_tokens": call.max_tokens,
        }
        if call.tool:
            request["tools"] = [{"type": "function", "function": WEATHER | {"parameters": PARAMETERS}}]
        if not call.stream:
            response = client.chat.completions.create(**request)
            choice = response.choices[0]
            outcome.text = choice.message.content or ""
            outcome.calls = [(c.function.name, c.function.arguments) for c in choice.message.tool_calls or []]
            outcome.finish, outcome.request_id = choice.finish_reason, response._request_id
            outcome.usage = (response.usage.prompt_tokens, response.usage.completion_tokens)
            return
        if call.usage:
            request["stream_options"] = {"include_usage": True}
        with client.chat.completions.create(**request, stream=True) as stream:
            outcome.request_id = stream.response.headers.get("x-request-id")
            for chunk in stream:
                if chunk.usage:
                    outcome.usage = (chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
                for choice in chunk.choices:
                    outcome.finish = choice.finish_reason or outcome.finish
                    for part in choice.delta.tool_calls or []:
                        if part.function.name:
                            outcome.calls.append((part.function.name, ""))
                        name, arguments = outcome.calls[part.index]
                        outcome.calls[part.index] = (name, arguments + (part.function.arguments or ""))
                    progress(choice.delta.content or "")

    def _completions(self, client: openai.OpenAI, call: Call, outcome: SdkOutcome, progress: _Progress) -> None:
        request: dict[str, Any] = {"model": call.model, "prompt": call.text, "max_tokens": call.max_tokens}
        if not call.stream:
            response = client.completions.create(**request)
            outcome.text, outcome.finish = response.choices[0].text, response.choices[0].finish_reason
            outcome.request_id = response._request_id
            assert response.usage
            outcome.usage = (response.usage.prompt_tokens, response.usage.completion_tokens)
            return
        if call.usage:
            request["stream_options"] = {"include_usage": True}
        with client.completions.create(**request, stream=True) as stream:
            outcome.request_id = stream.response.headers.get("x-request-id")
            for chunk in stream:
                if chunk.usage:
                    outcome.usage = (chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
                for choice in chunk.choices:
                    outcome.finish = choice.finish_reason or outcome.finish
                    progress(choice.text)

    def _responses(self, client: openai.OpenAI, call: Call, outcome: SdkOutcome, progress: _Progress) -> None:
        request: dict[str, Any] = {"model": call.model, "input": call.text, "max_output_tokens": call.max_tokens}
        if call.tool:
            request["tools"] = [{"type": "function", **WEATHER, "parameters": PARAMETERS, "strict": True}]
        if not call.stream:
            response = client.responses.create(**request)
            outcome.text, outcome.request_id = response.output_text, response._request_id
            _finished(response, outcome)
            return
        with client.responses.create(**request, stream=True) as stream:
            outcome.request_id = stream.response.headers.get("x-request-id")
            for event in stream:
                if event.type == "response.completed":
                    _finished(event.response, outcome)
                progress(event.delta if event.type == "response.output_text.delta" else "")

    def _embeddings(self, client: openai.OpenAI, call: Call, outcome: SdkOutcome, _: _Progress) -> None:
        response = client.embeddings.create(model=call.model, input=[call.text], encoding_format="float")
        outcome.text, outcome.request_id = json.dumps(response.data[0].embedding), response._request_id

    def _models(self, client: openai.OpenAI, _call: Call, outcome: SdkOutcome, _: _Progress) -> None:
        outcome.models = [card.id for card in client.models.list()]

    def _model(self, client: openai.OpenAI, call: Call, outcome: SdkOutcome, _: _Progress) -> None:
        card = client.models.retrieve(call.model)
        outcome.models, outcome.request_id = [card.id], card._request_id

    def _files(self, client: openai.OpenAI, _call: Call, outcome: SdkOutcome, _: _Progress) -> None:
        outcome.models = [file.id for file in client.files.list()]


def _finished(response: Any, outcome: SdkOutcome) -> None:
    outcome.finish = response.status
    outcome.usage = (response.usage.input_tokens, response.usage.output_tokens)
    outcome.calls = [(item.name, item.arguments) for item in response.output if item.type == "function_call"]


def _openai_problem(error: openai.APIError) -> SdkProblem:
    name, code = type(error).__name__, error.code
    if isinstance(error, openai.APIStatusError):
        headers = error.response.headers
        return SdkProblem(
            name=name,
            message=error.message,
            status=error.status_code,
            type=error.type,
            code=code,
            request_id=error.request_id,
            retry_after=headers.get("retry-after"),
        )
    return SdkProblem(name=name, message=error.message, status=None, type=error.type, code=code)


class AnthropicSdk:
    """``anthropic``: messages, plain, streamed and through its stream helper, count_tokens, models."""

    def run(self, call: Call, begun: Begun) -> SdkOutcome:
        """Run ``call``; the exception of the SDK becomes the outcome's problem."""
        outcome = SdkOutcome()
        progress = _Progress(call, outcome, begun)
        with anthropic.Anthropic(base_url=call.url, api_key=call.key, max_retries=call.retries) as client:
            try:
                getattr(self, f"_{call.api}")(client, call, outcome, progress)
            except _DisconnectRequested:
                pass
            except anthropic.APIError as error:
                outcome.problem = _anthropic_problem(error)
            except AssertionError as error:
                # The stream helper asserts that it received a message.
                outcome.problem = SdkProblem("AssertionError", str(error))
        return outcome

    def _messages(self, client: anthropic.Anthropic, call: Call, outcome: SdkOutcome, progress: _Progress) -> None:
        if not call.stream:
            message = client.messages.create(**_body(call))
            outcome.text = "".join(block.text for block in message.content if block.type == "text")
            outcome.request_id = message._request_id
            _ended(message, outcome)
            return
        with client.messages.create(**_body(call), stream=True) as stream:
            outcome.request_id = stream.response.headers.get("request-id")
            for event in stream:
                text = ""
                if event.type == "message_start":
                    outcome.usage = (event.message.usage.input_tokens, event.message.usage.output_tokens)
                elif event.type == "content_block_start" and event.content_block.type == "tool_use":
                    outcome.calls.append((event.content_block.name, ""))
                elif event.type == "content_block_delta" and event.delta.type == "text_delta":
                    text = event.delta.text
                elif event.type == "content_block_delta" and event.delta.type == "input_json_delta":
                    name, arguments = outcome.calls[event.index]
                    outcome.calls[event.index] = (name, arguments + event.delta.partial_json)
                elif event.type == "message_delta":
                    outcome.finish = event.delta.stop_reason
                    outcome.usage = (outcome.usage[0] if outcome.usage else 0, event.usage.output_tokens)
                progress(text)

    def _helper(self, client: anthropic.Anthropic, call: Call, outcome: SdkOutcome, progress: _Progress) -> None:
        with client.messages.stream(**_body(call)) as stream:
            outcome.request_id = stream.response.headers.get("request-id")
            for text in stream.text_stream:
                progress(text)
            _ended(stream.get_final_message(), outcome)

    def _count_tokens(self, client: anthropic.Anthropic, call: Call, outcome: SdkOutcome, _: _Progress) -> None:
        counted = client.messages.count_tokens(model=call.model, messages=_body(call)["messages"])
        outcome.usage, outcome.request_id = (counted.input_tokens, 0), counted._request_id

    def _models(self, client: anthropic.Anthropic, _call: Call, outcome: SdkOutcome, _: _Progress) -> None:
        outcome.models = [card.id for card in client.models.list()]

    def _model(self, client: anthropic.Anthropic, call: Call, outcome: SdkOutcome, _: _Progress) -> None:
        card = client.models.retrieve(call.model)
        outcome.models, outcome.request_id = [card.id], card._request_id


def _body(call: Call) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": call.model,
        "max_tokens": call.max_tokens,
        "messages": [{"role": "user", "content": call.text}],
    }
    return body | ({"tools": [WEATHER | {"input_schema": PARAMETERS}]} if call.tool else {})


def _ended(message: Any, outcome: SdkOutcome) -> None:
    outcome.finish = message.stop_reason
    outcome.usage = (message.usage.input_tokens, message.usage.output_tokens)
    outcome.calls = [
        (b.name, json.dumps(b.input, separators=(",", ":"))) for b in message.content if b.type == "tool_use"
    ]


def _anthropic_problem(error: anthropic.APIError) -> SdkProblem:
    body = error.body if isinstance(error.body, dict) else {}
    kind = body.get("error", {}).get("type") if isinstance(body.get("error"), dict) else None
    name = type(error).__name__
    if isinstance(error, anthropic.APIStatusError):
        headers = error.response.headers
        return SdkProblem(
            name=name,
            message=error.message,
            status=error.status_code,
            type=kind,
            code=None,
            request_id=error.request_id,
            retry_after=headers.get("retry-after"),
        )
    return SdkProblem(name=name, message=error.message, status=None, type=kind)
