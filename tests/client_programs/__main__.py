"""Runs the client programs and writes their report: ``python -m tests.client_programs [--engine fake]``."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.client_programs.install import InstalledPrograms, cache_folder, install
from tests.client_programs.langchain_calls import STEPS
from tests.client_programs.pages import FOLDER
from tests.client_programs.programs import PROGRAMS, WRONG_KEY, judge_wrong_key, prepare, run_program
from tests.client_programs.report import ClientStep, failed, report_text
from tests.client_programs.service import EMBEDDER, MODEL, ServiceForClients, service_for_clients
from tests.conftest import ROOT, http
from tests.up_process import ENGINE_PYTHON

NOT_RUN = (
    ("LibreChat", "needs MongoDB; its settings are checked as YAML"),
    ("n8n", "2.9 GB and a native module that is built; `make test` replays its recorded requests"),
    ("Obsidian", "needs a desktop; `make test` checks the origin in Chromium"),
    ("Open WebUI", "6.9 GB with CUDA libraries; `make test` replays its recorded requests"),
)
LANGCHAIN_CALLS = ROOT / "tests" / "client_programs" / "langchain_calls.py"


def langchain_steps(service: ServiceForClients, folder: Path, installed: InstalledPrograms) -> list[ClientStep]:
    """Run the steps of LangChain, each as a process with the ``models.py`` of the page."""
    python = installed.environments / "langchain" / "bin" / "python"
    page = "langchain.md"
    good = prepare(folder / "chat", page, url=service.url, key=service.new_key("langchain"), path=installed.path())
    refused = prepare(folder / "key", page, url=service.url, key=WRONG_KEY, path=installed.path())
    for one in (good, refused):
        one.environment["PYTHONPATH"] = str(one.project)
    shown = "import importlib.metadata as m; print(m.version('langchain-openai'))"
    version = good.run([str(python), "-c", shown]).text
    steps = []
    for step in STEPS:
        output = good.run([str(python), str(LANGCHAIN_CALLS), step])
        verdict = "ok" if output.code == 0 and output.text else "failed"
        detail = output.text if verdict == "ok" else output.text[-150:]
        steps.append(ClientStep("LangChain", version, step, "ok" if verdict == "ok" else "failed", detail))
    output = refused.run([str(python), str(LANGCHAIN_CALLS), "chat, streamed"])
    checked, detail = judge_wrong_key(output)
    return [*steps, ClientStep("LangChain", version, "invalid key", checked, detail)]


def listed_names(service: ServiceForClients) -> ClientStep:
    """Return the step that reads the list of models, as the pickers of clients do."""
    names = {card["id"] for card in http(f"{service.url}/v1/models", key=service.new_key("lister")).json["data"]}
    missing = {MODEL, EMBEDDER, "writer", "memory"} - names
    return ClientStep(
        "plain HTTP",
        "",
        "GET /v1/models",
        "failed" if missing else "ok",
        f"missing: {sorted(missing)}" if missing else "",
    )


def engine_name(*, vllm: bool) -> str:
    """Return the words for the engine in the report."""
    if not vllm:
        return "the mock engine"
    code = "import vllm; print(vllm.__version__)"
    version = subprocess.run([str(ENGINE_PYTHON), "-c", code], check=True, capture_output=True, text=True).stdout
    return f"vLLM {version.split()[-1].partition('+')[0]} on the CPU, a tiny random Qwen3 whose text is noise"


def main() -> int:
    """Run the command line; exit code 1 if a step failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.client_programs", description=__doc__)
    parser.add_argument("--engine", choices=("vllm", "fake"), default="vllm")
    parser.add_argument("--only", nargs="*", default=None, help="names of clients; the others are omitted")
    parser.add_argument(
        "--report", type=Path, default=None, help="the file of the report; with vLLM it has a default"
    )
    options = parser.parse_args()
    vllm = options.engine == "vllm"
    installed = install(cache_folder())
    steps: list[ClientStep] = []

    def add(more: list[ClientStep]) -> None:
        steps.extend(more)
        for one in more:
            print(json.dumps(vars(one)), flush=True)

    with tempfile.TemporaryDirectory(prefix="clients-") as scratch:
        folder = Path(scratch)
        with service_for_clients(folder / "service", vllm=vllm) as service:
            add([listed_names(service)])
            for program in PROGRAMS:
                if options.only is None or program.name in options.only:
                    add(run_program(program, service, folder / program.name, installed.path()))
            if options.only is None or "LangChain" in options.only:
                add(langchain_steps(service, folder / "langchain", installed))
    if options.only is None:
        add([ClientStep(name, "", "", "not run", reason) for name, reason in NOT_RUN])
    path = options.report or (FOLDER / "report.md" if vllm and options.only is None else None)
    text = report_text(steps, engine_name(vllm=vllm))
    if path is not None:
        path.write_text(text, encoding="utf-8")
    print(text)
    return 1 if failed(steps) else 0


if __name__ == "__main__":
    sys.exit(main())
