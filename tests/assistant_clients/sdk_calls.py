"""Any method of OpenAI's SDKs by its name, with the same arguments and results for Python and Node.

A name is that of Python: ``vector_stores.files.create``. Positional arguments are those of Node. A list is read to
its end, a stream to its last event, a download to its text.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import openai
from openai._base_client import BaseSyncPage
from openai._legacy_response import HttpxBinaryResponseContent
from openai.lib.streaming.responses import ResponseStreamManager
from pydantic import BaseModel

SCRIPT = Path(__file__).resolve().parent.parent / "clients" / "node" / "calls.mjs"
RESOURCES = ("responses", "conversations", "files", "uploads", "vector_stores")
"""The parts of the SDKs whose endpoints the assistant serves."""


@dataclass(frozen=True)
class SentFile:
    """A file that a call sends."""

    name: str
    text: str


class SdkCallError(Exception):
    """The exception of an SDK."""

    def __init__(self, problem: dict[str, Any]) -> None:
        super().__init__(problem["message"])
        self.status, self.code, self.param = problem["status"], problem["code"], problem["param"]


class SdkCalls(Protocol):
    """An SDK with the key of a user of its own."""

    def call(self, method: str, *args: Any, **fields: Any) -> Any:
        """Return the result as JSON; raises :class:`SdkCallError`."""

    def methods(self) -> set[str]:
        """Return the names of all methods of :data:`RESOURCES`."""


class PythonCalls:
    """``openai`` of Python."""

    NAMES = {  # noqa: RUF012 - never changed
        "vector_stores.files.upload": ("vector_store_id", "file"),
        "vector_stores.files.upload_and_poll": ("vector_store_id", "file"),
        "vector_stores.files.create_and_poll": ("vector_store_id",),
        "vector_stores.files.poll": ("vector_store_id", "file_id"),
        "vector_stores.file_batches.poll": ("vector_store_id", "batch_id"),
    }
    """Arguments that this SDK accepts by name only, or in another order."""

    def __init__(self, client: openai.OpenAI) -> None:
        self._client = client

    def call(self, method: str, *args: Any, **fields: Any) -> Any:
        """Return the result as JSON; raises :class:`SdkCallError`."""
        function: Any = self._client
        for part in method.split("."):
            function = getattr(function, part)
        if method in self.NAMES:
            args, fields = (), {**dict(zip(self.NAMES[method], args, strict=True)), **fields}
        args, fields = _with_files(args), _with_files(fields)
        try:
            return _python_result(function(*args, **fields))
        except openai.APIError as error:
            status = error.status_code if isinstance(error, openai.APIStatusError) else None
            problem = {"message": error.message, "status": status, "code": error.code, "param": error.param}
            raise SdkCallError(problem) from None

    def methods(self) -> set[str]:
        """Return the names of all methods of :data:`RESOURCES`."""
        return {name for one in RESOURCES for name in _python_methods(getattr(self._client, one), one)}


class NodeCalls:
    """``openai`` of Node, in a process of its own that runs one call after the other."""

    def __init__(self, node: str, url: str, key: str, log: Path) -> None:
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [node, str(SCRIPT), url, key],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._log = log

    def call(self, method: str, *args: Any, **fields: Any) -> Any:
        """Return the result as JSON; raises :class:`SdkCallError`."""
        return self._send({"method": _camel(method), "args": [*args, *([fields] if fields else [])]})

    def methods(self) -> set[str]:
        """Return the names of all methods of :data:`RESOURCES`."""
        found: list[str] = self._send({"list": [_camel(one) for one in RESOURCES]})
        return {_snake(name) for name in found}

    def close(self) -> None:
        """End the process, which reads until its input closes."""
        self._process.communicate(timeout=60)

    def _send(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request, default=lambda one: {"$file": [one.name, one.text]}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"node ended: {self._log.read_text()[-2000:]}"
        response = json.loads(line)
        if "problem" in response:
            raise SdkCallError(response["problem"])
        return response["result"]


def _with_files(value: Any) -> Any:
    if isinstance(value, SentFile):
        return (value.name, value.text.encode())
    if isinstance(value, dict):
        return {name: _with_files(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_with_files(one) for one in value)
    return value


def _python_result(value: Any) -> Any:
    if isinstance(value, HttpxBinaryResponseContent):
        return value.text
    if isinstance(value, ResponseStreamManager):
        with value as stream:
            return [_python_result(event) for event in stream]
    if isinstance(value, BaseSyncPage | openai.Stream):
        return [_python_result(one) for one in value]
    if isinstance(value, BaseModel):
        # The types of parsed responses are generic, so that pydantic warns of each of them.
        _complete(value)
        return value.model_dump(mode="json", serialize_as_any=True, warnings="none")
    return value


def _python_methods(resource: Any, path: str) -> set[str]:
    found = set()
    for name in dir(resource):
        value = None if name.startswith(("_", "with_")) else getattr(resource, name)
        if isinstance(value, openai.resources.responses.Responses.__mro__[1]):
            found |= _python_methods(value, f"{path}.{name}")
        elif callable(value):
            found.add(f"{path}.{name}")
    return found


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word[0].upper() + word[1:] for word in rest)


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


def _complete(value: Any) -> None:
    """Build the types of ``value`` and of all in it: the SDK defers that, and a dump as any type does not do it."""
    if isinstance(value, BaseModel):
        type(value).model_rebuild()
        _complete({**vars(value), **(value.model_extra or {})})
    elif isinstance(value, dict):
        _complete(list(value.values()))
    elif isinstance(value, list):
        for one in value:
            _complete(one)
