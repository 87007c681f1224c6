"""The site that the tests of this folder share, and what they tell the table in docs/verification.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.network.site import NetworkSite, running


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetworkSite]:
    """Two VPSs and one GPU host, booted. A test that breaks something mends it."""
    with running(tmp_path_factory.mktemp("site"), edges=2) as made:
        yield made


@pytest.fixture
def saw(record_property: Callable[[str, object], None]) -> Callable[[str, str, str], None]:
    """Say what a case expected and what was seen: a row of the table."""

    def tell(case: str, expected: str, seen: str) -> None:
        record_property("row", f"{case}\t{expected}\t{seen}")
        print(f"{case} | {expected} | {seen}")

    return tell
