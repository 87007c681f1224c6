"""Renders HTML pages from jinja2 templates; a page needs no network and no other file.

A page is a template in the folder of the module that renders it. It extends `base.html.j2` (skeleton and style) and
uses the macros of `macros.html.j2` for tables, tiles and lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table: its text, the CSS class of the text, an addition in a soft colour, an address."""

    text: str
    kind: str = ""
    note: str = ""
    link: str = ""


@dataclass(frozen=True, slots=True)
class HtmlTable:
    """A table: the first ``left`` columns are aligned to the left; ``best`` is the index of the highlighted row."""

    heads: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    left: int = 1
    best: int | None = None


def render_page(template: Path, **values: object) -> str:
    """Render the file ``template`` with ``values``; text is escaped, :class:`markupsafe.Markup` is not.

    Example::

        render_page(Path(__file__).with_name("report.html.j2"), title="Report", rows=rows)
    """
    return _environment(template.parent).get_template(template.name).render(**values)


@lru_cache(maxsize=64)
def _environment(folder: Path) -> Environment:
    """Return the environment of the templates in ``folder``; it keeps them compiled."""
    return Environment(
        loader=FileSystemLoader([folder, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
