"""The colours of the page: the dark ones are the same for the system's choice and for the user's."""

from __future__ import annotations

import re

from tests.conftest import ROOT

CSS = (ROOT / "appliance" / "assistant" / "page" / "static" / "page.css").read_text()


def declarations(selector: str) -> dict[str, str]:
    (body,) = re.findall(re.escape(selector) + r" \{(.*?)\}", CSS, re.DOTALL)
    return dict(re.findall(r"([\w-]+):\s*([^;]+);", body))


def test_both_dark_palettes_are_one() -> None:
    dark = declarations(':root[data-theme="dark"]')
    assert dark == declarations(':root:not([data-theme="light"])')
    assert {"--page", "--text", "--accent", "color-scheme"} <= dark.keys()
