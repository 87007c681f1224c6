"""Reports as JUnit XML."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from appliance.contract.model import Slo
from loadtests import junit
from loadtests.report import INTERRUPTED, summarise
from tests.loadtests.samples import a_sample, collected, plan, report_on


def test_a_missed_slo_is_a_failure_and_an_invalid_run_an_error() -> None:
    slo = Slo(ttft_p99_ms=100)
    tree = ET.fromstring(junit.render(report_on(a_sample(), a_sample(cause="503"), slo=slo)))
    assert (tree.get("failures"), tree.get("errors")) == ("2", "0")
    messages = [failure.get("message", "") for failure in tree.iter("failure")]
    assert "1 x 503" in messages[-1]
    tree = ET.fromstring(junit.render(summarise(collected(a_sample(), notes=(INTERRUPTED,)), plan())))
    assert tree.get("errors") == tree.get("tests"), "an invalid run proves nothing"
