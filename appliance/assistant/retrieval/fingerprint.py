"""The identity of an embedder: vectors of two different ones must not be compared.

Two embedders with the same number of dimensions return vectors that can be compared without an error and mean
nothing. So a store records the fingerprint of the embedder that filled it, and refuses any other.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from appliance.errors import ConflictError

REINDEX = "appliance memory reindex"
"""The command that embeds a store again."""


@dataclass(frozen=True, slots=True)
class EmbedderFingerprint:
    """Everything that changes the vectors of a text."""

    model: str
    revision: str
    """The commit or the digest of the weights."""
    pooling: str
    """``last``, ``mean`` or ``cls``."""
    instruction: str
    """The text before a query; documents have none."""
    dimensions: int
    dtype: str
    """The precision of the weights, such as ``bfloat16``."""

    @property
    def digest(self) -> bytes:
        """The SHA-256 of all fields, 32 bytes."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).digest()

    def differences(self, other: EmbedderFingerprint) -> dict[str, tuple[str | int, str | int]]:
        """Return the fields that differ, each with the value here and the value of ``other``."""
        mine, its = asdict(self), asdict(other)
        return {name: (mine[name], its[name]) for name in mine if mine[name] != its[name]}


def require_same(stored: EmbedderFingerprint, current: EmbedderFingerprint, *, store: str) -> None:
    """Reject ``current`` for a store whose vectors are of the embedder ``stored``.

    Args:
        stored: The fingerprint that the store recorded.
        current: The fingerprint of the embedder that would search or add.
        store: The id of the store, for the message.

    Raises:
        ConflictError: The fingerprints differ; the message names the differences and the fix.
    """
    found = stored.differences(current)
    if found:
        changes = "; ".join(f"{name} was {old!r} and is {new!r}" for name, (old, new) in found.items())
        raise ConflictError(
            f"the vectors of {store} are of another embedder: {changes}. "
            f"Run `{REINDEX} {store}` or configure the embedder as before",
            code="embedder_changed",
        )
