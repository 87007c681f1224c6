"""docs/architecture.md: each function and file that it names exists, and its layers are those of import-linter."""

from __future__ import annotations

import ast
import re
import tomllib

import pytest

from tests.conftest import ROOT

TEXT = (ROOT / "docs/architecture.md").read_text()
REFERENCES = sorted(set(re.findall(r"`((?:appliance|modules|tools|loadtests)/[\w./]+)(?::([\w.]+))?`", TEXT)))


@pytest.mark.parametrize(("path", "name"), REFERENCES)
def test_each_reference_exists(path: str, name: str) -> None:
    file = ROOT / path
    assert file.exists()
    node: ast.AST = ast.parse(file.read_text()) if name else ast.Pass()
    for part in name.split(".") if name else ():
        found = [child for child in ast.iter_child_nodes(node) if getattr(child, "name", None) == part]
        assert found, f"{path} has no {name}"
        node = found[0]


def test_the_picture_has_the_layers_of_the_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["id"] == "layers")
    names = [{part.strip().removeprefix("appliance.") for part in layer.split(":")} for layer in layers]
    picture = TEXT.split("```")[1].split("─" * 20)
    shown = [set(re.findall(r"(?:^ |\s{3,})([a-z0-9]+)\s{2,}", block, re.MULTILINE)) for block in picture]
    assert [layer for layer in shown if layer][:-1] == names[:-2]
    assert shown[-1] == names[-2] | names[-1]
