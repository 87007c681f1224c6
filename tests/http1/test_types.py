"""The path of a request's target."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.http1.types import Request, path_of


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/v1/models", "/v1/models"),
        (b"/v1/models?a=%2F", "/v1/models"),
        (b"/v1%2Fmodels", "/v1/models"),
        (b"/v1%252Fmodels", "/v1%2Fmodels"),
        (b"http://host:8000/v1/models", "/v1/models"),
        (b"HTTPS://[::1]", "/"),
        (b"*", "*"),
        (b"", ""),
        (b"/\xff", "/\ufffd"),
    ],
)
def test_a_target_names_a_path(target: bytes, path: str) -> None:
    assert path_of(target) == path
    assert Request("GET", target, {}, "id", close=False, http10=False).path == path


@given(st.text(max_size=30))
def test_any_percent_encoded_text_is_decoded(text: str) -> None:
    for safe in ("", "/"):
        target = f"/v1/models/{quote(text, safe=safe, errors='replace')}".encode()
        assert path_of(target) == f"/v1/models/{text.encode(errors='replace').decode()}"
