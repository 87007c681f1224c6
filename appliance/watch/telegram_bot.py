"""Sends a message by Telegram's Bot API, and classifies the result by what it means for the message.

The address of each request contains the bot's token, so no error, log line or repr may contain that address.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from appliance.errors import ConfigError
from appliance.system import text_file
from appliance.system.http_request import NO_RESPONSE
from appliance.system.proxy import ProxyRefusedError, route

API = "https://api.telegram.org"
CONNECT_S = 10.0
RESPONSE_S = 30.0
"""Limit of the whole response after the request, in seconds."""
RESPONSE_BYTES = 65_536
LONGEST_WAIT_S = 3600.0
"""Upper limit of a wait that Telegram requests."""

_TOKEN = re.compile(r"[0-9]{3,20}:[A-Za-z0-9_-]{20,100}")
_ABOUT_THE_CHAT = re.compile(
    r"chat not found|chat_id|group chat was (upgraded|deactivated)|not enough rights|have no rights"
    r"|administrator rights|PEER_ID_INVALID|CHAT_WRITE_FORBIDDEN|TOPIC_|user not found",
    re.IGNORECASE,
)
"""Descriptions of status 400 that are about the chat or the bot's rights in it, not about the text."""


@dataclass(frozen=True, slots=True)
class Sent:
    """Telegram accepted the message."""


@dataclass(frozen=True, slots=True)
class NotSent:
    """Telegram did not accept the message; try again, after ``retry_after_s`` if Telegram requested a wait."""

    reason: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Uncertain:
    """The request was sent and no response of the Bot API arrived: the message may have been accepted."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Telegram refuses this text and would refuse it again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Misconfigured:
    """The token or the chat is not valid: no message can be sent until the operator changes that."""

    reason: str


SendOutcome: TypeAlias = Sent | NotSent | Uncertain | Refused | Misconfigured


class MessageChannel(Protocol):
    """A channel to the operator."""

    def send(self, text: str) -> SendOutcome:
        """Send ``text``, of fewer than 4096 UTF-16 code units; never raises."""


def read_token(path: Path) -> str:
    """Return the bot's token in the file ``path``.

    Raises :class:`ConfigError` if the file cannot be read or does not hold a token. The message has no part of it.
    """
    text = text_file.read(
        path,
        missing="no such file; write the bot's token into it, as @BotFather shows it",
        folder="name the file with the bot's token",
        what="a token's file",
        max_bytes=4096,
    ).strip()
    if not _TOKEN.fullmatch(text):
        raise ConfigError(f"{path}: does not hold the token of a bot; @BotFather shows it as DIGITS:LETTERS")
    return text


class TelegramBot:
    """A bot that writes to one chat."""

    def __init__(
        self, token: str, chat: str, *, api: str = API, connect_s: float = CONNECT_S, response_s: float = RESPONSE_S
    ) -> None:
        """Prepare requests to ``api``.

        ``connect_s`` limits each step of the connection, ``response_s`` the whole response, both in seconds. Raises
        :class:`~appliance.errors.UsageError` if ``api`` or a proxy of the environment is not a valid address.
        """
        self._token = token
        self._chat = chat
        self._api = api
        self._connect_s = connect_s
        self._response_s = response_s
        self._waiting: socket.socket | None = None
        route(api)

    def send(self, text: str) -> SendOutcome:
        """Send ``text`` as plain text and return the outcome; never raises.

        The request is incomplete until its last byte is sent: an error before that is certain, one after it is not.
        """
        body = json.dumps({"chat_id": self._chat, "text": text, "disable_web_page_preview": True}).encode()
        server = route(self._api)
        connection = server.connection(self._connect_s)
        headers = {**server.headers, "Content-Type": "application/json", "Connection": "close"}
        try:
            try:
                connection.connect()
                connection.request("POST", server.target(f"/bot{self._token}/sendMessage"), body, headers)
            except NO_RESPONSE as error:
                return NotSent(self._scrubbed(f"no connection to {server.host}: {_reason(error)}"))
            self._waiting = connection.sock
            # It limits the whole response; the timeout of the socket limits each wait for a part of it.
            limit = threading.Timer(self._response_s, self.abort)
            limit.daemon = True
            limit.start()
            try:
                connection.sock.settimeout(self._response_s + 1)
                response = connection.getresponse()
                content = response.read(RESPONSE_BYTES)
            except (*NO_RESPONSE, ValueError) as error:
                return Uncertain(self._scrubbed(f"no response of {server.host}: {_reason(error)}"))
            finally:
                limit.cancel()
                self._waiting = None
            return self._classified(response.status, response.headers.get("Retry-After", ""), content)
        finally:
            connection.close()

    def abort(self) -> None:
        """End the wait for a response now, from any thread. The outcome of that message is uncertain."""
        waiting = self._waiting
        if waiting is not None:
            with contextlib.suppress(OSError):
                # Not that of SSLSocket, which changes the object that the other thread reads from.
                socket.socket.shutdown(waiting, socket.SHUT_RDWR)

    def _classified(self, status: int, retry_after: str, content: bytes) -> SendOutcome:
        reply = _decoded(content)
        seen = self._scrubbed(f"{status} {reply.get('description', '')}".strip())
        if status == 200 and reply.get("ok") is True:
            return Sent()
        if "ok" not in reply and (status == 200 or status >= 500):
            # A proxy on the way, not the Bot API: the message may have reached it.
            return Uncertain(f"{seen}, not from the Bot API")
        parameters = reply.get("parameters")
        parameters = parameters if isinstance(parameters, dict) else {}
        if status == 429:
            wait_s = _seconds(parameters.get("retry_after"), retry_after)
            return NotSent(f"Telegram limits the rate ({seen})", wait_s)
        if 400 <= status < 500 and status != 408:
            return _rejected(status, seen, parameters.get("migrate_to_chat_id"))
        return NotSent(f"Telegram has a failure ({seen})")

    def _scrubbed(self, text: str) -> str:
        secret = self._token.partition(":")[2]
        return text.replace(self._token, "TOKEN").replace(secret, "TOKEN")[:500]


def _rejected(status: int, seen: str, moved: object) -> SendOutcome:
    """Return the meaning of a 4xx response; ``moved`` is the new id of a group that became a supergroup."""
    if status in (401, 404):
        return Misconfigured(f"Telegram does not accept the token ({seen}): renew it with @BotFather")
    if moved is not None:
        return Misconfigured(f"the group has the new chat id {moved}: set appliance.notify.chatId")
    if status == 403 or (status == 400 and _ABOUT_THE_CHAT.search(seen)):
        fix = "write to the bot first, and check appliance.notify.chatId"
        return Misconfigured(f"Telegram does not accept the chat ({seen}): {fix}")
    return Refused(seen)


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, ProxyRefusedError):
        return str(error)
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return type(error).__name__


def _decoded(content: bytes) -> dict[str, Any]:
    try:
        reply = json.loads(content)
    except ValueError:
        return {}
    return reply if isinstance(reply, dict) else {}


def _seconds(*values: object) -> float:
    for value in values:
        try:
            seconds = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            continue
        if seconds >= 0:
            return min(seconds, LONGEST_WAIT_S)
    return 30.0
