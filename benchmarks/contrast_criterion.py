"""Does a criterion without labels find the settings of distillhash-contrast that retrieve best?

    python benchmarks/contrast_criterion.py cifar10:DIR --out results/contrast-criterion

For every setting and seed two models are trained on disjoint halves of the training images of protocol cifar10-validation (2,500 each, six
views and the teacher, 32 bits), and :func:`distillhash.metrics.replicated_neighbours` is measured on 3,000 database images that neither
saw. MAP is that of the two models on the carved queries; it needs labels, and only serves to judge the criterion. Finished rows are kept in
OUT/rows.jsonl.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from distillhash import make_hasher
from distillhash.backbones import FeatureCache, make_backbone
from distillhash.bench.protocols import load_protocol
from distillhash.bench.runs import Prepared, prepare
from distillhash.metrics import evaluate_codes, replicated_neighbours
from distillhash.sources import open_source

SETTINGS: list[tuple[str, list[Any]]] = [
    ("neighbourhood", [0.002, 0.005, 0.01, 0.02, 0.04, 0.08]),
    ("temperature", [0.1, 0.2, 0.3, 0.5, 0.7, 1.0]),
    ("epochs", [5, 10, 20, 40]),
]


def measure(prepared: Prepared, options: dict[str, Any], seed: int) -> dict[str, float]:
    split, features, labels = prepared.split, prepared.features, prepared.labels
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(split.train))
    views, teacher = prepared.views, prepared.teacher
    assert views is not None and teacher is not None
    unseen = np.sort(rng.choice(np.setdiff1d(split.database, split.train), 3000, replace=False))
    codes, scores = [], []
    for number, half in enumerate(np.array_split(order, 2)):
        rows = np.sort(half)
        hasher = make_hasher("distillhash-contrast", 32, seed=2 * seed + number, **options)
        hasher.fit(features[split.train[rows]], views=views[:, rows], teacher=teacher[rows])
        codes.append(hasher.encode(features[unseen]))
        sides = hasher.encode(features[split.query]), hasher.encode(features[split.database])
        scores.append(evaluate_codes(*sides, labels[split.query], labels[split.database])["map"])
    return {"map": float(np.mean(scores)), "criterion": replicated_neighbours(codes[0], codes[1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    arguments = parser.parse_args()
    source, backbone, cache = open_source(arguments.source), make_backbone(), FeatureCache()
    protocol = load_protocol("cifar10-validation")
    prepared = prepare(source, protocol, backbone, cache=cache, n_views=6, teacher=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    kept = arguments.out / "rows.jsonl"
    for seed in map(int, arguments.seeds.split(",")):
        for option, values in SETTINGS:
            for value in values:
                name = f"{option} = {value}"
                if any((row["setting"], row["seed"]) == (name, seed) for row in read(kept)):
                    continue
                row = {"setting": name, "seed": seed, **measure(prepared, {option: value}, seed)}
                with kept.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(row, flush=True)
    (arguments.out / "criterion.md").write_text(table(read(kept)))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| setting | MAP | criterion |", "|---|---|---|"]
    everything = []
    for option, values in SETTINGS:
        points = []
        for value in values:
            mine = np.array([[row["map"], row["criterion"]] for row in rows if row["setting"] == f"{option} = {value}"])
            if not len(mine):
                continue
            spread = mine.std(axis=0, ddof=1) if len(mine) > 1 else np.zeros(2)
            points.append(mine.mean(axis=0))
            cells = " | ".join(f"{m:.4f} ({s:.4f})" for m, s in zip(points[-1], spread, strict=True))
            lines.append(f"| {option} = {value} | {cells} |")
        everything += points
        if len(points) > 2:
            lines.append(f"| *rank correlation over {option}* | *{spearmanr(*np.array(points).T).statistic:.2f}* | |")
    if len(everything) > 2:
        lines.append(f"| *rank correlation over all* | *{spearmanr(*np.array(everything).T).statistic:.2f}* | |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
