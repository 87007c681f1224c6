"""Checks before a run whether the gateway responds and offers the models."""

from __future__ import annotations

import json
from collections.abc import Sequence

from appliance.contract.model import Site
from appliance.errors import UnprovenError, UsageError
from appliance.system.http_request import NO_RESPONSE, send_request
from loadtests.client import LoadClient, RequestSpec, Target
from loadtests.outcome import Cause, no_answer

TIMEOUT_S = 5.0
NEEDS_KEY = "it needs a key: set APPLIANCE_API_KEY, or name a file of keys with --keys"
REFUSALS = {
    401: "the key is not valid; create one with `appliance keys create loadtest`",
    403: "this key has no permission for it; use another key or --model",
    404: "there is no such model; name another one with --model",
}
REDIRECTS = (301, 302, 303, 307, 308)


def first_model(url: str, key: str, site: Site | None) -> str:
    """Return the first generating model of the site; without a site the first one that the gateway offers.

    Raises :class:`UsageError` if there is none, and :class:`UnprovenError` if no server responds.
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
        cause = no_answer(type(error).__name__)
        raise UnprovenError(f"{url}: {cause}; {_advice(cause)}") from None
    if status in (401, 403):
        raise UsageError(f"{url} returns status {status}: {_refusal(status, key)}")
    try:
        return str(json.loads(body)["data"][0]["id"])
    except (ValueError, LookupError, TypeError):
        raise UsageError(f"{url}/v1/models names no model (status {status}); pass --model NAME") from None


def preflight(target: Target, models: Sequence[str], keys: Sequence[str] = ()) -> None:
    """Request one token of each model, so that an invalid address, key or name ends the run before its load.

    ``keys`` are the further keys of the run; with each of them the list of models is requested. Raises
    :class:`UnprovenError` if no server responds, and :class:`UsageError` if it rejects the request. All other
    failures are left to the run, which counts them.
    """
    client = LoadClient(target)
    try:
        for model in models:
            body = {"messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 1}
            sample = client.send(RequestSpec(model, body, max_tokens=1))
            if sample.status == 0 and sample.cause != Cause.TIMEOUT:
                raise UnprovenError(f"{target.url}: {sample.cause}; {_advice(sample.cause)}")
            if sample.status in REFUSALS:
                reason = _refusal(sample.status, target.key)
                raise UsageError(f"{target.url} returns status {sample.status} for model {model!r}: {reason}")
            if sample.status in REDIRECTS:
                raise UsageError(
                    f"{target.url} returns status {sample.status}, a redirect; pass its target with --url"
                )
    finally:
        client.close()
    for number, key in enumerate(keys, 2):
        try:
            status = send_request(target.url, "/v1/models", key=key, timeout_s=TIMEOUT_S).status
        except (*NO_RESPONSE, ValueError):
            # The first key was accepted; the load shows whether the server continues to respond.
            continue
        if status == 401:
            raise UsageError(f"{target.url} returns status 401 for key number {number}: {REFUSALS[401]}")


def has_metrics(url: str) -> bool:
    """Return whether ``/metrics`` of ``url`` has status 200."""
    try:
        return send_request(url, "/metrics", timeout_s=TIMEOUT_S).status == 200
    except (*NO_RESPONSE, ValueError):
        return False


def _refusal(status: int, key: str) -> str:
    return NEEDS_KEY if status == 401 and not key else REFUSALS[status]


def _advice(cause: str) -> str:
    if "Certificate" in cause:
        return "its certificate is invalid for this name, or no known authority signed it"
    if "SSL" in cause:
        return "the server does not use TLS; begin --url with http://"
    if "Parser" in cause or "BadStatusLine" in cause:
        return "the server does not use HTTP; begin --url with https:// if it uses TLS"
    if "Proxy" in cause:
        return "the proxy of the environment rejects the tunnel; add the host to no_proxy to bypass it"
    return "check that the gateway runs there"
