"""Run the network tests three times and write the table of their results to docs/verification.md.

python -m tests.network.table [--runs 3] [PYTEST ARGUMENT ...]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

from tests.conftest import ROOT
from tests.network import together

DOCUMENT = ROOT / "docs" / "verification.md"
BEGIN, END = "<!-- network table: make network-table -->", "<!-- end of the network table -->"


@dataclass
class Row:
    """One case: the expected result, and for each run the seen result and the seconds."""

    expected: str
    seen: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


@dataclass
class NetworkRun:
    """One run of the tests."""

    seconds: float
    passed: int
    controls: int
    skipped: int


def read(reports: list[Path], rows: dict[str, Row], seconds: float) -> NetworkRun:
    """Add the rows of one run, from its JUnit ``reports``, to ``rows``."""
    passed = controls = skipped = 0
    for case in (case for report in reports for case in ET.parse(report).getroot().iter("testcase")):
        if case.find("skipped") is not None:
            skipped += 1
            continue
        passed += 1
        controls += "control" in case.get("name", "")
        for prop in case.iter("property"):
            if prop.get("name") == "row":
                name, expected, seen = prop.get("value", "").split("\t")
                row = rows.setdefault(name, Row(expected))
                row.seen.append(seen)
                row.seconds.append(float(case.get("time", "0")))
    return NetworkRun(seconds, passed, controls, skipped)


def table(rows: dict[str, Row], runs: list[NetworkRun]) -> str:
    """Return the table, sorted by case."""
    lines = [
        f"{len(runs)} runs: " + "; ".join(
            f"{run.passed} passed in {run.seconds:.0f} s" + (f", {run.skipped} skipped" if run.skipped else "")
            for run in runs
        ) + f". {runs[-1].controls} of the tests are controls by name; other tests include their controls.",
        "",
        "| case | expected | seen, run by run | seconds, for the first case with the set-up |",
        "|---|---|---|---|",
    ]  # fmt: skip
    for name, row in sorted(rows.items(), key=lambda item: (item[0].split()[0], item[0])):
        once = [seen for number, seen in enumerate(row.seen) if seen not in row.seen[:number]]
        took = " / ".join(f"{seconds:.1f}" for seconds in row.seconds)
        lines.append(f"| {name} | {row.expected} | {' / '.join(once)} | {took} |")
    return "\n".join(lines)


def put(text: str, document: Path = DOCUMENT) -> None:
    """Replace the text between the two marks."""
    whole = document.read_text()
    before, _, rest = whole.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        sys.exit(f"{document} has no marks for the table: add {BEGIN} and {END}")
    document.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--runs", type=int, default=3, help="runs to add; 0 only writes the table of the runs in --reports"
    )
    parser.add_argument(
        "--reports", type=Path, help="folder that keeps the reports, so that runs can be added one by one"
    )
    options, further = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.reports or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for _ in range(options.runs):
            began = time.monotonic()
            reports = Path(tempfile.mkdtemp(dir=folder, prefix=f"{time.time_ns()}-"))
            if code := together.run(further, reports):
                return code
            (reports / "seconds").write_text(f"{time.monotonic() - began:.0f}")
        rows: dict[str, Row] = {}
        made = sorted(file.parent for file in folder.glob("*/seconds"))
        runs = [read(sorted(one.glob("*.xml")), rows, float((one / "seconds").read_text())) for one in made]
        put(table(rows, runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
