"""Evaluation of Nix expressions by the parts of the offline checker, nix-check, next to the repository."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKER = Path(os.environ.get("NIX_CHECK", ROOT.parent / "shared" / "nix-check"))
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "nix-check"
NOT_A_PACKAGE = {"lib", "system", "config", "formats", "stdenv", "writeText", "callPackage", "path"}


def require(binary: str) -> str:
    """Return the path of ``binary``; skip the test with the packages to install if it is missing."""
    folders = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    found = shutil.which(binary, path=folders)
    if found is None:
        pytest.skip(f"NOT CHECKED: {binary} is missing; apt-get install $(cat tests/nix/apt.txt)")
    return found


def run_process(argv: list[Any], environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``argv`` and capture its output; the caller checks the exit code."""
    env = {**os.environ, **(environment or {})}
    return subprocess.run([str(word) for word in argv], env=env, capture_output=True, text=True, check=False)


def output_of(argv: list[Any]) -> str:
    """Return the output of ``argv``; fail the test if its exit code is not 0."""
    done = run_process(argv)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@cache
def find_nix() -> str | None:
    """Return the path of Nix: nix-check's own, else that of the machine; ``None`` if it has none."""
    local = CACHE / "nix" / "bin" / "nix"
    return str(local) if local.exists() else shutil.which("nix")


def require_nix() -> str:
    """Return the path of Nix; skip the test if Nix, the checker or its library is absent."""
    if not (CHECKER / "nix-check").exists():
        pytest.skip(f"NOT CHECKED: {CHECKER} is absent; no NixOS module was evaluated")
    if not (CACHE / "lib").exists() and "NIXPKGS_LIB" not in os.environ:
        pytest.skip("NOT CHECKED: nixpkgs.lib is not registered here; run `nix-check setup GITDIR`, see its README")
    nix = find_nix()
    if nix is None:
        pytest.skip("NOT CHECKED: nix is not installed")
    return nix


def _library() -> str:
    given = os.environ.get("NIXPKGS_LIB")
    return f"{given}/lib" if given else f"{(CACHE / 'lib').read_text().strip()}/lib"


@cache
def _package_names() -> list[str]:
    names: set[str] = set()
    for folder in ("modules", "hosts", "tests/nix"):
        for file in (ROOT / folder).rglob("*.nix"):
            text = file.read_text()
            names |= set(re.findall(r"\bpkgs\.([A-Za-z_][\w'-]*)", text))
            for block in re.findall(r"with pkgs\s*;\s*\[(.*?)\]", text, re.DOTALL):
                names |= set(re.findall(r"[A-Za-z_][\w'-]*", block))
    libraries = json.loads((ROOT / "modules" / "engine-libraries.json").read_text())["nixpkgs"].values()
    return sorted((names | {path.split(".")[0] for path in libraries}) - NOT_A_PACKAGE)


def run(only: str | None = None) -> subprocess.CompletedProcess[str]:
    """Evaluate tests/nix/offline.nix: every case, or only the one named ``only``."""
    require_nix()
    arguments = {"tree": str(CACHE / "options-tree.json"), "names": _package_names(), "only": only}
    return _evaluate(
        f"let a = builtins.fromJSON {string(json.dumps(arguments))}; in "
        f"import {ROOT}/tests/nix/offline.nix (a // {{ libPath = {_library()}; checker = {CHECKER}; "
        "tree = /. + a.tree; })"
    )


@cache
def expression(text: str) -> Any:
    """Return the value of a Nix expression as JSON; ``lib`` is that of nixpkgs, ``root`` the repository."""
    require_nix()
    done = _evaluate(f"let lib = import {_library()}; root = {ROOT}; in {text}")
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@cache
def failure(text: str) -> str:
    """Return the error of a set of options that do not evaluate, on one line; names as in :func:`expression`."""
    require_nix()
    done = _evaluate(
        f"let lib = import {_library()}; root = {ROOT}; in builtins.mapAttrs (_: v: v.description) ({text})"
    )
    assert done.returncode != 0, f"was accepted: {text}"
    return " ".join(done.stderr.split())


def string(text: str) -> str:
    """Return ``text`` as a string literal of Nix."""
    return json.dumps(text).replace("${", "\\${")


def _evaluate(text: str) -> subprocess.CompletedProcess[str]:
    argv = [require_nix(), "--extra-experimental-features", "nix-command flakes", "eval", "--impure", "--json"]
    return subprocess.run([*argv, "--expr", text], capture_output=True, text=True, check=False)


@cache
def value(only: str | None = None) -> Any:
    """Return the result of :func:`run`; fail the test with the error of Nix if it does not evaluate."""
    done = run(only)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)
