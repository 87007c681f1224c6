"""``GET /metrics`` on the assistant's socket, for Prometheus; the gateway does not pass this path on."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from appliance.assistant.context import AssistantContext
from appliance.assistant.memory.metrics import MemoryMetrics


def metrics_router(context: AssistantContext) -> APIRouter:
    """Return the endpoint of the metrics."""
    router = APIRouter()
    metrics = context.shared(MemoryMetrics)

    @router.get("/metrics")
    def read() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router
