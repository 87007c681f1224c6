"""Judges of the cards: driver, cards, power, throttle, XID. They take what :mod:`.nvidia` read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from appliance.contract.model import Gpu
from appliance.doctor.finding import FaultDomain, Verdict, fail, ok, unknown, warn
from appliance.doctor.nvidia import GpuStatus, Module, Userland, Xid

LEAST_DRIVER = 580
"""CUDA 13 needs a driver of this major version or newer (NVIDIA's minor-version compatibility page)."""

MEMORY_TOLERANCE = 0.01
"""ECC and firmware take a little more or less of a card's memory from one driver to the next."""

WATTS_TOLERANCE = 1.0

HARDWARE_XIDS = frozenset({48, 62, 64, 74, 79, 95, 119, 120})
"""What a restart of the engine does not mend: double-bit ECC, row remapping failed, NVLink, off the bus,
uncontained ECC, GSP. The list of the alert rule of nvidia_gpu_exporter."""

MEMORY_XIDS = frozenset({48, 64, 95})
"""Of these, faults of the card's own memory: no driver and no parameter makes them. The others can come of a
driver, its GSP firmware or a parameter of the kernel as well as of a card, a slot or a cable."""

APPLICATION_XIDS = frozenset({13, 31, 43, 45})
"""A program's own fault or its end: illegal access, page fault, stopped channel, clean-up."""

BAD_REASONS = {
    0x08: "hardware slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake (the supply asks for less)",
}
"""NVML's bits of nvmlClocksEventReasons for which the card itself pulls the brake."""
HOT = 0x20
"""Software thermal slowdown: the driver lowers the clock to stay under the card's target temperature."""
CAPPED = 0x04
"""The power limit holds the clock: what a limit is for."""


def judge_driver(module: Module | None, userland: Userland) -> Iterator[Verdict]:
    """The kernel module: loaded, open, new enough, and of one version with the programs."""
    if module is None:
        yield fail(
            "the NVIDIA kernel module is not loaded",
            "No engine can reach a card.",
            "dmesg | grep -i -e nvidia -e nvrm",
            "module",
            "driver-not-loaded",
        )
        return
    if module.major < LEAST_DRIVER:
        yield fail(
            f"{module.version}; CUDA 13 needs {LEAST_DRIVER} or newer",
            "Engines end with 'CUDA driver version is insufficient'.",
            "nixos-rebuild boot --flake .#gpu && reboot",
            "module",
        )
    elif not module.open:
        yield fail(
            f"{module.version}, the closed kernel modules",
            "Blackwell cards work with the open kernel modules only.",
            "remove hardware.nvidia.open = false; nixos-rebuild boot --flake .#gpu && reboot",
            "module",
        )
    else:
        yield ok(f"{module.version}, open kernel modules", "module")
    yield _userland(module, userland)


def _userland(module: Module, userland: Userland) -> Verdict:
    if "version mismatch" in userland.error:
        return fail(
            f"nvidia-smi: {userland.error}; the loaded module is {module.version}",
            "The driver was exchanged under a running kernel: no new engine starts, a running one may break.",
            "reboot",
            "userland",
            "driver-mismatch",
        )
    if userland.error:
        return fail(
            f"nvidia-smi: {userland.error}",
            "The programs cannot reach the driver, nor can engines.",
            "journalctl --dmesg --boot | grep -i nvrm; then reboot",
            "userland",
        )
    other = {card.driver for card in userland.cards} - {module.version}
    if other:
        return fail(
            f"nvidia-smi is of {', '.join(sorted(other))}, the loaded module of {module.version}",
            "The driver was exchanged under a running kernel: no new engine starts.",
            "reboot",
            "userland",
            "driver-mismatch",
        )
    return ok(f"the same version; cards that answer: {len(userland.cards)}", "userland")


def judge_cards(expected: Sequence[Gpu], seen: Sequence[GpuStatus]) -> Iterator[Verdict]:
    """Every card of the site is there, is what it should be, and has its whole PCIe link."""
    by_index = {card.index: card for card in seen}
    for gpu in expected:
        card = by_index.pop(gpu.index, None)
        subject = f"card {gpu.index}"
        if card is None:
            yield fail(
                f"is missing; nvidia-smi shows {len(seen)} of {len(expected)}",
                f"Engines on card {gpu.index} cannot start.",
                "journalctl --dmesg --boot | grep -i -e xid -e nvrm; check its power cable and slot",
                subject,
                "card-missing",
            )
        else:
            yield _card(gpu, card, subject)
    for card in by_index.values():
        yield warn(
            f"{card.name} is not in the site",
            "Nothing runs on it, and the other indices may have moved.",
            "add it to the gpus of this host in appliance.settings.hosts, or take it out",
            f"card {card.index}",
        )


def _card(gpu: Gpu, card: GpuStatus, subject: str) -> Verdict:
    said = f"{card.name}, {card.memory_mib or '?'} MiB, {card.bus}"
    if not same_model(gpu.model, card.name):
        return fail(
            f"is a {card.name}; the site says {gpu.model}",
            "Plans, power limits and memory were reckoned for another card; indices may have moved.",
            "nvidia-smi -L; correct appliance.settings.hosts, or the slots",
            subject,
        )
    if card.memory_mib is not None and card.memory_mib < gpu.memory_mib * (1 - MEMORY_TOLERANCE):
        return fail(
            f"{card.memory_mib} MiB; the site says {gpu.memory_mib}",
            "The KV cache was reckoned for more: engines run out of memory when busy.",
            f"nvidia-smi -q -i {card.index} -d MEMORY,ECC,ROW_REMAPPER; correct memory_mib",
            subject,
        )
    if card.link_width and card.link_width_max and card.link_width < card.link_width_max:
        return warn(
            f"{said}; PCIe x{card.link_width} of x{card.link_width_max}",
            "Loading weights and tensor parallelism are slower: a riser, a dirty slot, or a slot with fewer lanes.",
            f"nvidia-smi -q -i {card.index} | grep -A6 'Link Width'; reseat the card",
            subject,
        )
    if not card.persistent:
        return warn(
            f"{said}; persistence mode is off",
            "The driver forgets the power limit with the last process, and starts slowly.",
            "systemctl start nvidia-persistenced",
            subject,
        )
    return ok(said, subject)


def same_model(wanted: str, shown: str) -> bool:
    """Whether nvidia-smi's name means the card of the site: every word of the site stands in it."""
    words = re.findall(r"[a-z0-9]+", shown.lower())
    return all(
        word in words for word in re.findall(r"[a-z0-9]+", wanted.lower()) if word not in {"nvidia", "edition"}
    )


def judge_power(expected: Sequence[Gpu], seen: Sequence[GpuStatus]) -> Iterator[Verdict]:
    """Each card's power limit is the site's, or its own default where the site names none."""
    by_index = {card.index: card for card in seen}
    for gpu in expected:
        card = by_index.get(gpu.index)
        if card is None:
            continue  # `cards` says so
        subject = f"card {gpu.index}"
        wanted = float(gpu.power_limit_w) if gpu.power_limit_w is not None else card.power_default_w
        if card.power_limit_w is None or wanted is None:
            yield unknown("the card tells no power limit", f"nvidia-smi -q -i {gpu.index} -d POWER", subject)
        elif abs(card.power_limit_w - wanted) > WATTS_TOLERANCE:
            over = card.power_limit_w > wanted
            yield warn(
                f"{card.power_limit_w:g} W; the site says {wanted:g} W",
                "More heat and more draw on the UPS than planned."
                if over
                else "Prefill is slower than planned (the limit moves the SM clock only).",
                "systemctl restart appliance-gpu-power"
                if gpu.power_limit_w is not None
                else f"nvidia-smi -i {gpu.index} -pl {wanted:g}",
                subject,
            )
        else:
            yield ok(f"{card.power_limit_w:g} W", subject)


def judge_throttle(seen: Sequence[GpuStatus]) -> Iterator[Verdict]:
    """No card is held back by heat or by its supply at this moment."""
    for card in seen:
        subject = f"card {card.index}"
        heat = f"{card.temperature_c} °C" if card.temperature_c is not None else "no temperature"
        reasons = [text for bit, text in BAD_REASONS.items() if card.throttle & bit]
        if reasons:
            yield fail(
                f"{', '.join(reasons)}; {heat}",
                "The card runs at a fraction of its speed: too hot, or the power supply cannot give what it asks.",
                "check fans, air filter and power cables; lower power_limit_w",
                subject,
            )
        elif card.throttle & HOT:
            yield warn(
                f"the driver slows it down against heat; {heat}",
                "Answers are slower than planned while it is this warm.",
                "cool the room or lower power_limit_w by 50",
                subject,
            )
        else:
            yield ok(f"{heat}{', held at its power limit' if card.throttle & CAPPED else ''}", subject)


def judge_xids(xids: Sequence[Xid], recovery: Mapping[int, str]) -> Iterator[Verdict]:
    """What the driver complained about since boot, and what it wants done."""
    numbers = {xid.number for xid in xids if xid.number in HARDWARE_XIDS}
    # It asks for a reset after any of them, so it is whose they all are.
    asked_by: FaultDomain = "external" if numbers and numbers <= MEMORY_XIDS else "generation"
    for index, action in recovery.items():
        if action not in {"None", "[N/A]", "N/A"}:
            yield fail(
                f"the driver asks for: {action}",
                "The card has a fault that it does not leave by itself.",
                f"systemctl stop 'appliance-engine-*'; nvidia-smi --gpu-reset -i {index}"
                if "Reset" in action
                else "reboot",
                f"card {index}",
                fault_domain=asked_by,
            )
    counts = Counter(xid.number for xid in xids)
    last = {xid.number: xid for xid in xids}
    for number, times in sorted(counts.items()):
        said = f"XID {number}, {times} times; last at {last[number].bus}: {last[number].text[:60]}"
        if number in HARDWARE_XIDS:
            yield fail(
                said,
                "A fault of the card, its memory or its slot: an engine's restart does not mend it.",
                "systemctl stop 'appliance-engine-*'; reboot; if it returns, have the card exchanged",
                f"XID {number}",
                fault_domain="external" if number in MEMORY_XIDS else "generation",
            )
        elif number not in APPLICATION_XIDS:
            yield warn(
                said,
                "The driver complained; one that repeats deserves a look.",
                "journalctl --dmesg --boot | grep Xid; NVIDIA's XID catalogue explains the number",
                f"XID {number}",
            )
        else:
            yield ok(f"{said} (an engine's own fault)", f"XID {number}")
    if not counts and all(action in {"None", "[N/A]", "N/A"} for action in recovery.values()):
        yield ok("none since boot")
