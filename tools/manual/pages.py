"""The pages of the manual, their order, and where a link of a page leads.

A page has the same file name in `docs/manual/en` and `docs/manual/ru`. The prefix ``ref-`` marks generated pages.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "docs" / "manual"
LANGUAGES = ("en", "ru")
FIRST = ("index.md", "first-evening.md")
"""Pages before the chapters."""


@dataclass(frozen=True, slots=True)
class Structure:
    """The parts of a page that both languages share: levels of headings, code blocks, rows of tables, images."""

    headings: tuple[int, ...]
    blocks: tuple[str, ...]
    rows: tuple[int, ...]
    images: int


def names(language: str) -> list[str]:
    """Return the file names of the pages in reading order."""
    found = {path.name for path in (SOURCE / language).glob("*.md")}
    chapters = sorted(name for name in found if name[0].isdigit())
    reference = sorted(name for name in found if name.startswith("ref-"))
    return [*(name for name in FIRST if name in found), *chapters, *reference]


def title(text: str) -> str:
    """Return the first heading of a page; raises ``ValueError`` if it has none."""
    match = re.search(r"^# (.+)$", text, re.MULTILINE)
    if match is None:
        raise ValueError("the page has no heading of the first level")
    return match.group(1)


def structure(text: str) -> Structure:
    """Return the :class:`Structure` of a page. Comments of a block may be translated, its commands not."""
    headings: list[int] = []
    blocks: list[str] = []
    rows: list[int] = []
    block: list[str] | None = None
    in_table = False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            if block is None:
                block = [line.strip()]
            else:
                blocks.append("\n".join(block))
                block = None
            continue
        if block is not None:
            if stripped := _without_comment(line):
                block.append(stripped)
            continue
        if match := re.match(r"(#+) ", line):
            headings.append(len(match.group(1)))
        is_row = line.startswith("|")
        if is_row and in_table:
            rows[-1] += 1
        elif is_row:
            rows.append(1)
        in_table = is_row
    return Structure(
        headings=tuple(headings),
        blocks=tuple(blocks),
        rows=tuple(rows),
        images=len(re.findall(r"!\[", text)),
    )


def _without_comment(line: str) -> str:
    return re.sub(r"(^|\s)#\s.*$", "", line).rstrip()


def code_blocks(text: str) -> list[tuple[int, str, list[str]]]:
    """Return each fenced block: the number of its first line, its language, its lines."""
    found: list[tuple[int, str, list[str]]] = []
    current: tuple[int, str, list[str]] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            if current is None:
                current = (number + 1, line.strip().removeprefix("```"), [])
            else:
                found.append(current)
                current = None
        elif current is not None:
            current[2].append(line)
    return found


def commands(text: str) -> list[tuple[int, str]]:
    """Return the ``appliance …`` lines of the shell blocks of ``text``, with their line numbers.

    A continued line is joined. ``sudo``, the prompt ``$`` and a comment are removed, and the wrappers of a host
    (``appliance-gateway``, ``appliance-keys``, ``appliance-telegram``) become the command that they run.
    """
    found = []
    for start, language, lines in code_blocks(text):
        if language not in {"console", "sh", "bash"}:
            continue
        joined, first = "", start
        for number, line in enumerate(lines, start):
            first = first if joined else number
            joined += line.rstrip()
            if joined.endswith("\\"):
                joined = joined[:-1] + " "
                continue
            command = _command(joined)
            joined = ""
            if command:
                found.append((first, command))
    return found


_WRAPPERS = {
    "appliance-gateway": "appliance",
    "appliance-keys": "appliance keys",
    "appliance-telegram": "appliance telegram",
}


def _command(line: str) -> str:
    words = re.sub(r"(^|\s)#\s.*$", "", line).strip().removeprefix("$ ").removeprefix("sudo ").strip()
    words = re.split(r"\s(?:[|>;]|&&)\s?", f"{words} ", maxsplit=1)[0].strip()
    first, _, rest = words.partition(" ")
    first = first.removeprefix(".venv/bin/")
    if first in _WRAPPERS:
        return f"{_WRAPPERS[first]} {rest}".strip()
    return f"appliance {rest}".strip() if first == "appliance" else ""


LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
"""A link or an image of Markdown: ``!`` of an image, text, target."""


def links(text: str) -> list[str]:
    """Return the targets of the links of ``text``; code is skipped."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    prose = re.sub(r"`[^`\n]*`", "", prose)
    return [match.group(3) for match in LINK.finditer(prose)]


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings of ``text``, as GitHub and the site make them."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return {anchor(match.group(1)) for match in re.finditer(r"^#+ (.+)$", prose, re.MULTILINE)}


def anchor(heading: str) -> str:
    """Return the anchor of ``heading``: lower case, letters and digits of any alphabet, dashes for spaces."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", plain.lower()).strip().replace(" ", "-")


def target(page: str, link: str) -> tuple[str, str]:
    """Return the path in the repository and the fragment of ``link`` on ``page``, a path in the repository."""
    path, _, fragment = link.partition("#")
    if not path:
        return page, fragment
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), path)), fragment


def is_external(link: str) -> bool:
    """Return whether ``link`` names another host."""
    return re.match(r"[a-z][a-z0-9+.-]*:", link) is not None
