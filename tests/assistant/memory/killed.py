"""The context of a process that a test kills."""

from __future__ import annotations

from pathlib import Path

from appliance.assistant.context import AssistantContext
from appliance.assistant.inference import InferenceClient
from appliance.assistant.store.database import Database
from tests.assistant.memory.conftest import memory_site


def context(folder: Path, socket: Path) -> AssistantContext:
    """Open the database in ``folder`` with the gateway at ``socket``."""
    site = memory_site(folder)
    assert site.assistant is not None
    return AssistantContext(
        site=site,
        settings=site.assistant,
        database=Database(folder / "assistant"),
        inference=InferenceClient(socket),
        folder=folder / "assistant",
    )
