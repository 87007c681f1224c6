"""Draws the dashboards without Grafana: ``python -m tests.watch.observe.draw FOLDER``.

It runs the site of the tests under load, and the query of each panel on the real Prometheus. Chromium makes a
picture of each dashboard. Grafana's own rendering differs; titles, legends, units and data are the same.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from markupsafe import Markup

from appliance.render.html import render_page
from appliance.render.svg import Axes, Series, plot
from appliance.watch import dashboards
from tests.conftest import http
from tests.gateway.running.test_browser import FLAGS
from tests.nix.checker import require
from tests.watch.observe.live_site import load, scraped_site
from tests.watch.observe.stack import Prometheus

SECONDS = 90.0
"""Seconds of load before the drawing."""
STEP_S = 2
UNITS = {"s": "s", "percentunit": "%", "bytes": "GiB", "celsius": "°C", "watt": "W", "reqps": "req/s"}
LEGEND = 6
"""Series that a plot shows at most."""


@dataclass(frozen=True, slots=True)
class DrawnPanel:
    """A panel of the page."""

    title: str
    width: int
    content: Markup


def main(arguments: list[str]) -> int:
    """Draw all dashboards into the folder of the arguments."""
    [target] = arguments
    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        with scraped_site(Path(temporary)) as (prometheus, service):
            began = time.time()
            while time.time() < began + SECONDS:
                load(service)
            pages = {board["uid"]: _page(prometheus, board, began) for board in dashboards.dashboards()}
        for uid, page in pages.items():
            file = folder / f"{uid}.html"
            file.write_text(page)
            picture = folder / f"{uid}.png"
            profile = f"--user-data-dir={temporary}/{uid}"
            argv = [require("chromium"), *FLAGS, profile, "--window-size=1540,2600", f"--screenshot={picture}"]
            subprocess.run([*argv, file.resolve().as_uri()], check=True, capture_output=True, timeout=120)
            print(picture)
    return 0


def _page(prometheus: Prometheus, board: dict[str, Any], began: float) -> str:
    panels = []
    for panel in board["panels"]:
        width = panel["gridPos"]["w"]
        if panel["type"] == "row":
            panels.append(DrawnPanel(panel["title"], width, Markup()))
        elif panel["type"] == "timeseries":
            panels.append(DrawnPanel(panel["title"], width, _plot(prometheus, panel, began)))
        else:
            panels.append(DrawnPanel(panel["title"], width, _values(prometheus, panel)))
    template = Path(__file__).with_name("dashboard.html.j2")
    return render_page(template, title=board["title"], description=board["description"], panels=panels)


def _text(expr: str) -> str:
    return expr.replace("$__rate_interval", "10s").replace("$__range", "5m")


def _plot(prometheus: Prometheus, panel: dict[str, Any], began: float) -> Markup:
    series = []
    unit = panel["fieldConfig"]["defaults"].get("unit", "short")
    for target in panel["targets"]:
        asked = {"query": _text(target["expr"]), "start": began, "end": time.time(), "step": STEP_S}
        response = http(f"{prometheus.started.url}/api/v1/query_range?{urlencode(asked)}")
        assert response.status == 200, response.body.decode()
        for one in response.json["data"]["result"]:
            points = [(float(at) - began, _scaled(float(value), unit)) for at, value in one["values"]]
            series.append(Series(_legend(target, one["metric"]), points))
    drawn = plot(panel["title"], Axes("seconds", UNITS.get(unit, unit)), series[:LEGEND])
    return drawn or Markup("<p>no data</p>")


def _values(prometheus: Prometheus, panel: dict[str, Any]) -> Markup:
    rows = []
    defaults = panel["fieldConfig"]["defaults"]
    unit = defaults.get("unit", "short")
    texts = {
        value: option["text"]
        for mapping in defaults.get("mappings", ())
        for value, option in mapping.get("options", {}).items()
    }
    for target in panel["targets"]:
        for one in prometheus.query(_text(target["expr"])):
            value = _scaled(float(one["value"][1]), unit)
            shown = texts.get(one["value"][1]) or f"{value:,.4g} {UNITS.get(unit, '')}"
            rows.append((_legend(target, one["metric"]), shown))
    if len(rows) == 1 and panel["type"] == "stat":
        return Markup('<div class="value">{}</div>').format(rows[0][1])
    cells = Markup().join(Markup("<tr><td>{}</td><td>{}</td></tr>").format(*row) for row in rows)
    return Markup("<table>{}</table>").format(cells) if rows else Markup("<p>no data</p>")


def _legend(target: dict[str, Any], labels: dict[str, str]) -> str:
    text = str(target.get("legendFormat", ""))
    for name, value in labels.items():
        text = text.replace(f"{{{{{name}}}}}", value).replace(f"{{{{ {name} }}}}", value)
    if text and text != "__auto":
        return text
    return ", ".join(value for name, value in labels.items() if name not in {"__name__", "instance", "job"})


def _scaled(value: float, unit: str) -> float | None:
    if math.isnan(value):
        return None
    return value * 100 if unit == "percentunit" else value / 2**30 if unit == "bytes" else value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
