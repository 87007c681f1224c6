"""Turns on the page: streaming, stop, retry, edit, cut connections, two tabs, failures."""

from __future__ import annotations

import re

from playwright.sync_api import BrowserContext, Page, expect

from appliance.store.keys import KeyStore
from tests.page.conftest import PageUnderTest, conversation_of, say, say_and_wait, wait_for
from tests.page.cutting_proxy import CuttingProxy

WORDS = "the quick brown fox jumps over a lazy dog and rests in grün"
LONG = "fake: tokens=400 itl_ms=20"
"""A turn that lasts until the test stops it, or at most 8 s."""


def test_a_reply_streams_and_is_kept(site: PageUnderTest, page: Page) -> None:
    say(page, "fake: tokens=13 itl_ms=1 hold=5")
    live = page.locator("article.live")
    expect(live).to_contain_text("the quick brown fox jumps")
    expect(page.locator("#stop")).to_be_visible()
    assert "over" not in live.inner_text()
    site.assistant.release()
    expect(page.locator("article.assistant .markdown")).to_have_text(WORDS)
    expect(page.locator("#send")).to_be_visible()
    chat = conversation_of(page)
    expect(page.locator(f"#chats a[data-chat='{chat}']")).to_have_attribute("aria-current", "page")
    assert page.title().startswith("fake: tokens=13")
    page.reload()
    expect(page.locator("article")).to_have_count(2)
    assert site.texts(chat) == [("user", "fake: tokens=13 itl_ms=1 hold=5"), ("assistant", WORDS)]


def test_markup_is_rendered_by_the_server(page: Page) -> None:
    say_and_wait(
        page, "fake: echo=1 tokens=6\n**bold** and $x^2$\n\n|a|b|\n|-|-|\n|1|2|\n\n```python\nimport x\n```"
    )
    body = page.locator("article.assistant .markdown")
    expect(body.locator("strong")).to_have_text("bold")
    expect(body.locator("math msup")).to_have_count(1)
    expect(body.locator("td")).to_have_text(["1", "2"])
    expect(body.locator(".codeblock .kn")).to_have_text("import")


def test_a_second_turn_has_the_first_one_as_context(site: PageUnderTest, page: Page) -> None:
    say_and_wait(page, "fake: tokens=2 itl_ms=1 first words")
    say_and_wait(page, "fake: tokens=3 itl_ms=1 second words")
    contents = [str(one["content"]) for one in site.assistant.last_body()["messages"]]
    assert "first words" in contents[0]
    assert contents[1] == "the quick"
    assert "second words" in contents[2]
    expect(page.locator("article")).to_have_count(4)


def test_reasoning_is_collapsed(page: Page) -> None:
    say_and_wait(page, "fake: tokens=3 itl_ms=1 think=6")
    expect(page.locator("details.reasoning")).to_have_count(1)
    expect(page.locator("details.reasoning")).not_to_have_attribute("open", re.compile(".*"))
    page.click("details.reasoning summary")
    expect(page.locator("details.reasoning div")).to_be_visible()


def test_stop_keeps_the_text_so_far(site: PageUnderTest, page: Page) -> None:
    say(page, LONG)
    expect(page.locator("article.live")).to_contain_text("quick brown")
    page.click("#stop")
    expect(page.locator("article.assistant .note")).to_have_text("Stopped")
    expect(page.locator("#send")).to_be_visible()
    wait_for(lambda: site.assistant.stats()["active"] == 0, page)
    stored = site.texts(conversation_of(page))
    assert [role for role, _ in stored] == ["user", "assistant"]
    assert stored[1][1].startswith("the quick brown")
    assert page.locator("article.assistant .markdown").inner_text() == stored[1][1]


def test_retry_replaces_the_reply(site: PageUnderTest, page: Page) -> None:
    chat = say_and_wait(page, "fake: tokens=2 itl_ms=1")
    before = {one["id"] for one in site.items(chat)}
    page.get_by_role("button", name="Try again").click()
    wait_for(lambda: len(site.texts(chat)) == 2 and before.isdisjoint(one["id"] for one in site.items(chat)), page)
    wait_for(lambda: site.assistant.stats()["active"] == 0, page)
    expect(page.locator("article")).to_have_count(2)
    assert site.texts(chat) == [("user", "fake: tokens=2 itl_ms=1"), ("assistant", "the quick")]


def test_the_last_message_can_be_edited(site: PageUnderTest, page: Page) -> None:
    chat = say_and_wait(page, "fake: tokens=2 itl_ms=1")
    page.press("#message", "ArrowUp")
    expect(page.locator("#message")).to_have_value("fake: tokens=2 itl_ms=1")
    expect(page.locator("#editing")).to_be_visible()
    page.press("#message", "Escape")
    expect(page.locator("#message")).to_have_value("")
    page.get_by_role("button", name="Edit", exact=True).click()
    say(page, "fake: tokens=4 itl_ms=1")
    expect(page.locator("article.assistant .markdown")).to_have_text("the quick brown fox")
    expect(page.locator("article")).to_have_count(2)
    assert site.texts(chat) == [("user", "fake: tokens=4 itl_ms=1"), ("assistant", "the quick brown fox")]


def test_a_failed_reply_can_be_repeated(site: PageUnderTest, page: Page) -> None:
    say(page, "fake: fault=status:500")
    expect(page.locator(".failure strong")).to_have_text("The reply failed")
    chat = conversation_of(page)
    assert site.texts(chat) == [("user", "fake: fault=status:500")]
    page.reload()
    expect(page.locator("article.user")).to_have_count(1)
    page.get_by_role("button", name="Edit", exact=True).click()
    say(page, "fake: tokens=2 itl_ms=1")
    expect(page.locator("article.assistant .markdown")).to_have_text("the quick")
    assert [role for role, _ in site.texts(chat)] == ["user", "assistant"]


def test_a_limit_is_explained_and_the_message_stays(site: PageUnderTest) -> None:
    context = site.context()
    page = site.logged_in(context, site.key("hurried", requests_per_minute=1))
    say_and_wait(page, "fake: tokens=2 itl_ms=1")
    say(page, "fake: tokens=2 itl_ms=1 once more")
    expect(page.locator(".failure strong")).to_have_text("Your limit is reached")
    expect(page.locator("article.user").last).to_contain_text("once more")
    context.close()


def test_a_retry_that_is_refused_keeps_the_reply(site: PageUnderTest) -> None:
    context = site.context()
    page = site.logged_in(context, site.key("retrying", requests_per_minute=1))
    chat = say_and_wait(page, "fake: tokens=2 itl_ms=1")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".failure strong")).to_have_text("Your limit is reached")
    expect(page.locator("article.assistant .markdown")).to_have_text("the quick")
    assert site.texts(chat, "retrying") == [("user", "fake: tokens=2 itl_ms=1"), ("assistant", "the quick")]
    context.close()


RECORD = """() => new MutationObserver(() => {
  const live = document.querySelector("article.live .live-text");
  if (live) window.streamed = live.textContent;
}).observe(document.getElementById("messages"), {subtree: true, childList: true, characterData: true})"""
"""A script that keeps the streamed text; the final text replaces it."""


def test_a_cut_stream_continues_without_a_gap(site: PageUnderTest, proxy: CuttingProxy) -> None:
    page = site.logged_in(site.context(), url=proxy.url)
    page.evaluate(RECORD)
    say(page, "fake: tokens=13 itl_ms=1 hold=6")
    expect(page.locator("article.live")).to_contain_text("the quick brown fox jumps over")
    proxy.refusing = True
    proxy.cut()
    expect(page.locator(".live-state")).to_contain_text("reconnecting")
    site.assistant.release()
    proxy.refusing = False
    expect(page.locator("article.assistant .markdown")).to_have_text(WORDS)
    assert page.evaluate("window.streamed") == WORDS
    assert site.texts(conversation_of(page))[1][1] == WORDS
    page.context.close()


def test_a_request_whose_connection_is_cut_runs_once(site: PageUnderTest, proxy: CuttingProxy) -> None:
    page = site.logged_in(site.context(), url=proxy.url)
    before = site.assistant.stats()["requests"]
    # Behind the head of the response to POST /v1/responses, before its first event reaches the page.
    proxy.cut_at = b"text/event-stream"
    say(page, "fake: tokens=13 itl_ms=1 ttft_ms=50")
    expect(page.locator("article.assistant .markdown")).to_have_text(WORDS)
    assert proxy.cuts == 1
    assert site.assistant.stats()["requests"] == before + 1
    assert len(site.texts(conversation_of(page))) == 2
    page.context.close()


def test_a_reloaded_page_follows_the_turn_that_runs(site: PageUnderTest, page: Page) -> None:
    say(page, "fake: tokens=13 itl_ms=1 hold=5")
    expect(page.locator("article.live")).to_contain_text("jumps")
    page.reload()
    expect(page.locator("article.live")).to_contain_text("the quick brown fox jumps")
    expect(page.locator("article.user")).to_have_count(1)
    site.assistant.release()
    expect(page.locator("article.assistant .markdown")).to_have_text(WORDS)
    expect(page.locator("article")).to_have_count(2)


def test_a_turn_that_ended_while_no_page_was_open_is_shown(site: PageUnderTest, page: Page) -> None:
    say(page, "fake: tokens=13 itl_ms=1 hold=5")
    expect(page.locator("article.live")).to_contain_text("jumps")
    chat = conversation_of(page)
    page.goto("about:blank")
    site.assistant.release()
    wait_for(lambda: len(site.texts(chat)) == 2, page)
    page.goto(f"{site.url}/#{chat}")
    expect(page.locator("article.assistant .markdown")).to_have_text(WORDS)
    expect(page.locator("article")).to_have_count(2)


def test_two_tabs_of_one_chat_show_the_same(site: PageUnderTest, shared: BrowserContext, page: Page) -> None:
    chat = site.chat("Hello", "Good morning")
    page.goto(f"{site.url}/#{chat}")
    second = site.page(shared)
    second.goto(f"{site.url}/#{chat}")
    expect(page.locator("article")).to_have_count(2)
    expect(second.locator("article")).to_have_count(2)
    say(page, "fake: tokens=13 itl_ms=1 hold=5")
    expect(second.locator("article.live")).to_contain_text("jumps")
    site.assistant.release()
    for one in (page, second):
        expect(one.locator("article.assistant .markdown").last).to_have_text(WORDS)
        expect(one.locator("article")).to_have_count(4)
    # The first directive in the history is that of this turn, too.
    site.assistant.release()
    say_and_wait(second, "And a last message")
    expect(page.locator("article")).to_have_count(6)
    assert len(site.texts(chat)) == 6
    second.close()


def test_offline_keeps_the_message_and_back_online_continues(
    site: PageUnderTest, shared: BrowserContext, page: Page
) -> None:
    say(page, "fake: tokens=13 itl_ms=1 hold=5")
    expect(page.locator("article.live")).to_contain_text("jumps")
    shared.set_offline(True)
    expect(page.locator("#banner")).to_contain_text("You are offline")
    site.assistant.release()
    shared.set_offline(False)
    expect(page.locator("#banner")).to_be_hidden()
    expect(page.locator("article.assistant .markdown")).to_have_text(WORDS)
    shared.set_offline(True)
    say(page, "not lost")
    expect(page.locator("#message")).to_have_value("not lost")
    shared.set_offline(False)
    page.fill("#message", "")


def test_a_revoked_key_shows_the_log_in_and_keeps_the_draft(site: PageUnderTest) -> None:
    context = site.context()
    key = site.key("guest")
    page = site.logged_in(context, key)
    say(page, LONG)
    expect(page.locator("article.live")).to_contain_text("quick")
    page.fill("#message", "a draft")
    store = KeyStore(site.service.data)
    store.revoke(key)
    store.close()
    expect(page.locator("#key")).to_be_visible()
    expect(page.locator("body")).not_to_contain_text("quick")
    page.fill("#key", site.key("guest"))
    page.click("#login button")
    expect(page.locator("#message")).to_have_value("a draft")
    context.close()


def test_log_out_ends_every_tab(site: PageUnderTest) -> None:
    context = site.context()
    page = site.logged_in(context)
    other = site.page(context)
    other.goto(site.url)
    expect(other.locator("#message")).to_be_visible()
    page.click("#account")
    page.click("#logout")
    for one in (page, other):
        expect(one.locator("#key")).to_be_visible()
    assert context.cookies() == []
    assert page.evaluate("fetch('/v1/conversations').then((response) => response.status)") == 401
    context.close()


def test_an_invalid_key_is_refused(site: PageUnderTest) -> None:
    context = site.context()
    page = site.page(context)
    page.goto(site.url)
    page.fill("#key", site.service.key[:-1] + "_")
    page.press("#key", "Enter")
    expect(page.locator("#login-error")).to_contain_text("not valid")
    expect(page.locator("#key")).to_be_focused()
    assert context.cookies() == []
    context.close()
