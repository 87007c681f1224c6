"""The start of an engine: only with files of its model that were verified in their present state."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.models import lock, verification
from tests.conftest import a_site
from tests.llamacpp.tiny_gguf import write_gguf

SOURCE, REVISION = "Qwen/Qwen3", "a" * 40


@pytest.fixture
def store(tmp_path: Path) -> Path:
    for name in ("Qwen3", "Other"):
        folder = tmp_path / "store" / "hub" / f"models--Qwen--{name}" / "snapshots" / REVISION
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"w" * 5000)
    lock.write(tmp_path / "models.lock", lock.make(tmp_path / "store"))
    return tmp_path / "store"


def start(tmp_path: Path, source: str = SOURCE, **environment: str) -> subprocess.CompletedProcess[str]:
    """Start the engine ``chat``; its program only proves that it ran."""
    revision = {"revision": REVISION} if source == SOURCE else {}
    site = a_site(8000, 8100, tmp_path, models={"fake": {"source": source} | revision})
    program = tmp_path / "engine"
    program.write_text("#!/bin/sh\necho started\n")
    program.chmod(0o755)
    site["engines"]["chat"] |= {"kind": "llamacpp", "command": str(program)}
    config = tmp_path / "site.json"
    config.write_text(json.dumps(site))
    argv = [sys.executable, "-m", "appliance", "engine", "exec", "chat", "--config", str(config)]
    argv += ["--lock", str(tmp_path / "models.lock")]
    return subprocess.run(
        argv, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **environment}
    )


def verified_gguf(store: Path, tmp_path: Path, architecture: str) -> Path:
    """Return a GGUF of the store that is locked and verified."""
    gguf = store / "gguf" / "x.gguf"
    gguf.parent.mkdir()
    write_gguf(gguf, {"general.architecture": architecture}, [])
    lock.write(tmp_path / "models.lock", lock.make(store))
    verification.verify(lock.make(store), store)
    return gguf


def test_an_engine_starts_with_verified_weights_only(store: Path, tmp_path: Path) -> None:
    refused = start(tmp_path, HF_HOME=str(store))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == (
        f"error: {SOURCE}@{REVISION[:12]} model.safetensors: not verified in its present state; "
        "run `appliance models verify`\n"
    )
    entries = lock.make(store)
    # Damage of another model stops only that model.
    next(one for one in entries if one.repository == "Qwen/Other").path(store).write_bytes(b"x" * 5000)
    assert len(verification.verify(entries, store).differences) == 1
    started = start(tmp_path, HF_HOME=str(store))
    assert (started.returncode, started.stdout, started.stderr) == (0, "started\n", "")


def test_a_file_of_the_store_starts_only_verified_and_one_outside_of_it_always(store: Path, tmp_path: Path) -> None:
    for gguf in (store / "gguf" / "x.gguf", tmp_path / "own.gguf"):
        gguf.parent.mkdir(exist_ok=True)
        write_gguf(gguf, {"general.architecture": "qwen3"}, [])
    lock.write(tmp_path / "models.lock", lock.make(store))
    refused = start(tmp_path, str(store / "gguf" / "x.gguf"), HF_HOME=str(store))
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
    assert "local/files gguf/x.gguf: not verified in its present state" in refused.stderr
    verification.verify(lock.make(store), store)
    assert start(tmp_path, str(store / "gguf" / "x.gguf"), HF_HOME=str(store)).stdout == "started\n"
    assert start(tmp_path, str(tmp_path / "own.gguf"), HF_HOME=str(store)).stdout == "started\n"


def test_a_damaged_file_of_the_store_is_reported_as_not_verified(store: Path, tmp_path: Path) -> None:
    gguf = verified_gguf(store, tmp_path, "qwen3")
    gguf.write_bytes(b"GGUF")
    refused = start(tmp_path, str(gguf), HF_HOME=str(store))
    assert "local/files gguf/x.gguf: not verified in its present state" in refused.stderr


def test_a_verified_file_of_an_unknown_architecture_does_not_start(store: Path, tmp_path: Path) -> None:
    gguf = verified_gguf(store, tmp_path, "foreign")
    refused = start(tmp_path, str(gguf), HF_HOME=str(store))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "has the architecture 'foreign'" in refused.stderr


def test_a_lock_without_a_store_is_an_error(store: Path, tmp_path: Path) -> None:
    refused = start(tmp_path, HF_HOME="")
    assert (refused.returncode, refused.stderr) == (
        2,
        "error: --lock: needs the store of the weights; set HF_HOME to its folder\n",
    )
