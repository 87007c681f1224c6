"""A report as JUnit XML for CI: a case per SLO, one for the run's validity, one per measure of a baseline."""

from __future__ import annotations

from xml.etree.ElementTree import Element, SubElement, indent, tostring

from loadtests.report import INVALID, Report


def render(report: Report) -> str:
    """Return the XML. A missed SLO is a failure; an invalid run proves nothing and is an error of every case."""
    name = f"loadtest.{report.scenario or 'smoke'}"
    suite = Element("testsuite", name=name, time=f"{report.duration_s:.3f}")
    reasons = "; ".join(report.invalid) or ("no request was made" if report.requests == 0 else "")

    def case(title: str, failed: str, text: str) -> None:
        one = SubElement(suite, "testcase", classname=name, name=title, time="0")
        if report.exit_code == INVALID:
            SubElement(one, "error", type="invalid", message=f"the run is invalid: {reasons}")
        elif failed:
            SubElement(one, "failure", type=failed, message=text).text = text

    case("the run is valid", "", "")
    for check in report.checks:
        measured = "not measured" if check.value is None else f"{check.value:.4g} {check.unit}"
        bound = f"{'at least' if check.at_least else 'at most'} {check.limit:g} {check.unit}"
        text = f"{check.name}: {measured}, required {bound}"
        if check.name == "errors" and report.failures:
            text += f" ({', '.join(f'{count} x {cause}' for cause, count in sorted(report.failures.items()))})"
        case(f"{check.name} {bound}", "" if check.holds else "slo", text)
    for comparison in report.baseline:
        text = f"{comparison.measure}: {comparison.now.value:.4g}, before {comparison.before.value:.4g}"
        worse = comparison.verdict == "worse"
        case(f"{comparison.measure} is not worse than before", "baseline" if worse else "", text)
    suite.set("tests", str(len(suite)))
    suite.set("failures", str(sum(len(one.findall("failure")) for one in suite)))
    suite.set("errors", str(sum(len(one.findall("error")) for one in suite)))
    indent(suite)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(suite, encoding="unicode") + "\n"
