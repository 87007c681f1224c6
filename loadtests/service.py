"""Asks a gateway, before a run, what it offers and whether it answers at all."""

from __future__ import annotations

import json
from collections.abc import Sequence

from appliance.contract.model import Site
from appliance.errors import UnprovenError, UsageError
from appliance.system.http_request import NO_RESPONSE, send_request
from loadtests.client import LoadClient, RequestSpec, Target
from loadtests.outcome import Cause

TIMEOUT_S = 5.0
NEEDS_KEY = "it needs a key: set APPLIANCE_API_KEY, or name a file of keys with --keys"
REFUSALS = {
    401: "the key is not valid; make one with `appliance keys create loadtest`",
    403: "this key may not use it; take another key or --model",
    404: "there is no such model; --model names another one",
}
REDIRECTS = (301, 302, 303, 307, 308)


def first_model(url: str, key: str, site: Site | None) -> str:
    """The first generating model of the site; without a site the first one the gateway offers this key.

    Raises :class:`UsageError` if there is none, and :class:`UnprovenError` if nothing answers.
    """
    if site is not None:
        for engine in site.engines.values():
            if site.models[engine.model].task == "generate":
                return engine.model
        raise UsageError("no engine of this configuration generates text; a load test needs one")
    try:
        response = send_request(url, "/v1/models", key=key, timeout_s=TIMEOUT_S)
        status, body = response.status, response.body
    except (*NO_RESPONSE, ValueError) as error:
        raise UnprovenError(f"{url}: no answer ({type(error).__name__}); {_advice(type(error).__name__)}") from None
    if status in (401, 403):
        raise UsageError(f"{url} answers {status}: {_refusal(status, key)}")
    try:
        return str(json.loads(body)["data"][0]["id"])
    except (ValueError, LookupError, TypeError):
        raise UsageError(f"{url}/v1/models names no model (status {status}); say --model NAME") from None


def preflight(target: Target, models: Sequence[str], keys: Sequence[str] = ()) -> None:
    """One token of each model, before hundreds of users ask for many: a wrong address, key or name ends here.

    ``keys`` are the further keys of the run; each of them asks for the list of models. Raises
    :class:`UnprovenError` if nothing answers and :class:`UsageError` if the request is refused. An answer that is
    wrong in any other way is what the run is there to count.
    """
    client = LoadClient(target)
    try:
        for model in models:
            body = {"messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 1}
            sample = client.ask(RequestSpec(model, body, max_tokens=1))
            if sample.status == 0 and sample.cause != Cause.TIMEOUT:
                raise UnprovenError(f"{target.url}: {sample.cause}; {_advice(sample.cause)}")
            if sample.status in REFUSALS:
                why = _refusal(sample.status, target.key)
                raise UsageError(f"{target.url} answers {sample.status} for model {model!r}: {why}")
            if sample.status in REDIRECTS:
                raise UsageError(
                    f"{target.url} answers {sample.status}, a redirect; give --url the address that it leads to"
                )
    finally:
        client.close()
    for number, key in enumerate(keys, 2):
        try:
            status = send_request(target.url, "/v1/models", key=key, timeout_s=TIMEOUT_S).status
        except (*NO_RESPONSE, ValueError):
            # The first key was answered: the load shows whether the server goes on answering.
            continue
        if status == 401:
            raise UsageError(f"{target.url} answers 401 for key number {number}: {REFUSALS[401]}")


def answers(url: str) -> bool:
    """Whether ``/metrics`` of ``url`` answers 200."""
    try:
        return send_request(url, "/metrics", timeout_s=TIMEOUT_S).status == 200
    except (*NO_RESPONSE, ValueError):
        return False


def _refusal(status: int, key: str) -> str:
    return NEEDS_KEY if status == 401 and not key else REFUSALS[status]


def _advice(cause: str) -> str:
    if "Certificate" in cause:
        return "its certificate is not valid for this name or not signed by a known authority"
    if "SSL" in cause:
        return "it does not speak TLS there; begin --url with http://"
    if "Parser" in cause or "BadStatusLine" in cause:
        return "it does not speak HTTP there; begin --url with https:// if it speaks TLS"
    if "Proxy" in cause:
        return "the proxy of the environment refuses the tunnel; add the host to no_proxy to reach it straight"
    return "is the gateway running there?"
