"""The end user of a request: one per person, stable, plain or a digest, and only for keys that are marked so."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.contract.model import USER_PATTERN
from appliance.gateway.body import decode
from appliance.gateway.end_user import HEADER, PLAIN, caller, end_user, identifier
from appliance.store.models import Key

HEX = "0123456789abcdef" * 4
ACCOUNT = "7d5c4f1e-9a3b-4c2d-8e6f-001122334455"
SESSION = "54c1eb09-bc4c-4d2f-98eb-6d2ab2d5e2fe"
OTHER = "11111111-bc4c-4d2f-98eb-6d2ab2d5e2fe"
DIGEST = re.compile(r"~[0-9a-f]{24}")


def a_key(**more: Any) -> Key:
    return Key("0" * 12, "openwebui", b"", 0.0, **more)


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", **fields}).encode()


def claude(session: str, account: str = "", device: str = HEX) -> str:
    return f"user_{device}_account_{account}_session_{session}"


def claude_json(session: str, account: str = "", device: str = HEX, **more: Any) -> str:
    return json.dumps({"device_id": device, "account_uuid": account, "session_id": session, **more})


@pytest.mark.parametrize(
    ("headers", "fields", "found"),
    [
        ({}, {}, None),
        ({HEADER: b"ada"}, {}, "ada"),
        ({HEADER: b" ada\t"}, {}, "ada"),
        ({}, {"user": "ada"}, "ada"),
        ({}, {"safety_identifier": "ada"}, "ada"),
        ({}, {"metadata": {"user_id": "ada"}}, "ada"),
        ({HEADER: b"1"}, {"safety_identifier": "2", "user": "3", "metadata": {"user_id": "4"}}, "1"),
        ({}, {"safety_identifier": "2", "user": "3", "metadata": {"user_id": "4"}}, "2"),
        ({}, {"user": "3", "metadata": {"user_id": "4"}}, "3"),
        ({HEADER: b" "}, {"safety_identifier": "", "user": "\n", "metadata": {"user_id": "4"}}, "4"),
        ({}, {"safety_identifier": None, "user": 7, "metadata": {"user_id": "4"}}, "4"),
        ({}, {"user": "ada.l+x@example-site.org"}, "ada.l+x@example-site.org"),
        ({}, {"user": "x" * 63}, "x" * 63),
        # Fields of these names in other objects name no end user.
        ({b"x-openwebui-user-email": b"ada"}, {"messages": [{"user": "ada"}], "metadata": {"user": "ada"}}, None),
    ],
)
def test_the_first_value_counts(headers: dict[bytes, bytes], fields: dict[str, Any], found: str | None) -> None:
    assert end_user(headers, body(**fields)) == found


@pytest.mark.parametrize(
    "value", [None, 7, 1.5, True, [], ["ada"], {}, {"user_id": 1}, "", " ", "\t\r\n", "\u2003"]
)
@pytest.mark.parametrize("field", ["safety_identifier", "user", "metadata", "metadata.user_id"])
def test_other_types_and_empty_text_are_skipped(field: str, value: Any) -> None:
    sent = body(metadata={"user_id": value}) if field == "metadata.user_id" else body(**{field: value})
    assert end_user({}, sent) is None
    assert end_user({HEADER: b"ada"}, sent) == "ada"
    assert decode(sent).model == "m"


@pytest.mark.parametrize(
    "value",
    [
        "Ada Lovelace",
        "ada\u0000",
        "a\nb",
        'a"b',
        "a/b",
        "../x",
        "é",
        "名前",
        "😀",
        "-x",
        "@x",
        "~x",
        "x" * 64,
        "x" * 10_000,
        "=cmd()",
        "[red]x",
        "a{b}",
        HEX,
    ],
)
def test_text_that_is_not_plain_becomes_the_same_digest_from_every_source(value: str) -> None:
    found = end_user({}, body(user=value))
    assert found is not None
    assert DIGEST.fullmatch(found)
    assert found == end_user({}, body(metadata={"user_id": f"  {value}\n"})) == identifier(value)
    assert found != end_user({}, body(user=value + "1"))
    if value.isprintable():
        assert found == end_user({HEADER: value.encode()}, b""), "a header and a field name the same person"
    # Escapes do not change the text.
    escaped = "".join(f"\\u{ord(c):04x}" if ord(c) < 0x10000 else c for c in value)
    assert found == end_user({}, f'{{"user": "{escaped}"}}'.encode())


def test_digests_are_the_same_on_every_start_and_cannot_be_imitated() -> None:
    assert identifier("Ada Lovelace") == "~541d4deafbdf69e8a615fdea"
    assert identifier("~541d4deafbdf69e8a615fdea") != "~541d4deafbdf69e8a615fdea"


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"{",
        b"[]",
        b'"user"',
        b"7",
        b'{"user": "ada',
        b'{"user": "\xff"}',
        b'{"user": "a\\ud800"}',
        b'{"user": "a\\x"}',
        b'{"metadata": {"user_id": }}',
        b'{"metadata": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"\xff\xfe{\x00}\x00",
    ],
)
def test_a_body_that_is_not_json_names_no_end_user(sent: bytes) -> None:
    assert end_user({}, sent) is None
    assert end_user({HEADER: b"ada"}, sent) == "ada"


def test_a_byte_order_mark_and_repeated_members_hide_no_end_user() -> None:
    assert end_user({}, b"\xef\xbb\xbf" + body(user="ada")) == "ada"
    assert end_user({}, b'{"user": "bob", "\\u0075ser": "ada"}') == "ada", "the last one counts, as for every field"


@pytest.mark.parametrize("field", ["metadata.user_id", "user", "safety_identifier", "header"])
@pytest.mark.parametrize("form", [claude, claude_json])
def test_claude_codes_sessions_are_one_user(field: str, form: Any) -> None:
    """Proxies copy ``metadata.user_id`` into ``user``, so the same holds for every source."""

    def found(value: str) -> str | None:
        if field == "header":
            return end_user({HEADER: value.encode()}, b"")
        return end_user({}, body(metadata={"user_id": value}) if "." in field else body(**{field: value}))

    assert found(form(SESSION)) == found(form(OTHER)) == identifier(HEX)
    assert found(form(SESSION, ACCOUNT)) == found(form(OTHER, ACCOUNT)) == ACCOUNT
    assert found(form(SESSION, ACCOUNT, "0" * 64)) == ACCOUNT, "another machine of the same person"
    assert found(form(SESSION, "", "0" * 64)) != found(form(SESSION)), "another person"
    assert found(form(SESSION, "", "")) is None, "a session without a person"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ('{"device_id": "a", "session_id": "1"}', '{"session_id":"2","device_id":"a"}', True),
        ('{"email": "a", "session_id": "1"}', '{"session_id": "2", "email": "a"}', True),
        ('{"email": "a", "sessionId": "1"}', '{"email": "b", "sessionId": "1"}', False),
        ('{"device_id": "a", "session_id": "1"}', '{"device_id": "b", "session_id": "1"}', False),
        ('{"device_id": "", "account_uuid": null, "user_id": "a"}', '{"account_uuid": "a"}', True),
        ('{"broken": ', '{"broken": "', False),
        ("user_session_1", "user_session_2", False),
        ("user_1_session_1", "user_1_session_2", False),
        ("a_account_b_session_1", "a_account_b_session_2", False),
        ("user_a_account_b", "user_a_account_c", False),
    ],
)
def test_only_identifiers_of_claude_codes_form_lose_their_session(one: str, other: str, same: bool) -> None:
    assert (identifier(one) == identifier(other)) is same
    assert identifier(one) is not None


@pytest.mark.parametrize("text", ['{"session_id": "1"}', "{}", '{"device_id": "", "x": null}', "{ }"])
def test_an_object_without_a_person_is_not_an_end_user(text: str) -> None:
    assert identifier(text) is None


@pytest.mark.parametrize("depth", [100, 1000, 2000])
def test_a_deep_identifier_is_a_digest(depth: int) -> None:
    found = identifier('{"a":' + "[" * depth + "]" * depth + "}")
    assert found is not None
    assert DIGEST.fullmatch(found)


@given(st.text(max_size=80))
def test_every_text_is_empty_or_becomes_a_name_that_usage_and_the_site_accept(text: str) -> None:
    found = identifier(text)
    if found is None:
        return
    user = a_key(end_users=True).of_end_user(found)
    assert re.fullmatch(USER_PATTERN, user.user)
    assert len(user.user) <= 127
    assert user.account == "openwebui"
    assert bool(PLAIN.fullmatch(found)) != bool(DIGEST.fullmatch(found))
    assert identifier(f" {text}\n") == found


@given(
    st.binary(max_size=60)
    | st.dictionaries(
        st.sampled_from(["user", "safety_identifier", "metadata", "x"]),
        st.none() | st.integers() | st.text() | st.lists(st.text(), max_size=2)
        | st.dictionaries(st.sampled_from(["user_id", "x"]), st.none() | st.text() | st.floats(), max_size=2),
        max_size=4,
    ).map(lambda table: json.dumps(table).encode()),
    st.dictionaries(st.sampled_from([HEADER, b"user", b"x"]), st.binary(max_size=20)),
)  # fmt: skip
def test_a_key_that_is_not_marked_is_never_another_user(sent: bytes, headers: dict[bytes, bytes]) -> None:
    plain, marked = a_key(), a_key(end_users=True)
    assert caller(plain, headers, sent) is plain
    found = caller(marked, headers, sent)
    assert (found.id, found.account, found.digest) == (marked.id, marked.user, marked.digest)
    assert found.scope.startswith(marked.id)
    assert (found is marked) == (end_user(headers, sent) is None)


@pytest.mark.parametrize("odd", ["NaN", "1e400", '"\\ud800"', "9" * 5000])
def test_a_number_or_text_that_only_a_lenient_parser_reads_hides_no_end_user(odd: str) -> None:
    assert end_user({}, f'{{"odd": {odd}, "user": "ada"}}'.encode()) == "ada"
