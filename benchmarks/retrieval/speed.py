"""Measures a search over many chunks: ``python -m benchmarks.retrieval.speed``.

The vectors are random, and the texts have words with the frequencies of a natural language (Zipf). Each row is
measured in turn with the baseline of the same run: NumPy's plain product of the matrix and the query. Other load
changes the milliseconds more than the ratio to that baseline. Vectors need 4 bytes a number: 328 MB by default.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from appliance.assistant.retrieval.evidence import EvidenceRule
from appliance.assistant.retrieval.filters import compile_filter
from appliance.assistant.retrieval.fusion import HybridWeights
from appliance.assistant.retrieval.index import HybridIndex, IndexedPassage
from appliance.assistant.retrieval.language import stem
from appliance.assistant.retrieval.ranking import RankingSettings, SearchQuery, SearchRequest, search
from appliance.assistant.retrieval.terms import query_terms, term_counts
from appliance.assistant.retrieval.vectors import VectorIndex

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FILES = 200
SAMPLE = 200
"""Chunks whose analysis is measured."""
WORDS = 300
"""Words of a chunk: about 800 tokens of Russian."""
VOCABULARY = 50_000


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the speed of a search.")
    parser.add_argument("--chunks", type=int, default=20_000)
    parser.add_argument("--dimensions", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", type=Path, help="write the results to this file as well")
    args = parser.parse_args()
    rng = np.random.default_rng(1)
    texts = make_texts(args.chunks)
    print(f"{args.chunks} chunks of {WORDS} words, {args.dimensions} dimensions, {os.cpu_count()} cores")
    started = time.process_time()
    for text in texts[:SAMPLE]:
        term_counts(text)
    analysed = time.process_time()
    index = HybridIndex(VectorIndex(args.dimensions, rows=args.chunks))
    attributes = [{"file": number, "kind": "note" if number % 10 else "letter"} for number in range(FILES)]
    for number, text in enumerate(texts):
        index.put(
            IndexedPassage(
                key=f"chunk-{number:06}",
                text=text,
                date=NOW - timedelta(days=number % 700),
                attributes=attributes[number * FILES // args.chunks],
            ),
            rng.standard_normal(args.dimensions, dtype=np.float32),
            counts=Counter(map(stem, text.split())),
        )
    built = time.process_time()
    print(
        f"CPU time of a chunk: {(analysed - started) / SAMPLE * 1000:.2f} ms for the terms of its text, "
        f"{(built - analysed) / args.chunks * 1000:.2f} ms to index them and its vector\n"
    )

    matrix = rng.standard_normal((args.chunks, args.dimensions), dtype=np.float32)
    queries = rng.standard_normal((args.rounds, args.dimensions), dtype=np.float32)
    words = [" ".join(random.Random(seed).choices(texts[seed].split(), k=8)) for seed in range(args.rounds)]
    rare = compile_filter({"type": "eq", "key": "kind", "value": "letter"})
    settings = RankingSettings(rule=EvidenceRule(0.0, text_share=0.2, min_evidence=0.0))
    everything = index.mask(moment=NOW)

    def request(at: int, **options: object) -> SearchRequest:
        return SearchRequest([SearchQuery(words[at], queries[at])], now=NOW, **options)  # type: ignore[arg-type]

    rows: dict[str, Callable[[int], object]] = {
        "baseline: matrix @ query": lambda at: matrix @ queries[at],
        "vectors, 100 candidates": lambda at: index.search_vector(queries[at], 100, everything),
        "BM25, 8 words, 100 candidates": lambda at: index.match_text(query_terms(words[at]), everything).best(100),
        "whole search, fused": lambda at: search(index, request(at), settings),
        "whole search, filter keeps 10 %": lambda at: search(index, request(at, accepts=rare), settings),
        "whole search, BM25 only": lambda at: search(
            index, request(at, weights=HybridWeights(embedding_weight=0)), settings
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in rows}
    cpu: dict[str, list[float]] = {name: [] for name in rows}
    for at in range(args.rounds):
        for name, run in rows.items():
            begin, used = time.perf_counter(), time.process_time()
            run(at)
            times[name].append((time.perf_counter() - begin) * 1000)
            cpu[name].append((time.process_time() - used) * 1000)
    base = percentile(times["baseline: matrix @ query"], 50)
    print("| search | p50, ms | p95, ms | p50 of CPU time, ms | p50 to baseline |\n|---|---|---|---|---|")
    results = {}
    for name, values in times.items():
        row = {
            "p50_ms": percentile(values, 50),
            "p95_ms": percentile(values, 95),
            "cpu_p50_ms": percentile(cpu[name], 50),
        }
        results[name] = {**row, "ratio": row["p50_ms"] / base}
        shown = " | ".join(f"{value:.1f}" for value in row.values())
        print(f"| {name} | {shown} | {row['p50_ms'] / base:.2f} |")
    if args.json:
        args.json.write_text(json.dumps({"chunks": args.chunks, "results": results}, indent=1) + "\n")


def make_texts(chunks: int) -> list[str]:
    """Return texts of :data:`WORDS` words each; the word of rank r has a frequency proportional to 1 / r."""
    rng = np.random.default_rng(2)
    syllables = [a + b for a in "бвгдзклмнпрст" for b in "аеиоуыя"]
    vocabulary = ["".join(rng.choice(syllables, size=rng.integers(2, 5))) for _ in range(VOCABULARY)]
    shares = 1 / np.arange(1, VOCABULARY + 1)
    drawn = rng.choice(VOCABULARY, size=(chunks, WORDS), p=shares / shares.sum())
    return [" ".join(vocabulary[at] for at in row) for row in drawn]


def percentile(values: list[float], share: float) -> float:
    """Return the value below which ``share`` percent of ``values`` are (nearest rank)."""
    return sorted(values)[max(0, math.ceil(len(values) * share / 100) - 1)]


if __name__ == "__main__":
    main()
