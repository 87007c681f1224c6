"""Decides which waiting notices form the next message, and its text. Data only: no clock, no file, no socket.

1. Pages (notices that :attr:`~appliance.notices.notice.Notice.pages`) are due at once. All that are due form one
   message, or as many messages as their texts need.
2. Notices of one kind and subject form one block with the newest state. Pairs of start and end are counted. Every
   other notice is listed or counted, so that none disappears without a trace.
3. A kind and subject that repeats is held back. Its first two messages (start and end) are sent at once. The next
   ones are sums, after 60 s, 120 s, and so on to 10 minutes. 15 quiet minutes end that.
4. All other notices wait for the digest, once a day from a given hour on.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, tzinfo
from typing import TypeAlias

from appliance.notices.notice import Notice

BODY_UNITS = 4000
"""UTF-16 code units of the longest text, the unit of Telegram's limit of 4096. The rest is for a first line."""
BLOCK_UNITS = 1000
"""Code units of one block if a message has several."""
LISTED = 5
"""Earlier notices of a block that are listed by their first line."""
REPEATED = "(perhaps repeated)"
"""First line of a message whose earlier copy may have arrived."""
CUT = "… (cut: the journal has the whole text)"

FREE_MESSAGES = 2
"""Messages of one kind and subject that are not held back: the start of a state and its end."""
HOLD_S = 60.0
LONGEST_HOLD_S = 600.0
QUIET_S = 900.0
"""Seconds without a message after which a kind and subject counts as new. Longer than each hold."""

Key: TypeAlias = tuple[str, str]
"""Kind and subject."""


@dataclass(frozen=True, slots=True)
class WaitingNotice:
    """A notice and the name of its file."""

    name: str
    notice: Notice

    @property
    def key(self) -> Key:
        """Kind and subject."""
        return (self.notice.kind, self.notice.subject)


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """A text for the channel, the notices in it, and ``whole``, the uncut text if something was cut."""

    text: str
    notices: tuple[WaitingNotice, ...]
    whole: str = ""


@dataclass(frozen=True, slots=True)
class SentLately:
    """The last message of a kind and subject: its time by the monotonic clock, and the messages of this episode."""

    at_s: float
    count: int


def units(text: str) -> int:
    """Return the UTF-16 code units of ``text``."""
    return len(text.encode("utf-16-le", "replace")) // 2


def cut(text: str, limit: int) -> str:
    """Return ``text``, cut and marked if it has more than ``limit`` code units."""
    if units(text) <= limit:
        return text
    room = limit - units(CUT) - 1
    kept: list[str] = []
    for character in text:
        room -= 2 if ord(character) > 0xFFFF else 1
        if room < 0:
            break
        kept.append(character)
    return f"{''.join(kept).rstrip()} {CUT}"


def plain(text: str) -> str:
    """Return ``text`` without control characters, which a chat cannot show, and without spaces around it."""
    kept = (one if one in "\n\t" or unicodedata.category(one) not in ("Cc", "Cs") else "�" for one in text)
    return "".join(kept).strip() or "(no text)"


def hold_s(count: int) -> float:
    """Return the seconds between message number ``count`` of an episode and the next one."""
    if count < FREE_MESSAGES:
        return 0.0
    return min(HOLD_S * 2.0 ** min(count - FREE_MESSAGES, 10), LONGEST_HOLD_S)


def is_held(history: Mapping[Key, SentLately], key: Key, now_s: float) -> bool:
    """Return whether notices of ``key`` are held back at ``now_s``, by the monotonic clock."""
    last = history.get(key)
    return last is not None and now_s - last.at_s < hold_s(last.count)


def after_message(history: Mapping[Key, SentLately], keys: Iterable[Key], now_s: float) -> dict[Key, SentLately]:
    """Return ``history`` after a message about ``keys`` was sent at ``now_s``; without keys that became quiet."""
    kept = {key: last for key, last in history.items() if now_s - last.at_s < QUIET_S}
    for key in set(keys):
        kept[key] = SentLately(now_s, kept[key].count + 1 if key in kept else 1)
    return kept


def digest_due(now: datetime, hour: int, last: date | None) -> bool:
    """Return whether the digest of the day of ``now`` (local time) is due, after the one of the day ``last``."""
    return now.hour >= hour and (last is None or last < now.date())


def valid_day(last: date | None, today: date) -> date | None:
    """Return the day of the last digest; today if it is in the future, because the clock was set back.

    Otherwise a clock that was once ahead would stop the digest until that day.
    """
    return today if last is not None and last > today else last


def next_pages(
    waiting: Sequence[WaitingNotice],
    history: Mapping[Key, SentLately],
    *,
    now_s: float,
    host: str,
    zone: tzinfo | None = None,
) -> ChatMessage | None:
    """Return the next message of pages, ``None`` if no page is due. The rest is due after it."""
    due = [one for one in waiting if one.notice.pages and not is_held(history, one.key, now_s)]
    return compose(due, host=host, zone=zone) if due else None


def next_digest(waiting: Sequence[WaitingNotice], *, host: str, zone: tzinfo | None = None) -> ChatMessage | None:
    """Return the next message of the digest, ``None`` if nothing is left for it."""
    rest = [one for one in waiting if not one.notice.pages]
    return compose(rest, host=host, zone=zone) if rest else None


def compose(
    notices: Sequence[WaitingNotice], *, host: str, repeated: bool = False, zone: tzinfo | None = None
) -> ChatMessage:
    """Return a message with the first of ``notices``, at least one, that fit into it.

    ``zone`` is the time zone of the times in it, by default that of the machine. The text has fewer than 4096 code
    units. The same notices give the same text.
    """
    groups: dict[Key, list[WaitingNotice]] = {}
    for one in sorted(notices, key=lambda one: one.name):
        groups.setdefault(one.key, []).append(one)
    digest = not any(one.notice.pages for one in notices)
    first = f"{REPEATED}\n" if repeated else ""
    if len(groups) == 1 and not digest:
        text = f"{plain(host)}: {_block([one.notice for one in notices_of(groups)], zone)}"
        return _message(first, text, cut(text, BODY_UNITS), notices_of(groups))
    head = f"{plain(host)}: {'daily digest, ' if digest else ''}"
    taken: list[WaitingNotice] = []
    blocks: list[str] = []
    whole: list[str] = []
    # The longest head, and the line about the rest.
    room = BODY_UNITS - units(head) - 80
    for group in groups.values():
        block = _block([one.notice for one in group], zone)
        short = cut(block, BLOCK_UNITS)
        if blocks and units(short) + 2 > room:
            break
        room -= units(short) + 2
        blocks.append(short)
        whole.append(block)
        taken += group
    head += f"{len(taken)} notice{'s' if len(taken) > 1 else ''}"
    left = len(notices) - len(taken)
    if left:
        head += f"; {left} more follow{'s' if left == 1 else ''}"
    return _message(
        first, "\n\n".join([head, *whole]), "\n\n".join([head, *blocks]), sorted(taken, key=lambda one: one.name)
    )


def notices_of(groups: Mapping[Key, Sequence[WaitingNotice]]) -> list[WaitingNotice]:
    """Return the notices of all ``groups``, oldest first."""
    return sorted((one for group in groups.values() for one in group), key=lambda one: one.name)


def _message(first: str, whole: str, text: str, notices: Sequence[WaitingNotice]) -> ChatMessage:
    return ChatMessage(text=first + text, notices=tuple(notices), whole=whole if text != whole else "")


def _block(group: Sequence[Notice], zone: tzinfo | None) -> str:
    """Return the text about one kind and subject: the newest notice, the counted pairs, the earlier notices."""
    newest = group[-1]
    subject = f", {plain(newest.subject)}" if newest.subject else ""
    lines = [f"{plain(newest.kind)}{' ended' if newest.ended else ''}{subject}, {_time(newest.at, zone)}"]
    pairs, rest = _pairs(group)
    counted = len(pairs) > 1 or (len(pairs) == 1 and not newest.ended)
    if pairs:
        longest = max(max(0.0, end.at - start.at) for start, end in pairs)
        times = f"{len(pairs)} times {plain(newest.kind)}" if counted else "it began"
        lines.append(f"{times} since {_time(pairs[0][0].at, zone)}, {'the longest' if counted else 'for'} "
                     f"{_duration(longest)}")  # fmt: skip
    lines.append(plain(newest.text))
    earlier = [one for one in rest if one is not newest]
    for one in earlier[-LISTED:][::-1]:
        ended = " ended" if one.ended else ""
        lines.append(f"earlier{ended}, {_time(one.at, zone)}: {cut(plain(one.text).partition(chr(10))[0], 200)}")
    if len(earlier) > LISTED:
        lines.append(f"and {len(earlier) - LISTED} earlier ones")
    return "\n".join(lines)


def _pairs(group: Sequence[Notice]) -> tuple[list[tuple[Notice, Notice]], list[Notice]]:
    """Return the pairs of start and end in ``group``, and the notices that belong to no pair."""
    pairs: list[tuple[Notice, Notice]] = []
    rest: list[Notice] = []
    start: Notice | None = None
    for one in group:
        if one.ended and start is not None:
            pairs.append((start, one))
            start = None
        elif one.ended:
            rest.append(one)
        else:
            if start is not None:
                rest.append(start)
            start = one
    return pairs, rest if start is None else [*rest, start]


def _time(at: float, zone: tzinfo | None) -> str:
    try:
        return datetime.fromtimestamp(at, zone).strftime("%d %b %H:%M:%S")
    except (OverflowError, OSError, ValueError):
        return "at an unknown time"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
