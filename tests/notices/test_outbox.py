"""The outbox on disk, and the notices that wait in memory while it cannot be written."""

from __future__ import annotations

import json
import logging
import os
import stat
from pathlib import Path

import pytest

from appliance.errors import StoreError
from appliance.notices.notice import PAGING_KINDS, Notice
from appliance.notices.outbox import Outbox, is_notice, tag_of
from appliance.notices.pending import KEPT, PendingNotices
from tests.smalldisk import SmallDisk


def notice(text: str) -> Notice:
    return Notice("on-battery", "ups", text, 0.0)


def texts(outbox: Outbox) -> list[str]:
    return [json.loads(file.read_text())["text"] for file in outbox.waiting()]


def test_notices_wait_in_their_order_and_leave_no_draft(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox")
    assert outbox.waiting() == []
    for number in range(20):
        outbox.put(notice(str(number)))
    assert texts(outbox) == [str(number) for number in range(20)]
    assert len(list(outbox.folder.iterdir())) == 20


def test_the_group_of_the_sender_may_read_a_notice_whatever_the_umask_is(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        file = Outbox(tmp_path).put(notice("one"))
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("01764250000000000000-5f0c11aa.json", (True, "")),
        ("01764250000000000000-5f0c11aa-alert_0a.json", (True, "alert_0a")),
        (".01764250000000000000-5f0c11aa.json", (False, None)),
        ("courier.state", (False, None)),
        ("sending", (False, None)),
        ("0-a.reason", (False, None)),
    ],
)
def test_the_name_of_a_file_shows_whether_it_is_a_notice_and_its_tag(
    name: str, expected: tuple[bool, str | None]
) -> None:
    assert (is_notice(name), tag_of(name) if is_notice(name) else None) == expected


def test_a_tag_is_in_the_name(tmp_path: Path) -> None:
    assert tag_of(Outbox(tmp_path).put(notice("one"), tag="trial_8").name) == "trial_8"


def test_a_full_disk_is_reported_and_leaves_no_draft(small_disk: SmallDisk) -> None:
    outbox = Outbox(small_disk.folder / "outbox")
    outbox.put(notice("one"))
    small_disk.fill()
    with pytest.raises(StoreError, match="free space on its disk"):
        outbox.put(notice("two"))
    assert texts(outbox) == ["one"]
    assert len(list(outbox.folder.iterdir())) == 1


def test_a_folder_that_is_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError):
        Outbox(tmp_path / "file").put(notice("one"))
    with pytest.raises(StoreError):
        Outbox(tmp_path / "file").waiting()


def test_a_full_disk_delays_the_notices_of_a_watcher_and_is_logged_once(
    small_disk: SmallDisk, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = Outbox(small_disk.folder / "outbox")
    outbox.put(notice("first"))
    pending = PendingNotices(outbox)
    small_disk.fill()
    for number in range(KEPT + 5):
        pending.put(notice(str(number)))
    assert not pending.flush()
    assert caplog.messages[0].startswith("1 notices wait in memory")
    assert len([one for one in caplog.records if one.levelno >= logging.WARNING]) == 1
    small_disk.free()
    assert pending.flush()
    assert texts(outbox) == ["first", *(str(number) for number in range(5, KEPT + 5))]


def test_some_kinds_page_and_an_urgent_notice_of_another_kind_does_too() -> None:
    assert {kind for kind in [*PAGING_KINDS, "swap"] if Notice(kind, "", "", 0).pages} == PAGING_KINDS
    assert Notice("swap", "", "", 0, page=True).pages
    assert len(PAGING_KINDS) <= 10
