"""The OpenAPI description of the assistant: the statuses of every endpoint, and bodies that are read by hand."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from appliance.assistant.item_form import MAX_ITEMS, ROLES
from appliance.assistant.metadata import MAX_NAME, MAX_PAIRS, MAX_VALUE

__all__ = ["CONVERSATION_BODY", "ERRORS", "ITEMS_BODY", "METADATA_BODY", "TURN_BODY", "UPLOAD_BODY", "DescribedApp"]


class ErrorFields(BaseModel):
    """The reason of a rejection, and the field that has it."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every error, in OpenAI's shape."""

    error: ErrorFields


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in (
        (400, "Invalid field, which `param` names"),
        (401, "API key missing or invalid; the gateway responds"),
        (404, "Object unknown, or of another user"),
        (405, "Method not available"),
        (409, "Conversation busy"),
        (413, "Body too large"),
        (429, "Limit of the user reached"),
        (502, "Engine or assistant failed"),
        (503, "Database, embedder, engine or assistant not available"),
        (504, "Engine or assistant silent for too long"),
    )
}


def _body(kind: str, schema: dict[str, Any], *, required: bool) -> dict[str, Any]:
    return {"requestBody": {"required": required, "content": {kind: {"schema": schema}}}}


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*required]}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


_TEXT = {"type": "string"}
_METADATA = _or_null(
    {
        "type": "object",
        "maxProperties": MAX_PAIRS,
        "propertyNames": {"maxLength": MAX_NAME},
        "additionalProperties": {"type": "string", "maxLength": MAX_VALUE},
    }
)
_MESSAGE = _object(
    {
        "type": {"const": "message"},
        "role": {"enum": [*ROLES]},
        "content": _TEXT,
    },
    "type",
    "role",
    "content",
)
_ITEMS = {"type": "array", "items": _MESSAGE, "maxItems": MAX_ITEMS}
CONVERSATION_BODY = _body(
    "application/json", _object({"items": _or_null(_ITEMS), "metadata": _METADATA}), required=False
)
METADATA_BODY = _body("application/json", _object({"metadata": _METADATA}, "metadata"), required=True)
ITEMS_BODY = _body("application/json", _object({"items": {**_ITEMS, "minItems": 1}}, "items"), required=True)
TURN_BODY = _body(
    "application/json",
    _object(
        {
            "model": _TEXT,
            "input": {"anyOf": [_TEXT, {"type": "array", "items": _MESSAGE}]},
            "instructions": _or_null(_TEXT),
            "conversation": _or_null(_TEXT),
            "previous_response_id": _or_null(_TEXT),
            "metadata": _METADATA,
            "max_output_tokens": _or_null({"type": "integer", "minimum": 1}),
            "temperature": _or_null({"type": "number", "minimum": 0, "maximum": 2}),
            "truncation": _or_null({"enum": ["auto", "disabled"]}),
            "store": _or_null({"type": "boolean"}),
            "background": _or_null({"type": "boolean"}),
            "stream": _or_null({"type": "boolean"}),
            "tools": _or_null({"type": "array", "items": {"type": "object"}}),
        },
        "model",
        "input",
    ),
    required=True,
)
UPLOAD_BODY = _body(
    "multipart/form-data",
    _object({"file": {"type": "string", "format": "binary"}, "purpose": _TEXT}, "file", "purpose"),
    required=True,
)


class DescribedApp(FastAPI):
    """An application whose description has the status 400 for invalid requests, in place of FastAPI's 422."""

    def openapi(self) -> dict[str, Any]:
        """Return the description."""
        if self.openapi_schema is None:
            for operations in super().openapi()["paths"].values():
                for operation in operations.values():
                    operation["responses"].pop("422", None)
        return super().openapi()
