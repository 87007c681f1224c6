"""The text of a response, from its events or from its stored form, and the note at its end. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from appliance.errors import RequestError
from appliance.telegram.texts import text

SHOWN_CHARACTERS = 3500
"""Characters of a draft: the end of the text so far."""

REJECTIONS = frozenset({"invalid_request", "not_found", "model_not_found", "unsupported_parameter"})
KEY_GONE = frozenset({"invalid_api_key", "permission_denied"})


@dataclass(slots=True)
class ReplyText:
    """The state of a response while its events arrive."""

    response_id: str | None = None
    status: str = "in_progress"
    error_code: str | None = None
    error_message: str = ""
    retry_after: float | None = None
    tokens: int = 0
    sources: list[str] = field(default_factory=list)
    _parts: dict[tuple[int, int], str] = field(default_factory=dict)

    @property
    def rejected(self) -> bool:
        """Whether the model or the server does not accept the request; engines send the status as the code."""
        code = self.error_code or ""
        return code in REJECTIONS or (code.isdigit() and code.startswith("4"))

    @property
    def text(self) -> str:
        """The text so far, in Markdown."""
        return "\n\n".join(part for _, part in sorted(self._parts.items()) if part)

    @property
    def shown(self) -> str:
        """The end of the text so far, for a draft."""
        whole = self.text
        if len(whole) <= SHOWN_CHARACTERS:
            return whole
        tail = whole[-SHOWN_CHARACTERS:]
        return "…\n" + tail[tail.find("\n") + 1 :]

    def apply(self, event: Mapping[str, Any]) -> None:
        """Add one event of the stream."""
        kind = str(event.get("type"))
        if kind == "response.output_text.delta":
            place = (int(event.get("output_index", 0)), int(event.get("content_index", 0)))
            self._parts[place] = self._parts.get(place, "") + str(event.get("delta", ""))
        elif kind == "error":
            self._fail(event.get("error") or event)
        elif isinstance(response := event.get("response"), dict):
            self.response_id = str(response.get("id") or "") or self.response_id
            if kind in ("response.completed", "response.incomplete", "response.failed", "response.cancelled"):
                self.take(response)

    def take(self, response: Mapping[str, Any]) -> None:
        """Replace the state with a whole ``response``."""
        self.status = str(response.get("status"))
        self.tokens = int((response.get("usage") or {}).get("total_tokens") or 0)
        if self.status == "failed":
            self._fail(response.get("error") or {})
        for index, item in enumerate(response.get("output") or []):
            if item.get("type") == "message":
                self._take_message(index, item)

    def fail(self, error: RequestError) -> None:
        """End the response with ``error``."""
        self._fail({"code": error.code, "message": str(error)})
        self.retry_after = error.retry_after

    def _take_message(self, index: int, item: Mapping[str, Any]) -> None:
        for number, part in enumerate(item.get("content") or []):
            if part.get("type") == "output_text":
                self._parts[index, number] = str(part.get("text", ""))
                names = (str(one.get("filename") or one.get("url") or "") for one in part.get("annotations") or [])
                self.sources += [name for name in names if name and name not in self.sources]

    def _fail(self, error: Mapping[str, Any]) -> None:
        self.status = "failed"
        self.error_code = str(error.get("code") or "server_error")
        self.error_message = str(error.get("message") or "")


def closing(reply: ReplyText, language: str, *, stopped: bool = False, restarted: bool = False) -> str:
    """Return the whole Markdown for the person: the text, its sources, and a note about an early end."""
    body = reply.text.strip()
    notes = []
    if reply.sources:
        notes.append(text("sources", language, names=", ".join(reply.sources)))
    if restarted and reply.status != "completed":
        notes.append(text("cut" if body else "restarted", language))
    elif stopped:
        notes.append(text("stopped" if body else "nothing_stopped", language))
    elif reply.status == "failed":
        notes.append(failure(reply, language))
    elif reply.status == "incomplete":
        notes.append(text("incomplete", language))
    elif not body:
        notes.append(text("empty", language))
    return "\n\n".join([body, *notes] if body else notes)


def failure(reply: ReplyText, language: str) -> str:
    """Return the reason of a failed response, in the words of the person's language."""
    code = reply.error_code
    if code in KEY_GONE:
        return text("revoked", language)
    if code in ("rate_limit_exceeded", "insufficient_quota"):
        # A budget may reset in weeks: seconds are for the other limits.
        if reply.retry_after is None or code == "insufficient_quota":
            return text("limited_later", language)
        return text("limited", language, seconds=max(1, round(reply.retry_after)))
    if code == "context_length_exceeded":
        return text("too_long_context", language)
    if reply.rejected:
        return text("rejected", language, reason=reply.error_message[:300])
    return text("unavailable", language)
