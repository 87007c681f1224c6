"""``appliance upgrade``, and ``appliance trial``: what units and the boot loader's hook call, and ``status``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from appliance.cli._args import add_json
from appliance.errors import LoaderError, StoreError, UsageError
from appliance.render.terminal import Console
from appliance.smoketest.report import Proof, latest, of_run
from appliance.upgrade import command
from appliance.upgrade.apply import apply
from appliance.upgrade.bootloader import Loader
from appliance.upgrade.nixos import Nixos
from appliance.upgrade.notify import MOTD, send_alerts, write_motd
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
    alerts = action("alerts", _alerts, "pass each unsent alert to a program on standard input")
    alerts.add_argument("--hook", required=True, metavar="PROGRAM", help="program that sends an alert")


def _add_record(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--record", type=Path, default=FOLDER, metavar="DIR", help="folder of the record (%(default)s)"
    )


def build_command(flake: str, hostname: str) -> list[str]:
    """The build of ``flake``'s system for ``hostname`` unless it names another after ``#``."""
    reference, _, host = flake.partition("#")
    target = f'{reference}#nixosConfigurations."{host or hostname}".config.system.build.toplevel'
    return ["nix", "build", "--no-link", "--print-out-paths", target]


def _upgrade(args: argparse.Namespace) -> int:
    """Build, refuse what was rolled back, install, and say or do what comes next."""
    if os.geteuid() != 0:
        raise UsageError("appliance upgrade changes the system: run it as root (sudo appliance upgrade)")
    system = args.system or _build(args.flake)
    program = system / "bin" / "switch-to-configuration"
    if not program.exists():
        raise UsageError(f"{system} is no NixOS system: {program} does not exist")
    machine = Nixos(Loader())
    new = machine.generation(system)
    failure = StateFile(args.record).load().failure_of(new)
    if failure is not None and not args.again:
        raise UsageError(
            f"{new.label} was rolled back on {failure.at or 'an earlier day'}: {failure.reason}; mend that, or "
            "try it once more with --again"
        )
    if machine.running().generation.same(new):
        print(f"{new.label} runs already; nothing to do")
        return 0
    command.run(["nix-env", "--profile", str(PROFILE), "--set", str(system.resolve())], hint=STAYS)
    # The boot loader's hook in there asks the record; it prints what follows.
    environment = os.environ | ({"APPLIANCE_TRIAL_AGAIN": "1"} if args.again else {})
    command.run([str(program), "boot"], hint=STAYS, shown="all", environment=environment, timeout_s=None)
    if not args.reboot:
        print("`systemctl reboot` tries it; without a reboot nothing changes")
        return 0
    command.run(["systemctl", "reboot"], hint=STAYS, shown="all")
    return 0


def _build(flake: str) -> Path:
    # As long as it takes, before the eyes of who waits for it.
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
            # It mostly comes when all is over; what it does lead to is said by who does it.
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
        # An installer's medium is not a generation of this machine.
        booted = None
    again = args.again or os.environ.get("APPLIANCE_TRIAL_AGAIN") == "1"
    _apply(args, machine, Installed(new, booted, rescue=rescue, again=again))
    return 0


def _arrived(args: argparse.Namespace) -> int:
    machine = this_machine(args)
    booted, running = machine.booted(), machine.running()
    known = ARRIVED.read_text() if ARRIVED.exists() else ""
    # Noted first: what cannot be recorded now is not worth a second try at the next switch.
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
        # It only says why: what follows does not wait for that.
        print(f"error: {error}", flush=True)
        proof = None
    if proof is not None and not running.generation.same(Generation(proof.system)):
        # Its start found the test of what ran before under way, and so was none of its own.
        print(f"{proof.line}; {running.generation.label} was switched to meanwhile and is tested now", flush=True)
        machine.restart_smoke_test()
        return 0
    if proof is not None and proof.passed is not passed:
        # It was written, and the test still did not end as it says: stopped at the very end, or out of time.
        proof = None
    reason = "" if passed else failure_reason(proof, os.environ)
    line = proof.line if proof is not None else f"smoke test: {'PASS' if passed else f'FAIL: {reason}'}"
    print(line, flush=True)
    event = SmokeVerdict(running.generation, passed=passed, reason=reason, booted=booted == running)
    _apply(args, machine, event, verdict=line)
    return 0


def _proof(here: Generation, invocation: str) -> Proof | None:
    """The report of the run ``invocation``, on whatever generation; without one (by hand) the last on ``here``."""
    if not invocation:
        return latest(REPORTS, here)
    mine = latest(REPORTS, here)
    return mine if mine is not None and mine.invocation == invocation else of_run(REPORTS, invocation)


def failure_reason(proof: Proof | None, environment: Mapping[str, str]) -> str:
    """Why it failed: the report's first failed check, or how systemd saw the unit end."""
    if proof is not None and proof.failed:
        return proof.failed[0].sentence
    # systemd.exec(5), MONITOR_*: what OnFailure= units are told of the unit that failed.
    result = environment.get("MONITOR_SERVICE_RESULT", "unknown")
    how = {"timeout": "it did not end in time", "resources": "it could not be started"}.get(result)
    status = environment.get("MONITOR_EXIT_STATUS", "")
    ended = f"it ended without a report ({result}{f', {status}' if status else ''})"
    return how or f"{ended}: journalctl -u appliance-smoke says why"


def _deadline(args: argparse.Namespace) -> int:
    machine = this_machine(args)
    if machine.verdict_pending():
        print("the smoke test still runs, or what follows from it does; their own time limits end them", flush=True)
        return 0
    _apply(args, machine, Deadline(machine.running().generation))
    return 0


def _alerts(args: argparse.Namespace) -> int:
    print(f"{send_alerts(StateFile(args.record), args.hook)} alerts sent")
    return 0


def _status(args: argparse.Namespace) -> int:
    state = StateFile(args.record).load()
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(state), indent=2).decode())
        return 0
    show(state, lambda text: Console(highlight=False).print(text, soft_wrap=True, markup=False))
    return 0


def show(state: TrialState, say: Callable[[str], object]) -> None:
    """The record in a few lines."""
    say(f"proven:      {_name(state.known_good)}")
    if state.trial is not None:
        say(f"on trial:    {_name(state.trial.candidate)}, {state.trial.phase}")
    if state.held is not None:
        rescue = "the rescue system of " if state.held.rescue else ""
        say(f"boots first: {rescue}{_name(state.held.generation)}")
    for one in reversed(state.rolled_back):
        say(f"rolled back: {_name(one.generation)} on {one.at or 'an earlier day'}: {one.reason}")
    if state.last:
        say(f"last:        {state.last}")
    if state.unsent:
        say(f"alerts that wait to be sent: {len(state.unsent)}")


def _name(generation: Generation | None) -> str:
    if generation is None:
        return "none yet"
    return f"{generation.label} ({generation.system})" if generation.number is not None else generation.system
