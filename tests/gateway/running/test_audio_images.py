"""Audio and images: a real gateway process before mock engines of these tasks."""

from __future__ import annotations

import base64
import json
import socket
import wave
from collections.abc import Iterator
from contextlib import closing, suppress
from http.client import IncompleteRead
from io import BytesIO

import pytest

from tests.conftest import RunningService, exchange, head, http, resident_mib, wait_until
from tests.gateway.running.conftest import create_key, metric
from tests.gateway.running.media import (
    BOUNDARY,
    IMAGES,
    SPEECH,
    TRANSCRIPTIONS,
    audio,
    field,
    form,
    media_service,
    open_speech,
    png_size,
    send,
    sound,
    text_of,
    transcribe,
)

KIND = f"content-type: multipart/form-data; boundary={BOUNDARY.decode()}"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service with two engines that transcribe, one of them not running at the end."""
    folder = tmp_path_factory.mktemp("pair")
    with media_service(folder, replicas=2, tasks=("voice",), max_audio_bytes=150 * 2**20) as running:
        yield running
    log = (folder / "g" / "gateway.log").read_text()
    assert "/v1/audio/speech" in log
    assert "secret" not in log
    assert running.key not in log


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with media_service(tmp_path_factory.mktemp("media"), max_audio_bytes=3 * 2**20) as running:
        yield running


# Transcriptions.


def test_a_transcription_has_the_file_as_it_was_sent(service: RunningService) -> None:
    data = sound(2**21)
    response = transcribe(service, data, language="ru")
    assert response.status == 200, response.body
    assert response.json["text"] == text_of(data)
    assert response.headers["x-request-id"]
    assert json.loads(service.last()["body"]) == {"model": "whisper", "language": "ru"}
    row = service.row(response)
    assert (row["outcome"], row["endpoint"], row["model"]) == ("ok", TRANSCRIPTIONS, "whisper")
    assert (row["prompt_tokens"], row["completion_tokens"]) == (0, 0)


def test_a_translation_and_a_role_with_sampling(service: RunningService) -> None:
    body = form(field("model", "dictation"), field("temperature", "1"), audio(sound()))
    response = send(service, "/v1/audio/translations", body)
    assert response.json["text"] == text_of(sound())
    assert json.loads(service.last()["body"]) == {"model": "whisper", "temperature": "1", "language": "ru"}
    assert service.last()["path"] == "/v1/audio/translations"
    assert service.row(response)["role"] == "dictation"


def test_other_formats_and_streams_pass(service: RunningService) -> None:
    text = transcribe(service, sound(), response_format="text")
    assert (text.headers["content-type"], text.body.decode().strip()) == (
        "text/plain; charset=utf-8",
        text_of(sound()),
    )
    stream = transcribe(service, sound(), stream="true")
    assert stream.headers["content-type"].startswith("text/event-stream")
    frames = [json.loads(line[6:]) for line in stream.body.decode().splitlines() if line.startswith("data: {")]
    assert "".join(one["choices"][0]["delta"]["content"] for one in frames) == text_of(sound())
    assert service.row(stream)["outcome"] == "ok"


def test_the_error_of_an_engine_reaches_the_client(service: RunningService) -> None:
    response = transcribe(service, b"not audio")
    assert (response.status, response.json["error"]["param"]) == (400, "file")
    assert service.row(response)["outcome"] == "rejected"
    failed = transcribe(service, sound(), prompt="fake: fault=status:500")
    assert (failed.status, service.row(failed)["outcome"]) == (500, "engine_error")


# Speech and images.


def test_speech_is_audio_that_arrives_in_pieces(service: RunningService) -> None:
    connection, response = open_speech(service, "x" * 100 + " fake: itl_ms=1")
    with closing(connection):
        assert (response.status, response.getheader("content-type")) == (200, "audio/wav")
        with wave.open(BytesIO(response.read())) as found:
            assert found.getnframes() == 160 * 115


def test_the_first_piece_of_speech_does_not_wait_for_the_rest(service: RunningService) -> None:
    connection, response = open_speech(service, "x" * 100 + " fake: hold=2 itl_ms=1")
    with closing(connection):
        # The engine waits for a release after two pieces.
        assert len(response.read(8192)) == 8192
        assert metric(service, "requests_in_flight") == 1
    wait_until(lambda: metric(service, "requests_in_flight") == 0, "the end of the request")


def test_speech_that_ends_early_is_cut_and_not_an_error_inside_the_audio(service: RunningService) -> None:
    connection, response = open_speech(service, "x" * 100 + " fake: fault=cut:2 itl_ms=1")
    with closing(connection):
        request_id = response.getheader("x-request-id")
        with pytest.raises(IncompleteRead) as found:
            response.read()
        assert found.value.partial.startswith(b"RIFF")
        assert b"error" not in found.value.partial
    wait_until(lambda: any(row["request_id"] == request_id for row in service.rows()), "the usage row")
    row = next(row for row in service.rows() if row["request_id"] == request_id)
    assert row["outcome"] == "engine_failed"


def test_images_are_whole_png_files_with_their_usage(service: RunningService) -> None:
    response = service.post(IMAGES, {"model": "painter", "prompt": "a cat", "size": "33x17", "n": 2})
    assert response.status == 200, response.body
    assert [png_size(base64.b64decode(one["b64_json"])) for one in response.json["data"]] == [(33, 17)] * 2
    row = service.row(response)
    assert (row["prompt_tokens"], row["completion_tokens"], row["outcome"]) == (2, 16, "ok")


def test_an_idempotency_key_repeats_an_image(service: RunningService) -> None:
    body = json.dumps({"model": "painter", "prompt": "a dog"}).encode()
    lines = ("content-type: application/json", "idempotency-key: one", f"content-length: {len(body)}")
    first, second = (exchange(service, head(service, *lines, path=IMAGES), body) for _ in range(2))
    assert first == second
    assert b"b64_json" in first


# Mistakes of clients.


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "words"),
    [
        (TRANSCRIPTIONS, form(audio(b""), field("model", "whisper")), 400, "file", "is empty"),
        (TRANSCRIPTIONS, form(field("model", "whisper")), 400, "file", "no file"),
        (TRANSCRIPTIONS, form(audio(b"RIFF")), 400, "model", "names no model"),
        (TRANSCRIPTIONS, form(audio(b"RIFF"), field("model", "wisper")), 404, "model", "did you mean 'whisper'"),
        (TRANSCRIPTIONS, form(audio(b"RIFF"), field("model", "fake")), 404, "model", "its task is generate"),
        (
            TRANSCRIPTIONS,
            form(field("model", "whisper"), audio(b"RIFF"), field("model", "fake")),
            400,
            "model",
            "twice",
        ),
        (TRANSCRIPTIONS, form(audio(b"RIFF"), field("model", "whisper"))[:-8], 400, None, "ends inside a part"),
        (TRANSCRIPTIONS, b"", 400, None, "not a valid form"),
    ],
)
def test_a_form_that_is_not_valid_reaches_no_engine(
    service: RunningService, path: str, body: bytes, status: int, param: str | None, words: str
) -> None:
    before = service.stats()["requests"]
    response = send(service, path, body)
    error = response.json["error"]
    assert (response.status, error["param"]) == (status, param), response.body
    assert words in error["message"]
    assert service.stats()["requests"] == before


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        (SPEECH, {"model": "voice", "input": ""}, 400, "input is empty"),
        (SPEECH, {"model": "whisper", "input": "a"}, 404, "use it with /v1/audio/transcriptions"),
        (IMAGES, {"model": "painter"}, 400, "prompt is empty"),
        (IMAGES, {"model": "voice", "prompt": "a"}, 404, "use it with /v1/audio/speech"),
        (IMAGES, {"model": "painter", "prompt": "a", "n": 100}, 400, "n is 100"),
        ("/v1/images/edits", {"model": "painter"}, 404, "not edited or varied"),
        ("/v1/images/variations", {"model": "painter"}, 404, "not edited or varied"),
        ("/v1/chat/completions", {"model": "painter", "messages": [1]}, 404, "use it with /v1/images/generations"),
    ],
)
def test_json_that_is_not_valid_has_a_reason(
    service: RunningService, path: str, body: object, status: int, words: str
) -> None:
    response = service.post(path, body)
    assert response.status == status
    assert words in response.json["error"]["message"]


@pytest.mark.parametrize("kind", ["application/json", "multipart/mixed; boundary=a", "audio/wav"])
def test_another_content_type_is_415_before_the_body_is_read(service: RunningService, kind: str) -> None:
    lines = (f"content-type: {kind}", "content-length: 1000000")
    response = exchange(service, head(service, *lines, path=TRANSCRIPTIONS))
    assert b" 415 " in response.splitlines()[0]
    assert b'"param": "file"' in response or b'"param":"file"' in response


def test_a_form_for_images_and_a_compressed_form_are_415(service: RunningService) -> None:
    for path, *lines in ((IMAGES, KIND), (TRANSCRIPTIONS, KIND, "content-encoding: gzip")):
        response = exchange(service, head(service, *lines, "content-length: 10", path=path))
        assert b" 415 " in response.splitlines()[0], response


def test_an_upload_of_a_gigabyte_is_refused_by_its_head(service: RunningService) -> None:
    response = exchange(service, head(service, KIND, f"content-length: {2**30}", path=TRANSCRIPTIONS))
    assert b" 413 " in response.splitlines()[0]
    assert b"request_too_large" in response


def test_an_upload_without_a_length_is_refused_at_the_limit(service: RunningService) -> None:
    before = resident_mib(service)
    block = b"10000\r\n" + bytes(65536) + b"\r\n"
    sent, seen = 0, b""
    with socket.create_connection(("127.0.0.1", service.gateway.port), timeout=30) as connection:
        connection.sendall(head(service, KIND, "transfer-encoding: chunked", path=TRANSCRIPTIONS))
        with suppress(ConnectionError):
            while sent < 80:
                connection.sendall(block)
                sent += 1
        with suppress(ConnectionError):
            seen = connection.recv(65536)
    # Three megabytes for the file, one for the form; the rest is discarded or refused.
    assert b" 413 " in seen.splitlines()[0]
    assert resident_mib(service) < before + 30


def test_uploads_at_once_share_bounded_memory(pair: RunningService) -> None:
    start = head(pair, KIND, f"content-length: {150 * 2**20}", path=TRANSCRIPTIONS)
    with socket.create_connection(("127.0.0.1", pair.gateway.port), timeout=30) as first:
        first.sendall(start + b"--")
        wait_until(lambda: b" 503 " in exchange(pair, start).splitlines()[0], "the memory is reserved")
        assert b"uploads_busy" in exchange(pair, start)
        # A small one has room all the same.
        assert transcribe(pair, sound()).status == 200
    wait_until(lambda: metric(pair, "upload_bytes") == 0, "the memory is released")


def test_a_key_without_the_model_is_403(service: RunningService) -> None:
    key = create_key(service, "eve", models=("fake",))
    body = form(audio(sound()), field("model", "whisper"))
    assert send(service, TRANSCRIPTIONS, body, key=key).json["error"]["code"] == "model_not_allowed"
    unknown = "sk-000000000000-" + "A" * 43
    assert send(service, TRANSCRIPTIONS, body, key=unknown).status == 401


# The life of a request.


def test_a_client_that_disconnects_cancels_its_transcription(service: RunningService) -> None:
    before = service.stats()["aborted"]
    body = form(audio(sound()), field("model", "whisper"), field("prompt", "fake: ttft_ms=60000"))
    start = head(service, KIND, f"content-length: {len(body)}", path=TRANSCRIPTIONS)
    with socket.create_connection(("127.0.0.1", service.gateway.port), timeout=30) as connection:
        connection.sendall(start + body)
        wait_until(lambda: service.stats()["active"] == 1, "the engine works")
    wait_until(lambda: service.stats()["aborted"] == before + 1, "the engine stops")


def received(service: RunningService) -> int:
    """The requests of clients that the engines have received, without canaries."""
    engines = json.loads(service.config.read_text())["engines"].values()
    found = [http(f"http://127.0.0.1:{engine['port']}/stats").json for engine in engines]
    return sum(one["requests"] - one["canaries"] for one in found)


def test_a_form_that_an_engine_has_received_is_not_sent_again(pair: RunningService) -> None:
    before = received(pair)
    response = transcribe(pair, sound(), prompt="fake: fault=reset")
    assert (response.status, response.json["error"]["code"]) == (502, "engine_failed")
    count = 'requests_total{endpoint="/v1/audio/transcriptions",model="whisper",outcome="engine_failed"} 1.0'
    assert count in pair.get("/metrics").body.decode()
    assert received(pair) == before + 1
    both = [transcribe(pair, sound(), prompt=f"fake: fault=status:{500 + number}") for number in (0, 3)]
    assert [one.status for one in both] == [500, 503]
    assert received(pair) == before + 3


def test_speech_that_an_engine_has_received_is_not_sent_again(pair: RunningService) -> None:
    body = {"model": "voice", "input": "secret-words fake: fault=reset", "voice": "a"}
    assert pair.post(SPEECH, body).status == 502
    transcribe(pair, sound(), prompt="fake: fault=status:500", language="secret-words")


def test_a_form_moves_from_an_engine_that_does_not_run(pair: RunningService) -> None:
    pair.engine.stop()
    for number in range(4):
        data = sound(2**20 + number * 64)
        assert transcribe(pair, data).json["text"] == text_of(data)
