"""The version of the program, of the package and of the changelog."""

from __future__ import annotations

import re
import tomllib

import pytest

from appliance import __version__
from tests.conftest import ROOT

RELEASE = re.compile(r"^## (\d+\.\d+\.\d+) \((\d{4}-\d{2}-\d{2})\)$", re.MULTILINE)


def releases(changelog: str) -> list[tuple[str, str]]:
    """Return the releases of ``changelog`` with their dates; raises ``ValueError`` unless newest first."""
    found = RELEASE.findall(changelog)
    ordered = sorted(found, key=lambda one: (tuple(map(int, one[0].split("."))), one[1]), reverse=True)
    if found != ordered or [date for _, date in found] != sorted((date for _, date in found), reverse=True):
        raise ValueError("the releases are not in order, newest first")
    return found


def test_the_program_and_the_package_have_the_version_of_the_newest_release() -> None:
    package = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    (newest, _), *_ = releases((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    assert __version__ == package == newest


def test_the_first_section_is_for_the_next_release() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert len(headings) == 1 + len(releases((ROOT / "CHANGELOG.md").read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "changelog",
    [
        "## 0.1.0 (2026-11-26)\n\n## 0.2.0 (2026-11-28)\n",
        "## 0.10.0 (2026-11-26)\n\n## 0.9.0 (2026-11-28)\n",
    ],
)
def test_releases_out_of_order_are_detected(changelog: str) -> None:
    with pytest.raises(ValueError, match="not in order"):
        releases(changelog)
