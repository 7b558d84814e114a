"""What training the backbone as well adds to the frozen one.

    python benchmarks/fine_tuning.py cifar10:DIR --out results/fine-tuning

Protocol cifar10-validation, default backbone, 32 bits: the head on frozen features, and the same head after ``--epochs`` passes over the
5,000 training images with the backbone. To spare the passes of the tuned backbone, MAP is that of 1,000 of the carved queries against
9,000 of the database, for both. Finished rows are kept in OUT/rows.jsonl.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from distillhash import HashModel, make_hasher
from distillhash.backbones import FeatureCache, iter_features, make_backbone
from distillhash.bench.protocols import load_protocol
from distillhash.bench.runs import prepare
from distillhash.metrics.retrieval import evaluate_codes
from distillhash.sources import open_source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", default="distillhash-contrast,distillhash,distillhash-initial,ssdh")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    kept = arguments.out / "rows.jsonl"
    source = open_source(arguments.source)
    protocol, cache = load_protocol("cifar10-validation"), FeatureCache()
    prepared = prepare(source, protocol, make_backbone(), cache=cache, n_views=6, teacher=True)
    split, labels, features = prepared.split, prepared.labels, prepared.features
    rng = np.random.default_rng(0)
    query = np.sort(rng.choice(split.query, 1000, replace=False))
    database = np.sort(rng.choice(split.database, 9000, replace=False))
    for seed in map(int, arguments.seeds.split(",")):
        for method in arguments.methods.split(","):
            if any((row["method"], row["seed"]) == (method, seed) for row in read(kept)):
                continue
            settings: dict[str, Any] = {"fine_tune_epochs": arguments.epochs}
            frozen = make_hasher(method, 32, seed=seed)
            given: dict[str, Any] = prepared.given(method)
            frozen.fit(features[split.train], **given)
            model = HashModel(
                hasher=make_hasher(method, 32, seed=seed, **settings), device=arguments.device, cache=cache
            )
            started = time.perf_counter()
            model.fit(source.select(split.train), fine_tune=True)
            seconds = time.perf_counter() - started
            tuned = [
                np.concatenate([b.features for b in iter_features(source.select(rows), model.backbone)])
                for rows in (query, database)
            ]
            sides = labels[query], labels[database]
            row = {
                "method": method,
                "seed": seed,
                "epochs": arguments.epochs,
                "frozen": evaluate_codes(frozen.encode(features[query]), frozen.encode(features[database]), *sides)[
                    "map"
                ],
                "tuned": evaluate_codes(model.hasher.encode(tuned[0]), model.hasher.encode(tuned[1]), *sides)["map"],
                "seconds": seconds,
            }
            with kept.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)
    lines = ["| method | seed | epochs | frozen | fine-tuned | fit, s |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {row['method']} | {row['seed']} | {row['epochs']} | {row['frozen']:.4f} | {row['tuned']:.4f} | {row['seconds']:.0f} |"
        for row in read(kept)
    ]
    (arguments.out / "table.md").write_text("\n".join(lines) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


if __name__ == "__main__":
    main()
