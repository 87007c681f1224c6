"""Draws the manual's pictures as SVG from `docs/manual/drawings.toml`: boxes on a grid, and arrows between them.

Each text of a drawing has a form in English and in Russian, so that one source makes both files.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from appliance.render import svg
from tools.manual import pages

CELL_WIDTH, CELL_HEIGHT = 210.0, 110.0
BOX_WIDTH, LINE_HEIGHT, BOX_PADDING = 160.0, 17.0, 14.0
MARGIN = 20.0
STYLE = Markup(
    "svg{background:#fff;font:13px system-ui,sans-serif;color:#1b1b1b}"
    ".box{fill:#eef3f8;stroke:#345}.end{fill:#e7f5e9;stroke:#2a7}.bad{fill:#fbeaea;stroke:#b33}"
    ".arrow{fill:none;stroke:#345;stroke-width:1.4}.tip{fill:#345}.name{font-weight:600}"
    ".label{font-size:12px;fill:#234;paint-order:stroke;stroke:#fff;stroke-width:4px}"
)


@dataclass(frozen=True, slots=True)
class Box:
    """A box at a column and a row of the grid; its texts by language, lines separated by line breaks."""

    column: float
    row: float
    texts: Mapping[str, str]
    kind: str = "box"

    @property
    def centre(self) -> tuple[float, float]:
        """Return the middle of the box."""
        return (
            MARGIN + self.column * CELL_WIDTH + BOX_WIDTH / 2,
            MARGIN + self.row * CELL_HEIGHT + CELL_HEIGHT / 2,
        )

    def height(self, language: str) -> float:
        """Return the height for the text of ``language``."""
        return LINE_HEIGHT * len(self.texts[language].splitlines()) + BOX_PADDING


@dataclass(frozen=True, slots=True)
class Arrow:
    """An arrow between two boxes with a label by language; ``shift`` moves it sideways, away from its reverse."""

    start: str
    end: str
    texts: Mapping[str, str]
    shift: float = 0.0


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawing: its title by language, its boxes by name and its arrows."""

    title: Mapping[str, str]
    boxes: Mapping[str, Box]
    arrows: tuple[Arrow, ...]


def load() -> dict[str, Picture]:
    """Return the drawings by name; raises ``KeyError`` if a box or the text of a language is missing."""
    with (pages.SOURCE / "drawings.toml").open("rb") as file:
        return {name: _picture(entry) for name, entry in tomllib.load(file).items()}


def _picture(entry: Mapping[str, Any]) -> Picture:
    boxes = {
        name: Box(column=box["at"][0], row=box["at"][1], texts=_texts(box), kind=box.get("kind", "box"))
        for name, box in entry["box"].items()
    }
    arrows = tuple(
        Arrow(arrow["from"], arrow["to"], _texts(arrow) if "en" in arrow else {}, arrow.get("shift", 0.0))
        for arrow in entry["arrow"]
    )
    for arrow in arrows:
        _ = boxes[arrow.start], boxes[arrow.end]
    return Picture(_texts(entry), boxes, arrows)


def _texts(entry: Mapping[str, Any]) -> dict[str, str]:
    return {language: entry[language] for language in pages.LANGUAGES}


def draw(picture: Picture, language: str) -> str:
    """Return ``picture`` as an SVG document with the texts of ``language``."""
    width = MARGIN * 2 + BOX_WIDTH + max(box.column for box in picture.boxes.values()) * CELL_WIDTH
    height = MARGIN * 2 + CELL_HEIGHT * (1 + max(box.row for box in picture.boxes.values()))
    lines = [_arrow(picture, arrow, language) for arrow in picture.arrows]
    boxes = [_box(box, language) for box in picture.boxes.values()]
    labels = [_label(picture, arrow, language) for arrow in picture.arrows if arrow.texts]
    drawing = svg.drawing(width, height, [*lines, *boxes, *labels], label=picture.title[language], style=STYLE)
    return str(drawing)


def _box(box: Box, language: str) -> Markup:
    x, y = box.centre
    height = box.height(language)
    lines = box.texts[language].splitlines()
    texts = [
        svg.text(
            x, y - height / 2 + BOX_PADDING / 2 + LINE_HEIGHT * (index + 0.75), line, anchor="middle", kind=kind
        )
        for index, line in enumerate(lines)
        for kind in ("name" if index == 0 else "",)
    ]
    outline = svg.rect(x - BOX_WIDTH / 2, y - height / 2, BOX_WIDTH, height, kind=box.kind, radius=6)
    return Markup().join([outline, *texts])


def _ends(picture: Picture, arrow: Arrow, language: str) -> tuple[tuple[float, float], tuple[float, float]]:
    start, end = picture.boxes[arrow.start], picture.boxes[arrow.end]
    (x1, y1), (x2, y2) = start.centre, end.centre
    length = math.hypot(x2 - x1, y2 - y1)
    dx, dy = (x2 - x1) / length, (y2 - y1) / length
    x1, y1, x2, y2 = (x1 - dy * arrow.shift, y1 + dx * arrow.shift, x2 - dy * arrow.shift, y2 + dx * arrow.shift)
    first, last = _reach(start, language, dx, dy), _reach(end, language, dx, dy)
    return (x1 + dx * first, y1 + dy * first), (x2 - dx * (last + 2), y2 - dy * (last + 2))


def _reach(box: Box, language: str, dx: float, dy: float) -> float:
    """Return the distance from the middle of ``box`` to its border in the direction ``dx``, ``dy``."""
    across = BOX_WIDTH / 2 / abs(dx) if abs(dx) > 1e-9 else math.inf
    down = box.height(language) / 2 / abs(dy) if abs(dy) > 1e-9 else math.inf
    return min(across, down)


def _arrow(picture: Picture, arrow: Arrow, language: str) -> Markup:
    (x1, y1), (x2, y2) = _ends(picture, arrow, language)
    angle = math.atan2(y2 - y1, x2 - x1)
    corners = [(x2, y2)] + [
        (x2 - 9 * math.cos(angle + turn), y2 - 9 * math.sin(angle + turn)) for turn in (0.4, -0.4)
    ]
    return svg.line(x1, y1, x2, y2, kind="arrow") + svg.polygon(corners, kind="tip")


def _label(picture: Picture, arrow: Arrow, language: str) -> Markup:
    (x1, y1), (x2, y2) = _ends(picture, arrow, language)
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    lines = arrow.texts[language].splitlines()
    horizontal = abs(y2 - y1) < 20
    top = y - 6 - 14 * (len(lines) - 1) if horizontal else y + 4 - 7 * (len(lines) - 1)
    return Markup().join(
        svg.text(x, top + 14 * index, line, anchor="middle", kind="label") for index, line in enumerate(lines)
    )
