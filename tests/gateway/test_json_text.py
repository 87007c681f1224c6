"""JSON that Python's json accepts is split without changing a byte of its values; all else is rejected."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import InvalidRequestError
from appliance.gateway import json_text

ODD = (
    "NaN",
    "-Infinity",
    "1e400",
    "1.79769313486232e+308",
    "-0",
    "9" * 5000,
    '"\\ud800"',
    '"x\\udc00y"',
    "1.50e+1",
)
"""Values that msgspec, a double or ``int`` cannot hold, or that a re-encoding would change."""

VALUES = st.recursive(
    st.sampled_from(ODD) | st.integers().map(str) | st.text(max_size=6).map(json.dumps) | st.just("null"),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: "[" + " ,".join(items) + "]")
        | st.lists(st.tuples(st.sampled_from(["a", "b", "\\ud800", "é"]), inner), max_size=3).map(
            lambda pairs: "{ " + ",".join(f'"{name}" : {value}' for name, value in pairs) + "}"
        )
    ),
    max_leaves=6,
)
"""JSON texts, written by hand so that their bytes are known."""


@given(st.dictionaries(st.sampled_from("abcdef"), VALUES, max_size=5))
def test_members_keep_their_bytes(table: dict[str, str]) -> None:
    text = ("{" + ",\n".join(f'"{name}": {value}' for name, value in table.items()) + " }").encode()
    found = json_text.members(text)
    assert {name: bytes(raw).decode() for name, raw in found.items()} == table
    assert json_text.members(json_text.join(found)).keys() == found.keys()
    for name, raw in json_text.members(json_text.join(found)).items():
        assert bytes(raw) == bytes(found[name])


@given(st.lists(VALUES, max_size=5))
def test_items_keep_their_bytes(values: list[str]) -> None:
    found = json_text.items(("[ " + " , ".join(values) + "]").encode())
    assert [bytes(raw).decode() for raw in found] == values
    assert json_text.items(json_text.join_items(found)) == found or len(found) == len(values)


def strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in value.values() for text in strings(item)]
    return [text for item in value for text in strings(item)] if isinstance(value, list) else []


@given(VALUES)
def test_a_value_with_any_numbers_is_readable(text: str) -> None:
    own = json.loads(text, parse_int=lambda _: 0, parse_float=lambda _: 0, parse_constant=lambda _: 0)
    assert set(strings(own)) <= set(strings(json_text.value(text.encode())))


@given(st.binary(max_size=60))
def test_invalid_json_is_rejected_with_one_kind_of_error(body: bytes) -> None:
    for read in (json_text.members, json_text.items, json_text.value, json_text.numbers):
        try:
            read(body)
        except InvalidRequestError:
            continue
        json.loads(body, parse_int=str)


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b'{"a"}',
        b'{"a":1,}',
        b'{"a":1 "b":2}',
        b'{"a":NaN,}',
        b'{"a":NaN "b":1}',
        b"{NaN:1}",
        b'{"a":NaN} 1',
        b"",
    ],
)
def test_invalid_objects_are_rejected_by_both_parsers(text: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        json_text.members(text)


def test_a_text_nested_beyond_the_stack_is_rejected() -> None:
    # Python 3.14 limits the bytes of the C stack instead of the levels; 8 MiB have room for more than 150,000.
    deep = b"[" * 1_000_000 + b"]" * 1_000_000
    for read, text in (
        (json_text.members, b'{"a":' + deep + b"}"),
        (json_text.members, b'{"n":NaN,"a":' + deep + b"}"),
        (json_text.items, deep),
        (json_text.value, deep),
        (json_text.value, b"[NaN," + deep + b"]"),
        (json_text.numbers, deep),
    ):
        with pytest.raises(InvalidRequestError, match="nested too deeply"):
            read(text)


def test_numbers_are_python_s() -> None:
    assert json_text.numbers(b"4.0") == 4.0
    assert math.isinf(json_text.numbers(b"1e400"))


def test_text_is_put_in_front_without_decoding() -> None:
    string = json_text.members(b'{"a":"x\\ud800", "b":[ ], "c":[1e400]}')
    assert bytes(json_text.before("P: ", string["a"])) == b'"P: x\\ud800"'
    assert bytes(json_text.first_item(1, string["b"])) == b"[1]"
    assert bytes(json_text.first_item("p", string["c"])) == b'["p",1e400]'
