"""Write the generated pages and drawings, or build the site: ``python -m tools.manual``."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path

from tools.manual import generated, site


def main() -> int:
    """Write, check or build; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.manual", description=__doc__)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is stale")
    choice.add_argument("--site", type=Path, metavar="FOLDER", help="build the site of both languages")
    args = parser.parse_args()
    if args.check:
        found = generated.stale()
        for path in found:
            print(f"{path} is stale: run `python -m tools.manual`", file=sys.stderr)
        return 1 if found else 0
    if args.site is not None:
        # The builder logs the dead links that end it.
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        with tempfile.TemporaryDirectory() as work:
            site.build(args.site.resolve(), Path(work))
        print(f"the manual is in {args.site}: index.html, and manual-en.html and manual-ru.html for the printer")
        return 0
    for file, text in generated.files().items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
