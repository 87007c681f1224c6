"""The proof on a card, without one: its verdict, and runs with a pretended driver and a pretended engine."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import wait_until
from tools.prove_gpu.__main__ import PARTS, main
from tools.prove_gpu.verdict import FAILED, NOT_RUN, PROVEN, ProofOutcome, ProofPart, exit_code, part_of

SMI = "0, NVIDIA RTX PRO 6000, 97887, {used}, 580.95, 600.00, 12.0"
PASSED = '{"outcome": "passed", "reason": "", "figures": {"GB_per_s": 52.5}}'


class Pretended:
    """A machine with an `nvidia-smi` and an engine's Python that a test writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.report = folder / "report.json"

    def card(self, used: int = 4) -> None:
        self.program("nvidia-smi", f"echo '{SMI.format(used=used)}'")

    def engine(self, cases: str = "") -> None:
        """Write the Python; ``cases`` precede the one in which each part passes."""
        self.program("python-cuda", f"case \"$1\" in\n{cases}\n*) echo 'noise'; echo '{PASSED}' ;;\nesac")

    def run(self, *options: str) -> tuple[int, dict[str, Any]]:
        python = str(self.folder / "python-cuda")
        code = main(["--python", python, "--disk", str(self.folder), "--json", str(self.report), *options])
        return code, json.loads(self.report.read_text())

    def program(self, name: str, text: str) -> None:
        (self.folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.folder / name).chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pretended:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    made = Pretended(tmp_path)
    made.card()
    made.engine()
    return made


def outcomes(report: dict[str, Any]) -> dict[str, str]:
    return {part["name"]: part["outcome"] for part in report["parts"]}


def test_ten_minutes_are_the_limit_of_all_parts() -> None:
    assert sum(limit for _, limit in PARTS) == 600


def test_all_parts_passed_is_proven(machine: Pretended, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = machine.run()
    assert (code, report["verdict"]) == (PROVEN, "proven")
    assert report["machine"]["card"]["name"] == "NVIDIA RTX PRO 6000"
    assert [part["figures"] for part in report["parts"]] == [{"GB_per_s": 52.5}] * len(PARTS)
    assert json.loads(capsys.readouterr().out) == report


def test_a_part_has_the_chosen_card_its_time_and_no_network(machine: Pretended) -> None:
    machine.program("nvidia-smi", f"echo '{SMI.format(used=4)}'; echo '1{SMI.format(used=4)[1:]}'")
    machine.program("python-cuda", f"env > {machine.folder}/environment; echo '{PASSED}'")
    code, _ = machine.run("--only", "copies", "--card", "1")
    assert code == PROVEN
    lines = (machine.folder / "environment").read_text().splitlines()
    names = {name: value for name, _, value in (line.partition("=") for line in lines)}
    # Without the order of the bus, CUDA numbers the cards by their speed, and nvidia-smi by their slots.
    assert (names["CUDA_VISIBLE_DEVICES"], names["CUDA_DEVICE_ORDER"]) == ("1", "PCI_BUS_ID")
    assert 0 < float(names["PROVE_GPU_SECONDS"]) < dict(PARTS)["copies"]
    assert names["HF_HUB_OFFLINE"] == "1"
    assert Path(names["PYTHONPATH"], "appliance").is_dir()
    assert Path(names["PROVE_GPU_TINY"]).is_file()


def test_one_failed_part_is_a_failure_and_the_others_run(machine: Pretended) -> None:
    line = '{"outcome": "failed", "reason": "cycle 3: the weights differ", "figures": {}}'
    machine.engine(f"*sleep_cycles.py) echo '{line}' ;;")
    code, report = machine.run()
    assert (code, report["verdict"]) == (FAILED, "failed")
    assert outcomes(report) == {
        "copies": "passed",
        "loaders": "passed",
        "sleep_cycles": "failed",
        "engine": "passed",
    }
    assert report["parts"][2]["reason"] == "cycle 3: the weights differ"


def test_a_missing_part_could_not_run(machine: Pretended) -> None:
    line = '{"outcome": "missing", "reason": "this Python has no vLLM", "figures": {}}'
    machine.engine(f"*engine.py) echo '{line}' ;;")
    code, report = machine.run()
    assert (code, report["verdict"]) == (NOT_RUN, "could not run")


def test_a_crash_is_a_failure_with_its_last_line(machine: Pretended) -> None:
    machine.engine("*copies.py) echo 'CUDA error: an illegal memory access' >&2; kill -9 $$ ;;")
    code, report = machine.run("--only", "copies")
    assert code == FAILED
    assert report["parts"][0]["reason"] == (
        "it ended with code -9 and without a result: CUDA error: an illegal memory access"
    )


def test_a_part_that_hangs_is_ended_with_its_children(machine: Pretended, tmp_path: Path) -> None:
    machine.engine(f"*copies.py) sleep 1000 & echo $! > {tmp_path}/child; wait ;;")
    began = time.monotonic()
    code, report = machine.run("--only", "copies", "--scale", "0.05")
    assert code == FAILED
    assert report["parts"][0]["reason"] == "it did not end within 3 s"
    assert time.monotonic() - began < 60
    state = Path(f"/proc/{(tmp_path / 'child').read_text().strip()}/stat")

    def ended() -> bool:
        try:
            return state.read_text().split()[2] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            return True

    wait_until(ended, "the child of the part ends", 60)


@pytest.mark.parametrize(
    ("prepare", "options", "reason"),
    [
        (lambda m: (m.folder / "nvidia-smi").unlink(), (), "nvidia-smi is not installed"),
        (lambda m: m.card(used=60000), (), "card 0 has 60000 MiB in use; stop the process that uses it"),
        (lambda _: None, ("--card", "7"), "card 7 does not exist; nvidia-smi lists 0"),
        (lambda m: (m.folder / "python-cuda").unlink(), (), "does not exist; name a Python with vLLM for CUDA"),
    ],
)
def test_a_machine_without_the_means_could_not_run_and_the_report_names_them(
    machine: Pretended, prepare: Any, options: tuple[str, ...], reason: str
) -> None:
    prepare(machine)
    code, report = machine.run(*options)
    assert (code, report["verdict"]) == (NOT_RUN, "could not run")
    assert all(reason in part["reason"] for part in report["parts"])


def a_part(outcome: ProofOutcome) -> ProofPart:
    return ProofPart("one", outcome)


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (["passed", "passed"], PROVEN),
        (["passed", "missing"], NOT_RUN),
        (["missing", "failed"], FAILED),
        ([], NOT_RUN),
    ],
)
def test_the_verdict_of_the_table(found: list[ProofOutcome], code: int) -> None:
    assert exit_code([a_part(outcome) for outcome in found]) == code


@pytest.mark.parametrize("output", ["", "{}", "[1]", '{"outcome": "good"}', "not json", f"{PASSED}\ntrailing"])
def test_output_without_a_result_is_a_failure(output: str) -> None:
    assert part_of("one", output, 0, 1.0).outcome == "failed"


def test_a_result_before_a_failed_end_does_not_pass() -> None:
    assert part_of("one", PASSED, 0, 1.0).outcome == "passed"
    assert part_of("one", PASSED, -11, 1.0).reason == "it passed, then ended with code -11"
