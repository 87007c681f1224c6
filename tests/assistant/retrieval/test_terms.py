"""Terms: one form for the spellings of a word, an identifier, a number and a date."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.assistant.retrieval.date_terms import date_terms
from appliance.assistant.retrieval.language import MAX_LETTERS, analysis_version, one_script, stem
from appliance.assistant.retrieval.terms import FUNCTION_TERMS, query_terms, term_counts, terms


@pytest.mark.parametrize(
    "spellings",
    [
        ("сервер", "сервера", "серверами", "СЕРВЕРОВ"),
        ("ёлка", "елка", "е\u0301лки", "Ёлкой"),
        ("policy", "policies", "POLICIES"),
        ("GPU", "GPUs", "gpus"),
        ("café", "cafe", "cafe\u0301"),
        ("сервер", "cервер", "сеpвep"),
        ("API", "АPI"),
        ("1С", "1C"),
        ("слово", "сло\u00adво", "сло\u200bво"),
    ],
)
def test_forms_of_a_word_have_one_term(spellings: tuple[str, ...]) -> None:
    assert len({tuple(terms(spelling)) for spelling in spellings}) == 1, [terms(one) for one in spellings]


@pytest.mark.parametrize(
    ("one", "other"), [("кот", "код"), ("Topовый", "торовый"), ("C++", "C#"), ("запрос", "запас"), ("gas", "ga")]
)
def test_different_words_stay_different(one: str, other: str) -> None:
    assert set(terms(one)).isdisjoint(terms(other))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("maxModelLen", {"max", "model", "len", "max_model_len"}),
        ("--max-model-len", {"max", "model", "len", "max_model_len"}),
        ("max_model_len", {"max", "model", "len", "max_model_len"}),
        ("HTTPServer", {"http", "server", "http_server"}),
        ("RTX5090", {"rtx", "5090", "rtx_5090"}),
        ("/etc/appliance", {"etc", "applianc", "etc_applianc"}),
        ("API-ключ", {"api", "ключ", "api_ключ"}),
        ("VPSки", {"vps", "ки", "vps_ки"}),
        ("0.33.0", {"0", "33", "0_33_0"}),
        ("a3f9b2c1d4e5", {"a3f9b2c1d4e5"}),
        ("C++", {"c++"}),
        ("it's", {"it"}),
    ],
)
def test_identifiers_give_their_words_and_the_whole(text: str, expected: set[str]) -> None:
    assert set(terms(text)) == expected


@pytest.mark.parametrize("text", ["12 500", "12,500", "12.500", "12\u00a0500", "12500", "12'500"])
def test_grouped_thousands_are_one_number(text: str) -> None:
    assert "12500" in terms(f"цена {text} рублей")


def test_a_decimal_comma_is_a_decimal_point() -> None:
    assert "16_4" in terms("16,4")
    assert "16_4" in terms("16.4")


@pytest.mark.parametrize(
    ("text", "joined"), [("0 500", "0500"), ("2024 500 1", "2024500"), ("12 50", "1250"), ("192.168.1.1", "192168")]
)
def test_other_digits_are_not_joined(text: str, joined: str) -> None:
    assert joined not in terms(text)


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-27",
        "27.11.2026",
        "27 ноября 2026 года",
        "November 27, 2026",
        "27th of November 2026",
        "27 nov. 2026",
    ],
)
def test_a_date_has_one_form(text: str) -> None:
    assert set(date_terms(text)) == {"month:2026-11", "day:2026-11-27"}


@pytest.mark.parametrize("text", ["в ноябре 2026", "November 2026", "2026-11"])
def test_a_month_without_a_day(text: str) -> None:
    assert set(date_terms(text)) == {"month:2026-11"}


@pytest.mark.parametrize(
    "text", ["2026-13-40", "31.02.2026", "192.168.20.2026", "ноябрь", "27 ноября", "99999-11-27", "1.2.2026.4"]
)
def test_other_numbers_are_not_dates(text: str) -> None:
    assert [*date_terms(text)] == []


def test_a_query_omits_function_words_unless_it_has_nothing_else() -> None:
    assert query_terms("Какая стоимость у серверов?") == query_terms("стоимость сервера")
    assert query_terms("как это было") != [], "a query of function words still searches"
    assert terms("это")
    assert not set(query_terms("это сервер")) & FUNCTION_TERMS


@pytest.mark.parametrize("text", ["", "   ", "...", "—", "🙂"])
def test_a_text_without_words_has_no_terms(text: str) -> None:
    assert terms(text) == query_terms(text) == []


def test_a_long_word_is_cut() -> None:
    assert len(stem("x" * 10_000)) <= MAX_LETTERS
    assert terms("я" * 500) == terms("я" * 900)


@given(st.text(max_size=200))
def test_any_text_has_terms_without_an_error(text: str) -> None:
    found = terms(text)
    assert found == terms(text), "the function is pure"
    assert all(found)
    assert sum(term_counts(text).values()) == len(found)
    assert set(query_terms(text)) <= set(found)


@given(st.text("абвгдеёжз ABCdef12-_.", max_size=60))
def test_a_query_finds_the_words_that_a_text_repeats(text: str) -> None:
    assert set(query_terms(text)) <= {*terms(text)}
    assert {*terms(text)} <= {*terms(f"Начало {text} конец")} or text.strip(" -_.") == ""


@given(st.text("серверaceopxy", min_size=1, max_size=12))
def test_look_alikes_keep_the_length_of_a_word(word: str) -> None:
    assert len(one_script(word)) == len(word)


def test_the_version_names_the_stemmers() -> None:
    assert analysis_version().count("snowball-") == 1
