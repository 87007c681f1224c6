"""Voice, photos, files, stickers: what the service can use is used, everything else gets a plain refusal."""

from __future__ import annotations

from typing import Any

from tests.conftest import start_mock
from tests.gateway.running.media import text_of, transcribe
from tests.telegram.conftest import MAX_VOICE, WHISPER, BotMaker, BotUnderTest

SHORT = "fake: tokens=3"
EXPECTED = "the quick brown"


def document(name: str, size: int) -> dict[str, Any]:
    return {"document": {"file_id": name, "file_unique_id": name, "file_name": name, "file_size": size}}


async def test_a_file_enters_the_memory_of_its_conversation(bot: BotUnderTest) -> None:
    bot.api.files["plan.txt"] = b"The bridge opens in May."
    assert await bot.ask("", **document("plan.txt", 24)) == ["plan.txt enters the memory of this conversation."]
    stored = bot.backend.service.get("/v1/files", bot.key).json["data"]
    assert [one["filename"] for one in stored] == ["plan.txt"]
    await bot.ask(SHORT)
    names = [tool["function"]["name"] for tool in bot.backend.assistant.last_body()["tools"]]
    assert names == ["file_search"]
    await bot.ask("/new")
    await bot.ask(SHORT)
    assert "tools" not in bot.backend.assistant.last_body()


async def test_a_file_with_a_caption_is_also_a_turn(bot: BotUnderTest) -> None:
    bot.api.files["a.txt"] = b"text"
    texts = await bot.ask(SHORT, **document("a.txt", 4))
    assert texts == ["a.txt enters the memory of this conversation.", EXPECTED]


async def test_a_file_above_20_mb_is_refused_without_a_download(bot: BotUnderTest) -> None:
    (text,) = await bot.ask("", **document("big.zip", 20 * 2**20 + 1))
    assert text.startswith("The file is larger than 20 MB")
    assert not any(name == "getFile" for name, _, _ in bot.api.calls)
    assert bot.backend.service.get("/v1/files", bot.key).json["data"] == []


async def test_a_file_whose_size_telegram_hides_is_refused_as_well(bot: BotUnderTest) -> None:
    bot.api.file_sizes["big.zip"] = 20 * 2**20 + 1
    (text,) = await bot.ask("", **document("big.zip", 0))
    assert text == "Telegram did not deliver the file. Send it again."


def voice(name: str, size: int = 0) -> dict[str, Any]:
    return {"voice": {"file_id": name, "file_unique_id": name, "duration": 2, "file_size": size}}


async def test_a_voice_message_without_a_model_for_speech_is_refused(make_bot: BotMaker) -> None:
    async with make_bot(models=["fake"]) as bot:
        (text,) = await bot.ask("", **voice("v"))
        assert text.startswith("Voice messages are not available")
        (text,) = await bot.ask("", language="ru", **voice("v"))
        assert text.startswith("Голосовые сообщения на этом сервере недоступны")


async def test_a_voice_message_becomes_text_by_another_server_and_a_turn(bot: BotUnderTest) -> None:
    recording = b"OggS" + bytes(range(256)) * 8
    bot.api.files["v.ogg"] = recording
    heard, text = await bot.ask(SHORT, **voice("v.ogg", len(recording)))
    assert heard == f"Recognised: {text_of(recording)}"
    assert text == EXPECTED
    (user, _) = bot.backend.conversation(bot.key)
    assert user == ("user", f"{SHORT}\n\n{text_of(recording)}"), "the caption and the words are one message"
    rows = bot.backend.service.rows()
    assert [one["model"] for one in rows if one["user"] == bot.user] == ["whisper", "fake"], "both are counted"


async def test_a_recording_that_is_too_long_or_not_audio_is_refused(bot: BotUnderTest) -> None:
    bot.api.files["long"] = b"OggS" + bytes(MAX_VOICE + 2 * 2**20)
    assert await bot.ask("", **voice("long")) == ["The recording is too long for this server. Send a shorter one."]
    bot.api.files["text"] = b"not audio"
    assert await bot.ask("", **voice("text")) == ["The recording cannot be read. Send it again, or write the text."]
    (text,) = await bot.ask("", **voice("huge", 20 * 2**20 + 1))
    assert text.startswith("The file is larger than 20 MB")
    assert bot.backend.service.get("/v1/conversations", bot.key).json["data"] == []


async def test_a_voice_message_can_be_repeated_when_its_server_is_back(bot: BotUnderTest) -> None:
    bot.api.files["v.ogg"] = b"OggS"
    whisper = bot.backend.whisper
    whisper.stop()
    (text,) = await bot.ask(SHORT, **voice("v.ogg", 4))
    assert text == "The model cannot respond now. Try /retry in a moment."
    bot.backend.whisper = start_mock(bot.base / "whisper.log", *WHISPER, port=whisper.port)
    await bot.api.until(
        lambda: transcribe(bot.backend.service, b"OggS").status == 200, "the return of the other server"
    )
    assert await bot.ask("/retry") == [f"Recognised: {text_of(b'OggS')}", EXPECTED]


async def test_a_photo_is_sent_to_the_model_as_data(bot: BotUnderTest) -> None:
    bot.api.files["p"] = b"\xff\xd8jpeg"
    photo = {
        "photo": [
            {"file_id": name, "file_unique_id": name, "width": 9, "height": 9, "file_size": 6}
            for name in ("small", "p")
        ]
    }
    assert await bot.ask(SHORT, **photo) == [EXPECTED]
    parts = bot.backend.assistant.last_body()["messages"][-1]["content"]
    assert [part["type"] for part in parts] == ["text", "image_url"]
    assert parts[1]["image_url"]["url"] == "data:image/jpeg;base64,/9hqcGVn"


async def test_a_photo_above_10_mb_is_refused(bot: BotUnderTest) -> None:
    photo = [{"file_id": "p", "file_unique_id": "p", "width": 9, "height": 9, "file_size": 10 * 2**20 + 1}]
    assert await bot.ask("", photo=photo) == ["The image is larger than 10 MB."]


async def test_a_model_that_rejects_images_is_named(bot: BotUnderTest) -> None:
    bot.api.files["p"] = b"\xff\xd8jpeg"
    photo = [{"file_id": "p", "file_unique_id": "p", "width": 9, "height": 9, "file_size": 6}]
    assert await bot.ask("fake: fault=status:400", photo=photo) == ["The model fake does not accept images."]


async def test_a_sticker_gets_a_plain_refusal(bot: BotUnderTest) -> None:
    sticker = {
        "file_id": "s",
        "file_unique_id": "s",
        "type": "regular",
        "width": 1,
        "height": 1,
        "is_animated": False,
        "is_video": False,
    }
    (text,) = await bot.ask("", sticker=sticker)
    assert text.startswith("This kind of message is not supported.")
    assert bot.backend.service.get("/v1/conversations", bot.key).json["data"] == []
