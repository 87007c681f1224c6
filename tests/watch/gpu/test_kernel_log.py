"""The reader of the kernel's log."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pytest

from appliance.catalog.xids import Recovery, Xid, XidClass, parse_xids, recovery_of, same_slot
from appliance.errors import StoreError
from appliance.watch.gpu import kernel_log as module
from appliance.watch.gpu.kernel_log import KernelLog, LogRecord, parse_record


@pytest.mark.parametrize(
    ("raw", "record"),
    [
        (b"6,1032,84123,-;NVRM: loading\n SUBSYSTEM=pci\n", LogRecord(0, 1032, "NVRM: loading")),
        (b"4,7,9,-,caller=T1;a\\x0ab\n", LogRecord(0, 7, "a\nb")),
        (b"12,7,9,-;x\n", LogRecord(1, 7, "x")),
        (b"30,8,9,c;\xff\n", LogRecord(3, 8, "\N{REPLACEMENT CHARACTER}")),
        (b"no record\n", None),
        (b"", None),
    ],
)
def test_a_record_is_parsed(raw: bytes, record: LogRecord | None) -> None:
    assert parse_record(raw) == record


@pytest.mark.parametrize(
    ("line", "xid", "kind"),
    [
        (
            "NVRM: Xid (PCI:0000:41:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
            Xid("0000:41:00", 79, "pid='<unknown>', name=<unknown>, GPU has fallen off the bus."),
            XidClass.LOST,
        ),
        ("NVRM: Xid (PCI:0000:C1:00.0): 13 x", Xid("0000:c1:00.0", 13, "x"), XidClass.PROGRAM),
        ("NVRM: Xid (PCI:0000:41:00): 4711", Xid("0000:41:00", 4711, ""), XidClass.OTHER),
    ],
)
def test_an_error_of_the_driver_is_parsed(line: str, xid: Xid, kind: XidClass) -> None:
    assert parse_xids(line) == [xid]
    assert xid.xid_class is kind


@pytest.mark.parametrize("line", ["NVRM: Xid (PCI:zz): 79", "Xid 79", "NVRM: GPU at PCI:0000:41:00: GPU-1"])
def test_other_lines_are_ignored(line: str) -> None:
    assert parse_xids(line) == []


@pytest.mark.parametrize(
    ("words", "recovery"),
    [
        ("GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)", Recovery.REBOOT),
        ("GPU recovery action changed from 0x2 (Node Reboot Required) to 0x1 (GPU Reset Required)", Recovery.RESET),
        ("GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)", Recovery.NONE),
        ("GPU recovery action changed from 0x0 (None) to 0x3 (Drain P2P)", Recovery.RESET),
    ],
)
def test_the_verdict_is_the_new_action(words: str, recovery: Recovery) -> None:
    assert Xid("0000:41:00", 154, words).verdict is recovery
    assert Xid("0000:41:00", 119, words).verdict is Recovery.NONE


@pytest.mark.parametrize(("words", "recovery"), [("Reset", "reset"), ("Reboot", "reboot"), ("[N/A]", "none")])
def test_the_words_of_nvidia_smi(words: str, recovery: str) -> None:
    assert recovery_of(words) == recovery


def test_addresses_of_the_log_of_nvidia_smi_and_of_sysfs_name_one_slot() -> None:
    assert same_slot("0000:c1:00", "00000000:C1:00.0")
    assert same_slot("41:00", "0000:41:00.0")
    assert not same_slot("0000:41:00", "0000:42:00")
    assert not same_slot("0001:41:00", "0000:41:00")
    assert same_slot("0000:41:00", "x") is False


# The real log.


@pytest.fixture
def bus() -> str:
    """An address that no other test logs."""
    if not os.access("/dev/kmsg", os.R_OK | os.W_OK):
        pytest.skip("NOT CHECKED: the kernel's log needs root")
    return f"{secrets.token_hex(2)}:{secrets.token_hex(1)}:00"


def write(bus: str, number: int) -> None:
    Path("/dev/kmsg").write_text(f"NVRM: Xid (PCI:{bus}): {number}, x\n")


def numbers(log: KernelLog, bus: str) -> list[int]:
    return [xid.number for xid in log.read() if xid.bus == bus]


def test_errors_are_read_once_and_without_waiting(bus: str) -> None:
    log = KernelLog(any_facility=True)
    write(bus, 79)
    write(bus, 13)
    assert numbers(log, bus) == [79, 13]
    assert numbers(log, bus) == []
    write(bus, 31)
    assert numbers(log, bus) == [31]
    log.close()


def test_a_restarted_reader_continues_at_its_mark(bus: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark.json"
    log = KernelLog(mark=mark, any_facility=True)
    write(bus, 79)
    assert numbers(log, bus) == [79]
    log.save()
    log.close()
    write(bus, 13)
    again = KernelLog(mark=mark, any_facility=True)
    assert numbers(again, bus) == [13]
    again.close()
    mark.write_text("{")
    damaged = KernelLog(mark=mark, any_facility=True)
    assert numbers(damaged, bus) == [79, 13]
    damaged.close()


def test_messages_of_processes_are_not_errors_of_the_driver(bus: str) -> None:
    log = KernelLog()
    write(bus, 79)
    assert numbers(log, bus) == []
    log.close()


def test_records_that_were_overwritten_are_counted_and_the_rest_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's buffer is too large to fill, so the error of the read is injected."""
    file = tmp_path / "kmsg"
    file.write_text("4,5,1,-;NVRM: Xid (PCI:0000:41:00): 79, x\n")
    log = KernelLog(file)
    errors = [OSError(32, "Broken pipe"), OSError(32, "Broken pipe")]
    read = os.read

    def overrun(number: int, size: int) -> bytes:
        if errors:
            raise errors.pop()
        return read(number, size)

    monkeypatch.setattr(os, "read", overrun)
    assert [xid.number for xid in log.read()] == [79]
    assert log.overruns == 2
    log.close()


def test_a_read_that_fails_ends_the_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "kmsg"
    file.touch()
    log = KernelLog(file)

    def fails(number: int, size: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "read", fails)
    assert log.read() == []
    log.close()


def test_a_flood_ends_a_look_and_the_next_one_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECORDS_A_CALL", 3)
    records = [f"4,{number},1,-;NVRM: Xid (PCI:0000:41:00): {number}, x\n".encode() for number in range(5)]
    file = tmp_path / "kmsg"
    file.touch()
    log = KernelLog(file)
    monkeypatch.setattr(os, "read", lambda number, size: records.pop(0) if records else b"")
    assert [xid.number for xid in log.read()] == [0, 1, 2]
    assert [xid.number for xid in log.read()] == [3, 4]
    log.close()


def test_a_log_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="kmsg cannot be read"):
        KernelLog(tmp_path / "kmsg")
