"""Loads without a request, unloads of unused models, and engines that differ after a wake."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.conftest import wait_until
from tests.gateway.running.conftest import create_key, metric
from tests.gateway.running.test_swap import ask, state, two_models

EAGER = {"default": "a", "return_s": 0.3}


def test_the_default_model_is_loaded_at_the_start_and_returns_after_another_one(tmp_path: Path) -> None:
    with two_models(tmp_path / "default", EAGER) as service:
        wait_until(lambda: state(service, "ea") == "ready", "the default is loaded", 30)
        assert ask(service, "b").status == 200
        wait_until(lambda: metric(service, "swaps_total") == 3, "the default is loaded again", 30)
        wait_until(lambda: state(service, "ea") == "ready", "it is ready", 10)
        assert state(service, "eb") == "stopped"


def test_a_default_model_that_cannot_be_loaded_leaves_the_others_serving(tmp_path: Path) -> None:
    with two_models(tmp_path / "broken", EAGER, first={"options": {"fail-load": 1}}) as service:
        wait_until(lambda: state(service, "ea") == "failed", "the load fails", 30)
        assert ask(service, "b").status == 200
        assert "a could not be loaded" in ask(service, "a").json["error"]["message"]
        assert ask(service, "b").status == 200


@pytest.mark.parametrize(("sleep", "after"), [(False, "stopped"), (True, "asleep")])
def test_an_unused_model_is_unloaded_and_loads_again(tmp_path: Path, sleep: bool, after: str) -> None:
    with two_models(tmp_path / "idle", {"unload_idle_s": 0.3}, first={"sleep": sleep}) as service:
        assert ask(service, "a").status == 200
        wait_until(lambda: state(service, "ea") == after, "a is unloaded", 30)
        assert ask(service, "a").status == 200
        assert metric(service, "swap_failures_total") == 0


def test_an_engine_with_other_text_after_its_wake_is_started_anew(tmp_path: Path) -> None:
    first = {"sleep": True, "options": {"bad-wake": 1}}
    with two_models(tmp_path / "noise", first=first) as service:
        whole = ask(service, "a").json["choices"][0]["message"]["content"]
        assert ask(service, "b").status == 200
        assert ask(service, "a").json["choices"][0]["message"]["content"] == whole
        log = service.gateway.log.read_text()
        assert "ea generates other text after its wake than after its load; it is started anew" in log
        assert metric(service, "swap_failures_total") == 1
        assert metric(service, "swaps_total") == 3


def test_an_engine_with_the_same_text_after_its_wake_is_kept(tmp_path: Path) -> None:
    with two_models(tmp_path / "same", first={"sleep": True}) as service:
        for model in "aba":
            assert ask(service, model).status == 200
        assert "other text" not in service.gateway.log.read_text()
        assert metric(service, "swap_failures_total") == 0


def test_the_model_of_a_user_that_appears_is_loaded_before_a_request(tmp_path: Path) -> None:
    with two_models(tmp_path / "appears", {"preload_absent_s": 0.2}) as service:
        bob = create_key(service, "bob")
        assert ask(service, "b").status == 200
        body = {"model": "a", "messages": [{"role": "user", "content": "hi"}]}
        assert service.post("/v1/chat/completions", body, key=bob).status == 200
        assert state(service, "eb") == "stopped"
        rest = threading.Event()
        rest.wait(0.25)
        assert service.get("/v1/models", key=service.key).status == 200
        wait_until(lambda: state(service, "eb") == "ready", "b is loaded for ada", 30)
        assert metric(service, "swaps_total") == 3


def test_without_the_setting_a_user_that_appears_loads_nothing(tmp_path: Path) -> None:
    with two_models(tmp_path / "nothing") as service:
        assert ask(service, "b").status == 200
        assert ask(service, "a").status == 200
        assert service.get("/v1/models", key=service.key).status == 200
        assert ask(service, "a").status == 200
        assert state(service, "eb") == "stopped"
