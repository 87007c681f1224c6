"""The Telegram bot: its token by the Bot API, and its socket of the gateway."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.contract.model import Telegram
from appliance.doctor.check import NotApplicable, check, site_with_gateway
from appliance.doctor.checks.assistant import SocketFacts, read_socket
from appliance.doctor.context import CheckContext
from appliance.doctor.finding import Finding, fail, ok, unknown, warn
from appliance.doctor.host import CannotLookError

GET_ME_S = 10.0
UNIT = "appliance-telegram"
TOKEN_BYTES = 4096


@dataclass(frozen=True, slots=True)
class BotIdentity:
    """The response of the Bot API to the token: the bot's name, or the status or error without one."""

    name: str
    status: int
    error: str = ""


def read_identity(token: str, api: str) -> BotIdentity:
    """Request the bot's own name; the result has no part of the token."""
    import httpx

    try:
        # As the bot, it ignores the proxies of the environment.
        with httpx.Client(timeout=GET_ME_S, trust_env=False) as client:
            response = client.get(f"{api}/bot{token}/getMe")
        found = response.json()
        name = str(found["result"]["username"]) if response.status_code == 200 else ""
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return BotIdentity("", 0, type(error).__name__)
    except (ValueError, KeyError, TypeError):
        return BotIdentity("", 0, "a response that is not of the Bot API")
    return BotIdentity(name, response.status_code)


def read_token_file(path: Path) -> str | None:
    """Return the token in ``path``; ``None`` if there is no such file. Raises :class:`CannotLookError`."""
    try:
        return path.read_bytes()[:TOKEN_BYTES].decode("ascii", "replace").strip()
    except PermissionError as error:
        raise CannotLookError(f"{path}: {error.strerror}", "run `appliance doctor` as root") from error
    except OSError:
        return None


def judge_identity(found: BotIdentity) -> Iterator[Finding]:
    """Judge whether Telegram accepts the token."""
    if found.name:
        yield ok(f"@{found.name}", subject="token")
    elif found.status in (401, 404):
        yield fail(
            f"Telegram does not accept the token ({found.status})",
            meaning="The bot does not run.",
            fix="renew the token with @BotFather, and write it into appliance.telegram.tokenFile",
            subject="token",
        )
    else:
        yield warn(
            f"the Bot API does not respond ({found.error or found.status})",
            meaning="No message arrives until it does; none is lost for a day.",
            fix="curl -sSI https://api.telegram.org; resolvectl query api.telegram.org",
            subject="token",
        )


def judge_socket(facts: SocketFacts) -> Iterator[Finding]:
    """Judge whether the gateway's socket for the bot exists, with access by owner and group only."""
    fix = "systemctl restart appliance-gateway; journalctl -u appliance-gateway"
    if not facts.is_socket:
        yield fail(
            f"{facts.path} is not a socket",
            meaning="The bot reports to each person that the model cannot respond.",
            fix=fix,
            subject="acting socket",
        )
    elif facts.mode & 0o007:
        yield fail(
            f"{facts.path} has the permissions {facts.mode:o}",
            meaning="The gateway still refuses other accounts, but each one reaches it.",
            fix=fix,
            subject="acting socket",
        )
    else:
        yield ok(f"{facts.path}, of its owner and group only", subject="acting socket")


def telegram_of_host(context: CheckContext) -> Telegram | NotApplicable:
    """Require a site with a bot whose gateway runs on this host."""
    site = site_with_gateway(context)
    if isinstance(site, NotApplicable):
        return site
    return site.telegram or NotApplicable("the site has no Telegram bot")


@check(
    "telegram",
    looks="its token, by a request to the Bot API; its socket of the gateway, with the permissions",
    means="Persons at Telegram get no response; all other clients work.",
    fix="`journalctl -u appliance-telegram`",
    requires=telegram_of_host,
    fault_domain="external",
)
def check_telegram(context: CheckContext, settings: Telegram) -> Iterator[Finding]:
    """Check the bot of this host."""
    yield from judge_socket(read_socket(context.place(settings.acting_socket)))
    token = read_token_file(context.place(settings.token_file))
    if token is None:
        yield unknown(
            f"{settings.token_file} does not exist: the bot does not run",
            fix=f"systemctl status {UNIT}; journalctl -u {UNIT} -n 20",
            subject="token",
        )
        return
    yield from judge_identity(read_identity(token, settings.api))
