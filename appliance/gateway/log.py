"""One JSON object per line on standard error: what happened, to which request, never what it said."""

from __future__ import annotations

import json
import logging
import sys
import time

from appliance.store.models import UsageRow

LOG = logging.getLogger("appliance.gateway.requests")

FAULTS = frozenset({"engine_error", "engine_failed", "timeout", "truncated", "stopped", "error"})
"""Outcomes that are ours or an engine's; the others are in the usage rows, and a log of them would only be long."""


class JsonLines(logging.Formatter):
    """A record as a JSON object; ``extra={"fields": {...}}`` adds to it."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
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
    """Log to standard error, where journald takes it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # Alembic tells every migration that it does not need to run.
    logging.getLogger("alembic").setLevel(logging.WARNING)


def log_failure(row: UsageRow) -> None:
    """A request that an engine or this gateway failed."""
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
