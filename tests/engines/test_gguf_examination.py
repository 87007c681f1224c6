"""A GGUF of an architecture that llama.cpp lacks: refused by every way to start, with the file and the fix."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from appliance.contract.load import load
from appliance.contract.model import Site
from appliance.engines.argv import find
from appliance.engines.gguf_examination import known_architectures, require_loadable
from appliance.engines.lifecycle import ChildControl, SystemdControl
from appliance.errors import StartError, StoreError
from tests.conftest import a_site
from tests.llamacpp.tiny_gguf import write_gguf, write_tiny

REVISION = "a" * 40


def site_of(folder: Path, source: str, **engine: Any) -> Path:
    """Write a site with one llama.cpp server on the processor."""
    table = a_site(8000, 8101, folder / "data")
    table["models"]["fake"] = {"source": source} | ({} if source[0] in "./" else {"revision": REVISION})
    table["engines"]["chat"] |= {"kind": "llamacpp", "command": "/bin/true", **engine}
    path = folder / "site.json"
    path.write_text(json.dumps(table))
    return path


def examine(site: Site, base: Path, store: Path = Path("/nonsuch")) -> None:
    require_loadable(site, find(site, "chat"), base, store)


def test_a_known_architecture_passes_and_a_foreign_one_names_file_and_fix(tmp_path: Path) -> None:
    file = write_tiny(tmp_path / "model.gguf")
    site = load(site_of(tmp_path, "./model.gguf"))
    examine(site, tmp_path)
    write_tiny(file, architecture="qwen9moe")
    with pytest.raises(StartError) as error:
        examine(site, tmp_path)
    build = known_architectures()[0]
    assert str(error.value) == (
        f"{file}: has the architecture 'qwen9moe', which llama.cpp {build} lacks; use another GGUF, or a newer "
        'llama.cpp and engines.chat.gguf_architectures = ["qwen9moe"]'
    )
    examine(load(site_of(tmp_path, "./model.gguf", gguf_architectures=["qwen9moe"])), tmp_path)


def test_a_projector_is_not_a_model(tmp_path: Path) -> None:
    write_gguf(tmp_path / "mmproj.gguf", {"general.architecture": "clip"}, [])
    with pytest.raises(StartError, match="is a projector of another model"):
        examine(load(site_of(tmp_path, "./mmproj.gguf")), tmp_path)


def test_the_files_of_a_repository_are_examined_in_the_store(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--org--tiny-GGUF" / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    site = load(site_of(tmp_path, "org/tiny-GGUF"))
    examine(site, tmp_path, tmp_path)
    write_gguf(snapshot / "mmproj-f16.gguf", {"general.architecture": "clip"}, [])
    write_gguf(snapshot / "tiny-00002-of-00002.gguf", {"split.no": 1}, [])
    write_gguf(snapshot / "tiny-00001-of-00002.gguf", {"general.architecture": "qwen3"}, [])
    examine(site, tmp_path, tmp_path)
    write_gguf(snapshot / "tiny-00001-of-00002.gguf", {"general.architecture": "nonsuch"}, [])
    with pytest.raises(StartError, match=r"tiny-00001-of-00002\.gguf: has the architecture"):
        examine(site, tmp_path, tmp_path)


def test_other_engines_are_not_examined(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"not a model")
    examine(load(site_of(tmp_path, "./model.gguf", kind="mock")), tmp_path)


async def test_a_child_is_not_started(tmp_path: Path) -> None:
    write_tiny(tmp_path / "model.gguf", architecture="nonsuch")
    control = ChildControl(load(site_of(tmp_path, "./model.gguf")), tmp_path, tmp_path / "log")
    with pytest.raises(StartError, match="has the architecture 'nonsuch', which"):
        await control.start("chat")
    assert not await control.alive("chat")


async def test_a_file_that_the_gateway_may_not_read_is_left_to_its_unit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_tiny(tmp_path / "model.gguf", architecture="nonsuch")
    control = SystemdControl(load(site_of(tmp_path, str(file))))
    with pytest.raises(StartError, match="has the architecture 'nonsuch', which"):
        await control.examine("chat")
    file.unlink()
    with pytest.raises(StartError, match="does not exist"):
        await control.examine("chat")

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    # root may read everything, so the refusal of the kernel has a stand-in.
    monkeypatch.setattr(Path, "open", refused)
    await control.examine("chat")
    assert "chat: its weights are examined when its unit starts: " in caplog.text


@pytest.mark.parametrize(("words", "code"), [(["engine", "exec", "chat", "--config"], 1), (["check"], 2)])
def test_the_commands_refuse_a_foreign_file_in_one_line(tmp_path: Path, words: list[str], code: int) -> None:
    site = site_of(tmp_path, "./model.gguf")
    write_tiny(tmp_path / "model.gguf")
    whole = appliance(tmp_path, *words, str(site))
    assert whole.returncode == 0, whole.stderr
    write_tiny(tmp_path / "model.gguf", architecture="nonsuch")
    foreign = appliance(tmp_path, *words, str(site))
    assert foreign.returncode == code
    assert foreign.stderr.count("\n") == 1
    assert "has the architecture 'nonsuch', which" in foreign.stderr


def test_a_file_of_another_machine_is_not_checked_here(tmp_path: Path) -> None:
    done = appliance(tmp_path, "check", str(site_of(tmp_path, "./model.gguf")))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_damaged_file_is_not_a_valid_configuration(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(StoreError, match="ends within its header"):
        examine(load(site_of(tmp_path, "./model.gguf")), tmp_path)
    done = appliance(tmp_path, "check", str(site_of(tmp_path, "./model.gguf")))
    assert done.returncode == 2
    assert "ends within its header" in done.stderr


def appliance(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in ``folder``."""
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "appliance", *words]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
