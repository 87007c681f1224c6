"""Reads one number from the Prometheus of this host, and the metrics of an engine."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from prometheus_client.parser import text_string_to_metric_families

from appliance.doctor.host import CannotLookError
from appliance.system.http_request import NO_RESPONSE, send_request

TIMEOUT_S = 10.0
"""Limit of a query over a week, in seconds."""


def query_number(port: int, expression: str) -> float | None:
    """Return the value of ``expression`` in the Prometheus on loopback ``port``; ``None`` if it has no value.

    Raises :class:`CannotLookError` without a valid response.
    """
    url, path = f"http://127.0.0.1:{port}", f"/api/v1/query?{urlencode({'query': expression})}"
    fix = "systemctl status prometheus; journalctl -u prometheus -n 20"
    try:
        body: Any = send_request(url, path, direct=True, timeout_s=TIMEOUT_S).json()
        if body["status"] != "success":
            raise CannotLookError(f"Prometheus refuses the query: {body.get('error', 'no reason')}", fix)
        results = body["data"]["result"]
        return float(results[0]["value"][1]) if results else None
    except NO_RESPONSE as error:
        raise CannotLookError(f"Prometheus does not respond on port {port} ({type(error).__name__})", fix) from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CannotLookError(f"port {port} is not Prometheus ({type(error).__name__})", fix) from None


def engine_counters(url: str) -> dict[str, float]:
    """Return the counters and gauges of the engine at ``url``, each summed over its labels.

    Raises :class:`CannotLookError` without a page of metrics.
    """
    fix = f"curl -s {url}/metrics | head"
    try:
        response = send_request(url, "/metrics", direct=True, timeout_s=TIMEOUT_S)
        if response.status != 200:
            raise CannotLookError(f"{url}/metrics responds with {response.status}", fix)
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(response.body.decode("utf-8", "replace")):
            for sample in family.samples:
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
    except NO_RESPONSE as error:
        raise CannotLookError(f"{url}/metrics: no response ({type(error).__name__})", fix) from None
    except ValueError as error:
        raise CannotLookError(f"{url}/metrics is not a page of metrics: {error}", fix) from None
    return found
