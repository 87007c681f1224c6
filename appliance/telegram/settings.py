"""The settings of the bot in a site."""

from __future__ import annotations

from appliance.contract.model import Site, Telegram
from appliance.errors import ConfigError


def telegram_of(site: Site) -> Telegram:
    """Return the settings of the bot of ``site``; raises :class:`ConfigError` if it has none."""
    if site.telegram is None:
        raise ConfigError("this site has no Telegram bot; add a section [telegram]")
    return site.telegram
