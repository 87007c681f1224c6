"""Markdown of messages as safe HTML: what is shown, and what a hostile text cannot do."""

from __future__ import annotations

import re
import time
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.assistant.page.markdown import (
    MAX_FORMULA,
    MAX_RENDERED,
    MAX_ROWS,
    MAX_SHOWN,
    plain_html,
    render_message,
)

HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)>",
    "<style>body{display:none}</style>",
    "<iframe src=https://evil.example></iframe>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--><img src=1 onerror=alert(1)>'>",
    "[a](javascript:alert(1))",
    "[a](java&#115;cript:alert(1))",
    "[a](JaVaScRiPt:alert(1))",
    "[a](data:text/html,<script>alert(1)</script>)",
    "[a](vbscript:x)",
    "![a](javascript:alert(1))",
    '![a"onerror="alert(1)](https://evil.example/p.png)',
    '<https://evil.example/" onclick=alert(1)>',
    "$\\text{<script>alert(1)</script>}$",
    "$\\href{javascript:alert(1)}{x}$",
    "$$\\text{</mtext></math><img src=x onerror=alert(1)>}$$",
    "$\\style{position:fixed}{x}$",
    "```<script>\n</code></pre><script>alert(1)</script>\n```",
    '```"onmouseover="alert(1)\nx\n```',
    "|<b onclick=a>|\n|-|\n|<script>x</script>|",
    "[x]: javascript:alert(1)\n\n[x]",
    "<a href=https://evil.example style=position:fixed>x</a>",
    "\\begin{align}<script>x</script>\\end{align}",
)
ALLOWED = re.compile(r"https?:|mailto:|[^:]*$")


class SafetyCheck(HTMLParser):
    """Collects the elements and attributes that could run, load or place anything."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.dangers: list[str] = []
        self.elements: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        if tag in {"script", "style", "img", "iframe", "svg", "object", "embed", "form", "input", "link", "base"}:
            self.dangers.append(tag)
        for name, value in attrs:
            bad = name.startswith("on") or name in {"style", "src", "id", "name", "srcset", "action"}
            if bad or (name == "href" and not ALLOWED.match(value or "")):
                self.dangers.append(f"{tag} {name}={value}")


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_becomes_harmless(text: str) -> None:
    assert SafetyCheck(render_message(text)).dangers == []
    assert SafetyCheck(render_message(f"- > {text}\n\n{text}")).dangers == []


@settings(max_examples=40)
@given(st.lists(st.sampled_from([*HOSTILE, "\n", "\n\n", "`", "$", "$$", "*", "|", ">", "- ", "\\(", "&lt;"])))
def test_no_mixture_of_hostile_texts_is_dangerous(pieces: list[str]) -> None:
    assert SafetyCheck(render_message("".join(pieces))).dangers == []


@settings(max_examples=40)
@given(st.text(max_size=200))
def test_any_text_can_be_rendered(text: str) -> None:
    render_message(text)


def test_the_markup_of_a_message_is_rendered() -> None:
    html = render_message(
        "# Head\n\n**bold** `code` ~~gone~~\n\n|a|b|\n|:-:|-:|\n|1|2|\n\n```python\ndef f(): pass\n```\n"
        "\n[link](https://example.org)\n\n$x^2$ and \\(y_1\\) and \\[\\frac{a}{b}\\]\n"
    )
    elements = SafetyCheck(html).elements
    for one in ("h1", "strong", "code", "s", "table", "th", "pre", "a", "math", "msup", "msub", "mfrac"):
        assert one in elements, one
    assert '<span class="k">def</span>' in html
    assert '<th class="center">' in html
    assert '<td class="right">' in html
    assert 'rel="noopener noreferrer nofollow"' in html
    assert 'target="_blank"' in html


def test_an_image_of_another_host_becomes_a_link_with_its_text() -> None:
    html = render_message("![a *chart* of sales](https://other.example/chart.png)")
    assert "<img" not in html
    assert 'href="https://other.example/chart.png"' in html
    assert ">a chart of sales</a>" in html


def test_prices_are_not_formulas() -> None:
    assert "<math" not in render_message("It costs $5 today and $10 tomorrow.")


def test_an_invalid_formula_is_shown_as_it_is_written() -> None:
    for formula in ("\\frac{", "a_b_c", "\\left(", "x" * (MAX_FORMULA + 1)):
        html = render_message(f"$${formula}$$")
        assert "<math" not in html
        assert formula in html


def test_a_space_of_a_formula_cannot_push_the_page_away() -> None:
    html = render_message("$$\\rule{1em}{99999em}\\hspace{5000em}x$$")
    assert re.findall(r'="[^"]*(?:9999|5000)[^"]*"', html) == []


def test_a_long_table_ends_with_the_number_of_further_rows() -> None:
    html = render_message("|a|\n|-|\n" + "|x|\n" * 10_000)
    assert html.count("<tr") == MAX_ROWS + 1
    assert "+ 9701" in html
    short = render_message("|a|\n|-|\n" + "|x|\n" * (MAX_ROWS - 1) + "\n\nAfter it\n\n|b|\n|-|\n|y|\n")
    assert short.count("<tr") == MAX_ROWS + 2
    assert "After it" in short
    assert "+ " not in short


def test_a_long_text_is_shown_without_markup() -> None:
    text = "**<b>x</b>** " * 80_000
    html = render_message(text)
    assert html == plain_html(text)
    assert "<strong>" not in html
    assert "<b>" not in html
    assert len(text) > MAX_SHOWN > MAX_RENDERED
    assert html.count("**&lt;b&gt;x&lt;/b&gt;**") == MAX_SHOWN // 13


@pytest.mark.parametrize("piece", ["*a_", "[", "`a", ">", "- ", "<a ", "![a](", "**", "~~a", "$a", "\\[a", "|a"])
def test_a_text_of_one_repeated_mark_needs_little_time(piece: str) -> None:
    # The timeout of the test is the bound: a quadratic parser needs hours for these.
    render_message(piece * (12_000 // len(piece)))


def test_code_whose_lexer_takes_quadratic_time_is_shown_plain() -> None:
    code = "a\n" * 19_500
    began = time.thread_time()
    shown = render_message(f"```csharp\n{code}```\n\n```python\nx = 1\n```\n")
    assert time.thread_time() - began < 20, "without a limit it takes minutes"
    assert code in shown
    assert "<span" not in shown, "the time of a message is that of all its code"
    assert "<span" in render_message("```python\nx = 1\n```\n")
