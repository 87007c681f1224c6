"""The check of a measurement against arithmetic and against the card: impossible figures, units mixed up.

Pure. A rate is far from the card if the uncalibrated model differs from it by a factor of thirty.
"""

from __future__ import annotations

from appliance.catalog.shape import Shape
from appliance.errors import UsageError
from appliance.planner.constants import Constants
from appliance.planner.row_parser import Row, number, parse_row
from appliance.planner.throughput import predict


def reject_impossible(row: Row, known: dict[str, Shape] | None = None) -> None:
    """Raise :class:`UsageError` for a row whose figures cannot be true; ``known`` as in :func:`parse_row`."""
    for name in (
        "input_tokens",
        "output_tokens",
        "concurrency",
        "output_tok_s",
        "total_tok_s",
        "tpot_ms",
        "ttft_ms",
    ):
        if (row.get(name) or "").strip().startswith("-"):
            raise UsageError(f"{name} = {row[name]} is negative")
    rate, tpot = number(row.get("output_tok_s"), "output_tok_s"), number(row.get("tpot_ms"), "tpot_ms")
    total, running = number(row.get("total_tok_s"), "total_tok_s"), number(row.get("concurrency"), "concurrency")
    if not rate and not total:
        raise UsageError("neither output_tok_s nor total_tok_s is stated")
    if rate and total and total < rate * 0.95:
        raise UsageError(f"total_tok_s = {total:g} is less than output_tok_s = {rate:g}")
    if rate and tpot and running and rate * tpot / 1e3 > 1.5 * running and row.get("mode") != "decode":
        raise UsageError(
            f"output_tok_s = {rate:g} needs {rate * tpot / 1e3:.0f} requests at {tpot:g} ms per token, "
            f"but concurrency is {running:g}; check the units"
        )
    workload = parse_row(row, known)
    # The priors, so that a new calibration does not change the table.
    predicted = predict(workload, Constants()).rate
    truth = rate if workload.mode != "prefill" else total
    if truth and not predicted / 30 < truth < predicted * 30:
        raise UsageError(f"{truth:g} tok/s is far from the {predicted:.0f} that the card permits; check the units")
