"""Requests that schemathesis derives from the assistant's OpenAPI description, through the real gateway.

``python -m tests.assistant_clients.fuzz`` sends about 1,300 of them; the tests send a few of each operation.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx2 as httpx

from tests.assistant_clients.site import ServiceWithState, service_with_state

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,use_after_free,ignored_auth"
OPERATIONS = "^/v1/(responses|conversations|files|vector_stores)"


def described(service: ServiceWithState) -> dict[str, Any]:
    """Return the description, which only the assistant's own socket serves."""
    transport = httpx.HTTPTransport(uds=str(service.assistant_socket))
    with httpx.Client(transport=transport, base_url="http://assistant", trust_env=False, timeout=60) as client:
        found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def fuzz(service: ServiceWithState, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run schemathesis in ``folder`` as a new user, with further ``options``."""
    schema = folder / "openapi.json"
    schema.write_text(json.dumps(described(service)))
    argv = [sys.executable, "-m", "schemathesis.cli", "run", str(schema), "--url", service.url]
    argv += ["--header", f"Authorization: Bearer {service.new_user('fuzz')}", "--checks", CHECKS]
    argv += ["--include-path-regex", OPERATIONS, "--request-timeout", "60", "--no-color"]
    argv += ["--seed", "1", "--generation-deterministic", *options]
    return subprocess.run(argv, capture_output=True, text=True, check=False, cwd=folder)


def main() -> int:
    """Return the exit code of schemathesis: 0 if every response is as described."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--max-examples", default="10", help="random examples of one operation")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, service_with_state(Path(name) / "site") as service:
        options = ("--phases", "coverage,fuzzing", "--max-examples", args.max_examples)
        done = fuzz(service, Path(name), *options)
    print(done.stdout)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
