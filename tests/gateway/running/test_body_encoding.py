"""Encoded bodies at a real gateway: engines get plain UTF-8 JSON, or clients get an error with the reason."""

from __future__ import annotations

import codecs
import gzip
import json
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from tests.conftest import Response, RunningService, chat, serving, wait_until

TEXT = json.dumps(chat("Grüße 你好", temperature=0.70), ensure_ascii=False)
BODY = TEXT.encode()


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A gateway that accepts bodies up to 1 MiB."""
    with serving(tmp_path_factory.mktemp("limited"), gateway={"max_body_bytes": 2**20}) as service:
        yield service


def send(
    service: RunningService, body: bytes, encoding: str | None, path: str = "/v1/chat/completions", **more: str
) -> Response:
    headers = {"Authorization": f"Bearer {service.key}", "Content-Type": "application/json", **more}
    if encoding is not None:
        headers["Content-Encoding"] = encoding
    try:
        with urllib.request.urlopen(
            urllib.request.Request(service.url + path, body, headers), timeout=30
        ) as response:
            return Response(response.status, {k.lower(): v for k, v in response.headers.items()}, response.read())
    except urllib.error.HTTPError as error:
        with error:
            return Response(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (gzip.compress(BODY), "gzip"),
        (gzip.compress(BODY[:20]) + gzip.compress(BODY[20:]), "x-gzip"),
        (zlib.compress(BODY), "deflate"),
        (zlib.compress(BODY, wbits=-15), "deflate"),
        (zstandard.compress(BODY), "zstd"),
        (zstandard.compress(codecs.BOM_UTF8 + BODY), "zstd, identity"),
        (gzip.compress(TEXT.encode("utf-16")), "GZIP"),
        (codecs.BOM_UTF8 + BODY, None),
        (TEXT.encode("utf-16"), None),
        (TEXT.encode("utf-16-be"), None),
        (TEXT.encode("utf-32"), "identity"),
        (BODY, "utf-8"),
    ],
)
def test_the_engine_gets_plain_json(limited: RunningService, body: bytes, encoding: str | None) -> None:
    response = send(limited, body, encoding)
    assert (response.status, limited.last()["body"]) == (200, TEXT)
    assert "content-encoding" not in limited.last()["head"]
    assert limited.row(response)["outcome"] == "ok"


@pytest.mark.parametrize(
    ("body", "encoding", "status", "code", "says"),
    [
        (BODY, "br", 415, "unsupported_media_type", "Content-Encoding is 'br'; send one of gzip, deflate, zstd"),
        (BODY, "gzip, gzip", 415, "unsupported_media_type", "Content-Encoding is 'gzip, gzip'"),
        (gzip.compress(BODY)[:-4], "gzip", 400, "invalid_encoding", "not gzip as its Content-Encoding states"),
        (BODY, "zstd", 400, "invalid_encoding", "not zstd as its Content-Encoding states"),
        (gzip.compress(bytes(2**24)), "gzip", 413, "request_too_large", "1048576 bytes after expansion"),
        (zstandard.compress(bytes(2**24)), "zstd", 413, "request_too_large", "1048576 bytes after expansion"),
        (TEXT.encode("utf-16")[:-1], None, 400, "invalid_json", "UTF-16"),
    ],
)
def test_rejections_have_openais_shape_and_are_recorded(
    limited: RunningService, body: bytes, encoding: str | None, status: int, code: str, says: str
) -> None:
    began, requests = time.time(), limited.stats()["requests"]
    response = send(limited, body, encoding)
    error = response.json["error"]
    assert (response.status, error["code"], error["type"]) == (status, code, "invalid_request_error")
    assert says in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert response.headers.get("accept-encoding") == ("gzip, deflate, zstd" if status == 415 else None)

    def rows() -> list[tuple[str, int, str]]:
        return [(r["user"], r["status"], r["outcome"]) for r in limited.rows() if r["started_at"] >= began]

    wait_until(lambda: bool(rows()), "the usage row", 5)
    assert rows() == [("ada", status, "rejected")]
    assert limited.stats()["requests"] == requests, "no engine gets a rejected body"
    assert send(limited, BODY, None).status == 200


def test_rejections_of_anthropics_path_have_its_shape(limited: RunningService) -> None:
    response = send(limited, BODY, "br", "/v1/messages")
    assert response.status == 415
    assert response.json["type"] == "error"
    assert response.json["error"]["type"] == "invalid_request_error"


def test_an_invalid_key_is_rejected_before_its_body_is_decoded(limited: RunningService) -> None:
    assert send(limited, b"?", "br", Authorization="Bearer sk-none").status == 401


def test_one_request_in_two_encodings_has_one_idempotency_key(limited: RunningService) -> None:
    requests = limited.stats()["requests"]
    first = send(limited, zstandard.compress(BODY), "zstd", **{"Idempotency-Key": "both"})
    second = send(limited, gzip.compress(codecs.BOM_UTF8 + BODY), "gzip", **{"Idempotency-Key": "both"})
    assert (first.status, second.status, first.body == second.body) == (200, 200, True)
    assert limited.stats()["requests"] == requests + 1
    assert send(limited, gzip.compress(BODY + b" "), "gzip", **{"Idempotency-Key": "both"}).status == 422


def peak_mib(service: RunningService) -> int:
    """Return the peak of the gateway's resident memory, in MiB."""
    text = Path(f"/proc/{service.gateway.process.pid}/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) // 1024


def test_bombs_of_256_mb_use_memory_up_to_the_limit(limited: RunningService) -> None:
    zeros = bytes(2**28)
    bombs = [
        (gzip.compress(zeros), "gzip"),
        (zlib.compress(zeros), "deflate"),
        (zstandard.compress(zeros), "zstd"),
        (zstandard.ZstdCompressor(write_content_size=False).compress(zeros), "zstd"),
    ]
    before = peak_mib(limited)
    for body, encoding in bombs:
        assert send(limited, body, encoding).status == 413
    assert peak_mib(limited) - before < 32
