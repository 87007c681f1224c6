"""Seconds from a PDF of 20 pages to its passages: ``python -m benchmarks.files.parse_pages``."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time

from appliance.assistant.parsing.confined import parse_confined
from appliance.assistant.retrieval.chunking import ChunkSettings
from tests.assistant.made_documents import a_pdf

RUNS = 5
PAGES = 20
LINES = 45


def main() -> int:
    """Print the times of the start of Python alone and of the whole, the fastest of five runs each."""
    line = "Договор аренды {n}: the tenant pays rent on day {n} of each month, without reminders."
    pages = ["\n".join(line.format(n=page * LINES + row) for row in range(LINES)) for page in range(PAGES)]
    content = a_pdf(pages)
    start = min(_seconds_of_start() for _ in range(RUNS))
    times, passages = [], 0
    for _ in range(RUNS):
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.seek(0)
            begun = time.perf_counter()
            passages = len(asyncio.run(parse_confined(file, "pdf", ChunkSettings())))
            times.append(time.perf_counter() - begun)
    print(f"start of the process {start:.2f} s; {PAGES} pages, {passages} passages: {min(times):.2f} s")
    return 0


def _seconds_of_start() -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import appliance.assistant.parsing.child"], check=True)
    return time.perf_counter() - begun


if __name__ == "__main__":
    sys.exit(main())
