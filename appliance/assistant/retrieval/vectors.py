"""Exact search over unit vectors: float32 rows of one contiguous matrix, addressed by slot.

The search computes the dot product of the query with every live row. It reads each row once and copies none, so its
time is that of reading the matrix: 328 MB for 20,000 rows of 4,096 numbers. A mask limits the search to some rows;
runs of allowed rows are computed alone if that saves reading.

The matrix may be a file that the caller maps into memory. Its layout: one page of header (:data:`HEADER`), then the
rows in the order of their slots, little-endian float32. The header names the dimensions, the rows and the
fingerprint of the embedder. It has a mark that is set while the file is open for writing. The database has the
vectors as well and remains the truth: a file with a different header or with the mark is made again.

A row of zeros is free. A live row has length 1. An index is not safe for threads: the caller serialises changes and
searches. The product itself runs without the interpreter's lock.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vectors = NDArray[np.float32]
Mask = NDArray[np.bool_]

MAGIC = b"APPLVEC1"
HEADER = struct.Struct("<8sIIQ32s")
"""Magic, dimensions, 1 while the file is open for writing, rows, SHA-256 of the embedder's fingerprint."""
HEADER_BYTES = 4096
"""Size of the header: one page, so that the rows are aligned."""
MERGED_GAP = 32
"""Rows between two allowed runs that are computed with them, because a call costs as much."""


WritableBuffer = bytearray | mmap.mmap
"""A mapped file, or memory for tests."""


class VectorFileError(ValueError):
    """A vector file that does not fit the index and must be made again from the database."""


@dataclass(frozen=True, slots=True)
class VectorHit:
    """A row and its cosine similarity to the query, -1 to 1."""

    slot: int
    similarity: float


def file_bytes(dimensions: int, rows: int) -> int:
    """Return the size in bytes of a file with ``rows`` rows."""
    return HEADER_BYTES + dimensions * rows * 4


def unit_vector(vector: ArrayLike, dimensions: int) -> Vectors:
    """Return ``vector`` as float32 of length 1, shape (dimensions,).

    Raises:
        ValueError: The vector has another number of dimensions, is zero, or contains NaN or infinity.
    """
    # The length is computed in float64: the square of a large float32 would be infinite.
    exact = np.asarray(vector, np.float64)
    if exact.shape != (dimensions,):
        raise ValueError(f"the vector has shape {exact.shape}; the index has {dimensions} dimensions")
    with np.errstate(over="ignore", invalid="ignore"):
        length = float(np.linalg.norm(exact))
    if not np.isfinite(length) or length == 0:
        raise ValueError("the vector is zero or not finite; check the embedder's response")
    return np.asarray(exact / length, np.float32)


class VectorIndex:
    """Unit vectors by slot, in memory or in a buffer of the caller.

    Args:
        dimensions: Numbers of each vector.
        rows: Rows of the matrix; :meth:`put` doubles a matrix in memory when it is full.
    """

    def __init__(self, dimensions: int, *, rows: int = 1024) -> None:
        if dimensions < 1 or rows < 0:
            raise ValueError(f"{dimensions} dimensions and {rows} rows are not a valid matrix")
        self._matrix: Vectors = np.zeros((rows, dimensions), np.float32)
        self._live: Mask = np.zeros(rows, np.bool_)
        self._used = 0
        """One more than the highest live slot."""
        self._buffer: WritableBuffer | None = None

    @classmethod
    def create(cls, buffer: WritableBuffer, dimensions: int, fingerprint: bytes) -> VectorIndex:
        """Write an empty file into ``buffer``, mark it as open for writing, and return its index.

        Args:
            buffer: The mapped file; its size determines the number of rows.
            dimensions: Numbers of each vector.
            fingerprint: SHA-256 of the embedder's fingerprint, 32 bytes.
        """
        rows = (len(buffer) - HEADER_BYTES) // (dimensions * 4)
        if rows < 1 or len(fingerprint) != 32:
            raise ValueError(
                f"{len(buffer)} bytes hold no row of {dimensions} numbers, or the digest is not SHA-256"
            )
        HEADER.pack_into(buffer, 0, MAGIC, dimensions, 1, rows, fingerprint)
        matrix = np.frombuffer(buffer, "<f4", dimensions * rows, HEADER_BYTES).reshape(rows, dimensions)
        # Pages of a new file that are zero already are not written.
        matrix[matrix.any(axis=1)] = 0
        return cls._over(buffer, dimensions, rows)

    @classmethod
    def open(cls, buffer: WritableBuffer, dimensions: int, fingerprint: bytes) -> VectorIndex:
        """Return the index of a file that :meth:`close` completed, and mark the file as open for writing.

        Raises:
            VectorFileError: The file has another layout, dimensions, fingerprint or size, or was not closed.
        """
        if len(buffer) < HEADER_BYTES:
            raise VectorFileError("the vector file is shorter than its header; make it again")
        magic, its_dimensions, opened, rows, its_fingerprint = HEADER.unpack_from(buffer, 0)
        if magic != MAGIC:
            raise VectorFileError("the file is not a vector file of this version; make it again")
        if (its_dimensions, its_fingerprint) != (dimensions, fingerprint):
            raise VectorFileError("the vector file is of another embedder; make it again")
        if len(buffer) != file_bytes(dimensions, rows):
            raise VectorFileError(
                f"the vector file has {len(buffer)} bytes, not those of {rows} rows; make it again"
            )
        if opened:
            raise VectorFileError("the vector file was not closed after its last change; make it again")
        HEADER.pack_into(buffer, 0, MAGIC, dimensions, 1, rows, fingerprint)
        return cls._over(buffer, dimensions, rows)

    @classmethod
    def _over(cls, buffer: WritableBuffer, dimensions: int, rows: int) -> VectorIndex:
        index = cls(dimensions, rows=0)
        index._buffer = buffer
        index._matrix = np.frombuffer(buffer, "<f4", dimensions * rows, HEADER_BYTES).reshape(rows, dimensions)
        index._live = np.asarray(index._matrix.any(axis=1), np.bool_)
        live = np.flatnonzero(index._live)
        index._used = int(live[-1]) + 1 if len(live) else 0
        return index

    def close(self) -> None:
        """Release the buffer and mark it as complete; the caller then flushes and unmaps the file."""
        if self._buffer is None:
            return
        # The mark is the second number of the header, after magic and dimensions.
        struct.pack_into("<I", self._buffer, 12, 0)
        self._matrix = np.zeros((0, self.dimensions), np.float32)
        self._live, self._used, self._buffer = np.zeros(0, np.bool_), 0, None

    @property
    def dimensions(self) -> int:
        """Numbers of each vector."""
        return int(self._matrix.shape[1])

    @property
    def rows(self) -> int:
        """Rows of the matrix, free ones included."""
        return len(self._matrix)

    def __len__(self) -> int:
        return int(np.count_nonzero(self._live))

    def __contains__(self, slot: int) -> bool:
        return 0 <= slot < self.rows and bool(self._live[slot])

    def put(self, slot: int, vector: ArrayLike) -> None:
        """Store ``vector`` in the row ``slot``, in the place of a vector that the row has.

        Args:
            slot: A row, at least 0. Small numbers keep the matrix small.
            vector: Shape (dimensions,), of any length except zero.

        Raises:
            ValueError: The vector is not valid, or the file has no such row.
        """
        unit = unit_vector(vector, self.dimensions)
        if slot < 0:
            raise ValueError(f"{slot} is not a valid slot")
        if slot >= self.rows:
            if self._buffer is not None:
                raise ValueError(f"the vector file has {self.rows} rows; make a larger one for slot {slot}")
            self._grow(max(slot + 1, 2 * self.rows))
        self._matrix[slot] = unit
        self._live[slot] = True
        self._used = max(self._used, slot + 1)

    def remove(self, slot: int) -> None:
        """Free the row ``slot``.

        Raises:
            KeyError: The row has no vector.
        """
        if slot not in self:
            raise KeyError(slot)
        self._matrix[slot] = 0
        self._live[slot] = False
        while self._used and not self._live[self._used - 1]:
            self._used -= 1

    def vector(self, slot: int) -> Vectors:
        """Return a copy of the unit vector of ``slot``."""
        if slot not in self:
            raise KeyError(slot)
        return np.array(self._matrix[slot], np.float32)

    def mask(self, slots: ArrayLike) -> Mask:
        """Return the mask for :meth:`search` that allows ``slots``, each below :attr:`rows`."""
        allowed = np.zeros(self.rows, np.bool_)
        allowed[np.asarray(slots, np.intp)] = True
        return allowed

    def search(self, query: ArrayLike, limit: int, *, allowed: Mask | None = None) -> list[VectorHit]:
        """Return the rows with the highest similarity, best first; equal ones by slot.

        Args:
            query: Shape (dimensions,), of any length except zero.
            limit: The largest number of hits.
            allowed: A mask of :meth:`mask`, bool of shape (rows,); None allows all.

        Raises:
            ValueError: The query is not valid.
        """
        unit = unit_vector(query, self.dimensions)
        if limit < 1 or not self._used:
            return []
        wanted = self._live[: self._used]
        if allowed is not None:
            wanted = wanted & allowed[: self._used]
        slots = np.flatnonzero(wanted)
        if not len(slots):
            return []
        similarities = np.empty(self._used, np.float32)
        for start, end in self._spans(slots):
            np.dot(self._matrix[start:end], unit, out=similarities[start:end])
        found = similarities[slots]
        if len(slots) > limit:
            # Every row with the similarity of the last one stays: the slots decide between them.
            least = np.partition(found, len(found) - limit)[len(found) - limit]
            kept = found >= least
            slots, found = slots[kept], found[kept]
        order = np.lexsort((slots, -found))[:limit]
        return [VectorHit(int(slots[at]), float(found[at])) for at in order]

    def _spans(self, slots: NDArray[np.intp]) -> Iterator[tuple[int, int]]:
        """Yield the spans of rows to compute; all rows are one span if the wanted ones are most of them."""
        if 2 * len(slots) > self._used:
            yield 0, self._used
            return
        gaps = np.flatnonzero(np.diff(slots) > MERGED_GAP)
        starts = slots[np.concatenate(([0], gaps + 1))]
        ends = slots[np.concatenate((gaps, [len(slots) - 1]))] + 1
        yield from zip(starts.tolist(), ends.tolist(), strict=True)

    def _grow(self, rows: int) -> None:
        matrix: Vectors = np.zeros((rows, self.dimensions), np.float32)
        matrix[: self._used] = self._matrix[: self._used]
        live = np.zeros(rows, np.bool_)
        live[: len(self._live)] = self._live
        self._matrix, self._live = matrix, live
