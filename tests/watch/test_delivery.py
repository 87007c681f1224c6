"""The policy of delivery: texts, order, holds and the digest, without clock and file."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.notices.notice import Notice
from appliance.watch.delivery import (
    CUT,
    QUIET_S,
    REPEATED,
    Key,
    SentLately,
    WaitingNotice,
    after_message,
    compose,
    cut,
    digest_due,
    hold_s,
    is_held,
    next_digest,
    next_pages,
    plain,
    units,
    valid_day,
)

NOON = datetime(2026, 11, 27, 12, 0, tzinfo=UTC).timestamp()


def waiting(*notices: Notice) -> list[WaitingNotice]:
    return [WaitingNotice(f"{number:020d}-aa.json", notice) for number, notice in enumerate(notices)]


def battery(at: float, *, ended: bool = False, text: str = "mains is off") -> Notice:
    return Notice("on-battery", "ups", text, NOON + at, ended)


def text_of(*notices: Notice) -> str:
    return compose(waiting(*notices), host="gpu", zone=UTC).text


def test_a_single_page_names_host_kind_subject_and_time() -> None:
    assert text_of(battery(0)) == "gpu: on-battery, ups, 27 Nov 12:00:00\nmains is off"
    ended = text_of(battery(65, ended=True, text="mains is back"))
    assert ended == "gpu: on-battery ended, ups, 27 Nov 12:01:05\nmains is back"


def test_a_state_that_began_and_ended_while_it_waited_is_summed_up() -> None:
    flaps = [battery(10 * number + 5 * end, ended=end == 1) for number in range(5) for end in (0, 1)]
    assert text_of(*flaps) == (
        "gpu: on-battery ended, ups, 27 Nov 12:00:45\n"
        "5 times on-battery since 27 Nov 12:00:00, the longest 5 s\nmains is off"
    )
    assert "it began since 27 Nov 12:00:00, for 3 min" in text_of(battery(0), battery(180, ended=True))
    still = text_of(battery(0), battery(5, ended=True), battery(60, text="again"))
    assert still.splitlines()[:3] == [
        "gpu: on-battery, ups, 27 Nov 12:01:00",
        "1 times on-battery since 27 Nov 12:00:00, the longest 5 s", "again",
    ]  # fmt: skip


def test_a_clock_that_was_set_back_gives_no_negative_duration() -> None:
    assert "for 0 s" in text_of(battery(0), battery(-100, ended=True))


def test_earlier_notices_without_an_end_are_listed_and_the_rest_is_counted() -> None:
    trials = [Notice("trial", "gpu", f"generation {number}\nsecond line", NOON + number) for number in range(8)]
    lines = text_of(*trials).splitlines()
    assert lines[1:3] == ["generation 7", "second line"]
    assert [line.rpartition(" ")[2] for line in lines[3:8]] == ["6", "5", "4", "3", "2"]
    assert lines[8:] == ["and 2 earlier ones"]


def test_several_subjects_share_a_message_and_keep_their_newest_state() -> None:
    text = text_of(
        Notice("card-hot", "card 0", "first", NOON), battery(1), Notice("card-hot", "card 0", "new", NOON + 2)
    )
    assert text.splitlines() == [
        "gpu: 3 notices", "", "card-hot, card 0, 27 Nov 12:00:02", "new", "earlier, 27 Nov 12:00:00: first", "",
        "on-battery, ups, 27 Nov 12:00:01", "mains is off",
    ]  # fmt: skip


def test_a_long_text_is_cut_with_a_mark_and_the_whole_text_is_kept_for_the_journal() -> None:
    message = compose(waiting(battery(0, text="x🔥" * 2500)), host="gpu", repeated=True)
    assert message.text.startswith(f"{REPEATED}\ngpu: ")
    assert message.text.endswith(CUT)
    assert units(message.text) < 4096
    assert message.whole.count("🔥") == 2500


def test_more_than_one_message_holds_is_continued() -> None:
    notices = waiting(*[Notice("card-lost", f"card {number}", "x" * 900, NOON) for number in range(9)])
    first = next_pages(notices, {}, now_s=0, host="gpu")
    assert first is not None
    assert first.text.startswith("gpu: 4 notices; 5 more follow")
    assert [one.name for one in first.notices] == [one.name for one in notices[:4]]


def test_control_characters_and_empty_texts_are_not_sent() -> None:
    assert plain("a\x00b\x1b[31mc\ud800\r\n") == "a�b�[31mc��"
    assert plain("\n \n") == "(no text)"


def test_pages_do_not_wait_for_the_digest_and_the_digest_has_no_pages() -> None:
    notices = waiting(Notice("backup-late", "vps", "no backup since Monday", NOON), battery(1))
    pages = next_pages(notices, {}, now_s=0, host="gpu")
    digest = next_digest(notices, host="gpu")
    assert pages is not None
    assert digest is not None
    assert [one.notice.kind for one in pages.notices] == ["on-battery"]
    assert digest.text.splitlines()[0] == "gpu: daily digest, 1 notice"
    assert next_pages(notices[:1], {}, now_s=0, host="gpu") is None
    assert next_digest(notices[1:], host="gpu") is None
    urgent = waiting(Notice("GatewayDown", "", "x", NOON, page=True))
    assert next_pages(urgent, {}, now_s=0, host="gpu") is not None


def test_a_start_and_its_end_are_sent_at_once_and_repetitions_are_held() -> None:
    key, other = ("on-battery", "ups"), ("card-hot", "card 0")
    history = after_message({}, [key], 0.0)
    assert not is_held(history, key, 5.0), "the end of the state would be late"
    history = after_message(history, [key, key], 5.0)
    assert is_held(history, key, 64.0)
    assert not is_held(history, other, 6.0)
    assert not is_held(history, key, 65.0)
    assert [hold_s(count) for count in (1, 2, 3, 4, 5, 6, 7, 10_000)] == [0, 60, 120, 240, 480, 600, 600, 600]
    assert after_message(history, [], 5.0 + QUIET_S) == {}, "a quiet kind and subject stays held"


def test_twenty_short_outages_are_few_messages() -> None:
    """Case 7 with a line that works: a start, an end, and sums."""
    events = [(10.0 * number + 5 * end, end == 1) for number in range(20) for end in (0, 1)]
    history: dict[Key, SentLately] = {}
    queue: list[WaitingNotice] = []
    texts: list[str] = []
    sent = 0
    for second in range(1000):
        queue += waiting(*[battery(at, ended=ended) for at, ended in events if at == second])
        message = next_pages(queue, history, now_s=float(second), host="gpu", zone=UTC)
        if message is not None:
            texts.append(message.text)
            sent += len(message.notices)
            history = after_message(history, [one.key for one in message.notices], float(second))
            queue = []
    assert sent == 40
    assert len(texts) == 5, texts
    assert "on-battery ended" in texts[-1], "the last state is not the newest"
    counted = sum(int(count) for text in texts for count in re.findall(r"(\d+) times", text))
    assert counted + sum("it began" in text for text in texts) == 19, "the first one was sent as start and end"


@pytest.mark.parametrize(
    ("hour", "last", "due"),
    [
        (7, None, False),
        (8, None, True),
        (23, date(2026, 11, 26), True),
        (8, date(2026, 11, 27), False),
        (7, date(2026, 11, 26), False),
    ],
)
def test_the_digest_is_due_once_a_day_from_its_hour_on(hour: int, last: date | None, due: bool) -> None:
    assert digest_due(datetime(2026, 11, 27, hour, 30, tzinfo=UTC), 8, last) is due


def test_a_clock_that_was_ahead_does_not_stop_the_digest() -> None:
    today = date(2026, 11, 27)
    last = valid_day(date(2036, 1, 1), today)
    assert last == today
    assert digest_due(datetime(2026, 11, 28, 8, tzinfo=UTC), 8, last)
    assert valid_day(date(2026, 11, 26), today) == date(2026, 11, 26)
    assert valid_day(None, today) is None


@pytest.mark.parametrize(("text", "expected"), [("", 0), ("aä€", 3), ("🔥", 2), ("🔥x" * 10, 30)])
def test_a_character_beyond_the_basic_plane_counts_twice(text: str, expected: int) -> None:
    assert units(text) == expected


@given(st.text(), st.integers(60, 4000))
def test_a_cut_text_fits(text: str, limit: int) -> None:
    short = cut(text, limit)
    assert units(short) <= limit
    assert short == text or short.endswith(CUT)


KINDS = st.sampled_from(["on-battery", "card-hot", "trial", "backup-late", "swap"])
NOTICES = st.builds(
    Notice,
    kind=KINDS,
    subject=st.sampled_from(["", "ups", "card 1"]) | st.text(max_size=300),
    text=st.text(max_size=3000),
    at=st.floats(-1e20, 1e20),
    ended=st.booleans(),
)


@given(st.lists(NOTICES, min_size=1, max_size=30), st.booleans(), st.text(max_size=40))
def test_every_notice_is_in_exactly_one_message_that_telegram_accepts(
    notices: list[Notice], repeated: bool, host: str
) -> None:
    left, seen = waiting(*notices), []
    while left:
        message = compose(left, host=host, repeated=repeated)
        assert 0 < units(message.text) < 4096
        assert message.text == compose(left, host=host, repeated=repeated).text
        assert message.notices
        seen += [one.name for one in message.notices]
        left = [one for one in left if one.name not in seen]
    assert sorted(seen) == [one.name for one in waiting(*notices)]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 99)), min_size=1, max_size=30))
def test_a_block_counts_every_notice(events: list[tuple[bool, int]]) -> None:
    """Newest, pairs, listed and counted notices add up to all of them."""
    notices = [
        battery(float(number), ended=ended, text=f"text {number}") for number, (ended, _) in enumerate(events)
    ]
    text = text_of(*notices)
    pairs = sum(int(one) for one in re.findall(r"(\d+) times on-battery", text)) + text.count("it began")
    newest_in_pair = notices[-1].ended and len(notices) > 1 and not notices[-2].ended
    listed = text.count("\nearlier")
    more = sum(int(one) for one in re.findall(r"and (\d+) earlier ones", text))
    assert 2 * pairs + listed + more + (0 if newest_in_pair else 1) == len(notices)
