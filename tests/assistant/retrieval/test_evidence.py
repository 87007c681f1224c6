"""The evidence of a passage: names and identifiers of a request, and the bounds of a rule."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.assistant.retrieval.evidence import MAX_NAMES, RULES, WORDS, EvidenceRule, evidence, requested_names
from appliance.assistant.retrieval.language import Script, main_script
from appliance.assistant.retrieval.terms import term_counts


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("what does the RTX 4090 cost", ["rtx", "4090"]),
        ("dishwasher error code E15", ["e_15"]),
        ("стоимость доставки в Самару", ["самар"]),
        ("Сегодня напиши Ивану. Потом позвони мне", ["иван"]),
        ("what did the stand-up of 2025-10-07 decide in 2025", []),
        ("the 10th of May", ["may"]),
        ("How do I pay 20 euros?", []),
        ("Annual Report Of The Company", []),
        ("заменить 2 фильтра и 15 прокладок", []),
        ("Where is Omar? Omar is late", ["omar"]),
        ("when is Omar's flight", ["omar"]),
        ("when is Omar’s flight", ["omar"]),
        ("when is Ｏｍａｒ＇ｓ flight", ["omar"]),
        ("the price of O'Brien and of Smith-Jones", ["o_brien", "smith_jone"]),
        ("don't pay, I'm late", []),
        ("a B. Omar is late; so is Ivan", ["ivan"]),
        ("", []),
    ],
)
def test_names_and_identifiers_of_a_request(text: str, names: list[str]) -> None:
    assert [one.whole for one in requested_names(text)] == names


@given(
    st.lists(st.sampled_from(["on", "a", " ", ".", "!", "?", "…", ":", ";", "\n", "_", "(", "'", "-", "“", "7"]))
)
def test_a_name_at_the_start_of_a_sentence_does_not_count(parts: list[str]) -> None:
    before = "".join([*parts, " "])
    starts = re.search(r"(?:^|[.!?…:;\n])[\W_]*$", before) is not None
    names = [one.whole for one in requested_names(f"{before}Omar") if one.script is not None]
    assert names == ([] if starts else ["omar"])


def test_a_long_run_of_punctuation_is_read_once() -> None:
    """A scan of the run for each word would take hours."""
    text = "." * 300_000 + " of Omar" * 2_000
    assert [one.whole for one in requested_names(text)] == ["omar"]


def test_the_first_names_count_and_no_more_than_the_limit() -> None:
    numbers = [str(number) for number in range(1000, 1000 + 2 * MAX_NAMES)]
    found = [one.whole for one in requested_names(f"{numbers[0]} {' '.join(numbers)}")]
    assert found == numbers[:MAX_NAMES]


@pytest.mark.parametrize(
    ("requested", "written"),
    [
        ("Omar's", "Omar"),
        ("Omar’s", "Omar"),
        ("Ｏｍａｒ＇ｓ", "Omar"),
        ("Omar's", "Omar’s"),
        ("O’Brien's", "O'Brien"),
        ("RTX-4090's", "RTX 4090"),
        ("4090's", "4090’s"),
    ],
)
def test_a_passage_contains_a_name_that_the_request_has_with_an_ending(requested: str, written: str) -> None:
    (name,) = requested_names(f"when is {requested} flight")
    terms = term_counts(f"The flight of {written} is at noon").keys()
    assert name.whole in terms or terms >= {*name.parts}


def test_an_identifier_has_no_alphabet_and_a_name_has_one() -> None:
    by_name = {one.whole: one.script for one in requested_names("цена 4090 у Омара и у Omar")}
    assert by_name == {"4090": None, "омар": Script.CYRILLIC, "omar": Script.LATIN}


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Поезд RE 9 прибывает вечером", Script.CYRILLIC),
        ("The train from Москва arrives", Script.LATIN),
        ("12 000 + 7", None),
        ("", None),
    ],
)
def test_the_alphabet_of_a_passage(text: str, script: Script | None) -> None:
    assert main_script(term_counts(text)) is script


@given(
    st.sampled_from([WORDS, *RULES.values()]),
    st.floats(-1, 1),
    st.floats(0, 1),
    st.booleans(),
)
def test_evidence_is_a_share_and_a_missing_name_never_adds(
    rule: EvidenceRule, similarity: float, coverage: float, lacks: bool
) -> None:
    whole = evidence(similarity, coverage, rule, lacks_name=False)
    assert 0 <= evidence(similarity, coverage, rule, lacks_name=lacks) <= whole <= 1


@pytest.mark.parametrize("name", ["unrelated", "text_share", "absent_name_factor", "min_evidence"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_rule_outside_its_bounds_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        EvidenceRule(**{"unrelated": 0.1, "text_share": 0.2, "min_evidence": 0.1, name: value})
