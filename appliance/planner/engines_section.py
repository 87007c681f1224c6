"""The engines section of a site's TOML, from a plan.

Pure: text in, text out. Only ``[engines…]`` tables are replaced; comments and all other tables do not change. The
user's settings on the engine of the same model (options, command, timeouts) are kept.
"""

from __future__ import annotations

import json
import re
from math import ceil

from appliance.contract.model import Engine, Site
from appliance.errors import UsageError
from appliance.planner.placement import Place, Placement, Plan

FIRST_PORT = 8101
MASTER_PORT: int = Engine.model_fields["master_port"].default
PORT_STEP = 10
KEPT = (
    "command",
    "shutdown_timeout_s",
    "start_timeout_s",
    "canary_timeout_s",
    "gpu_memory_utilization",
    "skip_recipes",
)
MAX_CONCURRENCY = 256
EMBED_CONCURRENCY = 8


def engines_section(plan: Plan, site: Site) -> str:
    """Return the ``[engines.*]`` tables of ``plan``; :class:`UsageError` for a plan with a card through Vulkan.

    The replicas of a model on one host are one engine. Each copy over several hosts is an engine with ``nodes``.
    """
    if not plan.writable:
        raise UsageError(f"{plan.title} cannot be written: it uses a card through Vulkan; take another alternative")
    tables = []
    names: set[str] = set()
    ports: set[tuple[str, int]] = {(host, site.gateway.port) for host in site.hosts}
    for part in plan.parts:
        old_name, old = _old(site, part.candidate.model.name)
        for copies in _engines(part, old):
            machine = copies[0][0][0]
            name = _free_name(old_name or _name(part.candidate.model.name), names)
            port = old.port if old is not None else FIRST_PORT
            while any((machine, port + step) in ports for step in range(len(copies))):
                port += PORT_STEP
            ports |= {(machine, port + step) for step in range(len(copies))}
            table = _table(name, part, copies=copies, port=port, site=site, old=old)
            if len(copies[0]) > 1:
                master = MASTER_PORT if old is None else old.master_port
                while {(machine, master), (machine, master + 1)} & ports:
                    master += 2
                ports |= {(machine, master), (machine, master + 1)}
                table += f"master_port = {master}\n" if master != MASTER_PORT else ""
            tables.append(table)
    return "\n".join(tables)


def _engines(part: Placement, old: Engine | None) -> list[list[Place]]:
    """Return the places of each engine. The host of the ``old`` one stays the first of its nodes."""
    on_one: dict[str, list[Place]] = {}
    spanning = []
    for place in part.places:
        if len(place) == 1:
            on_one.setdefault(place[0][0], []).append(place)
        else:
            spanning.append([tuple(sorted(place, key=lambda one: old is not None and one[0] != old.host))])
    return [*on_one.values(), *spanning]


def _old(site: Site, model: str) -> tuple[str | None, Engine | None]:
    """Return the name of the engine that serves ``model`` in ``site``, and the engine."""
    return next(((name, engine) for name, engine in site.engines.items() if engine.model == model), (None, None))


def _free_name(name: str, names: set[str]) -> str:
    found, number = name, 1
    while found in names:
        number += 1
        found = f"{name}-{number}"
    names.add(found)
    return found


def _name(model: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-.")[:60] or "engine"


def _table(
    name: str,
    part: Placement,
    *,
    copies: list[Place],
    port: int,
    site: Site,
    old: Engine | None,
) -> str:
    candidate, nodes = part.candidate, [machine for machine, _ in copies[0]]
    gpus = {machine: sorted(gpu.index for gpu in site.hosts[machine].gpus) for machine in nodes}
    lines = [f"[engines.{json.dumps(name)}]" if "." in name else f"[engines.{name}]"]
    if candidate.kind == "experts in RAM":
        lines.append('kind = "llamacpp"')
    lines += [*_hosts(nodes, old), f"model = {json.dumps(candidate.model.name)}"]
    if candidate.card is None:
        lines.append('device = "cpu"')
    else:
        used = [gpus[machine][index] for place in copies for machine, cards in place for index in cards]
        lines.append(f"gpus = {used}")
    if len(copies) > 1:
        lines.append(f"replicas = {len(copies)}")
    if candidate.layout.tp > 1:
        lines.append(f"tensor_parallel = {candidate.layout.tp}")
    if candidate.layout.pp > 1:
        lines.append(f"pipeline_parallel = {candidate.layout.pp}")
    slots = max(1, min(MAX_CONCURRENCY, ceil(max(candidate.in_flight, part.load * 1.5))))
    if candidate.model.shape.pooling:
        slots = old.concurrency if old is not None else EMBED_CONCURRENCY
    lines += [f"context = {candidate.model.context}", f"concurrency = {slots}", f"port = {port}"]
    lines += _kept(old, candidate.kind, candidate.card is None)
    flags = (
        dict(old.options)
        if old is not None and (old.kind == "llamacpp") == (candidate.kind == "experts in RAM")
        else {}
    )
    flags.pop("enable-expert-parallel", None)
    if candidate.layout.ep:
        flags["enable-expert-parallel"] = True
    if candidate.kind == "experts in RAM" and candidate.workload is not None:
        flags["n-cpu-moe"] = ceil(candidate.workload.cpu_expert_share * candidate.model.shape.moe_layers)
    if flags:
        lines.append("options = { " + ", ".join(f"{key} = {_value(value)}" for key, value in flags.items()) + " }")
    if old is not None and old.environment:
        pairs = ", ".join(f"{key} = {json.dumps(value)}" for key, value in old.environment.items())
        lines.append(f"environment = {{ {pairs} }}")
    return "\n".join(lines) + "\n"


def _hosts(nodes: list[str], old: Engine | None) -> list[str]:
    lines = [f"host = {json.dumps(nodes[0])}"]
    if len(nodes) > 1:
        lines.append(f"nodes = {json.dumps(nodes)}")
        if old is not None and old.distributed != "native":
            lines.append(f"distributed = {json.dumps(old.distributed)}")
    return lines


def _kept(old: Engine | None, kind: str, cpu: bool) -> list[str]:
    if old is None:
        return []
    lines = []
    for key in KEPT:
        value = getattr(old, key)
        if value == Engine.model_fields[key].default or (key == "command" and kind == "experts in RAM"):
            continue
        lines.append(f"{key} = {_value(value)}")
    if cpu and old.kv_cache_gib != Engine.model_fields["kv_cache_gib"].default:
        lines.append(f"kv_cache_gib = {old.kv_cache_gib}")
    return lines


def _value(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(str(key))} = {_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return json.dumps(value)


def replace_engines(text: str, section: str) -> str:
    """Return ``text`` with ``section`` in place of its first ``[engines…]`` table, and without the other ones."""
    lines = text.splitlines(keepends=True)
    kept: list[str] = []
    place: int | None = None
    inside = False
    for line in lines:
        header = re.match(r"\s*\[\[?\s*([A-Za-z0-9_\"'-]+)", line)
        if header is not None:
            inside = header.group(1).strip("\"'") == "engines"
            if inside and place is None:
                place = len(kept)
        if not inside:
            kept.append(line)
        elif line.startswith("#"):
            # A comment without indentation belongs to the next table.
            kept.append(line)
    if place is None:
        return text.rstrip("\n") + "\n\n" + section
    before, after = "".join(kept[:place]), "".join(kept[place:])
    return before + section + ("\n" if after else "") + after
