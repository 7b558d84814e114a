"""The options of DistillHash one at a time, on queries carved from the database side: how the defaults were chosen.

    python benchmarks/distillhash_options.py cifar10:../shared/data/cifar10

Protocol cifar10-validation (its queries are no queries of cifar10-distillhash), default backbone, 32 bits, 3 seeds. Prints a
Markdown table: MAP, and the share and precision of the pairs trained on (precision by labels, for diagnosis only).
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from distillhash import make_hasher
from distillhash.backbones import FeatureCache, make_backbone
from distillhash.bench.protocol import load_protocol
from distillhash.bench.run import prepare
from distillhash.metrics import evaluate_codes
from distillhash.pairs.diagnosis import describe_pairs, judge_pairs
from distillhash.sources import open_source

VARIANTS: list[tuple[str, str, dict[str, Any]]] = [
    ("distillhash, defaults", "distillhash", {}),
    ("distillhash-initial, the same initial labels", "distillhash-initial", {"alpha": 1.5}),
    ("ssdh, the same initial labels", "ssdh", {"alpha": 1.5}),
    ("distillhash-initial, defaults", "distillhash-initial", {}),
    ("ssdh, defaults", "ssdh", {}),
    ("reading=paper", "distillhash", {"reading": "paper"}),
    ("reading=code", "distillhash", {"reading": "code"}),
    ("estimate=network", "distillhash", {"estimate": "network"}),
    ("estimate=held-out", "distillhash", {"estimate": "held-out"}),
    ("alpha=1", "distillhash", {"alpha": 1.0}),
    ("alpha=2", "distillhash", {"alpha": 2.0}),
    ("beta=1", "distillhash", {"beta": 1.0}),
    ("beta=2", "distillhash", {"beta": 2.0}),
    ("labels=two-way, alpha=1", "distillhash", {"labels": "two-way", "alpha": 1.0}),
    ("local_neighbours=10", "distillhash", {"local_neighbours": 10}),
    ("local_neighbours=100", "distillhash", {"local_neighbours": 100}),
    ("n_neighbours=2", "distillhash", {"n_neighbours": 2}),
    ("n_neighbours=8", "distillhash", {"n_neighbours": 8}),
    ("n_neighbours=16", "distillhash", {"n_neighbours": 16}),
    ("bounds=unshared", "distillhash", {"bounds": "unshared"}),
    ("keep_certain=false", "distillhash", {"keep_certain": False}),
    ("candidates=labelled", "distillhash", {"candidates": "labelled"}),
    ("loss=squared", "distillhash", {"loss": "squared"}),
    ("scale=0.25", "distillhash", {"scale": 0.25}),
    ("scale=1", "distillhash", {"scale": 1.0}),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--bits", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    source, protocol = open_source(arguments.source), load_protocol("cifar10-validation")
    prepared = prepare(source, protocol, make_backbone(), cache=FeatureCache())
    split, features, labels = prepared.split, prepared.features, prepared.labels
    train, query, database = (features[rows] for rows in (split.train, split.query, split.database))
    print("| variant | MAP | + share | + precision | - share | - precision |\n|---|---|---|---|---|---|")
    for name, method, options in VARIANTS:
        scores, pairs = [], []
        for seed in range(arguments.seeds):
            hasher: Any = make_hasher(method, arguments.bits, seed=seed, **options).fit(train)
            codes = hasher.encode(query), hasher.encode(database)
            scores.append(evaluate_codes(codes[0], codes[1], labels[split.query], labels[split.database])["map"])
            facts = {**describe_pairs(hasher.pairs_), **judge_pairs(hasher.pairs_, labels[split.train])}
            pairs.append(
                [facts[f"{kind}_{sign}"] for sign in ("positive", "negative") for kind in ("coverage", "precision")]
            )
        cells = " | ".join(f"{value:.3f}" for value in np.mean(pairs, axis=0))
        print(f"| {name} | {np.mean(scores):.4f} ({np.std(scores, ddof=1):.4f}) | {cells} |", flush=True)


if __name__ == "__main__":
    main()
