"""The NVIDIA driver: loaded, open, recent enough, and of the same version as its programs."""

from __future__ import annotations

from collections.abc import Iterator

from appliance.contract.model import Gpu
from appliance.doctor.check import (
    cards_of_site,
    check,
)
from appliance.doctor.context import CheckContext
from appliance.doctor.finding import Finding, fail, ok
from appliance.doctor.host import TimedOutError
from appliance.doctor.nvidia import Module, Userland, read_module

OLDEST_DRIVER = 580
"""CUDA 13 needs a driver of this major version or newer (NVIDIA's minor-version compatibility page)."""


def judge_driver(module: Module | None, userland: Userland) -> Iterator[Finding]:
    """Judge the kernel module: loaded, open, recent enough, and of the same version as the programs."""
    if module is None:
        yield fail(
            "the NVIDIA kernel module is not loaded",
            meaning="No engine can reach a card.",
            fix="dmesg | grep -i -e nvidia -e nvrm",
            subject="module",
            cause="driver-not-loaded",
        )
        return
    if module.major < OLDEST_DRIVER:
        yield fail(
            f"{module.version}; CUDA 13 needs {OLDEST_DRIVER} or newer",
            meaning="Engines end with 'CUDA driver version is insufficient'.",
            fix="nixos-rebuild boot --flake .#gpu && reboot",
            subject="module",
        )
    elif not module.open:
        yield fail(
            f"{module.version}, the closed kernel modules",
            meaning="Blackwell cards work with the open kernel modules only.",
            fix="remove hardware.nvidia.open = false; nixos-rebuild boot --flake .#gpu && reboot",
            subject="module",
        )
    else:
        yield ok(f"{module.version}, open kernel modules", subject="module")
    yield _judge_userland(module, userland)


def _judge_userland(module: Module, userland: Userland) -> Finding:
    if "version mismatch" in userland.error:
        return fail(
            f"nvidia-smi: {userland.error}; the loaded module is {module.version}",
            meaning=(
                "The driver was replaced under a running kernel: no new engine starts, a running one may fail."
            ),
            fix="reboot",
            subject="userland",
            cause="driver-mismatch",
        )
    if userland.error:
        return fail(
            f"nvidia-smi: {userland.error}",
            meaning="Neither programs nor engines can reach the driver.",
            fix="journalctl --dmesg --boot | grep -i nvrm; then reboot",
            subject="userland",
        )
    other = {card.driver for card in userland.cards} - {module.version}
    if other:
        return fail(
            f"nvidia-smi has version {', '.join(sorted(other))}, the loaded module {module.version}",
            meaning="The driver was replaced under a running kernel: no new engine starts.",
            fix="reboot",
            subject="userland",
            cause="driver-mismatch",
        )
    return ok(f"the same version; cards that respond: {len(userland.cards)}", subject="userland")


@check(
    "driver",
    looks=(
        "/proc/driver/nvidia/version and nvidia-smi: loaded, open, 580 or newer, one version in kernel and programs"
    ),
    means="No engine starts without a driver, or after an update of the driver without a reboot.",
    fix="`reboot`",
    requires=cards_of_site,
    fault_domain="generation",
)
def check_driver(context: CheckContext, _: tuple[Gpu, ...]) -> Iterator[Finding]:
    """Check the kernel module and the version of the programs; a driver that hangs is a failure."""
    module = read_module(context.host)
    if module is None:
        yield from judge_driver(None, Userland(()))
        return
    try:
        yield from judge_driver(module, context.userland)
    except TimedOutError as error:
        yield fail(
            str(error),
            meaning="The driver hangs, and so do engines.",
            fix="reboot",
            subject="userland",
            cause="driver-mismatch",
        )
