"""Runs terminal programs with the settings of their pages.

A block of a page becomes what its file name shows: ``~/x`` a file of the home folder, ``environment`` variables,
``x.sh`` a script that runs first, and any other name a file of the project.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.client_programs.pages import blocks, settings, variables
from tests.client_programs.report import ClientStep, Verdict
from tests.client_programs.service import ServiceForClients

PROMPT = "Say hello."
WRONG_KEY = "sk-000000000000-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
REJECTION = re.compile(r"API key is not valid|unauthorized|authentication|401", re.IGNORECASE)
"""The output of a client whose key is not valid: the message of the gateway, or the client's own word for it."""

TIMEOUT_S = 400.0
"""Seconds of one run. On two idle cores, qwen-code is still at its second request after 150."""
USAGE_S = 10.0
"""Seconds within which a busy gateway writes the usage of a request."""
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class TerminalProgram:
    """A client that runs one prompt without a terminal."""

    name: str
    page: str
    argv: tuple[str, ...]
    """The command of one prompt."""
    endpoint: str
    """The endpoint of its usage; the assistant serves the responses of Codex and requests chats for them."""
    whole: tuple[str, ...] = ()
    """Further arguments with which the reply is not streamed; empty if the client always streams."""
    wrong_key_s: float = 90.0
    """Seconds of a run with an invalid key; some programs retry until they are stopped.

    opencode needs 30 seconds for its start on a busy machine.
    """


PROGRAMS = (
    TerminalProgram(
        name="aider",
        page="aider.md",
        argv=("aider", "--yes-always", "--no-auto-commits", "--no-pretty", "--message", PROMPT),
        endpoint="/v1/chat/completions",
        whole=("--no-stream",),
    ),
    TerminalProgram("Cline", "cline.md", ("cline", PROMPT), "/v1/chat/completions"),
    TerminalProgram(
        "Codex", "codex.md", ("codex", "exec", "--skip-git-repo-check", PROMPT), "/v1/chat/completions"
    ),
    TerminalProgram("Continue", "continue.md", ("cn", "-p", PROMPT), "/v1/chat/completions"),
    TerminalProgram("opencode", "opencode.md", ("opencode", "run", PROMPT), "/v1/chat/completions"),
    TerminalProgram("qwen-code", "qwen-code.md", ("qwen", "-p", PROMPT), "/v1/chat/completions"),
)


@dataclass(frozen=True)
class ProgramOutput:
    """The end of one run."""

    code: int | None
    """Its exit code; ``None`` if it was stopped after its time."""
    text: str


@dataclass
class ProgramFolder:
    """A home and a project of one client, with the settings of its page."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def project(self) -> Path:
        """Return the folder in which the client runs."""
        return self.root / "project"

    def run(self, argv: Sequence[str], timeout_s: float = TIMEOUT_S) -> ProgramOutput:
        """Run ``argv`` without input; raises :class:`FileNotFoundError` if it is not installed."""
        with subprocess.Popen(
            ["timeout", "--kill-after=5", str(timeout_s), *argv],
            cwd=self.project,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            text, _ = process.communicate()
        code = None if process.returncode in (124, 137) else process.returncode
        return ProgramOutput(code, _ESCAPES.sub("", text).strip())


def prepare(root: Path, page: str, *, url: str, key: str, path: str) -> ProgramFolder:
    """Make the folders of a client and write the settings of ``page`` into them."""
    folder = ProgramFolder(root)
    home = root / "home"
    home.mkdir(parents=True)
    folder.project.mkdir()
    folder.environment |= {"HOME": str(home), "PATH": path, "TERM": "dumb", "NO_COLOR": "1", "LANG": "C.UTF-8"}
    subprocess.run(["git", "init", "--quiet", str(folder.project)], check=True)
    for name, value in (("user.name", "Ada"), ("user.email", "ada@example.org")):
        subprocess.run(["git", "-C", str(folder.project), "config", name, value], check=True)
    scripts = []
    for block in blocks(page):
        text = settings(page, block.file, url=url, key=key)
        if block.file == "environment":
            folder.environment |= variables(text)
            continue
        in_home = block.file.startswith("~/")
        target = home / block.file[2:] if in_home else folder.project / block.file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        if block.language == "sh":
            scripts.append(target)
    for script in scripts:
        done = folder.run(["sh", str(script)])
        if done.code != 0:
            raise RuntimeError(f"{script.name} of {page} ended with {done.code}: {done.text[-400:]}")
    return folder


def served(rows: Sequence[Mapping[str, Any]], endpoint: str, *, stream: bool) -> bool:
    """Return whether ``rows`` have a successful request with output tokens."""
    return any(
        row["endpoint"] == endpoint
        and row["outcome"] == "ok"
        and bool(row["stream"]) == stream
        and row["completion_tokens"] > 0
        for row in rows
    )


def judge(
    output: ProgramOutput, rows: Sequence[Mapping[str, Any]], endpoint: str, *, stream: bool
) -> tuple[Verdict, str]:
    """Return the verdict of a chat and its detail."""
    done = [f"{row['endpoint']} {row['status']} {row['outcome']}" for row in rows]
    if not served(rows, endpoint, stream=stream):
        return "failed", f"requests: {', '.join(done) or 'none'}; output: {output.text[-300:]}"
    tokens = sum(row["completion_tokens"] for row in rows)
    if not output.text:
        return "failed", f"no output of {tokens} tokens, exit code {output.code}"
    detail = f"{len(rows)} requests of {endpoint}, {tokens} tokens"
    return "ok", detail if output.code == 0 else f"{detail}; exit code {output.code}: {output.text[-80:]}"


def judge_wrong_key(output: ProgramOutput) -> tuple[Verdict, str]:
    """Return the verdict of a run with an invalid key: the client must report it."""
    for line in output.text.splitlines():
        if REJECTION.search(line):
            return "ok", line.strip().partition(", url:")[0]
    return "failed", f"exit code {output.code}; output: {output.text[-200:]}"


def usage_of(service: ServiceForClients, user: str) -> list[dict[str, Any]]:
    """Return the usage rows of ``user``; wait for the first, which may be written after the client has ended."""
    deadline = time.monotonic() + USAGE_S
    while not (rows := service.rows(user)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return rows


def run_program(program: TerminalProgram, service: ServiceForClients, folder: Path, path: str) -> list[ClientStep]:
    """Run all steps of ``program`` and return them."""
    shown = program.name
    user = program.name.lower()
    chat = prepare(folder / "chat", program.page, url=service.url, key=service.new_key(user), path=path)
    version = _version(chat.run([program.argv[0], "--version"]).text)
    steps = []
    output = chat.run(program.argv)
    verdict, detail = judge(output, usage_of(service, user), program.endpoint, stream=True)
    steps.append(ClientStep(shown, version, "chat, streamed", verdict, detail))
    if program.whole:
        user = f"{user}-whole"
        plain = prepare(folder / "whole", program.page, url=service.url, key=service.new_key(user), path=path)
        output = plain.run([program.argv[0], *program.whole, *program.argv[1:]])
        verdict, detail = judge(output, usage_of(service, user), program.endpoint, stream=False)
        steps.append(ClientStep(shown, version, "chat, not streamed", verdict, detail))
    refused = prepare(folder / "key", program.page, url=service.url, key=WRONG_KEY, path=path)
    verdict, detail = judge_wrong_key(refused.run(program.argv, program.wrong_key_s))
    steps.append(ClientStep(shown, version, "invalid key", verdict, detail))
    return steps


def _version(text: str) -> str:
    found = re.findall(r"\d+\.\d+\.\d+", text)
    return str(found[-1]) if found else "?"
