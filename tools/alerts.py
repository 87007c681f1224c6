"""Write the files that are made of the alerts and dashboards: ``python -m tools.alerts [--check]``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from appliance.watch import alerts, dashboards

ROOT = Path(__file__).resolve().parent.parent
OBSERVE = "modules/observe"


def files() -> dict[str, str]:
    """Return the generated files by path in the repository."""
    return {
        f"{OBSERVE}/rules.json": _json(alerts.rules()),
        f"{OBSERVE}/routing.json": _json(alerts.routing()),
        "docs/runbook.md": alerts.runbook(),
        **{f"{OBSERVE}/dashboards/{board['uid']}.json": _json(board) for board in dashboards.dashboards()},
    }


def stale(root: Path) -> list[str]:
    """Return the stale paths below ``root``, and dashboards without a source."""
    generated = files()
    differing = [path for path, text in generated.items() if _text(root / path) != text]
    found = (root / OBSERVE / "dashboards").glob("*.json")
    return differing + [
        str(file.relative_to(root)) for file in found if str(file.relative_to(root)) not in generated
    ]


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _text(file: Path) -> str | None:
    return file.read_text() if file.exists() else None


def main() -> int:
    """Write the files, or with ``--check`` name the stale ones; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is stale")
    if parser.parse_args().check:
        found = stale(ROOT)
        for path in found:
            print(f"{path} is stale: run `python -m tools.alerts`", file=sys.stderr)
        return 1 if found else 0
    for path, text in files().items():
        file = ROOT / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
