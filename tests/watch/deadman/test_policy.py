"""The decisions of the dead man's switch: one alarm, one return, quiet for a bounded time only."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.watch.announce import AnnouncedKind
from appliance.watch.deadman.policy import (
    LONGEST_LOOK_S,
    HomeLook,
    ReadyState,
    SilenceCause,
    SwitchLimits,
    SwitchMessage,
    announced,
    beaten,
    duration,
    looked,
    started,
)

LIMITS = SwitchLimits()
MINUTE, HOUR = 60.0, 3600.0
DETAILS = {state: f"seen as {state}" for state in ReadyState}


@dataclass
class Course:
    """A switch with its own time: looks each 20 s, and a beat each minute while the monitoring works."""

    limits: SwitchLimits = LIMITS
    now: float = 1000.0
    beats: bool = True
    messages: list[tuple[float, SwitchMessage]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.state = started(self.now)
        self._next_beat = self.now
        self.handshake: float | None = None
        """Time of the last handshake."""

    def run(self, seconds: float, ready: ReadyState = ReadyState.SERVING) -> list[SwitchMessage]:
        """HomeLook for ``seconds``; return the messages."""
        before, end = len(self.messages), self.now + seconds
        while self.now < end:
            self.now += self.limits.interval_s
            if self.beats and ready is not ReadyState.UNREACHABLE and self.now >= self._next_beat:
                self.state = beaten(self.state, self.now - 1)
                self._next_beat = self.now + MINUTE
            age = None if self.handshake is None else self.now - self.handshake
            look = HomeLook(ready, DETAILS[ready], age)
            self.state, messages = looked(self.state, look, now=self.now, limits=self.limits, home="gpu")
            self.messages += [(self.now, message) for message in messages]
        return [message for _, message in self.messages[before:]]

    def announce(self, kind: AnnouncedKind, planned_s: float = 0.0) -> None:
        self.state = announced(self.state, kind, planned_s=planned_s, now=self.now, limits=self.limits)

    @property
    def cause(self) -> SilenceCause | None:
        return None if self.state.alarm is None else self.state.alarm.cause


DEAD, SERVING = ReadyState.UNREACHABLE, ReadyState.SERVING


def test_a_cut_line_is_one_alarm_within_three_minutes_and_one_return() -> None:
    course = Course()
    assert course.run(10 * MINUTE) == []
    cut = course.now
    (alarm,) = course.run(HOUR, DEAD)
    assert not alarm.ended
    assert course.messages[0][0] - cut <= 3 * MINUTE
    assert alarm.text.startswith("gpu is unreachable for 140 s: the line, the router or the machine is down.\n")
    assert "/ready: seen as unreachable; no handshake is known; last beat of the monitoring" in alarm.text
    (back,) = course.run(10 * MINUTE)
    assert back == SwitchMessage("gpu is back after 61 min: it was unreachable.", ended=True)


def test_a_short_outage_gives_no_alarm() -> None:
    course = Course()
    for _ in range(20):
        assert course.run(2 * MINUTE, DEAD) == []
        assert course.run(20) == []


def test_a_gateway_that_died_is_not_a_cut_line() -> None:
    course = Course()
    course.run(5 * MINUTE)
    (alarm,) = course.run(10 * MINUTE, ReadyState.FAILING)
    assert alarm.text.startswith("The gateway of gpu does not respond for 140 s; the machine itself does.\n")
    assert "systemctl status appliance-gateway" in alarm.text
    assert course.run(MINUTE)[0].text.endswith("its gateway did not respond.")


@pytest.mark.parametrize(("later_s", "cause"), [(60.0, SilenceCause.GATEWAY), (10.0, SilenceCause.LINE)])
def test_a_later_handshake_shows_that_the_machine_lives(later_s: float, cause: SilenceCause) -> None:
    """A handshake of the last moments before the cut proves nothing."""
    course = Course()
    course.run(5 * MINUTE)
    course.handshake = course.now + later_s
    course.run(3 * MINUTE, DEAD)
    assert course.cause is cause


def test_a_beat_shows_that_the_machine_lives() -> None:
    course = Course()
    course.run(5 * MINUTE)
    course.state = beaten(course.state, course.now + 60)
    course.run(3 * MINUTE, DEAD)
    assert course.cause is SilenceCause.GATEWAY


def test_a_monitoring_that_died_is_named() -> None:
    course = Course()
    course.run(5 * MINUTE)
    course.beats, stopped = False, course.now
    (alarm,) = course.run(HOUR)
    assert course.messages[0][0] - stopped <= 3 * MINUTE
    assert alarm.text.startswith("The monitoring of gpu sent no beat for")
    assert "systemctl status prometheus alertmanager" in alarm.text
    course.beats = True
    assert [message.ended for message in course.run(5 * MINUTE)] == [True]


def test_a_switch_that_expects_no_beat_has_no_alarm_without_one() -> None:
    course = Course(limits=replace(LIMITS, beat=False), beats=False)
    assert course.run(HOUR) == []
    (alarm,) = course.run(HOUR, DEAD)
    assert "beat" not in alarm.text


def test_a_drained_gateway_is_alive_for_ever() -> None:
    assert Course().run(24 * HOUR, ReadyState.DRAINED) == []


def test_engines_have_their_time_to_load_after_an_outage() -> None:
    course = Course()
    course.run(5 * MINUTE)
    assert course.run(14 * MINUTE, ReadyState.NOT_READY) == []
    course.run(MINUTE)
    course.announce(AnnouncedKind.REBOOT)
    assert course.run(10 * MINUTE, DEAD) == []
    assert course.run(14 * MINUTE, ReadyState.NOT_READY) == [], "the engines load"
    course.run(MINUTE)
    (alarm,) = course.run(HOUR, ReadyState.NOT_READY)
    assert alarm.text.startswith("The gateway of gpu responds, but is not ready for 15 min")


def test_a_worse_cause_is_an_alarm_of_its_own_and_one_return_ends_both() -> None:
    course = Course()
    course.run(5 * MINUTE)
    course.beats = False
    assert len(course.run(10 * MINUTE)) == 1
    assert course.cause is SilenceCause.MONITORING
    assert len(course.run(10 * MINUTE, ReadyState.FAILING)) == 1
    assert len(course.run(10 * MINUTE, DEAD)) == 1
    assert course.run(10 * MINUTE, ReadyState.FAILING) == [], "a lesser cause"
    course.beats = True
    assert [message.ended for message in course.run(10 * MINUTE)] == [True]


def test_the_service_returns_before_its_monitoring() -> None:
    """The return does not wait for the beat, and a monitoring that stays silent is an alarm of its own."""
    course = Course()
    course.run(5 * MINUTE)
    course.run(10 * MINUTE, DEAD)
    course.beats = False
    back, alarm = course.run(10 * MINUTE)
    assert back.ended
    assert "no beat" in alarm.text


@pytest.mark.parametrize("kind", [AnnouncedKind.ON_BATTERY, AnnouncedKind.REBOOT])
def test_an_announced_absence_is_quiet_for_its_time(kind: AnnouncedKind) -> None:
    course = Course()
    course.run(5 * MINUTE)
    course.announce(kind, 3 * MINUTE)
    assert course.run(8 * MINUTE - 20, DEAD) == []
    assert course.run(MINUTE, DEAD) != [], "the planned time and the time of a boot have passed"


@pytest.mark.parametrize("planned_s", [0.0, 2 * HOUR, 7 * 24 * HOUR])
def test_the_silence_after_a_power_cut_is_bounded(planned_s: float) -> None:
    course = Course()
    course.run(5 * MINUTE)
    course.announce(AnnouncedKind.ON_BATTERY, planned_s)
    at = course.now
    (alarm,) = course.run(24 * HOUR, DEAD)
    assert course.messages[0][0] - at <= 15 * MINUTE + 20
    assert "It announced 15 min ago that mains failed." in alarm.text


def test_power_cuts_of_three_minutes_are_quiet() -> None:
    """The router has no battery: each cut of mains also cuts the line, which returns after mains."""
    course = Course()
    for _ in range(20):
        course.announce(AnnouncedKind.ON_BATTERY, 10 * MINUTE)
        assert course.run(5 * MINUTE, DEAD) == []
        course.announce(AnnouncedKind.BACK)
        assert course.run(10 * MINUTE) == []
        assert course.state.announcement is None


def test_a_shutdown_is_quiet_for_half_a_day_then_one_reminder() -> None:
    course = Course()
    course.run(5 * MINUTE)
    course.announce(AnnouncedKind.GOING_DOWN)
    assert course.run(2 * MINUTE) == [], "it still runs"
    assert course.run(12 * HOUR - 3 * MINUTE, DEAD) == []
    (reminder,) = course.run(48 * HOUR, DEAD)
    assert "It announced its shutdown 12 h ago and is still off." in reminder.text
    (back,) = course.run(10 * MINUTE)
    assert back.ended
    assert course.run(5 * MINUTE) == []
    assert len(course.run(10 * MINUTE, DEAD)) == 1, "the switch works as before"


def test_a_host_that_returns_from_a_shutdown_is_watched_again() -> None:
    course = Course()
    course.run(5 * MINUTE)
    course.announce(AnnouncedKind.GOING_DOWN)
    assert course.run(2 * HOUR, DEAD) == []
    assert course.run(5 * MINUTE, ReadyState.NOT_READY) == [], "engines load"
    assert course.run(5 * MINUTE) == []
    assert course.state.announcement is None
    assert len(course.run(5 * MINUTE, DEAD)) == 1


def test_a_monitoring_that_does_not_return_from_a_shutdown_is_an_alarm() -> None:
    course = Course()
    course.run(5 * MINUTE)
    course.announce(AnnouncedKind.GOING_DOWN)
    course.run(2 * HOUR, DEAD)
    course.beats = False
    (alarm,) = course.run(20 * MINUTE)
    assert "no beat" in alarm.text


def test_an_announced_shutdown_that_did_not_happen_silences_nothing() -> None:
    course = Course()
    course.announce(AnnouncedKind.GOING_DOWN)
    assert course.run(11 * MINUTE) == []
    assert len(course.run(5 * MINUTE, DEAD)) == 1


def test_a_lost_look_before_the_shutdown_is_not_the_shutdown() -> None:
    course = Course()
    course.announce(AnnouncedKind.GOING_DOWN)
    course.run(MINUTE)
    course.run(20, DEAD)
    course.run(2 * MINUTE)
    assert course.run(HOUR, DEAD) == []


def test_an_absence_announced_after_the_alarm_repeats_nothing() -> None:
    course = Course()
    course.run(5 * MINUTE)
    assert len(course.run(10 * MINUTE, ReadyState.FAILING)) == 1
    course.announce(AnnouncedKind.REBOOT)
    assert course.run(HOUR, ReadyState.FAILING) == []
    assert [message.ended for message in course.run(10 * MINUTE)] == [True]


def test_a_suspended_vps_does_not_alarm_at_once() -> None:
    course = Course()
    course.run(5 * MINUTE)
    course.now += 3 * HOUR
    assert course.run(MINUTE, DEAD) == []
    assert len(course.run(3 * MINUTE, DEAD)) == 1, "the outage itself counts as always"


def test_slow_looks_are_not_a_gap() -> None:
    """Looks at a cut line wait for their limits, longer than a short interval."""
    course = Course(limits=replace(LIMITS, interval_s=1.0))
    course.run(5 * MINUTE)
    for _ in range(30):
        course.now += LONGEST_LOOK_S
        course.run(1, DEAD)
    assert len(course.messages) == 1


def test_a_suspended_vps_keeps_its_alarm() -> None:
    course = Course()
    course.run(5 * MINUTE)
    course.run(10 * MINUTE, DEAD)
    course.now += 3 * HOUR
    assert course.run(10 * MINUTE, DEAD) == []
    assert course.run(5 * MINUTE)[0].ended


def test_a_switch_that_just_started_waits_for_its_limit() -> None:
    course = Course(beats=False)
    assert course.run(120, DEAD) == []
    assert len(course.run(60, DEAD)) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0 s"), (179, "179 s"), (180, "3 min"), (7199, "2 h"), (9000, "2 h 30 min"), (201_600, "2 days 8 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


_ANNOUNCEMENTS = st.tuples(st.sampled_from([*AnnouncedKind]), st.floats(0, 7 * 24 * HOUR))
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("run"), st.sampled_from([*ReadyState]), st.floats(20, 20 * MINUTE), st.booleans()),
        st.tuples(st.just("announce"), _ANNOUNCEMENTS),
        st.tuples(st.just("sleep"), st.floats(0, 4 * HOUR)),
    ),
    max_size=12,
)


SHORT = replace(LIMITS, off_s=HOUR)


@settings(max_examples=100, deadline=None)
@given(_STEPS)
def test_no_sequence_silences_the_switch_or_repeats_an_alarm(steps: list[tuple[object, ...]]) -> None:
    course = Course(limits=SHORT)
    for step in steps:
        match step:
            case ("run", ReadyState() as ready, float(seconds), bool(beats)):
                course.beats = beats
                course.run(seconds, ready)
            case ("announce", (AnnouncedKind() as kind, float(planned_s))):
                course.announce(kind, planned_s)
            case ("sleep", float(seconds)):
                course.now += seconds
    last: SilenceCause | None = None
    for _, message in course.messages:
        cause = _cause(message)
        assert message.ended == (cause is None)
        assert message.ended is False or last is not None, "a return without an alarm"
        assert cause is None or last is None or cause > last, "an alarm twice"
        last = cause
    # A host that stays dead is an alarm in any case after the longest silence, and a return ends it.
    course.run(SHORT.off_s + 4 * MINUTE, DEAD)
    assert course.cause in (SilenceCause.LINE, SilenceCause.GATEWAY)
    course.beats = True
    course.messages.clear()
    assert [message.ended for message in course.run(20 * MINUTE)] == [True]
    assert course.state.announcement is None
    assert course.run(20 * MINUTE) == []


def _cause(message: SwitchMessage) -> SilenceCause | None:
    starts = {
        SilenceCause.LINE: "gpu is unreachable",
        SilenceCause.GATEWAY: "The gateway of gpu does not",
        SilenceCause.ENGINES: "The gateway of gpu responds",
        SilenceCause.MONITORING: "The monitoring",
    }
    return next((cause for cause, start in starts.items() if message.text.startswith(start)), None)
