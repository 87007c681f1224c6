"""Two tenants at once: nothing of one ever reaches the other, whatever the order of their requests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import httpx
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tests.assistant.api.conftest import RunningAssistant, headers

UNKNOWN = "0" * 32
WORDS = ("kettle", "lantern", "meadow", "harbour")

tenants = st.sampled_from(["t0", "t1"])
picks = st.integers(min_value=0, max_value=1 << 16)
words = st.sampled_from(WORDS)


class TwoTenants(RuleBasedStateMachine):
    """Requests of two tenants, compared with a dictionary a tenant."""

    client: ClassVar[httpx.Client]
    runs: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        # Each run has tenants of its own: the server keeps those of the runs before.
        TwoTenants.runs += 1
        self.names = {name: f"{name}-{TwoTenants.runs}" for name in ("t0", "t1")}
        self.items: dict[str, dict[str, dict[str, str]]] = {"t0": {}, "t1": {}}
        self.titles: dict[str, dict[str, str]] = {"t0": {}, "t1": {}}
        self.deleted: list[str] = []

    def call(self, tenant: str, method: str, path: str, **more: Any) -> httpx.Response:
        return self.client.request(method, f"/v1/conversations{path}", headers=headers(self.names[tenant]), **more)

    def ok(self, tenant: str, method: str, path: str, **more: Any) -> Any:
        response = self.call(tenant, method, path, **more)
        assert response.status_code == 200, response.text
        return response.json()

    def own(self, tenant: str, pick: int) -> str | None:
        mine = sorted(self.items[tenant])
        return mine[pick % len(mine)] if mine else None

    @rule(tenant=tenants, title=words, word=words)
    def create(self, tenant: str, title: str, word: str) -> None:
        made = self.ok(
            tenant,
            "POST",
            "",
            json={"metadata": {"title": title}, "items": [{"role": "user", "content": f"{tenant} {word}"}]},
        )
        (item,) = self.ok(tenant, "GET", f"/{made['id']}/items")["data"]
        self.items[tenant][made["id"]] = {item["id"]: f"{tenant} {word}"}
        self.titles[tenant][made["id"]] = title

    @rule(tenant=tenants, pick=picks, word=words)
    def add(self, tenant: str, pick: int, word: str) -> None:
        if (one := self.own(tenant, pick)) is not None:
            body = {"items": [{"role": "assistant", "content": f"{tenant} {word}"}]}
            (item,) = self.ok(tenant, "POST", f"/{one}/items", json=body)["data"]
            self.items[tenant][one][item["id"]] = f"{tenant} {word}"

    @rule(tenant=tenants, pick=picks, title=words)
    def rename(self, tenant: str, pick: int, title: str) -> None:
        if (one := self.own(tenant, pick)) is not None:
            self.ok(tenant, "POST", f"/{one}", json={"metadata": {"title": title}})
            self.titles[tenant][one] = title

    @rule(tenant=tenants, pick=picks)
    def delete_item(self, tenant: str, pick: int) -> None:
        one = self.own(tenant, pick)
        if one is not None and self.items[tenant][one]:
            item = sorted(self.items[tenant][one])[pick % len(self.items[tenant][one])]
            self.ok(tenant, "DELETE", f"/{one}/items/{item}")
            del self.items[tenant][one][item]

    @rule(tenant=tenants, pick=picks)
    def delete(self, tenant: str, pick: int) -> None:
        if (one := self.own(tenant, pick)) is not None:
            self.ok(tenant, "DELETE", f"/{one}")
            del self.items[tenant][one], self.titles[tenant][one]
            self.deleted.append(one)

    @precondition(lambda self: any(self.items.values()))
    @rule(tenant=tenants, pick=picks, call=st.integers(min_value=0, max_value=8))
    def try_foreign(self, tenant: str, pick: int, call: int) -> None:
        """Request a conversation of the other tenant, a deleted one and an unknown one: the same response."""
        other = "t1" if tenant == "t0" else "t0"
        foreign = sorted(self.items[other]) + self.deleted
        if not foreign:
            return
        target = foreign[pick % len(foreign)]
        item = next(iter(self.items[other].get(target, {})), f"msg_{UNKNOWN}")
        message = {"role": "user", "content": "x"}
        method, path, body = (
            ("GET", "/{id}", None),
            ("POST", "/{id}", {"metadata": {"title": "taken"}}),
            ("DELETE", "/{id}", None),
            ("GET", "/{id}/items", None),
            ("POST", "/{id}/items", {"items": [message]}),
            ("GET", f"/{{id}}/items/{item}", None),
            ("DELETE", f"/{{id}}/items/{item}", None),
            ("GET", "/{id}/export", None),
            ("GET", "?after={id}", None),
        )[call]
        first, second = (
            self.call(tenant, method, path.format(id=one), json=body) for one in (target, f"conv_{UNKNOWN}")
        )
        assert first.status_code == second.status_code == 404
        assert first.text.replace(target, f"conv_{UNKNOWN}") == second.text

    @rule(tenant=tenants, pick=picks)
    def refer_to_foreign_item(self, tenant: str, pick: int) -> None:
        """Name an item of the other tenant, also through a conversation of one's own."""
        other = "t1" if tenant == "t0" else "t0"
        mine = self.own(tenant, pick)
        foreign = sorted(item for items in self.items[other].values() for item in items)
        if mine is None or not foreign:
            return
        item = foreign[pick % len(foreign)]
        reference = {"items": [{"type": "item_reference", "id": item}]}
        for response in (
            self.call(tenant, "POST", f"/{mine}/items", json=reference),
            self.call(tenant, "POST", "", json=reference),
            self.call(tenant, "GET", f"/{mine}/items/{item}"),
            self.call(tenant, "DELETE", f"/{mine}/items/{item}"),
            self.call(tenant, "GET", f"/{mine}/items", params={"after": item}),
        ):
            assert response.status_code == 404
            assert response.json()["error"]["message"] == f"No item found with id '{item}'."

    @rule(tenant=tenants, word=words)
    def search(self, tenant: str, word: str) -> None:
        found = self.ok(tenant, "GET", "", params={"query": word, "limit": 100})["data"]
        expected = {
            one
            for one, items in self.items[tenant].items()
            if word == self.titles[tenant][one] or any(word in text for text in items.values())
        }
        assert {one["id"] for one in found} == expected

    @invariant()
    def each_has_exactly_its_own(self) -> None:
        for tenant, conversations in self.items.items():
            listed = self.ok(tenant, "GET", "", params={"limit": 100})["data"]
            assert {one["id"]: one["metadata"]["title"] for one in listed} == self.titles[tenant]
            for one in conversations:
                page = self.ok(tenant, "GET", f"/{one}/items", params={"limit": 100, "order": "asc"})["data"]
                assert {item["id"]: item["content"][0]["text"] for item in page} == conversations[one]


@pytest.fixture
def client(assistant: RunningAssistant) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=assistant.url, trust_env=False, timeout=60) as opened:
        yield opened


def test_nothing_of_one_tenant_reaches_the_other(client: httpx.Client) -> None:
    TwoTenants.client = client
    run_state_machine_as_test(
        TwoTenants,
        settings=settings(
            max_examples=8,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            # To shorten a failing run takes minutes of requests.
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
        ),
    )
