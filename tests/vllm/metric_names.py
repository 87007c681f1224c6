"""The metrics of real vLLM that alerts and dashboards use, and the recording that the tests of monitoring serve."""

from __future__ import annotations

import re

import pytest

from tests.conftest import http
from tests.up_process import Up
from tests.watch.observe.stack import RECORDED
from tests.watch.observe.test_live import USED

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]


def names(page: str) -> set[str]:
    """Return the names of the series on a page of metrics."""
    return {found[1] for found in re.finditer(r"^([\w:]+)[{ ]", page, re.MULTILINE)}


def test_real_vllm_has_the_metrics_of_alerts_and_panels(up: Up) -> None:
    page = names(http(f"http://127.0.0.1:{up.engine_port}/metrics").body.decode())
    used = {name for name in USED if name.startswith("vllm:")}
    assert len(used) > 10
    assert used <= page


def test_the_recorded_page_has_no_other_names_than_real_vllm(up: Up) -> None:
    page = names(http(f"http://127.0.0.1:{up.engine_port}/metrics").body.decode())
    assert names(RECORDED.read_text()) - page == set(), "record the page anew"
