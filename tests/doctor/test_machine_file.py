"""Invalid descriptions of a machine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from appliance.contract.machine import load_machine
from appliance.errors import ConfigError
from tests.doctor.fakehost import FakeHost


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version: input should be 1"),
        ({"host": "a b"}, "host: string should match"),
        ({"unit": []}, "unit: extra inputs are not permitted"),
        ({"tunnel": {}}, "tunnel.interface: field required"),
    ],
)
def test_an_invalid_machine_file_is_rejected(
    change: dict[str, Any], message: str, gpu: FakeHost, tmp_path: Path
) -> None:
    file = tmp_path / "machine.json"
    file.write_text(json.dumps(gpu.machine | change))
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_machine(file)


def test_a_machine_file_that_is_missing_or_not_json_is_rejected(tmp_path: Path) -> None:
    file = tmp_path / "machine.json"
    file.write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        load_machine(file)
    file.unlink()
    with pytest.raises(ConfigError, match="no such file"):
        load_machine(file)
