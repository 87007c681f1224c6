"""What one machine goes through, in an order and with details that a seed decides."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.boot.image import VARIANTS
from tests.boot.machine import BootError, VirtualMachine

ALWAYS = ("good", "fails", "hangs", "panics")
EACH = 2
"""So many of the other faults come with each seed, in turn: three seeds see them all."""

SYSTEMS = {variant.name: variant.system for variant in VARIANTS}
NIX = "/nix/var/nix/profiles"
APPLIANCE = "/nix/store/eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee-appliance.nix/bin/appliance.nix"


@dataclass
class Story:
    """A machine and what is known of it: which system is proven, how often it has booted."""

    machine: VirtualMachine
    proven: str = "good-1"
    boots: int = 0

    # What is looked at.

    def state(self) -> dict[str, Any]:
        """The record."""
        record: dict[str, Any] = json.loads(self.machine.run(f"{APPLIANCE} trial status --json"))
        return record

    def default(self) -> str:
        """The system that boots by itself, as the firmware's variable and the entry's own words have it."""
        variable = "/sys/firmware/efi/efivars/LoaderEntryDefault-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
        entry = self.machine.run(f"cat {variable} | tail -c +5 | tr -d '\\000'").strip()
        options = self.machine.run(f"grep ^options /boot/loader/entries/{entry}")
        return options.split("init=")[1].split("/init")[0]

    def came_up(self, *names: str) -> str:
        """The next boot is that of one of ``names``: which."""
        found = self.machine.wait_for(r"GUEST boots 0*-nixos-system-([a-z0-9-]+)\s")[1]
        self.boots += 1
        expect(found in names, f"{' or '.join(names)} had to boot, {found} did")
        return found

    def holds(self) -> None:
        """What has to be so at any time: the proven system runs, and boots by itself."""
        running = self.machine.run("readlink /run/current-system").strip()
        expect(running == SYSTEMS[self.proven], f"{running} runs, not {self.proven}")
        expect(self.default() == SYSTEMS[self.proven], f"{self.default()} boots by itself, not {self.proven}")
        expect(self.state()["proven"]["system"] == SYSTEMS[self.proven], "the record says otherwise")

    def rolled_back(self, name: str, reason: str) -> None:
        """``name`` failed: the record says why, a person reads it at login, the alert was sent, it stays out."""
        self.alerted(reason)
        self.holds()
        kept = [one for one in self.state()["rolled_back"] if one["generation"]["system"] == SYSTEMS[name]]
        expect(len(kept) == 1 and reason in kept[0]["reason"], f"the record has {kept}")
        login = self.machine.run("cat /run/motd.d/appliance")
        expect("rolled back" in login and reason in login, f"at login: {login}")
        before = self.machine.run("ls /boot/loader/entries").split()
        code, said = self.machine.try_run(f"{APPLIANCE} upgrade --system {SYSTEMS[name]} --reboot")
        expect(code == 2 and reason in said, f"tried again by itself: {code} {said}")
        expect(self.machine.run("ls /boot/loader/entries").split() == before, "something was installed")
        self.machine.note(f"{name} is not tried again: {said.strip()[:150]}")

    def alerted(self, reason: str) -> None:
        """The owner's program was given the reason."""
        sent = f"journalctl -b -u appliance-trial-alerts | grep 'GUEST alert: .*rolled back.*{reason}'"
        said = self.machine.run(f"until {sent}; do sleep 0.5; done")
        self.machine.note(said.strip().splitlines()[-1].partition("GUEST ")[2])

    # What happens.

    def begin(self) -> None:
        """The first boot of all: nothing is proven yet, and its smoke test makes it so."""
        self.machine.power_on()
        self.came_up("good-1")
        self.machine.wait_for("smoke test of generation 1: PASS")
        self.machine.wait_for("generation 1 passed its smoke test")
        self.settled()
        self.holds()

    def settled(self) -> None:
        """Everything that this boot starts has ended."""
        # Polled, for `--wait` has been seen to miss the end that it waits for.
        self.machine.run("until systemctl is-system-running | grep -Eq 'running|degraded'; do sleep 0.2; done")
        self.machine.run('while [ -n "$(systemctl list-jobs --no-legend)" ]; do sleep 0.2; done')

    def try_boot(self, name: str) -> None:
        """``appliance upgrade --reboot`` to ``name``, up to its first sign of life."""
        self.machine.note(f"-- upgrade to {name}")
        self.machine.tell(f"{APPLIANCE} upgrade --system {SYSTEMS[name]} --reboot")
        self.machine.wait_for("is tried at the next boot")
        self.came_up(name)

    def blessed(self, name: str) -> None:
        """A good system passes its trial boot and becomes the default."""
        self.try_boot(name)
        self.machine.wait_for("smoke test of generation [0-9]+: PASS")
        self.machine.wait_for("passed: the new default")
        self.proven = name
        self.settled()
        self.holds()
        listed = self.machine.run("bootctl list --no-pager | grep -aEo 'id: nixos[^ ]*'")
        expect("specialisation-rescue" in listed.split()[-1], f"the rescue entry does not stand last: {listed}")

    def fails(self) -> None:
        """The smoke test finds it too slow."""
        self.try_boot("slow")
        self.machine.wait_for("smoke test of generation [0-9]+: FAIL")
        self.machine.wait_for("rebooting")
        self.came_up(self.proven)
        self.rolled_back("slow", "load TTFT p99")

    def hangs(self) -> None:
        """Nothing runs any more; the hardware watchdog resets it."""
        self.try_boot("hangs")
        self.machine.wait_for("GUEST hangs")
        self.came_up(self.proven)
        self.rolled_back("hangs", "stopped before its smoke test ended")

    def panics(self) -> None:
        """The kernel panics while the trial runs."""
        self.try_boot("panics")
        self.machine.wait_for("Kernel panic")
        self.came_up(self.proven)
        self.rolled_back("panics", "stopped before its smoke test ended")

    def panics_early(self) -> None:
        """The kernel panics before systemd starts."""
        self.try_boot("panics-early")
        self.machine.wait_for("Kernel panic")
        self.came_up(self.proven)
        self.rolled_back("panics-early", "did not boot")

    def stalls(self) -> None:
        """The smoke test never starts; the deadline ends that."""
        self.try_boot("stalls")
        self.machine.wait_for("no verdict in time", 500)
        self.machine.wait_for("rebooting")
        self.came_up(self.proven)
        self.rolled_back("stalls", "no verdict in time")

    def loses_power(self, rng: random.Random) -> None:
        """The power goes somewhere in the trial."""
        verdict = "smoke test of generation [0-9]+: PASS"
        sign = rng.choice([None, "is on trial", verdict])
        self.try_boot("cut")
        if sign is not None:
            self.machine.wait_for(sign)
        self.machine.power_cut()
        self.machine.power_on()
        if sign != verdict:
            self.came_up(self.proven)
            self.rolled_back("cut", "did not boot" if sign is None else "stopped before its smoke test ended")
            return
        # The verdict is recorded, then acted upon: the power may have gone before, between or after the two.
        came = self.came_up(self.proven, "cut")
        self.settled()
        if self.state()["proven"]["system"] != SYSTEMS["cut"]:
            expect(came == self.proven, "what nothing calls proven is the default")
            self.rolled_back("cut", "stopped before its smoke test ended")
            return
        if came != "cut":
            self.machine.note(
                f"its pass was recorded, the default not yet set: {came} runs, the next boot is its own"
            )
            said = self.state()["last"]
            expect("is the known good generation and boots next" in said, f"at login: {said}")
            self.machine.tell("systemctl reboot")
            self.came_up("cut")
            self.settled()
        self.proven = "cut"
        self.holds()

    def switched_live(self) -> None:
        """A live switch to a system that fails goes back without a reboot."""
        self.machine.note("-- live switch to slow-live")
        boots = self.machine.run("cat /proc/sys/kernel/random/boot_id")
        system = SYSTEMS["slow-live"]
        self.machine.run(f"nix-env --profile {NIX}/system --set {system}")
        self.machine.run(f"{system}/bin/switch-to-configuration switch")
        self.machine.wait_for("smoke test of generation [0-9]+: FAIL")
        self.machine.wait_for("switching back")
        self.alerted("load TTFT p99")
        # What runs again was switched to as well, so it is proven as well.
        self.machine.wait_for("smoke test of generation [0-9]+: PASS")
        self.settled()
        self.holds()
        expect(self.machine.run("cat /proc/sys/kernel/random/boot_id") == boots, "it was rebooted")

    def bears_outages(self) -> None:
        """At the proven system neither a full disk nor a dead network leads to a reboot, now or after one."""
        self.machine.note("-- full disk, no network")
        # `|| true`: it ends when the disk is full, which is what it is for.
        self.machine.run("dd if=/dev/zero of=/var/filler bs=1M 2>/dev/null || true; sync; ip link set lo down")
        self.machine.tell("systemctl start appliance-smoke.service")
        self.machine.wait_for("FAIL|cannot be written|failed its smoke test")
        self.settled()
        self.machine.tell("systemctl reboot")
        self.came_up(self.proven)
        self.machine.run("ip link set lo down")
        self.machine.tell("systemctl start appliance-smoke.service")
        self.machine.wait_for("FAIL|cannot be written|failed its smoke test")
        self.settled()
        boots = self.machine.console_file.read_bytes().count(b"GUEST boots")
        expect(boots == self.boots, f"{boots} boots, {self.boots} were meant")
        self.machine.run("rm /var/filler; ip link set lo up")
        self.machine.note(f"full disk and no network: {boots} boots so far, as many as were asked for")
        self.holds()


def expect(holds: bool, otherwise: str) -> None:
    """Raise :class:`BootError` with ``otherwise`` unless it ``holds``."""
    if not holds:
        raise BootError(otherwise)


def tell_all(machine: VirtualMachine, *, faults: tuple[str, ...] = ()) -> Story:
    """The whole story of a seed: :data:`ALWAYS` and :data:`EACH` of the others in turn; or those of ``faults``."""
    rng, story = random.Random(machine.seed), Story(machine)
    steps: dict[str, Callable[[], None]] = {
        "good": lambda: story.blessed("good-2"),
        "fails": story.fails,
        "hangs": story.hangs,
        "panics": story.panics,
        "loses power": lambda: story.loses_power(rng),
        "switched live": story.switched_live,
        "panics early": story.panics_early,
        "outages": story.bears_outages,
        "stalls": story.stalls,
    }
    others = [name for name in steps if name not in ALWAYS]
    turn = [others[(EACH * machine.seed + place) % len(others)] for place in range(EACH)]
    chosen = list(faults) or [*ALWAYS, *turn]
    if unknown := set(chosen) - steps.keys():
        raise BootError(f"there is no {', '.join(sorted(unknown))}; there is {', '.join(steps)}")
    # What is proven changes somewhere between the faults.
    rng.shuffle(chosen)
    machine.note(f"seed {machine.seed}: {', '.join(chosen)}")
    story.begin()
    for name in chosen:
        steps[name]()
    booted = machine.console_file.read_bytes().count(b"GUEST boots")
    expect(booted == story.boots, f"{booted} boots, {story.boots} were meant")
    return story
