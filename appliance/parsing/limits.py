"""Limits of the process that parses one file, and the error of a file that cannot be used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MIB = 2**20

ErrorCode = Literal["server_error", "unsupported_file", "invalid_file"]
"""The codes of `last_error` in OpenAI's API."""


@dataclass(frozen=True, slots=True)
class ParseLimits:
    """The most that one file may cost. Seconds, bytes, and numbers of things."""

    memory_bytes: int = 1536 * MIB
    parse_cpu_s: int = 60
    """Processor time until the text is there."""
    total_cpu_s: int = 300
    """Processor time until the passages are there."""
    wall_s: float = 900.0
    output_bytes: int = 192 * MIB
    text_characters: int = 16 * MIB
    """Characters of the text; about the 5 million tokens of OpenAI's limit."""
    pages: int = 5000
    """Pages of a PDF."""
    unpacked_bytes: int = 128 * MIB
    """Bytes of all members of a DOCX after decompression."""
    xml_bytes: int = 24 * MIB
    """Bytes of one XML member of a DOCX, which needs about 30 times as much memory when parsed."""
    members: int = 10_000
    """Members of a DOCX."""


class UnusableFileError(Exception):
    """A file that cannot become passages: an error code of OpenAI's API and a message for the user."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code: ErrorCode = code
