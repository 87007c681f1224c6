"""The log: one JSON object per line on standard error, with the request's id and never its content."""

from __future__ import annotations

import json
import logging
import sys
import time

from appliance.store.models import UsageRow

LOG = logging.getLogger("appliance.gateway.requests")

FAULTS = frozenset({"engine_error", "engine_failed", "timeout", "truncated", "stopped", "error"})
"""Outcomes caused by the gateway or an engine. The others are in the usage rows; logging them adds nothing."""


class JsonLines(logging.Formatter):
    """A record as a JSON object; ``extra={"fields": {...}}`` adds to it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        entry: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def set_up() -> None:
    """Log to standard error, which journald collects."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # Alembic logs every migration that it does not need to run.
    logging.getLogger("alembic").setLevel(logging.WARNING)


def log_failure(row: UsageRow) -> None:
    """Log a request that failed because of an engine or this gateway."""
    if row.outcome in FAULTS:
        fields = {
            "request_id": row.request_id,
            "user": row.user,
            "key_id": row.key_id,
            "endpoint": row.endpoint,
            "model": row.model,
            "engine": row.engine,
            "outcome": row.outcome,
            "status": row.status,
            "duration_ms": round(row.duration_ms, 1),
        }
        LOG.warning("a request failed", extra={"fields": fields})
