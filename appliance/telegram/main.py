"""Runs the bot until SIGTERM or SIGINT: requests updates, stores them, gives them to their chats."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from aiogram.exceptions import AiogramError
from aiogram.types import User
from aiogram.utils.token import TokenValidationError

from appliance.contract.model import Site, Telegram
from appliance.errors import ConfigError, StartError, StoreError
from appliance.system import text_file
from appliance.system.service_manager import notify
from appliance.telegram.acting import ActingGateway
from appliance.telegram.channel import DRAFTS_STOP, BotChannel, is_conflict, is_final
from appliance.telegram.clock import BotClock, SystemClock
from appliance.telegram.delivery import MessageDelivery
from appliance.telegram.dispatcher import UpdateDispatcher
from appliance.telegram.incoming import convert
from appliance.telegram.metrics import BotMetrics
from appliance.telegram.refunds import refund_payment
from appliance.telegram.service import BotService
from appliance.telegram.settings import telegram_of
from appliance.telegram.store.database import BotDatabase
from appliance.telegram.store.links import LinkStore
from appliance.telegram.store.payments import PaymentStore, StarPayment
from appliance.telegram.store.turns import TurnStore
from appliance.telegram.topics import ChatTopics

LOG = logging.getLogger(__name__)

RETRY_S = (1.0, 2.0, 5.0, 15.0, 60.0)
"""Waits after failed requests for updates; the last one repeats."""


def read_bot_token(path: Path) -> str:
    """Return the token in the file ``path``; raises :class:`ConfigError` without any part of it."""
    return text_file.read(
        path,
        missing="no such file; write the bot's token into it, as @BotFather shows it",
        folder="name the file with the bot's token",
        what="a token's file",
        max_bytes=4096,
    ).strip()


def open_channel(settings: Telegram, base: Path) -> BotChannel:
    """Return the bot's connection to the Bot API; raises :class:`ConfigError` without a valid token."""
    path = settings.token_path(base)
    token = read_bot_token(path)
    try:
        return BotChannel(token, settings.api)
    except TokenValidationError:
        raise ConfigError(f"{path}: does not hold the token of a bot; @BotFather shows it") from None


class TelegramBotProcess:
    """A bot with its connections. ``clock`` and ``drafts_stop`` are for tests."""

    def __init__(
        self,
        settings: Telegram,
        base: Path,
        *,
        clock: BotClock | None = None,
        drafts_stop: bool = DRAFTS_STOP,
    ) -> None:
        self.metrics = BotMetrics()
        channel = open_channel(settings, base)
        self._database = BotDatabase(settings.data_path(base))
        turns = TurnStore(self._database)
        topics = ChatTopics(channel, turns)
        clock = clock or SystemClock()
        self.service = BotService(
            settings=settings,
            channel=channel,
            gateway=ActingGateway(settings.acting_path(base)),
            links=LinkStore(self._database),
            turns=turns,
            topics=topics,
            payments=PaymentStore(self._database),
            delivery=MessageDelivery(channel, turns, topics, clock, self.metrics),
            clock=clock,
            metrics=self.metrics,
            drafts_stop=drafts_stop,
        )
        self.dispatcher = UpdateDispatcher(self.service)

    async def run(self, on_start: Callable[[], None] = lambda: None) -> None:
        """Serve until cancelled; raises :class:`StartError` if Telegram does not accept the token."""
        me = await self._me()
        self.service.links.set_bot_name(me.username or "")
        self.service.topics.enabled = bool(me.has_topics_enabled)
        self.dispatcher.resume()
        on_start()
        LOG.info("the bot %s receives messages", me.username or me.id)
        failures = 0
        while True:
            try:
                await self._poll(me)
                failures = 0
            except AiogramError as error:
                if is_final(error):
                    raise StartError("Telegram does not accept the token; renew it with @BotFather") from None
                await self._failed(error, failures)
                failures += 1
            except StoreError as error:
                # Without a stored update, the next request gets it again.
                LOG.error("updates cannot be stored: %s", error)  # noqa: TRY400 - the message is the reason
                await self.service.clock.sleep(RETRY_S[min(failures, len(RETRY_S) - 1)])
                failures += 1

    async def close(self) -> None:
        """Cancel all work and close all connections; a restart resumes the work."""
        await self.dispatcher.close()
        await self.service.gateway.close()
        await self.service.channel.close()
        self._database.close()

    async def _me(self) -> User:
        failures = 0
        while True:
            try:
                return await self.service.channel.me()
            except AiogramError as error:
                if is_final(error):
                    raise StartError("Telegram does not accept the token; renew it with @BotFather") from None
                await self._failed(error, failures)
                failures += 1

    async def _poll(self, me: User) -> None:
        service, now = self.service, self.service.clock.now()
        received = await service.channel.updates(service.turns.next_update(now))
        self.metrics.last_poll.set(service.clock.now())
        for one in received:
            update = convert(one, me.id, me.username or "")
            if update is None:
                service.turns.skip(one.update_id, now)
                self.metrics.updates.labels("unused").inc()
            elif service.turns.receive([update], now):
                self.metrics.updates.labels("new").inc()
                self.dispatcher.dispatch(update)
            else:
                self.metrics.updates.labels("repeated").inc()

    async def _failed(self, error: AiogramError, failures: int) -> None:
        self.metrics.polls_failed.inc()
        if failures == 0:
            reason = "another process uses the same bot" if is_conflict(error) else type(error).__name__
            LOG.warning("no updates from Telegram (%s); the bot tries again", reason)
        await self.service.clock.sleep(RETRY_S[min(failures, len(RETRY_S) - 1)])


def serve(site: Site, base: Path, metrics: Path | None = None) -> int:
    """Serve until SIGTERM or SIGINT and return the exit code; relative paths begin at ``base``.

    ``metrics`` is the file that gets the metrics for node_exporter.
    """
    # aiogram logs each failed request by itself, with the address, which contains the token.
    logging.getLogger("aiogram").setLevel(logging.CRITICAL)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    asyncio.run(_serve(telegram_of(site), base, metrics))
    return 0


def run_refund(site: Site, base: Path, charge: str) -> StarPayment:
    """Refund a payment, also while the bot runs; raises as :func:`~appliance.telegram.refunds.refund_payment`."""
    logging.getLogger("aiogram").setLevel(logging.CRITICAL)
    return asyncio.run(_refund(telegram_of(site), base, charge))


async def _refund(settings: Telegram, base: Path, charge: str) -> StarPayment:
    channel, gateway = open_channel(settings, base), ActingGateway(settings.acting_path(base))
    database = BotDatabase(settings.data_path(base))
    try:
        return await refund_payment(PaymentStore(database), channel, gateway, charge)
    finally:
        database.close()
        await gateway.close()
        await channel.close()


async def _serve(settings: Telegram, base: Path, metrics: Path | None) -> None:
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    process = TelegramBotProcess(settings, base)
    tasks = [asyncio.create_task(process.run(lambda: notify("READY=1"))), asyncio.create_task(stopped.wait())]
    writer = asyncio.create_task(process.metrics.write_forever(metrics)) if metrics is not None else None
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            await tasks[0]
    finally:
        for task in (*tasks, *([writer] if writer is not None else [])):
            task.cancel()
            with suppress(asyncio.CancelledError, StartError):
                await task
        await process.close()
