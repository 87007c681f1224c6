"""The mock engine's command: it runs wherever it is started, and alone as a copy of its file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from appliance.contract.load import validate
from appliance.contract.model import Site
from appliance.engines import argv, mock
from tests.conftest import a_site, http, opens, wait_until
from tests.ports import free_port


def site(folder: Path, **engine: object) -> Site:
    table = a_site(free_port(), free_port(), folder)
    table["engines"]["chat"] |= engine
    return validate("site", table)


def test_the_command_runs_in_any_folder(tmp_path: Path) -> None:
    (tmp_path / "appliance").mkdir()
    (tmp_path / "appliance" / "__init__.py").write_text("raise ImportError('another program')")
    here = site(tmp_path, options={"tokens": 3})
    built = argv.command(here, argv.find(here, "chat"), tmp_path)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with subprocess.Popen(built.argv, cwd=tmp_path, env=environment | built.environment) as process:
        try:
            port = here.engines["chat"].port
            wait_until(lambda: opens(port), "it listens", 30)
            body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
            response = http(f"http://127.0.0.1:{port}/v1/chat/completions", body=body)
            assert response.json["system_fingerprint"] == "fake-engine"
            assert response.json["usage"]["completion_tokens"] == 3
        finally:
            process.terminate()


def test_a_python_that_the_site_names_gets_no_modules_of_ours(tmp_path: Path) -> None:
    here = site(tmp_path, command="/usr/bin/python3")
    built = argv.command(here, argv.find(here, "chat"), tmp_path)
    assert built.argv[:4] == ("/usr/bin/python3", "-P", "-m", "appliance.engines.mock")
    assert not built.environment


def test_a_copy_of_the_file_runs_alone(tmp_path: Path) -> None:
    copy = shutil.copy(mock.__file__, tmp_path / "engine.py")
    code = "import sys, runpy; sys.modules['appliance'] = None; sys.argv[1:] = ['--help']; "
    code += f"runpy.run_path({str(copy)!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "vLLM's HTTP API" in done.stdout
