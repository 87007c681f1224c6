"""Kills the assistant, the gateway or the engine at random moments of running turns, and checks what is stored.

``python -m tests.assistant.crashes --kills 60`` is the long run, 20 kills of each; ``--of`` names one of them. The
suite has a short one. Clients connect to the gateway, as users do. After each kill:

* No item is half. A completed response has all its items, a failed one only whole ones. The conversation has all
  items of a completed or incomplete response, and none of a failed one.
* No acknowledged response is lost: a client that got ``response.completed`` reads the same output later.
* No billing is double. Each call of the engine has one usage row at most, and each response one call here. The row
  of an acknowledged response has its outcome ``ok`` and its tokens.
* No billing is lost while the gateway lives: there are as many rows as calls that the engine received. The gateway
  writes rows in batches after the response. So a kill of the gateway may cost the last rows of each client.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
from sqlalchemy import create_engine, text

from appliance.assistant.store.database import FILE
from tests.assistant.running import AssistantUnderTest, whole_service
from tests.conftest import MOCK_ENGINE, RunningService, start, usage_rows, wait_until

VICTIMS = ("assistant", "gateway", "engine")
DIRECTIVE = "fake: tokens=6 itl_ms=8 ttft_ms=8 think=1"
CLIENTS = 4
LEAST_S = 0.05
"""Least seconds within which a kill falls."""
PATIENCE_S = 60.0
"""Seconds for a turn, or for the end of turns, on a busy machine."""


@dataclass
class AcknowledgedTurn:
    """A response that a client got whole."""

    request_id: str
    response: dict[str, Any]


@dataclass
class Acknowledged:
    """The turns that clients got whole, by conversation and life of the gateway, oldest first."""

    turns: dict[tuple[str, int], list[AcknowledgedTurn]] = field(default_factory=dict)
    checked: int = 0
    """Turns whose output was compared."""

    @property
    def all(self) -> list[AcknowledgedTurn]:
        return [turn for turns in list(self.turns.values()) for turn in list(turns)]


class CrashedService:
    """The three processes, the clients' conversations, and what was acknowledged so far."""

    def __init__(self, service: RunningService, assistant: AssistantUnderTest) -> None:
        self.service, self.assistant = service, assistant
        self.known = Acknowledged()
        self.lives: Counter[str] = Counter()
        """Kills so far, by process."""

    def new_conversations(self) -> list[str]:
        """Return new conversations, one a client: old ones would become longer than the context."""
        with self.http() as client:
            return [client.post("/conversations", json={}).json()["id"] for _ in range(CLIENTS)]

    def calls(self) -> list[dict[str, Any]]:
        """Return the usage rows of calls of the engine; a request for a token count is not one."""
        rows = usage_rows(self.service.data)
        return [row for row in rows if row["endpoint"] == "/v1/chat/completions" and row["engine"]]

    def http(self) -> httpx.Client:
        """Return a client of the gateway."""
        return httpx.Client(
            base_url=self.service.url + "/v1",
            headers={"authorization": f"Bearer {self.service.key}"},
            timeout=PATIENCE_S,
            trust_env=False,
        )

    def billed(self) -> set[str]:
        """Return the ids of clients' requests that have the usage row of a call."""
        return {row["request_id"].partition(".")[0] for row in self.calls()}

    def kill(self, victim: str) -> None:
        """Kill -9 and start again."""
        self.lives[victim] += 1
        service = self.service
        if victim == "assistant":
            self.assistant.kill()
            self.assistant.start()
            return
        old = service.gateway if victim == "gateway" else service.engine
        old.process.kill()
        old.process.wait()
        if victim == "gateway":
            argv = [sys.executable, "-m", "appliance", "gateway", "--config", str(service.config)]
            service.gateway = start(argv, old.port, old.log)
        else:
            service.engine = start([*MOCK_ENGINE, "--port", str(old.port)], old.port, old.log)
            self.assistant.engine = service.engine

    def turns(self, conversation: str, stop: threading.Event) -> None:
        """Stream turns of one conversation until a process ends."""
        turns = self.known.turns.setdefault((conversation, self.lives["gateway"]), [])
        body = {"model": "fake", "input": f"x {DIRECTIVE}", "conversation": conversation, "stream": True}
        with self.http() as client:
            while not stop.is_set():
                try:
                    with client.stream("POST", "/responses", json=body) as response:
                        if response.status_code != 200:
                            # The replica is down until its next canary.
                            stop.wait(0.05)
                        for line in response.iter_lines():
                            if line.startswith("data: ") and '"type":"response.completed"' in line[:60]:
                                found = json.loads(line[6:])["response"]
                                turns.append(AcknowledgedTurn(response.headers["x-request-id"], found))
                except httpx.HTTPError:
                    if stop.wait(0.05):
                        return


def crash(folder: Path, victims: Sequence[str], kills: int, seed: int) -> CrashedService:
    """Kill and restart each of ``victims`` ``kills`` times, while clients have turns; check after each kill."""
    moments = random.Random(seed)
    # The engine is the last one: a kill of it ends the count of its calls.
    order = [victim for victim in VICTIMS if victim in victims for _ in range(kills)]
    with whole_service(folder) as (service, assistant):
        crashed = CrashedService(service, assistant)
        for victim in order:
            stop = threading.Event()
            talks = crashed.new_conversations()
            clients = [threading.Thread(target=crashed.turns, args=(talk, stop)) for talk in talks]
            for thread in clients:
                thread.start()
            try:
                lasted = _wait_for_more(crashed.known)
                # The moment of the kill is the subject of the test: it falls anywhere within about one turn.
                time.sleep(moments.uniform(0, max(LEAST_S, lasted)))
                crashed.kill(victim)
            finally:
                stop.set()
                for thread in clients:
                    thread.join()
            check(crashed)
        return crashed


def _wait_for_more(known: Acknowledged) -> float:
    """Wait for a further acknowledged turn and return the seconds it took."""
    before = len(known.all)
    return wait_until(lambda: len(known.all) > before, "an acknowledged turn", PATIENCE_S)


def check(crashed: CrashedService) -> None:
    """Check the rules of this module."""
    engine = create_engine(f"sqlite:///{crashed.assistant.folder / 'data' / FILE}")
    try:
        wait_until(lambda: not _rows(engine, _UNFINISHED), "the end of all turns", PATIENCE_S)
        check_items(_rows(engine, TURNS), _rows(engine, UNUSED))
    finally:
        engine.dispose()
    known = crashed.known.all
    with crashed.http() as client:
        for turn in known[crashed.known.checked :]:
            found = client.get(f"/responses/{turn.response['id']}").json()
            assert found == turn.response
    crashed.known.checked = len(known)
    wait_until(lambda: crashed.service.stats()["active"] == 0, "the end of the engine's work", PATIENCE_S)
    kills = crashed.lives["gateway"]
    wait_until(lambda: not unbilled(crashed.billed(), crashed.known, kills), "the usage rows", PATIENCE_S)
    rows = crashed.calls()
    check_billing(rows, crashed.known)
    if not crashed.lives["engine"]:
        stats = crashed.service.stats()
        calls = stats["requests"] - stats["canaries"]
        assert len(rows) <= calls
        if not crashed.lives["gateway"]:
            wait_until(lambda: len(crashed.calls()) == calls, "one usage row a call", PATIENCE_S)


_UNFINISHED = "SELECT 1 FROM responses WHERE status IN ('queued', 'in_progress')"
UNUSED = (
    "SELECT id FROM items i WHERE NOT EXISTS (SELECT 1 FROM response_items r WHERE r.item_id = i.id)"
    " AND NOT EXISTS (SELECT 1 FROM conversation_items c WHERE c.item_id = i.id)"
)
TURNS = (
    "SELECT r.id, r.status,"
    " (SELECT count(*) FROM response_items i WHERE i.response_id = r.id) AS items,"
    " (SELECT count(*) FROM response_items i WHERE i.response_id = r.id AND i.output) AS outputs,"
    " (SELECT count(*) FROM response_items i JOIN items j ON j.id = i.item_id WHERE i.response_id = r.id"
    '  AND j.body LIKE \'%"status":"in%\') AS halves,'
    " (SELECT count(*) FROM response_items i JOIN conversation_items c ON c.item_id = i.item_id"
    "  WHERE i.response_id = r.id) AS there FROM responses r"
)


def check_items(turns: Sequence[Any], unused: Sequence[Any]) -> None:
    """Check that no turn is half: a whole one is one input, a reasoning and a message."""
    assert not unused, unused
    for turn in turns:
        if turn.status == "completed":
            assert (turn.items, turn.outputs, turn.there, turn.halves) == (3, 2, 3, 0), turn
        elif turn.status == "failed":
            assert (turn.items, turn.there, turn.halves) == (turn.outputs + 1, 0, 0), turn
        else:
            assert turn.status == "incomplete", turn
            assert turn.items == turn.outputs + 1 == turn.there, turn


def check_billing(rows: Sequence[dict[str, Any]], known: Acknowledged) -> None:
    """Check that no call is billed twice, and that acknowledged turns are billed with their tokens."""
    calls = Counter(row["request_id"].partition(".")[0] for row in rows)
    assert max(calls.values(), default=1) == 1, [name for name, count in calls.items() if count > 1]
    billed = {row["request_id"].partition(".")[0]: row for row in rows}
    for turns in known.turns.values():
        for turn in turns:
            row = billed.get(turn.request_id)
            if row is not None:
                usage = turn.response["usage"]
                assert row["outcome"] == "ok", row
                assert row["prompt_tokens"] == usage["input_tokens"], (row, usage)
                assert row["completion_tokens"] == usage["output_tokens"], (row, usage)


def unbilled(billed: Set[str], known: Acknowledged, kills: int) -> list[AcknowledgedTurn]:
    """Return acknowledged turns without a usage row that none of the gateway's ``kills`` explains.

    ``billed`` are the ids of clients' requests that have a row.
    """
    found: list[AcknowledgedTurn] = []
    for (_, life), turns in known.turns.items():
        last = max((at for at, turn in enumerate(turns) if turn.request_id in billed), default=-1)
        due = turns if life == kills else turns[: last + 1]
        found += [turn for turn in due if turn.request_id not in billed]
    return found


def _rows(engine: Any, statement: str) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(text(statement)))


def main() -> int:
    """Run the long variant and print what was acknowledged."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=60, help="kills of all processes together")
    parser.add_argument("--of", choices=VICTIMS, action="append", help="the process to kill; default: all three")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    victims = options.of or VICTIMS
    with tempfile.TemporaryDirectory() as folder:
        crashed = crash(Path(folder), victims, max(1, options.kills // len(victims)), options.seed)
        kills = ", ".join(f"{crashed.lives[one]} of the {one}" for one in victims)
        print(f"{sum(crashed.lives.values())} kills: {kills}")
        print(f"{len(crashed.known.all)} acknowledged responses, all there, whole and billed once at most")
        billed = crashed.billed()
        lost = sum(turn.request_id not in billed for turn in crashed.known.all)
        print(f"{lost} of them lost their usage rows with the gateway")
    return 0


if __name__ == "__main__":
    sys.exit(main())
