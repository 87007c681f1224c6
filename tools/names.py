"""Checks that a type's name is used once: ``python -m tools.names``; exit code 1 and one line per repeated name."""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("appliance", "loadtests", "tools", "benchmarks", "tests")


def main() -> int:
    """Print each type name that two definitions share, with their places."""
    places = defaultdict(list)
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "node_modules" in path.parts or ".venvs" in path.parts:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    places[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    repeated = {name: where for name, where in sorted(places.items()) if len(where) > 1}
    for name, where in repeated.items():
        print(f"{name}: {', '.join(where)}")
    print(f"{len(repeated)} type names are used twice or more")
    return 1 if repeated else 0


if __name__ == "__main__":
    sys.exit(main())
