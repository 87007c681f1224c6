"""One violated rule of a configuration, and the hint at a name that resembles an unknown one. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True, slots=True)
class Violation:
    """One violated rule: the key of the configuration, the error and the fix."""

    where: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.fix}"


def suggest(name: str, known: list[str]) -> str:
    """Return a hint: the name in ``known`` that is most similar to ``name``, or all of them."""
    match = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {match[0]!r}?" if match else f"known: {', '.join(sorted(known)) or 'none'}"
