"""Reports as an HTML page."""

from __future__ import annotations

from loadtests import html
from tests.loadtests.samples import a_sample, report_on


def test_a_page_loads_no_other_file_and_escapes_its_text() -> None:
    report = report_on(*(a_sample(at=i / 2, cause="" if i % 5 else "<b>&") for i in range(40)))
    report.about = {"url": "http://x/<script>"}
    page = html.render(report)
    assert page.count("<svg") >= 6
    assert "<script" not in page
    assert "<b>&" not in page
    assert "&lt;b&gt;&amp;" in page
    page = page.replace('<link rel="icon" href="data:,">', "")
    for reference in ("src=", "href=", "url(", "@import", "<link"):
        assert reference not in page, "the page loads no other file"
