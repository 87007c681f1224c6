"""Voice notes on the chat page: Chromium's own test microphone, and an engine of kind ``http`` that transcribes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.assistant.running import whole_service
from tests.fakes.transcriber import TranscriberState, transcriber
from tests.page.conftest import PageUnderTest, say_and_wait

KEY = "sk-of-the-transcriber"
WEBM = bytes.fromhex("1a45dfa3")
"""The first bytes of a WebM file."""


@pytest.fixture(scope="module")
def ears() -> Iterator[TranscriberState]:
    with transcriber() as running:
        yield running


@pytest.fixture(scope="module")
def speaking(
    site: PageUnderTest, ears: TranscriberState, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PageUnderTest]:
    """A service whose site has a model that transcribes; the browser is that of the other tests."""
    folder = tmp_path_factory.mktemp("voice")
    (folder / "key").write_text(KEY)
    found = {
        "kind": "http", "host": "here", "model": "whisper", "device": "cpu", "context": 448, "concurrency": 4,
        "address": "127.0.0.1", "port": ears.port, "key_file": str(folder / "key"), "health_path": "/health",
    }  # fmt: skip
    models = {"whisper": {"source": "elsewhere/whisper", "revision": "0" * 40, "task": "transcribe"}}
    with whole_service(folder, more_engines={"ears": found}, more_models=models) as (service, assistant):
        yield PageUnderTest(service, assistant, site.browser)


@pytest.fixture
def note(speaking: PageUnderTest, ears: TranscriberState, permissions: list[str]) -> Iterator[Page]:
    """A page of ``ada`` with ``permissions``; no script may fail and no policy may be violated."""
    ears.forms.clear()
    ears.status = 200
    context = speaking.context()
    context.grant_permissions(permissions, origin=speaking.url)
    page = speaking.logged_in(context)
    expect(page.locator("#record")).to_be_visible()
    yield page
    context.close()
    assert speaking.problems == []


def record(page: Page) -> None:
    """Record until the microphone has given sound, and end the recording."""
    page.click("#record")
    expect(page.locator("#record")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#record")).to_have_attribute("aria-label", "End the recording")
    page.wait_for_timeout(1000)
    page.click("#record")
    expect(page.locator("#record")).to_have_attribute("aria-pressed", "false")


@pytest.mark.parametrize("permissions", [["microphone"]])
def test_a_recorded_note_becomes_text_of_the_message(
    speaking: PageUnderTest, ears: TranscriberState, note: Page
) -> None:
    note.fill("#message", "Dictated:")
    record(note)
    expect(note.locator("#message")).to_have_value(f"Dictated: {ears.text}")
    (form,) = ears.forms
    assert (form["model"], form["filename"]) == (b"whisper", b"note.webm")
    assert form["file"].startswith(WEBM)
    assert len(form["file"]) > 200
    assert ears.keys[-1] == f"Bearer {KEY}", "the session of the browser does not reach the engine"
    assert note.locator("article").count() == 0, "the user reads the text before it is sent"
    row = next(one for one in speaking.service.rows() if one["endpoint"] == "/v1/audio/transcriptions")
    assert (row["user"], row["outcome"]) == ("ada", "ok")
    conversation = say_and_wait(note, note.input_value("#message"))
    assert speaking.texts(conversation)[0] == ("user", f"Dictated: {ears.text}")


@pytest.mark.parametrize("permissions", [["microphone"]])
def test_a_failed_transcription_is_reported_and_keeps_the_message(
    speaking: PageUnderTest, ears: TranscriberState, note: Page
) -> None:
    ears.status = 400
    note.fill("#message", "Kept.")
    record(note)
    expect(note.locator("#alert")).to_have_text("The sound is not readable.")
    expect(note.locator("#message")).to_have_value("Kept.")
    ears.status = 200
    record(note)
    expect(note.locator("#message")).to_have_value(f"Kept. {ears.text}")


@pytest.mark.parametrize("permissions", [[]])
def test_a_refused_microphone_is_reported_and_nothing_is_sent(ears: TranscriberState, note: Page) -> None:
    note.fill("#message", "Kept.")
    note.click("#record")
    expect(note.locator("#alert")).to_have_text("The recording failed.")
    expect(note.locator("#record")).to_have_attribute("aria-label", "Record a voice note")
    expect(note.locator("#message")).to_have_value("Kept.")
    assert ears.forms == []


def test_a_site_without_transcription_has_no_button(page: Page) -> None:
    expect(page.locator("#record")).to_be_hidden()
