"""``appliance trial``: what units and the boot loader's hook call, and ``status`` for people."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from appliance.errors import LoaderError, StoreError
from appliance.render.terminal import Console
from appliance.smoketest.report import Proof, latest, of_run
from appliance.upgrade.apply import drive
from appliance.upgrade.bootloader import Loader
from appliance.upgrade.nixos import Nixos
from appliance.upgrade.notify import MOTD, Announcer, send_alerts
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
from appliance.upgrade.state_file import FOLDER, Record, replace_file

ARRIVED = Path("/run/appliance-trial/arrived")
"""The system that was last reported to the record since this boot."""

REPORTS = Path("/var/lib/appliance/smoke")


def add_trial(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``trial`` and what belongs to it to the command line."""
    trial = commands.add_parser(
        "trial", help="generations on trial: which is proven, which was rolled back and why"
    )
    actions = trial.add_subparsers(metavar="action", required=True)

    def action(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        one = actions.add_parser(name, help=text)
        one.add_argument("--record", type=Path, default=FOLDER, help="folder of the record (%(default)s)")
        one.set_defaults(run=run)
        return one

    def event(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        one = action(name, run, text)
        one.add_argument("--enforce", action="store_true", help="act; without it, only say what would be done")
        one.add_argument("--rescue", metavar="NAME", help="the specialisation that is the rescue system")
        one.add_argument("--boot", type=Path, default=Path("/boot"), help="the EFI system partition (%(default)s)")
        return one

    action("status", _status, "what is proven, on trial, rolled back").add_argument("--json", action="store_true")
    installed = event("installed", _installed, "(boot loader's hook) a system was installed")
    installed.add_argument("system", type=Path)
    installed.add_argument("--again", action="store_true", help="try it although it was rolled back before")
    event("arrived", _arrived, "(unit) the machine came up, or was switched")
    verdict = event("verdict", _verdict, "(unit) the smoke test ended")
    verdict.add_argument("outcome", choices=("passed", "failed"))
    event("deadline", _deadline, "(timer) there should have been a verdict by now")
    alerts = action("alerts", _alerts, "(unit) give waiting alerts to a program, each on standard input")
    alerts.add_argument("--hook", required=True, metavar="PROGRAM")


def _machine(args: argparse.Namespace) -> Nixos:
    return Nixos(Loader(boot=args.boot), rescue=args.rescue)


def _drive(args: argparse.Namespace, machine: Nixos, event: Event, verdict: str = "") -> TrialState:
    record, announcer = Record(args.record), Announcer(MOTD)

    def announce(state: TrialState) -> None:
        announcer.login(state, verdict)
        if not isinstance(event, Deadline):
            # It mostly comes when all is over; what it does lead to is said by who does it.
            print(state.last, flush=True)

    return drive(event, record=record, machine=machine, enforce=args.enforce, announce=announce)


def _installed(args: argparse.Namespace) -> int:
    machine = _machine(args)
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
    _drive(args, machine, Installed(new, booted, rescue=rescue, again=again))
    return 0


def _arrived(args: argparse.Namespace) -> int:
    machine = _machine(args)
    booted, running = machine.booted(), machine.running()
    known = ARRIVED.read_text() if ARRIVED.exists() else ""
    # Noted first: what cannot be recorded now is not worth a second try at the next switch.
    try:
        replace_file(ARRIVED, ARRIVED.with_suffix(".new"), running.generation.system.encode())
    except OSError as error:
        raise StoreError.unwritable(ARRIVED, error) from None
    if not known:
        _drive(args, machine, Booted(booted.generation, rescue=booted.rescue))
        known = booted.generation.system
    if known != running.generation.system and not running.rescue:
        _drive(args, machine, Switched(running.generation))
    return 0


def _verdict(args: argparse.Namespace) -> int:
    machine = _machine(args)
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
        machine.test_again()
        return 0
    if proof is not None and proof.passed is not passed:
        # It was written, and the test still did not end as it says: stopped at the very end, or out of time.
        proof = None
    reason = "" if passed else _reason(proof, os.environ)
    line = proof.line if proof is not None else f"smoke test: {'PASS' if passed else f'FAIL: {reason}'}"
    print(line, flush=True)
    event = SmokeVerdict(running.generation, passed=passed, reason=reason, booted=booted == running)
    _drive(args, machine, event, verdict=line)
    return 0


def _proof(here: Generation, invocation: str) -> Proof | None:
    """The report of the run ``invocation``, on whatever generation; without one (by hand) the last on ``here``."""
    if not invocation:
        return latest(REPORTS, here)
    mine = latest(REPORTS, here)
    return mine if mine is not None and mine.invocation == invocation else of_run(REPORTS, invocation)


def _reason(proof: Proof | None, environment: Mapping[str, str]) -> str:
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
    machine = _machine(args)
    if machine.verdict_comes():
        print("the smoke test still runs, or what follows from it does; their own time limits end them", flush=True)
        return 0
    _drive(args, machine, Deadline(machine.running().generation))
    return 0


def _alerts(args: argparse.Namespace) -> int:
    print(f"{send_alerts(Record(args.record), args.hook)} alerts sent")
    return 0


def _status(args: argparse.Namespace) -> int:
    state = Record(args.record).load()
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(state), indent=2).decode())
        return 0
    show(state, lambda text: Console(highlight=False).print(text, soft_wrap=True, markup=False))
    return 0


def show(state: TrialState, say: Callable[[str], object]) -> None:
    """The record in a few lines."""
    say(f"proven:      {_name(state.proven)}")
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
