"""``python -m appliance.planner``: the planner without the rest of the appliance."""

from __future__ import annotations

import argparse
import sys

from appliance.cli.plan import add_parser, run
from appliance.errors import ApplianceError


def main() -> int:
    """Parses the command line and runs it; errors are one line each."""
    parser = argparse.ArgumentParser(prog="appliance")
    add_parser(parser.add_subparsers(dest="command", required=True))
    args = parser.parse_args()
    try:
        return run(args)
    except ApplianceError as error:
        sys.stderr.write(f"appliance: {error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
