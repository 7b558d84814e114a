"""What training the backbone too adds to distillhash-contrast, with a budget for a laptop.

    python benchmarks/contrast_fine_tune.py cifar10:DIR --out results/contrast-fine-tune

The training images of protocol cifar10-validation; MAP of a part of its queries against a part of its database, drawn by seed 0, because
every other image has to pass through the new backbone. Frozen and fine-tuned models share seed, views and neighbourhoods; the fine-tuned
one goes on from where the frozen one ends.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from distillhash import HashModel, make_hasher
from distillhash.backbones import FeatureCache
from distillhash.bench.protocols import load_protocol
from distillhash.bench.runs import versions
from distillhash.metrics.retrieval import evaluate_codes
from distillhash.sources import open_source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bits", type=int, default=32)
    parser.add_argument("--epochs", default="1", help="of fine-tuning, separated by commas")
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--database", type=int, default=5_000)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    source = open_source(arguments.source)
    split, labels = load_protocol("cifar10-validation").split(source), source.labels
    assert labels is not None
    rng = np.random.default_rng(0)
    query = np.sort(rng.choice(split.query, arguments.queries, replace=False))
    database = np.sort(rng.choice(split.database, arguments.database, replace=False))
    records: list[dict[str, Any]] = []
    for seed in map(int, arguments.seeds.split(",")):
        for epochs in (0, *map(int, arguments.epochs.split(","))):
            options: dict[str, Any] = {"device": arguments.device}
            if epochs:
                options |= {"fine_tune_epochs": epochs, "fine_tune_rate": arguments.rate}
            hasher = make_hasher("distillhash-contrast", arguments.bits, seed=seed, **options)
            model = HashModel(hasher=hasher, cache=FeatureCache(), device=arguments.device)
            started = time.perf_counter()
            model.fit(source.select(split.train), fine_tune=epochs > 0)
            seconds = time.perf_counter() - started
            if epochs:
                model.cache = None  # features of a backbone that no other run has
            codes = model.encode(source.select(query)), model.encode(source.select(database))
            score = evaluate_codes(*codes, labels[query], labels[database])["map"]
            records.append({"seed": seed, "epochs": epochs, "map": round(score, 4), "fit_s": round(seconds)})
            print(json.dumps(records[-1]), flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python benchmarks/contrast_fine_tune.py", *sys.argv[1:]])
    report = {"command": command, "versions": versions(), "records": records}
    (arguments.out / "fine-tune.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
