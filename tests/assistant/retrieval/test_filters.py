"""Attribute filters: equal to a reference, and 400 with the path of the offending field."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.assistant.retrieval.filters import MAX_COMPARISONS, MAX_DEPTH, AttributeValue, compile_filter
from appliance.errors import InvalidRequestError

VALUES = st.one_of(
    st.sampled_from(["", "a", "b", "2026-01-01", "1"]), st.booleans(), st.integers(-2, 2), st.floats(-2, 2)
)
KEYS = st.sampled_from(["k", "l", "m"])
COMPARISONS = st.one_of(
    st.builds(
        lambda kind, key, value: {"type": kind, "key": key, "value": value},
        st.sampled_from(["eq", "ne"]),
        KEYS,
        VALUES,
    ),
    st.builds(
        lambda kind, key, value: {"type": kind, "key": key, "value": value},
        st.sampled_from(["gt", "gte", "lt", "lte"]),
        KEYS,
        VALUES.filter(lambda value: not isinstance(value, bool)),
    ),
    st.builds(
        lambda kind, key, values: {"type": kind, "key": key, "value": values},
        st.sampled_from(["in", "nin"]),
        KEYS,
        st.lists(VALUES, max_size=3),
    ),
)
FILTERS = st.recursive(
    COMPARISONS,
    lambda parts: st.builds(
        lambda kind, filters: {"type": kind, "filters": filters},
        st.sampled_from(["and", "or"]),
        st.lists(parts, min_size=1, max_size=3),
    ),
    max_leaves=8,
)
ATTRIBUTES = st.dictionaries(KEYS, VALUES)


def same(one: Any, other: Any) -> bool:
    return (
        isinstance(one, bool) == isinstance(other, bool)
        and isinstance(one, str) == isinstance(other, str)
        and bool(one == other)
    )


def accepts(filter_: dict[str, Any], attributes: dict[str, AttributeValue]) -> bool:
    """Return what the rules of the module state, one case at a time."""
    kind = filter_["type"]
    if kind == "and":
        return all(accepts(part, attributes) for part in filter_["filters"])
    if kind == "or":
        return any(accepts(part, attributes) for part in filter_["filters"])
    present, wanted = filter_["key"] in attributes, filter_["value"]
    actual: Any = attributes.get(filter_["key"])
    if kind in ("eq", "ne", "in", "nin"):
        listed = [wanted] if kind in ("eq", "ne") else wanted
        return (present and any(same(actual, one) for one in listed)) is (kind in ("eq", "in"))
    if not present or isinstance(actual, bool) or isinstance(actual, str) != isinstance(wanted, str):
        return False
    return bool(
        {"gt": actual > wanted, "gte": actual >= wanted, "lt": actual < wanted, "lte": actual <= wanted}[kind]
    )


@settings(max_examples=150)
@given(FILTERS, ATTRIBUTES)
def test_a_filter_equals_its_reference(filter_: dict[str, Any], attributes: dict[str, AttributeValue]) -> None:
    assert compile_filter(filter_)(attributes) is accepts(filter_, attributes)


@pytest.mark.parametrize(
    ("filter_", "attributes", "expected"),
    [
        ({"type": "eq", "key": "k", "value": 1}, {"k": True}, False),
        ({"type": "eq", "key": "k", "value": 1}, {"k": 1.0}, True),
        ({"type": "in", "key": "k", "value": [True]}, {"k": 1}, False),
        ({"type": "gt", "key": "k", "value": "2025-12-31"}, {"k": "2026-01-01"}, True),
        ({"type": "gt", "key": "k", "value": 1}, {"k": "2"}, False),
        ({"type": "ne", "key": "k", "value": 1}, {}, True),
        ({"type": "lte", "key": "k", "value": 1}, {}, False),
    ],
)
def test_the_rules_for_types_and_missing_attributes(
    filter_: dict[str, Any], attributes: dict[str, AttributeValue], expected: bool
) -> None:
    assert compile_filter(filter_)(attributes) is expected


def nested(depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "eq", "key": "k", "value": 1}
    for _ in range(depth - 1):
        found = {"type": "and", "filters": [found]}
    return found


def many(count: int) -> dict[str, Any]:
    return {"type": "or", "filters": [{"type": "eq", "key": "k", "value": number} for number in range(count)]}


EQ = {"type": "eq", "key": "k", "value": 1}


@pytest.mark.parametrize(
    ("filter_", "param"),
    [
        (None, "filters"),
        ([], "filters"),
        ("eq", "filters"),
        ({}, "filters.type"),
        ({"type": "like", "key": "k", "value": "a"}, "filters.type"),
        ({"type": ["eq"], "key": "k", "value": "a"}, "filters.type"),
        ({"type": "eq", "value": 1}, "filters.key"),
        ({"type": "eq", "key": "", "value": 1}, "filters.key"),
        ({"type": "eq", "key": 5, "value": 1}, "filters.key"),
        ({"type": "eq", "key": "k"}, "filters.value"),
        ({"type": "eq", "key": "k", "value": None}, "filters.value"),
        ({"type": "eq", "key": "k", "value": [1]}, "filters.value"),
        ({"type": "eq", "key": "k", "value": {"a": 1}}, "filters.value"),
        ({"type": "eq", "key": "k", "value": float("nan")}, "filters.value"),
        ({"type": "lt", "key": "k", "value": float("inf")}, "filters.value"),
        ({"type": "gt", "key": "k", "value": True}, "filters.value"),
        ({"type": "in", "key": "k", "value": 1}, "filters.value"),
        ({"type": "in", "key": "k", "value": "ab"}, "filters.value"),
        ({"type": "nin", "key": "k", "value": [1, None]}, "filters.value[1]"),
        ({"type": "in", "key": "k", "value": [1] * (MAX_COMPARISONS + 1)}, "filters.value"),
        ({**EQ, "extra": 1}, "filters.extra"),
        ({"type": "and", "filters": [], "key": "k"}, "filters.key"),
        ({"type": "and", "filters": []}, "filters.filters"),
        ({"type": "or"}, "filters.filters"),
        ({"type": "or", "filters": EQ}, "filters.filters"),
        ({"type": "and", "filters": [EQ, {"type": "or", "filters": [EQ, 7]}]}, "filters.filters[1].filters[1]"),
        (nested(MAX_DEPTH + 1), "filters"),
        (many(MAX_COMPARISONS + 1), "filters"),
    ],
)
def test_an_invalid_filter_names_its_field(filter_: object, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        compile_filter(filter_)
    assert caught.value.param == param
    assert caught.value.status == 400


def test_the_limits_themselves_are_accepted() -> None:
    assert compile_filter(nested(MAX_DEPTH))({"k": 1})
    assert compile_filter(many(MAX_COMPARISONS))({"k": MAX_COMPARISONS - 1})


def test_the_param_begins_with_the_name_of_the_field() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        compile_filter({"type": "eq"}, param="tools[0].filters")
    assert caught.value.param == "tools[0].filters.key"
