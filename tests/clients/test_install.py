"""The lock of the Node SDKs, and machines on which they cannot be installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.clients.install import NODE, InstallError, MissingError, install, lock_text, node


def lock() -> dict[str, Any]:
    table: dict[str, Any] = json.loads((NODE / "package-lock.json").read_text())
    return table


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_the_lock_has_the_versions_of_package_json_and_names_no_address() -> None:
    table = lock()
    wanted = json.loads((NODE / "package.json").read_text())["dependencies"]
    assert {name: table["packages"][f"node_modules/{name}"]["version"] for name in wanted} == wanted
    assert lock_text(table) == (NODE / "package-lock.json").read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"resolved": "git+ssh://host/ai.git#abc"}, '"resolved"'),
        ({"homepage": "https://host/ai"}, "https://host/ai"),
        ({"integrity": None}, "no hash of node_modules/ai"),
    ],
)
def test_a_lock_with_an_address_or_without_a_hash_is_rejected(change: dict[str, Any], words: str) -> None:
    table = lock()
    package = table["packages"]["node_modules/ai"] | change
    table["packages"]["node_modules/ai"] = {name: value for name, value in package.items() if value is not None}
    with pytest.raises(InstallError, match=words.replace("/", ".")):
        lock_text(table)


def test_the_error_of_a_machine_without_node_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError, match="apt-get install nodejs npm"):
        node()
    program(tmp_path, "node", "echo v24.1.0")
    with pytest.raises(MissingError, match="npm are not installed"):
        node()


def test_an_old_node_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "node", "echo v16.20.2")
    program(tmp_path, "npm", "exit 1")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError, match=r"is Node v16\.20\.2; install Node 18 or newer"):
        node()


def test_a_failed_install_reports_npm_and_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "package-lock.json").write_text("{}")
    program(tmp_path, "node", "echo v24.1.0")
    program(tmp_path, "npm", "echo EINTEGRITY: sha512 >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(InstallError, match="EINTEGRITY"):
        install(tmp_path)
    program(tmp_path, "npm", "echo x >> runs; mkdir -p node_modules")
    for _ in range(2):
        install(tmp_path)
    assert (tmp_path / "runs").read_text() == "x\n", "an installed lock is not installed again"
    (tmp_path / "package-lock.json").write_text('{"name": "other"}')
    install(tmp_path)
    assert (tmp_path / "runs").read_text() == "x\nx\n", "another lock is installed"
