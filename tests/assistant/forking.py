"""Starts assistants by fork: a restart imports nothing, so that a test can afford many.

``python -m tests.assistant.forking SITE`` starts one for each line of its input, one after the other. A line can
name a defect of :mod:`tests.assistant.sabotage`. It prints the process id of each, and ``ended`` after its end.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from appliance.assistant.main import serve
from appliance.contract.load import load
from tests.assistant.sabotage import DEFECTS


def main() -> None:
    """Fork an assistant for each line of the input and wait for its end."""
    site = load(Path(sys.argv[1]))
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            if defect := line.removeprefix("start").strip():
                DEFECTS[defect]()
            os._exit(serve(site, Path.cwd()))
        print(child, flush=True)
        os.waitpid(child, 0)
        print("ended", flush=True)


if __name__ == "__main__":
    main()
