"""Ids: unique, in the order of their creation, with the form that requests may name."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from appliance.assistant.ids import CONVERSATION, FILE, is_id, new_id


def test_ids_increase_and_differ_across_threads() -> None:
    with ThreadPoolExecutor(8) as pool:
        batches = list(pool.map(lambda _: [new_id(CONVERSATION) for _ in range(2000)], range(8)))
    assert all(batch == sorted(batch) for batch in batches)
    assert len({one for batch in batches for one in batch}) == 16_000


def test_the_version_and_the_variant_are_those_of_rfc_9562() -> None:
    number = int(new_id(FILE).removeprefix("file-"), 16)
    assert (number >> 76 & 15, number >> 62 & 3) == (7, 2)


@pytest.mark.parametrize(
    "text", ["", "conv", "conv_", "conv_a b", "conv_../x", "conv_" + "a" * 60, "ключ_1", "a_1\n"]
)
def test_other_texts_are_not_ids(text: str) -> None:
    assert not is_id(text)


def test_a_new_id_is_an_id() -> None:
    assert is_id(new_id(CONVERSATION))
    assert is_id(new_id(FILE))
