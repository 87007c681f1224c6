"""The rules of evidence that a site has fitted, in a file of the data folder, by the fingerprint of the embedder.

The file is read again when it changes, so `appliance memory calibrate` takes effect in a running assistant.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from appliance.assistant.context import AssistantContext
from appliance.assistant.retrieval.evidence import RULES, WORDS, EvidenceRule
from appliance.assistant.retrieval.fingerprint import EmbedderFingerprint
from appliance.errors import StoreError
from appliance.system import files

FILE = "calibration.json"

RuleSource = Literal["site", "shipped", "words"]
"""The origin of a rule: fitted on this site, shipped with the appliance, or words because neither exists."""


@dataclass(frozen=True, slots=True)
class ChosenRule:
    """A rule and its origin."""

    rule: EvidenceRule
    source: RuleSource


class SiteRules:
    """The rules of one site."""

    def __init__(self, context: AssistantContext) -> None:
        self._path = context.folder / FILE
        self._lock = threading.Lock()
        self._read: tuple[int, Mapping[str, EvidenceRule]] = (0, {})

    def choose(self, fingerprint: EmbedderFingerprint | None) -> ChosenRule:
        """Return the rule for vectors of ``fingerprint``; None means a search by words alone.

        Raises :class:`StoreError` if the file of the site is not readable or not valid.
        """
        if fingerprint is None:
            return ChosenRule(WORDS, "words")
        fitted = self._fitted().get(fingerprint.digest.hex())
        if fitted is not None:
            return ChosenRule(fitted, "site")
        shipped = RULES.get(fingerprint.model)
        return ChosenRule(WORDS, "words") if shipped is None else ChosenRule(shipped, "shipped")

    def put(self, fingerprint: EmbedderFingerprint, rule: EvidenceRule) -> None:
        """Store ``rule`` for ``fingerprint``; raises :class:`StoreError` if the folder cannot be written."""
        rules = {name: asdict(one) for name, one in self._fitted().items()}
        rules[fingerprint.digest.hex()] = asdict(rule)
        files.replace(self._path, json.dumps(rules, indent=2) + "\n")

    def _fitted(self) -> Mapping[str, EvidenceRule]:
        with self._lock:
            try:
                changed = self._path.stat().st_mtime_ns
                if changed != self._read[0]:
                    rules = json.loads(self._path.read_text("utf-8"))
                    self._read = changed, {name: EvidenceRule(**one) for name, one in rules.items()}
            except FileNotFoundError:
                self._read = 0, {}
            except (OSError, ValueError, TypeError, AttributeError) as error:
                raise StoreError(
                    f"{self._path} is not usable ({type(error).__name__}); remove it and run "
                    "`appliance memory calibrate` again"
                ) from error
            return self._read[1]
