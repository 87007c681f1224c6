from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.catalog.cards import find_card
from appliance.catalog.processors import find_cpu
from appliance.planner.demand import Demand
from appliance.planner.hardware import HardwareSpec, parse_cards
from appliance.planner.layout import Layout
from appliance.planner.models import ModelDemand, parse_model
from appliance.planner.workload import Workload

PRO = "RTX PRO 6000 Blackwell Workstation"
SERVER = "RTX PRO 6000 Blackwell Server"
EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.toml"))

MakeModel = Callable[..., ModelDemand]
MakeMachine = Callable[..., HardwareSpec]


def demand_for(*models: ModelDemand, users: int = 100, chats: int = 200) -> Demand:
    """Return the demand of ``users`` users with ``chats`` chats, a message a minute each, on ``models``."""
    return Demand(users=users, chats=chats, think_s=60.0, models=models)


@pytest.fixture
def workload() -> Callable[..., Workload]:
    """Build a workload on one RTX PRO 6000, by default of Qwen3-30B-A3B in bf16."""

    def build(model: str = "Qwen/Qwen3-30B-A3B", card: str = PRO, **changes: object) -> Workload:
        shape, dtype = parse_model(model)
        values: dict[str, object] = {"input": 1000.0, "output": 500.0, "concurrency": 8.0, "layout": Layout()}
        return Workload(card=find_card(card), shape=shape, precision=dtype, **(values | changes))  # type: ignore[arg-type]

    return build


@pytest.fixture
def model_demand() -> Callable[..., ModelDemand]:
    def build(model: str = "Qwen/Qwen3-30B-A3B", share: float = 1.0, **changes: object) -> ModelDemand:
        shape, dtype = parse_model(model)
        values: dict[str, object] = {"prompt": 2000.0, "response": 400.0, "context": 16384}
        if shape.pooling:
            values = {"prompt": 500.0, "response": 1.0, "context": 8192}
        name = str(changes.pop("name", shape.name.rsplit("/", 1)[-1]))
        return ModelDemand(name=name, shape=shape, precision=dtype, share=share, **(values | changes))  # type: ignore[arg-type]

    return build


@pytest.fixture
def machine() -> Callable[..., HardwareSpec]:
    def build(cards: str = f"1x {PRO}", ram: float = 256, name: str = "gpu", **changes: object) -> HardwareSpec:
        cpu = find_cpu("EPYC 9355")
        return HardwareSpec(name=name, cards=parse_cards(cards), ram_gib=ram, cpu=cpu, **changes)  # type: ignore[arg-type]

    return build
