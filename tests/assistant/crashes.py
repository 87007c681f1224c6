"""Kills the assistant at random moments of running turns, and checks what is stored.

``python -m tests.assistant.crashes --kills 60`` is the long run; the suite has a short one.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
from sqlalchemy import create_engine, text

from appliance.assistant.store.database import FILE
from tests.assistant.standin import AssistantUnderTest, assistant_running
from tests.conftest import wait_until

DIRECTIVE = "fake: tokens=6 itl_ms=8 ttft_ms=8 think=1"
CLIENTS = 4
LEAST_S = 0.05
"""Least seconds within which a kill falls."""


@dataclass
class Acknowledged:
    """The responses that clients got whole, with their text, and the kills so far."""

    completed: dict[str, str] = field(default_factory=dict)
    conversations: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def crash(assistant: AssistantUnderTest, kills: int, seed: int) -> Acknowledged:
    """Kill and restart the assistant ``kills`` times while clients have turns; return what was acknowledged."""
    moments = random.Random(seed)
    known = Acknowledged()
    with assistant.http() as client:
        for _ in range(CLIENTS):
            known.conversations.append(client.post("/conversations", json={}).json()["id"])
    for _ in range(kills):
        stop = threading.Event()
        clients = [
            threading.Thread(target=_turns, args=(assistant, talk, known, stop)) for talk in known.conversations
        ]
        for thread in clients:
            thread.start()
        lasted = _wait_for_more(known)
        # The moment of the kill is the subject of the test: it falls anywhere within about one turn.
        time.sleep(moments.uniform(0, max(LEAST_S, lasted)))
        assistant.kill()
        stop.set()
        for thread in clients:
            thread.join()
        assistant.start()
        check(assistant, known)
    return known


def _wait_for_more(known: Acknowledged) -> float:
    """Wait for a further acknowledged turn and return the seconds it took."""
    before = len(known.completed)
    return wait_until(lambda: len(known.completed) > before, "an acknowledged turn", 60)


def _turns(assistant: AssistantUnderTest, talk: str, known: Acknowledged, stop: threading.Event) -> None:
    """Stream turns of one conversation until the assistant ends."""
    number = 0
    with assistant.http() as client:
        while not stop.is_set():
            number += 1
            body = {"model": "fake", "input": f"{number} {DIRECTIVE}", "conversation": talk, "stream": True}
            try:
                with client.stream("POST", "/responses", json=body) as response:
                    for line in response.iter_lines():
                        if line.startswith("data: ") and '"type":"response.completed"' in line[:60]:
                            found = json.loads(line[6:])["response"]
                            with known.lock:
                                known.completed[found["id"]] = json.dumps(found["output"], sort_keys=True)
            except httpx.HTTPError:
                return


def check(assistant: AssistantUnderTest, known: Acknowledged) -> None:
    """Check that no response is half, that none of the acknowledged ones is lost, and none is stored twice."""
    with assistant.http() as client:
        for identifier, output in known.completed.items():
            found = client.get(f"/responses/{identifier}").json()
            assert found["status"] == "completed", found
            assert json.dumps(found["output"], sort_keys=True) == output
    engine = create_engine(f"sqlite:///{assistant.folder / 'data' / FILE}")
    with engine.connect() as connection:
        assert (
            connection.execute(
                text(
                    "SELECT count(*) FROM items i WHERE NOT EXISTS (SELECT 1 FROM response_items r"
                    " WHERE r.item_id = i.id)"
                )
            ).scalar()
            == 0
        )
        for row in _rows(connection, "SELECT id, status, conversation_id AS talk FROM responses"):
            outputs = _rows(
                connection, "SELECT item_id FROM response_items WHERE output AND response_id = :id", id=row.id
            )
            there = _rows(
                connection,
                "SELECT c.item_id FROM conversation_items c JOIN response_items r ON r.item_id = c.item_id"
                " WHERE r.response_id = :id",
                id=row.id,
            )
            # A whole turn is one input, a reasoning and a message; all of it is in the conversation, or none.
            assert row.status in ("completed", "incomplete", "failed"), row
            if row.status == "completed":
                assert (len(outputs), len(there)) == (2, 3), row
            elif row.status == "failed":
                assert (len(outputs), len(there)) == (0, 0), row
    engine.dispose()


def _rows(connection: Any, statement: str, **values: Any) -> list[Any]:
    return list(connection.execute(text(statement), values))


def main() -> int:
    """Run the long variant and print what was acknowledged."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, assistant_running(Path(folder), forked=True) as assistant:
        known = crash(assistant, options.kills, options.seed)
        print(f"{options.kills} kills, {len(known.completed)} acknowledged responses, all there and whole")
    return 0


if __name__ == "__main__":
    sys.exit(main())
