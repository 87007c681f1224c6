"""The present plan of a user of a site. Pure."""

from __future__ import annotations

import time

from appliance.contract.model import Site, UserPlan
from appliance.store.models import Account


def account_plan(site: Site, account: Account, now: float) -> tuple[str | None, UserPlan | None]:
    """Return the plan of ``account`` at ``now`` (seconds since the epoch) with its name; ``None`` without one.

    The default plan replaces one that has ended, and one that the site does not have any more.
    """
    own = account.plan_at(now)
    name = own if own in site.plans else site.default_plan
    return name, site.plans.get(name or "")


def plan_words(site: Site, account: Account, now: float) -> str:
    """Return the plan of ``account`` for a table: its name, whether it is the default, and its end."""
    name, _ = account_plan(site, account, now)
    own = account.plan_at(now)
    if own is not None and own not in site.plans:
        return f"{name or 'no plan'} (the site has no plan {own})"
    if own is None:
        ended = f"; {account.plan} has ended" if account.plan is not None else ""
        return f"{name} (default{ended})" if name is not None else f"no plan{ended}"
    if account.plan_until is None:
        return own
    return f"{own} until {time.strftime('%Y-%m-%d', time.gmtime(account.plan_until))}"
