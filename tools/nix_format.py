"""Check .nix files for the rules of nixfmt (RFC 166) that matter most to readers.

``python -m tools.nix_format [PATHS]``. The real formatter is ``nixfmt``: ``nix fmt`` runs it and ``nix flake
check`` requires its format. This check needs Python only, so it also runs on machines without Nix. It finds:

- tabs, trailing spaces, an odd indentation, a missing or doubled newline at the end of the file;
- a set with two or more attributes on one line, and a list of two or more elements as a value on one line;
- arguments of a function that span lines but are not one per line;
- ``let`` that does not end its line, and ``in`` that does not start its line;
- code of over 100 columns after the indentation, on lines without a string or a comment.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

WIDTH = 100
ROOT = Path(__file__).resolve().parents[1]

TOKEN = re.compile(
    r"""
    (?P<space>[ \t\r\n]+)
    | (?P<comment>\#[^\n]*|/\*.*?\*/)
    | (?P<quote>"|'')
    | (?P<path><[A-Za-z][A-Za-z0-9_./+-]*>|(?:~|[A-Za-z0-9_.+-]*)/[A-Za-z0-9_.+-][A-Za-z0-9_./+-]*)
    | (?P<word>[A-Za-z_][A-Za-z0-9_'-]*|[0-9]+(?:\.[0-9]+)?)
    | (?P<mark>\$\{|\.\.\.|//|->|\+\+|==|!=|<=|>=|&&|\|\||.)
    """,
    re.VERBOSE | re.DOTALL,
)
OPENING = {"{": "}", "${": "}", "[": "]", "(": ")"}


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of code: its kind, its text and the number of the line on which it starts."""

    kind: str
    text: str
    line: int


class NixSyntaxError(Exception):
    """The file is not Nix: a string or a bracket does not end."""


def tokens(text: str) -> list[Token]:
    """Return the tokens of ``text`` without spaces; a string is one token, its interpolations included."""
    found = []
    position, line = 0, 1
    while position < len(text):
        match = _next(text, position)
        kind = str(match.lastgroup)
        end = _string_end(text, match.end(), match[0], line) if kind == "quote" else match.end()
        piece = text[position:end]
        if kind != "space":
            found.append(Token("string" if kind == "quote" else kind, piece, line))
        line += piece.count("\n")
        position = end
    return found


def _next(text: str, position: int) -> re.Match[str]:
    match = TOKEN.match(text, position)
    if match is None:
        raise NixSyntaxError(f"position {position}: not a token of Nix")
    return match


def _string_end(text: str, position: int, quote: str, line: int) -> int:
    """Return the position after the string whose opening ``quote`` ends at ``position``."""
    while position < len(text):
        if quote == '"' and text[position] == "\\":
            position += 2
        elif quote == "''" and text.startswith(("''$", "'''"), position):
            position += 3
        elif quote == "''" and text.startswith("''\\", position):
            position += 4
        elif text.startswith("$${", position):
            position += 3
        elif text.startswith("${", position):
            position = _interpolation_end(text, position + 2, line)
        elif text.startswith(quote, position):
            return position + len(quote)
        else:
            position += 1
    raise NixSyntaxError(f"{line}: a string does not end")


def _interpolation_end(text: str, position: int, line: int) -> int:
    depth = 1
    while position < len(text):
        match = _next(text, position)
        position = match.end()
        if match.lastgroup == "quote":
            position = _string_end(text, position, match[0], line)
        elif match[0] in {"{", "${"}:
            depth += 1
        elif match[0] == "}":
            depth -= 1
            if depth == 0:
                return position
    raise NixSyntaxError(f"{line}: an interpolation does not end")


def violations(text: str) -> list[str]:
    """Return the violations in a file's ``text``, as ``LINE: what is wrong``; an empty list if there are none."""
    try:
        found = tokens(text)
    except NixSyntaxError as fault:
        return [str(fault)]
    code = [token for token in found if token.kind != "comment"]
    ordered = [*_lines(text, found), *_brackets(code), *_let(code)]
    return [f"{line}: {fault}" for line, fault in sorted(set(ordered))]


def _lines(text: str, found: list[Token]) -> Iterator[tuple[int, str]]:
    inside: set[int] = set()
    """Lines that start inside a string or a comment."""
    long: set[int] = set()
    """Lines that a string or a comment may make long."""
    for token in found:
        last = token.line + token.text.count("\n")
        if token.kind in {"string", "comment", "path"}:
            inside |= set(range(token.line + 1, last + 1))
            long |= set(range(token.line, last + 1))
    for number, line in enumerate(text.split("\n"), start=1):
        if line != line.rstrip():
            yield number, "trailing spaces"
        if "\t" in line and number not in inside:
            yield number, "a tab; indent with spaces"
        if number not in inside and (len(line) - len(line.lstrip(" "))) % 2:
            yield number, "an odd indentation; indent with 2 spaces per level"
        if len(line.strip()) > WIDTH and number not in long:
            yield number, f"{len(line.strip())} columns after the indentation; {WIDTH} are the limit"
    if not text.endswith("\n") or text.endswith("\n\n"):
        yield text.count("\n") + 1, "the file must end with one newline"


def _let(code: list[Token]) -> Iterator[tuple[int, str]]:
    for before, token, after in zip([None, *code], code, [*code[1:], None], strict=False):
        if token.kind != "word":
            continue
        if token.text == "let" and after is not None and after.line == token.line:
            yield token.line, "code after let; start a new line"
        if token.text == "in" and before is not None and before.line + before.text.count("\n") == token.line:
            yield token.line, "code before in; start a new line"


def _brackets(code: list[Token]) -> Iterator[tuple[int, str]]:
    """Check each set, list and argument list; ``opened`` holds the indices of the brackets still open."""
    opened: list[int] = []
    for index, token in enumerate(code):
        if token.kind != "mark":
            continue
        if token.text in OPENING:
            opened.append(index)
        elif token.text in {"}", "]", ")"}:
            if not opened or OPENING[code[opened[-1]].text] != token.text:
                yield token.line, f"{token.text} closes nothing"
                return
            start = opened.pop()
            yield from _bracket(code, start, index)
    if opened:
        yield code[opened[-1]].line, f"{code[opened[-1]].text} does not end"


def _bracket(code: list[Token], start: int, end: int) -> Iterator[tuple[int, str]]:
    opening, closing = code[start], code[end]
    elements = list(_elements(code, start, end))
    one_line = opening.line == closing.line
    after = code[end + 1].text if end + 1 < len(code) else ""
    if opening.text == "{" and after in {":", "@"}:
        names = [group for group in elements if group]
        lines = [code[group[0]].line for group in names]
        if not one_line and len(set(lines)) != len(lines):
            yield opening.line, "arguments share a line; write one per line"
    elif opening.text == "{" and one_line and len(elements) > 1:
        yield opening.line, "a set with several attributes on one line; write one per line"
    elif opening.text == "[" and one_line and len(elements) > 1:
        before = code[start - 1].text if start else ""
        if before == "=" and after == ";":
            yield opening.line, "a list of several elements on one line; write one per line"


def _elements(code: list[Token], start: int, end: int) -> Iterator[list[int]]:
    """Yield the indices of each element between two brackets: bindings, list elements or arguments."""
    separator = {"{": ";", "[": None}.get(code[start].text)
    arguments = code[start].text == "{" and end + 1 < len(code) and code[end + 1].text in {":", "@"}
    if arguments:
        separator = ","
    group: list[int] = []
    depth = 0
    for index in range(start + 1, end):
        text = code[index].text
        depth -= code[index].kind == "mark" and text in {"}", "]", ")"}
        if depth == 0 and text == separator:
            yield group
            group = []
            continue
        if separator is None and depth == 0 and group and not _continues(code, index):
            yield group
            group = []
        group.append(index)
        depth += code[index].kind == "mark" and text in OPENING
    if group:
        yield group


def _continues(code: list[Token], index: int) -> bool:
    """Whether the token belongs to the list element before it: ``a.b``, ``./${x}``, or the end of a bracket."""
    text, before = code[index].text, code[index - 1]
    return (
        text in {".", "}", "]", ")", "or"} or before.text in {".", "-"} or (before.kind == "path" and text == "${")
    )


def files(paths: list[str]) -> list[Path]:
    """Return the .nix files of ``paths``, or all files that git tracks or would add."""
    if paths:
        given = [Path(path) for path in paths]
        return sorted(file for path in given for file in (sorted(path.rglob("*.nix")) if path.is_dir() else [path]))
    argv = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "*.nix"]
    listed = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split("\n")
    return [ROOT / name for name in sorted(listed) if name and (ROOT / name).exists()]


def main(paths: list[str]) -> int:
    """Print the violations in ``paths``; return 1 if there are any."""
    checked = files(paths)
    count = 0
    for file in checked:
        for violation in violations(file.read_text()):
            print(f"{file}:{violation}")
            count += 1
    print(f"{len(checked)} files, {count} violations")
    return 1 if count or not checked else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
