"""The real searx, its engine over a site of ours, the fetcher before that site, and a turn of the assistant."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.assistant.web.conftest import SearchingAssistant, searching_assistant
from tests.conftest import http, wait_until
from tests.ports import free_port
from tests.search.running import SmallWeb, small_web

EXAMPLE = Path("/usr/share/doc/searx/examples/settings.yml")
PROGRAM = Path("/usr/bin/searx-run")
ENGINES = """
engines:
  - name: small
    engine: json_engine
    search_url: {url}?q={{query}}
    results_query: results
    url_query: url
    title_query: title
    content_query: text
    enable_http: true
    timeout: 30.0
    shortcut: sm
"""


def settings(web: SmallWeb, port: int) -> str:
    """Return the packaged example with one engine, and a port of ours."""
    example = EXAMPLE.read_text()
    before, _, after = example.partition("\nengines:")
    engines = ENGINES.format(url=web.site.url("/index", "127.0.0.2"))
    text = before + engines + after[after.index("\nlocales:") :]
    return (
        text.replace("port : 8888", f"port : {port}")
        .replace("ultrasecretkey", "a key of this test")
        .replace("request_timeout : 2.0", "request_timeout : 30.0")
        .replace("ban_time_on_fail : 5", "ban_time_on_fail : 0")
    )


@contextmanager
def searx(folder: Path, web: SmallWeb) -> Iterator[str]:
    """Run searx and yield its address."""
    port = free_port()
    file = folder / "settings.yml"
    file.write_text(settings(web, port))
    with (folder / "searx.log").open("wb") as log:
        process = subprocess.Popen(
            [PROGRAM],
            stdout=log,
            stderr=log,
            env={**os.environ, "SEARX_SETTINGS_PATH": str(file), "PYTHONPATH": ""},
        )
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert process.poll() is None, (folder / "searx.log").read_text()[-2000:]
        try:
            return http(url + "/").status == 200
        except OSError:
            return False

    try:
        wait_until(ready, "searx", 90)
        yield url
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SearchingAssistant]:
    if not PROGRAM.exists():
        pytest.skip("NOT CHECKED: searx is missing; apt-get install $(cat tests/nix/apt.txt)")
    folder = tmp_path_factory.mktemp("searx")
    with small_web() as web, searx(folder, web) as url, searching_assistant(folder, web, url=url) as running:
        yield running


def test_searx_finds_a_page_that_the_model_reads_and_cites(assistant: SearchingAssistant) -> None:
    ada: Any = assistant.client()
    assistant.model.replies = [
        [("web_search", {"query": "capital of Italy"})],
        [("open_page", {"page": "1"})],
        "It is Rome [1].",
    ]
    made = ada.responses.create(model="fake", input="capital?", tools=[{"type": "web_search"}])
    search, page, message = made.output
    assert [search.status, page.status] == ["completed", "completed"]
    [citation] = message.content[0].annotations
    assert citation.url == assistant.web.site.url("/page")
    assert "Rome is the capital of **Italy**" in assistant.model.tool_texts()[1]
    assert any(head.startswith("GET /index?q=capital") for head in assistant.web.site.seen)


def test_no_result_of_searx_is_an_empty_result(assistant: SearchingAssistant) -> None:
    ada: Any = assistant.client()
    assistant.model.replies = [[("web_search", {"query": "unknown words"})], "Nothing."]
    made = ada.responses.create(model="fake", input="x", tools=[{"type": "web_search"}])
    assert made.output[0].status == "completed"
    assert assistant.model.tool_texts() == ["The web search found no result. State that."]


def test_an_engine_that_blocks_searx_is_a_failure(assistant: SearchingAssistant) -> None:
    ada: Any = assistant.client()
    assistant.web.site.blocked = True
    assistant.model.replies = [[("web_search", {"query": "capital of France"})], "It failed."]
    made = ada.responses.create(model="fake", input="x", tools=[{"type": "web_search"}])
    item = made.output[0].to_dict()
    assert (item["status"], item["error"]["code"]) == ("failed", "search_engines_failed")
    assert "small" in assistant.model.tool_texts()[0]
