"""One service with state for the tests of this folder, which run in one worker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.assistant_clients.sdk_calls import NodeCalls, PythonCalls, SdkCalls
from tests.assistant_clients.site import ServiceWithState, service_with_state
from tests.clients.install import MissingError, install, node
from tests.postgres import POSTGRES, running_cluster


@pytest.fixture(scope="session")
def stateful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceWithState]:
    """The service, on PostgreSQL if this machine has it; the tests of the assistant itself use SQLite."""
    with ExitStack() as stack:
        url = stack.enter_context(running_cluster()).database("stateful") if POSTGRES is not None else None
        yield stack.enter_context(
            service_with_state(tmp_path_factory.mktemp("stateful") / "site", database_url=url)
        )


@pytest.fixture(scope="session")
def python_calls(stateful: ServiceWithState) -> Iterator[PythonCalls]:
    with stateful.client(stateful.new_user("python")) as client:
        yield PythonCalls(client)


@pytest.fixture(scope="session")
def node_calls(stateful: ServiceWithState, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeCalls]:
    """The SDK of Node; without Node its tests are skipped, except in CI, which fails."""
    try:
        program = node()
    except MissingError as error:
        if os.environ.get("CI"):
            pytest.fail(f"the Node SDK cannot run: {error}")
        pytest.skip(f"NOT CHECKED: openai-node: {error}")
    install()
    log = tmp_path_factory.mktemp("node") / "node.log"
    calls = NodeCalls(program, f"{stateful.url}/v1", stateful.new_user("node"), log)
    try:
        yield calls
    finally:
        calls.close()


@pytest.fixture(params=["openai-py", "openai-node"])
def sdk(request: pytest.FixtureRequest) -> SdkCalls:
    name = "python_calls" if request.param == "openai-py" else "node_calls"
    found: SdkCalls = request.getfixturevalue(name)
    return found
