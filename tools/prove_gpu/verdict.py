"""The verdict of the proof, from the outcomes of its parts. Pure.

| parts | verdict | exit code |
|---|---|---|
| one failed | failed | 1 |
| none failed, one is missing | could not run | 2 |
| all passed | proven | 0 |

A speed is reported, and is never a failure: cards and disks differ.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

PROVEN, FAILED, NOT_RUN = 0, 1, 2
VERDICTS = {PROVEN: "proven", FAILED: "failed", NOT_RUN: "could not run"}

ProofOutcome = Literal["passed", "failed", "missing"]


@dataclass(frozen=True, slots=True)
class ProofPart:
    """The result of one part: its outcome with the reason, its figures, its seconds."""

    name: str
    outcome: ProofOutcome
    reason: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def exit_code(parts: Sequence[ProofPart]) -> int:
    """Return the exit code of the table."""
    outcomes = {part.outcome for part in parts}
    if "failed" in outcomes:
        return FAILED
    return PROVEN if outcomes == {"passed"} else NOT_RUN


def to_json(machine: dict[str, Any], parts: Sequence[ProofPart]) -> str:
    """Return the report."""
    table = {
        "verdict": VERDICTS[exit_code(parts)],
        "machine": machine,
        "parts": [asdict(part) for part in parts],
    }
    return json.dumps(table, indent=2)


def part_of(name: str, output: str, code: int, seconds: float) -> ProofPart:
    """Return the result that the process of a part printed in its last line.

    A process without such a line failed: it ended by an error of the driver, or was killed.
    """
    lines = [line for line in output.splitlines() if line.strip()]
    try:
        found = json.loads(lines[-1]) if lines else None
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("outcome") not in ("passed", "failed", "missing"):
        last = lines[-1][:300] if lines else "no output"
        return ProofPart(name, "failed", f"it ended with code {code} and without a result: {last}", {}, seconds)
    reason = str(found.get("reason", ""))
    if code != 0 and found["outcome"] == "passed":
        return ProofPart(
            name, "failed", f"it passed, then ended with code {code}", found.get("figures", {}), seconds
        )
    return ProofPart(name, found["outcome"], reason, found.get("figures", {}), seconds)
