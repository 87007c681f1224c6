"""Drawings: scales, ticks, and plots with gaps, limits and text that must be escaped."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from appliance.render import svg
from appliance.render.svg import Axes, Scale, Series, plot, round_ticks


def test_a_plot_without_points_is_empty() -> None:
    assert plot("empty", Axes("s", "ms"), [Series("a", [])]) == ""
    assert plot("empty", Axes("s", "ms"), [Series("a", [(0, None)])]) == ""


def test_a_line_is_interrupted_where_a_value_is_missing() -> None:
    points = [(0, 1.0), (1, 2.0), (2, None), (3, 2.0), (4, 1.0), (5, None), (6, 1.0)]
    drawn = plot("one", Axes("s", "ms"), [Series("a", points)])
    assert drawn.count("<polyline") == 2
    assert drawn.count("<circle") == 1, "a lone point is a dot"


def test_a_limit_is_drawn_near_the_data_and_otherwise_only_named() -> None:
    series = [Series("a", [(0, 1.0), (1, 2.0)])]
    assert 'class="limit"' in plot("one", Axes("s", "ms", limit=2.0), series)
    far = plot("one", Axes("s", "ms", limit=100.0), series)
    assert 'class="limit"' not in far
    assert "SLO 100" in far


def test_a_plot_of_equal_values_on_a_logarithmic_axis_has_room() -> None:
    drawn = plot("one", Axes("ms", "%", log_x=True, log_y=True), [Series("a", [(100.0, 5.0), (100.0, 5.0)])])
    assert "nan" not in drawn
    ET.fromstring(drawn)


def test_text_is_escaped() -> None:
    series = Series("<b>", [(1.0, 1.0)], marks=[("<i>", "<u>")])
    drawn = plot("<s>", Axes("<x>", "<y>"), [series])
    assert not {"<b>", "<i>", "<u>", "<s>", "<x>", "<y>"} & {f"<{part.split('>')[0]}>" for part in drawn.split("<")}
    ET.fromstring(drawn)


def test_a_document_is_xml_with_its_own_style() -> None:
    style = Markup(".a{stroke:#999}")
    text = svg.drawing(10, 20, [svg.line(0, 0, 1, 1, kind="a")], label="a < b", style=style)
    root = ET.fromstring(text)
    assert (root.get("width"), root.get("height"), root.get("aria-label")) == ("10", "20", "a < b")


def test_ticks_of_a_span() -> None:
    assert round_ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert svg.decade_ticks(1, 100) == [1, 2, 5, 10, 20, 50, 100]
    assert svg.decade_ticks(100, 150) == round_ticks(100, 150, 6)


@given(st.floats(0, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_inside_their_span(low: float, span: float) -> None:
    found = round_ticks(low, low + span)
    assert len(found) <= 12
    slack = 1e-6 * (1 + low + span)
    assert all(low - slack <= tick <= low + span + slack for tick in found)


@given(st.floats(1e-3, 1e6), st.floats(1.01, 1e6))
def test_decade_ticks_are_inside_their_span(low: float, factor: float) -> None:
    found = svg.decade_ticks(low, low * factor)
    assert len(found) <= 9
    assert all(low * 0.999 <= tick <= low * factor * 1.001 for tick in found)


@pytest.mark.parametrize("log", [False, True])
def test_a_scale_maps_its_bounds(log: bool) -> None:
    scale = Scale(1.0, 100.0, 50.0, 550.0, log=log)
    assert (scale(1.0), scale(100.0)) == (50.0, 550.0)
    assert scale(10.0) == (300.0 if log else pytest.approx(50 + 500 * 9 / 99))
    assert Scale(5.0, 5.0, 0.0, 10.0, log=log)(5.0) == 5.0
