"""The table of alerts: its rules, and the tests that promtool makes of its samples."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.doctor.runner import CHECKS
from appliance.errors import ConfigError
from appliance.watch import alerts
from appliance.watch.alerts import ALERTS, Alert, AlertSample
from tests.nix import checker
from tools import alerts as generated

RANGE = re.compile(r"\[(\d+)([smhd])\]")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
IDS = [alert.name for alert in ALERTS]


def verdicts(folder: Path, table: Sequence[Alert]) -> dict[str, str]:
    """Return the output of promtool by alert: SUCCESS, or the differences.

    Each alert has files of its own, because promtool evaluates all rules of a file for each sample.
    """
    program = checker.require("promtool")
    for alert in table:
        (folder / f"{alert.name}.json").write_text(json.dumps(alerts.rules_of((alert,))))
        tests = alerts.rule_tests(f"{alert.name}.json", (alert,))
        (folder / f"{alert.name}.test.json").write_text(json.dumps(tests))
    done = checker.run_process([program, "test", "rules", *(folder / f"{a.name}.test.json" for a in table)])
    # One call for all files: a process each would take longer.
    found = dict.fromkeys((alert.name for alert in table), "SUCCESS")
    for part in done.stderr.split("  FAILED:")[1:]:
        named = re.search(r"alertname: (\w+)", part)
        assert named, done.stderr
        found[named[1]] = part
    assert done.stdout.count("Unit Testing:") == len(table), done.stdout + done.stderr
    assert (done.returncode == 0) is all(text == "SUCCESS" for text in found.values()), done.stderr
    return found


def test_every_alert_fires_on_its_samples_and_is_silent_on_the_others(tmp_path: Path) -> None:
    failed = {name: text for name, text in verdicts(tmp_path, ALERTS).items() if text != "SUCCESS"}
    assert not failed, "\n".join(failed.values())


SHORT = frozenset({"GatewayDown", "EngineDown", "ReplicaDrained", "GatewayPaused", "ClockOff", "PublicAddressDown"})
"""Alerts with a sample in which the condition holds for a shorter time."""

SABOTAGES: dict[str, Callable[[Alert], Alert | None]] = {
    "it always fires": lambda a: replace(a, expr="vector(1)", for_s=0, firing=()) if a.silent else None,
    "it never fires": lambda a: replace(a, expr="vector(1) > 2", silent=()),
    "its condition must hold for ever": lambda a: replace(a, for_s=10**6, silent=()) if a.for_s else None,
    "its condition need not hold for long": lambda a: replace(a, for_s=0, firing=()) if a.name in SHORT else None,
}


@pytest.mark.parametrize("sabotage", SABOTAGES)
def test_a_changed_alert_fails_its_samples(sabotage: str, tmp_path: Path) -> None:
    changed = [one for alert in ALERTS if (one := SABOTAGES[sabotage](alert)) is not None]
    passed = [name for name, text in verdicts(tmp_path, changed).items() if text == "SUCCESS"]
    assert not passed
    assert changed


def test_promtool_accepts_the_rules_of_all_alerts() -> None:
    rules = checker.ROOT / "modules/observe/rules.json"
    shown = checker.output_of([checker.require("promtool"), "check", "rules", rules])
    assert f"{len(ALERTS)} rules found" in shown


def test_the_generated_files_are_current() -> None:
    assert generated.stale(checker.ROOT) == [], "run `python -m tools.alerts`"


def test_a_changed_and_a_foreign_file_are_stale(tmp_path: Path) -> None:
    for path, text in generated.files().items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert generated.stale(tmp_path) == []
    (tmp_path / "docs/runbook.md").write_text("changed")
    (tmp_path / "modules/observe/rules.json").unlink()
    (tmp_path / "modules/observe/dashboards/old.json").write_text("{}")
    assert sorted(generated.stale(tmp_path)) == [
        "docs/runbook.md",
        "modules/observe/dashboards/old.json",
        "modules/observe/rules.json",
    ]


def test_at_most_ten_kinds_of_messages_page() -> None:
    assert len(alerts.paging()) == 10, sorted(alerts.paging())


def test_names_are_unique_and_every_alert_has_samples() -> None:
    assert len(set(IDS)) == len(IDS)
    for alert in ALERTS:
        assert all(sample.labels is not None for sample in alert.firing), alert.name
        assert all(sample.labels is None for sample in alert.silent), alert.name
        assert alert.firing, alert.name
        assert alert.silent or alert.severity == "beat", alert.name


@pytest.mark.parametrize("alert", ALERTS, ids=IDS)
def test_ranges_have_four_scrape_intervals(alert: Alert) -> None:
    """Prometheus 3 drops the sample on the left edge of a range."""
    for number, unit in RANGE.findall(alert.expr):
        assert int(number) * SECONDS[unit] >= 4 * alerts.SCRAPE_S


@pytest.mark.parametrize("alert", ALERTS, ids=IDS)
def test_samples_have_the_labels_of_the_subject(alert: Alert) -> None:
    """So a restart of a process, which changes other labels, neither ends an alert nor begins one."""
    shown = set(re.findall(r"\$labels\.(\w+)", alert.summary + alert.fix))
    assert shown <= set(alert.subject)
    for sample in alert.firing:
        assert set(sample.labels or {}) <= set(alert.subject)


@pytest.mark.parametrize("alert", ALERTS, ids=IDS)
def test_the_fix_names_checks_of_the_doctor(alert: Alert) -> None:
    checks = {check.name for check in CHECKS}
    assert set(re.findall(r"--only (\S+?)(?=;|\s|$)", alert.fix)) <= checks


def test_inhibiting_alerts_exist_and_do_not_form_a_circle() -> None:
    by_name = {alert.name: alert for alert in ALERTS}
    for alert in ALERTS:
        seen, causes = {alert.name}, list(alert.inhibited_by)
        while causes:
            cause = causes.pop()
            assert cause not in seen
            causes += by_name[cause].inhibited_by
        for cause, equal in alert.inhibited_by.items():
            assert set(equal) <= set(by_name[cause].subject) & set(alert.subject)


def test_a_sample_without_the_shown_value_is_an_error() -> None:
    disk = next(alert for alert in ALERTS if alert.name == "DiskFull")
    nameless = replace(disk, firing=(AlertSample({}, "1m", {}),), silent=())
    with pytest.raises(ConfigError, match=r"has no value"):
        alerts.rule_tests("rules.json", (nameless,))


def test_the_runbook_names_every_alert_with_its_fix() -> None:
    text = (checker.ROOT / "docs/runbook.md").read_text()
    for alert in ALERTS:
        assert f"### {alert.name}\n" in text
        assert alert.expr in text
    assert "{{" not in text
