"""One user's side of a scenario: chats with their history, over one connection."""

from __future__ import annotations

from typing import Any

from loadtests.client import LoadClient, RequestSpec, Target
from loadtests.parameters import Parameters
from loadtests.sample import Sample
from loadtests.scenarios import Turn


class Session:
    """Turns :class:`Turn` into requests; what was answered stands before the next turn of the same chat."""

    def __init__(self, target: Target, parameters: Parameters, models: tuple[str, ...]) -> None:
        self._client = LoadClient(target)
        self._parameters = parameters
        self._models = models
        self._history: list[dict[str, str]] = []
        self._chat = ""

    def ask(self, turn: Turn, *, scheduled_at: float | None = None) -> Sample:
        """Make the request; its sample."""
        if turn.fresh or turn.chat != self._chat:
            self._chat = turn.chat
            self._history = [{"role": "system", "content": turn.system}] if turn.system else []
        begins = len(self._history) <= 1
        question = {"role": "user", "content": turn.text}
        sample = self._client.ask(self._request(turn, question, begins), user=turn.user, scheduled_at=scheduled_at)
        if sample.good and turn.kind == "chat":
            # What failed or was left is not part of the chat: its user would ask again.
            self._history += [question, {"role": "assistant", "content": self._client.text}]
        return sample

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _request(self, turn: Turn, question: dict[str, str], begins: bool) -> RequestSpec:
        body: dict[str, Any] = {"max_tokens": turn.max_tokens}
        if self._parameters.temperature is not None:
            body["temperature"] = self._parameters.temperature
        if self._parameters.ignore_eos:
            body["ignore_eos"] = True
        body |= {"prompt": turn.text} if turn.kind == "completion" else {"messages": [*self._history, question]}
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
