"""Terms for the calendar dates that a text writes out, the same for each way to write them.

`2026-11-27`, `27.11.2026`, "27 ноября 2026" and "November 27, 2026" give the same terms: one of the day and one of
the month. So a request by month finds a text with a full date, in either language.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date

_MONTHS = (
    r"янв(?:\.|ар\w*)|jan(?:\.|uary)?", r"фев(?:\.|рал\w*)|feb(?:\.|ruary)?", r"март\w?|mar(?:\.|ch)?",
    r"апр(?:\.|ел\w*)|apr(?:\.|il)?", r"ма[йяею]м?|may", r"июн\w*|june?", r"июл\w*|july?",
    r"авг(?:\.|уст\w*)|aug(?:\.|ust)?", r"сен(?:\.|т\w*)|sept?(?:\.|ember)?", r"окт(?:\.|ябр\w*)|oct(?:\.|ober)?",
    r"ноя(?:\.|бр\w*)|nov(?:\.|ember)?", r"дек(?:\.|абр\w*)|dec(?:\.|ember)?",
)  # fmt: skip
_NAME = "|".join(f"(?P<m{number}>{pattern})" for number, pattern in enumerate(_MONTHS, 1))
_NAMED = re.compile(
    rf"\b(?:(?P<before>\d{{1,2}})(?:st|nd|rd|th|-?го)?\s+(?:of\s+)?)?(?:{_NAME})"
    r"(?:\s+(?P<after>\d{1,2})(?:st|nd|rd|th)?,)?,?\s+(?:of\s+)?(?P<year>[12]\d{3})\b",
    re.IGNORECASE,
)
_ISO = re.compile(r"(?<![\d.-])([12]\d{3})-(\d{2})(?:-(\d{2}))?(?![\d-])")
_DOTTED = re.compile(r"(?<![\d.])(\d{1,2})\.(\d{1,2})\.([12]\d{3})(?!\d|\.\d)")


def date_terms(text: str) -> Iterator[str]:
    """Yield a month term, and a day term if the day is written, for each date in ``text``.

    Numbers that are not a valid date, such as `2026-13-40`, yield nothing.
    """
    for match in _ISO.finditer(text):
        yield from _terms(match[1], match[2], match[3])
    for match in _DOTTED.finditer(text):
        yield from _terms(match[3], match[2], match[1])
    for match in _NAMED.finditer(text):
        month = next(name for name, value in match.groupdict().items() if value and re.fullmatch(r"m\d+", name))
        yield from _terms(match["year"], month[1:], match["before"] or match["after"])


def _terms(year: str, month: str, day: str | None) -> Iterator[str]:
    try:
        found = date(int(year), int(month), int(day or 1))
    except ValueError:
        return
    yield f"month:{found:%Y-%m}"
    if day:
        yield f"day:{found:%Y-%m-%d}"
