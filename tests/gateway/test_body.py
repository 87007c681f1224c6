"""Edits of a request's body change no other byte; decoding rejects an invalid request."""

from __future__ import annotations

import json
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.contract.model import Role
from appliance.errors import InvalidRequestError
from appliance.gateway import json_text
from appliance.gateway.body import (
    CONTROLS,
    BodyFields,
    check,
    decode,
    is_controlled,
    is_split,
    sequences,
    unstreamed,
    wants_usage,
    with_cap,
    with_one_system,
    with_role,
    with_usage,
    without_controls,
)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
OPTIONS = st.none() | st.dictionaries(st.sampled_from(["include_usage", "x"]), st.booleans(), max_size=2)
OURS = frozenset(BodyFields.__struct_fields__)
"""Fields with a type; any other field is free."""

BODIES = st.dictionaries(st.text(max_size=8), JSON, max_size=5).map(
    lambda extra: {k: v for k, v in extra.items() if k not in OURS}
)


@given(BODIES, OPTIONS, st.booleans(), st.sampled_from([None, 2]))
def test_requesting_usage_changes_nothing_else(
    extra: dict[str, Any], options: dict[str, bool] | None, has_options: bool, indent: int | None
) -> None:
    table = {"model": "m", "stream": True, **extra} | ({"stream_options": options} if has_options else {})
    body = json.dumps(table, indent=indent).encode()
    edited = json.loads(with_usage(body, decode(body)))
    assert edited.pop("stream_options") == {**(options or {}), "include_usage": True} if has_options else True
    table.pop("stream_options", None)
    edited.pop("stream_options", None)
    assert edited == table
    assert wants_usage(decode(body)) is (
        has_options and options is not None and options.get("include_usage") is True
    )


@given(BODIES)
def test_a_role_keeps_the_bytes_of_every_other_value(extra: dict[str, Any]) -> None:
    body = json.dumps({**extra, "model": "writer", "odd": 0}).replace('"odd": 0', '"odd": 1.50e+1').encode()
    edited = with_role(body, Role(model="m", system_prompt="s", sampling={"top_k": 3}), "/v1/completions")
    assert b'"odd":1.50e+1' in edited
    expected = {"top_k": 3, **extra, "model": "m", "odd": 15.0}
    if extra.get("top_k", 3) is None:
        expected["top_k"] = 3
    assert json.loads(edited) == expected


def system_of(messages: object, prompt: str = "P") -> Any:
    body = json.dumps({"model": "r", "messages": messages}).encode()
    return json.loads(with_role(body, Role(model="m", system_prompt=prompt), "/v1/chat/completions"))["messages"]


def test_the_prompt_of_the_role_is_first() -> None:
    user = {"role": "user", "content": "hi"}
    assert system_of([]) == [{"role": "system", "content": "P"}]
    assert system_of([user]) == [{"role": "system", "content": "P"}, user]
    assert system_of([{"role": "developer", "content": "D"}, user])[0] == {"role": "developer", "content": "P\n\nD"}
    parts = [{"type": "text", "text": "D"}]
    joined = system_of([{"role": "system", "content": parts}])[0]["content"]
    assert joined == [{"type": "text", "text": "P\n\n"}, *parts]
    assert system_of([{"role": "system", "content": None}])[0]["content"] == "P"


@pytest.mark.parametrize("messages", ["hi", {"role": "user"}, 7])
def test_messages_that_are_not_a_list_stay_for_the_engine_to_reject(messages: object) -> None:
    assert system_of(messages) == messages


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, 1),
        ({"n": 3}, 3),
        ({"n": 2, "best_of": 4}, 4),
        ({"prompt": "a"}, 1),
        ({"prompt": None}, 1),
        ({"prompt": []}, 1),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": ["a", "[", "c"]}, 3),
        ({"prompt": [[1, 2], [3]], "n": 2}, 4),
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_a_request_counts_as_its_sequences(body: dict[str, Any], expected: int, indent: int | None) -> None:
    fields = decode(json.dumps({"model": "m", **body}, indent=indent).encode())
    assert sequences(fields, "/v1/completions") == expected
    assert sequences(fields, "/v1/chat/completions") == max(body.get("n", 1), body.get("best_of", 1))


@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_rejected(body: bytes) -> None:
    try:
        fields = decode(body)
    except InvalidRequestError:
        return
    assert isinstance(fields.model, str)


LAX = [
    "4", "4.0", "4e0", '"4"', '" 4 "', '"4.0"', '"1_000"', "true", "false", "null", "4.5", '"x"', "[]", "{}",
    "1e400", "NaN", "9" * 5000, '"yes"', '"on"', '"off"', "0", "1", "2", '"true"', '"TRUE"', '""',
]  # fmt: skip


class EngineFields(pydantic.BaseModel):
    """The same fields as in vLLM's protocol; it validates in pydantic's lax mode."""

    n: int | None = None
    max_tokens: int | None = None
    stream: bool | None = None
    prompt_cache_key: str | None = None


@pytest.mark.parametrize("text", LAX)
@pytest.mark.parametrize("field", ["n", "max_tokens", "stream", "prompt_cache_key"])
def test_a_field_is_read_as_the_engine_reads_it(field: str, text: str) -> None:
    """The gateway uses and bounds the value that the engine will use, and forwards one that the engine rejects."""
    fields = decode(f'{{"model": "m", "{field}": {text}}}'.encode())
    try:
        number = json.loads(text)
        expected = getattr(EngineFields.model_validate({field: number}), field)
    except ValueError:
        expected = None
    assert getattr(fields, field) == expected


@given(st.sampled_from(["n", "best_of"]), st.integers(17, 10**6), st.sampled_from(["{}", "{}.0", '"{}"', '" {}"']))
def test_every_spelling_is_bounded(field: str, value: int, spelling: str) -> None:
    body = f'{{"model": "m", "messages": [1], "{field}": {spelling.format(value)}}}'.encode()
    with pytest.raises(InvalidRequestError) as caught:
        check(decode(body), "/v1/chat/completions", context=100, max_n=16)
    assert caught.value.param == field


@given(BODIES, st.integers(1, 10**6), st.integers(1, 10**6), st.sampled_from(["max_tokens", "max_output_tokens"]))
def test_a_cap_changes_the_limit_only(extra: dict[str, Any], limit: int, context: int, field: str) -> None:
    body = (
        json.dumps({**extra, "model": "m", field: limit, "odd": 0}).replace('"odd": 0', '"odd": 1.50e+1').encode()
    )
    fields = decode(body)
    assert check(fields, "/v1/completions", context=context, max_n=16, capped=True) is (limit > context)
    edited = with_cap(body, fields, context)
    assert b'"odd":1.50e+1' in edited
    assert json.loads(edited) == {**json.loads(body), field: min(limit, context)}


@pytest.mark.parametrize("odd", ["NaN", "1e400", "-1e999", "9" * 5000, '"\\ud800"', "1.79769313486232e+308"])
@pytest.mark.parametrize("endpoint", ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/completions"])
def test_every_edit_keeps_what_only_a_lenient_parser_reads(endpoint: str, odd: str) -> None:
    """With a role, a cap and the request for usage at once: no second parser is stricter than the first."""
    text = '"caf\\u00e9 \\ud800"'
    part = f'[{{"type": "text", "text": {text}, "x": {odd}}}]'
    conversation = (
        f'[{{"role": "system", "content": {part}, "x": {odd}}}, {{"role": "ipython", "content": {text}}}]'
    )
    body = (
        f'{{"model": "r", "stream": true, "max_tokens": 99999, "messages": {conversation}, "prompt": {text}, '
        f'"instructions": {text}, "system": {part}, "metadata": {{"n": {odd}}}, "odd": {odd}}}'
    ).encode()
    fields = decode(body)
    check(fields, endpoint, context=4096, max_n=16, capped=True)
    body = with_cap(body, fields, 4096)
    body = with_usage(body, fields)
    body = with_role(body, Role(model="m", system_prompt="P", sampling={"top_k": 3}), endpoint)
    edited = json_text.members(body)
    assert bytes(edited["odd"]) == odd.encode()
    assert bytes(edited["metadata"]) == f'{{"n": {odd}}}'.encode()
    assert f'"x": {odd}'.encode() in body
    assert bytes(edited["max_tokens"]) == b"4096"
    whole = json_text.members(unstreamed(body))
    assert (bytes(whole["stream"]), "stream_options" in whole) == (b"false", False)
    assert bytes(whole["odd"]) == odd.encode()


@given(st.dictionaries(st.sampled_from([*CONTROLS, "metadata", "seed"]), JSON))
def test_the_engines_own_fields_are_removed_and_no_other(extra: dict[str, Any]) -> None:
    body = json.dumps({"model": "m", **extra}).encode()
    controlled = is_controlled(decode(body))
    assert controlled == bool(extra.keys() & {*CONTROLS})
    if controlled:
        body = without_controls(body)
    assert json.loads(body) == {"model": "m"} | {name: extra[name] for name in extra if name not in CONTROLS}


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","priority":-1}',
        b'{"model":"m","prior\\u0069ty":-1}',
        b'{"model":"m","priority":-1,"priority":null}',
        b'{"model":"m","n":"2","priority":1e999}',
        b'{"model":"m","metadata":{"priority":1},"request_id":"a"}',
    ],
)
def test_no_spelling_of_the_engines_own_fields_passes(body: bytes) -> None:
    assert is_controlled(decode(body))
    assert not json.loads(without_controls(body)).keys() & {*CONTROLS}


def test_a_field_of_this_name_inside_another_one_stays() -> None:
    assert not is_controlled(decode(b'{"model":"m","metadata":{"priority":1,"request_id":"a"}}'))


PARTS = st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": st.text()}))
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant"]), "content": st.text() | PARTS},
    optional={"name": st.text(max_size=3)},
)


def text_of(content: str | list[dict[str, str]]) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


@given(st.lists(MESSAGE, min_size=1), st.booleans())
def test_all_instructions_become_one_system_message_at_the_top(messages: list[Any], ascii_only: bool) -> None:
    body = json.dumps({"model": "m", "messages": messages, "x": 1.10}, ensure_ascii=ascii_only).encode(
        errors="surrogatepass"
    )
    own = [message for message in messages if message["role"] in ("system", "developer")]
    fields = decode(body)
    split = any(message is not messages[0] or message["role"] == "developer" for message in own)
    assert is_split(fields) is split
    if not split:
        return
    merged = json.loads(with_one_system(body))
    first, *others = merged["messages"]
    assert first["role"] == "system"
    assert text_of(first["content"]) == "\n\n".join(text_of(message["content"]) for message in own)
    assert others == [message for message in messages if message not in own]
    assert not is_split(decode(json.dumps(merged).encode()))
    assert merged["x"] == 1.10


def test_merged_texts_keep_their_bytes() -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"\\u00e9"},{"content":"a\\n","role":"developer"}]}'
    merged = b'{"model":"m","messages":[{"content":"a\\n","role":"system"},{"role":"user","content":"\\u00e9"}]}'
    assert with_one_system(body) == merged


@pytest.mark.parametrize("content", [None, 3, {"type": "text"}])
def test_an_invalid_instruction_stays_for_the_engine_to_reject(content: object) -> None:
    messages = [{"role": "system", "content": "a"}, {"role": "developer", "content": content}]
    body = json.dumps({"model": "m", "messages": messages}).encode()
    assert with_one_system(body) == body
