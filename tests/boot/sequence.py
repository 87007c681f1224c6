"""The sequence of boots of one machine; a seed decides the order and some details."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.boot.image import CARDS, FROZEN, PROGRAM, UPS, VARIANTS, WATCH
from tests.boot.machine import BootError, VirtualMachine

ALWAYS = ("good", "fails", "hangs", "panics")
EACH = 2
"""Number of the other steps of each seed, in turn: three seeds run all of them."""
OPERATION = ("power stays", "shutdown hangs", "cards hang")
"""Steps of the operation of a known good system: each seed ends with one, in turn."""

SYSTEMS = {variant.name: variant.system for variant in VARIANTS}
NIX = "/nix/var/nix/profiles"


@dataclass
class BootSequence:
    """A machine with its known good system and the number of its boots."""

    machine: VirtualMachine
    known_good: str = "good-1"
    boots: int = 0

    # Observations.

    def state(self) -> dict[str, Any]:
        """Return the trial record."""
        record: dict[str, Any] = json.loads(self.machine.run(f"{PROGRAM} trial status --json"))
        return record

    def default(self) -> str:
        """Return the system that boots by default, from the firmware's variable and its boot entry."""
        variable = "/sys/firmware/efi/efivars/LoaderEntryDefault-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
        entry = self.machine.run(f"cat {variable} | tail -c +5 | tr -d '\\000'").strip()
        options = self.machine.run(f"grep ^options /boot/loader/entries/{entry}")
        return options.split("init=")[1].split("/init")[0]

    def wait_for_boot(self, *names: str) -> str:
        """Wait for the next boot, which must be of one of ``names``; return the name."""
        found = self.machine.wait_for(r"GUEST boots 0*-nixos-system-([a-z0-9-]+)\s")[1]
        self.boots += 1
        expect(found in names, f"{' or '.join(names)} must boot, but {found} did")
        return found

    def expect_known_good(self) -> None:
        """Check that the known good system runs and boots by default."""
        running = self.machine.run("readlink /run/current-system").strip()
        expect(running == SYSTEMS[self.known_good], f"{running} runs, not {self.known_good}")
        expect(
            self.default() == SYSTEMS[self.known_good], f"{self.default()} boots by default, not {self.known_good}"
        )
        expect(self.state()["proven"]["system"] == SYSTEMS[self.known_good], "the record has another system")

    def expect_rolled_back(self, name: str, reason: str) -> None:
        """Check the state after a failure of ``name``: record, text at login, alert, and no further attempt."""
        self.expect_alert(reason)
        self.expect_known_good()
        kept = [one for one in self.state()["rolled_back"] if one["generation"]["system"] == SYSTEMS[name]]
        expect(len(kept) == 1 and reason in kept[0]["reason"], f"the record has {kept}")
        login = self.machine.run("cat /run/motd.d/appliance")
        expect("rolled back" in login and reason in login, f"at login: {login}")
        before = self.machine.run("ls /boot/loader/entries").split()
        code, output = self.machine.try_run(f"{PROGRAM} upgrade --system {SYSTEMS[name]} --reboot")
        expect(code == 2 and reason in output, f"tried again automatically: {code} {output}")
        expect(self.machine.run("ls /boot/loader/entries").split() == before, "something was installed")
        self.machine.note(f"{name} is not tried again: {output.strip()[:150]}")

    def expect_alert(self, reason: str) -> None:
        """Check that the program of the owner got the reason."""
        sent = f"journalctl -b -u appliance-trial-alerts | grep 'GUEST alert: .*rolled back.*{reason}'"
        line = self.machine.run(f"until {sent}; do sleep 0.5; done")
        self.machine.note(line.strip().splitlines()[-1].partition("GUEST ")[2])

    # Steps.

    def boot_first(self) -> None:
        """Boot for the first time: no system is known good yet, and the smoke test passes."""
        self.machine.power_on()
        self.wait_for_boot("good-1")
        self.machine.wait_for("smoke test of generation 1: PASS")
        self.machine.wait_for("generation 1 passed its smoke test")
        self.wait_until_idle()
        self.expect_known_good()

    def wait_until_idle(self) -> None:
        """Wait until all jobs of this boot have ended."""
        # Polled, because `--wait` sometimes misses the end.
        self.machine.run("until systemctl is-system-running | grep -Eq 'running|degraded'; do sleep 0.2; done")
        self.machine.run('while [ -n "$(systemctl list-jobs --no-legend)" ]; do sleep 0.2; done')

    def try_boot(self, name: str) -> None:
        """Run ``appliance upgrade --reboot`` to ``name``, up to the start of its boot."""
        self.machine.note(f"-- upgrade to {name}")
        self.machine.start(f"{PROGRAM} upgrade --system {SYSTEMS[name]} --reboot")
        self.machine.wait_for("is tried at the next boot")
        self.wait_for_boot(name)

    def passes(self, name: str) -> None:
        """Upgrade to a good system, which passes its trial boot and becomes the default."""
        self.try_boot(name)
        self.machine.wait_for("smoke test of generation [0-9]+: PASS")
        self.machine.wait_for("passed: the new default")
        self.known_good = name
        self.wait_until_idle()
        self.expect_known_good()
        listed = self.machine.run("bootctl list --no-pager | grep -aEo 'id: nixos[^ ]*'")
        expect("specialisation-rescue" in listed.split()[-1], f"the rescue entry is not the last: {listed}")

    def fails(self) -> None:
        """Upgrade to a system that is too slow for the smoke test."""
        self.try_boot("slow")
        self.machine.wait_for("smoke test of generation [0-9]+: FAIL")
        self.machine.wait_for("rebooting")
        self.wait_for_boot(self.known_good)
        self.expect_rolled_back("slow", "load TTFT p99")

    def hangs(self) -> None:
        """Upgrade to a system that hangs; the hardware watchdog resets it."""
        self.try_boot("hangs")
        self.machine.wait_for("GUEST hangs")
        self.wait_for_boot(self.known_good)
        self.expect_rolled_back("hangs", "stopped before its smoke test ended")

    def panics(self) -> None:
        """Upgrade to a system whose kernel panics during the trial."""
        self.try_boot("panics")
        self.machine.wait_for("Kernel panic")
        self.wait_for_boot(self.known_good)
        self.expect_rolled_back("panics", "stopped before its smoke test ended")

    def panics_early(self) -> None:
        """Upgrade to a system whose kernel panics before systemd starts."""
        self.try_boot("panics-early")
        self.machine.wait_for("Kernel panic")
        self.wait_for_boot(self.known_good)
        self.expect_rolled_back("panics-early", "did not boot")

    def stalls(self) -> None:
        """Upgrade to a system whose smoke test never starts; the deadline ends the trial."""
        self.try_boot("stalls")
        self.machine.wait_for("no verdict in time", 500)
        self.machine.wait_for("rebooting")
        self.wait_for_boot(self.known_good)
        self.expect_rolled_back("stalls", "no verdict in time")

    def loses_power(self, rng: random.Random) -> None:
        """Cut the power at a random moment of the trial."""
        verdict = "smoke test of generation [0-9]+: PASS"
        sign = rng.choice([None, "is on trial", verdict])
        self.try_boot("cut")
        if sign is not None:
            self.machine.wait_for(sign)
        self.machine.power_cut()
        self.machine.power_on()
        if sign != verdict:
            self.wait_for_boot(self.known_good)
            self.expect_rolled_back(
                "cut", "did not boot" if sign is None else "stopped before its smoke test ended"
            )
            return
        # The trial records the verdict, then acts on it; the power cut is before, between or after the two.
        booted = self.wait_for_boot(self.known_good, "cut")
        self.wait_until_idle()
        if self.state()["proven"]["system"] != SYSTEMS["cut"]:
            expect(booted == self.known_good, "the default is not the known good system")
            self.expect_rolled_back("cut", "stopped before its smoke test ended")
            return
        if booted != "cut":
            self.machine.note(
                f"its pass was recorded, the default not yet set: {booted} runs, the next boot is of cut"
            )
            last = self.state()["last"]
            expect("is the known good generation and boots next" in last, f"at login: {last}")
            self.machine.start("systemctl reboot")
            self.wait_for_boot("cut")
            self.wait_until_idle()
        self.known_good = "cut"
        self.expect_known_good()

    def fails_live(self) -> None:
        """Switch live to a failing system; the machine switches back without a reboot."""
        self.machine.note("-- live switch to slow-live")
        boots = self.machine.run("cat /proc/sys/kernel/random/boot_id")
        system = SYSTEMS["slow-live"]
        self.machine.run(f"nix-env --profile {NIX}/system --set {system}")
        self.machine.run(f"{system}/bin/switch-to-configuration switch")
        self.machine.wait_for("smoke test of generation [0-9]+: FAIL")
        self.machine.wait_for("switching back")
        self.expect_alert("load TTFT p99")
        # The switch back also runs the smoke test.
        self.machine.wait_for("smoke test of generation [0-9]+: PASS")
        self.wait_until_idle()
        self.expect_known_good()
        expect(self.machine.run("cat /proc/sys/kernel/random/boot_id") == boots, "it was rebooted")

    def survives_outages(self) -> None:
        """Fill the disk and cut the network of the known good system: neither causes a reboot."""
        self.machine.note("-- full disk, no network")
        # `|| true`: dd fails when the disk is full, as intended.
        self.machine.run("dd if=/dev/zero of=/var/filler bs=1M 2>/dev/null || true; sync; ip link set lo down")
        self.machine.start("systemctl start appliance-smoke.service")
        self.machine.wait_for("FAIL|cannot be written|failed its smoke test")
        self.wait_until_idle()
        self.machine.start("systemctl reboot")
        self.wait_for_boot(self.known_good)
        self.machine.run("ip link set lo down")
        self.machine.start("systemctl start appliance-smoke.service")
        self.machine.wait_for("FAIL|cannot be written|failed its smoke test")
        self.wait_until_idle()
        boots = self.machine.console_file.read_bytes().count(b"GUEST boots")
        expect(boots == self.boots, f"{boots} boots, {self.boots} were expected")
        self.machine.run("rm /var/filler; ip link set lo up")
        self.machine.note(f"full disk and no network: {boots} boots so far, as many as expected")
        self.expect_known_good()

    # Operation: steps of the known good system.

    def power_stays(self) -> None:
        """End the battery of a UPS that cuts nothing: the host reboots by itself instead of staying off."""
        self.machine.note("-- the reserve of the battery, and the power stays")
        self.keep_journal()
        self.set_ups("OL", 100)
        nut = "appliance-power-password upsd upsdrv upsmon"
        self.machine.run(f"systemctl start {nut}")
        self.machine.run('until [ "$(upsc ups@127.0.0.1 ups.status)" = OL ]; do sleep 0.2; done')
        self.machine.run("systemctl start appliance-power")
        self.set_ups("OB DISCHRG", 10)
        self.machine.has_shell = False
        began = time.monotonic()
        reason = self.machine.wait_for_end(480)
        expect(reason == "guest-reset", f"the host ended by {reason}")
        self.machine.note(f"reset by itself {time.monotonic() - began:.0f} s after the cut of mains")
        self.machine.power_on()
        self.wait_for_boot(self.known_good)
        for unit, line in (
            ("appliance-power", "below the reserve"),
            ("upsmon", "Executing automatic power-fail shutdown"),
            ("ups-killpower", "the UPS cuts the power; if it does not within 80 s, this host reboots"),
        ):
            self.expect_journal(unit, line)
        self.wait_until_idle()
        self.expect_known_good()

    def shutdown_hangs(self) -> None:
        """Power off with a process that no signal ends, then reboot with a shutdown that waits without an end.

        The first only delays the power off. The second feeds no watchdog any more, as a driver that hangs in the
        kernel. The watchdog resets the host; systemd arms it for a reboot only.
        """
        self.machine.note("-- a process in the kernel, and a shutdown that hangs")
        self.start_watch()
        self.machine.run(f"fsfreeze --freeze {WATCHED}; echo frozen > {CARDS}")
        self.machine.run(f"until {STUCK} | grep -q .; do sleep 0.2; done")
        self.end_by("systemctl poweroff", "guest-shutdown")
        self.machine.run(f"echo work > {CARDS}; {HANGING_SHUTDOWN}")
        self.end_by("systemctl reboot", "watchdog")
        self.machine.run(f"rm {SHUTDOWN_SCRIPT}; sync")
        self.wait_until_idle()
        self.expect_known_good()

    def end_by(self, order: str, expected: str) -> None:
        """Give an order, wait until the machine ends by ``expected``, and boot it again."""
        self.wait_until_idle()
        began = time.monotonic()
        self.machine.start(order)
        reason = self.machine.wait_for_end(600)
        expect(reason == expected, f"the host ended by {reason}, not by {expected}")
        self.machine.note(f"ended {time.monotonic() - began:.0f} s after {order}")
        self.machine.power_on()
        self.wait_for_boot(self.known_good)

    def cards_hang(self) -> None:
        """Hang nvidia-smi, then in the kernel: the watchdog of the cards reports it and runs on."""
        self.machine.note("-- the watchdog of the cards")
        self.start_watch()
        self.machine.run(f"fsfreeze --freeze {WATCHED}")
        process = self.machine.run(f"systemctl show -P MainPID {WATCH}").strip()
        for mode in ("hang", "frozen"):
            self.machine.run(f"echo {mode} > {CARDS}")
            began = time.monotonic()
            self.wait_for_cards(hang=True)
            self.machine.note(f"{mode}: reported after {time.monotonic() - began:.0f} s")
            if mode == "frozen":
                # Longer than WatchdogSec, while the child stays in the kernel.
                self.machine.run(f"for one in $(seq 70); do [ $({STUCK} | wc -l) = 1 ] || exit 1; sleep 1; done")
                self.machine.run("fsfreeze --unfreeze " + WATCHED)
            self.machine.run(f"echo work > {CARDS}")
            self.wait_for_cards(hang=False)
        after = self.machine.run(f"systemctl show -P MainPID -P NRestarts {WATCH}").split()
        expect(after == [process, "0"], f"the watchdog was {process}, then {after}")
        self.machine.run(f"systemctl stop {WATCH}; umount {WATCHED}")

    def wait_for_cards(self, *, hang: bool) -> None:
        """Wait until the status of the watchdog of the cards reports whether the driver hangs."""
        text = f'"driver_hangs":{str(hang).lower()}'
        self.machine.run(f"until grep -q '{text}' /run/appliance-gpu-watch/status.json; do sleep 0.2; done", 90)

    def start_watch(self) -> None:
        """Start the watchdog of the cards with a small file system in its folder, which a step then freezes."""
        self.machine.run(f"mkdir -p {WATCHED} && mount -o loop {FROZEN} {WATCHED} && systemctl start {WATCH}")
        self.wait_for_cards(hang=False)

    def set_ups(self, status: str, charge: int) -> None:
        """Write the file of the UPS."""
        values = {"ups.status": status, "battery.charge": charge, "battery.runtime": charge * 9}
        lines = "".join(f"{name}: {value}\\n" for name, value in values.items())
        self.machine.run(f"printf '{lines}' > {UPS}.new; mv {UPS}.new {UPS}")

    def keep_journal(self) -> None:
        """Keep the journal of this boot on the disk."""
        self.machine.run("mkdir -p /var/log/journal; journalctl --flush")

    def expect_journal(self, unit: str, line: str) -> None:
        """Check that ``unit`` logged a line in the boot before this one."""
        self.machine.run("journalctl --flush")
        found = self.machine.run(f"journalctl -b -1 --no-pager -u {unit} | grep -F '{line}' || true")
        expect(line in found, f"the journal of {unit} has no line with: {line}")
        self.machine.note(found.strip().splitlines()[-1])


WATCHED = "/var/lib/appliance-gpu-watch/frozen"
"""A folder that the watchdog of the cards may write to."""
SHUTDOWN_SCRIPT = "/usr/lib/systemd/system-shutdown/hangs"
HANGING_SHUTDOWN = (
    f"printf '#!/bin/sh\\necho GUEST hangs at its end > /dev/console; /bin/sleep 1000\\n' > {SHUTDOWN_SCRIPT}; "
    f"chmod +x {SHUTDOWN_SCRIPT}; sync"
)
"""Adds a script that systemd-shutdown waits for; meanwhile it does not feed the watchdog."""
STUCK = "ps -eo stat,args | grep '^D.*[n]vidia-smi'"
"""Lists the processes of nvidia-smi that hang in the kernel."""


def expect(condition: bool, message: str) -> None:
    """Raise :class:`BootError` with ``message`` unless ``condition`` is true."""
    if not condition:
        raise BootError(message)


def run_all(machine: VirtualMachine, *, only: tuple[str, ...] = ()) -> BootSequence:
    """Run the sequence of a seed, or the steps ``only``.

    A sequence has :data:`ALWAYS`, :data:`EACH` of the others and one of :data:`OPERATION` in turn.
    """
    rng, sequence = random.Random(machine.seed), BootSequence(machine)
    steps: dict[str, Callable[[], None]] = {
        "good": lambda: sequence.passes("good-2"),
        "fails": sequence.fails,
        "hangs": sequence.hangs,
        "panics": sequence.panics,
        "loses power": lambda: sequence.loses_power(rng),
        "switched live": sequence.fails_live,
        "panics early": sequence.panics_early,
        "outages": sequence.survives_outages,
        "stalls": sequence.stalls,
        "power stays": sequence.power_stays,
        "shutdown hangs": sequence.shutdown_hangs,
        "cards hang": sequence.cards_hang,
    }
    others = [name for name in steps if name not in (*ALWAYS, *OPERATION)]
    turn = [others[(EACH * machine.seed + place) % len(others)] for place in range(EACH)]
    chosen = list(only) or [*ALWAYS, *turn]
    if unknown := set(chosen) - steps.keys():
        raise BootError(f"unknown steps {', '.join(sorted(unknown))}; known: {', '.join(steps)}")
    # The known good system changes between the other steps.
    rng.shuffle(chosen)
    if not only:
        chosen.append(OPERATION[machine.seed % len(OPERATION)])
    machine.note(f"seed {machine.seed}: {', '.join(chosen)}")
    sequence.boot_first()
    for name in chosen:
        steps[name]()
    booted = machine.console_file.read_bytes().count(b"GUEST boots")
    expect(booted == sequence.boots, f"{booted} boots, {sequence.boots} were expected")
    return sequence
