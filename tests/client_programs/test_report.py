"""The verdicts and the report of the client programs, and the tables of their versions."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.client_programs.__main__ import NOT_RUN
from tests.client_programs.install import HERE, requirements, without_missing
from tests.client_programs.pages import ADDRESS, KEY, page_names
from tests.client_programs.programs import PROGRAMS, ProgramOutput, judge, judge_wrong_key, prepare
from tests.client_programs.report import ClientStep, failed, report_text

CHAT = "/v1/chat/completions"
GOOD: dict[str, Any] = {"endpoint": CHAT, "status": 200, "outcome": "ok", "stream": 1, "completion_tokens": 5}


def test_a_report_has_a_row_for_each_step() -> None:
    steps = [
        ClientStep("aider", "1.0.0", "chat", "ok", "a | b\nc"),
        ClientStep("n8n", "", "", "not run", "x" * 500),
    ]
    text = report_text(steps, "a mock")
    assert "| aider | 1.0.0 | chat | ok | a \\| b c |" in text
    assert "1 ok, 0 failed, 1 not run" in text
    assert max(map(len, text.splitlines())) < 250
    assert not failed(steps)
    assert failed([*steps, ClientStep("aider", "1.0.0", "chat", "failed")])


@pytest.mark.parametrize(
    ("output", "row", "verdict"),
    [
        (ProgramOutput(0, "hello"), {}, "ok"),
        (ProgramOutput(1, "hello"), {}, "ok"),
        (ProgramOutput(0, ""), {}, "failed"),
        (ProgramOutput(0, "hello"), {"outcome": "aborted"}, "failed"),
        (ProgramOutput(0, "hello"), {"stream": 0}, "failed"),
        (ProgramOutput(0, "hello"), {"completion_tokens": 0}, "failed"),
        (ProgramOutput(0, "hello"), {"endpoint": "/v1/responses"}, "failed"),
    ],
)
def test_a_chat_counts_if_the_usage_has_it(output: ProgramOutput, row: dict[str, Any], verdict: str) -> None:
    assert judge(output, [GOOD | row], CHAT, stream=True)[0] == verdict


def test_a_client_without_a_request_failed_and_its_output_is_in_the_report() -> None:
    verdict, detail = judge(ProgramOutput(2, "no such provider"), [], CHAT, stream=True)
    assert (verdict, "no such provider" in detail) == ("failed", True)


def test_an_invalid_key_must_be_reported() -> None:
    assert judge_wrong_key(ProgramOutput(1, "x\nThis API key is not valid: …")) == (
        "ok",
        "This API key is not valid: …",
    )
    assert judge_wrong_key(ProgramOutput(0, "hello"))[0] == "failed"


def test_a_program_gets_the_files_and_variables_of_its_page(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9"
    folder = prepare(tmp_path / "codex", "codex.md", url=url, key="sk-1", path="/usr/bin:/bin")
    text = (tmp_path / "codex" / "home" / ".codex" / "config.toml").read_text()
    assert f'base_url = "{url}/v1"' in text
    assert folder.environment["APPLIANCE_API_KEY"] == "sk-1"
    shown = folder.run(["sh", "-c", "echo $APPLIANCE_API_KEY in $PWD; exit 3"])
    assert (shown.code, shown.text) == (3, f"sk-1 in {folder.project}")
    assert ADDRESS not in text
    assert KEY not in text


def test_a_program_without_an_end_is_stopped(tmp_path: Path) -> None:
    folder = prepare(tmp_path / "aider", "aider.md", url="http://127.0.0.1:9", key="sk-1", path="/usr/bin:/bin")
    assert folder.run(["sh", "-c", "echo begun; sleep 1000"], 1).code is None


def test_each_page_is_run_or_has_a_reason() -> None:
    run = {program.page.removesuffix(".md") for program in PROGRAMS} | {"langchain"}
    absent = {name.lower().replace(" ", "-") for name, _ in NOT_RUN}
    assert not run & absent
    assert {page.removesuffix(".md") for page in page_names()} == run | absent


def test_versions_are_pinned_and_no_file_names_a_registry() -> None:
    table = json.loads((HERE / "npm" / "package.json").read_text())
    pins = [*table["dependencies"].values(), *table["optionalDependencies"].values()]
    assert [pin for pin in pins if not re.fullmatch(r"\d+\.\d+\.\d+", pin)] == []
    lock = (HERE / "npm" / "package-lock.json").read_text()
    assert "://" not in lock
    assert json.loads(lock)["packages"][""]["dependencies"] == table["dependencies"]
    for name in ("aider", "langchain"):
        assert all(re.fullmatch(r"[a-z0-9.-]+==[\w.+!]+", line) for line in requirements(name)), name


def test_the_lock_names_only_the_optional_packages_that_it_holds() -> None:
    table: dict[str, Any] = {
        "packages": {
            "": {"dependencies": {"tool": "1.0.0"}},
            "node_modules/tool": {"optionalDependencies": {"@tool/linux": "1.0.0", "@tool/darwin": "1.0.0"}},
            "node_modules/tool/node_modules/@tool/linux": {"optional": True},
        }
    }
    made = without_missing(table)["packages"]["node_modules/tool"]
    assert made["optionalDependencies"] == {"@tool/linux": "1.0.0"}
    stored = json.loads((HERE / "npm" / "package-lock.json").read_text(encoding="utf-8"))
    assert without_missing(json.loads(json.dumps(stored))) == stored, "`npm ci` refuses a lock with other names"
