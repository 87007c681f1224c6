"""The rules of plain technical English, as patterns over prose in which code is blanked.

The rules are those of CONTRIBUTING.md ("How texts read"). A pattern finds what a rule forbids; the exceptions in
:data:`ALLOWED` are terms of the field and fixed names that contain a forbidden word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

MOST_WORDS = 25
"""Words of a sentence."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A forbidden pattern and the advice that the check prints."""

    pattern: re.Pattern[str]
    advice: str


def _words(words: str, advice: str) -> Rule:
    return Rule(re.compile(rf"\b(?:{words})\b", re.IGNORECASE), advice)


RULES = (
    _words("say|says|said|saying|tell|tells|told|telling|hear|hears|heard", "software returns, logs, reports"),
    _words("knows", "software holds, reads, recognises"),
    _words("who|whom|whoever|he|she|him|his|himself", "name the client, caller, user or operator"),
    _words("nobody|somebody|someone|anybody|anyone|everybody", "name the client, caller, user or operator"),
    Rule(
        re.compile(
            r"(?<!there )(?<!There )\b(?:is|are|was|were) no (?!longer|more than|less than|later than)",
            re.IGNORECASE,
        ),
        'write "is not a valid X" or "has no X"',
    ),
    Rule(
        re.compile(r"(?:\A|(?<=[.!?:;] )|(?<=\n\n))(?:What|That it|One that|Whatever)\b(?![^.!?]*\?)"),
        "name the noun",
    ),
    _words("mend|mends|mended|mending|cure|cures|cured", "fix"),
    _words("ask|asks|asked|asking", "request, query"),
    _words("answer|answers|answered|answering", "response; return, respond"),
    _words("questions?|exchanges?", "request"),
    _words("faults?|faulty", "error, failure"),
    _words("break|breaks|broke|broken", "fail, invalid"),
    _words("wrong", "invalid, incorrect"),
    _words("goes bad|gone bad|went bad", "fail"),
    _words("left out|leaves? out|leaving out|passed over", "skip, omit"),
    _words("gave up|gives? up|given up", "time out, stop"),
    _words("lags|lagged|lagging|lag behind", "back-pressure, slow"),
    _words("elsewhere", "fail over, another replica"),
    _words("sent back|sends? back|proven (?:one|system|generations?)|blessed", "rolled back; known good"),
    _words("books", "record"),
    _words("doors?|last words", "no metaphor"),
    _words("shall|lies|stands|stood|bears?|bore|comes|came|goes|went|thereby|beside|besides", "plain verb"),
    _words("but for|save for", "except"),
    Rule(re.compile(r", for (?:it|they|this|that|there|what|these|its)\b"), "because"),
    Rule(re.compile(r"\bwhere (?:nothing|none|there)\b", re.IGNORECASE), "if, when"),
)

ALLOWED = re.compile(
    r"""
    \b(?:
      broken\ pipe | line\ breaks? | circuit[ ]breakers? | breakers? | breaking\ change
    | fault\ injection | fault\ domains? | page\ faults?
    | question\ marks? | exchange\ rate | as\ is
    | open\ questions? | answer\ file | answer\ keys?
    # Values in reports of load tests, which scripts read.
    | no\ answer | wrong\ content\ type | more\ tokens\ than\ asked
    )\b
    """,
    re.IGNORECASE | re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Match:
    """What a rule found: the offset in the passage, the words and the advice."""

    offset: int
    words: str
    advice: str


def check(text: str) -> Iterator[Match]:
    """Yield what the rules forbid in ``text``, a passage with blanked code."""
    text = ALLOWED.sub(lambda match: " " * len(match.group(0)), text)
    for rule in RULES:
        for match in rule.pattern.finditer(text):
            yield Match(match.start(), match.group(0).strip(), rule.advice)
    yield from _long(text)


_END = re.compile(r"(?<=[.!?:;])[)\"]*\s+(?=[A-Z`\"(]|\N{BULLET}|\s)|\n\s*(?:[-*|]|\d+\.)\s|\n\n+|\s\|\s")


def _long(text: str) -> Iterator[Match]:
    start = 0
    for end in [*(match.start() for match in _END.finditer(text)), len(text)]:
        sentence = text[start:end]
        words = re.findall(r"[A-Za-z][A-Za-z'-]*", sentence)
        if len(words) > MOST_WORDS:
            lead = len(sentence) - len(sentence.lstrip(" \n|-*"))
            yield Match(start + lead, " ".join(words[:5]) + " ...", f"{len(words)} words; write two sentences")
        start = end
