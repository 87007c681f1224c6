"""Gateway and engines: whether they respond with a generated token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from appliance.contract.machine import Edge
from appliance.contract.model import Site
from appliance.doctor.check import (
    check,
    machine_part,
    site_with_gateway,
)
from appliance.doctor.context import CheckContext
from appliance.doctor.finding import Finding, fail, ok, warn
from appliance.doctor.host import CannotLookError
from appliance.doctor.readiness import GatewayReadiness, read_ready


def judge_gateway(address: str, ready: GatewayReadiness) -> Finding:
    """Judge whether the gateway of this host responds."""
    if ready.error:
        return fail(
            f"does not respond on {address} ({ready.error})",
            meaning="No request gets a response.",
            fix="systemctl status appliance-gateway; journalctl -u appliance-gateway",
            cause="gateway-down",
        )
    return ok(f"responds on {address}{', ready' if ready.status == 200 else ', not ready'}")


@check(
    "gateway",
    looks="whether this host's gateway responds to `/ready`",
    means="No request gets a response.",
    fix="`systemctl status appliance-gateway`",
    requires=site_with_gateway,
    fault_domain="generation",
)
def check_gateway(context: CheckContext, site: Site) -> Iterator[Finding]:
    """Check the gateway of this host."""
    yield judge_gateway(f"{site.gateway.host}:{site.gateway.port}", context.ready)


def judge_engines(ready: GatewayReadiness) -> Iterator[Finding]:
    """Judge whether each replica has just generated a token."""
    for name, state in ready.engines.items():
        subject, unit = f"engine {name}", f"appliance-engine-{name}"
        fix = f"systemctl status {unit}; journalctl -u {unit}"
        if state == "ready":
            yield ok("generated a token", subject=subject)
        elif state == "not loaded":
            yield ok("not loaded; a request for its model starts it", subject=subject)
        elif state.startswith("draining: "):
            # An operator or the watchdog closed it, not this generation: never a failure.
            yield warn(
                f"is drained ({state.removeprefix('draining: ')})",
                meaning="It gets no new requests; without another replica, requests for its model get 503.",
                fix=f"after the reason has ended: appliance-gateway models undrain {name}",
                subject=subject,
            )
        elif ready.status == 200:
            # The gateway is ready, so another replica serves the model: a warning, not a failure.
            yield warn(state, meaning="Another replica serves its model meanwhile.", fix=fix, subject=subject)
        else:
            yield fail(
                state, meaning="Requests for its model get 503.", fix=fix, subject=subject, cause="engine-down"
            )


@check(
    "engines",
    looks="whether each replica has just generated a token",
    means="Its requests go to another replica, or get 503.",
    fix="`journalctl -u appliance-engine-NAME`",
    requires=site_with_gateway,
    fault_domain="generation",
)
def check_engines(context: CheckContext, _: Site) -> Iterator[Finding]:
    """Check each replica, by the gateway's canary."""
    if context.ready.error:
        raise CannotLookError("their state is unknown without the gateway", "appliance doctor --only gateway")
    yield from judge_engines(context.ready)


def judge_gateways(responses: Mapping[str, GatewayReadiness]) -> Iterator[Finding]:
    """Judge, on the VPS, whether each gateway responds through the tunnel; one of several may be down."""
    down = [address for address, ready in responses.items() if ready.error]
    for address, ready in responses.items():
        if ready.error and len(down) == len(responses):
            yield fail(
                f"does not respond ({ready.error})",
                meaning="Clients get 502 or 504.",
                fix="appliance doctor --only tunnel; then the same on the GPU host",
                subject=address,
                cause="gateway-unreachable",
            )
        elif ready.error:
            yield warn(
                f"does not respond ({ready.error})",
                meaning="The other GPU host serves its share.",
                fix="appliance doctor, on that host",
                subject=address,
            )
        elif ready.status != 200:
            yield fail(
                f"responds, but is not ready: {'; '.join(sorted(set(ready.engines.values())))}",
                meaning="Requests get 503.",
                fix="appliance doctor, on that host",
                subject=address,
                cause="engine-down",
            )
        else:
            yield ok("responds through the tunnel, ready", subject=address)


@check(
    "gateways",
    looks="from the VPS: whether each gateway responds through the tunnel",
    means="Clients get 502 or 504.",
    fix="`appliance doctor --only tunnel`, on both hosts",
    requires=machine_part(lambda machine: machine.edge, "this host is not an edge"),
    fault_domain="external",
)
def check_gateways(_context: CheckContext, expected: Edge) -> Iterator[Finding]:
    """Check each gateway behind this edge."""
    responses = {}
    for address in expected.gateways:
        name, _, port = address.rpartition(":")
        responses[address] = read_ready(name, int(port))
    yield from judge_gateways(responses)
