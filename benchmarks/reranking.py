"""What re-ranking gains: the nearest codes put in order by projection, decoder, kept int8 vectors or float features.

    python benchmarks/reranking.py --cifar10 cifar10:DIR --out results/reranking

CIFAR-10, protocol cifar10-distillhash: 1,000 queries, of which every tenth is taken, 50,000 images in the database, default backbone.
Hamming search gives 1,000 candidates (ties by ascending row), which are put in order. Precision is the share of the query's class
among the first 10 and 100; neighbour recall the share of the 10 nearest by float cosine among the first 10.
Defaults of every method, 3 seeds: mean (sample standard deviation).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash import make_hasher
from distillhash.backbones import FeatureCache, make_backbone
from distillhash.bench.protocols import load_protocol
from distillhash.bench.runs import prepare
from distillhash.hamming import nearest, planes_of
from distillhash.index.base import quantise
from distillhash.search import cosines, projection_scores
from distillhash.sources import open_source

METHODS = ("itq", "urph", "distillhash-contrast")
CUTS = (10, 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", required=True, metavar="SOURCE")
    parser.add_argument("--bits", default="16,32,64")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--candidates", type=int, default=1000)
    parser.add_argument("--out", required=True, metavar="DIR")
    arguments = parser.parse_args()
    prepared = prepare(
        open_source(arguments.cifar10),
        load_protocol("cifar10-distillhash"),
        make_backbone(),
        cache=FeatureCache(),
        n_views=6,
        teacher=True,
    )
    queries, database = (
        units(prepared.features[rows]) for rows in (prepared.split.query[::10], prepared.split.database)
    )
    nearest_rows = np.concatenate([np.argsort(-(part @ database.T))[:, :10] for part in np.array_split(queries, 20)])
    rows = []
    for method in METHODS:
        for n_bits in map(int, arguments.bits.split(",")):
            runs = [
                measured(prepared, method, n_bits, seed, arguments.candidates, nearest_rows)
                for seed in range(arguments.seeds)
            ]
            for order in runs[0]:
                values = np.array([run[order] for run in runs])
                cells = [f"{m:.4f} ({s:.4f})" for m, s in zip(values.mean(0), values.std(0, ddof=1), strict=True)]
                rows.append([method, str(n_bits), order, *cells])
                print(*rows[-1], flush=True)
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    header = ["method", "bits", "order of the candidates", *(f"precision@{cut}" for cut in CUTS), "neighbour_recall@10"]
    lines = [header, ["---"] * len(header), *rows]
    command = f"    python benchmarks/reranking.py --cifar10 cifar10:data --out {arguments.out}\n\n"
    (out / "table.md").write_text(command + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    (out / "table.json").write_text(json.dumps([dict(zip(header, row, strict=True)) for row in rows], indent=1) + "\n")


def units(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1."""
    return np.asarray(features / np.linalg.norm(features, axis=1, keepdims=True))


def measured(
    prepared: Any, method: str, n_bits: int, seed: int, n_candidates: int, nearest_rows: NDArray[np.intp]
) -> dict[str, list[float]]:
    """Precision at every cut and neighbour recall, for every order of the candidates."""
    split, x, labels = prepared.split, prepared.features, prepared.labels
    hasher: Any = make_hasher(method, n_bits, seed=seed).fit(x[split.train], **prepared.given(method))
    query, database = x[split.query[::10]], x[split.database]
    codes = hasher.encode(database)
    candidates, _ = nearest(planes_of(hasher.encode(query)), planes_of(codes), n_candidates)
    projections = hasher.project(query)
    hits: dict[str, list[NDArray[np.bool_]]] = {}
    recalls: dict[str, list[float]] = {}
    for place, rows in enumerate(candidates):
        scores = {
            "distance": -np.arange(len(rows)),
            "projection": projection_scores(projections[place], codes[rows]),
            "decoder": hasher.decoder.cosines(query[place][None], codes[rows])[0],
            "vectors": cosines(query[place], quantise(database[rows], "int8").astype(np.float32)),
            "features": cosines(query[place], database[rows]),
        }
        own = labels[split.database[rows]] == labels[split.query[::10]][place]
        for order, values in scores.items():
            ranked = np.argsort(-values, kind="stable")
            hits.setdefault(order, []).append(own[ranked])
            recalls.setdefault(order, []).append(float(np.isin(nearest_rows[place], rows[ranked[:10]]).mean()))
    return {
        order: [*(float(np.mean([hit[:cut] for hit in found])) for cut in CUTS), float(np.mean(recalls[order]))]
        for order, found in hits.items()
    }


if __name__ == "__main__":
    main()
