"""The report on one generation: read by the trial, opened by people, kept by CI."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from appliance.errors import StoreError
from appliance.render.html import Cell, HtmlTable, render_page
from appliance.upgrade.state import Generation
from appliance.upgrade.state_file import replace_file

Level = Literal["ok", "warn", "fail"]
NAME = "report.json"
PAGE = "report.html"
TEMPLATE = Path(__file__).with_name("report.html.j2")
KINDS: dict[Level, str] = {"ok": "good", "warn": "odd", "fail": "bad"}
"""CSS class of each level."""


@dataclass(frozen=True, slots=True)
class SmokeStep:
    """One step: what was checked, what was found, how to fix it.

    ``external``: the step failed, but no generation can cause or fix the failure; its level is ``warn``.
    """

    name: str
    level: Level
    seen: str
    fix: str = ""
    external: bool = False

    @property
    def sentence(self) -> str:
        """Name and finding in one line."""
        return f"{self.name}: {self.seen}"


@dataclass(frozen=True, slots=True)
class Proof:
    """The smoke test of one generation.

    ``booted``: the generation was started by a boot, not by a live switch. ``invocation`` is systemd's id of the
    run, empty outside a unit. ``load`` is the report of the load test, ``None`` if no load was run.
    """

    system: str
    number: int | None
    booted: bool
    began: str
    duration_s: float
    steps: tuple[SmokeStep, ...]
    load: dict[str, object] | None = None
    invocation: str = ""

    @property
    def failed(self) -> tuple[SmokeStep, ...]:
        """The steps that failed."""
        return tuple(step for step in self.steps if step.level == "fail")

    @property
    def external(self) -> tuple[SmokeStep, ...]:
        """The steps that failed for a reason outside any generation."""
        return tuple(step for step in self.steps if step.external)

    @property
    def passed(self) -> bool:
        """Whether no step failed and there was at least one step."""
        return bool(self.steps) and not self.failed

    @property
    def line(self) -> str:
        """The verdict in one line, for the console and the login screen."""
        label = Generation(self.system, self.number).label
        external = "; ".join(step.sentence for step in self.external)
        remark = f"; external: {external}" if external else ""
        if self.passed:
            warned = sum(step.level == "warn" for step in self.steps)
            warnings = f", {warned} with a warning" if warned else ""
            steps = f"{len(self.steps)} steps{warnings}, {self.duration_s:.0f} s"
            return f"smoke test of {label}: PASS, {steps}{remark}"
        reason = "; ".join(step.sentence for step in self.failed) or "no step was run"
        return f"smoke test of {label}: FAIL: {reason}{remark}"


def folder_of(reports: Path, generation: Generation) -> Path:
    """Return the folder of the report on ``generation``: its number, or the name of its store path without one."""
    name = Path(generation.system).name if generation.number is None else str(generation.number)
    return reports / name


def save(proof: Proof, folder: Path) -> None:
    """Write the report as JSON and as a page; raises :class:`StoreError` if the disk refuses."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        verdict = "pass" if proof.passed else "fail"
        report = json.dumps({"verdict": verdict, **asdict(proof)}, indent=2)
        # The JSON last: if it exists, the page exists as well.
        for name, text in ((PAGE, page(proof)), (NAME, report)):
            replace_file(folder / name, folder / f".{name}.new", text.encode())
    except OSError as error:
        raise StoreError.unwritable(folder, error) from None


def latest(reports: Path, generation: Generation) -> Proof | None:
    """Return the report on ``generation``; ``None`` if it is missing, incomplete or of another system.

    Raises :class:`StoreError` if it cannot be read.
    """
    proof = _read(folder_of(reports, generation) / NAME)
    # A number is used again after old generations were deleted.
    return proof if proof is not None and generation.same(Generation(proof.system)) else None


def of_run(reports: Path, invocation: str) -> Proof | None:
    """Return the report of the run with systemd's id ``invocation``, on any generation; ``None`` without one.

    Raises :class:`StoreError` if a report cannot be read.
    """
    found = (_read(file) for file in reports.glob(f"*/{NAME}"))
    return next((proof for proof in found if proof is not None and proof.invocation == invocation), None)


def _read(file: Path) -> Proof | None:
    try:
        table = json.loads(file.read_text())
        table.pop("verdict")
        return Proof(**{**table, "steps": tuple(SmokeStep(**step) for step in table["steps"])})
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{file} cannot be read ({error.strerror}); run as root") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        # A power cut leaves an incomplete file, and another version writes other fields.
        return None


def page(proof: Proof) -> str:
    """Return the report as one page that needs no other file."""
    label = Generation(proof.system, proof.number).label
    verdict = "PASS" if proof.passed else "FAIL"
    started = "was started by a boot" if proof.booted else "was switched to live"
    rows = [(step.name, Cell(step.level, KINDS[step.level]), _finding(step), step.fix) for step in proof.steps]
    return render_page(
        TEMPLATE,
        title=f"Smoke test of {label}",
        badge=verdict,
        kind="good" if proof.passed else "bad",
        detail=f"{proof.began}, {proof.duration_s:.0f} s. The system {started}.",
        system=proof.system,
        steps=HtmlTable(("step", "level", "finding", "fix"), rows, left=4),
        load=_load(proof.load),
    )


def _finding(step: SmokeStep) -> Cell:
    return Cell(
        step.seen, note="This failure is external: no generation causes or fixes it." if step.external else ""
    )


def _load(load: dict[str, object] | None) -> HtmlTable | None:
    percentiles = (load or {}).get("percentiles")
    if not isinstance(percentiles, dict) or not percentiles:
        return None
    columns = list(dict.fromkeys(column for values in percentiles.values() for column in values))
    rows = [
        (name, *(f"{values[column]:.1f}" if column in values else "" for column in columns))
        for name, values in percentiles.items()
    ]
    return HtmlTable(("measure", *columns), rows)
