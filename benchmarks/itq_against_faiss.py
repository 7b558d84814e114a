"""ITQ against the ITQ transform of FAISS on the same features, splits and metric.

    python benchmarks/itq_against_faiss.py cifar10:../shared/data/cifar10

Protocol cifar10-distillhash, default backbone, 3 seeds. Prints one JSON object per code length.
"""

from __future__ import annotations

import argparse
import json

import faiss
import numpy as np

from distillhash import Codes, make_hasher
from distillhash.backbones import FeatureCache, make_backbone
from distillhash.bench.protocol import load_protocol
from distillhash.bench.run import prepare
from distillhash.metrics import evaluate_codes
from distillhash.sources import open_source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--bits", default="16,32,64,128")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    prepared = prepare(
        open_source(arguments.source), load_protocol("cifar10-distillhash"), make_backbone(), cache=FeatureCache()
    )
    split, features, labels = prepared.split, prepared.features, prepared.labels
    train, query, database = (features[rows] for rows in (split.train, split.query, split.database))
    for n_bits in map(int, arguments.bits.split(",")):
        scores: dict[str, list[float]] = {"ours": [], "faiss": []}
        for seed in range(arguments.seeds):
            hasher = make_hasher("itq", n_bits, seed=seed).fit(train)
            transform = faiss.ITQTransform(train.shape[1], n_bits, True)
            transform.itq.seed = 1 + seed
            transform.train(train)
            for name, codes in (
                ("ours", (hasher.encode(query), hasher.encode(database))),
                ("faiss", tuple(Codes.from_projection(transform.apply(side)) for side in (query, database))),
            ):
                report = evaluate_codes(codes[0], codes[1], labels[split.query], labels[split.database])
                scores[name].append(report["map"])
        means = {name: round(float(np.mean(values)), 4) for name, values in scores.items()}
        spreads = {name: round(float(np.std(values, ddof=1)), 4) for name, values in scores.items()}
        print(json.dumps({"n_bits": n_bits, "map": means, "spread": spreads}), flush=True)


if __name__ == "__main__":
    main()
