"""The evaluation cases against a real nixpkgs: its modules, assertions and computed defaults."""

from __future__ import annotations

import pytest

from tests.nix import checker, rendered


# 160 evaluations: a minute and a half on an idle machine.
@pytest.mark.timeout(900)
def test_the_real_nixpkgs_and_the_stand_in_agree_on_every_case() -> None:
    """Each case has the same result and the same failed assertions; `errors` cases stop in both."""
    summaries = rendered.evaluated("flake.checks.x86_64-linux.evaluation.summaries")
    stand_in = checker.value()
    kinds = checker.value("list")
    assert summaries.keys() == kinds.keys()
    assert len(summaries) > 100
    different = {}
    for name, summary in summaries.items():
        # tests/nix/test_cases.py compares the message of an `errors` case. Here the case must only stop.
        expected = {"fault": None, "failed": stand_in[name]["failed"] if name in stand_in else []}
        if summary != expected:
            different[name] = (summary, expected)
    assert not different
