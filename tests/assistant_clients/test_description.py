"""The assistant's OpenAPI description: schemathesis holds it through the real gateway."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.assistant_clients.fuzz import described, fuzz
from tests.assistant_clients.site import ServiceWithState
from tests.conftest import http


def test_every_operation_keeps_its_description(stateful: ServiceWithState, tmp_path: Path) -> None:
    done = fuzz(stateful, tmp_path, "--phases", "fuzzing", "--max-examples", "2")
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_the_description_names_the_statuses_and_the_bodies(stateful: ServiceWithState) -> None:
    paths = described(stateful)["paths"]
    for path, operations in paths.items():
        for operation in operations.values():
            assert "422" not in operation["responses"], path
            assert "400" in operation["responses"] or path == "/health", path
    assert "requestBody" in paths["/v1/responses"]["post"]
    assert "multipart/form-data" in paths["/v1/files"]["post"]["requestBody"]["content"]


@pytest.mark.parametrize("size", [2, 500_000])
def test_a_method_that_is_not_available_is_405_also_with_a_body(stateful: ServiceWithState, size: int) -> None:
    # The assistant reads the body first: a connection that ends with unread bytes is reset, now and then.
    for _ in range(20):
        url = f"{stateful.url}/v1/conversations/conv_0"
        response = http(url, body={"metadata": {"a": "x" * size}}, key=stateful.key, method="PUT")
        assert (response.status, response.headers["allow"]) == (405, "GET")
