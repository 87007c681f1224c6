"""A Bot API server as a process, and a person at it: ``python -m tests.fakes.telegram_person PORT``.

``POST /person`` sends its body to the bot as a private message; ``GET /person`` returns the texts of the bot.
"""

from __future__ import annotations

import sys
import time

from aiohttp import web

from tests.fakes.jumping_clock import JumpingClock
from tests.fakes.telegram_api import TelegramServer


class WallClock(JumpingClock):
    """The clock of the machine: the bot is another process, and its pauses are real ones."""

    def now(self) -> float:
        return time.time()


def application() -> web.Application:
    """Return the server with the routes of the person."""
    server = TelegramServer(WallClock())
    app = server.application()

    async def said(request: web.Request) -> web.Response:
        return web.json_response(await server.say(await request.text()))

    async def shown(_request: web.Request) -> web.Response:
        return web.json_response(server.shown())

    app.router.add_post("/person", said)
    app.router.add_get("/person", shown)
    return app


if __name__ == "__main__":
    web.run_app(application(), host="127.0.0.1", port=int(sys.argv[1]), print=None)
