"""The operator's page in a real Chromium, with a gateway whose models take turns on one card."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Dialog, Page, expect, sync_playwright

from appliance.gateway import control_client
from tests.admin.operated import EVIL, TOKEN, OperatedService, operated_site, swapping_site
from tests.conftest import chat, wait_until
from tests.gateway.running.test_browser import FLAGS, NAMES
from tests.ports import free_port

PATIENCE_MS = 60_000
"""Milliseconds that a busy machine may take for any step."""
PAGES = ("/", "/users", "/keys", "/plans", "/usage", "/models")
WIDER = "document.documentElement.scrollWidth > document.documentElement.clientWidth"


@dataclass
class OperatorScreen:
    """A service, a browser, and what its pages reported."""

    site: OperatedService
    browser: Browser
    problems: list[str] = field(default_factory=list)

    def open(self, **settings: Any) -> Page:
        """Return a page with a session; its errors fail the test."""
        context: BrowserContext = self.browser.new_context(**({"locale": "en-GB"} | settings))
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.on("console", lambda one: self.problems.append(one.text) if "Content Security" in one.text else None)
        page.on("dialog", self._dialog)
        page.goto(self.site.url)
        page.fill("input[name=token]", TOKEN)
        page.keyboard.press("Enter")
        expect(page.locator("nav")).to_be_visible()
        return page

    def _dialog(self, dialog: Dialog) -> None:
        """Record a dialog: the page has no script, so a text has become one."""
        self.problems.append(dialog.message)
        dialog.dismiss()


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorScreen]:
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("NOT CHECKED: chromium is missing; apt-get install $(cat tests/nix/apt.txt)")
    expect.set_options(timeout=PATIENCE_MS)
    flags = [flag for flag in FLAGS if flag != "--headless"]
    with (
        operated_site(tmp_path_factory.mktemp("screen"), **swapping_site()) as site,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=found, args=flags)
        try:
            yield OperatorScreen(site, browser)
        finally:
            browser.close()


@pytest.fixture
def page(screen: OperatorScreen) -> Iterator[Page]:
    screen.problems.clear()
    opened = screen.open()
    yield opened
    opened.context.close()
    assert screen.problems == []


def test_a_user_is_created_and_used_and_its_markup_is_text(screen: OperatorScreen, page: Page) -> None:
    page.click("nav >> text=Users")
    form = page.locator("form[action='/users']")
    form.locator("[name=name]").fill("grace")
    form.locator("[name=plan]").select_option("basic")
    form.locator("[name=note]").fill(EVIL)
    form.locator("button").click()
    key = page.locator("code.secret").inner_text()
    service = screen.site.service
    body = chat("fake: tokens=3") | {"model": "a"}
    wait_until(lambda: service.post("/v1/chat/completions", body, key=key).status == 200, "the key works", 60)
    page.click("text=Back")
    expect(page.locator("td", has_text=EVIL)).to_be_visible()
    assert key not in page.content()
    # The history has no key either: a reload sends no form.
    page.go_back()
    assert key not in page.url

    wait_until(lambda: any(row["user"] == "grace" for row in service.rows()), "the usage record", 60)
    page.goto(f"{screen.site.url}/usage?user=grace&days=7")
    expect(page.locator("figure svg")).to_have_count(3)
    with page.expect_download() as download:
        page.click("text=Download CSV")
    assert download.value.suggested_filename.endswith(".csv")
    assert "grace" in download.value.path().read_text()


def test_a_browser_does_not_submit_a_name_that_is_not_valid(screen: OperatorScreen, page: Page) -> None:
    page.goto(f"{screen.site.url}/users")
    page.fill("form[action='/users'] [name=name]", "<script>")
    page.click("form[action='/users'] button")
    assert page.url.endswith("/users")
    assert page.locator("form[action='/users'] [name=name]:invalid").count() == 1


def test_a_key_is_created_and_revoked_by_keyboard_alone(screen: OperatorScreen, page: Page) -> None:
    page.goto(f"{screen.site.url}/keys")
    page.focus("[name=user]")
    page.keyboard.type("bob")
    page.keyboard.press("Tab")
    page.keyboard.type("n8n")
    page.keyboard.press("Enter")
    key = page.locator("code.secret").inner_text()
    page.goto(f"{screen.site.url}/keys")
    row = page.locator("tr", has_text=key.split("-")[1])
    expect(row.locator("button")).to_be_hidden()
    row.locator("summary").focus()
    page.keyboard.press("Enter")
    expect(row.locator("button")).to_be_visible()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(row).to_contain_text("revoked")
    expect(row.locator("summary")).to_have_count(0)


@pytest.mark.timeout(300)
def test_swaps_and_drains_and_their_results(screen: OperatorScreen, page: Page) -> None:
    page.goto(f"{screen.site.url}/models")

    def swap(engine: str) -> None:
        page.locator("tr", has=page.locator(f"input[value={engine[1:]}][name=model]")).locator("button").click()

    def reached(engine: str, state: str) -> None:
        """Wait for the state of an engine on demand, then load the page again."""

        def holds() -> bool:
            return bool(control_client.status(screen.site.service.data)["on_demand"][engine]["state"] == state)

        wait_until(holds, f"{engine} is {state}", 100)
        page.click("text=Refresh")

    main = page.locator("main")
    swap("eb")
    reached("eb", "ready")
    expect(main).to_contain_text("eb was loaded in ")
    swap("ec")
    reached("ec", "failed")
    reached("eb", "ready")
    expect(main).to_contain_text("ec could not be loaded")
    expect(main).to_contain_text("unloaded for it: eb")
    expect(main).to_contain_text("awake")
    swap("ea")
    reached("ea", "ready")
    expect(main).to_contain_text("ea was loaded in ")
    swap("eb")
    reached("ea", "asleep")
    expect(main).to_contain_text("asleep")
    row = page.locator("tr", has=page.locator("input[name=replica][value=ea]"))
    row.locator("[name=reason]").fill(EVIL)
    row.locator("button").click()
    expect(row).to_contain_text(EVIL)
    swap("ea")
    expect(page.locator("[role=alert]")).to_contain_text("is drained")
    page.click("text=Back")
    row.locator("button", has_text="Undrain").click()
    expect(row).not_to_contain_text(EVIL)


@pytest.mark.parametrize(("width", "scheme", "locale"), [(360, "dark", "ru-RU"), (1280, "light", "en-GB")])
def test_every_page_fits(screen: OperatorScreen, width: int, scheme: Any, locale: str) -> None:
    screen.problems.clear()
    opened = screen.open(viewport={"width": width, "height": 800}, color_scheme=scheme, locale=locale)
    for path in PAGES:
        opened.goto(screen.site.url + path)
        expect(opened.locator("html")).to_have_attribute("lang", locale[:2])
        assert not opened.evaluate(WIDER), path
    background = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(18, 22, 29)") == (scheme == "dark")
    opened.context.close()
    assert screen.problems == []


def test_a_form_of_another_origin_changes_nothing(screen: OperatorScreen, page: Page) -> None:
    """A page of another port of this machine is the same site, so its forms have the cookie."""
    other = f"http://127.0.0.1:{free_port()}"
    action = f"{screen.site.url}/users"
    form = f"<form method=post action='{action}'><input name=name value=mallory><button>x</button></form>"
    page.route(f"{other}/attack", lambda route: route.fulfill(body=form, content_type="text/html"))
    page.goto(f"{other}/attack")
    page.click("button")
    expect(page.locator("main")).to_contain_text("not from this page")
    page.goto(f"{screen.site.url}/users")
    expect(page.locator("main")).not_to_contain_text("mallory")


def test_a_log_out_ends_the_session_of_another_tab(screen: OperatorScreen, page: Page) -> None:
    second = page.context.new_page()
    second.goto(f"{screen.site.url}/users")
    page.click("text=Log out")
    expect(page.locator("input[name=token]")).to_be_visible()
    second.click("nav >> text=Keys")
    expect(second.locator("input[name=token]")).to_be_visible()
    assert page.evaluate("document.cookie") == ""
