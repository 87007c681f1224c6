"""A link of another site to the page: it arrives without the session, and the page loads itself again, once."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from tests.page.conftest import PageUnderTest
from tests.page.other_site import other_site


@pytest.fixture(scope="module")
def elsewhere(site: PageUnderTest) -> Iterator[str]:
    with other_site(f"{site.url}/#kept") as url:
        yield url


def loads_of(page: Page, site: PageUnderTest) -> list[str]:
    """Return the list that gets the address of each document of the service that ``page`` loads."""
    found: list[str] = []

    def count(one: Page) -> None:
        if one.url.startswith(site.url):
            found.append(one.url)

    page.on("domcontentloaded", count)
    return found


def test_a_link_of_another_site_opens_the_session(
    site: PageUnderTest, shared: BrowserContext, elsewhere: str
) -> None:
    page = site.page(shared)
    page.goto(elsewhere)
    loads = loads_of(page, site)
    page.click("a")
    expect(page.locator("#model option").first).to_be_attached()
    assert page.url.startswith(f"{site.url}/?")
    assert page.url.endswith("#kept"), "a link to a chat opens that chat"
    assert len(loads) == 2, "the first has no cookie, the second has it"
    page.close()


def test_a_second_load_without_a_session_is_the_last(site: PageUnderTest, elsewhere: str) -> None:
    context = site.context()
    page = site.page(context)
    asked: list[str] = []

    def valid(route: Route) -> None:
        asked.append(route.request.url)
        route.fulfill(json={"user": "ada"})

    # As in a browser whose second load is of the other site too: the script has the cookie, the page has not.
    page.route("**/session", valid)
    loads = loads_of(page, site)
    page.goto(elsewhere)
    page.click("a")
    page.wait_for_url(re.compile(r"[?&]entered="))
    expect(page.locator("#key")).to_be_visible()
    page.wait_for_load_state("networkidle")
    page.fill("#key", "sk-0")
    page.wait_for_load_state("networkidle")
    assert (len(loads), len(asked)) == (2, 1)
    context.close()
