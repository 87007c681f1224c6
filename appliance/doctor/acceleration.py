"""The acceleration of the engines: tensor parallelism, speculation, attention, and the use of their cards."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from appliance.doctor.context import CheckContext
from appliance.doctor.finding import Finding, fail, ok, unknown, warn
from appliance.doctor.host import CannotLookError, HostReader
from appliance.doctor.nvidia import sysfs_bus
from appliance.doctor.processes import read_process
from appliance.doctor.prometheus import engine_counters, query_number
from appliance.engines.argv import EngineReplica, unit_name

SLOW_BACKENDS = frozenset({"TRITON_ATTN", "FLEX_ATTENTION", "TORCH_SDPA"})
"""Backends that vLLM takes on Blackwell only if the faster ones do not support a model (vllm/platforms/cuda.py)."""

FULL_BATCH = 0.8
"""Share of an engine's ``concurrency`` above which a batch counts as full."""

HIGH_UTILISATION = 0.9
"""Share of the time in which a card computes at a full batch; below it, the host or the links are the limit."""


def read_compute_buses(host: HostReader) -> dict[str, set[str]]:
    """Return the addresses of the cards on which each unit computes now."""
    done = host.run("nvidia-smi", "--query-compute-apps=pid,gpu_bus_id", "--format=csv,noheader")
    if done.code != 0:
        raise CannotLookError(f"nvidia-smi: {done.first_error}", "appliance doctor --only driver")
    found: dict[str, set[str]] = {}
    for line in done.out.splitlines():
        pid, _, bus = (part.strip() for part in line.partition(","))
        if pid.isdigit() and bus:
            found.setdefault(read_process(host, int(pid)).unit, set()).add(sysfs_bus(bus))
    return found


def judge_tensor_parallel(
    replicas: Sequence[EngineReplica], buses: Mapping[int, str], used: Mapping[str, set[str]]
) -> Iterator[Finding]:
    """Judge whether each engine computes on all of its cards: ``buses`` by index, ``used`` by unit."""
    for replica in replicas:
        subject, unit = f"engine {replica.name}", unit_name(replica.name)
        indices = replica.engine.cards(replica.index)
        wanted, actual = {buses[index] for index in indices if index in buses}, used.get(unit, set())
        count = len(indices)
        if not actual and replica.engine.residency != "always":
            yield ok(f"not loaded; {count} cards when it is", subject=subject)
        elif not actual:
            yield unknown(
                "computes on no card now", fix=f"systemctl status {unit}; run `appliance doctor` as root",
                subject=subject,
            )  # fmt: skip
        elif actual != wanted or len(wanted) != count:
            yield fail(
                f"computes on {len(actual & wanted)} of its {count} cards, and on {len(actual - wanted)} others",
                meaning="It runs without the tensor parallelism of the site, or on the cards of another engine.",
                fix=f"journalctl -u {unit} | grep -i -e tensor_parallel -e rank; systemctl restart {unit}",
                subject=subject,
            )
        elif count == 1:
            yield ok("one card, as configured", subject=subject)
        else:
            yield ok(f"tensor parallel over {count} cards", subject=subject)


def judge_speculation(replica: EngineReplica, counters: Mapping[str, float]) -> Finding:
    """Judge whether an engine of vLLM with ``speculative-config`` proposes draft tokens."""
    subject = f"engine {replica.name}"
    unit = unit_name(replica.name)
    drafts = counters.get("vllm:spec_decode_num_drafts_total")
    proposed = counters.get("vllm:spec_decode_num_draft_tokens_total", 0.0)
    if drafts is None:
        return fail(
            "does not speculate, and speculative-config is set",
            meaning="Each token costs a whole step: responses are slower than planned.",
            fix=f"journalctl -u {unit} | grep -i specul; systemctl restart {unit}",
            subject=subject,
        )
    if drafts == 0 or proposed == 0:
        return warn(
            "speculates, and has drafted no token yet",
            meaning="Its acceptance is unknown until it has served a request.",
            fix="appliance smoke; then this command again",
            subject=subject,
        )
    accepted = counters.get("vllm:spec_decode_num_accepted_tokens_total", 0.0) / proposed
    return ok(f"speculates; {accepted:.0%} of its draft tokens are accepted", subject=subject)


def find_speculation(context: CheckContext) -> Iterator[Finding]:
    """Judge every engine that is configured to speculate."""
    wanted = [
        one
        for one in context.replicas
        if one.engine.options.get("speculative-config") and one.engine.kind == "vllm"
    ]
    if not wanted:
        yield ok("no engine is configured to speculate")
    for replica in wanted:
        try:
            yield judge_speculation(replica, engine_counters(replica.url))
        except CannotLookError as error:
            if replica.engine.residency == "always":
                yield unknown(str(error), fix=error.fix, subject=f"engine {replica.name}")
            else:
                yield ok("not loaded", subject=f"engine {replica.name}")


def parse_backend(lines: Iterable[str]) -> str | None:
    """Return the attention backend that vLLM named last in its log; ``None`` if it named none."""
    found = None
    for line in lines:
        match = re.search(r"Using (?:AttentionBackendEnum\.)?([A-Z][A-Z0-9_]+) (?:attention )?backend", line)
        found = match[1] if match else found
    return found


def read_backend(host: HostReader, unit: str) -> str | None:
    """Return the attention backend of ``unit`` by its log of this boot; ``None`` if the log does not name it."""
    done = host.run(
        "journalctl", "--unit", unit, "--boot", "--grep", "Using [A-Za-z.]*[A-Z0-9_]+ (attention )?backend",
        "--case-sensitive=yes", "--output", "cat", "--quiet", "--no-pager",
    )  # fmt: skip
    return parse_backend(done.out.splitlines())


def judge_attention(replica: EngineReplica, backend: str | None) -> Finding:
    """Judge the attention ``backend`` of an engine against its option, or against the slow ones."""
    subject = f"engine {replica.name}"
    table = replica.engine.options.get("attention-config")
    named = table.get("backend") if isinstance(table, dict) else None
    wanted = replica.engine.options.get("attention-backend") or named
    if backend is None:
        return unknown(
            "its log of this boot does not name the backend",
            fix=f"journalctl -u {unit_name(replica.name)} | grep 'attention backend'; as root",
            subject=subject,
        )
    if wanted and backend != str(wanted).upper():
        return fail(
            f"{backend}; the site has {wanted}",
            meaning="The engine computes attention otherwise than configured and measured.",
            fix=f"systemctl restart {unit_name(replica.name)}",
            subject=subject,
        )
    if backend in SLOW_BACKENDS and not wanted:
        return warn(
            f"{backend}, a slow one on these cards",
            meaning="The faster backends do not support this model or its KV cache: prefill is slow.",
            fix=f"journalctl -u {unit_name(replica.name)} | grep 'potential backends'; check kv-cache-dtype",
            subject=subject,
        )
    return ok(f"{backend}{', as configured' if wanted else ''}", subject=subject)


def find_attention(context: CheckContext) -> Iterator[Finding]:
    """Judge the attention backend of every engine of vLLM on cards."""
    wanted = [one for one in context.on_cards if one.engine.kind == "vllm"]
    if not wanted:
        yield ok("no engine of vLLM runs on a card")
    for replica in wanted:
        yield judge_attention(replica, read_backend(context.host, unit_name(replica.name)))


def utilisation_query(replica: EngineReplica) -> str:
    """Return the query for the median utilisation of the replica's cards at a full batch, over seven days."""
    full = max(1, round(replica.engine.concurrency * FULL_BATCH))
    cards = "|".join(map(str, replica.engine.cards(replica.index)))
    busy = f'max(vllm:num_requests_running{{engine="{replica.name}"}}) >= {full}'
    used = f'avg(appliance_gpu_utilization_ratio{{card=~"{cards}"}})'
    return f"quantile_over_time(0.5, ({used} and on() ({busy}))[7d:2m])"


def judge_utilisation(replica: EngineReplica, median: float | None) -> Finding:
    """Judge the ``median`` share of the time in which the cards computed at a full batch."""
    subject = f"engine {replica.name}"
    if median is None:
        return unknown(
            "no batch was full in the last seven days",
            fix=f"appliance loadtest --users {max(1, replica.engine.concurrency)}; then this command again",
            subject=subject,
        )
    if median < HIGH_UTILISATION:
        return warn(
            f"its cards compute {median:.0%} of the time at a full batch",
            meaning="The cards wait: for the processor, for links between them, or for weights in RAM.",
            fix="appliance doctor --only numa --only cards; top -H -p of the engine",
            subject=subject,
        )
    return ok(f"its cards compute {median:.0%} of the time at a full batch", subject=subject)


def find_utilisation(context: CheckContext, prometheus: int | None) -> Iterator[Finding]:
    """Judge the utilisation of every engine of vLLM on cards, by the Prometheus on port ``prometheus``."""
    wanted = [one for one in context.on_cards if one.engine.kind == "vllm"]
    if not wanted:
        yield ok("no engine of vLLM runs on a card")
        return
    if prometheus is None:
        yield unknown("Prometheus does not run on this host", fix="set appliance.observe.enable = true")
        return
    for replica in wanted:
        yield judge_utilisation(replica, query_number(prometheus, utilisation_query(replica)))


def find_tensor_parallel(context: CheckContext) -> Iterator[Finding]:
    """Judge the cards on which each engine computes."""
    if not context.on_cards:
        yield ok("no engine of this host runs on a card")
        return
    buses = {card.index: card.bus for card in context.cards}
    yield from judge_tensor_parallel(context.on_cards, buses, read_compute_buses(context.host))
