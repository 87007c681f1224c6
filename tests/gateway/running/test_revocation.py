"""A revoked key: its requests end in every phase, and those of others continue."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from appliance.store.keys import KeyStore
from tests.conftest import (
    chat,
    wait_until,
)
from tests.gateway.running.conftest import LONG, narrow, running, send, waiting


def test_the_requests_of_a_revoked_key_end_in_every_phase(tmp_path: Path) -> None:
    """One runs, one waits, and the body of one is incomplete: all of them end, and those of others continue."""
    with narrow(tmp_path / "revoked", slots=2, headroom=0.0) as (service, bob), ThreadPoolExecutor(3) as pool:
        store = KeyStore(service.data)
        eve = store.create("eve")
        wait_until(lambda: service.get("/v1/models", key=eve).status == 200, "eve is known", 5)
        endless = "fake: tokens=3000 itl_ms=10"
        runs, others = send(pool, service, endless, eve, stream=True), send(pool, service, LONG, bob, stream=True)
        wait_until(lambda: running(service) == 2, "both run", 5)
        waits = send(pool, service, "fake: tokens=1", eve)
        wait_until(lambda: waiting(service) == 1, "one waits", 5)
        body = json.dumps(chat()).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {eve}\r\n"
        with socket.create_connection(("127.0.0.1", service.gateway.port), timeout=10) as slow:
            slow.sendall(f"{head}expect: 100-continue\r\ncontent-length: {len(body)}\r\n\r\n".encode())
            assert slow.recv(100).startswith(b"HTTP/1.1 100 ")
            store.revoke(eve)
            wait_until(lambda: runs.done() and waits.done(), "the revocation takes effect", 1)
            slow.sendall(body)
            assert slow.recv(1000).startswith(b"HTTP/1.1 401 ")
        store.close()
        last = json.loads(runs.result().body.rstrip().rsplit(b"\n\n", 1)[-1].removeprefix(b"data: "))
        assert last["error"]["code"] == "invalid_api_key"
        assert b"[DONE]" not in runs.result().body
        assert (waits.result().status, waits.result().json["error"]["code"]) == (401, "invalid_api_key")
        assert others.result(20).body.endswith(b"data: [DONE]\n\n")
        wait_until(lambda: service.stats()["aborted"] == 1, "the engine sees the abort", 5)
        assert sorted(row["outcome"] for row in service.wait_rows(3)) == ["ok", "revoked", "revoked"]
