"""Markdown as text with entities, and its division into messages."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.telegram.formatting import FormattedText, aligned, from_markdown
from appliance.telegram.joining import continues, joined, may_continue
from appliance.telegram.reply_text import ReplyText, failure
from appliance.telegram.splitting import LIMIT, MOST_ENTITIES, split
from appliance.telegram.texts import LANGUAGES, TEXTS, language_of, text
from appliance.telegram.updates import Attachment, ChatPlace, IncomingMessage


def marked(whole: FormattedText) -> list[tuple[str, str]]:
    """Return each entity's kind and its text, cut by UTF-16 offsets."""
    units = whole.text.encode("utf-16-le")
    return [(one.kind, units[one.offset * 2 : one.end * 2].decode("utf-16-le")) for one in whole.entities]


@pytest.mark.parametrize(
    ("source", "shown", "entities"),
    [
        ("a **b** _c_ ~~d~~", "a b c d", [("bold", "b"), ("italic", "c"), ("strikethrough", "d")]),
        ("😀 **b😀** c", "😀 b😀 c", [("bold", "b😀")]),
        ("# Title\ntext", "Title\n\ntext", [("bold", "Title")]),
        ("use `a<b` here", "use a<b here", [("code", "a<b")]),
        ("```py\nx = 1\n```", "x = 1", [("pre", "x = 1")]),
        ("[a](https://b.c)", "a", [("text_link", "a")]),
        ("> said", "said", [("blockquote", "said")]),
        ("- a\n- b\n  1. c", "• a\n• b\n  1. c", []),
        ("**a _b_**", "a b", [("bold", "a b"), ("italic", "b")]),
        ("|a|b|\n|-|-|\n|1|22|", "a | b\n--+---\n1 | 22", [("pre", "a | b\n--+---\n1 | 22")]),
    ],
)
def test_markdown_becomes_text_and_entities(source: str, shown: str, entities: list[tuple[str, str]]) -> None:
    found = from_markdown(source)
    assert (found.text, marked(found)) == (shown, entities)


@pytest.mark.parametrize(
    "source",
    [
        "<b>x</b> &amp",
        "[x](javascript:alert)",
        "<script>x</script>",
        "[x](file:///etc/passwd)",
        "a_b*c",
        "![x](x.png)",
    ],
)
def test_what_telegram_could_execute_or_open_stays_text(source: str) -> None:
    assert from_markdown(source).entities == ()


def test_code_keeps_its_language() -> None:
    (entity,) = from_markdown("```python title=x\n1\n```").entities
    assert entity.language == "python"


def test_wide_characters_align() -> None:
    assert aligned([["名", "b"], ["abcd", "c"]]) == "名   | b\n-----+--\nabcd | c"


def test_paragraphs_are_the_first_choice_of_a_border() -> None:
    first, second = "a " * 1400, "b " * 1400
    assert [part.text for part in split(from_markdown(f"{first}\n\n{second}"))] == [first.strip(), second.strip()]


def test_code_that_is_too_long_stays_code_in_each_message() -> None:
    parts = split(from_markdown("Text.\n\n```py\n" + "x = 1\n" * 2000 + "```"))
    assert all(part.text.startswith("x = 1\n") for part in parts[1:])
    assert {(one.kind, one.language) for part in parts for one in part.entities} == {("pre", "py")}
    assert all(part.entities[-1].end == part.units for part in parts)


def test_a_message_has_at_most_100_entities() -> None:
    parts = split(from_markdown("**a** " * 250))
    assert max(len(part.entities) for part in parts) <= MOST_ENTITIES
    assert sum(len(part.entities) for part in parts) == 250


PIECES = ["word ", "😀", "**b** ", "`c d`", "\n\n", "x" * 70, "```\nq\n```\n", "\n"]


@settings(max_examples=60)
@given(st.lists(st.sampled_from(PIECES), max_size=300))
def test_no_character_is_lost_and_no_message_is_too_long(pieces: list[str]) -> None:
    whole = from_markdown("".join(pieces))
    parts = split(whole, 200)
    assert all(part.units <= 200 and part.text.strip() for part in parts)
    assert "".join("".join(part.text for part in parts).split()) == "".join(whole.text.split())
    for part in parts:
        marked(part)
        assert all(one.length > 0 and one.end <= part.units for one in part.entities)


def test_every_text_has_both_languages_with_the_same_parameters() -> None:
    for name, texts in TEXTS.items():
        assert len(texts) == len(LANGUAGES), name
        parameters = [sorted(word.split("}")[0] for word in one.split("{")[1:]) for one in texts]
        assert parameters[0] == parameters[1], name
        assert all(one.strip() and len(one) < LIMIT for one in texts), name


def test_russian_texts_are_russian() -> None:
    letters = set("абвгдежзийклмнопрстуфхцчшщъыьэюя")
    without = [name for name, (_, russian) in TEXTS.items() if not letters & set(russian.lower())]
    assert without == ["working"]
    assert [language_of(code) for code in ("ru", "ru-RU", "uk")] == ["ru"] * 3
    assert [language_of(code) for code in ("en", "", None)] == ["en"] * 3


def test_a_name_with_markup_is_inserted_as_it_is() -> None:
    assert text("chosen", "en", name="<b>{x}</b>*") == "From now on: <b>{x}</b>*"


def message(number: int, length: int, **more: object) -> IncomingMessage:
    values: dict[str, object] = {"place": ChatPlace(5, 0, private=True), "person": 5, "language": "en"}
    values["message_id"] = number
    values |= {"update_id": number, "text": "x" * length, "addressed": True}
    return IncomingMessage(**cast("dict[str, Any]", values | more))


def test_only_the_next_text_after_a_full_one_continues_it() -> None:
    full = message(1, 4096)
    assert may_continue(full)
    assert not may_continue(message(1, 3999))
    assert continues(full, message(2, 5))
    for other in (
        message(3, 5),
        message(2, 5, person=6),
        message(2, 5, edited=True),
        message(2, 5, place=ChatPlace(5, 9, private=True)),
        message(2, 5, text="/new"),
        message(2, 5, attachment=Attachment("photo", "p")),
    ):
        assert not continues(full, other)
    assert joined([full, message(2, 1)]).text == "x" * 4097
    assert joined([message(1, 4050), message(2, 1)]).text == "x" * 4050 + "\nx", "an app removes the line end"


def test_a_response_is_read_from_its_events() -> None:
    reply = ReplyText()
    for event in (
        {"type": "response.created", "response": {"id": "resp_1", "status": "in_progress"}},
        {"type": "response.output_text.delta", "output_index": 1, "content_index": 0, "delta": "b"},
        {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": "a"},
        {"type": "error", "code": "rate_limit_exceeded", "message": "m", "error": {"code": "rate_limit_exceeded"}},
    ):
        reply.apply(event)
    assert (reply.response_id, reply.text, reply.status) == ("resp_1", "a\n\nb", "failed")
    assert reply.error_code == "rate_limit_exceeded"


@pytest.mark.parametrize("language", ["en", "ru"])
def test_a_used_up_budget_is_a_limit(language: str) -> None:
    reply = ReplyText(status="failed", error_code="insufficient_quota", retry_after=86_400 * 9)
    assert failure(reply, language) == text("limited_later", language)
