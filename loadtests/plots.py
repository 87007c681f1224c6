"""Plots as SVG, drawn here: a page that must open anywhere can load nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 230
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 34
Place = Callable[[float], float]
"""From a value to its place in the picture."""

COLOURS = ("c0", "c1", "c2", "c3", "c4", "c5")


@dataclass(frozen=True, slots=True)
class Series:
    """One line or cloud: points with ``None`` where the line breaks."""

    name: str
    points: Sequence[tuple[float, float | None]]
    dots: bool = False
    colour: str = ""


@dataclass(frozen=True, slots=True)
class Axes:
    """What a plot's axes are; ``limit`` draws a dashed line (an SLO), ``shade`` a band (the warm-up)."""

    x: str
    y: str
    limit: float | None = None
    shade: float = 0.0
    log: bool = False
    top: float | None = None


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers between ``low`` and ``high``, about ``wanted`` of them."""
    span = high - low
    if span <= 0:
        return [low]
    raw = span / wanted
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def plot(title: str, axes: Axes, series: Sequence[Series]) -> str:
    """One plot with its legend; an empty string where there is nothing to draw."""
    drawn = [one for one in series if any(y is not None for _, y in one.points)]
    if not drawn:
        return ""
    xs = [x for one in drawn for x, _ in one.points]
    ys = [y for one in drawn for _, y in one.points if y is not None]
    # A limit far above everything would press the data flat; then it is told in the legend only.
    near = axes.limit is not None and axes.limit <= 3 * max(ys)
    if axes.log:
        xs = [max(x, 1e-3) for x in xs]
    low_x, high_x = (min(xs) if axes.log else min(0.0, *xs)), max(*xs, min(xs) + 1e-9)
    high_y = axes.top or 1.05 * max([*ys, axes.limit or 0.0] if near else ys) or 1.0

    def px(x: float) -> float:
        if axes.log:
            share = math.log(max(x, 1e-3) / low_x) / max(1e-9, math.log(high_x / low_x))
        else:
            share = (x - low_x) / (high_x - low_x)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        return HEIGHT - BOTTOM - min(1.02, y / high_y) * (HEIGHT - TOP - BOTTOM)

    parts = _frame(axes, low_x, high_x, high_y, px, py)
    legend = []
    for place, one in enumerate(drawn):
        colour = one.colour or COLOURS[place % len(COLOURS)]
        parts.append(_dots(one, colour, px, py) if one.dots else _path(one, colour, px, py))
        legend.append(f'<span><i class="{colour}"></i>{escape(one.name)}</span>')
    if axes.limit is not None:
        if near:
            parts.append(f'<path class="limit" d="M{LEFT} {py(axes.limit):.1f}H{WIDTH - RIGHT}"/>')
        legend.append(f'<span><i class="lim"></i>SLO {axes.limit:g}</span>')
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg><div class="legend">{"".join(legend)}</div></figure>'
    )


def _frame(axes: Axes, low_x: float, high_x: float, high_y: float, px: Place, py: Place) -> list[str]:
    parts = []
    if axes.shade > 0 and not axes.log:
        left, right = px(0.0), px(min(axes.shade, high_x))
        parts.append(
            f'<rect class="warm" x="{left:.1f}" y="{TOP}" width="{right - left:.1f}" '
            f'height="{HEIGHT - TOP - BOTTOM}"/>'
        )
    for value in ticks(0, high_y):
        y = py(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(value)}</text>')
    for value in _decades(low_x, high_x) if axes.log else ticks(low_x, high_x, 6):
        x = px(value)
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{_short(value)}</text>')
    parts.append(
        f'<text class="unit" x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{escape(axes.x)}</text>'
    )
    parts.append(f'<text class="unit" x="4" y="{TOP + 2}">{escape(axes.y)}</text>')
    return parts


def _decades(low: float, high: float) -> list[float]:
    found = [
        factor * 10.0**power
        for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for factor in (1, 2, 5)
    ]
    kept = [value for value in found if low <= value <= high]
    if len(kept) < 3:
        # Less than a decade: round numbers tell more.
        return ticks(low, high, 6)
    while len(kept) > 8:
        kept = kept[::3] if len(kept) > 16 else kept[::2]
    return kept


def _path(one: Series, colour: str, px: Place, py: Place) -> str:
    words = []
    pen_up = True
    alone = []
    points = list(one.points)
    for place, (x, y) in enumerate(points):
        if y is None:
            pen_up = True
            continue
        following = points[place + 1][1] if place + 1 < len(points) else None
        if pen_up and following is None:
            alone.append(f'<circle class="{colour}" cx="{px(x):.1f}" cy="{py(y):.1f}" r="2"/>')
        words.append(f"{'M' if pen_up else 'L'}{px(x):.1f} {py(y):.1f}")
        pen_up = False
    return f'<path class="line {colour}" d="{"".join(words)}"/>{"".join(alone)}'


def _dots(one: Series, colour: str, px: Place, py: Place) -> str:
    return "".join(
        f'<circle class="{colour}" cx="{px(x):.1f}" cy="{py(y):.1f}" r="2"/>'
        for x, y in one.points
        if y is not None
    )


def _short(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.6g}"
