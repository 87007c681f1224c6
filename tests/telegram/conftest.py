"""One gateway, one assistant and one mock engine for the folder; a bot and a Bot API of its own for each test."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from appliance.contract.model import Telegram
from appliance.errors import StartError
from appliance.telegram.store.database import BotDatabase
from tests.assistant.running import AssistantUnderTest, key_id, whole_service
from tests.conftest import RunningService, StartedProcess, start_mock
from tests.fakes.jumping_clock import JumpingClock
from tests.fakes.telegram_api import CHAT_TOKEN, TelegramServer, telegram_server
from tests.gateway.running.conftest import create_key, one_engine
from tests.gateway.running.test_http_engines import http_engine

if TYPE_CHECKING:
    from appliance.telegram.main import TelegramBotProcess

PERSON = 5
MAX_VOICE = 50_000
"""Bytes of the longest recording that the gateway accepts."""
WHISPER = ("--task", "transcribe", "--model", "whisper")


@dataclass
class BackendUnderTest:
    """The gateway with its socket for the bot, and the assistant."""

    service: RunningService
    assistant: AssistantUnderTest
    socket: Path
    whisper: StartedProcess
    """The server that transcribes."""

    def conversation(self, key: str) -> list[tuple[str, str]]:
        """Return role and text of the messages in the newest conversation of ``key``."""
        listed = self.service.get("/v1/conversations", key).json["data"]
        items = self.service.get(f"/v1/conversations/{listed[0]['id']}/items?order=asc", key).json["data"]
        return [(one["role"], one["content"][0]["text"]) for one in items if one["type"] == "message"]


@dataclass
class BotUnderTest:
    """A bot in this process, and the Bot API that it uses."""

    backend: BackendUnderTest
    api: TelegramServer
    clock: JumpingClock
    settings: Telegram
    base: Path
    key: str
    user: str
    drafts_stop: bool = True
    process: TelegramBotProcess | None = None
    _task: asyncio.Task[None] | None = None
    languages: dict[int, str] = field(default_factory=dict)

    @property
    def bot(self) -> TelegramBotProcess:
        assert self.process is not None
        return self.process

    async def start(self) -> None:
        # The import of aiogram takes 8 s, so the processes that run other tests do without.
        from appliance.telegram.main import TelegramBotProcess

        self.process = TelegramBotProcess(self.settings, self.base, clock=self.clock, drafts_stop=self.drafts_stop)
        started = asyncio.Event()
        self._task = asyncio.create_task(self.process.run(started.set))
        waiting = asyncio.create_task(started.wait())
        await asyncio.wait({self._task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not started.is_set():
            waiting.cancel()
            await self._task

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError, StartError):
                await self._task
            await self.bot.close()
            self._task = None

    async def link(self, person: int = PERSON, key: str | None = None, user: str | None = None) -> None:
        """Link ``person`` without the chat."""
        code = self.bot.service.links.make_code(user or self.user, key_id(key or self.key), self.clock.now())
        assert self.bot.service.links.redeem(code, person, self.clock.now()) is not None

    def repeated(self) -> float:
        """Return the number of repeated updates."""
        found = self.bot.metrics.registry.get_sample_value(
            "appliance_telegram_updates_total", {"state": "repeated"}
        )
        return found or 0.0

    async def settled(self) -> None:
        """Wait until the bot has processed all updates."""
        await self.api.until(lambda: self.api.confirmed, "the confirmation of all updates")
        await self.bot.dispatcher.finished()

    async def ask(self, text: str, **more: Any) -> list[str]:
        """Send ``text`` as the person and return the texts that the bot shows for it."""
        before = {*self.api.messages}
        await self.api.say(text, **more)
        await self.settled()
        return [one.text for number, one in self.api.messages.items() if number not in before]


@pytest.fixture(scope="package")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BackendUnderTest]:
    folder = tmp_path_factory.mktemp("telegram")
    socket = folder / "bot.sock"
    roles = {"poet": {"model": "fake", "system_prompt": "Rhyme."}}
    telegram = {"acting_socket": str(socket), "pay_support": "@operator"}
    plans = {"basic": {"stars": 500, "price": "500 Stars a month"}, "large": {"stars": 900, "stars_days": 7}}
    key = folder / "whisper-key"
    key.write_text("secret-of-the-other-server")
    mocks = [start_mock(folder / "fake.log"), start_mock(folder / "whisper.log", *WHISPER)]
    engines = {
        "chat": one_engine(8) | {"port": mocks[0].port},
        # Another server with OpenAI's API, as whisper.cpp: an engine of kind http.
        "whisper": http_engine("whisper", mocks[1].port, key, context=448),
    }
    models = {
        "fake": {"source": "./fake"},
        "whisper": {"source": "elsewhere/whisper", "revision": "0" * 40, "task": "transcribe"},
    }
    made: BackendUnderTest | None = None
    try:
        with whole_service(
            folder,
            roles=roles,
            telegram=telegram,
            plans=plans,
            engines=engines,
            models=models,
            gateway={"max_audio_bytes": MAX_VOICE},
        ) as (service, assistant):
            service.engine.stop()
            service.engine = assistant.engine = mocks[0]
            made = BackendUnderTest(service, assistant, socket, mocks[1])
            yield made
    finally:
        (mocks[1] if made is None else made.whisper).stop()


BotMaker: TypeAlias = Callable[..., AbstractAsyncContextManager[BotUnderTest]]


@pytest.fixture(scope="package")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database without rows."""
    folder = tmp_path_factory.mktemp("database")
    BotDatabase(folder).close()
    return folder


@pytest.fixture
def make_bot(backend: BackendUnderTest, empty_database: Path, tmp_path: Path) -> BotMaker:
    """Return a function that makes a bot with a person linked to a user of its own."""

    @asynccontextmanager
    async def make(
        *, drafts_stop: bool = True, linked: bool = True, topics: bool = False, **limits: Any
    ) -> AsyncIterator[BotUnderTest]:
        clock = JumpingClock()
        user = f"u{tmp_path.name[:30]}"
        key = create_key(backend.service, user, **limits)
        (tmp_path / "token").write_text(CHAT_TOKEN)
        shutil.copytree(empty_database, tmp_path / "data")
        async with telegram_server(clock, topics=topics) as api:
            settings = Telegram(
                data_dir="data",
                token_file="token",
                acting_socket="bot.sock",
                api=api.url,
                model="fake",
                pay_support="@operator",
            )
            # A link, which a test removes to make the gateway unreachable.
            (tmp_path / "bot.sock").symlink_to(backend.socket)
            one = BotUnderTest(backend, api, clock, settings, tmp_path, key, user, drafts_stop)
            await one.start()
            try:
                if linked:
                    await one.link()
                yield one
            finally:
                await one.stop()

    return make


@pytest.fixture
async def bot(make_bot: BotMaker) -> AsyncIterator[BotUnderTest]:
    async with make_bot() as made:
        yield made
