"""The vector index equals a plain product after any sequence of changes; files of another layout are refused."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from numpy.typing import NDArray

from appliance.assistant.retrieval.vectors import (
    HEADER_BYTES,
    MERGED_GAP,
    VectorFileError,
    VectorIndex,
    file_bytes,
    unit_vector,
)

DIMENSIONS = 4
DIGEST = bytes(range(32))
SMALL = st.lists(st.integers(-4, 4), min_size=DIMENSIONS, max_size=DIMENSIONS).filter(any)


def reference(vectors: dict[int, list[int]], query: list[int]) -> dict[int, float]:
    """Return the cosine similarity of each vector to ``query``, computed in float64."""
    q = np.array(query, np.float64)
    return {
        slot: float(np.dot(vector, q) / np.linalg.norm(vector) / np.linalg.norm(q))
        for slot, vector in vectors.items()
    }


class VectorMachine(RuleBasedStateMachine):
    """Changes of an index and of a dictionary, compared by a query."""

    def __init__(self) -> None:
        super().__init__()
        self.index = VectorIndex(DIMENSIONS, rows=2)
        self.vectors: dict[int, list[int]] = {}

    @rule(slot=st.integers(0, 40), vector=SMALL)
    def put(self, slot: int, vector: list[int]) -> None:
        self.index.put(slot, vector)
        self.vectors[slot] = vector

    @rule(slot=st.integers(0, 40))
    def remove(self, slot: int) -> None:
        if slot in self.vectors:
            self.index.remove(slot)
            del self.vectors[slot]
        else:
            with pytest.raises(KeyError):
                self.index.remove(slot)

    @rule(query=SMALL, limit=st.integers(1, 8), slots=st.none() | st.sets(st.integers(0, 40)))
    def search(self, query: list[int], limit: int, slots: set[int] | None) -> None:
        expected = reference(self.vectors, query)
        allowed = None
        if slots is not None:
            slots = {slot for slot in slots if slot < self.index.rows}
            allowed = self.index.mask([*slots])
            expected = {slot: value for slot, value in expected.items() if slot in slots}
        hits = self.index.search(query, limit, allowed=allowed)
        best = sorted(expected.values(), reverse=True)[:limit]
        assert [hit.similarity for hit in hits] == pytest.approx(best, abs=1e-6)
        assert {hit.slot: hit.similarity for hit in hits} == pytest.approx(
            {hit.slot: expected[hit.slot] for hit in hits}, abs=1e-6
        )

    @invariant()
    def has_the_same_slots(self) -> None:
        assert len(self.index) == len(self.vectors)
        assert all(slot in self.index for slot in self.vectors)


TestVectorMachine = VectorMachine.TestCase
TestVectorMachine.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)


@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_a_mask_computes_the_same_similarities(flags: list[bool]) -> None:
    rng = np.random.default_rng(len(flags))
    index = VectorIndex(8, rows=len(flags))
    vectors = rng.standard_normal((len(flags), 8))
    for slot, vector in enumerate(vectors):
        index.put(slot, vector)
    slots = [slot for slot, flag in enumerate(flags) if flag]
    everything = {hit.slot: hit.similarity for hit in index.search(vectors[0], len(flags))}
    hits = index.search(vectors[0], len(flags), allowed=index.mask(slots))
    assert {hit.slot: hit.similarity for hit in hits} == pytest.approx({slot: everything[slot] for slot in slots})


def test_distant_runs_are_computed_apart() -> None:
    index = VectorIndex(2, rows=1000)
    for slot in range(1000):
        index.put(slot, [1, slot + 1])
    slots = [0, 1, MERGED_GAP, 500, 501, 999]
    assert sorted(hit.slot for hit in index.search([0, 1], 10, allowed=index.mask(slots))) == slots


def test_equal_similarities_are_ordered_by_slot() -> None:
    index = VectorIndex(2)
    for slot in (5, 3, 9, 1):
        index.put(slot, [1, 1])
    assert [hit.slot for hit in index.search([2, 2], 2)] == [1, 3]


def test_the_length_of_a_vector_has_no_effect() -> None:
    index = VectorIndex(2)
    index.put(0, [1e-30, 1e-30])
    index.put(1, [3e30, 3e30])
    assert [hit.similarity for hit in index.search([1e20, 1e20], 2)] == pytest.approx([1, 1])


@pytest.mark.parametrize(
    "vector",
    [[0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0], [1.0], [1.0, 2.0, 3.0], [[1.0, 2.0]], []],
)
def test_an_invalid_vector_is_refused_and_changes_nothing(vector: object) -> None:
    index = VectorIndex(2)
    index.put(0, [1, 0])
    for call in (lambda: index.put(0, vector), lambda: index.search(vector, 1)):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="vector"):
            call()
    assert index.vector(0).tolist() == [1, 0]


def test_a_returned_vector_is_a_copy() -> None:
    index = VectorIndex(2)
    index.put(0, [1, 0])
    index.vector(0)[:] = 7
    assert index.vector(0).tolist() == [1, 0]


def filled(buffer: bytearray | mmap.mmap) -> VectorIndex:
    index = VectorIndex.create(buffer, DIMENSIONS, DIGEST)
    index.put(0, [1, 0, 0, 0])
    index.put(2, [0, 1, 0, 0])
    return index


def test_a_closed_file_opens_with_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "vectors"
    path.write_bytes(bytes(file_bytes(DIMENSIONS, 3)))
    with path.open("r+b") as file:
        with mmap.mmap(file.fileno(), 0) as mapped:
            filled(mapped).close()
        with mmap.mmap(file.fileno(), 0) as mapped:
            index = VectorIndex.open(mapped, DIMENSIONS, DIGEST)
            assert len(index) == 2
            assert 1 not in index
            assert [hit.slot for hit in index.search([0, 1, 0, 0], 1)] == [2]
            index.put(1, [1, 1, 0, 0])
            index.close()
        raw: NDArray[np.float32] = np.fromfile(path, "<f4", offset=HEADER_BYTES).reshape(3, DIMENSIONS)
    assert raw[1] == pytest.approx(unit_vector([1, 1, 0, 0], DIMENSIONS)), "the layout is the documented one"


def test_a_new_file_has_no_rows_of_an_old_one() -> None:
    buffer = bytearray(file_bytes(DIMENSIONS, 3))
    filled(buffer).close()
    assert len(VectorIndex.create(buffer, DIMENSIONS, DIGEST)) == 0


def test_a_full_file_does_not_grow() -> None:
    index = filled(bytearray(file_bytes(DIMENSIONS, 3)))
    with pytest.raises(ValueError, match="make a larger one"):
        index.put(3, [1, 0, 0, 0])
    assert len(index) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda buffer: buffer[:100], "shorter than its header"),
        (lambda buffer: buffer[:-4], "not those of 3 rows"),
        (lambda buffer: buffer + bytes(16), "not those of 3 rows"),
        (lambda buffer: bytearray(b"OTHERVEC") + buffer[8:], "not a vector file"),
    ],
)
def test_a_damaged_file_is_refused(change: object, words: str) -> None:
    buffer = bytearray(file_bytes(DIMENSIONS, 3))
    filled(buffer).close()
    VectorIndex.open(bytearray(buffer), DIMENSIONS, DIGEST)
    with pytest.raises(VectorFileError, match=words):
        VectorIndex.open(change(buffer), DIMENSIONS, DIGEST)  # type: ignore[operator]


@pytest.mark.parametrize(("dimensions", "digest"), [(DIMENSIONS + 1, DIGEST), (DIMENSIONS, bytes(32))])
def test_a_file_of_another_embedder_is_refused(dimensions: int, digest: bytes) -> None:
    buffer = bytearray(file_bytes(DIMENSIONS, 3))
    filled(buffer).close()
    with pytest.raises(VectorFileError, match="another embedder"):
        VectorIndex.open(buffer, dimensions, digest)


def test_a_file_that_was_not_closed_is_refused() -> None:
    buffer = bytearray(file_bytes(DIMENSIONS, 3))
    filled(buffer)
    with pytest.raises(VectorFileError, match="not closed"):
        VectorIndex.open(buffer, DIMENSIONS, DIGEST)
    index = VectorIndex.create(buffer, DIMENSIONS, DIGEST)
    index.close()
    VectorIndex.open(buffer, DIMENSIONS, DIGEST)
    with pytest.raises(VectorFileError, match="not closed"):
        VectorIndex.open(buffer, DIMENSIONS, DIGEST)
