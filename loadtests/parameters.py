"""The parameters of a load: numbers that every scenario has, each a flag of `appliance loadtest`."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from appliance.contract.model import Section, Slo
from loadtests.token_costs import TokenCosts


def _ordered(span: tuple[float, float]) -> tuple[float, float]:
    if span[0] > span[1]:
        raise ValueError(f"the lower end {span[0]:g} is above the upper end {span[1]:g}")
    return span


Tokens = Annotated[
    tuple[Annotated[int, Field(ge=1, le=1_000_000)], Annotated[int, Field(ge=1, le=1_000_000)]],
    AfterValidator(_ordered),
]
Seconds = Annotated[
    tuple[Annotated[float, Field(ge=0, le=86400)], Annotated[float, Field(ge=0, le=86400)]],
    AfterValidator(_ordered),
]


class Parameters(Section):
    """The size of a load. Values are drawn evenly from their span; the same seed draws the same values."""

    users: int = Field(default=8, ge=1, le=10_000, description="users at once")
    requests: int | None = Field(
        default=None,
        ge=1,
        le=10_000_000,
        description="end after so many measured requests of each user (in total, in open loops)",
    )
    duration_s: float | None = Field(
        default=60, gt=0, le=604800, description="seconds for which requests are sent, warm-up included"
    )
    warmup_s: float | None = Field(
        default=None,
        ge=0,
        le=86400,
        description="first seconds that are not measured; a tenth of the duration, 30 at most, when absent",
    )
    ramp_s: float = Field(default=0, ge=0, le=86400, description="seconds over which the users start")
    rate: float = Field(default=2, gt=0, le=100_000, description="requests per second, in open loops")
    prompt_tokens: Tokens = Field(default=(30, 120), description="size of a prompt in tokens")
    output_tokens: Tokens = Field(default=(32, 96), description="tokens requested (max_tokens)")
    think_s: Seconds = Field(default=(0, 0), description="pause of a user before each request, in seconds")
    turns: int = Field(default=1, ge=1, le=1000, description="turns of a chat before a new one begins")
    prefix_tokens: int = Field(
        default=0, ge=0, le=1_000_000, description="system prompt that all users share, in tokens"
    )
    cancel_share: float = Field(
        default=0, ge=0, le=1, description="share of requests that are cancelled before their end"
    )
    burst: int = Field(default=20, ge=1, le=10_000, description="requests that an automation sends at once")
    burst_every_s: float = Field(default=10, gt=0, le=86400, description="seconds between its bursts")
    swap_after: int = Field(
        default=3, ge=1, le=10_000, description="requests of a user before the change to the other model"
    )
    seed: int = Field(default=1, ge=0, description="seed of prompts and arrivals")
    ignore_eos: bool = Field(
        default=True, description="request exactly max_tokens tokens from vLLM (field ignore_eos)"
    )
    temperature: float | None = Field(default=0, ge=0, le=2, description="sampling temperature")
    timeout_s: float = Field(default=120, gt=0, le=86400, description="timeout of a whole response in seconds")
    stall_s: float = Field(default=30, gt=0, le=86400, description="timeout between two tokens in seconds")
    max_in_flight: int = Field(
        default=2000,
        ge=1,
        le=100_000,
        description="open requests of an open loop; above this number the run is invalid",
    )

    @property
    def warmup(self) -> float:
        """Seconds of warm-up; by default 0 if the load ends after a number of requests."""
        if self.warmup_s is not None:
            return self.warmup_s
        if self.duration_s is None or self.requests is not None:
            return 0.0
        return min(30.0, self.duration_s / 10)


class LoadLimits(Section):
    """Limits of the load client; beyond them the client limits the load and the run is invalid."""

    cpu_share: float = Field(default=0.85, gt=0, le=1, description="mean share of a core that the client may use")
    lag_ms: float = Field(
        default=100, gt=0, description="p95 of the longest lag in each second, and p99 of late sending, in ms"
    )


class LoadPlan(Section):
    """The input of the process under Locust; keys are passed separately, in the environment."""

    scenario: str
    parameters: Parameters
    models: tuple[str, ...]
    slo: Slo = Slo()
    limits: LoadLimits = LoadLimits()
    costs: dict[str, float] = Field(default={})
    default_cost: float = 1.3
    overhead: float = 8.0
    code_signs: float = 12.0
    sizing: str = TokenCosts().source

    @property
    def token_costs(self) -> TokenCosts:
        """The token costs of words."""
        return TokenCosts(
            self.costs, self.default_cost, overhead=self.overhead, code_signs=self.code_signs, source=self.sizing
        )

    def sized_by(self, token_costs: TokenCosts) -> LoadPlan:
        """Return the plan with ``token_costs``."""
        return self.model_copy(
            update={
                "costs": dict(token_costs.costs),
                "default_cost": token_costs.default_cost,
                "overhead": token_costs.overhead,
                "code_signs": token_costs.code_signs,
                "sizing": token_costs.source,
            }
        )
