"""Finds the prose of a file: comments, docstrings, string literals, Markdown text, option descriptions.

Pure: text goes in, :class:`Passage` objects come out. Code in prose is not prose: inline code, code blocks, paths,
identifiers and quotations in double quotes are blanked, so that a rule never matches a name of the program.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of prose and the line of the file on which it begins."""

    line: int
    text: str


def passages(path: PurePath, text: str) -> Iterator[Passage]:
    """Yield the prose of ``text``, the content of the file ``path``; nothing for an unknown kind of file."""
    if path.suffix == ".py":
        yield from _python(text)
    elif path.suffix == ".md":
        yield from _markdown(text)
    elif path.suffix == ".nix":
        yield from _nix(text)
    elif path.suffix in {".sh", ".toml", ".yml", ".in", ".txt"} or path.name in {"Makefile", "run"}:
        yield from _hash_comments(text)
    elif path.suffix == ".mjs":
        yield from _joined(
            (number, match.group(1))
            for number, line in enumerate(text.splitlines(), 1)
            if (match := re.match(r"\s*//+ ?(.*)", line))
        )


_LITERAL = re.compile(r"``.+?``|`[^`\n]*`|:[a-z]+:`[^`]*`", re.DOTALL)
_QUOTED = re.compile(r"\"[^\"\n]{1,300}\"|“[^”]*”")
_NAME = re.compile(
    r"[^\s|]*[/_=<>{}()\[\]\\@#$%^~][^\s|]*|\b\w+(?:\.\w+)+\b|\b[a-z]+[A-Z]\w*\b|(?<!\w)--?[a-z][\w-]*"
)


def blanked(text: str) -> str:
    """Return ``text`` with code, quotations and names replaced by spaces; line breaks stay."""
    for pattern in (_LITERAL, _QUOTED, _NAME):
        text = pattern.sub(_blank, text)
    return text


def _blank(match: re.Match[str]) -> str:
    """Return spaces for ``match``; punctuation at its end stays, because it may end a sentence."""
    found = match.group(0)
    end = re.search(r"[.,;:!?)]*\Z", found)
    kept = end.group(0) if end is not None else ""
    return re.sub(r"[^\n]", " ", found[: len(found) - len(kept)]) + kept


def _python(text: str) -> Iterator[Passage]:
    comments = [
        (token.start[0], token.string.lstrip("#!").strip())
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT and not re.match(r"#\s*(noqa|type:|fmt:|mypy:)", token.string)
    ]
    yield from _joined(comments)
    seen = set()
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            seen.add(id(node.value))
            yield Passage(node.lineno, _without_examples(node.value.value))
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            seen.update(map(id, node.values))
            parts = (part.value if isinstance(part, ast.Constant) else " \N{BULLET} " for part in node.values)
            if _is_prose(literal := "".join(str(part) for part in parts)):
                yield Passage(node.lineno, literal)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in seen:
            if _is_prose(node.value):
                yield Passage(node.lineno, node.value)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield Passage(node.lineno, node.name.removeprefix("test_").replace("_", " "))


def _without_examples(text: str) -> str:
    """Blank the indented blocks after ``::`` of a docstring: they hold examples of code."""
    out, inside, depth = [], False, 0
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if inside and line.strip() and indent <= depth:
            inside = False
        out.append("" if inside and line.strip() else line)
        if line.rstrip().endswith("::"):
            inside, depth = True, indent
    return "\n".join(out)


def _is_prose(text: str) -> bool:
    """Whether a string literal is a sentence or a part of one, not code, SQL, a pattern or a wire format."""
    words = re.findall(r"(?<![\w/.-])[A-Za-z][a-z']+(?![\w/(=-])", text)
    return len(words) >= 3 and not re.search(
        r"^\s*(SELECT|INSERT|UPDATE|CREATE|import |from \w+ import|def |#!/)", text
    )


def _markdown(text: str) -> Iterator[Passage]:
    fenced, start, lines = False, 1, list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
            line = ""  # noqa: PLW2901 - a fence ends a paragraph
        if fenced or not line.strip():
            if lines:
                yield Passage(start, "\n".join(lines))
            lines = []
        else:
            start = start if lines else number
            lines.append(line)
    if lines:
        yield Passage(start, "\n".join(lines))


def _nix(text: str) -> Iterator[Passage]:
    yield from _hash_comments(text)
    for match in re.finditer(
        r"\b(?:description|message|summary)\s*=\s*(?:lib\.mdDoc\s+)?(?:\"((?:[^\"\\]|\\.)*)\"|''(.*?)'')",
        text,
        re.DOTALL,
    ):
        line = text.count("\n", 0, match.start()) + 1
        yield Passage(line, match.group(1) or match.group(2) or "")


def _hash_comments(text: str) -> Iterator[Passage]:
    yield from _joined(
        (number, match.group(1))
        for number, line in enumerate(text.splitlines(), 1)
        if (match := re.match(r"\s*#+(?!!)\s?(.*)", line))
    )


def _joined(lines: Iterator[tuple[int, str]] | list[tuple[int, str]]) -> Iterator[Passage]:
    """Join comments on consecutive lines into one passage."""
    start, last, block = 0, -1, list[str]()
    for number, line in lines:
        if block and number != last + 1:
            yield Passage(start, "\n".join(block))
            block = []
        start = start if block else number
        block.append(line)
        last = number
    if block:
        yield Passage(start, "\n".join(block))
