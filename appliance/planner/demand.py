"""The demand on a site: how many people use which models, at which pace, within which SLO."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.errors import UsageError
from appliance.planner.bounds import check_range
from appliance.planner.hardware import MAX_CARDS, MAX_MACHINES, HardwareSpec
from appliance.planner.models import ModelDemand

MAX_USERS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """People and their pace. Each open chat sends its next message ``think_s`` after the last answer
    ended."""

    users: int
    chats: int
    think_s: float
    models: tuple[ModelDemand, ...]
    prefix_hit: float = 0.5
    """Share of a prompt that earlier turns of the same chat left in the cache."""
    ttft_slo_s: float = 2.0
    tpot_slo_s: float = 0.1

    @property
    def requests_per_s(self) -> float:
        """Requests per second if answers took no time: the most that can arrive."""
        return self.chats / self.think_s


def check_demand(machines: tuple[HardwareSpec, ...], demand: Demand) -> None:
    """One line with the nearest valid value for what cannot be."""
    check_range("users", demand.users, 1, MAX_USERS)
    check_range("chats", demand.chats, 1, MAX_USERS)
    check_range("think time", demand.think_s, 0.1, 86400)
    check_range("machines", len(machines), 1, MAX_MACHINES)
    check_range("prefix hit share", demand.prefix_hit, 0, 1)
    for machine in machines:
        if len(machine.cards) > MAX_CARDS:
            raise UsageError(
                f"{machine.name} has {len(machine.cards)} cards; nearest valid: {MAX_CARDS} per machine"
            )
        check_range(f"RAM of {machine.name}", machine.ram_gib, 1, 65536)
    if not demand.models:
        raise UsageError("no model is asked for; name one with --model")
    total = sum(model.share for model in demand.models)
    if not 0.999 <= total <= 1.001:
        raise UsageError(f"the shares add up to {total:g}; nearest valid: divide each by {total:g}")
    for model in demand.models:
        check_range(f"share of {model.name}", model.share, 0, 1)
        check_range(f"prompt of {model.name}", model.prompt, 1, 16_777_216)
        check_range(f"answer of {model.name}", model.response, 1, 16_777_216)
        limit = model.shape.max_context
        if model.context > limit:
            raise UsageError(
                f"context {model.context} is more than the {limit} of {model.shape.name}; nearest: {limit}"
            )
        if model.prompt + model.response > model.context:
            raise UsageError(
                f"prompt and answer of {model.name} come to {model.prompt + model.response:.0f} tokens, its "
                "context holds "
                f"{model.context}; nearest: context {int(model.prompt + model.response)}"
            )
