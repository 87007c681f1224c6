"""The command line of the planner: what can be said, nothing of what is done with it."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``plan`` and ``catalog``."""
    _plan(subparsers)
    catalog = subparsers.add_parser("catalog", help="cards and models the planner knows")
    catalog.set_defaults(planner="catalog")
    commands = catalog.add_subparsers(dest="catalog_command", required=True)
    add = commands.add_parser("add-model", help="describe a model from its config.json")
    add.add_argument(
        "source", metavar="PATH-or-REPO", help="config.json, its folder, or OWNER/NAME in the local cache"
    )
    add.add_argument("--into", type=Path, metavar="FILE", help="catalogue to append to; printed when absent")
    add.add_argument("--embedding", action="store_true", help="a pooling model: it has no output head")
    add.add_argument("--json", action="store_true", help="figures as JSON")
    listed = commands.add_parser("list", help="what is known")
    listed.add_argument("--json", action="store_true", help="as JSON")


def _plan(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    plan = subparsers.add_parser("plan", help="decide what to run on which card")
    plan.set_defaults(planner="plan")
    plan.add_argument("--config", type=Path, metavar="FILE", help="a site: its hosts, models and roles")
    plan.add_argument("--write", action="store_true", help="write the engines section back into --config")
    plan.add_argument("--json", action="store_true", help="the plan as JSON")
    plan.add_argument("--html", type=Path, metavar="FILE", help="the plan as one self-contained page")
    plan.add_argument("--catalog", type=Path, metavar="FILE", help="further models, as add-model writes them")
    plan.add_argument("--cards", metavar="'2x CARD'", help="cards of each machine, without --config")
    plan.add_argument("--machines", type=int, default=1, help="machines with those cards (1)")
    plan.add_argument("--ram", type=float, default=128.0, metavar="GIB", help="RAM of each machine (128)")
    plan.add_argument("--cpu", metavar="NAME", help="processor of each machine")
    plan.add_argument("--power", type=float, metavar="W", help="power limit per card")
    plan.add_argument("--link", type=float, default=3.0, metavar="GB/S", help="network between machines (3.0)")
    plan.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="MODEL[:PRECISION]",
        help="a model to serve, without --config",
    )
    plan.add_argument(
        "--share",
        action="append",
        default=[],
        metavar="NAME=SHARE",
        help="share of requests of a role or model",
    )
    plan.add_argument("--users", type=int, default=100, help="people (100)")
    plan.add_argument("--chats", type=int, default=200, help="chats open at once (200)")
    plan.add_argument(
        "--think", type=float, default=60.0, metavar="S", help="seconds between messages of a chat (60)"
    )
    plan.add_argument("--prompt", type=float, default=2000.0, metavar="TOKENS", help="tokens of a prompt (2000)")
    plan.add_argument("--answer", type=float, default=400.0, metavar="TOKENS", help="tokens of an answer (400)")
    plan.add_argument("--context", type=int, metavar="TOKENS", help="longest prompt plus answer (16384)")
    plan.add_argument(
        "--prefix-hit", type=float, default=0.5, metavar="SHARE", help="part of prompts in the cache (0.5)"
    )
    plan.add_argument("--ttft-slo", type=float, default=2.0, metavar="S", help="SLO: time to first token (2)")
    plan.add_argument("--tpot-slo", type=float, default=0.1, metavar="S", help="SLO: time per token (0.1)")
    plan.add_argument(
        "--simulate", type=int, default=5_000, metavar="N", help="requests to simulate per model (5000)"
    )
    plan.add_argument("--seed", type=int, default=1, help="seed of the simulation (1)")
    plan.add_argument(
        "--automation",
        choices=("none", "poisson", "bursts", "n8n"),
        default="n8n",
        help="what comes on top of chats",
    )
    commands = plan.add_subparsers(dest="plan_command", required=False)
    _predict(commands)
    evaluate = commands.add_parser("evaluate", help="errors over a file of measurements")
    evaluate.add_argument("csv", type=Path, metavar="CSV", help="columns as in catalog/measurements.csv")
    evaluate.add_argument("--json", action="store_true", help="as JSON")


def _predict(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    one = commands.add_parser("predict", help="one point: throughput, latency, memory, with an interval")
    one.add_argument("--card", required=True, help="card, by its name in the catalogue")
    one.add_argument("--model", required=True, metavar="MODEL[:PRECISION]")
    one.add_argument("--catalog", type=Path, metavar="FILE", help="further models, as add-model writes them")
    one.add_argument("--kv", help="type of the KV cache (auto, fp8)")
    one.add_argument("--input", type=float, default=1024.0, metavar="TOKENS")
    one.add_argument("--output", type=float, default=1024.0, metavar="TOKENS")
    one.add_argument("--concurrency", type=float, default=1.0, help="requests in flight over all replicas (1)")
    one.add_argument("--tp", type=int, default=1, help="tensor parallel (1)")
    one.add_argument("--pp", type=int, default=1, help="pipeline parallel (1)")
    one.add_argument("--replicas", type=int, default=1, help="copies (1)")
    one.add_argument("--ep", action="store_true", help="expert parallel")
    one.add_argument("--engine", choices=("vllm", "sglang", "tensorrt-llm", "llamacpp"), default="vllm")
    one.add_argument("--power", type=float, metavar="W", help="power limit per card")
    one.add_argument("--utilization", type=float, default=0.92, help="gpu-memory-utilization (0.92)")
    one.add_argument("--no-p2p", action="store_true", help="cards cannot reach each other directly")
    one.add_argument("--hosts", type=int, default=1, help="machines one copy spans (1)")
    one.add_argument("--link", type=float, default=3.0, metavar="GB/S", help="network between them (3.0)")
    one.add_argument("--draft", type=int, default=0, metavar="TOKENS", help="tokens drafted per step")
    one.add_argument(
        "--accepted", type=float, default=1.0, metavar="TOKENS", help="tokens a step yields with drafts"
    )
    one.add_argument(
        "--prefix-hit", type=float, default=0.0, metavar="SHARE", help="part of the prompt in the cache"
    )
    one.add_argument("--cpu", metavar="NAME", help="processor that holds experts")
    one.add_argument("--cpu-experts", type=float, default=0.0, metavar="SHARE", help="share of experts in RAM")
    one.add_argument("--json", action="store_true", help="as JSON")
