"""What the smoke test found on one generation: the record that the trial reads, people open, and CI keeps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Literal

from appliance.errors import StoreError
from appliance.upgrade.state import Generation
from appliance.upgrade.state_file import replace_file

Level = Literal["ok", "warn", "fail"]
NAME = "report.json"
PAGE = "report.html"


@dataclass(frozen=True, slots=True)
class SmokeStep:
    """One thing that was proven, or was not: what was looked at, how it is, what mends it.

    ``external``: it failed, and no generation causes or mends that; so it is a warning here.
    """

    name: str
    level: Level
    seen: str
    mend: str = ""
    external: bool = False

    @property
    def sentence(self) -> str:
        """Name and finding in one line."""
        return f"{self.name}: {self.seen}"


@dataclass(frozen=True, slots=True)
class Proof:
    """The smoke test of one generation.

    ``booted``: the generation had come up by a boot, not by a live switch. ``invocation`` is systemd's id of the
    run, empty outside a unit; ``load`` the load test's own report, ``None`` where it did not come to that.
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
        """What failed outside of any generation."""
        return tuple(step for step in self.steps if step.external)

    @property
    def passed(self) -> bool:
        """Whether nothing failed, and there was anything to fail."""
        return bool(self.steps) and not self.failed

    @property
    def line(self) -> str:
        """The verdict in one line, for the console and the login screen."""
        label = Generation(self.system, self.number).label
        outside = "; ".join(step.sentence for step in self.external)
        beside = f"; no generation's fault: {outside}" if outside else ""
        if self.passed:
            warned = sum(step.level == "warn" for step in self.steps)
            remark = f", {warned} with a warning" if warned else ""
            steps = f"{len(self.steps)} steps{remark}, {self.duration_s:.0f} s"
            return f"smoke test of {label}: PASS, {steps}{beside}"
        what = "; ".join(step.sentence for step in self.failed) or "nothing was looked at"
        return f"smoke test of {label}: FAIL: {what}{beside}"


def folder_of(reports: Path, generation: Generation) -> Path:
    """Where the report of ``generation`` lies: by its number, or by its store path where it has none."""
    name = Path(generation.system).name if generation.number is None else str(generation.number)
    return reports / name


def save(proof: Proof, folder: Path) -> None:
    """Write the report as JSON and as a page; raises :class:`StoreError` where the disk refuses."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        verdict = "pass" if proof.passed else "fail"
        report = json.dumps({"verdict": verdict, **asdict(proof)}, indent=2)
        # The report last: who finds it finds everything.
        for name, text in ((PAGE, page(proof)), (NAME, report)):
            replace_file(folder / name, folder / f".{name}.new", text.encode())
    except OSError as error:
        raise StoreError.unwritable(folder, error) from None


def latest(reports: Path, generation: Generation) -> Proof | None:
    """The report on ``generation``; ``None`` where there is none that is whole and of the same system.

    Raises :class:`StoreError` where there is one that may not be read.
    """
    proof = _read(folder_of(reports, generation) / NAME)
    # A number is given again after old generations were deleted.
    return proof if proof is not None and generation.same(Generation(proof.system)) else None


def of_run(reports: Path, invocation: str) -> Proof | None:
    """The report of the run that systemd calls ``invocation``, on whatever generation; ``None`` without one.

    Raises :class:`StoreError` where a report may not be read.
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
        # A power cut leaves half a file, and another version other fields.
        return None


_OUTSIDE = "<br><small>It fails, and no generation causes or mends that.</small>"

_STYLE = """
:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;
padding:0 1rem}table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.4rem .6rem;border-bottom:1px solid #8884;
vertical-align:top}th.n,td.n{text-align:right;font-variant-numeric:tabular-nums}.ok{color:#197a3b}.warn{color:#a06500}
.fail{color:#c22;font-weight:600}h1 small{font-weight:400;opacity:.7;font-size:60%}
@media(prefers-color-scheme:dark){.ok{color:#5fd38a}.warn{color:#ffc266}.fail{color:#ff7a7a}}
"""


def page(proof: Proof) -> str:
    """The report as one page that needs nothing else."""
    label = escape(Generation(proof.system, proof.number).label)
    verdict, colour = ("PASS", "ok") if proof.passed else ("FAIL", "fail")
    came = "came up by a boot" if proof.booted else "was switched to live"
    rows = "".join(
        f'<tr><td>{escape(s.name)}</td><td class="{s.level}">{s.level}</td>'
        f"<td>{escape(s.seen)}{_OUTSIDE if s.external else ''}</td>"
        f"<td>{escape(s.mend)}</td></tr>"
        for s in proof.steps
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Smoke test of {label}: {verdict}</title>'
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        f'<style>{_STYLE}</style><h1>Smoke test of {label}: <span class="{colour}">{verdict}</span></h1>'
        f"<p>{escape(proof.began)}, {proof.duration_s:.0f} s. The system {came}.<br><code>{escape(proof.system)}"
        "</code></p><table><thead><tr><th>step</th><th>is</th><th>seen</th><th>what mends it</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>{_load(proof.load)}</html>\n"
    )


def _load(load: dict[str, object] | None) -> str:
    percentiles = (load or {}).get("percentiles")
    if not isinstance(percentiles, dict) or not percentiles:
        return ""
    columns = list(dict.fromkeys(column for values in percentiles.values() for column in values))
    head = "".join(f'<th class="n">{escape(column)}</th>' for column in columns)
    rows = "".join(_row(name, values, columns) for name, values in percentiles.items())
    more = '<p>With plots: <a href="load.html">load.html</a></p>'
    return f"<h2>Load <small>milliseconds</small></h2><table><tr><th></th>{head}</tr>{rows}</table>{more}"


def _row(name: str, values: dict[str, float], columns: Sequence[str]) -> str:
    cells = "".join(f'<td class="n">{values[s]:.1f}</td>' if s in values else "<td></td>" for s in columns)
    return f"<tr><td>{escape(name)}</td>{cells}</tr>"
