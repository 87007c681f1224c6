"""What decisions are carried out with: the loader, Nix profiles, a switch, a reboot."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from appliance.errors import LoaderError
from appliance.upgrade.bootloader import Loader
from appliance.upgrade.command import run
from appliance.upgrade.state import (
    Action,
    ClearOneshot,
    Generation,
    Keep,
    Reboot,
    ReleaseDefault,
    SetDefault,
    SetOneshot,
    SetProfile,
    SwitchBack,
)

HINT = "is this NixOS?"
SWITCH_UNIT = "appliance-switch-back"

LOCK_WAIT_S, SWITCH_S = 300.0, 480.0
"""Seconds to wait for a switch that is still under way, since NixOS's own refuses at once; and for ours. Together
less than what systemd gives the unit that we run in, or there would be no time left to reboot."""

SMOKE_UNIT = "appliance-smoke.service"
VERDICT_UNITS = ("appliance-trial-passed.service", "appliance-trial-failed.service")


class ActionTarget(Protocol):
    """What a decision needs of a machine."""

    def act(self, action: Action) -> None:
        """Carry out one action; raises :class:`LoaderError` where it did not succeed."""


@dataclass(frozen=True, slots=True)
class RunningSystem:
    """Where the machine is: a generation, and whether it is that generation's rescue system."""

    generation: Generation
    rescue: bool = False


@dataclass(frozen=True, slots=True)
class Nixos:
    """A NixOS machine that boots by systemd-boot."""

    loader: Loader
    rescue: str | None = None
    profiles: Path = Path("/nix/var/nix/profiles")
    run: Path = Path("/run")

    def act(self, action: Action) -> None:
        """Carry out one action."""
        match action:
            case SetDefault(generation, rescue):
                self.loader.set_default(self.loader.entry(self._system(generation, rescue=rescue)))
            case ReleaseDefault(generation):
                self.loader.release_default(self.loader.entry(Path(generation.system)))
            case SetOneshot(generation):
                self.loader.set_oneshot(self.loader.entry(Path(generation.system)))
            case ClearOneshot():
                self.loader.clear_oneshot()
            case Keep(generation):
                self._keep(generation)
            case SetProfile(generation):
                self._set_profile(generation)
            case SwitchBack(generation):
                self._switch_back(generation)
            case Reboot(generation):
                self._reboot(generation)

    def booted(self) -> RunningSystem:
        """Where the machine came up."""
        return self._place(self.run / "booted-system")

    def running(self) -> RunningSystem:
        """What is activated now."""
        return self._place(self.run / "current-system")

    def generation(self, system: Path) -> Generation:
        """The generation of ``system``, with its number where the system profile holds it."""
        real = system.resolve()
        numbers = [number for number, link in self._links() if link.resolve() == real]
        return Generation(str(real), max(numbers, default=None))

    def verdict_comes(self) -> bool:
        """Whether the smoke test runs, or what follows from it is on its way: each has a time limit of its own."""
        words = ["systemctl", "show", "--property=Id,ActiveState,Job", "--", SMOKE_UNIT, *VERDICT_UNITS]
        try:
            return under_way(run(words, hint=HINT))
        except LoaderError:
            # Nobody says that one comes.
            return False

    def test_again(self) -> None:
        """Let the smoke test begin once more."""
        run(["systemctl", "start", "--no-block", SMOKE_UNIT], hint=HINT)

    def _place(self, link: Path) -> RunningSystem:
        if not link.exists():
            raise LoaderError(f"{link} does not exist; is this NixOS?")
        real = link.resolve()
        if self.rescue is not None:
            for number, parent in sorted(self._links(), reverse=True):
                if (parent / "specialisation" / self.rescue).resolve() == real:
                    return RunningSystem(Generation(str(parent.resolve()), number), rescue=True)
        return RunningSystem(self.generation(real))

    def _links(self) -> list[tuple[int, Path]]:
        links = (
            (re.fullmatch(r"system-(\d+)-link", link.name), link) for link in self.profiles.glob("system-*-link")
        )
        return [(int(match[1]), link) for match, link in links if match]

    def _system(self, generation: Generation, *, rescue: bool) -> Path:
        if not rescue:
            return Path(generation.system)
        return (Path(generation.system) / "specialisation" / (self.rescue or "")).resolve()

    def _keep(self, generation: Generation) -> None:
        # A profile of its own: its current generation is never collected, and the builder gives each profile its
        # own share of boot entries.
        profile = self.profiles / "system-profiles" / "proven"
        if profile.resolve() == Path(generation.system).resolve():
            return
        try:
            profile.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LoaderError(f"{profile.parent} cannot be made ({error.strerror}); {HINT}") from None
        run(["nix-env", "--profile", str(profile), "--set", generation.system], hint=HINT)
        run(["nix-env", "--profile", str(profile), "--delete-generations", "+1"], hint=HINT)

    def _set_profile(self, generation: Generation) -> None:
        profile, system = self.profiles / "system", Path(generation.system).resolve()
        if profile.resolve() == system:
            return
        known, number = dict(self._links()), generation.number
        if number in known and known[number].resolve() == system:
            run(["nix-env", "--profile", str(profile), "--switch-generation", str(number)], hint=HINT)
        else:
            run(["nix-env", "--profile", str(profile), "--set", generation.system], hint=HINT)

    def _switch_back(self, generation: Generation) -> None:
        self._wait_for_lock()
        program = f"{generation.system}/bin/switch-to-configuration"
        # In a unit of its own: the switch may change the one that we run in, and wants none of its restrictions.
        words = [
            "systemd-run",
            "--quiet",
            "--collect",
            "--wait",
            "--pipe",
            f"--unit={SWITCH_UNIT}",
            program,
            "switch",
        ]
        try:
            # Its output is ours: through a pipe of our own it would keep us waiting beyond the limit.
            code = subprocess.run(words, stdin=subprocess.DEVNULL, check=False, timeout=SWITCH_S).returncode
            how = f"ended with {code}"
        except subprocess.TimeoutExpired:
            how = f"did not end within {SWITCH_S:g} s"
        except OSError as error:
            how = f"could not be begun ({error.strerror})"
        if self.running().generation.same(generation):
            # Units of the proven generation that fail are its own affair (exit 4): it runs.
            return
        print(f"{program} switch {how} and {generation.label} does not run: rebooting", flush=True)
        self._reboot(generation)

    def _wait_for_lock(self) -> None:
        # Somebody's own switch may still be at it, of which this verdict is the consequence.
        file = self.run / "nixos" / "switch-to-configuration.lock"
        try:
            lock = os.open(file, os.O_RDONLY)
        except OSError:
            return  # no switch since this boot
        try:
            until = time.monotonic() + LOCK_WAIT_S
            while time.monotonic() < until:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    time.sleep(1)
                else:
                    return
        finally:
            os.close(lock)

    def _reboot(self, generation: Generation) -> None:
        # The last guard against a loop: only where the reboot leads to the proven generation, and away from here.
        entry = self.loader.entry(Path(generation.system))
        default = self.loader.variable("LoaderEntryDefault")
        oneshot = self.loader.variable("LoaderEntryOneShot")
        if default != entry or oneshot is not None:
            raise LoaderError(f"no reboot: it would lead to {oneshot or default}, not to {entry}; `bootctl list`")
        if self.booted() == RunningSystem(generation) and self.running() == RunningSystem(generation):
            raise LoaderError(f"no reboot: {generation.label} runs already")
        run(["systemctl", "reboot"], hint=HINT)


def under_way(shown: str) -> bool:
    """Whether ``systemctl show`` of the smoke test and of what follows it says that a verdict comes.

    A smoke test that only waits for its turn does not count, for that may never come.
    """
    blocks = [dict(line.split("=", 1) for line in one.splitlines() if "=" in line) for one in shown.split("\n\n")]
    states = {one.get("Id"): one for one in blocks}

    def stirs(unit: str, *, also_waiting: bool) -> bool:
        state = states.get(unit, {})
        waits = state.get("Job", "") not in {"", "0"}
        return state.get("ActiveState") in {"activating", "deactivating"} or (also_waiting and waits)

    return stirs(SMOKE_UNIT, also_waiting=False) or any(stirs(unit, also_waiting=True) for unit in VERDICT_UNITS)
