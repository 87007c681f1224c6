"""Plans of the examples and of typical hardware, before and after a change of the planner.

Usage::

    python benchmarks/planner/plans.py                  # table of the plans of this checkout
    python benchmarks/planner/plans.py --against REV    # table before and after, and every figure that differs

``--against`` runs the planner of the git revision REV on the same sites. The exit code is 1 if a figure differs by
more than ``--within``, relative to its size. Each plan is one ``appliance plan --json`` in a process of its own.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
WORKSTATION = "RTX PRO 6000 Blackwell Workstation"
SERVER = "RTX PRO 6000 Blackwell Server"
SMALL, EMBED = "Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-Embedding-0.6B"
LARGE = "Qwen/Qwen3-235B-A22B-Instruct-2507"
FIVE = (SMALL, "Qwen/Qwen3-32B:fp8", "Qwen/Qwen3-Coder-30B-A3B-Instruct:fp8", EMBED, "Qwen/Qwen3-Reranker-0.6B")


def hardware(cards: str, *models: str, more: str = "") -> tuple[str, ...]:
    """Return the arguments of a plan for ``cards`` and ``models``; ``more`` are further ones."""
    named = [part for model in models for part in ("--model", model)]
    return ("--cards", cards, *named, *more.split())


PLANS = {
    **{f"examples/{path.name}": ("--config", str(path)) for path in sorted((ROOT / "examples").glob("*.toml"))},
    "one card": hardware(f"1x {WORKSTATION}", SMALL, EMBED, more="--power 450 --share Qwen3-Embedding-0.6B=0.2"),
    "two cards": hardware(f"2x {WORKSTATION}", SMALL, EMBED, more="--power 450 --share Qwen3-Embedding-0.6B=0.2"),
    "two cards, 1 % for a 235B": hardware(
        f"2x {WORKSTATION}", SMALL, LARGE, more="--ram 256 --power 450 --share Qwen3-235B-A22B-Instruct-2507=0.01"
    ),
    "eight cards, 15 % for a 235B": hardware(
        f"8x {SERVER}",
        SMALL,
        f"{LARGE}:fp8",
        EMBED,
        more="--ram 512 --power 450 --context 32768 --share Qwen3-235B-A22B-Instruct-2507=0.15 "
        "--share Qwen3-Embedding-0.6B=0.2",
    ),
    "eight cards, five models": hardware(f"8x {SERVER}", *FIVE, more="--ram 512"),
    "eight cards, crowd": hardware(
        f"8x {SERVER}", SMALL, "Qwen/Qwen3-14B", more="--users 900 --chats 3000 --automation bursts"
    ),
    "overload": hardware(f"1x {WORKSTATION}", "Qwen/Qwen3-32B:fp8", more="--chats 2000 --automation poisson"),
    "no automations": hardware("2x RTX 5090", "Qwen/Qwen3-8B", more="--automation none --think 20 --seed 3"),
    "experts in RAM": hardware(f"1x {WORKSTATION}", LARGE, more="--ram 256 --users 2 --chats 2"),
    "an AMD card": hardware(
        f"1x {WORKSTATION}, 1x Radeon RX 7900 XTX", SMALL, "Qwen/Qwen3-Embedding-8B", more="--ram 64"
    ),
    "eight machines": hardware(f"1x {WORKSTATION}", SMALL, EMBED, more="--machines 8 --chats 1500"),
    "one model over two machines": hardware(
        f"4x {SERVER}", "Qwen/Qwen3-235B-A22B", more="--machines 2 --ram 64 --users 1 --chats 1"
    ),
    "H100 with long prompts": hardware(
        "4x H100 SXM 80GB", "Qwen/Qwen3-32B", "openai/gpt-oss-120b", more="--prompt 12000 --answer 900 --chats 300"
    ),
    "too large": hardware("1x RTX 5090", "Qwen/Qwen3-32B"),
}
"""Arguments of ``appliance plan`` by the title of the plan."""


def plan(arguments: tuple[str, ...], tree: Path) -> dict[str, Any]:
    """Return the plan of ``arguments`` by the planner in ``tree`` as JSON, or its refusal under ``error``."""
    done = subprocess.run(
        [sys.executable, "-m", "appliance", "plan", *arguments, "--json"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout)
        return found
    if done.returncode == 2:
        return {"error": done.stderr.strip()}
    raise SystemExit(f"appliance plan {' '.join(arguments)} failed:\n{done.stderr}")


def leaves(tree: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Yield every scalar of ``tree`` with its path."""
    if isinstance(tree, dict):
        for name, part in tree.items():
            yield from leaves(part, f"{path}.{name}")
    elif isinstance(tree, list):
        for index, part in enumerate(tree):
            yield from leaves(part, f"{path}[{index}]")
    else:
        yield path, tree


def differences(before: object, after: object, within: float) -> list[str]:
    """Return the scalars that differ, numbers by more than ``within`` of the larger one."""
    old, new = dict(leaves(before)), dict(leaves(after))
    found = []
    for path in old | new:
        a, b = old.get(path), new.get(path)
        if a == b:
            continue
        numbers = isinstance(a, int | float) and isinstance(b, int | float)
        if not numbers or abs(a - b) > within * max(abs(a), abs(b)):  # type: ignore[operator, arg-type]
            found.append(f"{path.lstrip('.')}: {a!r} -> {b!r}")
    return found


def row(found: dict[str, Any]) -> list[str]:
    """Return layout, headroom, tok/s of each model that decodes on cards, and the most chats within the SLO."""
    if "error" in found:
        return ["refused", "", "", ""]
    best = found["recommended"]
    rates = [f"{part['tok_s']['expected']:.0f}" for part in best["parts"] if part["tok_s"]]
    chats = [str(queue["breaks_at_chats"]) for queue in found["simulation"]]
    return [best["title"], f"{best['headroom']:.2f}", " and ".join(rates), " and ".join(chats)]


def table(after: dict[str, dict[str, Any]], before: dict[str, dict[str, Any]] | None) -> str:
    """Return a Markdown table of the plans; a cell that changed has the figure of before first."""
    lines = ["| plan | layout | headroom | tok/s | SLO held up to, chats |", "|---|---|---|---|---|"]
    for title, found in after.items():
        cells = row(found)
        if before is not None:
            cells = [
                new if old == new else f"{old} → {new}" for old, new in zip(row(before[title]), cells, strict=True)
            ]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plans_of(revision: str) -> dict[str, dict[str, Any]]:
    """Return the plans of the planner of a git ``revision``, on the sites of this checkout."""
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", revision, "appliance"], capture_output=True, check=False
    )
    if archive.returncode != 0:
        raise SystemExit(f"git has no revision {revision!r}: {archive.stderr.decode().strip()}")
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
            files.extractall(folder, filter="data")
        return {title: plan(arguments, Path(folder)) for title, arguments in PLANS.items()}


def main() -> int:
    """Print the table, and the differences if there is a revision to compare with."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="REV", help="git revision of the planner before")
    parser.add_argument("--within", type=float, default=1e-9, help="relative difference that counts as equal")
    args = parser.parse_args()
    before = plans_of(args.against) if args.against else None
    after = {title: plan(arguments, ROOT) for title, arguments in PLANS.items()}
    print(table(after, before))
    if before is None:
        return 0
    changed = 0
    for title, found in after.items():
        differing = differences(before[title], found, args.within)
        changed += len(differing)
        print("".join(f"\n{title}: {text}" for text in differing[:8]), end="")
        if len(differing) > 8:
            print(f"\n{title}: {len(differing) - 8} further differences", end="")
    figures = sum(1 for _ in leaves(after))
    print(f"\n{changed} of {figures} figures differ by more than {args.within:g}")
    return int(changed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
