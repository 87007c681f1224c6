"""One user of a scenario: chats with their history, over one connection."""

from __future__ import annotations

from typing import Any

from loadtests.client import LoadClient, RequestSpec, Target
from loadtests.parameters import Parameters
from loadtests.sample import Sample
from loadtests.scenarios import Turn


class Session:
    """Sends a :class:`Turn` as a request, after the earlier messages of the same chat."""

    def __init__(self, target: Target, parameters: Parameters, models: tuple[str, ...]) -> None:
        self._client = LoadClient(target)
        self._parameters = parameters
        self._models = models
        self._history: list[dict[str, str]] = []
        self._chat = ""

    def send(self, turn: Turn, *, scheduled_at: float | None = None) -> Sample:
        """Send the request of ``turn`` and return its sample."""
        if turn.fresh or turn.chat != self._chat:
            self._chat = turn.chat
            self._history = [{"role": "system", "content": turn.system}] if turn.system else []
        begins = len(self._history) <= 1
        message = {"role": "user", "content": turn.text}
        sample = self._client.send(self._request(turn, message, begins), user=turn.user, scheduled_at=scheduled_at)
        if sample.good and turn.kind == "chat":
            # A failed or cancelled turn is not part of the chat: its user would send it again.
            self._history += [message, {"role": "assistant", "content": self._client.text}]
        return sample

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _request(self, turn: Turn, message: dict[str, str], begins: bool) -> RequestSpec:
        body: dict[str, Any] = {"max_tokens": turn.max_tokens}
        if self._parameters.temperature is not None:
            body["temperature"] = self._parameters.temperature
        if self._parameters.ignore_eos:
            body["ignore_eos"] = True
        body |= {"prompt": turn.text} if turn.kind == "completion" else {"messages": [*self._history, message]}
        return RequestSpec(
            self._models[turn.model % len(self._models)],
            body,
            kind=turn.kind,
            max_tokens=turn.max_tokens,
            stream=turn.stream,
            cancel_after=turn.cancel_after if turn.stream else None,
            chat_id=turn.chat,
            wanted_prompt_tokens=turn.prompt_tokens if begins else None,
        )
