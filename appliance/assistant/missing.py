"""The errors for an object that a tenant cannot reach, and for a vector store that is expired."""

from __future__ import annotations

from appliance.errors import InvalidRequestError, NotFoundError


def not_found(kind: str, identifier: str) -> NotFoundError:
    """Return the error for an object that does not exist or belongs to another tenant: one body for both."""
    return NotFoundError(f"No {kind} found with id '{identifier[:64]}'.", code="not_found")


def expired_store(store_id: str) -> InvalidRequestError:
    """Return the error for a store of the tenant that is expired."""
    return InvalidRequestError(
        f"The vector store '{store_id[:64]}' is expired; create a new one", code="vector_store_expired"
    )
