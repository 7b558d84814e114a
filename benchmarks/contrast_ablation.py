"""What each ingredient of distillhash-contrast is worth.

    python benchmarks/contrast_ablation.py cifar10:DIR --out results/contrast-ablation

Protocol cifar10-validation (its queries are carved from the database side and are no queries of cifar10-distillhash), default backbone,
six views and a teacher unless the row says otherwise, 32 bits, 3 seeds, last epoch. Finished rows are kept in OUT/rows.jsonl, so a
stopped run goes on; OUT/ablation.md holds the tables. Rows that say so use labels and are controls.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash import make_hasher
from distillhash.backbones import FeatureBatch, FeatureCache, extract_features, make_backbone
from distillhash.backbones.views import ViewSettings
from distillhash.bench.protocols import load_protocol
from distillhash.bench.runs import Prepared, prepare
from distillhash.methods.distillhash_contrast import DistillHashContrast
from distillhash.methods.heads import Data
from distillhash.methods.ssdh import PairHasher
from distillhash.metrics.retrieval import evaluate_codes
from distillhash.sources import open_source
from distillhash.supervision.similarity import Floats, PairLabels


@dataclass(eq=False, repr=False)
class LabelledContrast(DistillHashContrast):
    """Control: all images of the class are the neighbourhood. Uses labels."""

    method = "labelled-contrast"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.classes: NDArray[Any] = np.empty(0)

    def _neighbourhoods(self, *compared: NDArray[np.float32] | None) -> NDArray[np.int32]:
        del compared
        classes = self.classes[self.history_["rows"]]
        members = {name: np.flatnonzero(classes == name) for name in np.unique(classes)}
        size = min(map(len, members.values())) - 1
        rows = [np.setdiff1d(members[name], [row])[:size] for row, name in enumerate(classes)]
        return np.array(rows, np.int32)


@dataclass(eq=False, repr=False)
class LabelledPairs(PairHasher):
    """Control: the pair loss of DistillHash on true pair labels, with the hidden layer of the contrastive head. Uses labels."""

    method = "labelled-pairs"
    hidden: int = 1024
    epochs: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        self.classes: NDArray[Any] = np.empty(0)

    def _pairs(self, _distances: Floats, _data: Data) -> PairLabels:
        classes = self.classes[self.history_["rows"]]
        pairs = np.where(np.equal.outer(classes, classes), 1, -1).astype(np.int8)
        np.fill_diagonal(pairs, 0)
        return pairs


@dataclass(frozen=True)
class Variant:
    """One row: a table, a name, options, a code length, the number of views and how many of them lose colour (None: the default).

    There is a teacher where there are views, unless ``teacher`` is false.
    """

    table: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    n_bits: int = 32
    n_views: int = 6
    grey: float | None = None
    teacher: bool = True
    method: str = "distillhash-contrast"


TUNED = {"scale": 0.1, "batch_size": 256, "epochs": 60, "learning_rate": 3e-4}
"""Of the labelled pair head: a smaller factor in the likelihood, longer; the best of a few on these very queries, in its favour."""

VARIANTS = [
    *(Variant("Lengths", f"distillhash-contrast, {n_bits} bits", n_bits=n_bits) for n_bits in (16, 32, 64, 128)),
    Variant("Ingredients", "all"),
    Variant("Ingredients", "no teacher", teacher=False),
    Variant("Ingredients", "head from nothing", {"start": 0.0}),
    Variant("Ingredients", "head from nothing, no teacher", {"start": 0.0}, teacher=False),
    Variant("Ingredients", "start of spread 1", {"start": 1.0}),
    Variant("Ingredients", "features without roots", {"root": False}),
    Variant("Ingredients", "cosine instead of the invariant metric", {"metric": "cosine"}),
    Variant("Ingredients", "whitening: directions weighted alike", {"emphasis": 0.0}),
    Variant("Ingredients", "neighbours by cosine, not by overlap", {"agreement": "cosine"}),
    Variant("Ingredients", "one positive an image", {"positives": "one"}),
    Variant("Ingredients", "gradient of the identity", {"gradient": "identity"}),
    Variant("Ingredients", "relaxed codes", {"gradient": "relaxed"}),
    Variant("Ingredients", "linear head", {"hidden": 0}),
    Variant("Ingredients", "constant step size", {"schedule": "constant"}),
    Variant("Ingredients", "no dropout of features", {"dropout": 0.0}),
    Variant("Ingredients", "one view in ten without colour, not every other", grey=0.1),
    Variant("Ingredients", "four views", n_views=4),
    Variant("Ingredients", "two views", n_views=2),
    Variant("Ingredients", "no views", n_views=0),
    Variant("Ingredients", "no views, 20 passes, not 10", {"max_seen": 100_000}, n_views=0),
    Variant("Ingredients", "no views, no dropout of features", {"dropout": 0.0}, n_views=0),
    Variant("Ingredients", "none: cosine neighbours, linear head from nothing, identity, constant", {
        "root": False, "metric": "cosine", "agreement": "cosine", "positives": "one", "gradient": "identity", "hidden": 0,
        "schedule": "constant", "dropout": 0.0, "start": 0.0,
    }, teacher=False),
    Variant("Controls", "labelled contrastive head (uses labels)", method="labelled-contrast"),
    Variant("Controls", "labelled pair head (uses labels)", method="labelled-pairs"),
    Variant("Controls", "labelled pair head, linear (uses labels)", {"hidden": 0}, method="labelled-pairs"),
    Variant("Controls", "labelled pair head, linear, no views (uses labels)", {"hidden": 0}, n_views=0, method="labelled-pairs"),
    Variant("Controls", "labelled pair head, tuned (uses labels)", TUNED, method="labelled-pairs"),
    Variant("Controls", "labelled pair head, linear, tuned (uses labels)", {"hidden": 0, **TUNED}, method="labelled-pairs"),
    Variant(
        "Controls", "labelled pair head, linear, no views, tuned (uses labels)", {"hidden": 0, **TUNED}, n_views=0,
        method="labelled-pairs",
    ),
    Variant("Controls", "itq", method="itq"),
]  # fmt: skip
LABELLED = {"labelled-contrast": LabelledContrast, "labelled-pairs": LabelledPairs}


def measure(variant: Variant, prepared: Prepared, given: FeatureBatch, seed: int) -> dict[str, Any]:
    split, features, labels = prepared.split, prepared.features, prepared.labels
    hasher: Any
    if variant.method in LABELLED:
        hasher = LABELLED[variant.method](variant.n_bits, seed=seed, **variant.options)
        hasher.classes = labels[split.train]
    else:
        hasher = make_hasher(variant.method, variant.n_bits, seed=seed, **variant.options)
    started = time.perf_counter()
    contrast = variant.method in ("distillhash-contrast", "labelled-contrast")
    assert given.views is not None
    hasher.fit(
        features[split.train],
        views=given.views[: variant.n_views] if variant.n_views and variant.method != "itq" else None,
        teacher=given.teacher if contrast and variant.teacher and variant.n_views else None,
    )
    seconds = time.perf_counter() - started
    codes = hasher.encode(features[split.query]), hasher.encode(features[split.database])
    score = evaluate_codes(*codes, labels[split.query], labels[split.database])["map"]
    record = {"map": score, "seconds": seconds}
    if hasattr(hasher, "neighbours_"):
        own = labels[split.train][hasher.history_["rows"]]
        record["purity"] = float((own[hasher.neighbours_] == own[:, None]).mean())
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--tables", help="only these, separated by commas")
    arguments = parser.parse_args()
    source, backbone, cache = open_source(arguments.source), make_backbone(), FeatureCache()
    prepared = prepare(source, load_protocol("cifar10-validation"), backbone, cache=cache)
    train = source.select(prepared.split.train)

    @functools.cache
    def given(grey: float | None) -> FeatureBatch:
        settings = ViewSettings() if grey is None else ViewSettings(grey=grey)
        return extract_features(train, backbone, cache=cache, n_views=6, settings=settings, teacher=True)

    arguments.out.mkdir(parents=True, exist_ok=True)
    kept = arguments.out / "rows.jsonl"
    for seed in map(int, arguments.seeds.split(",")):
        for variant in VARIANTS:
            wanted = arguments.tables is None or variant.table in arguments.tables.split(",")
            if not wanted or any(key(row) == (variant.name, seed) for row in read(kept)):
                continue
            row = {"table": variant.table, "name": variant.name, "seed": seed}
            row |= measure(variant, prepared, given(variant.grey), seed)
            with kept.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{variant.name}, seed {seed}: {row['map']:.4f}", flush=True)
    (arguments.out / "ablation.md").write_text(tables(read(kept)))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def key(row: dict[str, Any]) -> tuple[str, int]:
    return row["name"], row["seed"]


def tables(rows: list[dict[str, Any]]) -> str:
    lines: list[str] = []
    for table in dict.fromkeys(variant.table for variant in VARIANTS):
        lines += [
            f"### {table}",
            "",
            "| variant | MAP | purity of N(i) | fit, s |",
            "|---|---|---|---|",
        ]
        for variant in VARIANTS:
            mine = [row for row in rows if row["name"] == variant.name]
            if variant.table != table or not mine:
                continue
            scores = [row["map"] for row in mine]
            spread = f" ({np.std(scores, ddof=1):.4f})" if len(mine) > 1 else ""
            purity = f"{np.mean([row['purity'] for row in mine]):.3f}" if "purity" in mine[0] else ""
            seconds = np.median([row["seconds"] for row in mine])
            lines.append(f"| {variant.name} | {np.mean(scores):.4f}{spread} | {purity} | {seconds:.0f} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
