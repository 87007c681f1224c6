"""Checks the prose of the repository: ``python -m tools.prose [PATH ...]``; exit code 1 if a rule is violated."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tools.prose.extract import blanked, passages
from tools.prose.rules import check

ROOT = Path(__file__).resolve().parents[2]

SKIPPED = ("tests/clients/requests.json", "LICENSE", "tools/prose/", "tests/tools/test_prose.py")
"""Files without prose of ours, and those that list the forbidden words."""


def main() -> int:
    """Print one line per violation and their number."""
    parser = argparse.ArgumentParser(prog="python -m tools.prose", description="Check comments, texts and docs.")
    parser.add_argument("paths", nargs="*", type=Path, help="files or folders; the whole repository when absent")
    parser.add_argument("--count", action="store_true", help="print the number of violations by folder only")
    args = parser.parse_args()
    found = list(violations(list(args.paths)))
    if args.count:
        folders = Counter("/".join(name.split("/")[:2]) for name, _ in found)
        for folder, count in sorted(folders.items()):
            print(f"{count:5} {folder}")
    else:
        for _, line in found:
            print(line)
    print(f"{len(found)} violations")
    return 1 if found else 0


def violations(paths: list[Path]) -> Iterator[tuple[str, str]]:
    """Yield ``(file, message)`` for each violation in ``paths``."""
    for name in _files(paths):
        text = (ROOT / name).read_text(encoding="utf-8")
        for passage in passages(Path(name), text):
            prose = blanked(passage.text)
            for match in check(prose):
                line = passage.line + prose.count("\n", 0, match.offset)
                yield name, f"{name}:{line}: {match.words!r}: {match.advice}"


def _files(paths: list[Path]) -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *map(str, paths)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    kinds = {".py", ".md", ".nix", ".sh", ".toml", ".yml", ".in", ".txt", ".mjs"}
    return [
        name
        for name in listed
        if (Path(name).suffix in kinds or Path(name).name in {"Makefile", "run"})
        and not name.startswith(SKIPPED)
        and (ROOT / name).is_file()
    ]


if __name__ == "__main__":
    sys.exit(main())
