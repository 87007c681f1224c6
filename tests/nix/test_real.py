"""The evaluation cases against a real nixpkgs: its modules, assertions and computed defaults."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.nix import checker, rendered

CASES = "flake.checks.x86_64-linux.evaluation"
LOG = "NIX_REAL_LOG"
"""Environment variable with the file that holds the output of `nix-real check`, which .ci/run sets."""


def result(results: dict[str, Any], root: str) -> str:
    """Return the path of the derivation of the check `evaluation` if the cases of ``root`` have these results.

    The derivation holds the results and the store paths of the flake and its inputs, so another tree or another
    result has another path.
    """
    literal = checker.string(json.dumps(results))
    path: str = rendered.evaluated(f"({CASES}.report (builtins.fromJSON {literal})).drvPath", root)
    return path


def evaluated_by_the_check(path: str) -> bool:
    """Return whether `nix flake check` reports the derivation ``path`` in the file that `NIX_REAL_LOG` names."""
    log = os.environ.get(LOG)
    return log is not None and f"derivation evaluated to {path}\n" in Path(log).read_text()


# 130 evaluations unless the check or an earlier run has the same result: a minute and a half on an idle machine.
@pytest.mark.timeout(900)
def test_the_real_nixpkgs_and_the_stand_in_agree_on_every_case() -> None:
    """Each case has the same result and the same failed assertions; `errors` cases stop in both."""
    rendered.require()
    stand_in = checker.value()
    # tests/nix/test_cases.py compares the message of an `errors` case. Here the case must only stop.
    expected = {
        name: {"fault": None, "failed": stand_in[name]["failed"] if name in stand_in else []}
        for name in checker.value("list")
    }
    assert len(expected) > 100
    tree = rendered.stored()
    path = result(expected, tree)
    compared = rendered.KEPT / f"{Path(path).name}.json"
    if evaluated_by_the_check(path) or compared.exists():
        return
    summaries = rendered.evaluated(f"{CASES}.summaries", tree)
    assert summaries.keys() == expected.keys()
    different = {
        name: (summary, expected[name]) for name, summary in summaries.items() if summary != expected[name]
    }
    assert not different
    rendered.KEPT.mkdir(parents=True, exist_ok=True)
    rendered.keep(compared, {})


def test_a_result_is_of_one_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An edited file or another result has another derivation, and the check's log lacks it."""
    rendered.require()
    tree = rendered.stored()
    copy = tmp_path / "tree"
    shutil.copytree(tree, copy)
    # Folders and files of the store are read-only.
    checker.output_of(["chmod", "--recursive", "u+w", copy])
    checker.output_of(["git", "init", "--quiet", copy])
    assert rendered.stored(copy) == tree
    results = {"a case": {"fault": None, "failed": ["a failed assertion"]}}
    path = result(results, tree)
    log = tmp_path / "log"
    log.write_text(f"checking derivation {CASES}...\nderivation evaluated to {path}\n")
    assert not evaluated_by_the_check(path)
    monkeypatch.setenv(LOG, str(log))
    assert evaluated_by_the_check(path)

    assert not evaluated_by_the_check(result({"a case": {"fault": None, "failed": []}}, tree))
    with (copy / "tests/nix/cases/gpu.nix").open("a") as file:
        file.write("# One more line.\n")
    edited = rendered.stored(copy)
    assert edited != tree
    assert not evaluated_by_the_check(result(results, edited))
    with pytest.raises(rendered.RenderError, match="a case: was accepted"):
        result({"a case": {"fault": "was accepted", "failed": []}}, tree)
