"""Audio and images with OpenAI's SDKs for Python and Node: they send the forms that users send."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import openai
import pytest

from tests.assistant_clients.sdk_calls import NodeCalls, PythonCalls, SdkCallError, SdkCalls, SentFile
from tests.clients.install import MissingError, install, node
from tests.conftest import RunningService
from tests.gateway.running.media import media_service, png_size, text_of

SOUND = "RIFF " + "Я" * 5000
"""A text that the mock engine accepts as audio."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with media_service(tmp_path_factory.mktemp("media"), tasks=("voice", "painter")) as running:
        yield running


@pytest.fixture(scope="module", params=["python", "node"])
def calls(
    request: pytest.FixtureRequest, service: RunningService, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SdkCalls]:
    url = service.url + "/v1"
    if request.param == "python":
        yield PythonCalls(openai.OpenAI(base_url=url, api_key=service.key, max_retries=0))
        return
    try:
        program = node()
    except MissingError as error:
        pytest.skip(f"NOT CHECKED: {error}")
    install()
    running = NodeCalls(program, url, service.key, tmp_path_factory.mktemp("node") / "log")
    try:
        yield running
    finally:
        running.close()


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # the SDK marks translations so
def test_a_transcription_and_a_translation(calls: SdkCalls) -> None:
    sent = {"file": SentFile("note.wav", SOUND), "model": "whisper", "language": "ru"}
    assert calls.call("audio.transcriptions.create", **sent)["text"] == text_of(SOUND.encode())
    del sent["language"]
    assert calls.call("audio.translations.create", **sent)["text"] == text_of(SOUND.encode())


def test_a_streamed_transcription(calls: SdkCalls) -> None:
    chunks = calls.call(
        "audio.transcriptions.create", file=SentFile("note.wav", SOUND), model="dictation", stream=True
    )
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)
    assert text == text_of(SOUND.encode())


def test_speech_and_an_image(calls: SdkCalls) -> None:
    speech = calls.call("audio.speech.create", model="voice", input="hello", voice="alloy", response_format="wav")
    assert speech.startswith("RIFF")
    image = calls.call("images.generate", model="painter", prompt="a cat", size="256x256")
    assert png_size(base64.b64decode(image["data"][0]["b64_json"])) == (256, 256)


@pytest.mark.parametrize(
    ("method", "fields", "status", "param"),
    [
        ("audio.transcriptions.create", {"file": SentFile("a.wav", ""), "model": "whisper"}, 400, "file"),
        ("audio.transcriptions.create", {"file": SentFile("a.wav", SOUND), "model": "voice"}, 404, "model"),
        ("audio.speech.create", {"input": "", "model": "voice", "voice": "alloy"}, 400, "input"),
        ("images.edit", {"image": SentFile("a.png", "x"), "prompt": "a", "model": "painter"}, 404, None),
    ],
)
def test_a_mistake_raises_with_its_field(
    calls: SdkCalls, method: str, fields: dict[str, object], status: int, param: str | None
) -> None:
    with pytest.raises(SdkCallError) as found:
        calls.call(method, **fields)
    assert (found.value.status, found.value.param) == (status, param)
