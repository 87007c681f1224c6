"""Chunks of a document or of a chat: spans of the text within a number of tokens, cut at the best boundary.

The rules are those of OpenAI's static strategy: 100 to 4096 tokens a chunk, an overlap of at most half. The text is
read as Markdown:

1. A heading begins a section and never ends a chunk. The path of headings above a chunk is part of its context.
2. A chunk ends at the end of a block if it is then at least half full, otherwise at the end of a sentence.
3. A table or a fenced code block that fits in a chunk is not cut. A longer one is cut between lines, and each later
   part has the head of the table, or the opening fence, in its context.
4. The overlap consists of whole sentences. It does not repeat tables and code, and it does not reach over a heading
   that begins a chunk.
5. A round of a chat is a chunk of its own with its date. A longer round is cut, and each part has the beginning of
   the user's message in its context.

The token counter must not decrease when text is appended. A context has at most a quarter of the tokens of a chunk.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from appliance.errors import InvalidRequestError

TokenCounter = Callable[[str], int]
"""Returns the number of tokens of a text."""

MIN_TOKENS, MAX_TOKENS = 100, 4096
"""Bounds of `max_chunk_size_tokens` in OpenAI's API."""
_JOINT_TOKENS = 4
"""Tokens that a text may have more than its parts."""
_PARAM = "chunking_strategy.static"


@dataclass(frozen=True, slots=True)
class ChunkSettings:
    """Sizes in tokens; the defaults are OpenAI's."""

    max_tokens: int = 800
    overlap_tokens: int = 400

    def __post_init__(self) -> None:
        """Reject sizes outside OpenAI's bounds.

        Raises:
            InvalidRequestError: With `param`, the field of the request.
        """
        if not MIN_TOKENS <= self.max_tokens <= MAX_TOKENS:
            raise InvalidRequestError(
                f"max_chunk_size_tokens is {self.max_tokens}; use {MIN_TOKENS} to {MAX_TOKENS}",
                param=f"{_PARAM}.max_chunk_size_tokens",
            )
        if not 0 <= self.overlap_tokens <= self.max_tokens // 2:
            raise InvalidRequestError(
                f"chunk_overlap_tokens is {self.overlap_tokens}; use 0 to {self.max_tokens // 2}, half of a chunk",
                param=f"{_PARAM}.chunk_overlap_tokens",
            )


@dataclass(frozen=True, slots=True)
class ChatRound:
    """One message of a user and the response to it."""

    user: str
    assistant: str
    date: datetime


@dataclass(frozen=True, slots=True)
class Chunk:
    """A span of a text, with the context that a reader of the span needs."""

    text: str
    """The characters ``start`` to ``end`` of the source, unchanged."""
    start: int
    end: int
    headings: tuple[str, ...] = ()
    """Titles of the headings above ``start``, outermost first."""
    context: str = ""
    """Lines to put before ``text``: headings, the head of a cut table, the date of a round."""
    date: datetime | None = None
    round: int | None = None
    """Index of the round of a chat."""

    @property
    def indexed_text(self) -> str:
        """Return the text for the index and the embedder: context and text."""
        return f"{self.context}\n{self.text}" if self.context else self.text


@dataclass(frozen=True, slots=True)
class _Piece:
    """A span that is not cut again unless it exceeds a chunk, and its tokens."""

    start: int
    end: int
    kind: str
    """``heading``, ``prose``, ``table`` or ``code``."""
    tokens: int
    ends_block: bool
    headings: tuple[str, ...]
    head: str = ""
    """The lines that a chunk repeats if it begins with this piece: the head of a table, an opening fence."""
    begins_section: bool = False
    """Whether it is a heading of level 1 or 2."""


def chunk_markdown(text: str, settings: ChunkSettings, count: TokenCounter) -> list[Chunk]:
    """Return the chunks of ``text`` in its order; together they contain every character that is not white space.

    Args:
        text: A document in Markdown, or plain text.
        settings: Sizes in tokens.
        count: The token counter of the embedder.
    """
    return [*_chunks(text, settings, count, prefix="")]


def chunk_rounds(
    rounds: Sequence[ChatRound], settings: ChunkSettings, count: TokenCounter, *, title: str = ""
) -> list[Chunk]:
    """Return the chunks of a chat: one for each round, or several for a round that exceeds a chunk.

    The source of a chunk's span is its own round: "User: ", the message, an empty line, "Assistant: ", and the
    response.

    Args:
        rounds: The rounds in their order.
        settings: Sizes in tokens; parts of a long round overlap, rounds do not.
        count: The token counter of the embedder.
        title: The title of the chat, part of each context.
    """
    found = []
    for number, one in enumerate(rounds):
        about = _fit_start(f"{one.date:%Y-%m-%d} {_one_line(title)}".strip(), settings.max_tokens // 8, count)
        text = f"User: {one.user}\n\nAssistant: {one.assistant}"
        if count(f"{about}\n{text}") <= settings.max_tokens:
            chunks = [Chunk(text, 0, len(text), context=about)]
        else:
            topic = _fit_start(f"User: {_one_line(one.user)}", settings.max_tokens // 8, count)
            chunks = [*_chunks(text, settings, count, prefix=f"{about}\n{topic}")]
        found += [
            Chunk(chunk.text, chunk.start, chunk.end, chunk.headings, chunk.context, date=one.date, round=number)
            for chunk in chunks
        ]
    return found


def _chunks(text: str, settings: ChunkSettings, count: TokenCounter, *, prefix: str) -> Iterator[Chunk]:
    """Yield the chunks of ``text``, each with ``prefix`` at the beginning of its context."""
    room = settings.max_tokens - settings.max_tokens // 4 - _JOINT_TOKENS
    pieces = [*_pieces(text, count, room)]
    first = end = 0
    while end < len(pieces):
        first = _overlap_start(text, pieces, end, settings.overlap_tokens, count, floor=first)
        fresh = end
        context = _context(pieces[first], settings, count, prefix)
        end = _chunk_end(pieces, first, fresh, settings.max_tokens - count(context))
        while True:
            span = text[pieces[first].start : pieces[end - 1].end]
            if count(f"{context}\n{span}" if context else span) <= settings.max_tokens:
                break
            # The sum of the pieces was below the tokens of the whole: drop the overlap, then pieces at the end.
            if first < fresh:
                first += 1
                context = _context(pieces[first], settings, count, prefix)
            elif end > fresh + 1:
                end -= 1
            elif context:
                context = ""
            else:
                break
        start, stop = pieces[first].start, pieces[end - 1].end
        yield Chunk(text[start:stop], start, stop, pieces[first].headings, context)


def _chunk_end(pieces: Sequence[_Piece], first: int, fresh: int, room: int) -> int:
    """Return the index after the last piece of the chunk that begins with ``pieces[first]``.

    ``pieces[fresh]`` is the first piece that no earlier chunk has; the chunk contains at least this one.
    """
    total, end = 0, first
    boundary = 0
    """The last index at which a block ends and the chunk is at least half full."""
    for index in range(first, len(pieces)):
        piece = pieces[index]
        if index > fresh and (total + piece.tokens > room or (piece.begins_section and total >= room // 2)):
            break
        total += piece.tokens
        end = index + 1
        if piece.ends_block and piece.kind != "heading" and total >= room // 2:
            boundary = end
    else:
        return end
    if boundary > fresh:
        return boundary
    while end - 1 > fresh and pieces[end - 1].kind == "heading":
        end -= 1
    return end


def _overlap_start(
    text: str, pieces: Sequence[_Piece], end: int, overlap: int, count: TokenCounter, *, floor: int
) -> int:
    """Return the index of the first piece that the next chunk repeats; ``end`` if it repeats none.

    ``floor`` is the first piece of the chunk before.
    """
    if end == 0 or pieces[end].kind == "heading":
        return end
    first = end
    while first - 1 > floor and pieces[first - 1].kind == "prose":
        if count(text[pieces[first - 1].start : pieces[end - 1].end]) > overlap:
            break
        first -= 1
    return first


def _context(piece: _Piece, settings: ChunkSettings, count: TokenCounter, prefix: str) -> str:
    """Return the context of a chunk that begins with ``piece``, within a quarter of the tokens of a chunk."""
    room = settings.max_tokens // 4
    lines = [prefix] if prefix else []
    headings = piece.headings
    while headings:
        joined = "\n".join([*lines, " > ".join(headings)])
        if count(joined) <= room:
            lines.append(" > ".join(headings))
            break
        headings = headings[1:]
    if piece.head and count("\n".join([*lines, piece.head])) <= room:
        lines.append(piece.head)
    context = "\n".join(lines)
    return context if count(context) <= room else _fit_start(context, room, count)


def _fit_start(text: str, room: int, count: TokenCounter) -> str:
    """Return the longest start of ``text`` with at most ``room`` tokens."""
    if count(text) <= room:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(text[:middle]) <= room else (low, middle - 1)
    return text[:low]


def _one_line(text: str) -> str:
    return " ".join(text.split())


_HEADING = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$")
_UNDERLINE = re.compile(r" {0,3}(=+|-{2,})[ \t]*$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)$")
_DELIMITERS = re.compile(r" {0,3}\|?[ \t]*:?-+:?[ \t]*(\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$")
_LIST_ITEM = re.compile(r" {0,3}(?:[-*+]|\d{1,9}[.)])[ \t]")
_SENTENCE = re.compile(r"(?<=[.!?…。！？])[\"'»”)\]]*\s+|\n(?![a-zа-яё])")


@dataclass(frozen=True, slots=True)
class _Block:
    """A block of Markdown: its lines up to the next block, empty lines at the end included."""

    start: int
    end: int
    kind: str
    level: int = 0
    title: str = ""
    head: str = ""


def _blocks(text: str) -> Iterator[_Block]:
    """Yield the blocks of ``text``; they follow one another without gaps."""
    lines = text.splitlines(keepends=True)
    offsets = [0, *itertools.accumulate(map(len, lines))]
    at = 0
    while at < len(lines):
        first, line = at, lines[at].rstrip("\r\n")
        level, title, head, kind = 0, "", "", "prose"
        if match := _HEADING.match(line):
            kind, level, title, at = "heading", len(match[1]), (match[2] or "").strip(), at + 1
        elif fence := _FENCE.match(line):
            kind, head, at = "code", line.strip(), _code_end(lines, at, fence[1])
        elif "|" in line and at + 1 < len(lines) and _is_delimiter(lines[at + 1]):
            kind, head = "table", f"{line}\n{lines[at + 1].rstrip()}"
            at += 2
            while at < len(lines) and "|" in lines[at]:
                at += 1
        elif line.strip() and at + 1 < len(lines) and (under := _UNDERLINE.match(lines[at + 1].rstrip("\r\n"))):
            kind, level, title, at = "heading", 1 if under[1][0] == "=" else 2, line.strip(), at + 2
        else:
            at += 1
            while at < len(lines) and lines[at].strip() and not _begins_block(lines, at):
                at += 1
        while at < len(lines) and not lines[at].strip():
            at += 1
        yield _Block(offsets[first], offsets[at], kind, level, title, head)


def _code_end(lines: Sequence[str], at: int, fence: str) -> int:
    """Return the index after the closing fence of the code block that begins at line ``at``."""
    for index in range(at + 1, len(lines)):
        line = lines[index].strip()
        if len(line) >= len(fence) and set(line) == {fence[0]}:
            return index + 1
    return len(lines)


def _is_delimiter(line: str) -> bool:
    return "|" in line and "-" in line and _DELIMITERS.match(line.rstrip("\r\n")) is not None


def _begins_block(lines: Sequence[str], at: int) -> bool:
    line = lines[at].rstrip("\r\n")
    if _HEADING.match(line) or _FENCE.match(line) or _LIST_ITEM.match(line):
        return True
    following = lines[at + 1] if at + 1 < len(lines) else ""
    return "|" in line and _is_delimiter(following)


def _pieces(text: str, count: TokenCounter, room: int) -> Iterator[_Piece]:
    """Yield the pieces of ``text``; each has at most ``room`` tokens unless it is a single character."""
    path: list[tuple[int, str]] = []
    for block in _blocks(text):
        headings = tuple(title for _, title in path if title)
        if block.kind == "heading":
            path = [one for one in path if one[0] < block.level]
            headings = tuple(title for _, title in path if title)
            path.append((block.level, block.title))
        spans = [*_split(text, block, count, room)]
        for number, (start, end, tokens) in enumerate(spans):
            yield _Piece(
                start,
                end,
                block.kind,
                tokens,
                ends_block=number == len(spans) - 1,
                headings=headings,
                head=block.head if number else "",
                begins_section=block.kind == "heading" and block.level <= 2,
            )


def _split(text: str, block: _Block, count: TokenCounter, room: int) -> Iterator[tuple[int, int, int]]:
    """Yield start, end and tokens of the pieces of a block."""
    whole = count(text[block.start : block.end])
    if block.kind != "prose" and whole <= room:
        yield block.start, block.end, whole
        return
    if block.kind == "prose":
        cuts = [match.end() for match in _SENTENCE.finditer(text, block.start, block.end)]
    else:
        cuts = [match.end() for match in re.compile("\n").finditer(text, block.start, block.end)]
    start = block.start
    for end in [*cuts, block.end]:
        if text[start:end].strip():
            yield from _halves(text, start, end, count, room)
            start = end
    # White space at the end of a block belongs to no piece; the text between two pieces of a chunk contains it.


def _halves(text: str, start: int, end: int, count: TokenCounter, room: int) -> Iterator[tuple[int, int, int]]:
    """Yield the span, or its parts of at most ``room`` tokens, cut at white space if possible."""
    tokens = count(text[start:end])
    if tokens <= room or end - start <= 1:
        if text[start:end].strip():
            yield start, end, tokens
        return
    middle = (start + end) // 2
    left = max(text.rfind(space, start + 1, middle) for space in " \n\t")
    cut = left + 1 if left > start else middle
    yield from _halves(text, start, cut, count, room)
    yield from _halves(text, cut, end, count, room)
