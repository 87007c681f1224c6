"""Draws SVG: scales with their ticks, elements, and plots with axes, series and a legend.

All functions return markup that is safe to embed: text is escaped here. Colours are CSS classes (``c0`` to ``c5``
in `base.css.j2`), so that a drawing follows the colour scheme of its page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

Anchor = Literal["start", "middle", "end"]

COLOURS = ("c0", "c1", "c2", "c3", "c4", "c5")
WIDTH, HEIGHT = 560, 230
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 34
"""Size of a plot and its margins, in the units of its ``viewBox``."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values from ``low`` to ``high`` to coordinates from ``start`` to ``end``, linearly or by logarithm.

    With ``log`` both bounds are positive. A range of no extent maps to the middle.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the coordinate of ``value``."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, self.low * 1e-3))
        share = (value - low) / (high - low) if high - low > 1e-9 * max(1.0, abs(low)) else 0.5
        return self.start + share * (self.end - self.start)

    def ticks(self, wanted: int = 5) -> list[float]:
        """Return round values in the range, about ``wanted`` of them."""
        return decade_ticks(self.low, self.high) if self.log else round_ticks(self.low, self.high, wanted)


def round_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Return multiples of 1, 2, 2.5 or 5 times a power of ten between ``low`` and ``high``."""
    span = high - low
    if span <= 1e-9 * abs(low):
        return [low]
    raw = span / wanted
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def decade_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times powers of ten between ``low`` and ``high``, at most eight."""
    found = [
        factor * 10.0**power
        for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for factor in (1, 2, 5)
    ]
    kept = [value for value in found if low <= value <= high]
    if len(kept) < 3:
        # In less than a decade round numbers are closer to the data.
        return round_ticks(low, high, 6)
    while len(kept) > 8:
        kept = kept[::3] if len(kept) > 16 else kept[::2]
    return kept


def short(value: float) -> str:
    """Return ``value`` as a tick label: ``12.5k`` from ten thousand on."""
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:.6g}"


def text(x: float, y: float, content: str, *, anchor: Anchor = "start", kind: str = "") -> Markup:
    """Return a text at ``x``, ``y``."""
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}"{}>{}</text>').format(
        x, y, anchor, _class(kind), content
    )


def line(x1: float, y1: float, x2: float, y2: float, *, kind: str) -> Markup:
    """Return a straight line."""
    return Markup('<path{} d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(_class(kind), x1, y1, x2, y2)


def rect(x: float, y: float, width: float, height: float, *, kind: str, tip: str = "", radius: int = 0) -> Markup:
    """Return a rectangle with ``tip`` as its tooltip."""
    return Markup('<rect{} x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="{}">{}</rect>').format(
        _class(kind), x, y, width, height, radius, _title(tip)
    )


def circle(x: float, y: float, radius: float, *, kind: str, tip: str = "") -> Markup:
    """Return a point with ``tip`` as its tooltip."""
    return Markup('<circle{} cx="{:.1f}" cy="{:.1f}" r="{:g}">{}</circle>').format(
        _class(kind), x, y, radius, _title(tip)
    )


def polyline(points: Sequence[tuple[float, float | None]], *, kind: str) -> Markup:
    """Return lines through ``points``, interrupted at each ``None``; a lone point becomes a dot."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is None:
            runs.append([])
        else:
            runs[-1].append((x, y))
    return Markup().join(
        circle(*run[0], 2, kind=f"dot {kind}")
        if len(run) == 1
        else Markup('<polyline{} points="{}"/>').format(_class(f"line {kind}"), _corners(run))
        for run in runs
        if run
    )


def polygon(points: Sequence[tuple[float, float]], *, kind: str) -> Markup:
    """Return a filled area."""
    return Markup('<polygon{} points="{}"/>').format(_class(kind), _corners(points))


def drawing(
    width: float, height: float, parts: Sequence[Markup], *, label: str, style: Markup | None = None
) -> Markup:
    """Return an `<svg>` element of HTML; with ``style`` (CSS) a document of its own for an `.svg` file."""
    body = Markup().join(parts)
    if style is None:
        return Markup('<svg viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">{}</svg>').format(
            width, height, label, body
        )
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0:g} {1:g}" width="{0:g}" height="{1:g}" role="img" '
        'aria-label="{2}"><style>{3}</style>{4}</svg>\n'
    ).format(width, height, label, style, body)


def _corners(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _class(kind: str) -> Markup:
    return Markup(' class="{}"').format(kind) if kind else Markup()


def _title(tip: str) -> Markup:
    return Markup("<title>{}</title>").format(tip) if tip else Markup()


@dataclass(frozen=True, slots=True)
class Series:
    """Points of a plot, drawn as a line or as dots; the line is interrupted at ``None``."""

    name: str
    points: Sequence[tuple[float, float | None]]
    dots: bool = False
    colour: str = ""
    """A class of :data:`COLOURS`; by the order of the series if empty."""
    marks: Sequence[tuple[str, str]] = ()
    """Label and tooltip of each point of a line."""
    area: Sequence[tuple[float, float]] = ()
    """Corners of an area behind the line, such as an interval."""


@dataclass(frozen=True, slots=True)
class Axes:
    """Labels and ranges of a plot.

    ``limit`` is a dashed horizontal line (an SLO), ``shade`` the width of a band from 0 (the warm-up), ``top`` the
    end of the vertical axis. A linear axis begins at 0.
    """

    x: str
    y: str
    limit: float | None = None
    shade: float = 0.0
    log_x: bool = False
    log_y: bool = False
    top: float | None = None


def plot(title: str, axes: Axes, series: Sequence[Series], *, height: int = HEIGHT, legend: bool = True) -> Markup:
    """Return a `<figure>` with the plot and its legend; empty if no series has a point."""
    drawn = [one for one in series if any(y is not None for _, y in one.points)]
    if not drawn:
        return Markup()
    xs = [x for one in drawn for x, _ in (*one.points, *one.area)]
    ys = [y for one in drawn for _, y in (*one.points, *one.area) if y is not None]
    # A limit far above all values would flatten the data; then only the legend names it.
    near = axes.limit is not None and axes.limit <= 3 * max(ys)
    if axes.log_x:
        x = _log_scale(xs, LEFT, WIDTH - RIGHT, padding=1.05)
    else:
        x = Scale(min(0.0, *xs), max(*xs, min(xs) + 1e-9), LEFT, WIDTH - RIGHT)
    if axes.log_y:
        y = _log_scale(ys, height - BOTTOM, TOP, padding=1.25)
    else:
        high = axes.top or 1.05 * max([*ys, axes.limit or 0.0] if near else ys) or 1.0
        y = Scale(0.0, high, height - BOTTOM, TOP)
    parts = _frame(axes, x, y, height)
    entries = []
    for index, one in enumerate(drawn):
        colour = one.colour or COLOURS[index % len(COLOURS)]
        parts += _series(one, colour, x=x, y=y)
        entries.append(legend_entry(colour, one.name))
    if axes.limit is not None:
        if near:
            parts.append(line(LEFT, y(axes.limit), WIDTH - RIGHT, y(axes.limit), kind="limit"))
        entries.append(legend_entry("lim", f"SLO {axes.limit:g}"))
    return figure(title, drawing(WIDTH, height, parts, label=title), entries if legend else ())


def figure(title: str, content: Markup, legend: Sequence[Markup] = ()) -> Markup:
    """Return a `<figure>` with its caption and legend."""
    entries = Markup('<div class="legend">{}</div>').format(Markup().join(legend)) if legend else ""
    caption = Markup("<figcaption>{}</figcaption>").format(title) if title else ""
    return Markup("<figure>{}{}{}</figure>").format(caption, content, entries)


def legend_entry(colour: str, name: str) -> Markup:
    """Return one entry of a legend."""
    return Markup('<span><i class="{}"></i>{}</span>').format(colour, name)


def _log_scale(values: Sequence[float], start: float, end: float, *, padding: float) -> Scale:
    # The padding also gives equal values a range.
    low, high = (max(1e-3, bound) for bound in (min(values), max(values)))
    return Scale(low / padding, high * padding, start, end, log=True)


def _frame(axes: Axes, x: Scale, y: Scale, height: float) -> list[Markup]:
    bottom, right = height - BOTTOM, WIDTH - RIGHT
    parts = []
    if axes.shade > 0:
        left, until = x(0.0), x(min(axes.shade, x.high))
        parts.append(rect(left, TOP, until - left, bottom - TOP, kind="warm"))
    for value in y.ticks():
        parts.append(line(LEFT, y(value), right, y(value), kind="grid"))
        parts.append(text(LEFT - 6, y(value) + 4, short(value), anchor="end"))
    for value in x.ticks(6):
        parts.append(line(x(value), TOP, x(value), bottom, kind="grid"))
        parts.append(text(x(value), bottom + 14, short(value), anchor="middle"))
    parts.append(text(right, height - 4, axes.x, anchor="end", kind="unit"))
    parts.append(text(4, TOP + 2, axes.y, kind="unit"))
    return parts


def _series(one: Series, colour: str, x: Scale, y: Scale) -> list[Markup]:
    placed = [(x(at), None if value is None else y(value)) for at, value in one.points]
    if one.dots:
        return [circle(at, value, 2, kind=f"dot {colour}") for at, value in placed if value is not None]
    parts = [polygon([(x(at), y(value)) for at, value in one.area], kind=f"area {colour}")] if one.area else []
    parts.append(polyline(placed, kind=colour))
    for (at, value), (label, tip) in zip(placed, one.marks, strict=False):
        if value is not None:
            parts += [
                circle(at, value, 4, kind=f"mark {colour}", tip=tip),
                text(at - 8, value - 8, label, anchor="end"),
            ]
    return parts
