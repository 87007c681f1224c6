"""The scenarios under Locust: ``appliance loadtest`` and ``appliance smoke`` run this file headless, and

    APPLIANCE_API_KEY=sk-... locust -f loadtests/locustfile.py --host http://gateway:8000 --model qwen3-30b

shows the same load on Locust's own page, which offers the scenarios. There every request is listed once as E2E. A
failed request has its cause, a good one also its TTFT, TPOT and longest ITL.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
from locust import User, events, task
from locust.exception import StopUser
from locust.runners import MasterRunner

from loadtests.client import Target
from loadtests.outcome import NOT_ERRORS, Cause
from loadtests.parameters import LoadPlan, Parameters
from loadtests.recorder import SLEEP_S, Recorder
from loadtests.report import INTERRUPTED, summarise
from loadtests.sample import Sample
from loadtests.scenarios import SCENARIOS, Scenario, Turn
from loadtests.session import Session
from loadtests.token_costs import TokenCosts

PLAN = os.environ.get("APPLIANCE_LOADTEST")
KEYS = os.environ.get("APPLIANCE_API_KEY", "").split() or [""]


class SharedLoad:
    """State shared by all users of one test."""

    def __init__(self, plan: LoadPlan, environment: Any) -> None:
        self.plan = plan
        self.scenario: Scenario = SCENARIOS[plan.scenario]
        self.token_costs: TokenCosts = plan.token_costs
        self.environment = environment
        self.started = self.finished = 0
        # On Locust's page a test runs until its user stops it.
        self.by_hand = PLAN is None
        samples = os.environ.get("APPLIANCE_SAMPLES")
        self.recorder = Recorder(plan.parameters, Path(samples) if samples else None)

    def target(self, user: int, host: str | None) -> Target:
        """Return the target of user number ``user``; users take the keys in turn."""
        parameters = self.plan.parameters
        key = KEYS[user % len(KEYS)]
        return Target(
            host or "http://127.0.0.1:8000", key, timeout_s=parameters.timeout_s, stall_s=parameters.stall_s
        )

    def record(self, sample: Sample) -> None:
        """Record a sample and report it to Locust."""
        sample.warmup = sample.warmup or self.recorder.warming_up(sample.began_at)
        self.recorder.record(sample)
        failed = sample.cause and sample.cause not in NOT_ERRORS
        self._fire("E2E", sample.e2e, length=sample.completion_tokens or 0, cause=sample.cause if failed else "")
        if sample.good:
            for name, seconds in (("TTFT", sample.ttft), ("TPOT", sample.tpot), ("max ITL", sample.gaps.longest)):
                self._fire(name, seconds, length=0, cause="")

    def _fire(self, name: str, seconds: float | None, length: int, cause: str) -> None:
        if seconds is not None:
            self.environment.events.request.fire(
                request_type=self.plan.scenario,
                name=name,
                response_time=1000 * seconds,
                response_length=length,
                exception=RuntimeError(cause) if cause else None,
            )

    def watch(self) -> None:
        """Measure the lag of this process until the end."""
        while True:
            before = time.monotonic()
            gevent.sleep(SLEEP_S)
            self.recorder.slept(SLEEP_S, time.monotonic() - before)


class ScenarioUser(User):
    """One user of a closed loop; in an open loop the first user sends the requests of all."""

    def on_start(self) -> None:
        """Take a number; number and seed determine the requests of this user."""
        load: SharedLoad = self.environment.load
        self.load, self.number = load, load.started
        load.started += 1
        load.recorder.begin()
        load.recorder.users += 1
        self.session = Session(load.target(self.number, self.host), load.plan.parameters, load.plan.models)
        self.sent = 0
        if not load.scenario.open_loop and load.scenario.turns is not None:
            self.turns = load.scenario.turns(load.plan.parameters, load.token_costs, self.number)

    def on_stop(self) -> None:
        """Close the connection."""
        self.load.recorder.users -= 1
        self.session.close()

    @task
    def run_turn(self) -> None:
        """Send one request of a closed loop, or all requests of an open one."""
        load, parameters = self.load, self.load.plan.parameters
        if load.scenario.arrivals is not None:
            if self.number == 0:
                _send_arrivals(load, self.host, load.scenario.arrivals(parameters, load.token_costs))
            self._finish(all_users=self.number == 0)
        if self._done(parameters):
            self._finish()
        turn = next(self.turns)
        gevent.sleep(turn.think_s)
        if load.recorder.over and not load.by_hand:
            self._finish()
        load.recorder.in_flight += 1
        try:
            sample = self.session.send(turn)
        finally:
            load.recorder.in_flight -= 1
        load.record(sample)
        self.sent += not sample.warmup
        if sample.status == 0 or sample.status >= 400:
            # A rejected request returns at once; an immediate retry would change the load.
            gevent.sleep(0.1)

    def _done(self, parameters: Parameters) -> bool:
        enough = parameters.requests is not None and self.sent >= parameters.requests
        return not self.load.by_hand and (enough or self.load.recorder.over)

    def _finish(self, *, all_users: bool = False) -> None:
        load = self.load
        load.finished += 1
        if not load.by_hand and (all_users or load.finished >= load.plan.parameters.users):
            load.recorder.end()
            # In a greenlet of its own: quitting kills the greenlets of all users, this one too.
            gevent.spawn(self.environment.runner.quit)
        raise StopUser


def _send_arrivals(load: SharedLoad, host: str | None, arrivals: Iterator[Turn]) -> None:
    """Send each request at its time, without waiting for earlier ones; wait for all at the end."""
    parameters, recorder = load.plan.parameters, load.recorder
    idle: dict[int, list[Session]] = {}
    running: set[gevent.Greenlet] = set()
    sent = 0

    def one(turn: Turn, at: float) -> None:
        waiting = idle.setdefault(turn.user, [])
        session = waiting.pop() if waiting else Session(load.target(turn.user, host), parameters, load.plan.models)
        recorder.in_flight += 1
        try:
            load.record(session.send(turn, scheduled_at=at))
        finally:
            recorder.in_flight -= 1
        waiting.append(session)

    for turn in arrivals:
        at = recorder.began + (turn.at_s or 0.0)
        if not load.by_hand and parameters.duration_s is not None and (turn.at_s or 0.0) >= parameters.duration_s:
            break
        gevent.sleep(max(0.0, at - time.monotonic()))
        if recorder.in_flight >= parameters.max_in_flight:
            model = load.plan.models[turn.model % len(load.plan.models)]
            now = time.monotonic()
            load.record(Sample(now, turn.user, model, scheduled_at=at, ended_at=now, cause=Cause.CLIENT_LIMIT))
            continue
        greenlet = gevent.spawn(one, turn, at)
        running.add(greenlet)
        greenlet.link(running.discard)
        sent += not recorder.warming_up(at)
        if not load.by_hand and parameters.requests is not None and sent >= parameters.requests:
            break
    gevent.joinall(list(running))
    for sessions in idle.values():
        for session in sessions:
            session.close()


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """Add the options of Locust's own page."""
    parser.add_argument(
        "--scenario", default="chat", choices=sorted(SCENARIOS), help="which load", env_var="APPLIANCE_SCENARIO"
    )
    parser.add_argument(
        "--model", default="", help="model to request; two with a comma to swap", env_var="APPLIANCE_MODEL"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the prompts", env_var="APPLIANCE_SEED")


@events.test_start.add_listener
def start(environment: Any, **_: object) -> None:
    """Create the load from the given plan, or from the options of Locust's page."""
    if isinstance(environment.runner, MasterRunner):
        return
    if PLAN is not None:
        plan = LoadPlan.model_validate_json(PLAN)
    else:
        options = environment.parsed_options
        parameters = SCENARIOS[options.scenario].defaults.model_copy(update={"seed": options.seed})
        plan = LoadPlan(scenario=options.scenario, parameters=parameters, models=tuple(options.model.split(",")))
    environment.load = SharedLoad(plan, environment)
    environment.watch = gevent.spawn(environment.load.watch)


@events.test_stop.add_listener
def stop(environment: Any, **_: object) -> None:
    """Stop the watcher with the test."""
    if hasattr(environment, "watch"):
        environment.watch.kill()


@events.quitting.add_listener
def judge(environment: Any, **_: object) -> None:
    """Set Locust's exit code to the verdict, and write the report if a file is named."""
    load: SharedLoad | None = getattr(environment, "load", None)
    if load is None:
        return
    if not load.by_hand and not load.recorder.collector.ended:
        load.recorder.note(INTERRUPTED)
    report = summarise(load.recorder.collector, load.plan)
    environment.process_exit_code = report.exit_code
    if path := os.environ.get("APPLIANCE_REPORT"):
        Path(path).write_text(report.to_json())
