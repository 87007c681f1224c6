"""The format of the .nix files (RFC 166): the check in Python, and nixfmt itself if it is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tools import nix_format

GOOD = """# A module.
{
  config,
  lib,
  ...
}:
let
  cfg = config.a;
  command = x: "${x.pkg}/bin/a { b = ''${c}; d = 1; }";
  one = { a = 1; };
in
{
  options.a = lib.mkOption {
    type = lib.types.listOf lib.types.str;
    default = [ ];
    example = [
      "a"
      "b"
    ];
    description = ''
      Text of { any = 1; form = 2; },
       indented by any width. ''${not} code, ${command { pkg = "a"; }}.
    '';
  };
  config = lib.mkIf (lib.elem cfg [ 1 2 ]) { b.paths = [ ./a/b.nix ]; };
}
"""

BAD = {
    "a set with several attributes on one line; write one per line": "{\n  a = { b = 1; c = 2; };\n}\n",
    "a list of several elements on one line; write one per line": '{\n  a = [ "b" (c d) ];\n}\n',
    "arguments share a line; write one per line": "{\n  a, b,\n  c,\n}:\na\n",
    "code after let; start a new line": "let a = 1;\nin\na\n",
    "code before in; start a new line": "let\n  a = 1; in\na\n",
    "an odd indentation; indent with 2 spaces per level": "{\n   a = 1;\n}\n",
    "a tab; indent with spaces": "{\n\ta = 1;\n}\n",
    "trailing spaces": "{\n  a = 1; \n}\n",
    "the file must end with one newline": "{\n  a = 1;\n}",
    "101 columns after the indentation; 100 are the limit": f"{{\n  a = {'b' * 96};\n}}\n",
    "} closes nothing": "{\n  a = 1;\n}\n}\n",
    "[ does not end": "[\n  1\n",
    "2: a string does not end": '{\n  a = "b;\n}\n',
    "1: an interpolation does not end": '"${a\n',
}


def test_the_repository_is_formatted(capsys: pytest.CaptureFixture[str]) -> None:
    code = nix_format.main([])
    assert code == 0, capsys.readouterr().out


def test_nixfmt_finds_the_repository_formatted() -> None:
    nixfmt = shutil.which("nixfmt")
    if nixfmt is None:
        pytest.skip("NOT CHECKED: nixfmt is missing; only the rules of tools/nix_format.py were checked")
    files = nix_format.files([])
    done = subprocess.run([nixfmt, "--check", *map(str, files)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_formatted_text_has_no_violations() -> None:
    assert nix_format.violations(GOOD) == []


@pytest.mark.parametrize("fault", BAD)
def test_a_violation_is_reported(fault: str) -> None:
    found = nix_format.violations(BAD[fault])
    assert any(violation.endswith(fault) for violation in found), found


def test_violations_name_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.nix"
    file.write_text("{\n  a = 1; \n}\n")
    assert nix_format.main([str(tmp_path)]) == 1
    assert capsys.readouterr().out == f"{file}:2: trailing spaces\n1 files, 1 violations\n"


def test_no_file_is_not_a_pass(tmp_path: Path) -> None:
    assert nix_format.main([str(tmp_path)]) == 1
