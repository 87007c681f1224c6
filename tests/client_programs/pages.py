"""Reads the settings of docs/clients: the code blocks of a page by the name of their file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

FOLDER = ROOT / "docs" / "clients"
ADDRESS = "https://llm.example.org"
"""The address of the service in the pages."""
KEY = "sk-YOUR-KEY"
"""The key in the pages."""

_BLOCK = re.compile(r"^```(\S+) (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class SettingsBlock:
    """One code block whose first line names a language and a file: ``json opencode.json``."""

    page: str
    language: str
    file: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.file}"


def page_names(folder: Path = FOLDER) -> list[str]:
    """Return the names of the pages of clients, without index and report."""
    return sorted(path.name for path in folder.glob("*.md") if path.name not in ("README.md", "report.md"))


def blocks(page: str, folder: Path = FOLDER) -> list[SettingsBlock]:
    """Return the settings of ``page`` in their order."""
    text = (folder / page).read_text(encoding="utf-8")
    return [SettingsBlock(page, *match.groups()) for match in _BLOCK.finditer(text)]


def settings(page: str, file: str, *, url: str, key: str, folder: Path = FOLDER) -> str:
    """Return the block ``file`` of ``page`` with the address and the key of a running service.

    Raises :class:`KeyError` if the page has no such block.
    """
    for block in blocks(page, folder):
        if block.file == file:
            return block.text.replace(ADDRESS, url).replace(KEY, key)
    raise KeyError(f"{page} has no block {file}")


def variables(text: str) -> dict[str, str]:
    """Return the variables of a block of lines ``NAME=value`` or ``export NAME=value``."""
    lines = (line.removeprefix("export ").partition("=") for line in text.splitlines() if "=" in line)
    return {name: value for name, _, value in lines}
