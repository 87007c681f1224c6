"""The free memory of cards against the need of an engine, and the record of greedy texts."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from appliance.gateway.card_room import DriverMemory, FreeMemory, room_shortage
from appliance.gateway.greedy_record import NAME, GreedyRecord
from appliance.system.nvidia_smi import NvidiaSmiError
from tests.smalldisk import SmallDisk

CARD_MIB = 97887.0


@pytest.mark.parametrize(
    ("needed", "free", "reason"),
    [
        ({0: 0.9}, {0: 95000}, ""),
        ({0: 0.9}, {0: 87200}, ""),  # Within the slack.
        ({0: 0.9}, {0: 87000}, "card 0 has 85.0 GiB free of the 86.0 GiB that it needs"),
        ({0: 0.4, 1: 0.4}, {0: 38000, 1: 10000}, "card 1 has 9.8 GiB free of the 38.2 GiB that it needs"),
        ({3: 0.9}, {0: 0}, ""),  # The driver does not report the card.
        ({}, {0: 0}, ""),
    ],
)
def test_the_fullest_card_is_the_reason(needed: dict[int, float], free: dict[int, float], reason: str) -> None:
    memory = {index: FreeMemory(CARD_MIB, mib) for index, mib in free.items()}
    assert room_shortage(needed, memory) == reason


async def test_the_driver_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '0, 97887, 5000'\necho '1, 97887, [N/A]'\n")
    program.chmod(0o755)
    assert await DriverMemory().read() == {0: FreeMemory(97887, 5000)}
    program.unlink()
    with pytest.raises(NvidiaSmiError, match="is not installed"):
        await DriverMemory().read()


def test_the_texts_are_those_of_the_gateway_before(tmp_path: Path) -> None:
    assert GreedyRecord(tmp_path).get("ea") == ()
    GreedyRecord(tmp_path).put("ea", ("one two", None))
    assert GreedyRecord(tmp_path).get("ea") == ("one two", None)
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", ["{", "[]", '{"ea": 1}', '{"ea": [1]}'])
def test_an_invalid_record_is_logged_and_empty(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / NAME).write_text(content)
    with caplog.at_level(logging.WARNING):
        assert GreedyRecord(tmp_path).get("ea") == ()
    assert "the first wakes are not compared" in caplog.text


def test_a_full_disk_is_logged(small_disk: SmallDisk, caplog: pytest.LogCaptureFixture) -> None:
    small_disk.fill()
    record = GreedyRecord(small_disk.folder)
    with caplog.at_level(logging.WARNING):
        record.put("ea", ("x",))
    assert record.get("ea") == ("x",)
    assert "are not kept" in caplog.text
