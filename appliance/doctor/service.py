"""Units, gateway and engines: do they run, and do they answer with a generated token?"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from appliance.doctor.finding import Verdict, fail, ok, warn
from appliance.doctor.host import CannotLookError, HostReader

READY_TIMEOUT_S = 30.0
"""Above the gateway's own time for a canary token."""


PROPERTIES = (
    "Id", "LoadState", "ActiveState", "Result", "Type", "RemainAfterExit", "ConditionResult", "ConditionTimestamp",
    "ExecMainExitTimestamp",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SystemdUnit:
    """A unit as systemd has it."""

    name: str
    load: str
    active: str
    result: str
    done: bool
    """Inactive as it should be: it ran once and ended well, or its condition says there is nothing to do."""


def read_units(host: HostReader, names: Sequence[str]) -> list[SystemdUnit]:
    """The state of each unit, in that order. Raises :class:`CannotLookError` where systemd does not answer."""
    wanted = f"--property={','.join(PROPERTIES)}"
    done = host.run("systemctl", "show", "--no-pager", wanted, "--", *names)
    if done.code != 0:
        raise CannotLookError(f"systemctl: {done.first_error}", "run `appliance doctor` on the host itself")
    blocks = [
        dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in done.out.split("\n\n")
    ]
    by_name = {block["Id"]: block for block in blocks if "Id" in block}
    return [
        SystemdUnit(
            name,
            found.get("LoadState", "not-found"),
            found.get("ActiveState", "inactive"),
            found.get("Result", ""),
            _is_done(found),
        )
        for name in names
        for found in [by_name.get(name, {})]
    ]


def _is_done(found: Mapping[str, str]) -> bool:
    def happened(stamp: str) -> bool:
        return found.get(stamp, "") not in {"", "n/a", "0"}

    # A unit that was never started has Result=success and ConditionResult=no, too: the times tell.
    once = found.get("Type") == "oneshot" and found.get("RemainAfterExit") == "no"
    ended = once and happened("ExecMainExitTimestamp")
    excused = found.get("ConditionResult") == "no" and happened("ConditionTimestamp")
    return found.get("Result") == "success" and (ended or excused)


UNIT_CAUSES = {"nftables.service": "firewall-not-loaded", "nginx.service": "edge-down"}


def judge_units(units: Sequence[SystemdUnit]) -> Iterator[Verdict]:
    """Every unit of the machine is active."""
    bad = 0
    for unit in units:
        short = unit.name.removesuffix(".service")
        if unit.load == "not-found":
            bad += 1
            yield fail(
                f"{unit.name} does not exist",
                "The running system is older than the machine's description.",
                "nixos-rebuild switch --flake .#<this host>",
                short,
                UNIT_CAUSES.get(unit.name, ""),
            )
        elif unit.active == "failed":
            bad += 1
            yield fail(
                f"failed ({unit.result})",
                "What it does is not done.",
                f"journalctl -u {short} -b; systemctl restart {short}",
                short,
                UNIT_CAUSES.get(unit.name, ""),
            )
        elif unit.active != "active" and not unit.done:
            bad += 1
            level = warn if unit.active in {"activating", "reloading"} else fail
            yield level(
                unit.active,
                "It is still on its way." if level is warn else "It was stopped, and nothing starts it again.",
                f"systemctl status {short}" if level is warn else f"systemctl start {short}",
                short,
            )
    if not bad:
        yield ok(f"{len(units)} units are active, or did their part")


@dataclass(frozen=True, slots=True)
class UnitReadiness:
    """What ``/ready`` of a gateway says, or why it does not."""

    status: int
    engines: Mapping[str, str]
    error: str = ""


def read_ready(address: str, port: int) -> UnitReadiness:
    """Ask a gateway whether it works; it generates a token to know."""
    connection = http.client.HTTPConnection(address, port, timeout=READY_TIMEOUT_S)
    try:
        connection.request("GET", "/ready")
        answer = connection.getresponse()
        engines = json.loads(answer.read())["engines"]
        return UnitReadiness(answer.status, {str(name): str(word) for name, word in engines.items()})
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, AttributeError) as error:
        return UnitReadiness(0, {}, type(error).__name__)
    finally:
        connection.close()


def judge_gateway(address: str, ready: UnitReadiness) -> Verdict:
    """The gateway of this host answers."""
    if ready.error:
        return fail(
            f"does not answer on {address} ({ready.error})",
            "Nobody gets an answer.",
            "systemctl status appliance-gateway; journalctl -u appliance-gateway",
            cause="gateway-down",
        )
    return ok(f"answers on {address}{', ready' if ready.status == 200 else ', and is not ready'}")


def judge_engines(ready: UnitReadiness) -> Iterator[Verdict]:
    """Each replica generated a token a moment ago."""
    for name, word in ready.engines.items():
        subject = f"engine {name}"
        if word == "ready":
            yield ok("generated a token", subject)
        elif word == "not loaded":
            yield ok("not loaded; it is started when somebody asks for its model", subject)
        else:
            # Another replica may serve the model meanwhile: then it is worth a look, not an alarm.
            level = warn if ready.status == 200 else fail
            verdict = level(
                word,
                "Another replica serves its model meanwhile."
                if level is warn
                else "Requests for its model get 503.",
                f"systemctl status appliance-engine-{name}; journalctl -u appliance-engine-{name}",
                subject,
            )
            yield verdict if level is warn else fail(word, verdict.meaning, verdict.fix, subject, "engine-down")


def judge_gateways(answers: Mapping[str, UnitReadiness]) -> Iterator[Verdict]:
    """From the VPS: each gateway answers through the tunnel. One of several may be away."""
    away = [address for address, ready in answers.items() if ready.error]
    for address, ready in answers.items():
        if ready.error and len(away) == len(answers):
            yield fail(
                f"does not answer ({ready.error})",
                "Clients get 502 or 504.",
                "appliance doctor --only tunnel; then the same on the GPU host",
                address,
                "gateway-unreachable",
            )
        elif ready.error:
            yield warn(
                f"does not answer ({ready.error})",
                "The other GPU host carries its share.",
                "appliance doctor, on that host",
                address,
            )
        elif ready.status != 200:
            yield fail(
                f"answers, and is not ready: {'; '.join(sorted(set(ready.engines.values())))}",
                "Requests get 503.",
                "appliance doctor, on that host",
                address,
                "engine-down",
            )
        else:
            yield ok("answers through the tunnel, ready", address)
