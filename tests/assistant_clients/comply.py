"""Runs the Open Responses compliance suite, ``llm-comply``, against a gateway with an assistant and a mock engine.

It needs the program ``llm-comply``, which no lock of ours has: install it in an environment of its own and name it
with ``--program``. The name of the model is that of a reasoning model: under another name the suite skips one of
its 13 cases.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.assistant_clients.site import service_with_state

REASONING_NAME = "gpt-5-mock"


def main() -> int:
    """Return the exit code of the suite: 0 if every case passes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="llm-comply", help="the path of llm-comply")
    parser.add_argument("--model", default=REASONING_NAME)
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        service_with_state(Path(folder) / "site", model=args.model) as service,
    ):
        argv = [args.program, "--base-url", f"{service.url}/v1", "--api-key", service.key, "--model", args.model]
        return subprocess.run(argv, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
