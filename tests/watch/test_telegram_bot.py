"""The sender, against a real HTTP server with the Bot API's shape."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.errors import ConfigError, UsageError
from appliance.watch.telegram_bot import (
    Misconfigured,
    NotSent,
    Refused,
    Sent,
    TelegramBot,
    Uncertain,
    read_token,
)
from tests.conftest import wait_until
from tests.fakes.bot_api import CHAT, TOKEN, BotApi, bot_api
from tests.ports import free_port


@pytest.fixture
def api() -> Iterator[BotApi]:
    with bot_api() as running:
        yield running


def bot(api: BotApi, *, token: str = TOKEN, chat: str = CHAT, response_s: float = 20) -> TelegramBot:
    return TelegramBot(token, chat, api=api.url, response_s=response_s)


def test_a_message_arrives_as_plain_text(api: BotApi) -> None:
    text = "card 1: <b>87 °C</b> *_[\n🔥"
    assert bot(api).send(text) == Sent()
    assert api.delivered == [text]


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        ("429:7", NotSent("Telegram limits the rate (429 Too Many Requests: retry after 7)", 7.0)),
        ("429:999999", NotSent("Telegram limits the rate (429 Too Many Requests: retry after 999999)", 3600.0)),
        ("500", NotSent("Telegram has a failure (500 Internal Server Error)")),
        ("502", Uncertain("502, not from the Bot API")),
        ("400:Bad Request: can't parse entities", Refused("400 Bad Request: can't parse entities")),
    ],
)
def test_an_error_is_classified_by_its_consequence(api: BotApi, failure: str, expected: object) -> None:
    api.failures.append(failure)
    assert bot(api).send("text") == expected
    assert api.delivered == []


@pytest.mark.parametrize("failure", ["reset", "early", "hang", "drip"])
def test_a_request_without_a_response_is_uncertain(api: BotApi, failure: str) -> None:
    api.failures.append(failure)
    assert isinstance(bot(api, response_s=1.5).send("text"), Uncertain)
    assert api.delivered == ([] if failure == "early" else ["text"])


def test_a_text_of_4096_units_arrives_and_a_longer_one_is_refused(api: BotApi) -> None:
    assert bot(api).send("🔥" * 2048) == Sent()
    assert bot(api).send("🔥" * 2048 + "x") == Refused("400 Bad Request: message is too long")


@pytest.mark.parametrize(
    ("token", "chat", "failure", "part"),
    [
        ("123456:another-token-of-the-same-bot-000000", CHAT, "", "does not accept the token (401 Unauthorized)"),
        ("999:another-token-of-no-bot-at-all-0000000", CHAT, "", "does not accept the token (404 Not Found)"),
        (TOKEN, "1", "", "does not accept the chat (400 Bad Request: chat not found)"),
        (TOKEN, CHAT, "403:Forbidden: bot was blocked by the user", "does not accept the chat (403 Forbidden"),
        (TOKEN, CHAT, "400:Bad Request: not enough rights to send text messages", "does not accept the chat"),
    ],
)
def test_an_error_of_token_or_chat_is_an_error_of_the_configuration(
    api: BotApi, token: str, chat: str, failure: str, part: str
) -> None:
    api.failures.extend([failure] if failure else [])
    outcome = bot(api, token=token, chat=chat).send("text")
    assert isinstance(outcome, Misconfigured)
    assert part in outcome.reason
    assert token not in outcome.reason


def test_no_connection_is_certain() -> None:
    outcome = TelegramBot(TOKEN, CHAT, api=f"http://127.0.0.1:{free_port()}").send("text")
    assert outcome == NotSent("no connection to 127.0.0.1: Connection refused")


def test_a_server_that_speaks_no_tls_is_certain(api: BotApi) -> None:
    outcome = TelegramBot(TOKEN, CHAT, api=api.url.replace("http:", "https:")).send("text")
    assert isinstance(outcome, NotSent)
    assert api.requests == 0


def test_an_abort_from_another_thread_ends_the_wait(api: BotApi) -> None:
    api.failures.append("hang")
    sender, outcomes = bot(api, response_s=60), []
    thread = threading.Thread(target=lambda: outcomes.append(sender.send("text")))
    thread.start()
    wait_until(lambda: api.delivered == ["text"], "the request")
    sender.abort()
    thread.join(15)
    assert isinstance(outcomes[0], Uncertain)


def test_no_error_contains_the_token(api: BotApi, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = TOKEN.partition(":")[2]
    seen = [repr(bot(api))]
    for failure in (f"400:no route /bot{TOKEN}/sendMessage", f"403:{secret}", "502", "reset", "500"):
        api.failures.append(failure)
        seen.append(repr(bot(api).send("text")))
    # A server that closes the connection with a response that is not HTTP.
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection = server.accept()[0]
            connection.sendall(f"/bot{TOKEN}/sendMessage\r\n\r\n".encode())
            connection.close()

        threading.Thread(target=serve, daemon=True).start()
        port = server.getsockname()[1]
        seen.append(repr(TelegramBot(TOKEN, CHAT, api=f"http://127.0.0.1:{port}").send("text")))
    assert not [one for one in [*seen, caplog.text] if secret in one]


def test_a_file_with_a_token_is_read_and_another_one_is_named(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert read_token(file) == TOKEN
    file.write_text("123456:short")
    with pytest.raises(ConfigError, match="does not hold the token of a bot") as raised:
        read_token(file)
    assert "short" not in str(raised.value)
    with pytest.raises(ConfigError, match="no such file"):
        read_token(tmp_path / "absent")


def test_an_address_that_is_not_valid_is_reported_at_once() -> None:
    with pytest.raises(UsageError, match="not a valid address"):
        TelegramBot(TOKEN, CHAT, api="api.telegram.org")
