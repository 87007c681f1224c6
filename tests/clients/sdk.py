"""One call of a client SDK and its outcome, in the same types for every SDK and language.

The Python SDKs run in this process (``python_sdks.py``), the Node SDKs in one child (:class:`NodeSdks`).
"""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

TIMEOUT_S = 60.0
"""Seconds after which a call that has no outcome fails its test."""


@dataclass(frozen=True)
class Call:
    """One call of an SDK. ``api`` names the SDK's own interface, ``url`` is the gateway without ``/v1``."""

    api: str
    url: str
    key: str
    model: str
    text: str = "hi"
    max_tokens: int = 64
    stream: bool = False
    usage: bool = False
    """Whether to request the usage of a stream, if the API makes that a choice."""
    tool: bool = False
    disconnect: bool = False
    """Whether to close the stream at its first text."""
    retries: int = 0


@dataclass(frozen=True)
class SdkProblem:
    """The attributes of an SDK's exception."""

    name: str
    message: str
    status: int | None = None
    type: str | None = None
    code: str | int | None = None
    request_id: str | None = None
    retry_after: str | None = None


@dataclass
class SdkOutcome:
    """The result of a call, and the exception if the SDK raised one."""

    text: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    """Names and arguments of tool calls."""
    usage: tuple[int, int] | None = None
    """Tokens of the prompt and of the completion."""
    finish: str | None = None
    request_id: str | None = None
    models: list[str] = field(default_factory=list)
    problem: SdkProblem | None = None


Begun = Callable[[], None]


class Sdk(Protocol):
    """An SDK that runs calls."""

    def run(self, call: Call, begun: Begun) -> SdkOutcome:
        """Run ``call`` to its end; ``begun`` is called at the first text of a stream."""


class NodeSdks:
    """One Node process that runs ``node/main.mjs``; calls may overlap.

    ``main.mjs`` reads a line ``{"id", "sdk", …call}`` and writes ``{"id", "begun"}`` and ``{"id", "outcome"}``.
    """

    def __init__(self, node: str, script: Path, log: Path) -> None:
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [node, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self._log = log
        self._sending = threading.Lock()
        self._lines: list[queue.SimpleQueue[dict[str, Any]]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def run(self, sdk: str, call: Call, begun: Begun) -> SdkOutcome:
        """Run ``call`` in the adapter ``sdk``; raises ``AssertionError`` if Node ends or stays silent."""
        fields = asdict(call)
        fields["maxTokens"] = fields.pop("max_tokens")
        lines: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        assert self._process.stdin is not None
        with self._sending:
            self._lines.append(lines)
            number = len(self._lines) - 1
            self._process.stdin.write(json.dumps({"id": number, "sdk": sdk, **fields}) + "\n")
            self._process.stdin.flush()
        while True:
            try:
                line = lines.get(timeout=TIMEOUT_S)
            except queue.Empty:
                line = {}
            if "outcome" in line:
                return _outcome(line["outcome"])
            if "begun" not in line:
                raise AssertionError(f"node has no outcome of {call}: {self._log.read_text()[-2000:]}")
            begun()

    def close(self) -> None:
        """End the process: it runs until its input closes."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for text in self._process.stdout:
            line = json.loads(text)
            self._lines[line["id"]].put(line)
        for lines in self._lines:
            # Wakes the calls that still wait.
            lines.put({})


@dataclass(frozen=True)
class NodeSdk:
    """One adapter of :class:`NodeSdks`."""

    name: str
    process: NodeSdks

    def run(self, call: Call, begun: Begun) -> SdkOutcome:
        """Run ``call`` in Node."""
        return self.process.run(self.name, call, begun)


def _outcome(line: dict[str, Any]) -> SdkOutcome:
    problem = line["problem"]
    usage = line["usage"]
    return SdkOutcome(
        text=line["text"],
        calls=[(name, arguments) for name, arguments in line["calls"]],
        usage=None if usage is None else (usage[0], usage[1]),
        finish=line["finish"],
        request_id=line["requestId"],
        models=line["models"],
        problem=None
        if problem is None
        else SdkProblem(
            name=problem["name"],
            message=problem["message"],
            status=problem["status"],
            type=problem["type"],
            code=problem["code"],
            request_id=problem["requestId"],
            retry_after=problem["retryAfter"],
        ),
    )
