"""The log, the metrics and the database contain no text of requests."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import (
    chat,
    exchange,
    head,
    serving,
)


def test_the_log_contains_no_prompt(tmp_path: Path) -> None:
    secret = "canary-7f3a-of-a-prompt"
    with serving(tmp_path / "log", gateway={"breaker_failures": 1000}) as service:
        for text in (secret, f"fake: fault=cut {secret}", f"fake: fault=status:500 {secret}"):
            service.post("/v1/chat/completions", chat(text))
        service.post("/v1/chat/completions", f'{{"model": 7, "x": "{secret}"}}'.encode())
        for fault in ("cut:2", "error:2", "garbage:1", "reset", "error_body", "no_done", "status:400"):
            service.post("/v1/chat/completions", chat(f"fake: fault={fault} {secret}", stream=True, user=secret))
            service.post(
                "/v1/responses", {"model": "fake", "input": f"fake: fault={fault} {secret}", "stream": True}
            )
            service.post("/v1/messages", chat(f"fake: fault={fault} {secret}", max_tokens=9, system=secret))
            service.post("/v1/completions", {"model": "fake", "prompt": f"fake: fault={fault} {secret}"})
        service.post("/v1/chat/completions", chat() | {"model": secret})
        url = {"type": "image_url", "image_url": {"url": f"http://{secret}/"}}
        service.post("/v1/chat/completions", chat(messages=[{"role": "user", "content": [url]}]))
        service.post("/v1/chat/completions", f'{{"model": "fake", "messages": ["{secret}"'.encode())
        service.post(f"/v1/{secret}", chat())
        service.get(f"/v1/models/{secret}", key=service.key)
        exchange(service, head(service, "content-length: 1", f"content-length: {secret}"), b"x")
        exchange(service, head(service, f"idempotency-key: {secret * 20}", f"x-chat-id: {secret}"), b"x")
        service.wait_rows(35)
        lines = [json.loads(line) for line in service.gateway.log.read_text().splitlines()]
        failed = {line["outcome"]: line for line in lines if line["message"] == "a request failed"}
        assert set(failed) == {"engine_failed", "engine_error", "truncated"}
        assert failed["engine_failed"]["request_id"] in {row["request_id"] for row in service.rows()}
        assert secret not in service.gateway.log.read_text()
        assert secret not in service.get("/metrics").body.decode()
    for file in (tmp_path / "log").glob("appliance.sqlite*"):
        assert secret.encode() not in file.read_bytes()
