"""ITQ and LSH against FAISS, AGH against aghasher: the same features, splits and metric.

    python benchmarks/shallow_against_libraries.py cifar10:../shared/data/cifar10

Protocol cifar10-distillhash, default backbone, 3 seeds. Prints one JSON object per method and code length.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import aghasher
import faiss
import numpy as np
from numpy.typing import NDArray

from distillhash import Codes, make_hasher
from distillhash.backbones import FeatureCache, make_backbone
from distillhash.bench.protocols import load_protocol
from distillhash.bench.runs import prepare
from distillhash.metrics.retrieval import evaluate_codes
from distillhash.sources import open_source

Floats = NDArray[np.float32]
Encoder = Callable[[Floats], Codes]


def faiss_itq(train: Floats, n_bits: int, seed: int) -> Encoder:
    transform = faiss.ITQTransform(train.shape[1], n_bits, True)
    transform.itq.seed = 1 + seed
    transform.train(train)
    return lambda x: Codes.from_projection(transform.apply(x))


def faiss_lsh(train: Floats, n_bits: int, seed: int) -> Encoder:
    """Random orthogonal directions, thresholds at the medians of the training set: the better of its two settings."""
    index = faiss.IndexLSH(train.shape[1], n_bits, True, True)
    index.rrot.init(seed + 1)
    index.train(train)

    def encode(x: Floats) -> Codes:
        bits = np.unpackbits(index.sa_encode(x), axis=1, bitorder="little")[:, :n_bits]
        return Codes.from_projection(bits.astype(np.float32) - 0.5)

    return encode


def library_agh(train: Floats, n_bits: int, seed: int) -> Encoder:
    """Two eigenvectors a bit are ours alone; the library has one layer. The anchors are the same."""
    ours: Any = make_hasher("agh", n_bits, layers=1, seed=seed).fit(train)
    theirs, _ = aghasher.AnchorGraphHasher.train(train.astype(np.float64), ours.graph_.anchors, n_bits, nn_anchors=3)

    def encode(x: Floats) -> Codes:
        blocks = [np.asarray(theirs.hash(x[at : at + 5000].astype(np.float64))) for at in range(0, len(x), 5000)]
        return Codes.from_projection(np.concatenate(blocks).astype(np.float32) - 0.5)

    return encode


PEERS = {
    "itq": ("FAISS", faiss_itq, {}),
    "lsh": ("FAISS", faiss_lsh, {}),
    "agh": ("aghasher", library_agh, {"layers": 1}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--methods", default=",".join(PEERS))
    parser.add_argument("--bits", default="16,32,64,128")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    prepared = prepare(
        open_source(arguments.source), load_protocol("cifar10-distillhash"), make_backbone(), cache=FeatureCache()
    )
    split, features, labels = prepared.split, prepared.features, prepared.labels
    train, query, database = (features[rows] for rows in (split.train, split.query, split.database))
    for method in arguments.methods.split(","):
        library, peer, options = PEERS[method]
        for n_bits in map(int, arguments.bits.split(",")):
            scores: dict[str, list[float]] = {"ours": [], library: []}
            for seed in range(arguments.seeds):
                hasher = make_hasher(method, n_bits, seed=seed, **options).fit(train)
                for name, encode in (("ours", hasher.encode), (library, peer(train, n_bits, seed))):
                    report = evaluate_codes(
                        encode(query), encode(database), labels[split.query], labels[split.database]
                    )
                    scores[name].append(report["map"])
            means = {name: round(float(np.mean(values)), 4) for name, values in scores.items()}
            spreads = {name: round(float(np.std(values, ddof=1)), 4) for name, values in scores.items()}
            print(json.dumps({"method": method, "n_bits": n_bits, "map": means, "spread": spreads}), flush=True)


if __name__ == "__main__":
    main()
