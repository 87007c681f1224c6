"""The one error for an object that a tenant cannot reach."""

from __future__ import annotations

from appliance.errors import NotFoundError


def not_found(kind: str, identifier: str) -> NotFoundError:
    """Return the error for an object that does not exist or belongs to another tenant: one body for both."""
    return NotFoundError(f"No {kind} found with id '{identifier[:64]}'.", code="not_found")
