"""The scenarios: from parameters and a seed to requests. Pure; responses do not change the requests.

In a closed loop each user waits for the response: ``turns`` yields one user's requests without end. In an open loop
requests arrive by a schedule: ``arrivals`` yields the requests of all users in the order of their times.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from loadtests.parameters import Parameters
from loadtests.token_costs import TokenCosts


@dataclass(frozen=True, slots=True)
class Turn:
    """One request to send; ``fresh`` begins a new chat, otherwise the earlier turns of ``chat`` precede it."""

    user: int
    text: str
    prompt_tokens: int
    max_tokens: int
    chat: str = ""
    fresh: bool = True
    system: str = ""
    kind: str = "chat"
    stream: bool = True
    cancel_after: int | None = None
    think_s: float = 0.0
    model: int = 0
    at_s: float | None = None


Turns = Callable[[Parameters, TokenCosts, int], Iterator[Turn]]
Arrivals = Callable[[Parameters, TokenCosts], Iterator[Turn]]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A load by name; ``turns`` in a closed loop, ``arrivals`` in an open one."""

    name: str
    text: str
    defaults: Parameters
    turns: Turns | None = None
    arrivals: Arrivals | None = None
    models: int = 1

    @property
    def open_loop(self) -> bool:
        """Whether requests are sent by a schedule, without waiting for responses."""
        return self.arrivals is not None


def _rng(parameters: Parameters, *names: object) -> random.Random:
    # A string is the same seed in every process; with numbers, users of adjacent seeds would be similar.
    return random.Random("/".join(map(str, (parameters.seed, *names))))  # noqa: S311 - repeatable on purpose


def shared_prefix(parameters: Parameters, token_costs: TokenCosts) -> str:
    """Return the system prompt of all users."""
    if not parameters.prefix_tokens:
        return ""
    return token_costs.text(_rng(parameters, "prefix"), parameters.prefix_tokens)


def chats(parameters: Parameters, token_costs: TokenCosts, user: int) -> Iterator[Turn]:
    """Yield chats of ``turns`` turns, one after the other; some are cancelled midway."""
    rng = _rng(parameters, "chats", user)
    system = shared_prefix(parameters, token_costs)
    number = 0
    while True:
        for turn in range(parameters.turns):
            tokens = rng.randint(*parameters.prompt_tokens)
            wanted = rng.randint(*parameters.output_tokens)
            cancel = rng.random() < parameters.cancel_share
            yield Turn(
                user,
                token_costs.text(rng, tokens),
                prompt_tokens=tokens + parameters.prefix_tokens + round(token_costs.overhead),
                max_tokens=wanted,
                chat=f"load-{parameters.seed}-{user}-{number}",
                fresh=turn == 0,
                system=system,
                cancel_after=rng.randint(1, max(1, wanted // 2)) if cancel else None,
                think_s=rng.uniform(*parameters.think_s),
            )
        number += 1


def completions(parameters: Parameters, token_costs: TokenCosts, user: int) -> Iterator[Turn]:
    """Yield the requests of an editor: the beginning of a file, to be completed."""
    rng = _rng(parameters, "completions", user)
    while True:
        tokens = rng.randint(*parameters.prompt_tokens)
        text = token_costs.code(rng, tokens)
        think = rng.uniform(*parameters.think_s)
        yield Turn(
            user,
            text,
            prompt_tokens=tokens,
            max_tokens=rng.randint(*parameters.output_tokens),
            kind="completion",
            think_s=think,
        )


def swapping(parameters: Parameters, token_costs: TokenCosts, user: int) -> Iterator[Turn]:
    """Yield chats that change between two models every ``swap_after`` requests."""
    for number, turn in enumerate(chats(parameters, token_costs, user)):
        yield replace(turn, model=number // parameters.swap_after % 2)


def mixed(parameters: Parameters, token_costs: TokenCosts, user: int) -> Iterator[Turn]:
    """Yield a mixed load: of ten users five chat, two query documents, one edits, one automates, one cancels."""
    place = user % 10
    if place < 5:
        return chats(parameters.model_copy(update={"turns": 5, "prefix_tokens": 300}), token_costs, user)
    if place < 7:
        return chats(parameters.model_copy(update={"prompt_tokens": (2048, 4096)}), token_costs, user)
    if place == 7:
        return completions(parameters.model_copy(update={"prompt_tokens": (256, 768)}), token_costs, user)
    if place == 8:
        return (replace(turn, stream=False) for turn in chats(parameters, token_costs, user))
    return chats(parameters.model_copy(update={"cancel_share": 0.3}), token_costs, user)


def poisson(parameters: Parameters, token_costs: TokenCosts, *, first_user: int = 0) -> Iterator[Turn]:
    """Yield arrivals at ``rate`` per second with exponential gaps, of random users."""
    rng = _rng(parameters, "poisson")
    users = range(first_user, max(first_user + 1, parameters.users))
    streams = {user: chats(parameters.model_copy(update={"turns": 1}), token_costs, user) for user in users}
    at = 0.0
    while True:
        at += rng.expovariate(parameters.rate)
        user = rng.choice(users)
        yield replace(next(streams[user]), at_s=at, think_s=0.0)


def bursts(parameters: Parameters, token_costs: TokenCosts) -> Iterator[Turn]:
    """Yield bursts of ``burst`` requests without streaming by user 0, and Poisson chats of the others."""
    people = poisson(parameters, token_costs, first_user=1)
    automation = chats(parameters.model_copy(update={"turns": 1}), token_costs, 0)
    person = next(people)
    number = 0
    while True:
        at = number * parameters.burst_every_s
        while (person.at_s or 0.0) < at:
            yield person
            person = next(people)
        for _ in range(parameters.burst):
            yield replace(next(automation), at_s=at, stream=False, think_s=0.0)
        number += 1


def _all() -> Iterator[Scenario]:
    p = Parameters
    yield Scenario(
        "smoke",
        "a few short chats: the load of the smoke test after boot",
        defaults=p(users=4, requests=5, duration_s=None, output_tokens=(32, 32), ignore_eos=False),
        turns=chats,
    )
    yield Scenario("chat", "short prompts, short responses", defaults=p(users=8, duration_s=60), turns=chats)
    yield Scenario(
        "rag",
        "prompts of 4k to 16k tokens: documents with a short instruction",
        defaults=p(users=4, duration_s=120, prompt_tokens=(4096, 16384), output_tokens=(64, 256)),
        turns=chats,
    )
    yield Scenario(
        "multiturn",
        "chats of 6 turns with one long system prompt, as a prefix cache expects",
        defaults=p(users=16, duration_s=120, turns=6, prefix_tokens=1024, think_s=(0.5, 2)),
        turns=chats,
    )
    yield Scenario(
        "code",
        "an editor's completions on /v1/completions: long prompts, few tokens",
        defaults=p(users=8, duration_s=60, prompt_tokens=(256, 1536), output_tokens=(8, 48), think_s=(0.2, 1)),
        turns=completions,
    )
    yield Scenario(
        "n8n",
        "bursts of an automation without streaming, and chats of other users",
        p(users=6, duration_s=60, rate=1),
        arrivals=bursts,
    )
    yield Scenario(
        "cancels",
        "one of ten requests is cancelled midway",
        defaults=p(users=16, duration_s=60, cancel_share=0.1),
        turns=chats,
    )
    yield Scenario(
        "swap",
        "users that change from one model to the other while others wait (needs --model twice)",
        defaults=p(users=8, duration_s=180, timeout_s=600, think_s=(0, 1)),
        turns=swapping,
        models=2,
    )
    yield Scenario(
        "users100",
        "100 users in a closed loop, each with a pause before a request",
        defaults=p(users=100, duration_s=180, ramp_s=10, think_s=(1, 3), turns=3),
        turns=chats,
    )
    yield Scenario(
        "chats200",
        "200 open chats with history, think time and one system prompt",
        defaults=p(
            users=200,
            duration_s=300,
            ramp_s=20,
            turns=8,
            prefix_tokens=256,
            think_s=(3, 12),
            prompt_tokens=(40, 250),
            output_tokens=(64, 256),
        ),
        turns=chats,
    )
    yield Scenario(
        "poisson", "an open loop: Poisson arrivals at --rate", p(users=50, duration_s=120, rate=2), arrivals=poisson
    )
    yield Scenario(
        "soak",
        "an hour of a mixed load; reports whether latency grows",
        defaults=p(users=40, duration_s=3600, warmup_s=60, ramp_s=30, think_s=(1, 5)),
        turns=mixed,
    )


SCENARIOS = {scenario.name: scenario for scenario in _all()}
