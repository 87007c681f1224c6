"""The subjects: the engine without a proxy, nginx as the limit, our gateway, and peers from the package index."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gateway.processes import HERE, LOAD_CORE, SUBJECT_CORE, free_port, running, wait_for

VENVS = HERE / ".venvs"
ASK = json.dumps({"model": "bench", "messages": [{"role": "user", "content": "hi"}]}).encode()
USERS = 4


@dataclass
class Subject:
    """A running process under measurement; ``pid`` is ``None`` for the engine itself."""

    name: str
    port: int
    keys: list[str]
    pid: int | None
    version: str


NAMES = ("direct", "nginx", "gateway", "vllm-router", "sglang-router", "fastapi-httpx", "litellm")
PACKAGES = {
    "litellm": ["litellm[proxy]"],
    "vllm-router": ["vllm-router"],
    "sglang-router": ["sglang-router"],
    "httpx": ["fastapi", "httpx", "uvicorn", "uvloop", "httptools"],
}


def site(engine_ports: list[int], port: int, data: Path, **gateway: object) -> dict[str, object]:
    """Return a site with all features: limits, two replicas with sticky routing, queue, usage records, metrics."""
    first, *others = engine_ports
    if others != [first + 1]:
        raise ValueError("two engines on adjacent ports are expected")
    limits = {"requests_per_minute": 10_000_000, "tokens_per_minute": 1_000_000_000, "requests_in_flight": 4096}
    return {
        "version": 1,
        "hosts": {"here": {"memory_gib": 8}},
        "models": {"bench": {"source": "./bench"}},
        "engines": {
            "bench": {
                "kind": "mock",
                "host": "here",
                "model": "bench",
                "device": "cpu",
                "context": 4096,
                "concurrency": 256,
                "replicas": 2,
                "port": first,
            }
        },
        "limits": limits,
        "gateway": {"port": port, "data_dir": str(data), **gateway},
    }


def make_keys(config: Path, count: int = USERS) -> list[str]:
    """Create a key for each of ``count`` users."""
    argv = [sys.executable, "-m", "appliance", "keys", "create", "--config", str(config)]
    return [
        subprocess.run([*argv, f"user{i}"], check=True, capture_output=True, text=True).stdout.strip()
        for i in range(count)
    ]


def neighbours() -> list[int]:
    """Return two adjacent free ports."""
    while True:
        first = free_port()
        try:
            with _bound(first + 1):
                return [first, first + 1]
        except OSError:
            continue


@contextmanager
def _bound(port: int) -> Iterator[None]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))
        yield


@contextmanager
def subject(name: str, engines: list[int], folder: Path) -> Iterator[Subject]:
    """Start ``name`` in front of ``engines`` and wait for its first response; raises :class:`RuntimeError`."""
    folder.mkdir(parents=True, exist_ok=True)
    if name == "direct":
        yield Subject(name, engines[0], keys=["none"], pid=None, version="")
        return
    port, log = free_port(), folder / f"{name}.log"
    argv, keys, version, environment = _command(name, engines, port=port, folder=folder)
    with running(argv, SUBJECT_CORE, log, **environment) as process:
        wait_for(port, ASK, key=keys[0], process=process, log=log, within_s=90)
        yield Subject(name, port, keys=keys, pid=process.pid, version=version)


def _command(
    name: str, engines: list[int], port: int, folder: Path
) -> tuple[list[str], list[str], str, dict[str, str]]:
    urls = [f"http://127.0.0.1:{engine}" for engine in engines]
    if name == "gateway":
        config = folder / "site.json"
        shutil.rmtree(folder / "data", ignore_errors=True)
        config.write_text(json.dumps(site(engines, port, folder / "data")))
        keys = make_keys(config)
        argv = [sys.executable, "-m", "appliance", "gateway", "--config", str(config)]
        return argv, keys, importlib.metadata.version("llm-appliance"), {}
    if name == "nginx":
        config = folder / "nginx.conf"
        config.write_text(_nginx(engines, port, folder))
        version = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr
        return ["nginx", "-c", str(config)], ["none"], version.strip().rpartition("/")[2], {}
    if name == "fastapi-httpx":
        python = _venv("httpx")
        argv = [str(python.parent / "uvicorn"), "httpx_proxy:app", "--app-dir", str(HERE), "--port", str(port)]
        argv += ["--no-access-log", "--log-level", "warning", "--backlog", "2048"]
        return argv, ["sk-bench"], _version(python, "httpx"), {"ENGINE": urls[0], "KEY": "sk-bench"}
    python = _venv(name)
    if name == "litellm":
        config = folder / "litellm.yaml"
        models = "\n".join(
            f"  - model_name: bench\n    litellm_params: "
            f"{{model: openai/bench, api_base: '{url}/v1', api_key: none}}"
            for url in urls
        )
        config.write_text(
            f"model_list:\n{models}\ngeneral_settings: {{master_key: sk-bench}}\n"
            "litellm_settings: {telemetry: false, num_retries: 0, request_timeout: 600}\n"
        )
        argv = [str(python.parent / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
        environment = {"LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        return [*argv, "--num_workers", "1"], ["sk-bench"], _version(python, "litellm"), environment
    argv = ["--host", "127.0.0.1", "--port", str(port), "--worker-urls", *urls, "--log-level", "error"]
    argv += ["--prometheus-port", str(free_port()), "--max-concurrent-requests", "8192"]
    if name == "vllm-router":
        command = [str(python.parent / "vllm-router"), *argv, "--policy", "consistent_hash"]
    else:
        command = [str(python), "-m", "sglang_router.launch_router", *argv, "--policy", "cache_aware"]
    return command, ["none"], _version(python, name), {}


def _venv(name: str) -> Path:
    """Return the interpreter of a peer's own environment, which is created from the package index if missing."""
    python = VENVS / name / "bin" / "python"
    if not python.exists():
        print(f"  installing {name} into {python.parents[1].relative_to(HERE)}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(python.parents[1])], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES[name]]
        subprocess.run(pip, check=True, timeout=600)
    return python


def _version(python: Path, package: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def _nginx(engines: list[int], port: int, folder: Path) -> str:
    servers = " ".join(f"server 127.0.0.1:{engine};" for engine in engines)
    temporary = " ".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.geteuid() == 0 else ""
    return f"""{user} worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.err warn;
events {{ worker_connections 4096; }}
http {{
  access_log off; {temporary} keepalive_requests 1000000000;
  upstream engines {{ {servers} keepalive 512; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=2048;
    location / {{
      proxy_pass http://engines; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
}}
"""


@contextmanager
def engines(folder: Path) -> Iterator[list[int]]:
    """Start two lean engines on the core of the load."""
    folder.mkdir(parents=True, exist_ok=True)
    ports = neighbours()
    log = folder / "engines.log"
    argv = [sys.executable, str(HERE / "engine.py")]
    with (
        running([*argv, str(ports[0])], LOAD_CORE, log) as one,
        running([*argv, str(ports[1])], LOAD_CORE, log) as two,
    ):
        wait_for(ports[0], ASK, key="none", process=one, log=log, within_s=10)
        wait_for(ports[1], ASK, key="none", process=two, log=log, within_s=10)
        yield ports
