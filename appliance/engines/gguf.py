"""The header of a GGUF file: its metadata as far as a start depends on it, and where its tensors begin.

The format is that of docs/gguf.md of ggml-org/ggml: a magic, a version, counts, metadata as typed pairs, the
descriptions of the tensors, and their aligned data. Only the header is read. Each length in it is compared with
the file before its use, because a damaged file may contain any number.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from appliance.errors import FileAccessError, StoreError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
"""Versions that llama.cpp reads; version 1 had counts of 32 bits."""

HEADER_LIMIT = 256 * 2**20
"""Bytes of the largest header that is read: a vocabulary of 500,000 tokens and its merges take about 20 MB."""

KEY_LIMIT = 65_535
"""Bytes of a key at most, by the format."""

NAME_LIMIT = 4096
"""Bytes of a text that is kept; longer ones, such as chat templates, are skipped."""

DIMENSIONS = 4
"""Dimensions of a tensor at most."""

DEFAULT_ALIGNMENT = 32

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value by its type: integers of 8 to 64 bits, floats, a boolean."""
UINT32, STRING, ARRAY = 4, 8, 9

PART = re.compile(r"-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
"""The end of the name of a GGUF in several parts."""


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Values of a header: the architecture, empty in parts after the first, and the start of the last tensor."""

    architecture: str
    last_tensor: int
    """Byte of the file at which its last tensor begins; the length of the header if it has no tensor."""


def read_header(path: Path) -> GgufHeader:
    """Read the header of the GGUF file ``path``.

    Raises :class:`StoreError` if the file does not exist, cannot be read, is not a GGUF, is damaged, or ends before
    its last tensor begins.
    """
    try:
        with path.open("rb") as file:
            return _HeaderReader(path, file).header()
    except FileNotFoundError:
        raise StoreError(f"{path}: does not exist; fetch the model, or correct its source") from None
    except PermissionError as error:
        raise FileAccessError.unreadable(path, error) from None
    except OSError as error:
        raise StoreError.unreadable(path, error) from None


def parts_of(path: Path) -> list[Path]:
    """Return all files of the GGUF whose first part is ``path``.

    Raises :class:`StoreError` if the name is that of another part, because llama.cpp loads the others by the first.
    """
    found = PART.search(path.name)
    if found is None:
        return [path]
    number, count = int(found["number"]), int(found["count"])
    stem = path.name[: found.start()]
    parts = [path.with_name(f"{stem}-{index:05}-of-{count:05}.gguf") for index in range(1, count + 1)]
    if number != 1:
        raise StoreError(
            f"{path}: is part {number} of {count}; name the first part, ending in -00001-of-{count:05}"
        )
    return parts


def read_model(path: Path) -> GgufHeader:
    """Return the header of the model ``path`` after reading those of all its parts; raises :class:`StoreError`."""
    headers = [read_header(part) for part in parts_of(path)]
    if not headers or not headers[0].architecture:
        raise StoreError(f"{path}: its header has no general.architecture; fetch it again, or convert it again")
    return headers[0]


class _HeaderReader:
    """Reads one header from its begin to its end."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._size = file.seek(0, 2)
        self._at = file.seek(0)

    def header(self) -> GgufHeader:
        begin = self._file.read(len(MAGIC))
        self._at = len(begin)
        if begin != MAGIC:
            raise StoreError(
                f"{self._path}: is not a GGUF file, it begins with {begin!r}; name a GGUF, or fetch it"
            )
        version = self._number("<I")
        if version not in VERSIONS:
            raise StoreError(f"{self._path}: has GGUF version {version}, llama.cpp reads 2 and 3; convert it again")
        tensors, pairs = self._number("<Q"), self._number("<Q")
        architecture, alignment = "", DEFAULT_ALIGNMENT
        for _ in range(pairs):
            key = self._text(KEY_LIMIT)
            kind = self._number("<I")
            if key == "general.architecture" and kind == STRING:
                architecture = self._text(NAME_LIMIT)
            elif key == "general.alignment" and kind == UINT32:
                alignment = self._number("<I")
            else:
                self._skip_value(kind, key)
        offsets = [self._tensor() for _ in range(tensors)]
        if not 0 < alignment <= HEADER_LIMIT:
            raise self._damaged(f"an alignment of {alignment} bytes")
        data = -(-self._at // alignment) * alignment
        last = data + max(offsets) if offsets else self._at
        if offsets and last >= self._size:
            raise StoreError(
                f"{self._path}: has {self._size} bytes and a tensor that begins at byte {last}; fetch it again"
            )
        return GgufHeader(architecture, last)

    def _tensor(self) -> int:
        """Return the offset of the next tensor's data."""
        name = self._text(KEY_LIMIT)
        dimensions = self._number("<I")
        if dimensions > DIMENSIONS:
            raise self._damaged(f"{dimensions} dimensions of tensor {name[:80]!r}")
        # The sizes, and the type of the values: each version of llama.cpp adds types.
        self._skip(8 * dimensions + 4)
        return self._number("<Q")

    def _skip_value(self, kind: int, key: str) -> None:
        if kind == STRING:
            self._skip(self._number("<Q"))
        elif kind == ARRAY:
            element, count = self._number("<I"), self._number("<Q")
            if element == STRING:
                for _ in range(count):
                    self._skip(self._number("<Q"))
            else:
                self._skip(self._size_of(element, key) * count)
        else:
            self._skip(self._size_of(kind, key))

    def _size_of(self, kind: int, key: str) -> int:
        if kind not in SIZES:
            raise self._damaged(f"type {kind} of {key[:80]!r}")
        return SIZES[kind]

    def _text(self, limit: int) -> str:
        length = self._number("<Q")
        if length > limit:
            raise self._damaged(f"a text of {length} bytes")
        return self._bytes(length).decode("utf-8", "replace")

    def _number(self, form: str) -> int:
        (value,) = struct.unpack(form, self._bytes(struct.calcsize(form)))
        return int(value)

    def _bytes(self, count: int) -> bytes:
        self._advance(count)
        return self._file.read(count)

    def _skip(self, count: int) -> None:
        self._advance(count)
        self._file.seek(count, 1)

    def _advance(self, count: int) -> None:
        """Move the position by ``count`` bytes, if the file and the limit have so many."""
        end = self._at + count
        if end > self._size:
            raise StoreError(f"{self._path}: ends within its header, after {self._size} bytes; fetch it again")
        if end > HEADER_LIMIT:
            raise self._damaged(f"a header above {HEADER_LIMIT >> 20} MiB")
        self._at = end

    def _damaged(self, what: str) -> StoreError:
        return StoreError(f"{self._path}: is damaged, its header has {what} before byte {self._at}; fetch it again")
