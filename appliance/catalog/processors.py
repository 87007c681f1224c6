"""Processors: their figures, and the search for a processor by any of its names."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from appliance.catalog.names import normalise
from appliance.catalog.shipped import read_table
from appliance.contract.violation import suggest
from appliance.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """A processor that holds experts or small models in RAM."""

    name: str
    memory_gb_s: float
    bf16_tflops: float
    """TFLOPS of all cores together in large GEMMs."""
    aliases: tuple[str, ...] = ()


@cache
def cpus() -> dict[str, Cpu]:
    """Return the processors of the catalog by name."""
    return {
        name: Cpu(name=name, **figures | {"aliases": tuple(figures.get("aliases", ()))})
        for name, figures in read_table("cpus.toml", "cpus").items()
    }


def find_cpu(name: str) -> Cpu:
    """Return the processor with ``name``: its name in the catalog, or an alias.

    Raises :class:`UsageError` if the name matches none.
    """
    wanted = normalise(name)
    for cpu in cpus().values():
        if wanted in {normalise(cpu.name), *map(normalise, cpu.aliases)}:
            return cpu
    raise UsageError(f"processor {name!r} is not in the catalog; {suggest(name, list(cpus()))}")
