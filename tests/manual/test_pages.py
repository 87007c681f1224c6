"""The pages of the manual: twins of two languages, commands that exist, links that lead to a place."""

from __future__ import annotations

import ast
import json
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from appliance import cli, errors
from appliance.cli import notify
from appliance.doctor.runner import CHECKS
from tests.conftest import ROOT
from tools.manual import drawings, generated, pages, tables

PAGES = [(language, name) for language in pages.LANGUAGES for name in pages.names(language)]
TWIN = """\
# T

## One

| a |
|---|
| 1 |
| 2 |

```console
appliance doctor # look
```

![x](y.svg)
"""
BLOCK = """\
```console
$ sudo appliance loadtest rag \\
    --url https://x.example # go
$ appliance-keys list > keys
output
```
"""
OTHERS = ("README.md", "README.ru.md", "CONTRIBUTING.md", "SECURITY.md", "docs/releasing.md")


ENGINEERS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
TARGETS = {
    name
    for line in re.findall(r"^([a-z][a-z -]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for name in line.split()
}
SETTINGS = dict.fromkeys(("outbox", "host", "api", "chat", "token_file"), "x")


@pytest.fixture
def on_a_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the commands the defaults that NixOS renders on a host."""
    file = tmp_path / "notify.json"
    file.write_text(json.dumps(SETTINGS))
    monkeypatch.setattr(notify, "SETTINGS", file)


def text(language: str, name: str) -> str:
    return (pages.SOURCE / language / name).read_text(encoding="utf-8")


def differences(first: str, second: str) -> list[str]:
    """Return the parts of two twins that differ, by name."""
    one, other = pages.structure(first), pages.structure(second)
    parts = ("headings", "blocks", "rows", "images")
    return [
        f"{part}: {getattr(one, part)} != {getattr(other, part)}"
        for part in parts
        if getattr(one, part) != getattr(other, part)
    ]


def rejected(command: str) -> str:
    """Return the reason for which the program rejects ``command``; an empty string if it accepts it."""
    words = shlex.split(command.replace("…", "x"))[1:]
    try:
        cli.parse(words)
    except SystemExit as end:
        return "" if end.code in (0, None) else f"`{command}` is not a valid command"
    checks = {check.name for check in CHECKS}
    named = [word for option, word in pairwise(words) if words[0] == "doctor" and option == "--only"]
    return "".join(f"`{command}`: the check {name} does not exist" for name in named if name not in checks)


def anchors(file: Path) -> set[str]:
    return pages.anchors(file.read_text(encoding="utf-8"))


def dead_links(page: str, content: str) -> list[str]:
    """Return the links of ``content``, a page at ``page``, whose file or heading does not exist."""
    found = []
    for link in pages.links(content):
        if pages.is_external(link):
            continue
        path, fragment = pages.target(page, link)
        file = ROOT / path
        if not file.exists() or (
            fragment and file.suffix == ".md" and fragment not in pages.anchors(file.read_text(encoding="utf-8"))
        ):
            found.append(link)
    return found


def unknown_names(content: str) -> list[str]:
    """Return the options of NixOS, targets of make and environments of ``content`` that do not exist."""
    code = re.findall(r"```.*?```|`[^`\n]+`", content, re.DOTALL)
    listed = set(re.findall(r"^#+ `(appliance\.[^`]+)`", (ROOT / "docs/options.md").read_text(), re.MULTILINE))
    found = []
    for span in code:
        for option in re.findall(r"(?<![\w/.])appliance(?:\.[a-zA-Z0-9_]+)+", span):
            settings = option.startswith("appliance.settings.")
            if (
                not settings
                and not any(f"{one}.".startswith(f"{option}.") for one in listed)
                and not any(re.match(re.escape(one).replace("<name>", r"\w+") + r"\b", option) for one in listed)
            ):
                found.append(option)
        found += [f"make {name}" for name in re.findall(r"\bmake ([a-z][a-z-]+)", span) if name not in TARGETS]
    return found


def unknown_programs(content: str) -> list[str]:
    """Return the programs of ``python -m`` in ``content`` that the repository should have and lacks."""
    own = re.findall(r"-m ((?:appliance|benchmarks|loadtests|tests|tools)(?:\.\w+)*)", content)
    files = [(name, ROOT / name.replace(".", "/")) for name in own]
    return [
        name for name, file in files if not file.with_suffix(".py").exists() and not (file / "__main__.py").exists()
    ]


def test_both_languages_have_the_same_pages() -> None:
    assert pages.names("en") == pages.names("ru")
    chapters = [name[:2] for name in pages.names("en") if name[0].isdigit()]
    assert chapters == [f"{number:02}" for number in range(1, 18)]


@pytest.mark.parametrize("name", pages.names("en"))
def test_the_russian_twin_has_each_heading_block_and_row(name: str) -> None:
    assert differences(text("en", name), text("ru", name)) == []


def test_the_russian_readme_has_each_heading_block_and_row() -> None:
    english, russian = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.ru.md"))
    assert differences(english, russian) == []
    assert len(english.splitlines()) < 120


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda page: page.replace("## One\n", "", 1), "headings"),
        (lambda page: page.replace("| 2 |\n", ""), "rows"),
        (lambda page: page.replace("doctor", "smoke"), "blocks"),
        (lambda page: page.replace("![x](y.svg)", ""), "images"),
    ],
)
def test_a_twin_that_lacks_a_part_is_detected(change: object, part: str) -> None:
    page = (
        "# T\n\n## One\n\n| a |\n|---|\n| 1 |\n| 2 |\n\n```console\nappliance doctor # look\n```\n\n![x](y.svg)\n"
    )
    assert callable(change)
    assert [line.split(":")[0] for line in differences(page, change(page))] == [part]
    assert differences(page, page.replace("# look", "# взгляд")) == []


@pytest.mark.usefixtures("on_a_host")
@pytest.mark.parametrize(("language", "name"), PAGES)
def test_each_command_of_a_page_exists(language: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = [reason for _, command in pages.commands(text(language, name)) if (reason := rejected(command))]
    assert found == []


@pytest.mark.usefixtures("on_a_host")
@pytest.mark.parametrize("page", OTHERS)
def test_each_command_of_the_other_pages_exists(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    commands = pages.commands((ROOT / page).read_text(encoding="utf-8"))
    assert [reason for _, command in commands if (reason := rejected(command))] == []


@pytest.mark.parametrize(
    "line",
    [
        "appliance docter",
        "$ sudo appliance doctor --onyl disk",
        "appliance doctor --only disc",
        "appliance-gateway users lst | head",
    ],
)
def test_a_command_that_does_not_exist_is_detected(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    ((number, command),) = pages.commands(f"text\n\n```console\n{line}   # comment\n```\n")
    assert number == 4
    assert rejected(command)


def test_commands_are_read_from_continued_lines_and_wrappers() -> None:
    block = BLOCK
    found = [command for _, command in pages.commands(block)]
    assert [" ".join(one.split()) for one in found] == [
        "appliance loadtest rag --url https://x.example",
        "appliance keys list",
    ]


@pytest.mark.parametrize(("language", "name"), PAGES)
def test_each_option_and_each_target_of_a_page_exists(language: str, name: str) -> None:
    assert unknown_names(text(language, name)) == []


@pytest.mark.parametrize(
    "page",
    sorted(
        path.relative_to(ROOT).as_posix()
        for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.md")]
    ),
)
def test_each_program_of_a_page_exists(page: str) -> None:
    assert unknown_programs((ROOT / page).read_text(encoding="utf-8")) == []


def test_a_program_that_does_not_exist_is_detected() -> None:
    page = "Run `python -m tools.manual`, `python -m tests.nodes.failures` and `python -m tests.nodes.no`."
    assert unknown_programs(page) == ["tests.nodes.no"]


def test_an_option_or_a_target_that_does_not_exist_is_detected() -> None:
    page = "Set `appliance.gpuWatch.act` or `appliance.gpuWatch.acts`, then `make docs` or `make dogs`."
    assert unknown_names(page) == ["appliance.gpuWatch.acts", "make dogs"]


@pytest.mark.parametrize(("language", "name"), PAGES)
def test_each_link_of_a_page_leads_to_a_file_and_a_heading(language: str, name: str) -> None:
    assert dead_links(f"docs/manual/{language}/{name}", text(language, name)) == []


@pytest.mark.parametrize("page", [*OTHERS, *ENGINEERS])
def test_each_link_of_the_other_pages_leads_to_a_file_and_a_heading(page: str) -> None:
    assert dead_links(page, (ROOT / page).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("link", "dead"),
    [
        ("01-hardware.md", False),
        ("01-hardvare.md", True),
        ("../../doctor.md#the-checks", False),
        ("../../doctor.md#no-such-heading", True),
        ("https://llm.example.org/x", False),
    ],
)
def test_a_dead_link_is_detected(link: str, dead: bool) -> None:
    assert bool(dead_links("docs/manual/en/index.md", f"See [it]({link}).")) is dead


def test_the_generated_pages_and_drawings_are_current() -> None:
    assert generated.stale() == [], "run `python -m tools.manual`"


def test_a_stale_page_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = pages.SOURCE / "en" / "ref-errors.md"
    monkeypatch.setattr(generated, "files", lambda: {page: "other", pages.SOURCE / "en" / "ref-absent.md": ""})
    assert generated.stale() == ["docs/manual/en/ref-errors.md", "docs/manual/en/ref-absent.md"]


def test_a_stale_table_of_a_chapter_is_made_anew() -> None:
    for language, word in (("en", "alert"), ("ru", "алерт")):
        page = "# T\n\n<!-- table: urgent -->\n| old |\n<!-- end -->\n\nText.\n"
        made = tables.filled(page, language)
        assert f"| {word} |" in made
        assert "| old |" not in made
        assert made.endswith("<!-- end -->\n\nText.\n")
        assert tables.filled(made, language) == made


def test_a_table_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(KeyError, match="absent"):
        tables.filled("<!-- table: absent -->\n<!-- end -->\n", "en")


def test_each_table_is_on_a_page_of_each_language() -> None:
    for language in pages.LANGUAGES:
        shown = "".join(text(language, name) for name in pages.names(language))
        assert [name for name in tables.TABLES if f"<!-- table: {name} -->" not in shown] == []


def test_each_drawing_is_on_a_page_of_each_language() -> None:
    for language in pages.LANGUAGES:
        shown = "".join(text(language, name) for name in pages.names(language))
        assert [name for name in drawings.load() if f"../img/{name}-{language}.svg" not in shown] == []


@pytest.mark.parametrize("language", pages.LANGUAGES)
def test_the_texts_of_a_drawing_fit_their_boxes(language: str) -> None:
    # 13 px of a sans-serif font: 7.6 px a letter at most on average, also for Cyrillic.
    for name, picture in drawings.load().items():
        for key, box in picture.boxes.items():
            longest = max(map(len, box.texts[language].splitlines()))
            assert longest * 7.6 <= drawings.BOX_WIDTH, f"{name}.{key}"


def unproven(page: str) -> list[str]:
    """Return the commands of ``page`` that no row of its table of proofs begins with, or whose row is empty."""
    rows = [
        (cells[0].strip("`"), cells[1:])
        for line in page.splitlines()
        if line.startswith("| `") and len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 3
    ]
    proven = tuple(command for command, cells in rows if any(cell != "-" for cell in cells))
    shown = [
        line.removeprefix("$ ").removeprefix("sudo ")
        for _, language, lines in pages.code_blocks(page)
        for line in lines
        if language == "console" and line.startswith("$ ")
    ]
    return [command for command in shown if not command.startswith(proven)]


def test_each_command_of_the_first_evening_has_a_proof_or_names_what_it_needs() -> None:
    for language in pages.LANGUAGES:
        assert unproven(text(language, "first-evening.md")) == []


def test_a_command_without_a_proof_is_detected() -> None:
    page = text("en", "first-evening.md")
    assert unproven(page.replace("| `dd if=", "| `dt if=")) == [
        "dd if=result/iso/YOUR.iso of=/dev/sdX bs=4M status=progress conv=fsync"
    ]
    assert unproven(page.replace("| - | your stick |", "| - | - |"))


def codes_of_errors() -> set[str]:
    """Return the codes of errors in the source of the gateway, the assistant and the admin API."""
    found = {kind.code for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "code")}
    for file in (ROOT / "appliance").rglob("*.py"):
        source = file.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)) if "code=" in source else ():
            if isinstance(node, ast.keyword) and node.arg == "code" and isinstance(node.value, ast.Constant):
                found.add(node.value.value)
    return {code for code in found if isinstance(code, str)}


def test_each_error_code_is_on_the_page_of_symptoms_or_of_errors() -> None:
    codes = codes_of_errors()
    assert {"queue_full", "embedder_changed", "replica_not_found"} <= codes
    for language in pages.LANGUAGES:
        listed = text(language, "15-symptoms.md") + text(language, "ref-errors.md")
        assert sorted(code for code in codes if f"`{code}`" not in listed) == []


def test_each_proof_that_the_first_evening_names_exists() -> None:
    for language in pages.LANGUAGES:
        named = re.findall(r"`(tests/[^`:]+\.py)(?:::(\w+))?`", text(language, "first-evening.md"))
        assert named
        for file, function in named:
            source = (ROOT / file).read_text(encoding="utf-8")
            assert not function or f"def {function}(" in source, f"{file}::{function}"
