"""The files of a deleted chat: those beyond the first page of the list, and one that is deleted already."""

from __future__ import annotations

from playwright.sync_api import Page, Route

from tests.page.conftest import PageUnderTest


def test_all_files_of_a_store_are_deleted(site: PageUnderTest, page: Page) -> None:
    """The list has two files a page here, in place of a hundred."""
    with site.assistant.http() as client:
        ids = [
            client.post(
                "/files", files={"file": (f"{n}.txt", b"A short text.")}, data={"purpose": "assistants"}
            ).json()["id"]
            for n in range(5)
        ]
        store = client.post("/vector_stores", json={"name": "many", "file_ids": ids}).json()["id"]
        deleted: list[str] = []

        def shorter(route: Route) -> None:
            route.continue_(url=route.request.url.replace("limit=100", "limit=2"))

        def twice(route: Route) -> None:
            deleted.append(route.request.url.rpartition("/")[2])
            if len(deleted) == 2:
                assert client.delete(f"/files/{deleted[-1]}").status_code == 200
            route.continue_()

        page.route("**/vector_stores/*/files?*", shorter)
        page.route("**/v1/files/*", twice)
        script = page.locator("script[src$='/main.js']").get_attribute("src") or ""
        module = script.replace("main.js", "files.js")
        page.evaluate(
            "([module, store]) => import(module).then((files) => files.deleteStore(store))", [module, store]
        )
        assert sorted(deleted) == sorted(ids)
        assert {client.get(f"/files/{one}").status_code for one in ids} == {404}
        assert client.get(f"/vector_stores/{store}").status_code == 404
