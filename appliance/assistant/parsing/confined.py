"""Parses a file in a confined process (:mod:`appliance.assistant.parsing.child`): a file becomes its passages."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

from appliance.assistant.parsing.child import ParseOrder
from appliance.assistant.parsing.parsed_passage import ParsedPassage
from appliance.assistant.retrieval.chunking import ChunkSettings
from appliance.parsing.confined import run_confined
from appliance.parsing.limits import ParseLimits

PROGRAM = (sys.executable, "-m", "appliance.assistant.parsing.child")


async def parse_confined(
    content: BinaryIO,
    extension: str,
    chunks: ChunkSettings,
    *,
    limits: ParseLimits | None = None,
    program: Sequence[str] = PROGRAM,
) -> list[ParsedPassage]:
    """Return the passages of the open file ``content``.

    The process ends with this call in all cases, cancellation included.

    Raises:
        UnusableFileError: The file cannot be used, or it exceeds a limit.
        OSError: The process cannot be started.
    """
    limits = ParseLimits() if limits is None else limits
    order = ParseOrder(extension, chunks.max_tokens, chunks.overlap_tokens, limits)
    return await run_confined(content, [*program, order.as_argument()], _passages, limits=limits)


def _passages(found: Mapping[str, Any]) -> list[ParsedPassage]:
    return [ParsedPassage.from_json(one) for one in found["passages"]]
