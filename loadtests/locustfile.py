"""The smoke scenario for Locust: short streamed chats, each judged whole.

``appliance smoke`` runs it headless; ``locust -f loadtests/locustfile.py --host URL`` shows Locust's own page
(set APPLIANCE_API_KEY and APPLIANCE_MODEL first).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from locust import User, events, task
from locust.exception import StopUser

from appliance.config import Smoke
from loadtests.client import Target, ask
from loadtests.report import summarise
from loadtests.sample import Sample

SMOKE = Smoke.model_validate_json(os.environ.get("APPLIANCE_SMOKE", "{}"))
REPORT = os.environ.get("APPLIANCE_REPORT")
SAMPLES: list[Sample] = []
TOPICS = ("the sea", "a bridge", "bread", "the night sky", "a small garden", "trains", "snow", "an old clock")


class ChatUser(User):
    """One user who asks, reads the answer to its end, and asks again."""

    finished = 0

    def on_start(self) -> None:
        """Know where to ask."""
        key, model = os.environ.get("APPLIANCE_API_KEY", ""), os.environ.get("APPLIANCE_MODEL", "")
        self.target = Target(self.host or "http://127.0.0.1:8000", key, model)
        self.asked = 0

    @task
    def chat(self) -> None:
        """One chat; fires one Locust event per metric, failures under the name of their cause."""
        topic = TOPICS[(id(self) // 64 + self.asked) % len(TOPICS)]
        sample = ask(self.target, f"Write two sentences about {topic}.", SMOKE.max_tokens)
        SAMPLES.append(sample)
        self._fire("E2E", sample.e2e, len("".join(sample.text)), sample.cause)
        if not sample.cause:
            self._fire("TTFT", sample.ttft, 0, "")
            self._fire("TPOT", sample.tpot, 0, "")
            self._fire("max ITL", sample.max_itl, 0, "")
        self.asked += 1
        if REPORT is not None and self.asked >= SMOKE.requests_per_user:
            ChatUser.finished += 1
            if ChatUser.finished >= SMOKE.users:
                self.environment.runner.quit()
            raise StopUser

    def _fire(self, name: str, seconds: float | None, length: int, cause: str) -> None:
        if seconds is not None:
            self.environment.events.request.fire(
                request_type="chat",
                name=name,
                response_time=1000 * seconds,
                response_length=length,
                exception=RuntimeError(cause) if cause else None,
            )


@events.quitting.add_listener
def judge(environment: Any, **_: object) -> None:
    """Write the report and let Locust exit by it."""
    report = summarise(SAMPLES, SMOKE.slo)
    environment.process_exit_code = report.exit_code
    if REPORT is not None:
        Path(REPORT).write_text(report.to_json())
