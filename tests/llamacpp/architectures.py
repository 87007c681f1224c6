"""Prints the architectures that llama.cpp's own loader accepts: ``python -m tests.llamacpp.architectures > FILE``.

FILE is appliance/engines/llamacpp_architectures.txt. The package of the tests embeds llama.cpp. Each text among the
constants of its binary is tried, and each end of one. Linkers merge a text into a longer one with the same end.
The trial is a file whose header names the text as its architecture, and has nothing else. The loader reports an
unknown architecture, or that it misses another key of the header. All 49,000 trials take half an hour.
"""

from __future__ import annotations

import contextlib
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

import xllamacpp

from tests.llamacpp.server_command import parameters, parser
from tests.llamacpp.tiny_gguf import write_gguf

TEXT = re.compile(rb"(?<![a-z0-9_.-])[a-z0-9_.-]{2,200}(?=\0)")
"""A text of the binary that may end with the name of an architecture."""

LENGTHS = range(2, 25)
"""Letters of such a name."""

BATCH = 200
"""Files that one process tries: its log is complete after its end."""

UNKNOWN = re.compile(r"unknown model architecture: '([^']+)'")
"""The loader's report for a name that it lacks."""
ASKS = re.compile(r"key not found in model: (\S+?)\.[a-z_.]+\s")
"""The loader's report for a name that it accepts and whose header has no other key."""


def build() -> str:
    """Return the build of the embedded llama.cpp: the last part of the package's version."""
    return "b" + version("xllamacpp").rpartition(".")[2]


def loaded(names: Iterable[str]) -> set[str]:
    """Return those of ``names`` that the loader accepts."""
    found: set[str] = set()
    left = set(names)
    # The log is written by a thread, which may lose lines of a busy process: those names are tried again.
    while left:
        before = len(left)
        tried = sorted(left)
        for begin in range(0, len(tried), BATCH):
            report = _report(tried[begin : begin + BATCH])
            found |= set(ASKS.findall(report)) & left
            left -= set(ASKS.findall(report)) | set(UNKNOWN.findall(report))
        if len(left) == before:
            # The loader reports another reason for them: it loads no model of such a name.
            break
    return found


def _report(names: Sequence[str]) -> str:
    """Return the log of a process that tries ``names``."""
    command = [sys.executable, "-m", "tests.llamacpp.architectures", *names]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=300)
    return done.stdout + done.stderr


def try_all(names: Sequence[str]) -> None:
    """Load a file of each name; the loader logs why it fails."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.gguf"
        words = ["--model", str(file), "--alias", "x", "--host", "127.0.0.1", "--port", "0", "--ctx-size", "64"]
        asked = parameters(parser().parse_args(words))
        for name in names:
            write_gguf(file, {"general.architecture": name, "general.alignment": 32}, [])
            with contextlib.suppress(RuntimeError):
                xllamacpp.Server(asked)


def candidates() -> set[str]:
    """Return the texts among the constants of the binary, and their ends."""
    binary = Path(xllamacpp.__file__).with_name("xllamacpp.abi3.so").read_bytes()
    texts = {text.decode() for text in TEXT.findall(section(binary, ".rodata"))}
    return {text[-length:] for text in texts for length in LENGTHS if text[-length:][0].isalpha()}


def section(elf: bytes, wanted: str) -> bytes:
    """Return a section of a 64-bit ELF file, by the table in its header (elf(5))."""
    (table,) = struct.unpack_from("<Q", elf, 40)
    each, count, names = struct.unpack_from("<HHH", elf, 58)
    rows = [struct.unpack_from("<IIQQQQ", elf, table + number * each) for number in range(count)]
    for name, _, _, _, offset, size in rows:
        label = rows[names][4] + name
        if elf[label : elf.index(b"\0", label)].decode() == wanted:
            return elf[offset : offset + size]
    raise LookupError(wanted)


def main() -> None:
    """Print the list."""
    print(f"# Architectures that llama.cpp {build()} loads; `python -m tests.llamacpp.architectures` prints them.")
    print("\n".join(sorted(loaded(candidates()))))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        try_all(sys.argv[1:])
    else:
        main()
