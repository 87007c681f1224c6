"""Reciprocal rank fusion: its formula, its symmetry, and refused weights."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.assistant.retrieval.fusion import HybridWeights, fuse
from appliance.errors import InvalidRequestError

RANKING = st.tuples(
    st.floats(0, 10, allow_nan=False), st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=8)
)
RANKINGS = st.lists(RANKING, max_size=5)


def test_the_formula() -> None:
    fused = fuse([(2.0, ["a", "b"]), (1.0, ["b"])], rank_constant=60)
    highest = 3 / 61
    assert {one.key: one.score for one in fused} == pytest.approx(
        {"a": 2 / 61 / highest, "b": (2 / 62 + 1 / 61) / highest}
    )


@given(RANKINGS, st.randoms(use_true_random=False))
def test_the_order_of_the_rankings_has_no_effect(rankings: list[tuple[float, list[str]]], random: object) -> None:
    shuffled = list(rankings)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert fuse(shuffled) == fuse(rankings)


def test_tiny_weights_rank_as_others() -> None:
    assert fuse([(5e-324, ["a", "b"])]) == fuse([(1.0, ["a", "b"])])
    assert [one.key for one in fuse([(10.0, ["b"]), (5e-324, ["a"])])] == ["b", "a"]


@given(RANKINGS)
def test_scores_are_shares_and_descend(rankings: list[tuple[float, list[str]]]) -> None:
    fused = fuse(rankings)
    assert {one.key for one in fused} == {key for weight, keys in rankings if weight > 0 for key in keys}
    assert all(0 < one.score <= 1 for one in fused)
    assert fused == sorted(fused, key=lambda one: (-one.score, one.key))


@given(st.lists(st.sampled_from("abcdefgh"), unique=True), st.floats(0.1, 10))
def test_one_ranking_keeps_its_order(keys: list[str], weight: float) -> None:
    assert [one.key for one in fuse([(weight, keys), (0.0, keys[::-1])])] == keys


def test_only_the_ratio_of_the_weights_matters() -> None:
    one = fuse([(1.0, ["a", "b", "c"]), (3.0, ["c", "a"])])
    other = fuse([(2.0, ["a", "b", "c"]), (6.0, ["c", "a"])])
    assert one == other


def test_a_key_that_both_rank_beats_the_first_of_one() -> None:
    assert fuse([(1.0, ["a", "both"]), (1.0, ["b", "both"])])[0].key == "both"


def test_no_ranking_gives_no_key() -> None:
    assert fuse([]) == fuse([(1.0, [])]) == fuse([(0.0, ["a"])]) == []


@pytest.mark.parametrize(
    ("embedding", "text", "param"),
    [
        (-1.0, 1.0, "ranking_options.hybrid_search.embedding_weight"),
        (1.0, -0.1, "ranking_options.hybrid_search.text_weight"),
        (math.nan, 1.0, "ranking_options.hybrid_search.embedding_weight"),
        (1.0, math.inf, "ranking_options.hybrid_search.text_weight"),
        (0.0, 0.0, "ranking_options.hybrid_search"),
    ],
)
def test_refused_weights_name_the_field(embedding: float, text: float, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        HybridWeights(embedding, text)
    assert caught.value.param == param
    assert caught.value.status == 400
