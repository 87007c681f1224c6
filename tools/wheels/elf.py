"""The part of a shared library or program that its loader reads: needed names, and where to find them. Pure.

ELF64, little-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

PT_LOAD, PT_DYNAMIC = 1, 2
DT_NULL, DT_NEEDED, DT_STRTAB, DT_RPATH, DT_RUNPATH = 0, 1, 5, 15, 29
X86_64 = 62
MAGIC = b"\x7fELF\x02\x01"


@dataclass(frozen=True, slots=True)
class Elf:
    """One ELF file."""

    machine: int
    needed: tuple[str, ...]
    runpath: tuple[str, ...] = ()
    """Folders in which the loader searches first; ``$ORIGIN`` is that of the file."""


def parse(data: bytes) -> Elf | None:
    """Return the ELF file in ``data``; ``None`` for other files, and for object files, which are never loaded."""
    if not data.startswith(MAGIC):
        return None
    kind, machine = struct.unpack_from("<HH", data, 16)
    if kind not in {2, 3}:
        return None
    (offset,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    segments = [struct.unpack_from("<IIQQQQQQ", data, offset + index * size) for index in range(count)]
    loads = [(s[3], s[2], s[5]) for s in segments if s[0] == PT_LOAD]
    dynamic = next(((s[2], s[5]) for s in segments if s[0] == PT_DYNAMIC), None)
    if dynamic is None:
        return Elf(machine, ())
    entries = []
    for position in range(dynamic[0], dynamic[0] + dynamic[1], 16):
        tag, value = struct.unpack_from("<qQ", data, position)
        if tag == DT_NULL:
            break
        entries.append((tag, value))
    table = next((value for tag, value in entries if tag == DT_STRTAB), 0)
    strings = next((at + table - start for start, at, length in loads if start <= table < start + length), table)
    named = {tag: [_string(data, strings + at) for got, at in entries if got == tag] for tag in
             (DT_NEEDED, DT_RPATH, DT_RUNPATH)}  # fmt: skip
    folders = (named[DT_RUNPATH] or named[DT_RPATH] or [""])[0]
    return Elf(machine, tuple(named[DT_NEEDED]), tuple(folder for folder in folders.split(":") if folder))


def _string(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()
