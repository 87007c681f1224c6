"""Markdown of a message as safe HTML: tables, highlighted code, formulas as MathML. Pure.

The text of a model is hostile input: it may repeat the text of a document. Three layers keep it harmless. The
parser escapes HTML in the text. Images become links: no other host learns of a reader. nh3 removes every element,
attribute and scheme that is not in its lists. The Content-Security-Policy of the page is a fourth layer.

The work is bounded: longer texts and tables are cut to sizes that a browser and a server handle at once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from time import thread_time
from typing import Any

import nh3
import pygments
from latex2mathml import exceptions
from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from mdit_py_plugins.amsmath import amsmath_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

MAX_RENDERED = 100_000
"""Characters of a text that is rendered; a longer one is shown as plain text."""
MAX_SHOWN = 1_000_000
"""Characters of a plain text that is shown."""
MAX_ROWS = 300
"""Rows of a table that are shown."""
MAX_CODE = 40_000
"""Characters of a block of code that is highlighted."""
HIGHLIGHTING_S = 0.3
"""Seconds of the processor for all code of one text; code beyond that is shown plain."""
MAX_FORMULA = 2_000
"""Characters of a formula that becomes MathML."""
MAX_FORMULAS = 200
"""Formulas of one text that become MathML; the others are shown as they are written."""

FORMULA_ERRORS: tuple[type[Exception], ...] = (
    *(one for one in vars(exceptions).values() if isinstance(one, type) and issubclass(one, Exception)),
    # The converter raises these on formulas that it does not expect.
    AttributeError,
    IndexError,
    KeyError,
    RecursionError,
    StopIteration,
    TypeError,
    ValueError,
)
"""Errors of the converter: the formula is then shown as it is written."""

_HTML = (
    *("a", "blockquote", "br", "code", "del", "div", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol"),
    *("p", "pre", "s", "span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"),
)
_MATHML = (
    *("menclose", "merror", "mfenced", "mfrac", "mi", "mmultiscripts", "mn", "mo", "mover", "mpadded", "mphantom"),
    *("mprescripts", "mroot", "mrow", "ms", "mspace", "msqrt", "mstyle", "msub", "msubsup", "msup", "mtable"),
    *("mtd", "mtext", "mtr", "munder", "munderover", "none"),
)
"""Elements within ``math``; none of them links, loads or runs anything."""
_MATHML_ATTRIBUTES = (
    *("accent", "accentunder", "columnalign", "columnlines", "columnspacing", "depth", "displaystyle", "fence"),
    *("form", "height", "largeop", "linebreak", "linethickness", "lspace", "mathvariant", "maxsize", "minsize"),
    *("movablelimits", "notation", "rowlines", "rowspacing", "rspace", "scriptlevel", "separator", "stretchy"),
    *("symmetric", "width"),
)
_ATTRIBUTES: dict[str, set[str]] = {
    "a": {"href", "title"},
    "code": {"class"},
    "div": {"class"},
    "math": {"display", "xmlns"},
    "ol": {"start"},
    "span": {"class"},
    "td": {"class"},
    "th": {"class"},
    **{name: set(_MATHML_ATTRIBUTES) for name in _MATHML},
}
_CLASSES = frozenset({"formula", "formula-block", "codeblock", "language", "more", "left", "center", "right"})
_SCHEMES = {"http", "https", "mailto"}
_SPACE = re.compile(r"-?\d?(\.\d{1,4})?em")
"""Spaces within formulas; a longer one would push the rest of the page away."""
_ALIGNED = re.compile(r"text-align:(left|center|right)")
_FORMATTER = HtmlFormatter(nowrap=True)


class MessageRenderer(RendererHTML):
    """The renderer of messages: markdown-it's own, with these tokens of its own."""

    def fence(
        self,
        tokens: Sequence[Token],
        idx: int,
        options: OptionsDict,  # noqa: ARG002 - the signature of the base class
        env: EnvType,
    ) -> str:
        """Return a block of code with its language."""
        token = tokens[idx]
        words = token.info.split()
        name = words[0][:40] if words else ""
        label = f'<div class="language">{escape(name)}</div>' if name else ""
        code = _highlighted(env, token.content, name)
        return f'<div class="codeblock">{label}<pre><code>{code}</code></pre></div>\n'

    def code_block(
        self,
        tokens: Sequence[Token],
        idx: int,
        options: OptionsDict,  # noqa: ARG002 - the signature of the base class
        env: EnvType,  # noqa: ARG002
    ) -> str:
        """Return an indented block of code."""
        return f'<div class="codeblock"><pre><code>{escape(tokens[idx].content)}</code></pre></div>\n'

    def image(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        """Return a link to an image with its text: the host of an image would learn of each reader."""
        token = tokens[idx]
        text = self.renderInlineAsText(token.children or [], options, env)
        target = str(token.attrs.get("src", ""))
        return f'<a href="{escape(target)}">{escape(text or target)}</a>'


def _highlighted(env: EnvType, code: str, name: str) -> str:
    """Return ``code`` highlighted, or as it is if that takes too long: some lexers take quadratic time."""
    spent: float = env.get("highlighting_s", 0.0)
    if not name or len(code) > MAX_CODE or spent >= HIGHLIGHTING_S:
        return escape(code)
    try:
        lexer = get_lexer_by_name(name)
    except ClassNotFound:
        return escape(code)
    tokens, began = [], thread_time()
    for token in lexer.get_tokens(code):
        tokens.append(token)
        env["highlighting_s"] = spent + thread_time() - began
        if env["highlighting_s"] >= HIGHLIGHTING_S:
            return escape(code)
    return str(pygments.format(iter(tokens), _FORMATTER))


def _formula(env: EnvType, text: str, *, block: bool) -> str:
    """Return the formula ``text`` as MathML, or as it is written if it cannot be converted."""
    count = env["formulas"] = env.get("formulas", 0) + 1
    if len(text) <= MAX_FORMULA and count <= MAX_FORMULAS:
        try:
            return convert(text.strip(), display="block" if block else "inline")
        except FORMULA_ERRORS:
            pass
    return f'<code class="{"formula-block" if block else "formula"}">{escape(text)}</code>'


def _bracket_formula(state: StateInline, silent: bool) -> bool:
    """Parse ``\\(a\\)`` and ``\\[a\\]`` (a rule of markdown-it), also in the middle of a paragraph."""
    begin = state.pos + 2
    closing = {"\\(": "\\)", "\\[": "\\]"}.get(state.src[state.pos : begin])
    end = -1 if closing is None else state.src.find(closing, begin, min(state.posMax, begin + MAX_FORMULA + 2))
    if end <= begin:
        return False
    if not silent:
        token = state.push("math_inline" if closing == "\\)" else "math_inline_double", "math", 0)
        token.content = state.src[begin:end]
    state.pos = end + 2
    return True


def _inline_formula(
    _renderer: RendererHTML, tokens: Sequence[Token], idx: int, _options: OptionsDict, env: EnvType
) -> str:
    return _formula(env, tokens[idx].content, block=False)


def _block_formula(
    _renderer: RendererHTML, tokens: Sequence[Token], idx: int, _options: OptionsDict, env: EnvType
) -> str:
    return f'<div class="formula-block">{_formula(env, tokens[idx].content, block=True)}</div>\n'


def _make_parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True}, renderer_cls=MessageRenderer)
    parser.enable(["table", "strikethrough"])
    # A price such as $5 is not a formula.
    parser.use(dollarmath_plugin, allow_space=False, allow_digits=False, double_inline=True, allow_labels=False)
    parser.inline.ruler.before("escape", "bracket_formula", _bracket_formula)
    parser.use(amsmath_plugin)
    for name in ("math_inline", "math_single"):
        parser.add_render_rule(name, _inline_formula)
    for name in ("math_inline_double", "math_block", "math_block_eqno", "amsmath"):
        parser.add_render_rule(name, _block_formula)
    return parser


_PARSER = _make_parser()


def render_message(text: str) -> str:
    """Return ``text`` as HTML that a page may show as it is; a long text is shown without markup."""
    if len(text) > MAX_RENDERED:
        return plain_html(text)
    env: dict[str, Any] = {}
    try:
        tokens = _cut_tables(_PARSER.parse(text, env))
        rendered = _PARSER.renderer.render(tokens, _PARSER.options, env)
    except (RecursionError, ValueError, IndexError):
        # A parser that fails on a text must not hide the text.
        return plain_html(text)
    return _sanitised(rendered)


def plain_html(text: str) -> str:
    """Return ``text`` without markup, up to :data:`MAX_SHOWN` characters."""
    return f'<div class="plain">{escape(text[:MAX_SHOWN])}</div>'


def _cut_tables(tokens: Sequence[Token]) -> list[Token]:
    """Return ``tokens`` with at most :data:`MAX_ROWS` rows in each table; the last row counts the others."""
    kept: list[Token] = []
    rows = 0
    for token in tokens:
        aligned = _ALIGNED.fullmatch(str(token.attrs.pop("style", "")))
        if aligned is not None:
            token.attrs["class"] = aligned.group(1)
        if token.type == "table_open":
            rows = 0
        elif token.type == "tr_open":
            rows += 1
        elif token.type == "table_close" and rows > MAX_ROWS:
            kept[-1:-1] = [Token("more_rows", "", 0, content=str(rows - MAX_ROWS))]
        if rows <= MAX_ROWS or token.type in ("tbody_close", "table_close") or not _in_table(token):
            kept.append(token)
        if token.type == "table_close":
            rows = 0
    return kept


def _in_table(token: Token) -> bool:
    return token.type in _TABLE or token.type == "inline"


_TABLE = frozenset({"tr_open", "tr_close", "td_open", "td_close", "th_open", "th_close"})


def _more_rows(
    _renderer: RendererHTML, tokens: Sequence[Token], idx: int, _options: OptionsDict, _env: EnvType
) -> str:
    return f'<tr><td class="more">+ {escape(tokens[idx].content)}</td></tr>'


_PARSER.add_render_rule("more_rows", _more_rows)


def _filter(element: str, attribute: str, value: str) -> str | None:
    """Return the ``value`` of an attribute that may stay: classes are ours, or those of highlighted code."""
    if attribute in ("width", "height", "depth"):
        return value if _SPACE.fullmatch(value) else None
    if attribute != "class":
        return value
    if element in ("span", "code", "div", "td", "th"):
        kept = [one for one in value.split() if one in _CLASSES or (element == "span" and len(one) <= 3)]
        return " ".join(kept) or None
    return None


def _sanitised(html: str) -> str:
    return nh3.clean(
        html,
        tags={*_HTML, "math", *_MATHML},
        attributes=_ATTRIBUTES,
        attribute_filter=_filter,
        url_schemes=_SCHEMES,
        link_rel="noopener noreferrer nofollow",
        strip_comments=True,
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )
