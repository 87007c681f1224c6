"""Carries notices from an outbox to a channel: nothing is lost, and nothing is repeated without a mark.

Life of a notice's file:

=========  ======================  ===========================================================
place      event                   next place
=========  ======================  ===========================================================
outbox     part of a message       sending/, before the request.
sending/   accepted                deleted, after its tag was recorded.
sending/   not accepted            outbox, unless an earlier request of it is uncertain.
sending/   uncertain, or a crash   stays. It is sent again, marked with :data:`.delivery.REPEATED`.
sending/   refused among others    as if not accepted. From then on it is sent alone.
sending/   refused alone           refused/, after a message about it was accepted.
outbox     its tag was sent        deleted.
=========  ======================  ===========================================================

The moves are renames, which also succeed on a full disk. Intervals use the monotonic clock.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path

import msgspec

from appliance.errors import StoreError
from appliance.notices.notice import Notice
from appliance.notices.outbox import Outbox, is_notice, tag_of
from appliance.system import files
from appliance.watch.delivery import (
    ChatMessage,
    SentLately,
    WaitingNotice,
    after_message,
    compose,
    digest_due,
    next_digest,
    next_pages,
    valid_day,
)
from appliance.watch.telegram_bot import (
    MessageChannel,
    Misconfigured,
    NotSent,
    Refused,
    SendOutcome,
    Sent,
    Uncertain,
)

LOG = logging.getLogger(__name__)

SENDING = "sending"
REFUSED = "refused"
STATE = "courier.state"
"""The sender's own file: the day of the last digest, and the tags that were sent."""

PACE_S = 1.0
"""Seconds between two messages: Telegram accepts about one message a second in one chat."""
FIRST_RETRY_S = 2.0
LONGEST_RETRY_S = 60.0
LONGEST_UNCERTAIN_S = 120.0
"""Longest wait after an uncertain end, since each attempt may become a repeated message."""
TAGS_KEPT = 2000
REFUSED_KEPT = 200


class CourierState(msgspec.Struct):
    """The state that survives a restart."""

    digest_day: date | None = None
    tags: list[str] = []
    """The tags that were sent, oldest first; a tag that is put again becomes the newest."""


@dataclass(slots=True)
class DeliveryCounts:
    """Totals since the start of the process."""

    sent: int = 0
    failures: int = 0
    refused: int = 0


@dataclass(slots=True)
class Courier:
    """The only sender of ``outbox``; ``host`` names the machine in each message.

    ``digest_hour`` is the local hour of the daily digest.
    """

    outbox: Outbox
    channel: MessageChannel
    host: str
    digest_hour: int = 8
    counts: DeliveryCounts = field(default_factory=DeliveryCounts)
    problem: str = ""
    """Why the last attempt failed; empty after a success."""
    misconfigured: bool = False
    """Whether :attr:`problem` needs a change of the configuration."""
    _state: CourierState = field(default_factory=CourierState)
    _unsaved: bool = False
    _known: dict[str, WaitingNotice] = field(default_factory=dict)
    _history: dict[tuple[str, str], SentLately] = field(default_factory=dict)
    _alone: set[str] = field(default_factory=set)
    _done: set[str] = field(default_factory=set)
    """Accepted notices whose file in sending/ could not be deleted yet."""
    _not_before_s: float = float("-inf")
    _failed_in_a_row: int = 0
    _logged: str = ""

    def open(self) -> None:
        """Make the folders and read the state; call it once. Raises :class:`StoreError`."""
        for name in (SENDING, REFUSED):
            files.make_folder(self.outbox.folder / name)
        raw = files.read(self.outbox.folder / STATE)
        try:
            self._state = msgspec.json.decode(raw, type=CourierState) if raw else CourierState()
        except msgspec.DecodeError as error:
            # Without tags, a notice that was put twice is sent twice. Without the day, the digest is early.
            LOG.warning("%s is damaged and starts anew: %s", self.outbox.folder / STATE, error)

    def waiting(self) -> list[WaitingNotice]:
        """Return the notices in the outbox, oldest first; refuse files that are not notices.

        Raises :class:`StoreError` if a folder cannot be read.
        """
        return self._read(self.outbox.waiting())

    def in_flight(self) -> list[WaitingNotice]:
        """Return the notices whose message may have been accepted, oldest first."""
        return self._read(Outbox(self.outbox.folder / SENDING).waiting())

    def refused(self) -> int:
        """Return the number of notices that were set aside."""
        return len(Outbox(self.outbox.folder / REFUSED).waiting())

    def due_since(self, now: datetime) -> float | None:
        """Return the time of the oldest notice that waits for the channel only, in seconds since the epoch.

        Notices for a later digest do not count. Returns ``None`` if no notice is due.
        """
        digest = digest_due(now, self.digest_hour, valid_day(self._state.digest_day, now.date()))
        due = [one.notice.at for one in self.waiting() if digest or one.notice.pages]
        return min([*due, *(one.notice.at for one in self.in_flight())], default=None)

    def tick(self, now_s: float, now: datetime) -> None:
        """Send at most one message; ``now_s`` is the monotonic clock, ``now`` the local time.

        Raises :class:`StoreError` if the outbox cannot be read or changed.
        """
        self._save_if_needed()
        self._delete_done()
        waiting = self._without_duplicates(self.waiting())
        if now_s < self._not_before_s:
            return
        uncertain = self.in_flight()
        if uncertain:
            again = [one for one in uncertain if one.name in self._alone][:1] or uncertain
            self._send(compose(again, host=self.host, repeated=True), repeated=True, now_s=now_s)
            return
        message = self._next(waiting, now_s, now)
        if message is not None:
            self._move(message.notices, self.outbox.folder / SENDING)
            self._send(message, repeated=False, now_s=now_s)

    def _next(self, waiting: Sequence[WaitingNotice], now_s: float, now: datetime) -> ChatMessage | None:
        alone = next((one for one in waiting if one.name in self._alone), None)
        if alone is not None:
            return compose([alone], host=self.host)
        message = next_pages(waiting, self._history, now_s=now_s, host=self.host)
        if message is not None:
            return message
        last = valid_day(self._state.digest_day, now.date())
        if digest_due(now, self.digest_hour, last):
            message = next_digest(waiting, host=self.host)
            # The day is complete when nothing of it waits: a failure in between is continued, not skipped.
            last = last if message is not None else now.date()
        if last != self._state.digest_day:
            self._state.digest_day, self._unsaved = last, True
            self._save_if_needed()
        return message

    def _send(self, message: ChatMessage, *, repeated: bool, now_s: float) -> None:
        if message.whole:
            LOG.info("a message was cut; the whole text: %s", message.whole)
        outcome = self.channel.send(message.text)
        if isinstance(outcome, Refused) and len(message.notices) > 1:
            self._fail(outcome, now_s, 0.0)
            self._alone |= {one.name for one in message.notices}
            if not repeated:
                self._move(message.notices, self.outbox.folder)
            return
        refused = outcome if isinstance(outcome, Refused) else None
        if refused is not None:
            outcome = self._report_refusal(message.notices[0], refused, repeated=repeated)
        if isinstance(outcome, Sent):
            self._accepted(message, refused, now_s)
            return
        longest = LONGEST_UNCERTAIN_S if isinstance(outcome, Uncertain) else LONGEST_RETRY_S
        wait_s = min(FIRST_RETRY_S * 2.0 ** min(self._failed_in_a_row, 10), longest)
        if isinstance(outcome, NotSent) and outcome.retry_after_s is not None:
            wait_s = max(PACE_S, outcome.retry_after_s)
        self._fail(outcome, now_s, wait_s)
        if not (isinstance(outcome, Uncertain) or repeated):
            self._move(message.notices, self.outbox.folder)

    def _report_refusal(self, one: WaitingNotice, refused: Refused, *, repeated: bool) -> SendOutcome:
        """Send a message about the refused notice. If that is refused as well, the notice is not the cause."""
        text = f"a notice cannot be sent, because Telegram returned: {refused.reason}. Its text is in the journal."
        replacement = Notice(kind=one.notice.kind, subject=one.notice.subject, text=text, at=one.notice.at)
        message = compose([WaitingNotice(one.name, replacement)], host=self.host, repeated=repeated)
        outcome = self.channel.send(message.text)
        if isinstance(outcome, Refused):
            return Misconfigured(
                f"Telegram refuses every message ({outcome.reason}): check appliance.notify.chatId"
            )
        return outcome

    def _accepted(self, message: ChatMessage, refused: Refused | None, now_s: float) -> None:
        names = [f"{one.notice.kind}/{one.notice.subject}" for one in message.notices]
        if refused is not None:
            one = message.notices[0]
            LOG.error("refused (%s): %s: %s", refused.reason, names[0], one.notice.text)
            self._refuse(self.outbox.folder / SENDING / one.name, refused.reason)
        else:
            LOG.info("sent %d notice(s): %s", len(names), ", ".join(names))
            self.counts.sent += 1
        self._remember(tag for one in message.notices if (tag := tag_of(one.name)))
        self._done |= {one.name for one in message.notices}
        pages = [one.key for one in message.notices if one.notice.pages]
        self._history = after_message(self._history, pages, now_s)
        self._not_before_s = now_s + PACE_S
        self._failed_in_a_row = 0
        self.problem, self.misconfigured, self._logged = "", False, ""
        self._save_if_needed()
        self._delete_done()

    def _remember(self, tags: Iterable[str]) -> None:
        for tag in tags:
            if tag in self._state.tags:
                self._state.tags.remove(tag)
            self._state.tags.append(tag)
            self._unsaved = True

    def _delete_done(self) -> None:
        for name in [*self._done]:
            self._delete(self.outbox.folder / SENDING / name)
            self._done.discard(name)
            self._known.pop(name, None)
            self._alone.discard(name)

    def _fail(self, outcome: SendOutcome, now_s: float, wait_s: float) -> None:
        self.counts.failures += 1
        self._failed_in_a_row += 1
        self._not_before_s = now_s + wait_s
        self.problem = "" if isinstance(outcome, Sent) else outcome.reason
        self.misconfigured = isinstance(outcome, Misconfigured)
        if self.problem != self._logged:
            kept = ", it may arrive twice" if isinstance(outcome, Uncertain) else ""
            LOG.warning("a message was not sent%s: %s", kept, self.problem)
            self._logged = self.problem

    def _without_duplicates(self, waiting: list[WaitingNotice]) -> list[WaitingNotice]:
        """Delete notices whose tag was sent, or waits in an older file, and return the others."""
        seen = {tag_of(one.name) for one in self.in_flight()}
        kept = []
        for one in waiting:
            tag = tag_of(one.name)
            if tag and (tag in seen or tag in self._state.tags):
                if tag in self._state.tags:
                    # An alert that still fires is reported for weeks: its tag must not be the oldest one.
                    self._remember([tag])
                self._delete(self.outbox.folder / one.name)
                continue
            seen.add(tag)
            kept.append(one)
        return kept

    def _read(self, waiting: Sequence[Path]) -> list[WaitingNotice]:
        found = []
        for file in waiting:
            if file.name in self._done:
                continue
            one = self._known.get(file.name)
            if one is None:
                raw = files.read(file)
                if raw is None:
                    continue
                try:
                    one = WaitingNotice(file.name, msgspec.json.decode(raw, type=Notice))
                except msgspec.DecodeError as error:
                    LOG.error("%s is not a notice and is set aside: %s", file, error)  # noqa: TRY400
                    self._refuse(file, f"not a notice: {error}")
                    continue
                self._known[file.name] = one
            found.append(one)
        return found

    def _refuse(self, file: Path, reason: str) -> None:
        """Move ``file`` into refused/, with a file of the reason; delete the oldest ones beyond the limit."""
        folder = self.outbox.folder / REFUSED
        self.counts.refused += 1
        try:
            (folder / f"{file.stem}.reason").write_text(f"{reason}\n")
        except OSError as error:
            LOG.warning("%s", StoreError.unwritable(folder / f"{file.stem}.reason", error))
        files.move(file, folder / file.name)
        for old in sorted(one for one in folder.iterdir() if is_notice(one.name))[:-REFUSED_KEPT]:
            self._delete(old)
            self._delete(old.with_suffix(".reason"))

    def _move(self, notices: Sequence[WaitingNotice], target: Path) -> None:
        """Move notices between the outbox and sending/, so that the move survives a power cut."""
        source = self.outbox.folder if target.name == SENDING else self.outbox.folder / SENDING
        for one in notices:
            files.move(source / one.name, target / one.name)
        files.sync_folder(target)
        files.sync_folder(source)

    def _delete(self, file: Path) -> None:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError.unwritable(file, error) from None

    def _save_if_needed(self) -> None:
        """Write the state; on a full disk it stays in memory until the next tick."""
        if not self._unsaved:
            return
        del self._state.tags[:-TAGS_KEPT]
        try:
            files.replace(self.outbox.folder / STATE, msgspec.json.encode(self._state).decode())
        except StoreError as error:
            LOG.debug("%s", error)
            return
        files.sync_folder(self.outbox.folder)
        self._unsaved = False
