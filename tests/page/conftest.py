"""The chat page in a real Chromium: one service and one browser for all tests of this folder."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from appliance.assistant.store.conversations import ConversationStore
from appliance.assistant.store.database import Database
from tests.assistant.running import AssistantUnderTest, key_id, whole_service
from tests.conftest import Response, RunningService, http
from tests.gateway.running.conftest import create_key
from tests.gateway.running.test_browser import FLAGS, NAMES
from tests.nix.test_edge import DOMAIN
from tests.page.cutting_proxy import CuttingProxy

PATIENCE_MS = 60_000
"""Milliseconds that a busy machine may take for any step."""
MOST_FILE_BYTES = 20 * 2**20
ROLES = {
    "poet": {"model": "fake", "system_prompt": "Rhyme."},
    "reader": {"model": "fake", "system_prompt": "Read."},
}


@dataclass
class PageUnderTest:
    """A service with the page, a browser, and shortcuts for both."""

    service: RunningService
    assistant: AssistantUnderTest
    browser: Browser
    problems: list[str] = field(default_factory=list)
    """Errors of scripts and violations of the policy in any page."""

    @property
    def url(self) -> str:
        return self.service.url

    def context(self, **settings: Any) -> BrowserContext:
        """Return a new browser profile."""
        context = self.browser.new_context(**({"locale": "en-GB"} | settings))
        context.set_default_timeout(PATIENCE_MS)
        return context

    def page(self, context: BrowserContext) -> Page:
        """Return a new page whose errors fail the test."""
        page = context.new_page()
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda one: self.problems.append(one.text) if _is_problem(one.text) else None)
        return page

    def logged_in(self, context: BrowserContext, key: str | None = None, url: str | None = None) -> Page:
        """Return a page of ``context`` after a log-in."""
        page = self.page(context)
        page.goto(url or self.url)
        page.fill("#key", key or self.service.key)
        page.click("#login button")
        expect(page.locator("#model option").first).to_be_attached()
        return page

    def key(self, user: str, **limits: Any) -> str:
        """Return a new key of ``user``."""
        made = create_key(self.service, user, **limits)
        self.assistant.key_ids[user] = key_id(made)
        return made

    def chat(self, *texts: str, user: str = "ada", title: str = "Prepared") -> str:
        """Store a chat whose messages are of the user and the assistant in turn; return its id."""
        roles = ("user", "assistant")
        items = [{"role": roles[at % 2], "content": text} for at, text in enumerate(texts)]
        with self.assistant.http(user) as client:
            body = {"metadata": {"title": title}, "items": items}
            return str(client.post("/conversations", json=body).json()["id"])

    def items(self, conversation: str, user: str = "ada") -> list[dict[str, Any]]:
        """Return the stored items of a chat, in order."""
        with self.assistant.http(user) as client:
            found = client.get(f"/conversations/{conversation}/items", params={"limit": 100, "order": "asc"})
            return list(found.json()["data"])

    def texts(self, conversation: str, user: str = "ada") -> list[tuple[str, str]]:
        """Return role and text of each stored message."""
        found = [one for one in self.items(conversation, user) if one["type"] == "message"]
        return [(one["role"], "".join(part["text"] for part in one["content"])) for one in found]

    def store(self) -> ConversationStore:
        """Return the store of chats, for many writes at once."""
        return ConversationStore(Database(self.assistant.folder / "data", None))


def _is_problem(text: str) -> bool:
    return "Content Security Policy" in text or "Content-Security-Policy" in text or "Uncaught" in text


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageUnderTest]:
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("NOT CHECKED: chromium is missing; apt-get install $(cat tests/nix/apt.txt)")
    expect.set_options(timeout=PATIENCE_MS)
    folder = tmp_path_factory.mktemp("page")
    flags = [
        *(flag for flag in FLAGS if flag != "--headless"),
        f"--host-resolver-rules=MAP {DOMAIN} 127.0.0.1",
        "--use-fake-device-for-media-stream",
    ]
    settings = {"max_file_bytes": MOST_FILE_BYTES}
    with (
        whole_service(folder, assistant=settings, roles=ROLES) as (service, assistant),
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=found, args=flags)
        try:
            yield PageUnderTest(service, assistant, browser)
        finally:
            browser.close()


@pytest.fixture(scope="package")
def shared(site: PageUnderTest) -> Iterator[BrowserContext]:
    """A profile of ``ada`` that is logged in; most tests open a page of it."""
    context = site.context()
    site.logged_in(context).close()
    yield context
    context.close()


@pytest.fixture
def page(site: PageUnderTest, shared: BrowserContext) -> Iterator[Page]:
    """A page of ``ada`` with a new chat; no script may fail and no policy may be violated."""
    site.problems.clear()
    opened = site.page(shared)
    opened.goto(site.url)
    expect(opened.locator("#model option").first).to_be_attached()
    yield opened
    opened.close()
    assert site.problems == []


@pytest.fixture
def proxy(site: PageUnderTest) -> Iterator[CuttingProxy]:
    """A way to the gateway whose connections a test can cut."""
    with CuttingProxy(site.service.gateway.port) as running:
        yield running


def say(page: Page, text: str) -> None:
    """Send ``text``."""
    page.fill("#message", text)
    page.press("#message", "Control+Enter")


def say_and_wait(page: Page, text: str) -> str:
    """Send ``text``, wait for the end of the turn, and return the id of the chat."""
    count = page.locator("article.assistant:not(.live)").count()
    say(page, text)
    expect(page.locator("article.assistant:not(.live)")).to_have_count(count + 1)
    expect(page.locator("#send")).to_be_visible()
    return conversation_of(page)


def conversation_of(page: Page) -> str:
    """Return the id of the chat that ``page`` shows."""
    page.wait_for_function("location.hash.startsWith('#conv_')")
    return page.url.partition("#")[2]


def wait_for(condition: Callable[[], object], page: Page) -> None:
    """Poll ``condition`` while the page runs."""
    for _ in range(PATIENCE_MS // 50):
        if condition():
            return
        page.wait_for_timeout(50)
    pytest.fail("the condition did not hold in time")


def send_raw(
    service: RunningService, method: str, path: str, headers: dict[str, str], body: object = None
) -> Response:
    """Send a request with these headers only, as a browser or an attacker would."""
    import http.client  # noqa: PLC0415

    connection = http.client.HTTPConnection("127.0.0.1", service.gateway.port, timeout=30)
    try:
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        connection.request(method, path, data or None, headers)
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Response(response.status, found, response.read())
    finally:
        connection.close()


def cookie_of(response: Response) -> str:
    """Return the name and the value of the cookie that ``response`` sets."""
    return response.headers["set-cookie"].partition(";")[0]


SAME = {"Sec-Fetch-Site": "same-origin"}


def log_in(service: RunningService, key: str | None = None) -> str:
    """Return the cookie of a new session."""
    headers = {**SAME, "Content-Type": "application/json"}
    response = send_raw(service, "POST", "/session", headers, {"key": key or service.key})
    assert response.status == 200, response.body
    return cookie_of(response)


__all__ = ["SAME", "Path", "cookie_of", "http", "log_in", "re", "send_raw"]
