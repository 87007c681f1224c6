"""Time from the engine's first token to the first draft: ``python -m benchmarks.telegram.ttft``.

The real process of the bot runs before a loopback Bot API, a gateway, an assistant and a mock engine. Each token of
the engine is the time at which it is written, on the monotonic clock. The Bot API records when the draft arrives.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.assistant.running import key_id, whole_service
from tests.conftest import ROOT
from tests.fakes.jumping_clock import JumpingClock
from tests.fakes.telegram_api import CHAT_TOKEN, TelegramServer, telegram_server

FIRST_TOKEN = "fake: tokens=400 itl_ms=10 ttft_ms=300 stamp=1"


class RealClock(JumpingClock):
    """The clock of the machine, for the limits of the Bot API."""

    def now(self) -> float:
        return time.time()


async def measure(server: TelegramServer, turns: int) -> list[float]:
    """Return the milliseconds between the first token and its draft, for each turn."""
    found = []
    for _ in range(turns):
        before, server.drafts = 0, []
        await server.say(FIRST_TOKEN)
        await server.until(lambda known=before: len(server.drafts) > known, "a draft")
        # Up to 10 ms later than the draft: the interval of the condition.
        stamp = int(server.drafts[before].text[2:18]) / 1e6
        found.append((time.monotonic() - stamp) * 1000)
        shown = len(server.messages)
        await server.say("/stop")
        await server.until(lambda known=shown: len(server.messages) > known, "the end of the turn")
        # A conversation of its own for each turn: many turns exceed the engine's context.
        shown = len(server.messages)
        await server.say("/new")
        await server.until(lambda known=shown: len(server.messages) > known, "the new conversation")
    return found


async def run(turns: int, folder: Path) -> None:
    socket = folder / "bot.sock"
    async with telegram_server(RealClock()) as server:
        section = {
            "acting_socket": str(socket),
            "data_dir": str(folder / "bot"),
            "token_file": str(folder / "token"),
            "api": server.url,
            "model": "fake",
        }
        (folder / "token").write_text(CHAT_TOKEN)
        service_of = whole_service(folder, telegram=section)
        service, _ = await asyncio.to_thread(service_of.__enter__)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "appliance", "telegram"]
        site = ["--config", str(service.config)]
        bot = await asyncio.to_thread(subprocess.Popen, [*command, "serve", *site], env=environment)
        try:
            link = [*command, "link", "ada", "--key", key_id(service.key), *site]
            made = await asyncio.to_thread(
                subprocess.run, link, env=environment, capture_output=True, text=True, check=True
            )
            await server.say(made.stdout[made.stdout.index("/start") :].splitlines()[0])
            await server.until(lambda: bool(server.messages), "the link")
            times = sorted(await measure(server, turns))
        finally:
            bot.terminate()
            bot.wait()
            await asyncio.to_thread(service_of.__exit__, None, None, None)
    print(f"first token to first draft, {turns} turns, milliseconds:")
    print(f"p50 {times[len(times) // 2]:.0f}, p95 {times[int(len(times) * 0.95)]:.0f}, longest {times[-1]:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        asyncio.run(run(options.turns, Path(name)))


if __name__ == "__main__":
    main()
