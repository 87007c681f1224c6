"""The confined process that parses one file: ``python -m appliance.assistant.parsing.child ARGUMENTS``.

It reads the file from its standard input and writes one line of JSON: passages, or a code and a message. Before it
parses, it confines itself (:mod:`appliance.parsing.confinement`).
"""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import asdict, dataclass
from typing import Any

from appliance.assistant.parsing.passages import passages_of
from appliance.assistant.retrieval.chunking import ChunkSettings
from appliance.assistant.retrieval.terms import term_counts
from appliance.parsing.confinement import limit, load_encodings, parse_and_report, renounce_files
from appliance.parsing.documents import parse, parser_for
from appliance.parsing.file_type import format_of
from appliance.parsing.limits import ParseLimits


@dataclass(frozen=True, slots=True)
class ParseOrder:
    """The arguments of the confined process: the extension of the file, chunk sizes in tokens, limits."""

    extension: str
    max_tokens: int
    overlap_tokens: int
    limits: ParseLimits

    def as_argument(self) -> str:
        """Return the order as one argument of a command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_argument(cls, text: str) -> ParseOrder:
        """Return the order in ``text``."""
        found = json.loads(text)
        return cls(**{**found, "limits": ParseLimits(**found["limits"])})


def main() -> int:
    """Parse the file on standard input; return 0 if a result was written."""
    order = ParseOrder.from_argument(sys.argv[1])
    return parse_and_report(order.limits, lambda content: {"passages": _passages(order, content)})


def _passages(order: ParseOrder, content: bytes) -> list[dict[str, Any]]:
    parser = parser_for(format_of(content, order.extension))
    # The stemmers and the codecs read files at their first use.
    term_counts("Проверка words 2026-01-02")
    load_encodings()
    renounce_files()
    document = parse(parser, content, order.extension, order.limits)
    limit(resource.RLIMIT_CPU, order.limits.total_cpu_s)
    settings = ChunkSettings(order.max_tokens, order.overlap_tokens)
    return [passage.as_json() for passage in passages_of(document, settings)]


if __name__ == "__main__":
    sys.exit(main())
