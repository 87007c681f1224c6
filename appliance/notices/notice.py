"""One message for the operator, and the kinds of messages that may page."""

from __future__ import annotations

import msgspec

PAGING_KINDS = frozenset({"trial", "on-battery", "going-down", "card-hot", "card-lost", "public-address-down"})
"""Kinds whose notices are sent at once. Together with the paging alerts of Prometheus they are ten at most, so that
a page stays an event. Notices of every other kind wait for the daily digest."""


class Notice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A message: what happened, where, and the fix, as plain text."""

    kind: str
    """Its subject matter, such as ``on-battery``; :data:`PAGING_KINDS` has the kinds that page."""
    subject: str
    """The part that it concerns, such as ``card 1``. A summary keeps the newest state of each kind and subject."""
    text: str
    """Plain text. The sender shortens it to the limit of its channel."""
    at: float
    """Seconds since the epoch."""
    ended: bool = False
    """Whether it reports the end of a state that an earlier notice of this kind and subject reported."""
    page: bool = False
    """Whether a notice of another kind than :data:`PAGING_KINDS` pages: an alert of Prometheus that is urgent."""

    @property
    def pages(self) -> bool:
        """Whether it is sent at once."""
        return self.page or self.kind in PAGING_KINDS
