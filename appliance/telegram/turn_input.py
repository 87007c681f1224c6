"""Makes the input of a turn from a message: text, a photo, a voice message, a file for the memory."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

from appliance.errors import RequestError
from appliance.telegram.acting import TRANSCRIBE, OfferedModel
from appliance.telegram.channel import MAX_FILE
from appliance.telegram.service import BotService
from appliance.telegram.store.links import PersonLink
from appliance.telegram.store.turns import ChatRecord
from appliance.telegram.texts import text
from appliance.telegram.updates import Attachment

MAX_IMAGE = 10 * 2**20
"""Bytes of the largest image in a request."""

TITLE_LENGTH = 60


@dataclass(frozen=True, slots=True)
class TurnInput:
    """The content of the person's message for ``/v1/responses``; without content there is nothing to generate."""

    content: tuple[dict[str, Any], ...] = ()
    notice: str = ""
    """A text for the person before the response, or instead of it."""


class InputMaker:
    """Makes inputs for one person in one chat."""

    def __init__(self, service: BotService, link: PersonLink, chat: ChatRecord, language: str) -> None:
        self._service = service
        self._link = link
        self._chat = chat
        self._language = language

    async def make(self, request: dict[str, Any], model: OfferedModel | None, name: str) -> TurnInput:
        """Return the input for a stored ``request`` to ``model``, whose name for the person is ``name``.

        Raises :class:`RequestError` of the gateway.
        """
        words = str(request.get("text") or "")
        kind = request.get("attachment")
        if not kind:
            return TurnInput(_text_part(words))
        attachment = Attachment(**kind)
        if attachment.size > MAX_FILE:
            return self._refusal("file_too_large")
        if attachment.kind == "voice":
            return await self._voice(attachment, words)
        if attachment.kind == "photo":
            return await self._photo(attachment, words, model, name)
        if attachment.kind == "document":
            return await self._document(attachment, words)
        return self._refusal("no_attachment")

    async def _voice(self, attachment: Attachment, words: str) -> TurnInput:
        offered = await self._service.gateway.models(self._link)
        listener = next((one for one in offered if one.task == TRANSCRIBE), None)
        if listener is None:
            return self._refusal("no_voice")
        content = await self._service.channel.download(attachment.file_id)
        if content is None:
            return self._refusal("download_failed")
        try:
            heard = await self._service.gateway.transcribe(self._link, listener.name, attachment.name, content)
        except RequestError as error:
            if error.status == 413:
                return self._refusal("voice_too_long")
            if error.status == 400:
                return self._refusal("voice_unreadable")
            raise
        if not heard.strip():
            return self._refusal("voice_silent")
        spoken = "\n\n".join(part for part in (words, heard.strip()) if part)
        return TurnInput(_text_part(spoken), text("heard", self._language, text=heard.strip()[:3000]))

    async def _photo(self, attachment: Attachment, words: str, model: OfferedModel | None, name: str) -> TurnInput:
        if model is not None and model.images is False:
            return self._refusal("no_vision", name=name)
        if attachment.size > MAX_IMAGE:
            return self._refusal("image_too_large")
        content = await self._service.channel.download(attachment.file_id)
        if content is None:
            return self._refusal("download_failed")
        if len(content) > MAX_IMAGE:
            return self._refusal("image_too_large")
        url = f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"
        return TurnInput((*_text_part(words), {"type": "input_image", "image_url": url}))

    async def _document(self, attachment: Attachment, words: str) -> TurnInput:
        content = await self._service.channel.download(attachment.file_id)
        if content is None:
            return self._refusal("download_failed")
        gateway, turns = self._service.gateway, self._service.turns
        try:
            store = turns.chat_of(self._chat.id).vector_store_id
            if store is None:
                store = await gateway.create_store(self._link, f"Telegram {self._chat.id}")
                turns.set_chat(self._chat.id, vector_store_id=store)
            file = await gateway.upload(self._link, attachment.name, content)
            await gateway.attach(self._link, store, file)
        except RequestError as error:
            if error.status in (401, 403, 429) or error.status >= 500:
                raise
            return self._refusal("file_failed", name=attachment.name, reason=str(error)[:300])
        return TurnInput(_text_part(words), text("file_added", self._language, name=attachment.name))

    def _refusal(self, words: str, **values: object) -> TurnInput:
        return TurnInput((), text(words, self._language, **values))


def _text_part(words: str) -> tuple[dict[str, Any], ...]:
    return ({"type": "input_text", "text": words},) if words.strip() else ()


def title_of(words: str) -> str:
    """Return the title of a conversation that begins with ``words``."""
    line = " ".join(words.split())
    return line if len(line) <= TITLE_LENGTH else f"{line[: TITLE_LENGTH - 1]}…"
