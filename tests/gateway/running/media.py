"""Requests for audio and images, as a client sends them, and files to send."""

from __future__ import annotations

import hashlib
import http.client
import json
import struct
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from appliance.engines.probe import silent_wav
from tests.conftest import Response, RunningService, serving, start_mock

BOUNDARY = b"boundary-of-a-client"
TRANSCRIPTIONS = "/v1/audio/transcriptions"
SPEECH = "/v1/audio/speech"
IMAGES = "/v1/images/generations"

TASKS = {"fake": "generate", "voice": "speech", "painter": "image"}
"""The tasks of mock engines, by the names of their models."""


def field(name: str, value: str) -> bytes:
    head = f'Content-Disposition: form-data; name="{name}"\r\n\r\n'.encode()
    return b"--" + BOUNDARY + b"\r\n" + head + value.encode() + b"\r\n"


def audio(data: bytes) -> bytes:
    head = b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
    return b"--" + BOUNDARY + b"\r\n" + head + data + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--" + BOUNDARY + b"--\r\n"


def sound(size: int = 6444) -> bytes:
    """A WAV file of ``size`` bytes."""
    return silent_wav((size - 44) / 32_000)


def text_of(data: bytes) -> str:
    """The text with which the mock engine transcribes ``data``."""
    return f"{len(data):07d} {hashlib.sha256(data).hexdigest()}"


def send(
    service: RunningService, path: str, body: bytes, *, key: str | None = None, kind: str | None = None
) -> Response:
    """POST a body, a form by default."""
    request = urllib.request.Request(service.url + path, data=body, method="POST")
    request.add_header("Content-Type", kind or f"multipart/form-data; boundary={BOUNDARY.decode()}")
    request.add_header("Authorization", f"Bearer {key or service.key}")
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return Response(response.status, {k.lower(): v for k, v in response.headers.items()}, response.read())
    except urllib.error.HTTPError as error:
        with error:
            return Response(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())


def transcribe(service: RunningService, data: bytes, **more: str) -> Response:
    """Send ``data`` with the model behind the file, and further fields."""
    fields = {"model": "whisper"} | more
    return send(service, TRANSCRIPTIONS, form(audio(data), *[field(*one) for one in fields.items()]))


def open_speech(service: RunningService, text: str, **more: Any) -> tuple[http.client.HTTPConnection, Any]:
    """Request speech; return the connection and its response, whose body is not read."""
    connection = http.client.HTTPConnection("127.0.0.1", service.gateway.port, timeout=60)
    body = json.dumps({"model": "voice", "input": text, "voice": "ada", **more})
    connection.request(
        "POST",
        SPEECH,
        body,
        {"Authorization": f"Bearer {service.key}", "Content-Type": "application/json"},
    )
    return connection, connection.getresponse()


def png_size(data: bytes) -> tuple[int, int]:
    """Check the chunks of a PNG file; return its size in pixels."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    place, kinds, size = 8, [], (0, 0)
    while place < len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        content = data[place + 8 : place + 8 + length]
        assert struct.unpack(">I", data[place + 8 + length : place + 12 + length])[0] == zlib.crc32(kind + content)
        if kind == b"IHDR":
            size = struct.unpack(">II", content[:8])
        kinds.append(kind)
        place += 12 + length
    assert kinds == [b"IHDR", b"IDAT", b"IEND"]
    return size


@contextmanager
def media_service(
    folder: Path,
    *,
    replicas: int = 1,
    tasks: tuple[str, ...] = tuple(TASKS),
    plans: dict[str, Any] | None = None,
    **gateway: Any,
) -> Iterator[RunningService]:
    """A gateway before mock engines: ``whisper`` in ``replicas``, and the ones of :data:`TASKS` in ``tasks``.

    ``service.engine`` is the first replica of ``whisper``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = {name: TASKS[name] for name in tasks} | {
        "whisper" if number == 0 else f"whisper-{number}": "transcribe" for number in range(replicas)
    }
    mocks = {}
    try:
        for name, task in names.items():
            model = name.partition("-")[0]
            mocks[name] = start_mock(folder / f"{name}.log", "--task", task, "--model", model)
        engines = {
            name: {
                "kind": "mock", "host": "here", "model": name.partition("-")[0], "device": "cpu",
                "context": 448, "concurrency": 4, "port": mock.port,
            }
            for name, mock in mocks.items()
        }  # fmt: skip
        models = {name: {"source": f"./{name}", "task": task} for name, task in names.items() if "-" not in name}
        roles = {"dictation": {"model": "whisper", "sampling": {"language": "ru", "temperature": 0.2}}}
        with serving(
            folder / "g", engines=engines, models=models, roles=roles, plans=plans or {}, gateway=gateway
        ) as service:
            service.engine.stop()
            service.engine = mocks["whisper"]
            yield service
    finally:
        for mock in mocks.values():
            mock.stop()
