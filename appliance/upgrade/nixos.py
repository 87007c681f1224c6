"""A NixOS machine as target of the actions: the loader, Nix profiles, a live switch, a reboot."""

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
"""Seconds to wait for the lock of a running switch, because NixOS's program fails at once if it is locked, and
for the switch itself. Their sum is less than the start timeout of the unit, so that time to reboot remains."""

SMOKE_UNIT = "appliance-smoke.service"
VERDICT_UNITS = ("appliance-trial-passed.service", "appliance-trial-failed.service")


class ActionTarget(Protocol):
    """A machine on which actions can be carried out."""

    def act(self, action: Action) -> None:
        """Carry out one action; raises :class:`LoaderError` if it failed."""


@dataclass(frozen=True, slots=True)
class RunningSystem:
    """A system of the machine: a generation, and whether it is that generation's rescue system."""

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
        """Return the system that booted."""
        return self._running_system(self.run / "booted-system")

    def running(self) -> RunningSystem:
        """Return the system that is active now."""
        return self._running_system(self.run / "current-system")

    def generation(self, system: Path) -> Generation:
        """Return the generation of ``system``, with its number if the system profile has it."""
        real = system.resolve()
        numbers = [number for number, link in self._links() if link.resolve() == real]
        return Generation(str(real), max(numbers, default=None))

    def verdict_pending(self) -> bool:
        """Return whether the smoke test runs or its verdict is processed; each has a time limit of its own."""
        argv = ["systemctl", "show", "--property=Id,ActiveState,Job", "--", SMOKE_UNIT, *VERDICT_UNITS]
        try:
            return is_verdict_pending(run(argv, hint=HINT))
        except LoaderError:
            # Without systemd's state no verdict can be expected.
            return False

    def restart_smoke_test(self) -> None:
        """Start the smoke test again."""
        run(["systemctl", "start", "--no-block", SMOKE_UNIT], hint=HINT)

    def _running_system(self, link: Path) -> RunningSystem:
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
        # A profile of its own: its current generation is never collected, and the builder's limit on boot entries
        # counts per profile. Installed hosts have this profile, so its name stays.
        profile = self.profiles / "system-profiles" / "proven"
        if profile.resolve() == Path(generation.system).resolve():
            return
        try:
            profile.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LoaderError(f"{profile.parent} cannot be created ({error.strerror}); {HINT}") from None
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
        # In a unit of its own: the switch may change the calling unit, and must not inherit that unit's sandbox.
        argv = [
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
            # The output is inherited: a pipe that a child keeps open would block beyond the limit.
            code = subprocess.run(argv, stdin=subprocess.DEVNULL, check=False, timeout=SWITCH_S).returncode
            how = f"ended with {code}"
        except subprocess.TimeoutExpired:
            how = f"did not end within {SWITCH_S:g} s"
        except OSError as error:
            how = f"could not be started ({error.strerror})"
        if self.running().generation.same(generation):
            # The known good generation runs; failed units in it (exit code 4) do not cause a reboot.
            return
        print(f"{program} switch {how} and {generation.label} does not run: rebooting", flush=True)
        self._reboot(generation)

    def _wait_for_lock(self) -> None:
        # The verdict may follow a switch that an operator started and that still holds the lock.
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
        # The last guard against a loop: reboot only into the known good generation, and only if another one runs.
        entry = self.loader.entry(Path(generation.system))
        default = self.loader.variable("LoaderEntryDefault")
        oneshot = self.loader.variable("LoaderEntryOneShot")
        if default != entry or oneshot is not None:
            raise LoaderError(f"no reboot: it would lead to {oneshot or default}, not to {entry}; `bootctl list`")
        if self.booted() == RunningSystem(generation) and self.running() == RunningSystem(generation):
            raise LoaderError(f"no reboot: {generation.label} runs already")
        run(["systemctl", "reboot"], hint=HINT)


def is_verdict_pending(shown: str) -> bool:
    """Return whether ``shown``, the output of ``systemctl show``, announces a verdict.

    It lists the smoke test and the units that process its verdict. A smoke test with a waiting job does not count,
    because it may never start.
    """
    blocks = [dict(line.split("=", 1) for line in one.splitlines() if "=" in line) for one in shown.split("\n\n")]
    states = {one.get("Id"): one for one in blocks}

    def is_busy(unit: str, *, count_waiting: bool) -> bool:
        state = states.get(unit, {})
        waits = state.get("Job", "") not in {"", "0"}
        return state.get("ActiveState") in {"activating", "deactivating"} or (count_waiting and waits)

    return is_busy(SMOKE_UNIT, count_waiting=False) or any(
        is_busy(unit, count_waiting=True) for unit in VERDICT_UNITS
    )
