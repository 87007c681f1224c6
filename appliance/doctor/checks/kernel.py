"""The parameters of the running kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from appliance.contract.machine import Cards
from appliance.doctor.check import (
    check,
    machine_part,
)
from appliance.doctor.context import CheckContext
from appliance.doctor.finding import Finding, fail, ok
from appliance.doctor.host import HostReader

REBUILD = "nixos-rebuild boot --flake .#gpu && reboot"


def read_kernel_words(host: HostReader) -> list[str]:
    """Read the parameters with which the running kernel was started."""
    return (host.text("/proc/cmdline") or "").split()


def judge_kernel_words(
    expected: Sequence[str], words: Sequence[str], cards: Cards | None, hmm_off: str | None
) -> Iterator[Finding]:
    """Judge whether the kernel has every parameter of the machine, and HMM is off if that was chosen."""
    missing = [word for word in expected if word not in words]
    if missing:
        yield fail(
            f"started without {', '.join(missing)}",
            meaning=("Links may drop under load, or cards hang at the first all-reduce: another system runs."),
            fix=REBUILD,
        )
    else:
        yield ok(f"all {len(expected)} parameters" if expected else "none required")
    if (
        cards is not None
        and cards.peer_to_peer == "iommu-off"
        and hmm_off is not None
        and hmm_off not in {"1", "Y"}
    ):
        yield fail(
            "nvidia_uvm runs with HMM",
            meaning="Cards may hang at the first all-reduce.",
            fix=REBUILD,
            subject="uvm_disable_hmm",
        )


@check(
    "kernel",
    looks="the parameters that the machine requires, on the running kernel's command line",
    means="Links that drop under load, or a hang at the first all-reduce.",
    fix="`nixos-rebuild boot --flake .#gpu && reboot`",
    requires=machine_part(lambda machine: machine.kernel_parameters, "no kernel parameters are required"),
    fault_domain="generation",
)
def check_kernel(context: CheckContext, expected: tuple[str, ...]) -> Iterator[Finding]:
    """Check the command line of the running kernel."""
    hmm_off = (context.host.text("/sys/module/nvidia_uvm/parameters/uvm_disable_hmm") or "").strip() or None
    cards = context.machine.cards if context.machine is not None else None
    words = read_kernel_words(context.host)
    yield from judge_kernel_words(expected=expected, words=words, cards=cards, hmm_off=hmm_off)
