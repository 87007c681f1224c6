"""The header of a GGUF: real files that the tests write, and every kind of damage."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from appliance.engines.gguf import HEADER_LIMIT, parts_of, read_header, read_model
from appliance.errors import StoreError
from tests.llamacpp.tiny_gguf import Meta, Variant, write_gguf, write_tiny

BEGIN = b"GGUF" + struct.pack("<I", 3)
U32, TEXT, ARRAY, NESTED = 4, 8, 9, 9


def key(name: str, kind: int) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind)


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("variant", "architecture"), [("chat", "qwen3"), ("moe", "qwen3moe"), ("embed", "qwen3")])
def test_a_whole_model(tmp_path: Path, variant: Variant, architecture: str) -> None:
    path = write_tiny(tmp_path / "model.gguf", variant)
    header = read_model(path)
    assert header.architecture == architecture
    assert header.last_tensor < path.stat().st_size


def test_the_architecture_may_follow_long_metadata(tmp_path: Path) -> None:
    before: dict[str, Meta] = {
        "tokenizer.ggml.tokens": [f"token{number}" for number in range(5000)],
        "tokenizer.ggml.token_type": [1] * 5000,
        "tokenizer.chat_template": "x" * 100_000,
        "some.flag": True,
        "some.number": 1.5,
    }
    path = tmp_path / "model.gguf"
    write_gguf(path, before | {"general.architecture": "qwen3"}, [])
    assert read_header(path).architecture == "qwen3"


def test_a_file_that_ends_at_any_byte_of_its_header_is_one_line(tmp_path: Path) -> None:
    whole = tmp_path / "whole.gguf"
    write_gguf(whole, {"general.architecture": "qwen3", "some.list": ["a", "b"], "some.numbers": [1, 2]}, [])
    content = whole.read_bytes().rstrip(b"\0")
    for length in range(4, len(content) - 4):
        with pytest.raises(StoreError, match="ends within its header, after") as error:
            read_header(written(tmp_path, content[:length]))
        assert "\n" not in str(error.value)


def test_a_file_without_its_last_tensor_is_incomplete(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "model.gguf")
    last = read_header(path).last_tensor
    path.write_bytes(path.read_bytes()[: last + 1])
    assert read_header(path).last_tensor == last, "the sizes of tensors depend on types, which are not read"
    path.write_bytes(path.read_bytes()[:last])
    with pytest.raises(
        StoreError, match=f"has {last} bytes and a tensor that begins at byte {last}; fetch it again"
    ):
        read_header(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is not a GGUF file, it begins with b''"),
        (b"<!DOCTYPE html>", "is not a GGUF file, it begins with b'<!DO'"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "has GGUF version 1, llama.cpp reads 2 and 3"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "has GGUF version 50331648"),
        (BEGIN + struct.pack("<QQ", 0, 2**63), "ends within its header"),
        (BEGIN + struct.pack("<QQ", 2**63, 0), "ends within its header"),
        (BEGIN + struct.pack("<QQQ", 0, 1, 2**62), f"has a text of {2**62} bytes"),
        (BEGIN + struct.pack("<QQ", 0, 1) + key("a", 77), "type 77 of 'a'"),
        (BEGIN + struct.pack("<QQ", 0, 1) + key("a", TEXT) + struct.pack("<Q", 2**60), "ends within its header"),
        (BEGIN + struct.pack("<QQ", 0, 1) + key("a", ARRAY) + struct.pack("<IQ", NESTED, 1), "type 9 of 'a'"),
        (BEGIN + struct.pack("<QQ", 0, 1) + key("a", ARRAY) + struct.pack("<IQ", TEXT, 2**60), "ends within"),
        (BEGIN + struct.pack("<QQ", 0, 1) + key("a", ARRAY) + struct.pack("<IQ", U32, 2**60), "ends within"),
        (BEGIN + struct.pack("<QQ", 0, 1) + key("general.alignment", U32) + struct.pack("<I", 0), "alignment of 0"),
        (BEGIN + struct.pack("<QQQ", 1, 0, 1) + b"t" + struct.pack("<I", 9), "9 dimensions of tensor 't'"),
    ],
)
def test_damage_is_one_line_with_the_file(tmp_path: Path, content: bytes, reason: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(StoreError, match=re.escape(reason)) as error:
        read_model(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_a_header_has_a_limit_of_bytes(tmp_path: Path) -> None:
    """A sparse file of zeros, whose list of empty texts would be read for hours."""
    path = written(tmp_path, BEGIN + struct.pack("<QQ", 0, 1) + key("a", TEXT) + struct.pack("<Q", HEADER_LIMIT))
    with path.open("r+b") as file:
        file.truncate(HEADER_LIMIT * 4)
    with pytest.raises(StoreError, match="a header above 256 MiB"):
        read_header(path)


def test_a_model_without_an_architecture_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, {"general.name": "x"}, [])
    with pytest.raises(StoreError, match=r"its header has no general\.architecture"):
        read_model(path)


def test_a_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="Is a directory"):
        read_model(tmp_path)


def test_all_parts_of_a_model_are_read(tmp_path: Path) -> None:
    first = tmp_path / "model-00001-of-00003.gguf"
    write_gguf(first, {"general.architecture": "qwen3moe", "split.count": 3}, [])
    second, third = parts_of(first)[1:]
    write_gguf(second, {"split.no": 1}, [])
    with pytest.raises(StoreError, match=r"model-00003-of-00003\.gguf: does not exist"):
        read_model(first)
    third.write_bytes(b"GGU")
    with pytest.raises(StoreError, match=r"model-00003-of-00003\.gguf: is not a GGUF file"):
        read_model(first)
    write_gguf(third, {"split.no": 2}, [])
    assert read_model(first).architecture == "qwen3moe"
    with pytest.raises(StoreError, match=r"is part 2 of 3; name the first part, ending in -00001-of-00003"):
        read_model(second)
