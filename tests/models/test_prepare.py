"""The choice of the model: the real one if a hub has it, else a tiny one. The hub of these tests is local."""

from __future__ import annotations

import hashlib
import http.server
import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.models import prepare as preparing
from appliance.models.prepare import REPOSITORY, REVISION, TINY_NAME, WEIGHTS_SHA256, hub_has_model, prepare
from tests.up_process import ENGINE_PYTHON


@contextmanager
def hub(status: int, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes] | None = None) -> Iterator[list[str]]:
    """Run a hub that has ``files`` and returns ``status`` to each request; yield the requested paths."""
    paths: list[str] = []
    listing = {"id": REPOSITORY, "sha": REVISION, "siblings": [{"rfilename": name} for name in files or {}]}
    tree = [
        {"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in (files or {}).items()
    ]

    class HubHandler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            content = json.dumps(tree if "/tree/" in self.path else listing).encode()
            if "/resolve/" in self.path and files is not None:
                content = files[self.path.rpartition("/")[2]]
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.send_header("etag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("x-repo-commit", REVISION)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), HubHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        try:
            yield paths
        finally:
            server.shutdown()
            thread.join()


def test_the_hub_must_have_our_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    with hub(200, monkeypatch) as paths:
        assert hub_has_model()
    assert paths == [f"/api/models/{REPOSITORY}/revision/{REVISION}"]
    with hub(404, monkeypatch):
        assert not hub_has_model()


def test_an_unreachable_or_silent_hub_costs_seconds_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "HUB_TIMEOUT_S", 0.3)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert not hub_has_model()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert not hub_has_model()


async def test_a_verified_download_is_used_without_a_request(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "models" / "Qwen3-0.6B"
    folder.mkdir(parents=True)
    with hub(404, monkeypatch) as paths:
        (folder / ".verified").write_text(f"{REVISION} {WEIGHTS_SHA256}\n")
        prepared = await prepare("auto", Path("/nowhere"), tmp_path, print)
        assert (prepared.name, prepared.folder, paths) == (REPOSITORY, folder, [])
        (folder / ".verified").write_text(f"{'0' * 40} {WEIGHTS_SHA256}\n")
        assert not preparing.is_verified(folder), "another revision is another model"


FILES = {"config.json": b"{}", "model.safetensors": b"weights", "README.md": b"not wanted"}


def fetch(folder: Path, digest: str) -> subprocess.CompletedProcess[str]:
    argv = [str(ENGINE_PYTHON), str(preparing.HERE / "fetch.py"), REPOSITORY, REVISION, str(folder), digest]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.vllm
def test_a_download_is_verified_or_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    digest = hashlib.sha256(FILES["model.safetensors"]).hexdigest()
    with hub(200, monkeypatch, FILES):
        done = fetch(tmp_path / "good", digest)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "good" / "model.safetensors").read_bytes() == b"weights"
        assert (tmp_path / "good" / ".verified").read_text() == f"{REVISION} {digest}\n"
        assert not (tmp_path / "good" / "README.md").exists()
        done = fetch(tmp_path / "bad", "0" * 64)
    assert done.returncode == 1
    assert f"model.safetensors has SHA-256 {digest}, pinned is {'0' * 64}; it was removed" in done.stderr
    assert not (tmp_path / "bad" / "model.safetensors").exists()
    assert not (tmp_path / "bad" / ".verified").exists()


@pytest.mark.vllm
async def test_a_failed_download_is_reported_and_the_tiny_model_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines: list[str] = []
    with hub(200, monkeypatch):  # it has the revision and none of its files
        prepared = await prepare("auto", ENGINE_PYTHON, tmp_path, lines.append)
    assert lines[0].startswith("downloading Qwen/Qwen3-0.6B at c1899de289a0 (1.5 GB)")
    assert lines[1].startswith("the download failed (see ")
    assert prepared.name == TINY_NAME
    assert "random weights" in prepared.notice
    assert (prepared.folder / "model.safetensors").stat().st_size < 2_000_000
    assert not list((tmp_path / "models").glob("*.new"))
