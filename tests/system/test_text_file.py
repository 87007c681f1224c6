"""Text files of people, in each encoding that editors and shells write: the same text, or an error of one line."""

from __future__ import annotations

import ast
import codecs
import json
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.admin.serve import VARIABLE, read_token
from appliance.cli import main
from appliance.errors import ApplianceError, ConfigError, UsageError
from appliance.models import lock
from appliance.system import text_file
from loadtests import command
from tests.conftest import ROOT

ENCODINGS = {
    "utf-8": b"",
    "utf-8 with a mark": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}
KEY = "sk-0123456789ab-" + "A" * 43


def encoded(text: str, encoding: str) -> bytes:
    return ENCODINGS[encoding] + text.encode(encoding.removesuffix(" with a mark"))


every_encoding = pytest.mark.parametrize("encoding", ENCODINGS)


@given(
    st.text(st.characters(exclude_characters="\0\ufeff", exclude_categories=["Cs"])), st.sampled_from([*ENCODINGS])
)
def test_the_encoding_makes_no_difference(text: str, encoding: str) -> None:
    assert text_file.decode(encoded(text, encoding), "file") == text


@given(st.binary(max_size=60))
def test_any_bytes_are_text_or_an_error(raw: bytes) -> None:
    try:
        text, said = text_file.decode(raw, "a file"), ""
    except ConfigError as error:
        text, said = "", str(error)
    assert "\0" not in text
    assert not said or re.fullmatch(r"a file: [^\n]+; save the file as (UTF-8|plain text)[^\n]*", said)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"a\ncaf\xe9 = 1\n", "x: line 2 is not UTF-8; save the file as UTF-8 (byte 5 of the file is 0xe9)"),
        (codecs.BOM_UTF8 + b"\x93", "x: line 1 is not UTF-8; save the file as UTF-8 (byte 3 of the file is 0x93)"),
        ("a\n€".encode("cp1252"), "line 2 is not UTF-8"),
        ("\ufeffab".encode("utf-16-le")[:-1], "x: line 1 is not UTF-16; save the file as UTF-8 (byte 4 of"),
        (codecs.BOM_UTF16_BE + b"\0\n\xd8\0", "line 2 is not UTF-16"),
        (codecs.BOM_UTF32_LE + b"\xff\xff\xff\xff", "line 1 is not UTF-32"),
        ("model = 1".encode("utf-16-le"), "looks like UTF-16 (little-endian) without a byte order mark"),
        ("model = 1".encode("utf-16-be"), "looks like UTF-16 (big-endian) without a byte order mark"),
        (b"a = 1\nb = \0\n", "line 2 holds a NUL byte; save the file as plain text"),
        ("\ufeffa\0".encode("utf-16-le"), "line 1 holds a NUL byte"),
        (b"\x1f\x8b\x08\x00", "line 1 holds a NUL byte"),
    ],
)
def test_other_bytes_are_named_with_their_place(raw: bytes, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        text_file.decode(raw, "x")


@every_encoding
@pytest.mark.parametrize("ending", [".toml", ".json"])
def test_a_site_in_any_encoding(
    tmp_path: Path, encoding: str, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "examples" / "laptop.toml").read_text()
    file = tmp_path / f"site{ending}"
    file.write_bytes(encoded(text if ending == ".toml" else json.dumps(tomllib.loads(text)), encoding))
    assert main(["check", str(file)]) == 0
    assert "ok; 2 models" in capsys.readouterr().out


@every_encoding
def test_other_text_files_in_any_encoding(tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(encoded(f"{KEY}\r\n\r\n{KEY}\n", encoding))
    assert command.api_keys(file, required=True) == (KEY, KEY)
    file.write_bytes(encoded(f"{KEY}\n", encoding))
    monkeypatch.setenv(VARIABLE, str(file))
    assert read_token() == KEY
    entry = lock.Entry("a/b", "0" * 40, "c", 1, "1" * 64)
    file.write_bytes(encoded(lock.HEADER + f"{entry}\n", encoding))
    assert lock.read(file) == [entry]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file or directory; write one key a line into it"),
        (b"", "the file contains no key"),
        (codecs.BOM_UTF8, "the file contains no key"),
        (f"{KEY}\n\u201c{KEY}\u201d\n".encode(), r"line 2: character 1 \(U\+201C\) cannot be part of a key"),
        (f"{KEY}\n".encode() * 2 + KEY.encode("utf-16-le"), "holds a NUL byte"),
        (f"{KEY}\nsk-\xe9\n".encode("latin-1"), "line 2 is not UTF-8"),
        # Two files with marks, one after the other.
        (codecs.BOM_UTF8 + KEY.encode() + b"x" + codecs.BOM_UTF8 + b"y", r"line 1: character 61 \(U\+FEFF\)"),
    ],
)
def test_a_file_without_a_valid_key_is_rejected(tmp_path: Path, content: bytes | None, words: str) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ApplianceError, match=words) as caught:
        command.api_keys(file, required=True)
    assert str(caught.value).startswith(f"--keys {file}: ")
    assert KEY[16:] not in str(caught.value)


@pytest.mark.parametrize("given", [f"\ufeff{KEY}", f"  {KEY}\n", f"\udcef\udcbb\udcbf{KEY}", f"\ufeff {KEY}\ufeff"])
def test_a_variable_that_a_shell_filled_from_a_file_with_a_mark(given: str) -> None:
    assert text_file.key(given, "APPLIANCE_API_KEY") == KEY


@pytest.mark.parametrize(
    ("given", "words"),
    [
        # The result of $(cat key) with UTF-16: the shell drops the NUL bytes.
        (f"\udcff\udcfe{KEY}", "is UTF-16, of which a shell variable holds only a part; save the key as UTF-8"),
        (f"sk-\udce9{KEY}", r"character 4 \(byte 0xe9\) cannot be part of a key"),
        (f"{KEY} {KEY}", r"character 60 \(U\+0020\)"),
        (f"{KEY}\u200b", r"character 60 \(U\+200B\)"),
    ],
)
def test_a_variable_without_a_valid_key_is_rejected(
    given: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APPLIANCE_API_KEY", given)
    with pytest.raises(UsageError, match=f"^APPLIANCE_API_KEY: {words}") as caught:
        command.api_keys(None, required=True)
    assert KEY[16:] not in str(caught.value)


TAKES_FILES = (
    "appliance/cli/__init__.py",
    "appliance/contract/load.py",
    "appliance/contract/machine.py",
    "appliance/models/lock.py",
    "appliance/cli/keys.py",
    "appliance/admin/serve.py",
    "loadtests/command.py",
    "appliance/cli/loadtest.py",
)
"""Modules that read files whose paths a user gives."""


@pytest.mark.parametrize("module", TAKES_FILES)
def test_no_module_reads_text_in_another_way(module: str) -> None:
    tree = ast.parse((ROOT / module).read_text())
    calls = [
        node.func.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    assert not {"read_text", "read_bytes"} & {*calls}
