"""Sequences of passes, failures, hangs, power cuts, reboots, full disks and outages: none strands the machine."""

from __future__ import annotations

from contextlib import suppress

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from appliance.errors import LoaderError, StoreError
from appliance.upgrade.state import Booted, Deadline, Installed, SmokeVerdict, Switched
from tests.upgrade.model import Entry, Health, PowerCut, Reset, System, UpgradeModel

MOST_RESETS = 1
"""Limit of unrequested reboots after one event from outside."""

HEALTH = st.sampled_from(["good", "fails", "dies-early", "dies-late"])
CUT = st.none() | st.integers(0, 9)


class Trials(RuleBasedStateMachine):
    """Events from outside on an enforcing machine with a rescue entry."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = UpgradeModel()
        self.worked: set[Entry] = set()
        """Entries that may be the default: they passed, or ran when enforcement began, or are a rescue system."""

    @initialize(first=HEALTH)
    def first_install(self, first: Health) -> None:
        """Install from the installer's medium, which is not a generation of the machine."""
        machine = self.machine
        machine.systems.append(System(first))
        machine.profile, machine.conf = 0, (0, False)
        machine.handle(Installed(machine.generation(0), None, rescue=True), enforce=True)
        self.worked.add((0, True))
        self._boot()

    def _boot(self, choice: Entry | None = None) -> None:
        before = self.machine.requested_reboots
        self.machine.boot(choice)
        assert self.machine.requested_reboots == before, "a boot never requests a reboot"

    def _outside(self, cut: int | None) -> None:
        """Begin an event from outside, after which the machine may reset MOST_RESETS times."""
        self.machine.resets = self.machine.requested_reboots = 0
        self.machine.steps_left = cut

    @rule(health=HEALTH, cut=CUT, enforce=st.sampled_from([True, True, True, False]), works=st.booleans())
    def upgrade(self, health: Health, cut: int | None, enforce: bool, works: bool) -> None:
        enforce = enforce or self.machine.disk.state.held is None
        self.machine.systems.append(System(health, enforce=enforce, switch_back_works=works))
        self._install(len(self.machine.systems) - 1, cut)

    @rule(data=st.data(), cut=CUT)
    def installed_again(self, data: st.DataObject, cut: int | None) -> None:
        """Let an automatic upgrade build an earlier system again."""
        machine = self.machine
        index = data.draw(st.integers(0, len(machine.systems) - 1))
        known_good = machine.disk.state.known_good
        failed = machine.disk.state.failure_of(machine.generation(index))
        full = machine.disk.full
        self._install(index, cut)
        if failed and not full and not machine.generation(index).same(known_good):
            trial = machine.disk.state.trial
            assert trial is None or machine.index(trial.candidate) != index, "tried again without a request"

    @rule(data=st.data(), cut=CUT)
    def tried_again_on_request(self, data: st.DataObject, cut: int | None) -> None:
        self._install(data.draw(st.integers(0, len(self.machine.systems) - 1)), cut, again=True)

    def _install(self, index: int, cut: int | None, *, again: bool = False) -> None:
        machine, system = self.machine, self.machine.systems[index]
        if machine.disk.state.held is None and not system.enforce and system.health.startswith("dies"):
            return  # Without enforcement NixOS sets the default, and a loop is NixOS's own.
        if machine.disk.state.held is None:
            # The default is not held yet: until the hook has run once NixOS sets it.
            cut, machine.disk.full = None, False
        if machine.disk.state.known_good is None and not machine.booted[1]:
            self.worked.add(machine.booted)
        self.worked.add((index, True))
        self._outside(cut)
        try:
            machine.install(index, again=again)
        except PowerCut:
            self._boot()
        except (StoreError, LoaderError):
            pass
        machine.steps_left = None

    @precondition(lambda self: not self.machine.booted[1])
    @rule()
    def switch(self) -> None:
        """Activate the installed system; one that hangs at boot may run after a switch."""
        machine = self.machine
        self._outside(None)
        machine.live = machine.profile
        with suppress(StoreError, LoaderError):
            machine.handle(Switched(machine.generation(machine.live)))

    @precondition(lambda self: not self.machine.booted[1])
    @rule(cut=CUT, late=st.booleans())
    def verdict(self, cut: int | None, late: bool) -> None:
        """End the smoke test, or its time."""
        machine = self.machine
        here, system = machine.generation(machine.live), machine.systems[machine.live]
        passed = system.health != "fails" and machine.network and not machine.disk.full
        self._outside(cut)
        known_good = machine.disk.state.known_good
        booted = machine.booted == (machine.live, False)
        if booted and (passed or known_good is None):
            self.worked.add((machine.live, False))
        try:
            machine.handle(
                Deadline(here)
                if late and not passed
                else SmokeVerdict(generation=here, passed=passed, reason="a reason", booted=booted)
            )
        except PowerCut:
            self._boot()
        except Reset:
            assert not here.same(known_good), "the known good generation was rebooted"
            assert system.enforce, "it rebooted in the mode that only reports"
            machine.resets += 1
            self._boot()
        except (StoreError, LoaderError):
            pass
        machine.steps_left = None

    @rule()
    def reboot_or_power_cut(self) -> None:
        self._outside(None)
        self._boot()

    @rule(data=st.data())
    def choose_in_the_menu(self, data: st.DataObject) -> None:
        """Choose an entry that boots."""
        machine = self.machine
        live = [i for i, one in enumerate(machine.systems) if one.health in ("good", "fails")]
        entries: list[Entry] = [(i, False) for i in live] + [(len(machine.systems) - 1, True)]
        self._outside(None)
        self._boot(data.draw(st.sampled_from(entries)))

    @precondition(lambda self: self.machine.default == self.machine.conf)
    @rule()
    def firmware_forgets(self) -> None:
        """Lose the firmware's variables. A second failure within the window of a power cut is not modelled."""
        self._outside(None)
        self.machine.default = self.machine.oneshot = None
        self._boot()

    @rule(full=st.booleans())
    def disk(self, full: bool) -> None:
        self.machine.disk.full = full

    @rule(up=st.booleans())
    def network(self, up: bool) -> None:
        self.machine.network = up

    @invariant()
    def default_has_worked(self) -> None:
        machine = self.machine
        if machine.disk.state.held is not None and machine.systems:
            default = machine.default or machine.conf
            assert default in self.worked, f"{default} is the default and never worked"

    @invariant()
    def few_reboots(self) -> None:
        assert self.machine.resets <= MOST_RESETS
        assert self.machine.requested_reboots <= MOST_RESETS


TestTrials = Trials.TestCase
TestTrials.settings = settings(
    max_examples=300,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def test_outages_do_not_reboot_a_known_good_generation() -> None:
    """A hundred boots without a network and with a full disk request no reboot."""
    machine = UpgradeModel(systems=[System("good")], conf=(0, False))
    machine.boot()
    machine.handle(SmokeVerdict(machine.generation(0), passed=True))
    machine.network, machine.disk.full = False, True
    for _ in range(100):
        machine.boot()
        for event in (
            SmokeVerdict(machine.generation(0), passed=False, reason="no network"),
            Deadline(machine.generation(0)),
            Booted(machine.generation(0)),
        ):
            with suppress(StoreError):
                machine.handle(event)
    assert (machine.requested_reboots, machine.resets, machine.next_entry) == (0, 0, (0, False))
