"""``appliance upgrade``, and ``appliance trial``: what units and the boot loader's hook call, and ``status``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from appliance.cli._args import add_json
from appliance.errors import LoaderError, StoreError, UsageError
from appliance.notices.outbox import Outbox
from appliance.render.terminal import Console
from appliance.smoketest.report import Proof, latest, of_run
from appliance.upgrade import command
from appliance.upgrade.apply import apply
from appliance.upgrade.bootloader import Loader
from appliance.upgrade.nixos import Nixos
from appliance.upgrade.notify import MOTD, put_alerts, send_alerts, write_motd
from appliance.upgrade.state import (
    Booted,
    Deadline,
    Event,
    Generation,
    Installed,
    SmokeVerdict,
    Switched,
    TrialState,
)
from appliance.upgrade.state_file import FOLDER, StateFile, replace_file

ARRIVED = Path("/run/appliance-trial/arrived")
"""The system that was last recorded since this boot."""

REPORTS = Path("/var/lib/appliance/smoke")
PROFILE = Path("/nix/var/nix/profiles/system")
FLAKE = "/etc/nixos"
STAYS = "nothing was rebooted, the machine keeps its running system"


def add_upgrade(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``appliance upgrade``."""
    parser.add_argument(
        "--flake", default=FLAKE, metavar="REF", help="flake, and #host if not this one (%(default)s)"
    )
    parser.add_argument("--system", type=Path, metavar="PATH", help="install this built system instead")
    parser.add_argument("--reboot", action="store_true", help="reboot into it now")
    parser.add_argument("--again", action="store_true", help="try it although it was rolled back before")
    _add_record(parser)
    parser.set_defaults(run=_upgrade)


def add_trial(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``appliance trial``."""
    parser.epilog = "People need `status` only: units and the boot loader's hook call the other actions."
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    def action(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        one = actions.add_parser(name, help=text)
        _add_record(one)
        one.set_defaults(run=run)
        return one

    def event(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        one = action(name, run, text)
        one.add_argument("--enforce", action="store_true", help="act; without it, only print the decision")
        one.add_argument("--rescue", metavar="NAME", help="specialisation that is the rescue system")
        one.add_argument(
            "--boot", type=Path, default=Path("/boot"), metavar="DIR", help="EFI system partition (%(default)s)"
        )
        return one

    add_json(action("status", _status, "show which generations are known good, on trial or rolled back"))
    installed = event("installed", _installed, "record that a system was installed")
    installed.add_argument("system", type=Path, metavar="PATH", help="the system in the Nix store")
    installed.add_argument("--again", action="store_true", help="try it although it was rolled back before")
    event("arrived", _arrived, "record that the machine booted or was switched")
    verdict = event("verdict", _verdict, "record the result of the smoke test")
    verdict.add_argument("outcome", choices=("passed", "failed"), help="result of the smoke test's unit")
    event("deadline", _deadline, "roll back if the smoke test has given no result by now")
    alerts = action("alerts", _alerts, "pass each unsent alert to a program, or put it into the outbox")
    target = alerts.add_mutually_exclusive_group(required=True)
    target.add_argument("--hook", metavar="PROGRAM", help="program that sends the alert on its standard input")
    target.add_argument("--outbox", type=Path, metavar="DIR", help="folder of the notices")


def _add_record(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--record", type=Path, default=FOLDER, metavar="DIR", help="folder of the record (%(default)s)"
    )


def build_command(flake: str, hostname: str) -> list[str]:
    """Return the command that builds the system of ``flake``, for ``hostname`` or the host after its ``#``."""
    reference, _, host = flake.partition("#")
    target = f'{reference}#nixosConfigurations."{host or hostname}".config.system.build.toplevel'
    return ["nix", "build", "--no-link", "--print-out-paths", target]


def _upgrade(args: argparse.Namespace) -> int:
    """Build, reject a generation that was rolled back, install, and reboot or print the next step."""
    if os.geteuid() != 0:
        raise UsageError("appliance upgrade changes the system: run it as root (sudo appliance upgrade)")
    system = args.system or _build(args.flake)
    program = system / "bin" / "switch-to-configuration"
    if not program.exists():
        raise UsageError(f"{system} is not a NixOS system: {program} does not exist")
    machine = Nixos(Loader())
    new = machine.generation(system)
    failure = StateFile(args.record).load().failure_of(new)
    if failure is not None and not args.again:
        raise UsageError(
            f"{new.label} was rolled back on {failure.at or 'an earlier day'}: {failure.reason}; fix that, or "
            "try it once more with --again"
        )
    if machine.running().generation.same(new):
        print(f"{new.label} runs already; nothing to do")
        return 0
    command.run(["nix-env", "--profile", str(PROFILE), "--set", str(system.resolve())], hint=STAYS)
    # The boot loader's hook of that system reads the record and prints the result.
    environment = os.environ | ({"APPLIANCE_TRIAL_AGAIN": "1"} if args.again else {})
    command.run([str(program), "boot"], hint=STAYS, shown="all", environment=environment, timeout_s=None)
    if not args.reboot:
        print("`systemctl reboot` boots it on trial; without a reboot nothing changes")
        return 0
    command.run(["systemctl", "reboot"], hint=STAYS, shown="all")
    return 0


def _build(flake: str) -> Path:
    # Without a timeout, because the user watches it.
    argv = build_command(flake, os.uname().nodename)
    return Path(command.run(argv, hint="nothing was installed", shown="errors", timeout_s=None))


def this_machine(args: argparse.Namespace) -> Nixos:
    """Return the system that ``args`` are about."""
    return Nixos(Loader(boot=args.boot), rescue=args.rescue)


def _apply(args: argparse.Namespace, machine: Nixos, event: Event, verdict: str = "") -> TrialState:
    state_file = StateFile(args.record)

    def notify(state: TrialState) -> None:
        write_motd(state, verdict, file=MOTD)
        if not isinstance(event, Deadline):
            # The deadline mostly passes after the decision; the code that acts on it logs its actions.
            print(state.last, flush=True)

    return apply(event, state_file=state_file, machine=machine, enforce=args.enforce, notify=notify)


def _installed(args: argparse.Namespace) -> int:
    machine = this_machine(args)
    new = machine.generation(args.system)
    rescue = args.rescue is not None and (args.system / "specialisation" / args.rescue).exists()
    booted: Generation | None
    try:
        place = machine.booted()
        booted = None if place.rescue else place.generation
    except LoaderError:
        # An installation medium is not a generation of this machine.
        booted = None
    again = args.again or os.environ.get("APPLIANCE_TRIAL_AGAIN") == "1"
    _apply(args, machine, Installed(new, booted, rescue=rescue, again=again))
    return 0


def _arrived(args: argparse.Namespace) -> int:
    machine = this_machine(args)
    booted, running = machine.booted(), machine.running()
    known = ARRIVED.read_text() if ARRIVED.exists() else ""
    # Write this first: an event that cannot be recorded now must not be repeated at the next switch.
    try:
        replace_file(ARRIVED, ARRIVED.with_suffix(".new"), running.generation.system.encode())
    except OSError as error:
        raise StoreError.unwritable(ARRIVED, error) from None
    if not known:
        _apply(args, machine, Booted(booted.generation, rescue=booted.rescue))
        known = booted.generation.system
    if known != running.generation.system and not running.rescue:
        _apply(args, machine, Switched(running.generation))
    return 0


def _verdict(args: argparse.Namespace) -> int:
    machine = this_machine(args)
    running, booted = machine.running(), machine.booted()
    passed = args.outcome == "passed"
    try:
        proof = _proof(running.generation, os.environ.get("MONITOR_INVOCATION_ID", ""))
    except StoreError as error:
        # The report only gives the reason: the verdict does not need it.
        print(f"error: {error}", flush=True)
        proof = None
    if proof is not None and not running.generation.same(Generation(proof.system)):
        # The unit did not start its own test, because the test of the earlier generation was still running.
        print(f"{proof.line}; {running.generation.label} was switched to meanwhile and is tested now", flush=True)
        machine.restart_smoke_test()
        return 0
    if proof is not None and proof.passed is not passed:
        # The report contradicts the unit: the test was stopped at the very end, or timed out.
        proof = None
    reason = "" if passed else failure_reason(proof, os.environ)
    line = proof.line if proof is not None else f"smoke test: {'PASS' if passed else f'FAIL: {reason}'}"
    print(line, flush=True)
    event = SmokeVerdict(running.generation, passed=passed, reason=reason, booted=booted == running)
    _apply(args, machine, event, verdict=line)
    return 0


def _proof(here: Generation, invocation: str) -> Proof | None:
    """Return the report of the run ``invocation``, on any generation; without it the last one on ``here``."""
    if not invocation:
        return latest(REPORTS, here)
    mine = latest(REPORTS, here)
    return mine if mine is not None and mine.invocation == invocation else of_run(REPORTS, invocation)


def failure_reason(proof: Proof | None, environment: Mapping[str, str]) -> str:
    """Return why the test failed: the report's first failed check, or how its unit ended."""
    if proof is not None and proof.failed:
        return proof.failed[0].sentence
    # systemd.exec(5), MONITOR_*: systemd passes the result of the failed unit to OnFailure= units.
    result = environment.get("MONITOR_SERVICE_RESULT", "unknown")
    how = {"timeout": "it did not end in time", "resources": "it could not be started"}.get(result)
    status = environment.get("MONITOR_EXIT_STATUS", "")
    ended = f"it ended without a report ({result}{f', {status}' if status else ''})"
    return how or f"{ended}: journalctl -u appliance-smoke shows why"


def _deadline(args: argparse.Namespace) -> int:
    machine = this_machine(args)
    if machine.verdict_pending():
        print("the smoke test or its verdict still runs; their own timeouts end them", flush=True)
        return 0
    _apply(args, machine, Deadline(machine.running().generation))
    return 0


def _alerts(args: argparse.Namespace) -> int:
    state_file = StateFile(args.record)
    if args.outbox is not None:
        print(f"{put_alerts(state_file, Outbox(args.outbox))} alerts are in the outbox")
    else:
        print(f"{send_alerts(state_file, args.hook)} alerts sent")
    return 0


def _status(args: argparse.Namespace) -> int:
    state = StateFile(args.record).load()
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(state), indent=2).decode())
        return 0
    show(state, lambda text: Console(highlight=False).print(text, soft_wrap=True, markup=False))
    return 0


def show(state: TrialState, write: Callable[[str], object]) -> None:
    """Print the record in a few lines."""
    write(f"known good:  {_name(state.known_good)}")
    if state.trial is not None:
        write(f"on trial:    {_name(state.trial.candidate)}, {state.trial.phase}")
    if state.held is not None:
        rescue = "the rescue system of " if state.held.rescue else ""
        write(f"boots first: {rescue}{_name(state.held.generation)}")
    for one in reversed(state.rolled_back):
        write(f"rolled back: {_name(one.generation)} on {one.at or 'an earlier day'}: {one.reason}")
    if state.last:
        write(f"last:        {state.last}")
    if state.unsent:
        write(f"unsent alerts: {len(state.unsent)}")


def _name(generation: Generation | None) -> str:
    if generation is None:
        return "none yet"
    return f"{generation.label} ({generation.system})" if generation.number is not None else generation.system
