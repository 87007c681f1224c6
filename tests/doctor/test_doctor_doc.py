"""The generated page docs/doctor.md."""

from __future__ import annotations

from tests.conftest import ROOT
from tools import doctor_doc


def test_the_generated_page_is_current() -> None:
    stale = "stale: run `python -m tools.doctor_doc > docs/doctor.md`"
    assert (ROOT / "docs/doctor.md").read_text() == doctor_doc.text(), stale
