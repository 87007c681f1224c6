"""The settings in docs/clients parse, and name only paths, models and roles that the service has."""

from __future__ import annotations

import ast
import json
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml  # type: ignore[import-untyped]

from appliance.contract.model import Gateway
from appliance.gateway.paths import INFERENCE, MODELS
from tests.client_programs.pages import (
    ADDRESS,
    FOLDER,
    KEY,
    SettingsBlock,
    blocks,
    page_names,
    settings,
    variables,
)
from tests.client_programs.service import NAMES
from tests.conftest import ROOT

BLOCKS = [block for page in page_names() for block in blocks(page)]
CLIENTS = {
    "aider", "cline", "codex", "continue", "langchain", "librechat", "n8n", "obsidian", "open-webui", "opencode",
    "qwen-code",
}  # fmt: skip
BASES = {"", "/", "/v1", "/v1/"}
"""Paths of base URLs: clients of Anthropic's API add ``/v1`` themselves."""
LANGUAGES = {"json", "yaml", "toml", "sh", "python"}

_URL = re.compile(r"https?://[^\s\"'`)|,]+")
_FENCE = re.compile(r"^```(.*)$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#([^)\s]+))?\)")
_SECRET = re.compile(r"sk-[A-Za-z0-9-]+")
_NAME = re.compile(r"^Qwen/|embed")


def parse(block: SettingsBlock) -> object:
    """Return the value of ``block``; raises the error of its parser."""
    parsers: dict[str, Callable[[str], object]] = {
        "json": json.loads,
        "yaml": yaml.safe_load,
        "toml": tomllib.loads,
        "python": ast.parse,
        "sh": lambda text: [shlex.split(line) for line in text.splitlines()],
    }
    return parsers[block.language](block.text)


def strings(value: object) -> list[str]:
    """Return all strings in ``value``, keys included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in strings(part)]
    if isinstance(value, list):
        return [text for part in value for text in strings(part)]
    return []


def problems(text: str) -> list[str]:
    """Return addresses whose path the gateway does not serve, and keys that are not the placeholder."""
    found = []
    for url in _URL.findall(text):
        path = urlsplit(url).path
        if url.startswith(ADDRESS) and path not in BASES | INFERENCE | {MODELS}:
            found.append(url)
    return found + [key for key in _SECRET.findall(text) if key != KEY]


def test_every_client_has_a_page_in_the_index() -> None:
    assert {Path(page).stem for page in page_names()} == CLIENTS
    index = (FOLDER / "README.md").read_text()
    assert [name for name in sorted(CLIENTS) if f"]({name}.md)" not in index] == []


@pytest.mark.parametrize("page", page_names())
def test_a_page_has_settings_that_parse(page: str) -> None:
    text = (FOLDER / page).read_text()
    named = blocks(page)
    assert named, "each page has settings to paste"
    fences = [line for line in _FENCE.findall(text) if line]
    assert len(fences) == len(named), f"a block names its language and its file: {fences}"
    for block in named:
        assert block.language in LANGUAGES, block
        assert parse(block), block
    assert "\n## Does not\n" in text
    assert "\n## Works\n" in text


@pytest.mark.parametrize("page", ["README.md", *page_names()])
def test_a_page_names_only_what_the_service_has(page: str) -> None:
    text = (FOLDER / page).read_text()
    assert problems(text) == []
    named = [
        text for block in blocks(page) if block.language not in ("sh", "python") for text in strings(parse(block))
    ]
    for name in (one.removeprefix("openai/").removeprefix("appliance/") for one in named):
        if _NAME.search(name):
            assert name in (*NAMES, "embed"), f"{page} names {name}"


@pytest.mark.parametrize(
    "text", ["https://llm.example.org/v2", "https://llm.example.org/v1/v1", "key: sk-1234567890ab-secret"]
)
def test_a_false_address_and_a_real_key_are_found(text: str) -> None:
    assert len(problems(text)) == 1


def test_the_links_of_the_pages_lead_to_files_and_headings() -> None:
    dead = []
    for path in [*FOLDER.glob("*.md"), ROOT / "docs" / "clients.md", ROOT / "docs" / "features.md"]:
        for target, anchor in _LINK.findall(path.read_text()):
            if "://" in target:
                continue
            linked = (path.parent / target).resolve()
            if not linked.exists() or (anchor and anchor not in anchors(linked)):
                dead.append(f"{path.name}: {target}#{anchor}")
    assert dead == []


def anchors(path: Path) -> set[str]:
    """Return the anchors of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_names_of_the_pages_are_those_of_the_laptop() -> None:
    site: dict[str, Any] = tomllib.loads((ROOT / "examples" / "laptop.toml").read_text())
    assert set(NAMES) == site["models"].keys() | site["roles"].keys()


def test_the_origins_of_obsidian_are_valid() -> None:
    origins = tomllib.loads(settings("obsidian.md", "site.toml", url="", key=""))["gateway"]["browser_origins"]
    assert Gateway(browser_origins=tuple(origins)).browser_origins == tuple(origins)


def test_settings_get_the_address_and_the_key_of_a_service() -> None:
    text = settings("open-webui.md", "open-webui.env", url="http://127.0.0.1:1", key="sk-1")
    assert variables(text)["OPENAI_API_BASE_URL"] == "http://127.0.0.1:1/v1"
    assert variables(text)["OPENAI_API_KEY"] == "sk-1"
    with pytest.raises(KeyError):
        settings("open-webui.md", "absent.env", url="", key="")
