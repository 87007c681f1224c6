"""The head of a passed request: no header of a client names a caller, a length or a connection."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from appliance.gateway.passing import RESERVED, WITHHELD, kept_lines, passed_head
from appliance.http1.types import Request
from appliance.store.models import Key

OWNER = Key(id="0123456789ab", user="ada/bob", digest=b"", created_at=0.0)
NAMES = st.sampled_from([*WITHHELD, b"x-appliance-user", b"x_appliance_user", b"x-appliance_key", b"openai-beta"])
VALUE = st.binary(max_size=12).map(lambda value: bytes(byte for byte in value if byte > 31 and byte != 127))


@given(
    st.dictionaries(NAMES | st.from_regex(rb"[a-z_-]{1,12}", fullmatch=True), VALUE),
    st.sampled_from(["GET", "POST", "DELETE"]),
    st.integers(0, 10**9),
)
def test_only_the_gateway_names_the_caller(headers: dict[bytes, bytes], method: str, length: int) -> None:
    request = Request(method, b"/v1/files?a=b", headers, "f00d", close=False, http10=False)
    head = passed_head(request, OWNER, length)
    assert head.endswith(b"\r\n\r\n")
    first, *lines = head[:-4].split(b"\r\n")
    assert first == f"{method} /v1/files?a=b HTTP/1.1".encode()
    sent = [line.split(b": ", 1) for line in lines]
    names = [name.replace(b"_", b"-") for name, _ in sent]
    for name, value in (
        (b"x-appliance-user", b"ada/bob"),
        (b"x-appliance-key", b"0123456789ab"),
        (b"x-request-id", b"f00d"),
        (b"connection", b"close"),
        (b"host", b"assistant"),
    ):
        assert names.count(name) == 1
        assert [name, value] in sent
    assert sum(name.startswith(RESERVED) for name in names) == 2
    framed = [value for name, value in sent if name == b"content-length"]
    assert framed == ([str(length).encode()] if length or method == "POST" else [])
    own = {b"x-request-id", b"connection", b"host", b"content-length"}
    assert not {*names} & (WITHHELD - own)


def test_headers_of_the_connection_and_credentials_of_a_response_are_dropped() -> None:
    headers = [
        (b"content-disposition", b"attachment"),
        (b"cache-control", b"no-store"),
        (b"set-cookie", b"a=b"),
        (b"transfer-encoding", b"chunked"),
        (b"access-control-allow-origin", b"*"),
        (b"x-appliance-user", b"ada"),
        (b"x-request-id", b"other"),
    ]
    kept = b"content-disposition: attachment\r\n"
    assert kept_lines(headers, events=True) == kept
    assert kept_lines(headers, events=False) == kept + b"cache-control: no-store\r\n"
