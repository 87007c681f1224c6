"""The reader of the cards: nvidia-smi's output, and the bounded child."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.catalog.xids import Recovery
from appliance.system.nvidia_smi import ClocksEventReason
from appliance.watch.gpu.card_reader import FIELDS, CardReader, CardReading, Look, parse_cards
from tests.conftest import wait_until

H200 = (
    "0, 00000000:00:06.0, 36, NVIDIA H200, 51, 77.10, 700.00, [N/A], 0, 143771, 0, 0x0000000000000001, 0, 0, 0, 0, "
    "None, 0, No\n"
)
"""The output of driver 580 for an H200, in the order of FIELDS."""


def test_the_fields_are_parsed() -> None:
    (card,) = parse_cards(H200, FIELDS)
    assert card == CardReading(
        index=0,
        bus="00000000:00:06.0",
        name="NVIDIA H200",
        temperature_c=36.0,
        margin_c=51.0,
        power_w=77.1,
        limit_w=700.0,
        fan_ratio=None,
        memory_used=0.0,
        memory_total=143771 * 2**20,
        utilization=0.0,
        throttle=ClocksEventReason(1),
        throttle_s={"power-cap": 0.0, "target-temperature": 0.0, "heat": 0.0, "power-brake": 0.0},
        recovery=Recovery.NONE,
        ecc_uncorrected=0,
    )


def test_figures_that_a_card_does_not_report_are_absent() -> None:
    cells = ["0", "00000000:41:00.0", *["[N/A]"] * (len(FIELDS) - 2)]
    (card,) = parse_cards(", ".join(cells), FIELDS)
    assert (card.temperature_c, card.margin_c, card.ecc_uncorrected, dict(card.throttle_s)) == (
        None,
        None,
        None,
        {},
    )


@pytest.mark.parametrize("text", ["", "No devices were found\n", "Unable to determine the device handle, x\n"])
def test_a_message_is_not_a_card(text: str) -> None:
    assert parse_cards(text, FIELDS) == ()


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the program nvidia-smi, to write."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return program


def test_a_query_returns_its_cards(smi: Path) -> None:
    smi.write_text(f"#!/bin/sh\necho '{H200.strip()}'\n")
    look = CardReader().wait(30)
    assert [card.name for card in look.cards] == ["NVIDIA H200"]


@pytest.mark.parametrize(
    "text", ["No devices were found", "Unable to determine the device handle for GPU0000:41:00.0: GPU is lost."]
)
def test_a_driver_without_cards_lists_none(text: str, smi: Path) -> None:
    smi.write_text(f"#!/bin/sh\necho '{text}'\nexit 6\n")
    assert CardReader().wait(30) == Look()


def test_one_lost_card_hides_no_other(smi: Path) -> None:
    smi.write_text(f"#!/bin/sh\necho '{H200.strip()}'\necho 'Unable to determine the device handle'\nexit 15\n")
    assert len(CardReader().wait(30).cards) == 1


def test_a_field_that_the_driver_lacks_is_omitted(smi: Path) -> None:
    """As real nvidia-smi rejects it, once for each field."""
    known = [name for name in FIELDS if name not in ("temperature.gpu.tlimit", "gpu_recovery_action")]
    cells = ["0", "00000000:41:00.0", "60", *["[N/A]"] * (len(known) - 3)]
    smi.write_text(
        '#!/bin/sh\nfor field in temperature.gpu.tlimit gpu_recovery_action; do case "$1" in *$field*) '
        'echo "Field \\"$field\\" is not a valid field to query."; exit 2 ;; esac; done\n'
        f"echo '{', '.join(cells)}'\n"
    )
    (card,) = CardReader().wait(30).cards
    assert (card.temperature_c, card.margin_c) == (60.0, None)


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("echo 'NVIDIA-SMI has failed'; exit 9", "nvidia-smi failed with exit code 9: NVIDIA-SMI has failed"),
        ("exit 3", "nvidia-smi failed with exit code 3: no output"),
        (
            'echo "Field \\"index\\" is not a valid field to query."; exit 2',
            'failed with exit code 2: Field "index"',
        ),
    ],
)
def test_a_failed_query_has_a_reason(script: str, error: str, smi: Path) -> None:
    smi.write_text(f"#!/bin/sh\n{script}\n")
    assert error in CardReader().wait(30).error


def test_without_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert CardReader().wait(5) == Look(error="nvidia-smi is not installed")


def test_a_query_without_an_end_times_out_and_a_new_one_is_possible(smi: Path) -> None:
    good = smi.read_text()
    smi.write_text("#!/bin/sh\nexec sleep 600\n")
    reader = CardReader(timeout_s=0.2)
    looks: list[Look] = []

    def ended() -> bool:
        reader.begin()
        look = reader.poll()
        looks.extend([] if look is None else [look])
        return bool(looks)

    wait_until(ended, "the timeout")
    assert looks[0].timed_out
    assert looks[0].error == "nvidia-smi did not respond within 0.2 s"
    smi.write_text(good.replace("exit 1", f"echo '{H200.strip()}'"))
    assert len(CardReader().wait(30).cards) == 1
    reader.close()
