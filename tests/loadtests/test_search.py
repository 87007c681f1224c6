"""The search for the highest load."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from loadtests.search import Search, SearchStep


@given(st.floats(0.05, 900), st.floats(0.5, 50))
def test_the_search_finds_the_highest_load_that_holds(truth: float, start: float) -> None:
    search = Search(start, 1000, resolution=0.1)
    while (load := search.next()) is not None:
        assert 0 < load <= 1000
        search.record(SearchStep(load, held=load <= truth))
    if search.best is None:
        assert truth < start / 64
    else:
        assert search.best.load <= truth
        assert search.resolved
        assert truth <= search.best.load * 1.11


def test_the_search_ends_at_its_bounds() -> None:
    search = Search(8, 64, whole=True)
    while (load := search.next()) is not None:
        assert load == int(load)
        search.record(SearchStep(load, held=True))
    assert [step.load for step in search.steps] == [8, 16, 32, 64]
    assert search.best is not None
    assert not search.resolved, "without a failure the result is a lower bound"
    saturated = Search(8, 1000)
    while (load := saturated.next()) is not None:
        saturated.record(SearchStep(load, held=load <= 20, invalid=load > 20))
    assert saturated.best is not None
    assert not saturated.resolved, "the client failed, not the service"
