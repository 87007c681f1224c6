"""Gives each update to its chat. Links, unknown persons and stops need no chat and are handled at once."""

from __future__ import annotations

import asyncio

from appliance.telegram.chat_session import ChatSession
from appliance.telegram.commands import parsed
from appliance.telegram.plan_shop import PlanShop
from appliance.telegram.service import BotService
from appliance.telegram.texts import text
from appliance.telegram.updates import (
    BotUpdate,
    ChatPlace,
    CheckoutQuery,
    IncomingMessage,
    PaidInvoice,
    PressedButton,
    StoppedDraft,
)

MOST_SESSIONS = 1000
"""Chats in memory above which the idle ones are dropped."""


class UpdateDispatcher:
    """The chats of a running bot."""

    def __init__(self, service: BotService) -> None:
        self._service = service
        self._shop = PlanShop(service)
        self._sessions: dict[tuple[int, int, int], ChatSession] = {}
        self._notes: set[asyncio.Task[object]] = set()

    def resume(self) -> None:
        """Continue the work that a stop of the bot interrupted: turns first, then updates that have not begun."""
        turns = self._service.turns
        uncertain = turns.end_sending()
        for turn in turns.open_turns():
            chat = turns.chat_of(turn.chat)
            place = ChatPlace(chat.chat_id, chat.thread_id, private=chat.chat_id > 0)
            self._session(place, chat.person).put(turn)
            if turn.id in uncertain:
                language = str(turn.request.get("language") or "en")
                self._spawn(self._service.delivery.offer_again(turn.id, place, language))
        for payment in self._service.payments.unrecorded():
            self._spawn(self._shop.record(payment))
        for update in turns.waiting_updates():
            self.dispatch(update)

    def dispatch(self, update: BotUpdate) -> None:
        """Begin or enqueue the effect of a stored update."""
        if isinstance(update, StoppedDraft):
            self._service.turns.begin(update.update_id)
            for (chat_id, _, _), session in self._sessions.items():
                if chat_id == update.place.chat_id:
                    session.stop(update.draft_id)
        elif isinstance(update, CheckoutQuery):
            # Not in the order of the chat: Telegram waits 10 s, and a turn may run for longer.
            if self._service.turns.begin(update.update_id):
                self._spawn(self._shop.check_out(update))
        elif isinstance(update, PaidInvoice):
            self._spawn(self._shop.paid(update))
        elif isinstance(update, PressedButton):
            self._press(update)
        elif not update.addressed:
            self._service.turns.begin(update.update_id)
        elif self._service.links.of(update.person) is None or _is_code(update):
            self._introduce(update)
        elif parsed(update.text) == ("stop", ""):
            self._stop(update)
        else:
            self._session(update.place, update.person).put(update)

    async def finished(self) -> None:
        """Wait until no chat has work."""
        while busy := [session for session in self._sessions.values() if not session.idle]:
            for session in busy:
                await session.finished()
        await asyncio.gather(*self._notes)

    async def close(self) -> None:
        """Cancel all work; a restart resumes it."""
        for session in self._sessions.values():
            await session.close()
        for task in [*self._notes]:
            task.cancel()
        await asyncio.gather(*self._notes, return_exceptions=True)

    def _press(self, button: PressedButton) -> None:
        self._spawn(self._service.channel.acknowledge(button.query_id))
        kind, _, value = button.data.partition(":")
        if kind == "stop" and value.isdigit():
            self._service.turns.begin(button.update_id)
            for (chat_id, _, person), session in self._sessions.items():
                # Only the person of the turn may stop it: a group has several.
                if (chat_id, person) == (button.place.chat_id, button.person):
                    session.stop(int(value))
        else:
            self._session(button.place, button.person).put(button)

    def _stop(self, message: IncomingMessage) -> None:
        if self._service.turns.begin(message.update_id):
            session = self._session(message.place, message.person)
            if not session.stop():
                self._note(message.place, text("nothing_runs", message.language))

    def _introduce(self, message: IncomingMessage) -> None:
        """Link a person by a code; an unknown person gets one reply at most."""
        service, now = self._service, self._service.clock.now()
        if not service.turns.begin(message.update_id):
            return
        known = service.links.of(message.person) is not None
        if _is_code(message) and message.place.private:
            code = (parsed(message.text) or ("", ""))[1]
            link = service.links.redeem(code, message.person, now)
            if link is not None:
                service.turns.forget_chats(message.person)
                self._note(message.place, text("linked", message.language, user=link.user))
            elif known or service.links.admit_stranger(message.person, now):
                self._note(message.place, text("code_invalid", message.language))
        elif not known and message.place.private and service.links.admit_stranger(message.person, now):
            self._note(message.place, text("stranger", message.language))

    def _note(self, place: ChatPlace, words: str) -> None:
        self._spawn(self._service.delivery.note(place, words))

    def _spawn(self, work: object) -> None:
        task: asyncio.Task[object] = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)

    def _session(self, place: ChatPlace, person: int) -> ChatSession:
        if len(self._sessions) > MOST_SESSIONS:
            self._sessions = {key: one for key, one in self._sessions.items() if not one.idle}
        key = (place.chat_id, place.thread_id, person)
        if key not in self._sessions:
            self._sessions[key] = ChatSession(self._service, place, person)
        return self._sessions[key]


def _is_code(message: IncomingMessage) -> bool:
    command = parsed(message.text)
    return command is not None and command[0] == "start" and bool(command[1])
