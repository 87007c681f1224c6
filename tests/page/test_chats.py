"""The list of chats, hostile and huge messages, files, keyboard, languages, themes and narrow screens."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, FilePayload, Page, Route, expect

from tests.page.conftest import MOST_FILE_BYTES, PageUnderTest, conversation_of, say, say_and_wait, wait_for

HOSTILE = """<script>document.title = "taken"</script><img src=x onerror="document.title='taken'">

[press](javascript:document.title='taken') ![pixel](https://tracker.example/p.png)
<style>body { display: none }</style> <a href="https://evil.example" style="position:fixed;inset:0">x</a>

</div></article></main><h1 style="position:fixed;inset:0;background:red">TAKEN</h1>

$\\text{<img src=x onerror=document.title='taken'>}$ <svg onload="document.title='taken'"><form action=https://evil.example>
"""


@pytest.fixture(scope="module")
def many(site: PageUnderTest) -> str:
    """The key of a user with 200 chats."""
    key = site.key("many")
    store = site.store()
    for number in range(200):
        text = "Какие книги читать о космосе?" if number == 17 else f"Question number {number}"
        content = [{"type": "input_text", "text": text}]
        item = {"type": "message", "role": "user", "status": "completed", "content": content}
        metadata = {"title": f"Chat {number:03}"}
        key_id = site.assistant.key_ids["many"]
        store.create("many", key_id=key_id, now=time.time() - 200 + number, metadata=metadata, items=[item])
    return key


def test_200_chats_can_be_paged_and_searched(site: PageUnderTest, many: str) -> None:
    context = site.context()
    page = site.logged_in(context, many)
    links = page.locator("#chats a")
    expect(links).to_have_count(40)
    expect(links.first).to_have_text("Chat 199")
    for count in (80, 120, 160, 200):
        page.locator(".more-chats").scroll_into_view_if_needed()
        expect(links).to_have_count(count)
    expect(page.locator(".more-chats")).to_have_count(0)
    assert len(set(links.all_inner_texts())) == 200
    page.fill("#search", "книга космос")
    expect(links).to_have_text(["Chat 017"])
    links.first.click()
    expect(page.locator("article.user")).to_contain_text("Какие книги")
    page.fill("#search", "nowhere")
    expect(page.locator("#chats")).to_have_text("Nothing found.")
    page.fill("#search", "")
    expect(links).to_have_count(40)
    context.close()


def test_a_chat_can_be_renamed_exported_and_deleted(site: PageUnderTest, page: Page) -> None:
    chat = say_and_wait(page, "fake: tokens=2 itl_ms=1 original")
    page.click("#chat-menu")
    page.click("#rename")
    page.fill("#text-line", "<b>Renamed</b> & kept")
    page.press("#text-line", "Enter")
    expect(page.locator("#chat-title")).to_have_text("<b>Renamed</b> & kept")
    expect(page.locator(f"#chats a[data-chat='{chat}']")).to_have_text("<b>Renamed</b> & kept")
    page.click("#chat-menu")
    with page.expect_download() as download:
        page.click("#export")
    assert json.loads(Path(download.value.path()).read_text())["conversation"]["id"] == chat
    page.click("#chat-menu")
    page.click("#delete")
    page.locator("#delete-dialog").get_by_role("button", name="Cancel").click()
    assert len(site.texts(chat)) == 2
    page.click("#chat-menu")
    page.click("#delete")
    page.locator("#delete-dialog .primary").click()
    expect(page.locator("#welcome")).to_be_visible()
    expect(page.locator(f"#chats a[data-chat='{chat}']")).to_have_count(0)
    # From another address: between two of the page only the hash changes, and the page loads nothing anew.
    page.goto("about:blank")
    page.goto(f"{site.url}/#{chat}")
    expect(page.locator(".failure")).to_contain_text("does not exist any more")


def test_role_and_style_reach_the_model(site: PageUnderTest, page: Page) -> None:
    page.select_option("#model", "poet")
    page.click("#style")
    page.fill("#text-area", "Write one line.")
    page.locator("#text-dialog .primary").click()
    expect(page.locator("#style")).to_have_text("Style is set")
    chat = say_and_wait(page, "fake: tokens=2 itl_ms=1")
    system = site.assistant.last_body()["messages"][0]
    assert system["role"] == "system"
    assert "Rhyme." in system["content"]
    assert "Write one line." in system["content"]
    page.reload()
    expect(page.locator("#model")).to_have_value("poet")
    page.select_option("#model", "fake")
    with site.assistant.http() as client:
        wait_for(lambda: "role" not in client.get(f"/conversations/{chat}").json()["metadata"], page)


def test_a_hostile_message_does_nothing(site: PageUnderTest, shared: BrowserContext) -> None:
    chat = site.chat("Make trouble", HOSTILE)
    page = site.page(shared)
    hosts: set[str] = set()
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
    page.goto(f"{site.url}/#{chat}")
    body = page.locator("article.assistant .markdown")
    expect(body).to_contain_text("TAKEN")
    assert page.title() == "Prepared · Chat"
    assert body.locator("img, script, style, svg, form, h1, [style], [onerror], [onload]").count() == 0
    assert page.locator("a[href^=javascript]").count() == 0
    expect(body.get_by_role("link", name="pixel")).to_have_attribute("rel", "noopener noreferrer nofollow")
    assert hosts == {site.url.removeprefix("http://")}
    expect(page.locator("#message")).to_be_visible()
    page.close()


def test_a_hostile_stream_does_nothing(page: Page) -> None:
    say_and_wait(page, f"fake: echo=1 tokens=20 itl_ms=1\n{HOSTILE}")
    assert "taken" not in page.title()
    assert page.locator("#messages img, #messages script, #messages style").count() == 0


def test_a_huge_table_and_a_long_text_do_not_freeze_the_page(site: PageUnderTest, page: Page) -> None:
    rows = "".join(f"|{number}|{'x' * 3}|\n" for number in range(10_000))
    table = site.chat("Table", "|a|b|\n|-|-|\n" + rows[:95_000])
    page.goto(f"{site.url}/#{table}")
    expect(page.locator("td.more")).to_contain_text("more rows")
    assert page.locator("article.assistant tr").count() == 301
    long = site.chat("Long", "**word** " * 111_112, "Next", "Short")
    page.goto(f"{site.url}/#{long}")
    expect(page.locator("article.assistant .plain")).to_contain_text("**word**")
    expect(page.locator("article.assistant .markdown").last).to_have_text("Short")
    page.fill("#message", "still quick")
    expect(page.locator("#send")).to_be_enabled()
    page.fill("#message", "")


def test_earlier_messages_are_loaded_on_request(site: PageUnderTest, page: Page) -> None:
    chat = site.chat(*(f"Message {number}" for number in range(20)))
    with site.assistant.http() as client:
        for start in (20, 40):
            items = [{"role": "user", "content": f"Message {number}"} for number in range(start, start + 20)]
            client.post(f"/conversations/{chat}/items", json={"items": items})
    page.goto(f"{site.url}/#{chat}")
    expect(page.locator("article")).to_have_count(40)
    page.click("#older")
    expect(page.locator("article")).to_have_count(60)
    expect(page.locator("article").first).to_contain_text("Message 0")
    expect(page.locator("#older")).to_be_hidden()


def test_a_file_is_read_searched_and_cited(site: PageUnderTest, page: Page) -> None:
    text = "The capital of Italy is Rome. " * 20
    page.set_input_files("#file-input", {"name": "italy.md", "mimeType": "text/markdown", "buffer": text.encode()})
    expect(page.locator(".file .file-state")).to_have_text("ready")
    chat = say_and_wait(page, "fake: tokens=4 itl_ms=1 search=1")
    chip = page.locator(".sources .chip")
    expect(chip).to_contain_text("italy.md")
    chip.click()
    expect(page.locator("#source-body")).to_contain_text("The capital of Italy is Rome.")
    with page.expect_download() as download:
        page.click("#source-download")
    assert Path(download.value.path()).read_text() == text
    page.keyboard.press("Escape")
    page.reload()
    expect(page.locator(".file .file-name")).to_have_text("italy.md")
    expect(page.locator(".sources .chip")).to_contain_text("italy.md")
    assert conversation_of(page) == chat
    page.locator(".file").get_by_role("button").click()
    expect(page.locator(".file")).to_have_count(0)
    page.reload()
    expect(page.locator("article.assistant")).to_have_count(1)
    expect(page.locator(".file")).to_have_count(0)


def test_one_of_several_files_fails_and_the_others_are_ready(page: Page) -> None:
    good = FilePayload(name="good.txt", mimeType="text/plain", buffer="Хорошо. ".encode() * 50)
    bad = FilePayload(name="bad.bin", mimeType="application/octet-stream", buffer=bytes(range(256)) * 8)
    empty = FilePayload(name="empty.txt", mimeType="text/plain", buffer=b"")
    page.set_input_files("#file-input", [bad, empty, good])
    states = page.locator(".file .file-state")
    expect(states.nth(2)).to_have_text("ready")
    expect(states.nth(0)).to_contain_text("cannot be read")
    expect(states.nth(1)).to_have_text("is empty")
    expect(page.locator(".file.failed")).to_have_count(2)


def test_a_file_over_the_limit_is_refused_before_it_is_sent(
    site: PageUnderTest, shared: BrowserContext, page: Page, tmp_path: Path
) -> None:
    large = tmp_path / "large.txt"
    with large.open("wb") as file:
        file.truncate(MOST_FILE_BYTES + 1)
    uploads: list[str] = []
    page.on("request", lambda one: uploads.append(one.url) if one.url.endswith("/v1/files") else None)
    page.set_input_files("#file-input", large)
    expect(page.locator(".file .file-state")).to_have_text("is over the limit of 20 MB")
    assert uploads == []


def test_a_dropped_file_is_added(page: Page) -> None:
    transfer = page.evaluate_handle(
        """() => { const data = new DataTransfer();
        data.items.add(new File(["Dropped words. ".repeat(40)], "dropped.txt", {type: "text/plain"}));
        return data; }"""
    )
    page.dispatch_event("#main", "dragenter", {"dataTransfer": transfer})
    expect(page.locator("#drop")).to_be_visible()
    page.dispatch_event("#main", "drop", {"dataTransfer": transfer})
    expect(page.locator("#drop")).to_be_hidden()
    expect(page.locator(".file .file-state")).to_have_text("ready")


def test_the_page_works_with_the_keyboard_alone(site: PageUnderTest, page: Page) -> None:
    site.chat("A first", "Reply", title="Keyboard one")
    site.chat("A second", "Reply", title="Keyboard two")
    page.reload()
    keys = page.keyboard
    expect(page.locator("#message")).to_be_focused()
    keys.type("fake: tokens=2 itl_ms=1")
    keys.press("Enter")
    expect(page.locator("article.assistant:not(.live)")).to_have_count(1)
    page.locator("#scroller").focus()
    keys.press("/")
    expect(page.locator("#search")).to_be_focused()
    keys.type("keyboard")
    expect(page.locator("#chats a")).to_have_text(["Keyboard two", "Keyboard one"])
    keys.press("ArrowDown")
    keys.press("ArrowDown")
    keys.press("Enter")
    expect(page.locator("#chat-title")).to_have_text("Keyboard one")
    keys.type("fake: tokens=400 itl_ms=20")
    keys.press("Shift+Enter")
    keys.press("Control+Enter")
    expect(page.locator("article.live")).to_contain_text("quick")
    keys.press("Escape")
    expect(page.locator("article.assistant .note")).to_have_text("Stopped")
    page.locator("#chat-menu").focus()
    keys.press("Enter")
    expect(page.locator("#rename")).to_be_focused()
    keys.press("ArrowDown")
    expect(page.locator("#restyle")).to_be_focused()
    keys.press("Escape")
    expect(page.locator("#chat-menu")).to_be_focused()
    expect(page.locator("#chat-menu-list")).to_be_hidden()


def test_the_page_speaks_russian(site: PageUnderTest) -> None:
    context = site.context(locale="ru-RU")
    page = site.page(context)
    page.goto(site.url)
    expect(page.locator("h1")).to_have_text("Ваш личный ассистент")
    page.fill("#key", "sk-x")
    page.press("#key", "Enter")
    expect(page.locator("#login-error")).to_contain_text("ключ не подходит")
    page.fill("#key", site.service.key)
    page.press("#key", "Enter")
    expect(page.locator("#message")).to_have_attribute("placeholder", "Напишите сообщение")
    # The scripts that open the dialog run: the log-in has loaded a new page.
    expect(page.locator("#model option").first).to_be_attached()
    assert page.locator("html").get_attribute("lang") == "ru"
    page.click("#account")
    page.check("#language [value=en]")
    expect(page.locator("#message")).to_have_attribute("placeholder", "Write a message")
    page.goto(site.url)
    expect(page.locator("#message")).to_have_attribute("placeholder", "Write a message")
    context.close()


BACKGROUND = "getComputedStyle(document.body).backgroundColor"


def test_dark_follows_the_system_and_the_switch(site: PageUnderTest) -> None:
    context = site.context(color_scheme="dark")
    page = site.logged_in(context)
    assert page.evaluate(BACKGROUND) == "rgb(25, 24, 22)"
    assert low_contrasts(page) == []
    page.click("#account")
    page.check("#theme [value=light]")
    assert page.evaluate(BACKGROUND) == "rgb(250, 249, 246)"
    page.reload()
    assert page.evaluate(BACKGROUND) == "rgb(250, 249, 246)"
    assert low_contrasts(page) == []
    page.emulate_media(color_scheme="light")
    page.click("#account")
    page.check("#theme [value=dark]")
    assert page.evaluate(BACKGROUND) == "rgb(25, 24, 22)"
    context.close()


def low_contrasts(page: Page) -> list[str]:
    """Return the visible texts whose contrast is below 4.5."""
    script = (Path(__file__).parent / "low_contrasts.js").read_text()
    found: list[str] = page.evaluate(script)
    return found


def test_each_control_has_a_name(page: Page) -> None:
    say_and_wait(page, "fake: tokens=2 itl_ms=1")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, textarea, select, a[href], nav, dialog")]
        .filter((one) => !(one.textContent.trim() || one.ariaLabel || one.labels?.length || one.title
          || one.getAttribute("aria-labelledby")))
        .map((one) => one.outerHTML.slice(0, 100))"""
    )
    assert nameless == []
    assert page.locator("#status").get_attribute("aria-live") == "polite"


def overflow(page: Page) -> int:
    """Return the pixels by which the page is wider than its window."""
    width: int = page.evaluate("document.scrollingElement.scrollWidth - innerWidth")
    scroller: int = page.evaluate(
        "(() => { const one = document.getElementById('scroller');"
        " return one ? one.scrollWidth - one.clientWidth : 0; })()"
    )
    return max(width, scroller)


def test_a_screen_of_360_pixels_has_no_horizontal_scroll(site: PageUnderTest) -> None:
    wide = f"{'w' * 300}\n\n|{'|'.join('abcdefghijkl')}|\n|{'-|' * 12}\n|{'|'.join(['long words'] * 12)}|\n\n"
    wide += f"```\n{'code ' * 60}\n```\n\n$$ {'+'.join('abcdefgh' * 9)} $$\n\n[x](https://e.org/{'y' * 200})"
    chat = site.chat("q" * 200, wide, title="t" * 200)
    context = site.context(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    page = site.page(context)
    page.goto(site.url)
    assert overflow(page) == 0
    page.fill("#key", site.service.key)
    page.click("#login button")
    expect(page.locator("#welcome")).to_be_visible()
    assert overflow(page) == 0
    page.goto(f"{site.url}/#{chat}")
    expect(page.locator("article.assistant table")).to_be_visible()
    assert overflow(page) == 0
    expect(page.locator("#sidebar")).to_be_hidden()
    page.click("#open-menu")
    expect(page.locator("#new-chat")).to_be_focused()
    page.click("#account")
    expect(page.locator("#account-dialog")).to_be_visible()
    assert overflow(page) == 0
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    expect(page.locator("#sidebar")).to_be_hidden()
    expect(page.locator("#open-menu")).to_be_focused()
    context.close()


def test_usage_is_shown_if_the_service_reports_it(site: PageUnderTest, page: Page) -> None:
    page.click("#account")
    expect(page.locator("#usage")).not_to_be_empty()
    page.keyboard.press("Escape")
    usage = {
        "object": "usage",
        "user": "ada",
        "plan": "family",
        "price": "10 EUR per month",
        "limits": {"requests_per_minute": 30, "tokens_per_minute": None, "requests_in_flight": None},
        "today": {"used": 1200, "reserved": 0, "limit": 10_000, "remaining": 8800, "reset_at": 1_800_000_000},
        "month": {"used": 5000, "reserved": 0, "limit": None, "remaining": None, "reset_at": None},
    }
    page.route("**/v1/usage", lambda route: route.fulfill(json=usage))
    page.click("#account")
    place = page.locator("#usage")
    expect(place).to_contain_text("family · 10 EUR per month")
    expect(place).to_contain_text("resets 15 Jan 2027")
    expect(place).to_contain_text("1,200 of 10,000")
    expect(place).to_contain_text("left 8,800")
    expect(place).to_contain_text("no limit")
    page.route("**/v1/usage", lambda route: route.fulfill(status=404, json={"error": {"message": "none"}}))
    page.keyboard.press("Escape")
    page.click("#account")
    expect(place).to_have_text("This service does not report usage on the page.")


def test_voice_notes_need_a_model_that_transcribes(page: Page) -> None:
    expect(page.locator("#record")).to_be_hidden()

    def with_voice(route: Route) -> None:
        cards = [{"id": "fake", "task": "generate"}, {"id": "whisper", "task": "transcribe"}]
        route.fulfill(json={"object": "list", "data": cards})

    page.route("**/v1/models", with_voice)
    page.reload()
    expect(page.locator("#record")).to_be_visible()
    expect(page.locator("#model option")).to_have_count(1)
    say(page, "")
    expect(page.locator("article")).to_have_count(0)
