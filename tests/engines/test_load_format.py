"""The loader of weights by the place where they are, and the reasons that the command prints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from appliance.contract.load import load
from appliance.contract.model import Engine
from appliance.engines import argv
from appliance.engines.load_format import WeightsPlace, choose_loader, filesystem_of

ROOT = Path(__file__).resolve().parents[2]
SITE = load(ROOT / "examples" / "one-card.toml")
MOUNTS = """\
/dev/nvme0n1p2 / ext4 rw,relatime 0 0
tmpfs /srv tmpfs rw 0 0
/dev/md127 /srv/models xfs rw,noatime 0 0
nas:/weights /mnt/my\\040weights nfs4 rw 0 0
"""


def engine(**changes: Any) -> Engine:
    return SITE.engines["chat"].model_copy(update=changes)


@pytest.mark.parametrize(
    ("place", "loader", "environment"),
    [
        (WeightsPlace("tmpfs"), "instanttensor", {}),
        (WeightsPlace("tmpfs", warm=True), "instanttensor", {}),
        (WeightsPlace("xfs"), "instanttensor", {}),
        (WeightsPlace("xfs", warm=True), "instanttensor", {"INSTANTTENSOR_BACKEND": "BUFFERED"}),
        (WeightsPlace("nfs4"), "auto", {}),
        (WeightsPlace("zfs"), "fastsafetensors", {}),
        (WeightsPlace("unknown"), "fastsafetensors", {}),
    ],
)
def test_the_loader_of_each_place(place: WeightsPlace, loader: str, environment: dict[str, str]) -> None:
    choice = choose_loader(engine(), place)
    assert (choice.options["load-format"], choice.environment) == (loader, environment)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "llamacpp"},
        {"device": "cpu"},
        {"options": {"load-format": "auto"}},
        {"options": {"safetensors-load-strategy": "prefetch"}},
    ],
)
def test_other_engines_and_named_loaders_are_left_alone(changes: dict[str, Any]) -> None:
    choice = choose_loader(engine(**changes), WeightsPlace("xfs", warm=True))
    assert (choice.options, choice.environment) == ({}, {})


@pytest.mark.parametrize(
    ("path", "filesystem"),
    [
        ("/srv/models/hub", "xfs"),
        ("/srv/modelsX", "tmpfs"),
        ("/home", "ext4"),
        ("/mnt/my weights/a", "nfs4"),
        ("relative", "unknown"),
    ],
)
def test_the_file_system_of_a_path(path: str, filesystem: str) -> None:
    assert filesystem_of(Path(path), f"{MOUNTS}short line\n") == filesystem


def test_the_command_has_the_loader_and_its_reason() -> None:
    replica = argv.find(SITE, "chat")
    command = argv.command(SITE, replica, ROOT, place=WeightsPlace("xfs", warm=True))
    assert command.argv[command.argv.index("--load-format") + 1] == "instanttensor"
    assert command.environment["INSTANTTENSOR_BACKEND"] == "BUFFERED"
    assert command.reasons[0] == "loader: instanttensor, buffered: `models warm` filled the page cache"
    own = SITE.model_copy(update={"engines": {"chat": engine(environment={"INSTANTTENSOR_BACKEND": "AIO"})}})
    command = argv.command(own, argv.find(own, "chat"), ROOT, place=WeightsPlace("xfs", warm=True))
    assert command.environment["INSTANTTENSOR_BACKEND"] == "AIO"


def test_why_is_printed_before_the_command(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "appliance", "engine", "argv", "chat", "--config", "examples/one-card.toml"]
    environment = {**os.environ, "HF_HOME": str(tmp_path)}
    plain, why = (
        subprocess.run(
            [*words, *more], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        ).stdout
        for more in ((), ("--why",))
    )
    reasons = [line for line in why.splitlines() if line.startswith("# ")]
    assert reasons[0].startswith("# loader: ")
    assert why == "".join(f"{line}\n" for line in reasons) + plain
