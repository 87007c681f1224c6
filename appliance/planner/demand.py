"""The demand on a site: its users, their chats, their pace, the models they use, and the SLO."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.errors import UsageError
from appliance.planner.bounds import check_range
from appliance.planner.hardware import MAX_CARDS, MAX_MACHINES, HardwareSpec
from appliance.planner.models import ModelDemand

MAX_USERS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Users and their pace: an open chat sends its next message ``think_s`` after the end of the last response."""

    users: int
    chats: int
    think_s: float
    models: tuple[ModelDemand, ...]
    prefix_hit: float = 0.5
    """Share of a prompt in the cache, from earlier turns of the same chat."""
    ttft_slo_s: float = 2.0
    tpot_slo_s: float = 0.1

    @property
    def requests_per_s(self) -> float:
        """Requests per second if responses took no time: the highest possible rate."""
        return self.chats / self.think_s


def check_demand(machines: tuple[HardwareSpec, ...], demand: Demand) -> None:
    """Raise :class:`UsageError`, one line with the nearest valid value, for an impossible figure."""
    check_range("users", demand.users, low=1, high=MAX_USERS)
    check_range("chats", demand.chats, low=1, high=MAX_USERS)
    check_range("think time", demand.think_s, low=0.1, high=86400)
    check_range("machines", len(machines), low=1, high=MAX_MACHINES)
    check_range("prefix hit share", demand.prefix_hit, low=0, high=1)
    for machine in machines:
        if len(machine.cards) > MAX_CARDS:
            raise UsageError(
                f"{machine.name} has {len(machine.cards)} cards; nearest valid: {MAX_CARDS} per machine"
            )
        check_range(f"RAM of {machine.name}", machine.ram_gib, low=1, high=65536)
    if not demand.models:
        raise UsageError("the demand names no model; name one with --model")
    total = sum(model.share for model in demand.models)
    if not 0.999 <= total <= 1.001:
        raise UsageError(f"the shares add up to {total:g}; nearest valid: divide each by {total:g}")
    for model in demand.models:
        check_range(f"share of {model.name}", model.share, low=0, high=1)
        check_range(f"prompt of {model.name}", model.prompt, low=1, high=16_777_216)
        check_range(f"response of {model.name}", model.response, low=1, high=16_777_216)
        limit = model.shape.max_context
        if model.context > limit:
            raise UsageError(
                f"context {model.context} is more than the {limit} of {model.shape.name}; nearest: {limit}"
            )
        if model.prompt + model.response > model.context:
            raise UsageError(
                f"prompt and response of {model.name} are {model.prompt + model.response:.0f} tokens, its context "
                f"holds {model.context}; nearest: context {int(model.prompt + model.response)}"
            )
