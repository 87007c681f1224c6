"""Builds the site: one search and one navigation for each language, below one folder.

The sources are copied to a folder for staging, because pages of the manual link to the other pages in `docs/`.
They become the section "reference" of the English site; the Russian one links to it. Links to other files of the
repository become text.
"""

from __future__ import annotations

import posixpath
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.manual import pages, printable

MORE = ("*.md", "clients/*.md", "decisions/*.md", "img/*")
"""Files of `docs/` that the reference section has."""

WORDS: Mapping[str, Mapping[str, str]] = {
    "en": {"chapters": "Chapters", "reference": "Reference", "pages": "More pages"},
    "ru": {"chapters": "Главы", "reference": "Справочник", "pages": "More pages"},
}
CONFIGURATION = {"en": "mkdocs.yml", "ru": "mkdocs.ru.yml"}
TWIN = {"en": ("ru", "Русский"), "ru": ("en", "English")}
START = """<!doctype html><html lang="en"><meta charset="utf-8"><title>The appliance</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<ul><li><a href="en/index.html">English</a> (<a href="manual-en.html">one file</a>)</li>
<li><a href="ru/index.html" lang="ru">Русский</a> (<a href="manual-ru.html">одним файлом</a>)</li></ul></html>
"""


def build(out: Path, work: Path) -> None:
    """Write the site of both languages and the printable files to ``out``; ``work`` is the folder for staging.

    Raises ``properdocs.exceptions.Abort`` if a page has a dead link.
    """
    for language in pages.LANGUAGES:
        build_language(language, out / language, work / language)
        (out / f"manual-{language}.html").write_text(printable.document(language), encoding="utf-8")
    (out / "index.html").write_text(START, encoding="utf-8")


def build_language(language: str, out: Path, work: Path) -> None:
    """Write the site of one language to ``out``; raises as :func:`build`."""
    # They are imported here, so that the other commands of this package need no builder.
    from properdocs.commands.build import build as build_site  # noqa: PLC0415
    from properdocs.config import load_config  # noqa: PLC0415

    stage(language, work)
    config = load_config(
        str(pages.ROOT / CONFIGURATION[language]),
        docs_dir=str(work),
        site_dir=str(out),
        nav=navigation(language),
        strict=True,
    )
    build_site(config)


def navigation(language: str) -> list[Any]:
    """Return the navigation of the site in the builder's form."""
    words, listed = WORDS[language], pages.names(language)
    entries: list[Any] = [name for name in listed if name in pages.FIRST]
    chapters = [name for name in listed if name[0].isdigit()]
    entries.append({words["chapters"]: [{_numbered(language, name): name} for name in chapters]})
    entries.append({words["reference"]: [name for name in listed if name.startswith("ref-")]})
    if language == "en":
        more = [f"reference/{path.name}" for path in _more() if path.parent.name == "docs"]
        entries.append({words["pages"]: more})
    return [entry for entry in entries if not isinstance(entry, dict) or next(iter(entry.values()))]


def _numbered(language: str, name: str) -> str:
    text = (pages.SOURCE / language / name).read_text(encoding="utf-8")
    return f"{int(name[:2])}. {pages.title(text)}"


def _more() -> list[Path]:
    return sorted(path for pattern in MORE for path in (pages.ROOT / "docs").glob(pattern))


def stage(language: str, work: Path) -> None:
    """Copy the pages of ``language`` to ``work``, with the links that the site needs."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    shutil.copytree(pages.SOURCE / "img", work / "img")
    shutil.copy(pages.SOURCE / "site.css", work / "site.css")
    other, label = TWIN[language]
    for name in pages.names(language):
        source = f"docs/manual/{language}/{name}"
        text = relinked((pages.ROOT / source).read_text(encoding="utf-8"), source, language)
        twin = f'<a class="twin" lang="{other}" href="../{other}/{Path(name).with_suffix(".html")}">{label}</a>'
        head, _, rest = text.partition("\n")
        (work / name).write_text(f"{head}\n\n{twin}\n{rest}", encoding="utf-8")
    if language == "en":
        for path in _more():
            place = work / "reference" / path.relative_to(pages.ROOT / "docs")
            place.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".md":
                name = path.relative_to(pages.ROOT).as_posix()
                place.write_text(relinked(path.read_text(encoding="utf-8"), name, language), encoding="utf-8")
            else:
                shutil.copy(path, place)


def relinked(text: str, page: str, language: str) -> str:
    """Return ``text`` of ``page``, a path in the repository, with the links that the site of ``language`` has."""
    at = _place(page, language) or ""

    def rewrite(match: re.Match[str]) -> str:
        mark, label, link = match.groups()
        if pages.is_external(link) or link.startswith("#"):
            return match.group(0)
        path, fragment = pages.target(page, link)
        place = _place(path, language)
        if place is None:
            return label if label.startswith("`") else f"{label} (`{path}`)"
        end = f"#{fragment}" if fragment else ""
        if place.startswith("../"):
            # A page of the other language's site, which this build does not have.
            return f'<a href="{place}{end}">{label}</a>'
        return f"{mark}[{label}]({posixpath.relpath(place, posixpath.dirname(at) or '.')}{end})"

    parts = re.split(r"(```.*?```)", text, flags=re.DOTALL)
    return "".join(part if part.startswith("```") else pages.LINK.sub(rewrite, part) for part in parts)


def _place(path: str, language: str) -> str | None:
    """Return the place of a file of the repository on the site of ``language``; None if the site lacks it."""
    own, images = f"docs/manual/{language}/", "docs/manual/img/"
    if path.startswith(own):
        return path.removeprefix(own)
    if path.startswith(images):
        return path.removeprefix("docs/manual/")
    others = {file.relative_to(pages.ROOT).as_posix() for file in _more()}
    if path not in others:
        return None
    below = "reference/" + path.removeprefix("docs/")
    return below if language == "en" else f"../en/{posixpath.splitext(below)[0]}.html"
