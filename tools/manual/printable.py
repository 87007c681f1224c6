"""Makes one HTML file of a language's manual for the printer: chapters in order, drawings inside."""

from __future__ import annotations

import html
import re

from markdown_it import MarkdownIt

from tools.manual import pages

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#1b1b1b;max-width:50rem;margin:0 auto;padding:1rem}
h1{page-break-before:always;border-bottom:2px solid #345;padding-bottom:.2em}
h1:first-of-type{page-break-before:avoid}
pre{background:#f3f4f6;padding:.6rem;overflow-x:auto;white-space:pre-wrap;font-size:.85em}code{font-size:.9em}
table{border-collapse:collapse;width:100%;font-size:.9em}
td,th{border:1px solid #bbb;padding:.25rem .4rem;text-align:left;
vertical-align:top;overflow-wrap:anywhere}svg{max-width:100%;height:auto}tr,pre,svg{page-break-inside:avoid}
nav ol{columns:2}
@media screen and (max-width:50rem){table{display:block;overflow-x:auto}nav ol{columns:1}
code{overflow-wrap:anywhere}}
@media print{body{font-size:10.5pt;max-width:none}a{color:inherit;text-decoration:none}}
"""


def document(language: str) -> str:
    """Return the manual of ``language`` as one HTML document."""
    names = pages.names(language)
    texts = {name: (pages.SOURCE / language / name).read_text(encoding="utf-8") for name in names}
    body = "\n".join(
        f'<section id="{_section(name)}">{_page(name, text, language)}</section>' for name, text in texts.items()
    )
    contents = "".join(
        f'<li><a href="#{_section(name)}">{html.escape(pages.title(text))}</a></li>' for name, text in texts.items()
    )
    heading = pages.title(texts["index.md"]) if "index.md" in texts else "Manual"
    return (
        f'<!doctype html><html lang="{language}"><head><meta charset="utf-8"><title>{html.escape(heading)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><nav><ol>{contents}</ol></nav>{body}</body></html>\n"
    )


def _section(name: str) -> str:
    return name.removesuffix(".md")


def _page(name: str, text: str, language: str) -> str:
    page = f"docs/manual/{language}/{name}"

    def rewrite(match: re.Match[str]) -> str:
        mark, label, link = match.groups()
        if mark or pages.is_external(link):
            return match.group(0)
        path, fragment = pages.target(page, link)
        own = f"docs/manual/{language}/"
        if path.startswith(own):
            section = _section(path.removeprefix(own))
            return f"[{label}](#{section}{f'--{fragment}' if fragment else ''})"
        return f"{label} (`{path}`)"

    parts = re.split(r"(```.*?```)", text, flags=re.DOTALL)
    linked = "".join(part if part.startswith("```") else pages.LINK.sub(rewrite, part) for part in parts)
    rendered = MarkdownIt("commonmark").enable("table").render(linked)
    rendered = re.sub(r"<h([1-6])>(.*?)</h\1>", lambda match: _heading(name, match), rendered)
    return re.sub(r'<img src="\.\./img/([^"]+\.svg)"[^>]*>', _inlined, rendered)


def _heading(name: str, match: re.Match[str]) -> str:
    level, content = match.groups()
    plain = html.unescape(re.sub(r"<[^>]+>", "", content))
    return f'<h{level} id="{_section(name)}--{pages.anchor(plain)}">{content}</h{level}>'


def _inlined(match: re.Match[str]) -> str:
    return (pages.SOURCE / "img" / match.group(1)).read_text(encoding="utf-8")
