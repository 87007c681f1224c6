"""Chunks: no text is lost, sizes hold, and cuts are at the best boundary."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.assistant.retrieval.chunking import ChatRound, Chunk, ChunkSettings, chunk_markdown, chunk_rounds
from appliance.errors import InvalidRequestError

Counter = Callable[[str], int]
COUNTERS: dict[str, Counter] = {
    "words": lambda text: len(text.split()),
    "bytes": lambda text: len(text.encode()) // 3,
    "letters": len,
}
SMALL = ChunkSettings(100, 40)


def words(text: str) -> int:
    return len(text.split())


def sentences(count: int, *, start: int = 0, each: int = 9) -> str:
    return " ".join(f"Sentence {number} has {'word ' * (each - 4)}here." for number in range(start, start + count))


def without_space(text: str) -> str:
    return "".join(text.split())


def covered(text: str, chunks: list[Chunk]) -> str:
    """Return the characters of ``text`` that the chunks contain, without white space, each once."""
    found, end = [], 0
    for chunk in chunks:
        assert chunk.text == text[chunk.start : chunk.end]
        found.append(text[max(end, chunk.start) : chunk.end])
        assert not text[end : chunk.start].strip(), "only white space is between two chunks"
        end = max(end, chunk.end)
    return without_space("".join(found))


BLOCKS = st.one_of(
    st.sampled_from(
        [
            "# Title", "## Section", "#### Small", "Setext\n===", "***", "> quote", "- item\n- other", "1. one",
            "| a | b |\n|---|---|\n| 1 | 2 |", "```py\nx = 1\n\ny = 2\n```", "~~~\nopen fence", "a | b\n-|-\n1 | 2",
            "", "  ", "Абзац на русском. Второе предложение!", "#nospace", "|", "---", "line\nline two\nline three",
        ]
    ),
    st.text(max_size=80),
    st.integers(1, 40).map(sentences),
    st.integers(1, 60).map(lambda count: "\n".join(f"| cell {number} | value |" for number in range(count))),
    st.integers(1, 300).map(lambda count: "x" * count),
)  # fmt: skip
DOCUMENTS = st.lists(BLOCKS, max_size=8).map("\n\n".join) | st.lists(BLOCKS, max_size=8).map("\n".join)


@settings(max_examples=150, deadline=None)
@given(DOCUMENTS, st.integers(100, 300), st.integers(0, 150), st.sampled_from(sorted(COUNTERS)))
def test_no_text_is_lost_and_no_chunk_is_too_large(text: str, size: int, overlap: int, name: str) -> None:
    count = COUNTERS[name]
    settings_ = ChunkSettings(size, min(overlap, size // 2))
    chunks = chunk_markdown(text, settings_, count)
    assert covered(text, chunks) == without_space(text)
    for chunk in chunks:
        assert count(chunk.indexed_text) <= size
        assert chunk.text.strip()
    for one, other in itertools.pairwise(chunks):
        assert other.start > one.start
        assert other.end > one.end
        assert count(text[other.start : max(one.end, other.start)]) <= settings_.overlap_tokens


@pytest.mark.parametrize("text", ["", " \n\t\n", "\n\n\n"])
def test_an_empty_document_has_no_chunk(text: str) -> None:
    assert chunk_markdown(text, SMALL, words) == []


def test_a_short_document_is_one_chunk() -> None:
    text = "# A\n\nOne.\n\n## B\n\nTwo."
    (chunk,) = chunk_markdown(text, SMALL, words)
    assert chunk.text == text
    assert chunk.context == ""


def test_a_later_chunk_has_the_path_of_its_headings() -> None:
    text = f"# Manual\n\n## Pumps\n\n### Oil\n\n{sentences(30)}\n\n## Valves\n\nClosed."
    chunks = chunk_markdown(text, SMALL, words)
    assert chunks[1].headings == ("Manual", "Pumps", "Oil")
    assert chunks[1].indexed_text.startswith("Manual > Pumps > Oil\n")
    assert chunks[-1].headings == ("Manual",), "a heading of the same level ends the path"


def test_long_headings_take_at_most_a_quarter() -> None:
    text = f"# {'outer ' * 30}\n\n## inner\n\n{sentences(40)}"
    for chunk in chunk_markdown(text, SMALL, words)[1:]:
        assert chunk.context in ("", "inner")
        assert words(chunk.context) <= 25


def test_a_heading_never_ends_a_chunk() -> None:
    text = "\n\n".join(f"### Part {number}\n\n{sentences(3)}" for number in range(12))
    for chunk in chunk_markdown(text, SMALL, words)[:-1]:
        assert not chunk.text.strip().splitlines()[-1].startswith("#")


def test_a_section_begins_a_chunk_if_the_one_before_is_half_full() -> None:
    text = f"{sentences(7)}\n\n## Next\n\n{sentences(7)}"
    assert chunk_markdown(text, SMALL, words)[1].text.startswith("## Next")


@pytest.mark.parametrize("block", ["```\n{}\n```", "| a | b |\n|---|---|\n{}"])
def test_a_table_or_code_that_fits_is_not_cut(block: str) -> None:
    inside = block.format("\n".join(f"| row {number} | value |" for number in range(9)))
    for before in range(1, 14):
        chunks = chunk_markdown(f"{sentences(before)}\n\n{inside}\n\n{sentences(6)}", SMALL, words)
        assert any(inside in chunk.text for chunk in chunks), before


def test_a_long_table_is_cut_between_rows_and_repeats_its_head() -> None:
    head = "| name | value |\n|---|---|"
    rows = [f"| row {number} | some value |" for number in range(60)]
    chunks = chunk_markdown("\n".join([head, *rows]), SMALL, words)
    assert len(chunks) > 2
    for chunk in chunks[1:]:
        assert chunk.context == head
        assert all(line in rows for line in chunk.text.strip().splitlines())


def test_long_code_is_cut_between_lines_and_repeats_its_fence() -> None:
    lines = [f"value_{number} = compute(first, second)" for number in range(80)]
    chunks = chunk_markdown("\n".join(["```python", *lines, "```"]), SMALL, words)
    assert len(chunks) > 1
    assert all(chunk.context == "```python" for chunk in chunks[1:])
    assert all(set(chunk.text.strip().splitlines()) <= {*lines, "```python", "```"} for chunk in chunks)


def test_a_fence_inside_a_longer_fence_does_not_end_it() -> None:
    text = "````\n```\n# not a heading\n```\n````\n\n# Heading\n\nText."
    (chunk,) = chunk_markdown(text, SMALL, words)
    assert chunk.text == text
    long = "````\n```\n# not a heading\n```\n````\n\n" + sentences(30)
    assert all("not a heading" not in chunk.headings for chunk in chunk_markdown(long, SMALL, words))


def test_prose_is_cut_between_sentences_and_repeats_whole_ones() -> None:
    chunks = chunk_markdown(sentences(60), SMALL, words)
    for one, other in itertools.pairwise(chunks):
        assert one.text.strip().endswith("here.")
        assert other.text.startswith("Sentence")
        assert 0 < one.end - other.start < len(one.text), "they overlap"


def test_an_overlap_does_not_repeat_a_table() -> None:
    table = "| a | b |\n|---|---|\n" + "\n".join(f"| {number} | x |" for number in range(3))
    for before in range(1, 14):
        chunks = chunk_markdown(f"{sentences(before)}\n\n{table}\n\n{sentences(20)}", SMALL, words)
        assert sum("| a | b |" in chunk.text for chunk in chunks) == 1, before


@pytest.mark.parametrize(
    ("size", "overlap", "param"),
    [
        (99, 0, "max_chunk_size_tokens"),
        (4097, 0, "max_chunk_size_tokens"),
        (800, 401, "chunk_overlap_tokens"),
        (101, 51, "chunk_overlap_tokens"),
        (800, -1, "chunk_overlap_tokens"),
    ],
)
def test_refused_sizes_name_the_field(size: int, overlap: int, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        ChunkSettings(size, overlap)
    assert caught.value.param == f"chunking_strategy.static.{param}"
    assert caught.value.status == 400


def test_the_bounds_are_accepted() -> None:
    assert ChunkSettings() == ChunkSettings(800, 400)
    ChunkSettings(100, 50)
    ChunkSettings(4096, 2048)


def rounds(*texts: tuple[str, str]) -> list[ChatRound]:
    return [
        ChatRound(user, assistant, datetime(2026, 11, day, tzinfo=UTC))
        for day, (user, assistant) in enumerate(texts, 1)
    ]


def test_each_round_is_a_chunk_with_its_date() -> None:
    chunks = chunk_rounds(rounds(("Hi", "Hello"), ("And?", "Well")), SMALL, words, title="Small\ntalk")
    assert [chunk.round for chunk in chunks] == [0, 1]
    assert chunks[1].indexed_text == "2026-11-02 Small talk\nUser: And?\n\nAssistant: Well"
    assert chunks[1].date == datetime(2026, 11, 2, tzinfo=UTC)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(DOCUMENTS, DOCUMENTS), max_size=3), st.text(max_size=300))
def test_parts_of_a_long_round_keep_date_and_topic(texts: list[tuple[str, str]], title: str) -> None:
    made = rounds(*texts)
    chunks = chunk_rounds(made, SMALL, words, title=title)
    for number, one in enumerate(made):
        parts = [chunk for chunk in chunks if chunk.round == number]
        source = f"User: {one.user}\n\nAssistant: {one.assistant}"
        assert covered(source, parts) == without_space(source)
        for part in parts:
            assert part.date == one.date
            assert words(part.indexed_text) <= SMALL.max_tokens
            assert part.context.startswith(f"{one.date:%Y-%m-%d}")


def test_a_part_of_a_long_round_has_the_beginning_of_the_message() -> None:
    chunks = chunk_rounds(rounds(("Why is the pump loud?", sentences(40))), SMALL, words)
    assert len(chunks) > 1
    assert all("User: Why is the pump loud?" in chunk.context for chunk in chunks)
