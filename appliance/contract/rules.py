"""Rules that span several sections of a site.

Pure: :func:`violations` takes a :class:`~appliance.contract.model.Site` and returns every violation with its place
and fix. :mod:`appliance.contract.engine_options` checks an engine's own flags.
"""

from __future__ import annotations

from collections.abc import Iterator

from appliance.contract.across_hosts import across_hosts
from appliance.contract.card_memory import GIB, MIB, WORKING_SPACE, shortage
from appliance.contract.model import (
    MIN_POWER_LIMIT_W,
    PACKAGED_EMBEDDER,
    Assistant,
    Engine,
    Host,
    Model,
    Site,
    UserPlan,
)
from appliance.contract.violation import Violation, suggest


def violations(site: Site) -> list[Violation]:
    """Return the violations of ``site``, in the order of the sections of a file."""
    return [
        *_models(site),
        *_engines(site),
        *across_hosts(site),
        *_ports(site),
        *_card_memory(site),
        *_ups(site),
        *_roles(site),
        *_plans(site),
        *_residency(site),
        *_http_engines(site),
        *_media_tasks(site),
        *_assistant(site),
        *_search(site),
        *_telegram(site),
    ]


RECIPE_TASKS = {
    "qwen3-embedding": "embed",
    "qwen3-reranker": "rerank",
    "qwen3-reranker-classifier": "rerank",
}
"""The task of each recipe of one task."""


def _models(site: Site) -> Iterator[Violation]:
    for name, model in site.models.items():
        if not model.is_folder and not model.is_package and model.revision is None:
            yield Violation(
                f"models.{name}",
                f"{model.source} is a repository without a revision",
                "pin it: revision = the 40 hex digits of its commit",
            )
        recipe_task = RECIPE_TASKS.get(model.recipe, model.task)
        if recipe_task != model.task:
            fix = f'set task = "{recipe_task}", or remove the recipe'
            yield Violation(f"models.{name}.recipe", f"is {model.recipe} though task is {model.task}", fix)
        if model.matryoshka and model.task != "embed":
            yield Violation(f"models.{name}.matryoshka", f"is set though task is {model.task}", "remove it")


def _engines(site: Site) -> Iterator[Violation]:
    for name, engine in site.engines.items():
        where = f"engines.{name}"
        model = site.models.get(engine.model)
        if model is None:
            fix = suggest(engine.model, list(site.models))
            yield Violation(f"{where}.model", f"model {engine.model!r} does not exist", fix)
        elif model.max_context is not None and engine.context > model.max_context:
            yield Violation(
                f"{where}.context",
                f"{engine.context} tokens are more than the {model.max_context} of {engine.model}",
                f"set it to {model.max_context} or less",
            )
        if model is not None:
            yield from _package(where, engine, model)
        host = site.hosts.get(engine.host)
        if host is None:
            fix = suggest(engine.host, list(site.hosts))
            yield Violation(f"{where}.host", f"host {engine.host!r} does not exist", fix)
        else:
            yield from _cards(where, engine, engine.host, host)


def _package(where: str, engine: Engine, model: Model) -> Iterator[Violation]:
    """Weights in a package belong to the small embedder, and it has no other weights."""
    if engine.kind == "embedder":
        if model.source != PACKAGED_EMBEDDER or model.task != "embed":
            yield Violation(
                f"{where}.model",
                f"an engine of kind embedder cannot serve {engine.model}",
                f'set source = "{PACKAGED_EMBEDDER}" and task = "embed" for it, or use vLLM for the engine',
            )
        if engine.device != "cpu":
            yield Violation(f"{where}.device", "an engine of kind embedder has no card", 'set device = "cpu"')
    elif model.is_package and engine.kind not in ("mock", "http"):
        yield Violation(
            f"{where}.kind", f"{engine.kind} cannot read the weights of {model.source}", 'set kind = "embedder"'
        )


def _cards(where: str, engine: Engine, host_name: str, host: Host) -> Iterator[Violation]:
    indices = [gpu.index for gpu in host.gpus]
    doubled = sorted({index for index in indices if indices.count(index) > 1})
    if doubled:
        yield Violation(
            f"hosts.{host_name}.gpus",
            f"two cards have the index {doubled[0]}",
            "give each card an index of its own",
        )
    if engine.kind in ("embedder", "http") and engine.device != "cpu":
        return
    if engine.spans_hosts:
        # appliance.contract.across_hosts checks its cards, host by host.
        return
    if engine.device == "cpu":
        if engine.gpus or engine.cards_per_replica > 1:
            yield Violation(where, "names cards though device is cpu", "remove gpus and tensor_parallel")
        return
    if engine.device == "vulkan" and engine.kind not in ("llamacpp", "mock"):
        what = f"{engine.kind} does not compute by Vulkan"
        yield Violation(f"{where}.device", what, 'set kind = "llamacpp", or another device')
    wanted = engine.replicas * engine.cards_per_replica
    if len(engine.gpus) != wanted:
        yield Violation(
            f"{where}.gpus",
            f"names {len(engine.gpus)} cards; {engine.replicas} replicas over {engine.cards_per_replica} "
            f"cards each need {wanted}",
            f"list {wanted} indices" if engine.kind != "mock" else 'list them, or set device = "cpu"',
        )
        return
    for index in engine.gpus:
        if index not in indices:
            have = ", ".join(map(str, indices)) or "none"
            yield Violation(f"{where}.gpus", f"host {host_name} has no card {index}", f"it has: {have}")
    for replica in range(engine.replicas):
        cards = engine.cards(replica)
        if len(set(cards)) != len(cards):
            yield Violation(f"{where}.gpus", f"replica {replica} names a card twice", "name each card once")


def _ports(site: Site) -> Iterator[Violation]:
    taken: dict[tuple[str, int], str] = {}
    for name, engine in site.engines.items():
        where = f"engines.{name}.port"
        for port in engine.ports:
            if port > 65535:
                fix = f"start at {65536 - engine.replicas} or lower"
                yield Violation(where, f"replica {port - engine.port} would need port {port}", fix)
                break
            if not engine.is_started:
                # One server may serve several models, but not the gateway itself, which would call itself for ever.
                if port == site.gateway.port and engine.address in ("127.0.0.1", "::1", site.gateway.host):
                    yield Violation(where, f"port {port} is that of this gateway", "name the port of the server")
                continue
            other = taken.get((engine.host, port))
            if other is None and port == site.gateway.port:
                other = "gateway"
            if other is not None:
                fix = "give each replica a port of its own"
                yield Violation(where, f"port {port} is already used by {other}", fix)
                break
            taken[engine.host, port] = f"engines.{name}"


def _card_memory(site: Site) -> Iterator[Violation]:
    for host_name, host in site.hosts.items():
        engines = {n: e for n, e in site.engines.items() if host_name in e.hosts and e.on_cards}
        for gpu in host.gpus:
            users = [(n, e) for n, e in engines.items() for card in e.cards_on(host_name) if card == gpu.index]
            total = sum(e.gpu_memory_utilization for _, e in users if e.residency == "always")
            # On-demand engines take turns: the largest one counts, and the memory that the others keep asleep.
            demand = [e for _, e in users if e.residency == "on-demand"]
            total += max((e.gpu_memory_utilization + _asleep(demand, e) for e in demand), default=0.0)
            if total > 1 + 1e-9:
                names = " and ".join(dict.fromkeys(name for name, _ in users))
                yield Violation(
                    f"hosts.{host_name}.gpus.{gpu.index}",
                    f"{names} together use {total:.0%} of the card's {gpu.memory_mib} MiB",
                    "lower gpu_memory_utilization until the sum is at most 1, or move one engine to another card",
                )
    for name, engine in site.engines.items():
        yield from _weights(site, name, engine)


UPS_SHARE = 0.8
"""Share of a UPS's rated output that a host may draw: above it, an old battery fails within seconds."""


def _ups(site: Site) -> Iterator[Violation]:
    for name, host in site.hosts.items():
        if host.ups is None or not host.gpus:
            continue
        where, usable = f"hosts.{name}.ups", UPS_SHARE * host.ups.watts
        left = int((usable - host.ups.host_watts) / len(host.gpus))
        limits = [gpu.power_limit_w for gpu in host.gpus]
        known = [limit for limit in limits if limit is not None]
        if left < MIN_POWER_LIMIT_W:
            yield Violation(
                where,
                f"{UPS_SHARE:.0%} of {host.ups.watts} W less {host.ups.host_watts} W for the host leave {left} W "
                f"for each of {len(host.gpus)} cards, and no card has so low a limit",
                "take a larger UPS",
            )
        elif len(known) < len(limits):
            yield Violation(
                where,
                "a card has no power_limit_w, so the load of the UPS is not known",
                f"set power_limit_w = {left} or less for each card",
            )
        elif sum(known) + host.ups.host_watts > usable:
            yield Violation(
                where,
                f"{sum(known)} W for the cards and {host.ups.host_watts} W for the host exceed {usable:.0f} W, "
                f"{UPS_SHARE:.0%} of the {host.ups.watts} W of the UPS",
                f"set power_limit_w = {left} or less for each card, or take a larger UPS",
            )


def _asleep(engines: list[Engine], awake: Engine) -> float:
    return sum(engine.asleep_share for engine in engines if engine is not awake and engine.sleep)


SLEEP_KILLERS = {
    "kv-offloading-size": "ends the engine after its first wake (vllm-project/vllm#45268)",
    "kv-transfer-config": "keeps addresses of the KV cache, which sleep unmaps (vllm-project/vllm#45268)",
    "cpu-offload-gb": "keeps weights outside the memory that sleep saves",
}
"""Flags of vLLM with which an engine that sleeps ends, or serves noise, with the reason."""


def _residency(site: Site) -> Iterator[Violation]:
    for name, engine in site.engines.items():
        where = f"engines.{name}"
        if engine.residency == "on-demand" and site.gateway.engine_control == "none":
            yield Violation(
                f"{where}.residency",
                'is on-demand, but gateway.engine_control = "none" starts no engine',
                'set gateway.engine_control = "systemd" on a NixOS host, "child" on another system',
            )
        if engine.sleep and engine.kind == "embedder":
            yield Violation(f"{where}.sleep", "the embedder has no sleep mode", "remove it: it is stopped instead")
        if engine.sleep and engine.kind == "llamacpp":
            yield Violation(f"{where}.sleep", "llama.cpp has no sleep mode", "remove it: it is stopped instead")
        if engine.sleep and engine.device == "cpu" and engine.kind == "vllm":
            yield Violation(f"{where}.sleep", "vLLM can sleep on cards only", "remove it: it is stopped instead")
        if engine.sleep and engine.residency == "always":
            yield Violation(f"{where}.sleep", "an engine that is always loaded never sleeps", "remove it")
        if engine.sleep and engine.kind == "vllm":
            for flag, reason in SLEEP_KILLERS.items():
                if flag in engine.options:
                    yield Violation(f"{where}.options.{flag}", reason, "remove it, or remove sleep")
            if engine.options.get("load-format") == "ipc_cache":
                fix = "take another load-format, or remove sleep"
                yield Violation(f"{where}.options.load-format", "ipc_cache excludes sleep", fix)
    default = site.gateway.swap.default
    swapped = [engine.model for engine in site.engines.values() if engine.residency == "on-demand"]
    if default is not None and default not in swapped:
        what = f"no on-demand engine serves {default!r}"
        yield Violation("gateway.swap.default", what, suggest(default, sorted(set(swapped))))


HTTP_KEYS = ("address", "served_name", "key_file", "health_path")
"""Keys of an engine that only the kind http has."""

OWN_PROCESS_KEYS = ("command", "environment", "options", "sleep")
"""Keys that concern the process of an engine, which the kind http does not have."""


def _http_engines(site: Site) -> Iterator[Violation]:
    """Another server has an address, and nothing that starts or stops it."""
    for name, engine in site.engines.items():
        where = f"engines.{name}"
        if engine.is_started:
            for key in HTTP_KEYS:
                if getattr(engine, key) is not None:
                    yield Violation(
                        f"{where}.{key}", f"is set though kind is {engine.kind}", 'remove it, or set kind = "http"'
                    )
            continue
        if engine.address is None:
            yield Violation(f"{where}.address", "is missing", 'add it, such as address = "127.0.0.1"')
        if engine.device != "cpu":
            yield Violation(f"{where}.device", "an engine of kind http has no card of a host", 'set device = "cpu"')
        for key in OWN_PROCESS_KEYS:
            if getattr(engine, key):
                yield Violation(f"{where}.{key}", "concerns a process, and kind http starts none", "remove it")
        if engine.residency == "on-demand":
            yield Violation(
                f"{where}.residency", "is on-demand, and kind http starts and stops nothing", "remove it"
            )


MEDIA_KINDS = {"transcribe": ("vllm", "http", "mock"), "speech": ("http", "mock"), "image": ("http", "mock")}
"""The kinds of engines that serve a task of audio or images."""


def _media_tasks(site: Site) -> Iterator[Violation]:
    """Models of audio and images need an engine with that task, and hold no conversation."""
    for name, engine in site.engines.items():
        model = site.models.get(engine.model)
        kinds = MEDIA_KINDS.get(model.task) if model is not None else None
        if model is not None and kinds is not None and engine.kind not in kinds:
            yield Violation(
                f"engines.{name}.kind",
                f"{engine.kind} cannot serve {engine.model}, whose task is {model.task}",
                f"use one of: {', '.join(kinds)}; kind http is any server with OpenAI's API",
            )
    for name, role in site.roles.items():
        model = site.models.get(role.model)
        if model is not None and model.task in MEDIA_KINDS and role.system_prompt is not None:
            yield Violation(
                f"roles.{name}.system_prompt",
                f"{role.model} has the task {model.task} and holds no conversation",
                "remove it, or name a model with task generate",
            )


def _weights(site: Site, name: str, engine: Engine) -> Iterator[Violation]:
    model, host = site.models.get(engine.model), site.hosts.get(engine.host)
    if model is None or host is None or model.weights_gib is None or not engine.is_started:
        return
    if engine.device == "cpu":
        cache = 0.0 if engine.kind == "embedder" else engine.kv_cache_gib
        needed = (model.weights_gib + cache) * engine.replicas
        if needed > host.memory_gib:
            what = f"{engine.replicas} x ({model.weights_gib:g} GiB of weights + {cache:g} of KV cache)"
            what += f" do not fit the {host.memory_gib} GiB of {engine.host}"
            yield Violation(f"engines.{name}", what, "take a smaller model, fewer replicas or more RAM")
        return
    if engine.experts_in_ram:
        # The experts' share of the weights needs the catalog: the planner checks the card, see its `fit`.
        if model.weights_gib > host.memory_gib:
            what = f"{model.weights_gib:g} GiB of weights do not fit the {host.memory_gib} GiB of {engine.host}"
            yield Violation(f"engines.{name}", what, "take a smaller quantisation or more RAM")
        return
    for gpu in site.gpus_of(engine):
        lacking = shortage(
            weights=model.weights_gib / engine.cards_per_replica * GIB,
            working_space=WORKING_SPACE,
            memory=gpu.memory_mib * MIB,
            utilization=engine.gpu_memory_utilization,
        )
        if lacking is not None:
            yield Violation(
                f"engines.{name}",
                f"{lacking} on card {gpu.index}",
                "raise tensor_parallel or gpu_memory_utilization, or take a quantised model",
            )
            return


def _roles(site: Site) -> Iterator[Violation]:
    served = {engine.model for engine in site.engines.values()}
    for name, role in site.roles.items():
        where = f"roles.{name}"
        if name in site.models:
            yield Violation(where, "has the name of a model", "rename the role: clients use the names of both")
        if role.model not in site.models:
            fix = suggest(role.model, list(site.models))
            yield Violation(f"{where}.model", f"model {role.model!r} does not exist", fix)
        elif role.model not in served:
            yield Violation(f"{where}.model", f"no engine serves {role.model!r}", "add an engine for it")
        elif role.adapter is not None:
            adapters = site.models[role.model].adapters
            if role.adapter not in adapters:
                fix = suggest(role.adapter, list(adapters))
                yield Violation(f"{where}.adapter", f"{role.model} has no adapter {role.adapter!r}", fix)
            elif any(e.kind == "llamacpp" for e in site.engines.values() if e.model == role.model):
                yield Violation(f"{where}.adapter", "llama.cpp's server has no adapters by name", "use vLLM for it")
            elif any(e.kind == "http" for e in site.engines.values() if e.model == role.model):
                fix = "use vLLM for it, or a model for each adapter"
                yield Violation(f"{where}.adapter", "an engine of kind http has no adapters by name", fix)


def _plans(site: Site) -> Iterator[Violation]:
    known = [*site.models, *site.roles]
    for name, plan in site.plans.items():
        where = f"plans.{name}.models"
        if plan.models == ():
            yield Violation(where, "allows no model", "name at least one, or remove it to allow all")
        for model in plan.models or ():
            if model not in known:
                yield Violation(where, f"model or role {model!r} does not exist", suggest(model, known))
        yield from _stars(site, name, plan)
    if site.default_plan is not None and site.default_plan not in site.plans:
        fix = suggest(site.default_plan, list(site.plans))
        yield Violation("default_plan", f"plan {site.default_plan!r} does not exist", fix)


def _stars(site: Site, name: str, plan: UserPlan) -> Iterator[Violation]:
    where = f"plans.{name}.stars"
    if plan.stars is None:
        return
    if site.telegram is None:
        yield Violation(where, "needs the Telegram bot, which sells the plan", "add [telegram], or remove it")
    elif not site.telegram.pay_support:
        yield Violation(where, "has no contact for buyers", "set telegram.pay_support")
    if name == site.default_plan:
        yield Violation(where, "is a price for the default plan", "remove it: every user has that plan")


ASSISTANT_MODELS = {
    "embedder": "embed",
    "reranker": "rerank",
    "title_model": "generate",
    "extract_model": "generate",
}
"""The models of the section ``assistant``, and the task that each needs."""


def _assistant(site: Site) -> Iterator[Violation]:
    assistant = site.assistant
    if assistant is None:
        for name, role in site.roles.items():
            if role.memory:
                yield Violation(
                    f"roles.{name}.memory",
                    "needs the assistant, and the site has none",
                    "add a section [assistant], or remove memory",
                )
        return
    served = {engine.model for engine in site.engines.values()}
    for field, task in ASSISTANT_MODELS.items():
        name = getattr(assistant, field)
        where = f"assistant.{field}"
        if name is None:
            continue
        model = site.models.get(name)
        if model is None:
            fitting = [other for other, its in site.models.items() if its.task == task]
            yield Violation(where, f"model {name!r} does not exist", suggest(name, fitting))
        elif model.task != task:
            fitting = [other for other, its in site.models.items() if its.task == task]
            known = f"name one of: {', '.join(fitting)}" if fitting else f'add a model with task = "{task}"'
            yield Violation(where, f"{name} has the task {model.task}, not {task}", known)
        elif name not in served:
            yield Violation(where, f"no engine serves {name!r}", "add an engine for it")
    for name, role in site.roles.items():
        task = site.models[role.model].task if role.model in site.models else "generate"
        if role.memory and task != "generate":
            yield Violation(
                f"roles.{name}.memory",
                f"{role.model} has the task {task} and holds no conversation",
                "remove memory, or name a model with task generate",
            )
    yield from _qdrant(assistant)
    if assistant.socket == assistant.acting_socket:
        yield Violation(
            "assistant.acting_socket",
            "is the socket of the assistant itself",
            "give the gateway and the assistant a path each",
        )


def _search(site: Site) -> Iterator[Violation]:
    search = site.search
    if search is not None and site.assistant is None:
        yield Violation("search", "needs the assistant, and the site has none", "add a section [assistant]")
    if search is not None and search.key_file is not None and search.fetcher_url is None:
        yield Violation("search.fetcher_url", "is absent, and key_file has no effect", "name the fetcher's address")
    for name, role in site.roles.items():
        where = f"roles.{name}.search"
        if not role.search:
            continue
        if search is None:
            yield Violation(where, "needs web search, and the site has none", "add a section [search]")
        task = site.models[role.model].task if role.model in site.models else "generate"
        if task != "generate":
            yield Violation(where, f"{role.model} has the task {task} and holds no conversation", "remove search")


def _telegram(site: Site) -> Iterator[Violation]:
    telegram, assistant = site.telegram, site.assistant
    if telegram is None:
        return
    if assistant is None:
        yield Violation(
            "telegram",
            "needs the assistant, which keeps its chats",
            "add a section [assistant], or remove [telegram]",
        )
    elif telegram.acting_socket in {assistant.acting_socket, assistant.socket}:
        yield Violation(
            "telegram.acting_socket",
            "is a socket of the assistant",
            "give the bot a path of its own: its account may not act as the assistant",
        )
    name = telegram.model
    if name is None:
        return
    model = site.roles[name].model if name in site.roles else name
    if model not in site.models:
        known = [*site.models, *site.roles]
        yield Violation("telegram.model", f"model or role {name!r} does not exist", suggest(name, known))
    elif site.models[model].task != "generate":
        task = site.models[model].task
        yield Violation(
            "telegram.model",
            f"{name} has the task {task}, not generate",
            "name a model or role that generates text",
        )


def _qdrant(assistant: Assistant) -> Iterator[Violation]:
    if assistant.qdrant_url is not None and assistant.qdrant_key_file is None:
        yield Violation(
            "assistant.qdrant_key_file",
            "is absent, and a Qdrant server without a key gives every local process all vectors",
            "name the file with the server's API key",
        )
    if assistant.qdrant_url is None and assistant.qdrant_key_file is not None:
        yield Violation(
            "assistant.qdrant_url",
            "is absent, and qdrant_key_file has no effect",
            "name the address of the server, such as http://127.0.0.1:6333",
        )
