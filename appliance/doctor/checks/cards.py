"""The cards: presence, power limits and what throttles them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from appliance.contract.model import Gpu
from appliance.doctor.check import (
    cards_of_site,
    check,
)
from appliance.doctor.context import CheckContext
from appliance.doctor.finding import Finding, fail, ok, unknown, warn
from appliance.doctor.nvidia import GpuStatus
from appliance.system.nvidia_smi import ClocksEventReason

MEMORY_TOLERANCE = 0.01
"""ECC and firmware take a little more or less of a card's memory from one driver to the next."""


WATTS_TOLERANCE = 1.0


HARDWARE_REASONS = {
    ClocksEventReason.HARDWARE_SLOWDOWN: "hardware slowdown",
    ClocksEventReason.HARDWARE_THERMAL_SLOWDOWN: "hardware thermal slowdown",
    ClocksEventReason.HARDWARE_POWER_BRAKE: "power brake (the supply asks for less)",
}
"""Reasons for which the card itself lowers its clock."""


def judge_cards(expected: Sequence[Gpu], seen: Sequence[GpuStatus]) -> Iterator[Finding]:
    """Every card of the site is there, is what it should be, and has its whole PCIe link."""
    by_index = {card.index: card for card in seen}
    for gpu in expected:
        card = by_index.pop(gpu.index, None)
        subject = f"card {gpu.index}"
        if card is None:
            yield fail(
                f"is missing; nvidia-smi shows {len(seen)} of {len(expected)}",
                meaning=f"Engines on card {gpu.index} cannot start.",
                fix="journalctl --dmesg --boot | grep -i -e xid -e nvrm; check its power cable and slot",
                subject=subject,
                cause="card-missing",
            )
        else:
            yield _card(gpu, card, subject)
    for card in by_index.values():
        yield warn(
            f"{card.name} is not in the site",
            meaning="Nothing runs on it, and the other indices may have moved.",
            fix="add it to the gpus of this host in appliance.settings.hosts, or take it out",
            subject=f"card {card.index}",
        )


def _card(gpu: Gpu, card: GpuStatus, subject: str) -> Finding:
    said = f"{card.name}, {card.memory_mib or '?'} MiB, {card.bus}"
    if not same_model(gpu.model, card.name):
        return fail(
            f"is a {card.name}; the site says {gpu.model}",
            meaning="Plans, power limits and memory were reckoned for another card; indices may have moved.",
            fix="nvidia-smi -L; correct appliance.settings.hosts, or the slots",
            subject=subject,
        )
    if card.memory_mib is not None and card.memory_mib < gpu.memory_mib * (1 - MEMORY_TOLERANCE):
        return fail(
            f"{card.memory_mib} MiB; the site says {gpu.memory_mib}",
            meaning="The KV cache was reckoned for more: engines run out of memory when busy.",
            fix=f"nvidia-smi -q -i {card.index} -d MEMORY,ECC,ROW_REMAPPER; correct memory_mib",
            subject=subject,
        )
    if card.link_width and card.link_width_max and card.link_width < card.link_width_max:
        return warn(
            f"{said}; PCIe x{card.link_width} of x{card.link_width_max}",
            meaning=(
                "Loading weights and tensor parallelism are slower: a riser, a "
                "dirty slot, or a slot with fewer lanes."
            ),
            fix=f"nvidia-smi -q -i {card.index} | grep -A6 'Link Width'; reseat the card",
            subject=subject,
        )
    if not card.persistent:
        return warn(
            f"{said}; persistence mode is off",
            meaning="The driver forgets the power limit with the last process, and starts slowly.",
            fix="systemctl start nvidia-persistenced",
            subject=subject,
        )
    return ok(said, subject=subject)


def same_model(wanted: str, shown: str) -> bool:
    """Whether nvidia-smi's name means the card of the site: every word of the site stands in it."""
    words = re.findall(r"[a-z0-9]+", shown.lower())
    return all(
        word in words for word in re.findall(r"[a-z0-9]+", wanted.lower()) if word not in {"nvidia", "edition"}
    )


@check(
    "cards",
    looks="nvidia-smi: each card of the site is there, is that card, with its memory, whole PCIe link, persistence",
    means="A missing card takes its engines along; a narrow link makes loading and tensor parallelism slow.",
    fix="look at the kernel's log, then at cable and slot",
    requires=cards_of_site,
    fault_domain="generation",
)
def check_cards(context: CheckContext, expected: tuple[Gpu, ...]) -> Iterator[Finding]:
    """Each card of the site."""
    yield from judge_cards(expected, context.cards)


def judge_power(expected: Sequence[Gpu], seen: Sequence[GpuStatus]) -> Iterator[Finding]:
    """Each card's power limit is the site's, or its own default where the site names none."""
    by_index = {card.index: card for card in seen}
    for gpu in expected:
        card = by_index.get(gpu.index)
        if card is None:
            continue  # `cards` says so
        subject = f"card {gpu.index}"
        wanted = float(gpu.power_limit_w) if gpu.power_limit_w is not None else card.power_default_w
        if card.power_limit_w is None or wanted is None:
            yield unknown(
                "the card tells no power limit", fix=f"nvidia-smi -q -i {gpu.index} -d POWER", subject=subject
            )
        elif abs(card.power_limit_w - wanted) > WATTS_TOLERANCE:
            over = card.power_limit_w > wanted
            yield warn(
                f"{card.power_limit_w:g} W; the site says {wanted:g} W",
                meaning="More heat and more draw on the UPS than planned."
                if over
                else "Prefill is slower than planned (the limit moves the SM clock only).",
                fix="systemctl restart appliance-gpu-power"
                if gpu.power_limit_w is not None
                else f"nvidia-smi -i {gpu.index} -pl {wanted:g}",
                subject=subject,
            )
        else:
            yield ok(f"{card.power_limit_w:g} W", subject=subject)


@check(
    "power",
    looks="the power limit of each card against `power_limit_w`",
    means="Too high: heat, and less time on the UPS. Too low: slower prefill.",
    fix="`systemctl restart appliance-gpu-power`",
    requires=cards_of_site,
    fault_domain="generation",
)
def check_power(context: CheckContext, expected: tuple[Gpu, ...]) -> Iterator[Finding]:
    """Power limits."""
    yield from judge_power(expected, context.cards)


def judge_throttle(seen: Sequence[GpuStatus]) -> Iterator[Finding]:
    """No card is held back by heat or by its supply at this moment."""
    for card in seen:
        subject = f"card {card.index}"
        heat = f"{card.temperature_c} °C" if card.temperature_c is not None else "no temperature"
        reasons = [text for bit, text in HARDWARE_REASONS.items() if card.throttle & bit]
        if reasons:
            yield fail(
                f"{', '.join(reasons)}; {heat}",
                meaning=(
                    "The card runs at a fraction of its speed: too hot, or the power "
                    "supply cannot give what it asks."
                ),
                fix="check fans, air filter and power cables; lower power_limit_w",
                subject=subject,
            )
        elif card.throttle & ClocksEventReason.SOFTWARE_THERMAL_SLOWDOWN:
            yield warn(
                f"the driver slows it down against heat; {heat}",
                meaning="Answers are slower than planned while it is this warm.",
                fix="cool the room or lower power_limit_w by 50",
                subject=subject,
            )
        else:
            capped = card.throttle & ClocksEventReason.SOFTWARE_POWER_CAP
            yield ok(f"{heat}{', held at its power limit' if capped else ''}", subject=subject)


@check(
    "throttle",
    looks="whether heat or the power supply holds a card back now; its temperature",
    means="The card runs at a fraction of its speed. Its own power limit at work is no fault.",
    fix="cool the room, clean filters, check power cables, lower `power_limit_w`",
    requires=cards_of_site,
    fault_domain="external",
)
def check_throttle(context: CheckContext, _: tuple[Gpu, ...]) -> Iterator[Finding]:
    """What holds cards back."""
    yield from judge_throttle(context.cards)
