"""The prose check: each rule finds its violation, and code, quotations and plain sentences pass."""

from __future__ import annotations

from pathlib import PurePath

import pytest

from tools.prose.extract import blanked, passages
from tools.prose.rules import check


def found(text: str, name: str = "x.py") -> list[str]:
    """Return the words that the rules find in the file ``name`` with the content ``text``."""
    return [match.words for passage in passages(PurePath(name), text) for match in check(blanked(passage.text))]


@pytest.mark.parametrize(
    ("prose", "words"),
    [
        ("The gateway says which key it was.", "says"),
        ("The engine knows its model.", "knows"),
        ("The client who sent it waits.", "who"),
        ("Nobody waits for it.", "Nobody"),
        ("This is no port.", "is no"),
        ("What hangs is stopped.", "What"),
        ("One that left is cut.", "One that"),
        ("The restart mends it.", "mends"),
        ("The engine answers the request.", "answers"),
        ("It fails, for it has no key.", ", for it"),
        ("Everything but for the key.", "but for"),
        ("The file lies in the folder.", "lies"),
        ("It serves where nothing waits.", "where nothing"),
        ("The gateway is the only door.", "door"),
    ],
)
def test_each_rule_finds_its_violation(prose: str, words: str) -> None:
    assert found(f'"""{prose}"""\n') == [words]


@pytest.mark.parametrize(
    "prose",
    [
        "The breaker opens after five failures.",
        "There is no model with that name.",
        "Write `answer` or ``who`` for the old name.",
        'OpenAI writes "what went wrong" there.',
        "A circuit breaker, a broken pipe and a page fault are terms of the field.",
        "The key is no longer valid.",
        "See appliance/gateway/ask.py and --tell.",
    ],
)
def test_plain_sentences_code_and_quotations_pass(prose: str) -> None:
    assert found(f'"""{prose}"""\n') == []


def test_a_sentence_has_at_most_25_words() -> None:
    words = " ".join(["word"] * 25)
    assert found(f'"""The {words[5:]}."""\n') == []
    assert len(found(f'"""The {words}."""\n')) == 1
    assert found(f'"""The {words[5:]}. The {words[5:]}."""\n') == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.py", "# It tells the client.\n"),
        ("x.py", "def f():\n    '''It tells the client.'''\n"),
        ("x.py", "m = f'It tells the client {number} of them'\n"),
        ("x.py", "def test_it_tells_the_client():\n    pass\n"),
        ("x.md", "It tells the client.\n"),
        ("x.md", "| a | It tells the client |\n"),
        ("x.nix", "# It tells the client.\n{ }\n"),
        ("x.nix", '{ description = "It tells the client."; }\n'),
        ("x.nix", "{ description = ''\n  It tells the client.\n''; }\n"),
        ("x.sh", "# It tells the client.\n"),
        ("Makefile", "# It tells the client.\n"),
        ("x.mjs", "// It tells the client.\n"),
    ],
)
def test_prose_is_found_in_each_kind_of_file(name: str, text: str) -> None:
    assert found(text, name) == ["tells"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.py", "tells = 'tells'\n"),
        ("x.py", "'''Prints::\n\n    it tells the client\n'''\n"),
        ("x.py", "sql = 'SELECT a FROM tells WHERE b is c'\n"),
        ("x.md", "```\nit tells the client\n```\n"),
        ("x.nix", '{ script = "tells"; }\n'),
        ("x.json", '{"a": "it tells the client"}\n'),
    ],
)
def test_code_is_not_prose(name: str, text: str) -> None:
    assert found(text, name) == []


def test_the_line_of_a_violation_is_its_own() -> None:
    text = '"""First line.\n\nSecond paragraph\nit tells the client.\n"""\n'
    (passage,) = passages(PurePath("x.py"), text)
    prose = blanked(passage.text)
    (match,) = check(prose)
    assert passage.line + prose.count("\n", 0, match.offset) == 4
