"""docs/wheels.md: findings as tables. `make verify-wheels` writes the first part, `make prove-engine` the last."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

REPORT = Path(__file__).resolve().parents[2] / "docs" / "wheels.md"

BUILT = "## The environment that the derivation builds"
"""The heading of the last part."""


@dataclass(slots=True)
class WheelFinding:
    """One line of the report: the requirement, what was found, and a line for each violation."""

    title: str
    found: str
    wrong: list[str] = field(default_factory=list)


def table(findings: list[WheelFinding]) -> list[str]:
    """Return the lines of a table of ``findings``, and below it a line for each violation."""
    lines = ["| what | found | holds |", "|---|---|---|"]
    lines += [f"| {item.title} | {item.found} | {'NO' if item.wrong else 'yes'} |" for item in findings]
    return lines + [f"\n- {line}" for item in findings for line in item.wrong]


def printed(findings: list[WheelFinding]) -> str:
    """Return ``findings`` for a terminal."""
    text = ""
    for item in findings:
        text += f"{'NO ' if item.wrong else 'ok '} {item.title}: {item.found}\n"
        text += "".join(f"     {line}\n" for line in item.wrong)
    return text


def with_first_part(report: str, part: str) -> str:
    """Return ``report`` with ``part`` in place of everything before :data:`BUILT`."""
    _, heading, built = report.partition(BUILT)
    return part.rstrip() + "\n" + (f"\n{heading}{built}" if heading else "")


def with_last_part(report: str, part: str) -> str:
    """Return ``report`` with ``part``, which begins with :data:`BUILT`, as its last part."""
    return report.partition(BUILT)[0].rstrip() + "\n\n" + part.rstrip() + "\n"
