"""The NEEDED names of a shared library or program, which its loader must find. ELF64, little-endian. Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass

PT_LOAD, PT_DYNAMIC = 1, 2
DT_NULL, DT_NEEDED, DT_STRTAB = 0, 1, 5
X86_64 = 62
MAGIC = b"\x7fELF\x02\x01"


@dataclass(frozen=True, slots=True)
class Elf:
    """One ELF file."""

    machine: int
    needed: tuple[str, ...]


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
    return Elf(machine, tuple(_string(data, strings + value) for tag, value in entries if tag == DT_NEEDED))


def _string(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()
