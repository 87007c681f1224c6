"""The courier on a real folder: nothing is lost, nothing is repeated without a mark, whatever the channel does."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.errors import StoreError
from appliance.notices.notice import Notice
from appliance.notices.outbox import Outbox
from appliance.watch.courier import REFUSED, SENDING, STATE, Courier
from appliance.watch.delivery import REPEATED
from appliance.watch.telegram_bot import Misconfigured, NotSent, Refused, SendOutcome, Sent, TelegramBot, Uncertain
from tests.fakes.bot_api import CHAT, TOKEN, bot_api
from tests.smalldisk import SmallDisk

MORNING = datetime(2026, 11, 27, 6, 0, tzinfo=UTC)


class ScriptedChannel:
    """A channel whose outcomes a test chooses; ``arrived`` has the texts that reached the chat."""

    def __init__(self, rule: Callable[[str], SendOutcome] = lambda _: Sent()) -> None:
        self.rule = rule
        self.arrived: list[str] = []
        self.tries = 0

    def send(self, text: str) -> SendOutcome:
        self.tries += 1
        outcome = self.rule(text)
        if isinstance(outcome, (Sent, Uncertain)):
            self.arrived.append(text)
        return outcome


class Day:
    """A courier and its two clocks."""

    def __init__(self, folder: Path, channel: ScriptedChannel) -> None:
        self.folder, self.channel = folder, channel
        self.now_s, self.now = 0.0, MORNING
        self.outbox = Outbox(folder)
        self.restart()

    def restart(self) -> None:
        self.courier = Courier(self.outbox, self.channel, host="gpu")
        self.courier.open()

    def put(self, text: str, kind: str = "on-battery", *, ended: bool = False, tag: str = "") -> None:
        self.outbox.put(Notice(kind, "ups", text, self.now.timestamp(), ended), tag=tag)

    def run(self, seconds: float, step_s: float = 1.0) -> None:
        until = self.now_s + seconds
        while self.now_s < until:
            self.courier.tick(self.now_s, self.now)
            self.now_s += step_s
            self.now += timedelta(seconds=step_s)

    def left(self) -> int:
        return len(self.courier.waiting()) + len(self.courier.in_flight())


@pytest.fixture
def channel() -> ScriptedChannel:
    return ScriptedChannel()


@pytest.fixture
def day(tmp_path: Path, channel: ScriptedChannel) -> Day:
    return Day(tmp_path / "outbox", channel)


def test_a_page_is_sent_at_once_and_its_file_is_deleted(day: Day, channel: ScriptedChannel) -> None:
    day.put("mains is off")
    day.run(1)
    assert len(channel.arrived) == 1
    assert day.left() == 0
    day.run(30)
    assert channel.tries == 1


def test_an_outage_of_an_hour_ends_in_one_message(day: Day, channel: ScriptedChannel) -> None:
    channel.rule = lambda _: NotSent("no connection")
    for _ in range(20):
        day.put("mains is off")
        day.run(5)
        day.put("mains is back", ended=True)
        day.run(175)
    assert channel.arrived == []
    assert 3600 / 60 <= channel.tries < 3600 / 60 + 10, "the back-off has another limit than a minute"
    assert day.courier.problem == "no connection"
    channel.rule = lambda _: Sent()
    day.run(62)
    assert len(channel.arrived) == 1
    assert "20 times on-battery" in channel.arrived[0]
    assert (day.left(), day.courier.problem) == (0, "")


def test_an_uncertain_message_is_repeated_with_a_mark_and_nothing_else_is(
    day: Day, channel: ScriptedChannel
) -> None:
    channel.rule = lambda text: Sent() if text.startswith(REPEATED) else Uncertain("timeout")
    day.put("one")
    day.run(1)
    day.put("two", kind="card-hot")
    channel.rule = lambda _: Sent()
    day.run(10)
    assert [text.startswith(REPEATED) for text in channel.arrived] == [False, True, False]
    assert channel.arrived[1] == f"{REPEATED}\n{channel.arrived[0]}"
    assert "two" in channel.arrived[2]


def test_an_uncertain_message_keeps_its_mark_over_failures_and_restarts(day: Day, channel: ScriptedChannel) -> None:
    channel.rule = lambda _: Uncertain("timeout")
    day.put("one")
    day.run(1)
    day.restart()
    channel.rule = lambda _: NotSent("no connection")
    day.run(20)
    day.restart()
    channel.rule = lambda _: Sent()
    day.run(100)
    assert [text.startswith(REPEATED) for text in channel.arrived] == [False, True]
    assert day.left() == 0


def test_the_wait_that_telegram_requests_is_honoured(day: Day, channel: ScriptedChannel) -> None:
    channel.rule = lambda _: NotSent("429", 250.0)
    day.put("one")
    day.run(250)
    assert channel.tries == 1
    channel.rule = lambda _: Sent()
    day.run(1)
    assert channel.tries == 2


def test_a_refused_notice_is_set_aside_with_its_reason_and_the_others_arrive(
    day: Day, channel: ScriptedChannel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    channel.rule = lambda text: Refused("400 not acceptable") if "poison" in text else Sent()
    day.put("poison", kind="card-hot")
    day.put("first")
    day.put("second", kind="trial")
    day.run(30)
    arrived = "\n\n".join(channel.arrived)
    assert "first" in arrived
    assert "second" in arrived
    assert "a notice cannot be sent, because Telegram returned: 400 not acceptable" in arrived
    refused = sorted((day.folder / REFUSED).iterdir())
    assert [file.suffix for file in refused] == [".json", ".reason"]
    assert "poison" in refused[0].read_text()
    assert refused[1].read_text() == "400 not acceptable\n"
    assert (day.courier.counts.refused, day.left()) == (1, 0)
    assert "poison" in caplog.text, "the journal does not have the text"


def test_a_channel_that_refuses_every_text_keeps_all_notices(day: Day, channel: ScriptedChannel) -> None:
    channel.rule = lambda _: Refused("400 something new")
    day.put("one")
    day.put("two", kind="trial")
    day.run(600)
    assert day.left() == 2
    assert day.courier.misconfigured
    assert list((day.folder / REFUSED).iterdir()) == []
    channel.rule = lambda _: Sent()
    day.run(120)
    assert day.left() == 0
    assert "one" in "".join(channel.arrived)
    assert "two" in "".join(channel.arrived)


def test_a_token_that_is_not_valid_keeps_all_notices_and_is_logged_once(
    day: Day, channel: ScriptedChannel, caplog: pytest.LogCaptureFixture
) -> None:
    channel.rule = lambda _: Misconfigured("renew the token")
    day.put("one")
    day.run(3600)
    assert day.left() == 1
    assert day.courier.misconfigured
    assert caplog.text.count("renew the token") == 1
    assert channel.tries > 50


def test_a_file_that_is_not_a_notice_is_set_aside(day: Day, channel: ScriptedChannel) -> None:
    for number, text in enumerate(("{", '{"kind": 1}', "[]", "")):
        (day.folder / f"{number}-aa.json").write_text(text)
    (day.folder / ".5-draft.json").write_text("{")
    day.put("good")
    day.run(3)
    assert len(channel.arrived) == 1
    assert len(list((day.folder / REFUSED).glob("*.json"))) == 4
    assert day.courier.counts.refused == 4


def test_a_tag_is_sent_once_whatever_is_put_meanwhile(day: Day, channel: ScriptedChannel) -> None:
    day.put("one", tag="trial_1")
    day.put("one", tag="trial_1")
    day.run(2)
    day.put("one", tag="trial_1")
    day.run(120)
    day.restart()
    day.put("one", tag="trial_1")
    day.put("two", tag="trial_2")
    day.run(240)
    assert len(channel.arrived) == 2
    assert day.left() == 0
    assert "earlier" not in channel.arrived[0]


def test_a_tag_of_an_uncertain_message_is_not_sent_as_another_one(day: Day, channel: ScriptedChannel) -> None:
    channel.rule = lambda _: Uncertain("timeout")
    day.put("one", tag="t")
    day.run(1)
    day.put("one", tag="t")
    channel.rule = lambda _: Sent()
    day.run(200)
    assert [text.startswith(REPEATED) for text in channel.arrived] == [False, True]


def test_the_digest_is_sent_once_a_day_and_pages_do_not_wait_for_it(day: Day, channel: ScriptedChannel) -> None:
    day.put("a swap failed", kind="swap")
    day.run(3600, 60)
    assert channel.arrived == []
    assert day.courier.due_since(day.now) is None, "a notice for the digest counts as late"
    day.run(3700, 60)
    assert "daily digest, 1 notice" in channel.arrived[0]
    day.put("another", kind="swap")
    day.restart()
    day.run(6 * 3600, 60)
    assert len(channel.arrived) == 1, "a second digest on the same day"
    day.run(24 * 3600, 60)
    assert len(channel.arrived) == 2
    assert "another" in channel.arrived[1]


def test_a_digest_over_an_outage_is_continued_until_it_is_complete(day: Day, channel: ScriptedChannel) -> None:
    for number in range(12):
        day.outbox.put(Notice("swap", f"model {number}", "x" * 900, 0.0))
    day.now = MORNING.replace(hour=9)
    channel.rule = lambda _: Sent() if channel.tries == 1 else NotSent("no connection")
    day.run(3600, 10)
    assert len(channel.arrived) == 1
    channel.rule = lambda _: Sent()
    day.run(120)
    assert len(channel.arrived) == 3
    assert day.left() == 0


def test_a_clock_that_jumps_neither_repeats_nor_stops_the_digest(day: Day, channel: ScriptedChannel) -> None:
    day.now = MORNING.replace(year=2036, hour=9)
    day.put("ahead", kind="swap")
    day.run(5)
    day.now = MORNING.replace(hour=9)
    day.put("back", kind="swap")
    day.run(5)
    assert len(channel.arrived) == 1
    day.now += timedelta(days=1)
    day.run(5)
    assert len(channel.arrived) == 2


def test_a_full_disk_stops_no_page_and_repeats_none(
    small_disk: SmallDisk, channel: ScriptedChannel, caplog: pytest.LogCaptureFixture
) -> None:
    day = Day(small_disk.folder / "outbox", channel)
    day.put("on battery", tag="t1")
    day.put("digest", kind="swap", tag="t2")
    small_disk.fill()
    day.now = MORNING.replace(hour=9)
    with pytest.raises(StoreError, match="free space"):
        day.put("more")
    day.run(5)
    assert len(channel.arrived) == 2
    assert day.left() == 0
    small_disk.free()
    day.run(1)
    assert "t1" in (day.folder / STATE).read_text(), "the state is not written once there is room"
    day.restart()
    day.put("on battery", tag="t1")
    day.run(300)
    assert len(channel.arrived) == 2


def test_a_read_only_disk_sends_nothing_and_loses_nothing(small_disk: SmallDisk, channel: ScriptedChannel) -> None:
    day = Day(small_disk.folder / "outbox", channel)
    day.put("on battery")
    small_disk.read_only()
    with pytest.raises(StoreError):
        day.run(1)
    assert (channel.tries, day.left()) == (0, 1)


def test_a_file_that_cannot_be_deleted_is_not_sent_again(
    day: Day, channel: ScriptedChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    day.put("one")
    with monkeypatch.context() as patch:

        def refuse(*_: object, **__: object) -> None:
            raise OSError(30, "Read-only file system")

        patch.setattr(Path, "unlink", refuse)
        for _ in range(3):
            with pytest.raises(StoreError):
                day.run(1)
    assert channel.tries == 1
    day.run(5)
    assert (channel.tries, day.left(), list((day.folder / SENDING).iterdir())) == (1, 0, [])


def test_a_damaged_state_file_starts_anew(day: Day, channel: ScriptedChannel) -> None:
    (day.folder / STATE).write_text("{")
    day.restart()
    day.put("one")
    day.run(2)
    assert len(channel.arrived) == 1


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_any_order_of_failures_restarts_and_notices_loses_nothing(tmp_path: Path, seed: int) -> None:
    """Each text arrives; each arrival after the first one is marked, or is part of another sum."""
    dice = random.Random(seed)
    outcomes: list[SendOutcome] = [
        Sent(), NotSent("x"), NotSent("x", 3.0), Uncertain("x"), Misconfigured("x"), Refused("x"),
    ]  # fmt: skip
    channel = ScriptedChannel(lambda _: dice.choice(outcomes))
    day = Day(tmp_path / "outbox", channel)
    kinds = ["on-battery", "card-hot", "trial", "card-lost", "swap"]
    texts = [f"<{number}>" for number in range(60)]
    for text in texts:
        # Each subject is its own, so that no block omits a text.
        day.outbox.put(Notice(dice.choice(kinds), f"s{text}", text, day.now.timestamp()))
        day.run(dice.choice([0, 1, 30]))
        if dice.random() < 0.2:
            day.restart()
    channel.rule = lambda _: Sent()
    day.now = MORNING.replace(hour=9)
    day.run(400)
    assert day.left() == 0
    refused = [file.read_text() for file in (day.folder / REFUSED).glob("*.json")]
    for text in texts:
        seen = [one for one in channel.arrived if text in one]
        unmarked = [one for one in seen if not one.startswith(REPEATED)]
        # A refusal in between is reported by a message of its own, which names the subject.
        assert len(unmarked) <= 1 + sum(text in one for one in refused), (text, seen)
        assert seen or any(text in one for one in refused), f"{text} is lost"


def test_case_12_all_messages_arrive_and_none_twice_without_a_mark(tmp_path: Path) -> None:
    """500, 429, a timeout, a reset and 5000 characters, on a real server."""
    with bot_api() as api:
        day = Day(tmp_path / "outbox", ScriptedChannel())
        day.courier.channel = TelegramBot(TOKEN, CHAT, api=api.url, response_s=1.5)
        api.failures.extend(["500", "429:5", "hang", "", "502", "early", "", "reset"])
        for number, kind in enumerate(["on-battery", "card-hot", "card-lost", "trial"]):
            day.put(f"number {number} " + "x" * (5000 if number == 2 else 10), kind=kind)
            day.run(30)
        day.run(300, 5)
        assert day.left() == 0
        assert day.courier.counts.failures == 6
        for number in range(4):
            seen = [text for text in api.delivered if f"number {number} " in text]
            assert [text.startswith(REPEATED) for text in seen].count(False) <= 1, seen
            assert seen
        assert max(len(text) for text in api.delivered) < 4096
