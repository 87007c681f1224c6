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
    """The gateway of this host answers."""
    if ready.error:
        return fail(
            f"does not answer on {address} ({ready.error})",
            meaning="Nobody gets an answer.",
            fix="systemctl status appliance-gateway; journalctl -u appliance-gateway",
            cause="gateway-down",
        )
    return ok(f"answers on {address}{', ready' if ready.status == 200 else ', and is not ready'}")


@check(
    "gateway",
    looks="whether this host's gateway answers `/ready`",
    means="Nobody gets an answer.",
    fix="`systemctl status appliance-gateway`",
    requires=site_with_gateway,
    fault_domain="generation",
)
def check_gateway(context: CheckContext, site: Site) -> Iterator[Finding]:
    """The gateway of this host."""
    yield judge_gateway(f"{site.gateway.host}:{site.gateway.port}", context.ready)


def judge_engines(ready: GatewayReadiness) -> Iterator[Finding]:
    """Each replica generated a token a moment ago."""
    for name, word in ready.engines.items():
        subject = f"engine {name}"
        if word == "ready":
            yield ok("generated a token", subject=subject)
        elif word == "not loaded":
            yield ok("not loaded; it is started when somebody asks for its model", subject=subject)
        else:
            # Another replica may serve the model meanwhile: then it is worth a look, not an alarm.
            level = warn if ready.status == 200 else fail
            verdict = level(
                word,
                meaning="Another replica serves its model meanwhile."
                if level is warn
                else "Requests for its model get 503.",
                fix=f"systemctl status appliance-engine-{name}; journalctl -u appliance-engine-{name}",
                subject=subject,
            )
            yield (
                verdict
                if level is warn
                else fail(word, meaning=verdict.meaning, fix=verdict.fix, subject=subject, cause="engine-down")
            )


@check(
    "engines",
    looks="whether each replica generated a token a moment ago",
    means="Its requests go to another replica, or get 503.",
    fix="`journalctl -u appliance-engine-NAME`",
    requires=site_with_gateway,
    fault_domain="generation",
)
def check_engines(context: CheckContext, _: Site) -> Iterator[Finding]:
    """Each replica, by the gateway's canary."""
    if context.ready.error:
        raise CannotLookError("the gateway does not answer, so nobody asks them", "appliance doctor --only gateway")
    yield from judge_engines(context.ready)


def judge_gateways(answers: Mapping[str, GatewayReadiness]) -> Iterator[Finding]:
    """From the VPS: each gateway answers through the tunnel. One of several may be away."""
    away = [address for address, ready in answers.items() if ready.error]
    for address, ready in answers.items():
        if ready.error and len(away) == len(answers):
            yield fail(
                f"does not answer ({ready.error})",
                meaning="Clients get 502 or 504.",
                fix="appliance doctor --only tunnel; then the same on the GPU host",
                subject=address,
                cause="gateway-unreachable",
            )
        elif ready.error:
            yield warn(
                f"does not answer ({ready.error})",
                meaning="The other GPU host carries its share.",
                fix="appliance doctor, on that host",
                subject=address,
            )
        elif ready.status != 200:
            yield fail(
                f"answers, and is not ready: {'; '.join(sorted(set(ready.engines.values())))}",
                meaning="Requests get 503.",
                fix="appliance doctor, on that host",
                subject=address,
                cause="engine-down",
            )
        else:
            yield ok("answers through the tunnel, ready", subject=address)


@check(
    "gateways",
    looks="from the VPS: whether each gateway answers through the tunnel",
    means="Clients get 502 or 504.",
    fix="`appliance doctor --only tunnel`, here and there",
    requires=machine_part(lambda machine: machine.edge, "this host is no edge"),
    fault_domain="external",
)
def check_gateways(_context: CheckContext, expected: Edge) -> Iterator[Finding]:
    """Each gateway behind this edge."""
    answers = {}
    for address in expected.gateways:
        name, _, port = address.rpartition(":")
        answers[address] = read_ready(name, int(port))
    yield from judge_gateways(answers)
