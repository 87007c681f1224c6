"""config.json files in folders and in the local cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance.errors import ConfigError
from appliance.planner import add_model
from tests.catalog.configs import DENSE


def write(folder: Path, config: object, size: int | None = None) -> Path:
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    if size is not None:
        index = {"metadata": {"total_size": size}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    return folder


def test_the_size_of_a_folders_index_is_read(tmp_path: Path) -> None:
    shape = add_model.read(str(write(tmp_path, DENSE, 1_192_135_096)))
    assert shape.checkpoint_bytes == 1_192_135_096


def test_a_config_of_other_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="belongs to another model"):
        add_model.read(str(write(tmp_path, DENSE, 61_000_000_000)))


def test_a_repository_in_the_local_cache_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "hub" / "models--Some--Model" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    write(folder, DENSE)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert add_model.read("Some/Model").name == "Some/Model"
    with pytest.raises(ConfigError, match="not in the local cache"):
        add_model.read("Some/Other")


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "[" * 100_000])
def test_a_file_that_is_not_a_config_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError) as caught:
        add_model.read(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8"])
def test_a_config_in_any_unicode_encoding_is_read(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "config.json").write_bytes(json.dumps(DENSE).encode(encoding))
    (tmp_path / "model.safetensors.index.json").write_bytes(
        json.dumps({"metadata": {"total_size": 1_192_135_096}}).encode(encoding)
    )
    assert add_model.read(str(tmp_path)).checkpoint_bytes == 1_192_135_096


@pytest.mark.parametrize("content", [b"\xff\xfe{", b"\xef\xbb\xbf", b"\xef\xbb\xbf{", b"\x89PNG\r\n", b"\xff" * 9])
def test_bytes_that_are_not_json_are_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        add_model.read(str(tmp_path))
    assert "config.json: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_or_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no config"):
        add_model.read(str(tmp_path))
    with pytest.raises(ConfigError, match="no such file"):
        add_model.read(str(tmp_path / "nothing" / "here"))


def folder(path: Path, name: str, table: object) -> Path:
    (path / "config.json").write_text(json.dumps(DENSE), "utf-8")
    (path / name).write_text(json.dumps(table), "utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "table", "native"),
    [
        ("hf_quant_config.json", {"quantization": {"quant_algo": "NVFP4", "group_size": 16}}, "nvfp4"),
        ("hf_quant_config.json", {"producer": {}, "quantization": {"quant_algo": "FP8"}}, "fp8"),
        ("quantize_config.json", {"bits": 4, "group_size": 128, "desc_act": False}, "awq-int4"),
        ("quant_config.json", {"w_bit": 4, "q_group_size": 128, "zero_point": True, "version": "GEMM"}, "awq-int4"),
    ],
)
def test_a_quantisation_in_a_separate_file_is_read(tmp_path: Path, name: str, table: object, native: str) -> None:
    assert add_model.read(str(folder(tmp_path, name, table))).native == native


@pytest.mark.parametrize("table", [{"quantization": {"quant_algo": "W1"}}, {"quantization": 4}, [1]])
def test_a_quantisation_in_a_separate_file_that_is_not_understood_is_refused(tmp_path: Path, table: object) -> None:
    with pytest.raises(ConfigError):
        add_model.read(str(folder(tmp_path, "hf_quant_config.json", table)))
