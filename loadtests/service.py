"""What one may ask a gateway before a run."""

from __future__ import annotations

import http.client
import json
import urllib.request
from collections.abc import Sequence

from appliance.config import Site
from appliance.errors import StartError, UsageError
from loadtests.client import Ask, Client, Target
from loadtests.outcome import Cause

TIMEOUT_S = 5.0
REFUSALS = {
    401: "the key is not valid; make one with `appliance keys create loadtest`",
    403: "this key may not use it; take another key or --model",
    404: "there is no such model; --model names another one",
}


def first_model(url: str, key: str, site: Site | None) -> str:
    """The first generating model of the site; without a site the first one the gateway offers this key.

    Raises :class:`UsageError` where there is none.
    """
    if site is not None:
        for engine in site.engines.values():
            if site.models[engine.model].task == "generate":
                return engine.model
        raise UsageError("no engine of this configuration generates text; a load test needs one")
    request = urllib.request.Request(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"})  # noqa: S310 - checked scheme
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            return str(json.load(answer)["data"][0]["id"])
    except (OSError, ValueError, LookupError, TypeError, http.client.HTTPException) as error:
        raise UsageError(f"{url}/v1/models names no model ({error}); say --model NAME") from None


def preflight(target: Target, models: Sequence[str]) -> None:
    """One token of each model, before hundreds of users ask for many: a wrong address, key or name ends here.

    Raises :class:`StartError` where nobody answers and :class:`UsageError` where we are refused. An answer that is
    wrong in any other way is what the run is there to count.
    """
    client = Client(target)
    try:
        for model in models:
            body = {"messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 1}
            sample = client.ask(Ask(model, body, max_tokens=1))
            if sample.status == 0 and sample.cause != Cause.TIMEOUT:
                raise StartError(f"{target.url}: {sample.cause}; is the gateway running there?")
            if sample.status in REFUSALS:
                why = REFUSALS[sample.status]
                raise UsageError(f"{target.url} answers {sample.status} for model {model!r}: {why}")
    finally:
        client.close()


def answers(url: str) -> bool:
    """Whether ``url`` answers 200."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:  # noqa: S310 - checked scheme
            return bool(answer.status == 200)
    except (OSError, ValueError, http.client.HTTPException):
        return False
