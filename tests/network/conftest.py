"""The site that the tests of this folder share, and the rows of their table in docs/verification.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.network.site import NetworkSite, running


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests of this folder more time: the first of each file also renders its hosts."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetworkSite]:
    """Run two VPSs and one GPU host, booted. A test that changes a machine or line restores it."""
    with running(tmp_path_factory.mktemp("site"), edges=2) as made:
        yield made


@pytest.fixture
def record_row(record_property: Callable[[str, object], None]) -> Callable[[str, str, str], None]:
    """Return a function that records a case, the expected and the seen result: a row of the table."""

    def record(case: str, expected: str, seen: str) -> None:
        record_property("row", f"{case}\t{expected}\t{seen}")
        print(f"{case} | {expected} | {seen}")

    return record
