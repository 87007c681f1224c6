"""The cards: presence, power limits, throttling, and the reserve of their cooling."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from appliance.contract.model import Gpu
from appliance.doctor.card_watch import WATCH_STATUS, Cooling, read_card_watch
from appliance.doctor.check import (
    NotApplicable,
    cards_of_site,
    check,
)
from appliance.doctor.context import CheckContext
from appliance.doctor.finding import Finding, fail, ok, unknown, warn
from appliance.doctor.nvidia import GpuStatus
from appliance.system.nvidia_smi import ClocksEventReason

MEMORY_TOLERANCE = 0.01
"""Relative difference between drivers: ECC and firmware use a little more or less of a card's memory."""


WATTS_TOLERANCE = 1.0
"""Difference in watts between a limit as it was set and as it is reported."""


LOW_MARGIN_C, NO_MARGIN_C = 10.0, 3.0
"""Kelvin before the card lowers its clock at which the watchdog raises fans, and lowers the power limit."""

FULL_FANS = 0.95
"""Speed of the fans, 0 to 1, from which on they have no reserve for a hotter room."""


HARDWARE_REASONS = {
    ClocksEventReason.HARDWARE_SLOWDOWN: "hardware slowdown",
    ClocksEventReason.HARDWARE_THERMAL_SLOWDOWN: "hardware thermal slowdown",
    ClocksEventReason.HARDWARE_POWER_BRAKE: "power brake (the supply requests less load)",
}
"""Reasons for which the card itself lowers its clock."""


def judge_cards(expected: Sequence[Gpu], seen: Sequence[GpuStatus]) -> Iterator[Finding]:
    """Judge whether every card of the site is present, with its model, memory and full PCIe link."""
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
            yield _judge_card(gpu, card, subject)
    for card in by_index.values():
        yield warn(
            f"{card.name} is not in the site",
            meaning="Nothing runs on it, and the indices of the other cards may have changed.",
            fix="add it to the gpus of this host in appliance.settings.hosts, or remove it",
            subject=f"card {card.index}",
        )


def _judge_card(gpu: Gpu, card: GpuStatus, subject: str) -> Finding:
    summary = f"{card.name}, {card.memory_mib or '?'} MiB, {card.bus}"
    if not same_model(gpu.model, card.name):
        return fail(
            f"is a {card.name}; the site has {gpu.model}",
            meaning="Plans, power limits and memory were calculated for another card; indices may have changed.",
            fix="nvidia-smi -L; correct appliance.settings.hosts, or the slots",
            subject=subject,
        )
    if card.memory_mib is not None and card.memory_mib < gpu.memory_mib * (1 - MEMORY_TOLERANCE):
        return fail(
            f"{card.memory_mib} MiB; the site has {gpu.memory_mib}",
            meaning="The KV cache was calculated for more: engines run out of memory under load.",
            fix=f"nvidia-smi -q -i {card.index} -d MEMORY,ECC,ROW_REMAPPER; correct memory_mib",
            subject=subject,
        )
    if card.link_width and card.link_width_max and card.link_width < card.link_width_max:
        return warn(
            f"{summary}; PCIe x{card.link_width} of x{card.link_width_max}",
            meaning=(
                "Loading weights and tensor parallelism are slower. "
                "The cause is a riser, a dirty slot, or a slot with fewer lanes."
            ),
            fix=f"nvidia-smi -q -i {card.index} | grep -A6 'Link Width'; reseat the card",
            subject=subject,
        )
    if not card.persistent:
        return warn(
            f"{summary}; persistence mode is off",
            meaning="The driver loses the power limit when the last process ends, and starts slowly.",
            fix="systemctl start nvidia-persistenced",
            subject=subject,
        )
    return ok(summary, subject=subject)


def same_model(wanted: str, shown: str) -> bool:
    """Return whether nvidia-smi's name is that of the site's card: it contains every word of the site's name."""
    words = re.findall(r"[a-z0-9]+", shown.lower())
    return all(
        word in words for word in re.findall(r"[a-z0-9]+", wanted.lower()) if word not in {"nvidia", "edition"}
    )


@check(
    "cards",
    looks="nvidia-smi: each card of the site, its model, memory, PCIe link and persistence mode",
    means="Engines of a missing card do not run; a narrow link makes loading and tensor parallelism slow.",
    fix="read the kernel's log, then check cable and slot",
    requires=cards_of_site,
    fault_domain="generation",
)
def check_cards(context: CheckContext, expected: tuple[Gpu, ...]) -> Iterator[Finding]:
    """Check each card of the site."""
    yield from judge_cards(expected, context.cards)


def judge_power(expected: Sequence[Gpu], seen: Sequence[GpuStatus]) -> Iterator[Finding]:
    """Compare each card's power limit with the site's, or with the card's default if the site has none."""
    by_index = {card.index: card for card in seen}
    for gpu in expected:
        card = by_index.get(gpu.index)
        if card is None:
            continue  # `cards` reports it
        subject = f"card {gpu.index}"
        wanted = float(gpu.power_limit_w) if gpu.power_limit_w is not None else card.power_default_w
        if card.power_limit_w is None or wanted is None:
            yield unknown(
                "the card does not report its power limit",
                fix=f"nvidia-smi -q -i {gpu.index} -d POWER",
                subject=subject,
            )
        elif abs(card.power_limit_w - wanted) > WATTS_TOLERANCE:
            over = card.power_limit_w > wanted
            yield warn(
                f"{card.power_limit_w:g} W; the site has {wanted:g} W",
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
    """Check power limits."""
    yield from judge_power(expected, context.cards)


def judge_throttle(seen: Sequence[GpuStatus]) -> Iterator[Finding]:
    """Judge whether heat or the power supply lowers the clock of a card at this moment."""
    for card in seen:
        subject = f"card {card.index}"
        heat = f"{card.temperature_c} °C" if card.temperature_c is not None else "no temperature"
        reasons = [text for bit, text in HARDWARE_REASONS.items() if card.throttle & bit]
        if reasons:
            yield fail(
                f"{', '.join(reasons)}; {heat}",
                meaning=(
                    "The card runs at a fraction of its speed. "
                    "It is too hot, or the power supply cannot deliver its load."
                ),
                fix="check fans, air filter and power cables; lower power_limit_w",
                subject=subject,
            )
        elif card.throttle & ClocksEventReason.SOFTWARE_THERMAL_SLOWDOWN:
            yield warn(
                f"the driver lowers the clock because of heat; {heat}",
                meaning="Responses are slower than planned at this temperature.",
                fix="cool the room or lower power_limit_w by 50",
                subject=subject,
            )
        else:
            capped = card.throttle & ClocksEventReason.SOFTWARE_POWER_CAP
            yield ok(f"{heat}{', at its power limit' if capped else ''}", subject=subject)


@check(
    "throttle",
    looks="whether heat or the power supply lowers the clock of a card now; its temperature",
    means="The card runs at a fraction of its speed. A clock at the card's own power limit is normal.",
    fix="cool the room, clean filters, check power cables, lower `power_limit_w`",
    requires=cards_of_site,
    fault_domain="external",
)
def check_throttle(context: CheckContext, _: tuple[Gpu, ...]) -> Iterator[Finding]:
    """Check what throttles the cards."""
    yield from judge_throttle(context.cards)


def judge_cooling(cards: Sequence[Cooling]) -> Iterator[Finding]:
    """Judge how far each card is from its thermal limit, and whether its fans have a reserve."""
    for card in cards:
        subject = f"card {card.index}"
        margin = "no margin reported" if card.margin_c is None else f"{card.margin_c:.0f} K below its thermal limit"
        fans = "no fan reported" if card.fan_ratio is None else f"fans at {card.fan_ratio:.0%}"
        if card.margin_c is not None and card.margin_c <= NO_MARGIN_C:
            yield fail(
                f"{margin}, {fans}",
                meaning="The card is about to lower its clock; the watchdog lowers its power limit.",
                fix="check fans, air filter and room; lower power_limit_w",
                subject=subject,
            )
        elif card.margin_c is not None and card.margin_c <= LOW_MARGIN_C:
            yield warn(
                f"{margin}, {fans}",
                meaning="A hotter room or a dusty filter ends in a lower clock.",
                fix="clean the filter, cool the room or lower power_limit_w by 50",
                subject=subject,
            )
        elif card.fan_ratio is not None and card.fan_ratio >= FULL_FANS:
            yield warn(
                f"{fans}, {margin}",
                meaning="The fans have no reserve for a hotter room.",
                fix="clean the filter, cool the room or lower power_limit_w by 50",
                subject=subject,
            )
        else:
            yield ok(f"{margin}, {fans}", subject=subject)


def watchdog_of_cards(context: CheckContext) -> str | NotApplicable:
    """Require the status file that the watchdog of the cards writes."""
    if context.host.path(WATCH_STATUS).exists():
        return WATCH_STATUS
    return NotApplicable("the watchdog of the cards does not run (appliance.gpuWatch)")


@check(
    "cooling",
    looks="the watchdog's look: kelvin left to the thermal limit of each card, and the speed of its fans",
    means="Without a margin or a reserve of the fans, a hotter room lowers the clock.",
    fix="clean filters, cool the room, lower `power_limit_w`",
    requires=watchdog_of_cards,
    fault_domain="external",
)
def check_cooling(context: CheckContext, file: str) -> Iterator[Finding]:
    """Check the reserve of the cooling."""
    watch = read_card_watch(context.host)
    if watch is None:
        yield unknown(f"{file} is not valid", fix="systemctl restart appliance-gpu-watch")
    elif not watch.cards:
        yield ok("the watchdog has seen no card yet")
    else:
        yield from judge_cooling(watch.cards)
