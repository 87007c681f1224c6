"""The link to the gateway: its view of the replicas, and the changes of drains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from appliance.watch.gpu.drain_link import DrainLink, changes, parse_views
from appliance.watch.gpu.state import ReplicaView

OURS = "gpu-watch: card 0 is too hot"


def engine(state: str = "up", why: str = "", draining: str | None = None) -> dict[str, Any]:
    return {"model": "m", "state": state, "draining": draining, "in_flight": 2, "slots": 8, "why": why}


@pytest.mark.parametrize(
    ("shown", "view"),
    [
        (engine(), ReplicaView(up=True, in_flight=2)),
        (engine("not loaded"), ReplicaView(up=False, loaded=False, in_flight=2)),
        (engine("down", "the engine refuses connections"), ReplicaView(up=False, in_flight=2)),
        (
            engine("down", "the engine did not finish a token in time; see its log"),
            ReplicaView(up=False, timed_out=True, in_flight=2),
        ),
        (engine("up", "the engine did not finish a token in time"), ReplicaView(up=True, in_flight=2)),
    ],
)
def test_a_status_of_the_gateway(shown: dict[str, Any], view: ReplicaView) -> None:
    assert parse_views({"engines": {"chat": shown}}) == {"chat": view}


@pytest.mark.parametrize(
    ("draining", "wanted", "change"),
    [
        (None, OURS, {"chat": OURS}),
        (OURS, OURS, {}),
        (OURS, "gpu-watch: card 0: Xid 79", {"chat": "gpu-watch: card 0: Xid 79"}),
        (OURS, None, {"chat": None}),
        ("the owner's test", None, {}),
        ("the owner's test", OURS, {}),
        (None, None, {}),
    ],
)
def test_only_the_watchdogs_own_drains_change(
    draining: str | None, wanted: str | None, change: dict[str, str | None]
) -> None:
    status = {"engines": {"chat": engine(draining=draining)}}
    assert changes({"chat": wanted} if wanted else {}, status) == change


def test_a_drain_of_a_replica_that_the_gateway_lacks_is_ignored() -> None:
    assert changes({"gone": OURS}, {"engines": {"chat": engine()}}) == {}


def test_without_a_gateway_the_log_has_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    link = DrainLink(tmp_path)
    assert [link.look(), link.look()] == [None, None]
    assert caplog.text.count("the gateway cannot be watched: no gateway responds") == 1
