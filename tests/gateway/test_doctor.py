"""`appliance doctor` and `appliance loadtest` against a running gateway; every check has a way to fail."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from appliance.config import Site
from appliance.configfile import load
from appliance.ops import doctor
from tests.conftest import ROOT, Service, free_port, serving

ONE_CARD = load(ROOT / "examples" / "one-card.toml")
Disk = namedtuple("Disk", "total used free")


def run(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "appliance", *map(str, words)]
    environ = {**os.environ, **environment}
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT, env=environ)


def found(site: Site, check: str, **more: Path) -> doctor.Finding:
    return next(one for one in doctor.examine(site, ROOT, **more) if one.check == check)


def test_a_healthy_host(service: Service) -> None:
    done = run("doctor", "--json", "--config", service.config)
    findings = {one["check"]: one["level"] for one in json.loads(done.stdout)}
    assert findings.pop("disk") in ("ok", "warn")
    assert findings == {"fit": "ok", "gateway": "ok", "engine chat": "ok"}
    assert done.returncode == 0
    assert "generated a token" in run("doctor", "--config", service.config).stdout


def test_a_dead_engine_and_a_dead_gateway(tmp_path: Path) -> None:
    with serving(tmp_path / "x") as service:
        service.engine.stop()
        done = run("doctor", "--json", "--config", service.config)
        engine = next(one for one in json.loads(done.stdout) if one["check"] == "engine chat")
        assert (done.returncode, engine["level"]) == (1, "fail")
        assert engine["seen"].startswith("the engine is not up")
        assert engine["mend"] == "systemctl status appliance-engine-chat; journalctl -u appliance-engine-chat"
    done = run("doctor", "--config", service.config)
    assert done.returncode == 1
    assert "ConnectionRefusedError" in done.stdout


@pytest.mark.parametrize(
    ("text", "level", "seen"),
    [
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  595.71.05  Release", "ok", "595.71.05"),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.211.01  Release",
            "fail",
            "CUDA 13 needs 580",
        ),
        (None, "fail", "the NVIDIA kernel module is not loaded"),
    ],
)
def test_drivers(tmp_path: Path, text: str | None, level: str, seen: str) -> None:
    path = tmp_path / "version"
    if text is not None:
        path.write_text(text)
    one = found(ONE_CARD, "driver", driver=path)
    assert one.level == level
    assert seen in one.seen
    assert bool(one.mend) is (level == "fail")


@pytest.mark.parametrize(("free", "level"), [(50, "ok"), (9, "warn"), (2, "fail")])
def test_disks(monkeypatch: pytest.MonkeyPatch, free: int, level: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk(100, 100 - free, free))
    assert found(ONE_CARD, "disk").level == level


def test_a_site_that_does_not_fit() -> None:
    engine = ONE_CARD.engines["chat"].model_copy(update={"gpu_memory_utilization": 0.5})
    site = ONE_CARD.model_copy(update={"engines": {**ONE_CARD.engines, "chat": engine}})
    one = found(site, "fit")
    assert (one.level, one.seen.startswith("engines.chat")) == ("fail", True)
    assert one.mend


def test_a_loadtest_as_large_as_asked_for(service: Service, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    words = ("loadtest", "--config", service.config, "--users", "3", "--requests", "4", "--json", report)
    done = run(*words, APPLIANCE_API_KEY=service.key)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(report.read_text())["requests"] == 12
    assert "PASS" in done.stdout


def test_a_loadtest_where_the_interpreter_knows_no_packages(service: Service, tmp_path: Path) -> None:
    """As in a Nix package: what is imported was added to ``sys.path`` by a wrapper, ``sys.executable`` is bare."""
    bare = Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    assert subprocess.run([bare, "-c", "import locust"], capture_output=True, check=False).returncode != 0
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    words = ["loadtest", "--config", str(service.config), "--users", "1", "--requests", "2"]
    wrapper = (
        f"import site, sys; site.addsitedir({packages!r}); sys.path.append({str(ROOT)!r}); "
        f"from appliance.cli import main; sys.exit(main({words!r}))"
    )
    environment = {**os.environ, "APPLIANCE_API_KEY": service.key}
    environment.pop("PYTHONPATH", None)
    argv = [str(bare), "-c", wrapper]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASS" in done.stdout


def test_a_loadtest_that_cannot_be(service: Service) -> None:
    done = run("loadtest", "--config", service.config, "--users", "0", APPLIANCE_API_KEY=service.key)
    assert (done.returncode, done.stderr) == (
        2,
        "error: users: input should be greater than or equal to 1, not 0\n",
    )
    done = run("loadtest", "--config", service.config, APPLIANCE_API_KEY="")
    assert (done.returncode, done.stderr.startswith("error: APPLIANCE_API_KEY is not set")) == (2, True)
    port = free_port()
    done = run("loadtest", "--config", service.config, "--url", f"http://127.0.0.1:{port}", APPLIANCE_API_KEY="x")
    assert done.returncode == 1
    assert "no answer (ConnectionRefusedError); is the gateway running there?" in done.stderr
