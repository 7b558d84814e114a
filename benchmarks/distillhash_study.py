"""The DistillHash study: which reading works, why, and what its controls say. docs/distillhash-study.md tells the story.

    python benchmarks/distillhash_study.py cifar10:DIR --out results/distillhash-study

Protocol cifar10-validation (its queries are carved from the database side and are no queries of cifar10-distillhash), default backbone,
32 bits, 3 seeds, last epoch. Finished rows are kept in OUT/rows.jsonl, so a stopped study goes on; at the end OUT/study.md holds
the tables and OUT/figure5.svg and .png the sensitivity to o and p (the paper's Figure 5).

Every control replaces the pairs that recommended DistillHash trains on and leaves all else as it is. Precision, and the controls that say
so, use labels: for diagnosis only.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash import make_hasher
from distillhash.backbones import FeatureCache, extract_features, make_backbone
from distillhash.bench import figures
from distillhash.bench.protocols import load_protocol
from distillhash.bench.runs import Prepared, prepare
from distillhash.methods.distillhash import DistillHash
from distillhash.methods.heads import Data
from distillhash.metrics.retrieval import evaluate_codes
from distillhash.sources import open_source
from distillhash.supervision.similarity import (
    Floats,
    PairLabels,
    cosine_distances,
    describe_pairs,
    fit_half_gaussians,
    judge_pairs,
    label_pairs,
    pair_thresholds,
)

Control = Callable[["Controlled", Floats, PairLabels], PairLabels]


@dataclass(eq=False, repr=False)
class Controlled(DistillHash):
    """DistillHash whose distilled pairs are replaced by a control's; ``classes`` are the labels some controls look at."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.control: Control | None = None
        self.classes: NDArray[Any] = np.empty(0)

    def _pairs(self, distances: Floats, data: Data) -> PairLabels:
        self.logits = self._estimate(distances, data)
        self._estimate = lambda *_: self.logits  # type: ignore[method-assign]  # computed once for rule and control
        distilled = super()._pairs(distances, data)
        return distilled if self.control is None else self.control(self, self.logits, distilled)

    @cached_property
    def rng(self) -> np.random.Generator:
        """Draws the random controls."""
        return np.random.default_rng(self.seed + 1000)


def symmetric(n: int, upper: NDArray[np.intp], sign: int, into: PairLabels) -> None:
    """Give the pairs at the flat places ``upper`` of the upper triangle the label ``sign``, both ways."""
    rows, columns = np.triu_indices(n, 1)
    into[rows[upper], columns[upper]] = sign
    into[columns[upper], rows[upper]] = sign


def upper_of(square: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(square[np.triu_indices(len(square), 1)])


def counts(pairs: PairLabels) -> dict[int, int]:
    upper = upper_of(pairs)
    return {sign: int((upper == sign).sum()) for sign in (1, -1)}


def random_initial(hasher: Controlled, _: Floats, distilled: PairLabels) -> PairLabels:
    """As many pairs of each sign as were distilled (or as there are), drawn from the initial labels."""
    initial, pairs = upper_of(hasher.initial_pairs_), np.zeros_like(distilled)
    for sign, count in counts(distilled).items():
        places = np.flatnonzero(initial == sign)
        symmetric(len(pairs), hasher.rng.choice(places, min(count, len(places)), replace=False), sign, pairs)
    return pairs


def thinned(hasher: Controlled, _: Floats, distilled: PairLabels) -> PairLabels:
    """A random part of the distilled pairs: of each sign as many as there are initial labels."""
    upper, wanted, pairs = upper_of(distilled), counts(hasher.initial_pairs_), np.zeros_like(distilled)
    for sign in (1, -1):
        places = np.flatnonzero(upper == sign)
        kept = hasher.rng.choice(places, min(wanted[sign], len(places)), replace=False)
        symmetric(len(pairs), kept, sign, pairs)
    return pairs


def most_extreme_few(hasher: Controlled, logits: Floats, _distilled: PairLabels) -> PairLabels:
    """The most extreme estimates: of each sign as many as there are initial labels."""
    return most_extreme(hasher, logits, hasher.initial_pairs_)


def sign_of_estimate(_: Controlled, logits: Floats, _distilled: PairLabels) -> PairLabels:
    """Every pair by the sign of its estimate: no abstention."""
    pairs = np.sign(logits).astype(np.int8)
    np.fill_diagonal(pairs, 0)
    return pairs


def most_extreme(hasher: Controlled, logits: Floats, distilled: PairLabels) -> PairLabels:
    """As many pairs of each sign as were distilled, those with the most extreme estimates; equals at random."""
    values, pairs = upper_of(logits), np.zeros_like(distilled)
    shuffled = hasher.rng.permutation(len(values))
    order = shuffled[np.argsort(values[shuffled], kind="stable")]
    wanted = counts(distilled)
    symmetric(len(pairs), order[: wanted[-1]], -1, pairs)
    symmetric(len(pairs), order[len(order) - wanted[1] :], 1, pairs)
    return pairs


def same_class(hasher: Controlled) -> PairLabels:
    classes = hasher.classes[hasher.history_["rows"]]
    pairs = np.where(np.equal.outer(classes, classes), 1, -1).astype(np.int8)
    np.fill_diagonal(pairs, 0)
    return pairs


def oracle_on_support(hasher: Controlled, _: Floats, distilled: PairLabels) -> PairLabels:
    """The distilled pairs with their true labels."""
    return np.where(distilled != 0, same_class(hasher), 0).astype(np.int8)


def oracle_everywhere(hasher: Controlled, _: Floats, _distilled: PairLabels) -> PairLabels:
    """All pairs with their true labels: what this head and loss can reach."""
    return same_class(hasher)


def only_agreeing(hasher: Controlled, _: Floats, distilled: PairLabels) -> PairLabels:
    """Distilled pairs whose label the initial labels had already: selection without relabelling."""
    return np.where(distilled == hasher.initial_pairs_, distilled, 0).astype(np.int8)


def initial_relabelled(hasher: Controlled, logits: Floats, _distilled: PairLabels) -> PairLabels:
    """All initially labelled pairs, relabelled by the sign of the estimate: relabelling without selection."""
    return np.where(hasher.initial_pairs_ != 0, np.sign(logits), 0).astype(np.int8)


@dataclass(frozen=True)
class Variant:
    """One row: a table, a name, a method with its options, a control, a code length (``--bits`` where it is None), augmented views."""

    table: str
    name: str
    method: str = "distillhash"
    options: dict[str, Any] = field(default_factory=dict)
    control: Control | None = None
    n_bits: int | None = None
    n_views: int = 0


def sweep(table: str, option: str, values: list[Any], **fixed: Any) -> list[Variant]:
    return [Variant(table, f"{option}={value}", options={option: value, **fixed}) for value in values]


FAMILY: list[tuple[str, str, dict[str, Any]]] = [
    ("distillhash", "distillhash", {}),
    ("distillhash-initial, same initial labels", "distillhash-initial", {"alpha": 1.5}),
    ("ssdh, same initial labels", "ssdh", {"alpha": 1.5}),
    ("distillhash-initial", "distillhash-initial", {}),
    ("ssdh", "ssdh", {}),
]
NETWORK = {"estimate": "network"}
VARIANTS = [
    Variant("Readings", "distillhash, recommended"),
    Variant("Readings", "distillhash-initial, same initial labels", "distillhash-initial", {"alpha": 1.5}),
    Variant("Readings", "ssdh, same initial labels", "ssdh", {"alpha": 1.5}),
    Variant("Readings", "distillhash-initial, own default", "distillhash-initial"),
    Variant("Readings", "ssdh, own default", "ssdh"),
    Variant("Readings", "distillhash, preset=paper", options={"preset": "paper"}),
    Variant("Readings", "distillhash, preset=code", options={"preset": "code"}),
    Variant("Controls", "the rule (recommended)"),
    Variant("Controls", "random subset of the initial labels, same counts", control=random_initial),
    Variant("Controls", "sign of the estimate, all pairs", control=sign_of_estimate),
    Variant("Controls", "most extreme estimates, same counts", control=most_extreme),
    Variant("Controls", "the rule, thinned to the initial counts", control=thinned),
    Variant("Controls", "most extreme estimates, initial counts", control=most_extreme_few),
    Variant("Controls", "rule, only where the initial label agrees", control=only_agreeing),
    Variant("Controls", "initial pairs, relabelled by the estimate", control=initial_relabelled),
    Variant("Controls", "true labels on the rule's pairs (uses labels)", control=oracle_on_support),
    Variant("Controls", "true labels on all pairs (uses labels)", control=oracle_everywhere),
    *(
        Variant("Lengths", f"{name}, {n_bits} bits", method, options, n_bits=n_bits)
        for n_bits in (16, 64, 128)
        for name, method, options in FAMILY
    ),
    *(Variant("Augmented views", f"{name}, 6 views", method, options, n_views=6) for name, method, options in FAMILY),
    *sweep("Estimate", "local_neighbours", [5, 10, 30, 100]),
    *sweep("Estimate", "estimate_epochs", [1, 3, 10, 30], estimate="network"),
    *sweep("Estimate", "estimate_epochs", [3, 10], estimate="held-out"),
    Variant("Estimate", "network, sign of the estimate", options=NETWORK, control=sign_of_estimate),
    Variant("Estimate", "network, most extreme, same counts", options=NETWORK, control=most_extreme),
    *sweep("o", "n_neighbours", [2, 4, 8, 12, 16, 20]),
    *sweep("p", "n_outputs", [16, 32, 48, 64, 128], estimate="network"),
    *sweep("Options", "scale", [0.125, 0.25, 0.5, 1.0]),
    *sweep("Options", "alpha", [1.0, 1.5, 2.0]),
    *sweep("Options", "beta", [0.0, 1.0, 2.0]),
    Variant("Options", "labels=two-way, alpha=1", options={"labels": "two-way", "alpha": 1.0}),
    Variant("Options", "labels=two-way, alpha=1.5", options={"labels": "two-way"}),
    Variant("Options", "loss=squared", options={"loss": "squared"}),
    Variant("Options", "bounds=unshared", options={"bounds": "unshared"}),
    Variant("Options", "keep_certain=false", options={"keep_certain": False}),
    Variant("Options", "candidates=labelled", options={"candidates": "labelled"}),
]


def calibration_error(logits: Floats, fresh: PairLabels) -> float:
    """Expected calibration error of eta~ as a probability of a fresh noisy label, over the labelled pairs, in 20 equal bins."""
    values, labels = upper_of(logits), upper_of(fresh)
    labelled = labels != 0
    probability = 1 / (1 + np.exp(-np.clip(values[labelled].astype(np.float64), -50, 50)))
    positive = labels[labelled] > 0
    bins = np.minimum((20 * probability).astype(int), 19)
    sizes = np.bincount(bins, minlength=20)
    gaps = np.abs(np.bincount(bins, probability, 20) - np.bincount(bins, positive, 20))
    return float(gaps.sum() / sizes.sum())


def fresh_labels(view: NDArray[np.float32], hasher: Any, rows: NDArray[np.intp]) -> PairLabels:
    """Noisy labels of the same pairs drawn anew: by the same rule, from the features of an augmented view."""
    distances = cosine_distances(view[rows])
    fit = fit_half_gaussians(distances, mode=hasher.mode, include_self=hasher.self_distances)
    return label_pairs(
        distances, pair_thresholds(distances, fit, alpha=hasher.alpha, beta=hasher.beta), rule=hasher.labels
    )


def measure(variant: Variant, prepared: Prepared, views: NDArray[np.float32], n_bits: int, seed: int) -> dict[str, Any]:
    split, features, labels = prepared.split, prepared.features, prepared.labels
    options = dict(variant.options)
    options |= DistillHash.PRESETS[options.pop("preset")] if "preset" in options else {}
    hasher: Any
    if variant.method == "distillhash":
        hasher = Controlled(n_bits, seed=seed, **options)
        hasher.control, hasher.classes = variant.control, labels[split.train]
    else:
        hasher = make_hasher(variant.method, n_bits, seed=seed, **options)
    hasher.fit(features[split.train], views=views[: variant.n_views] if variant.n_views else None)
    codes = hasher.encode(features[split.query]), hasher.encode(features[split.database])
    facts = {
        **describe_pairs(hasher.pairs_),
        **judge_pairs(hasher.pairs_, labels[split.train][hasher.history_["rows"]]),
    }
    record = {
        "map": evaluate_codes(*codes, labels[split.query], labels[split.database])["map"],
        **{
            f"{what}_{sign}": facts[f"{what}_{sign}"]
            for sign in ("positive", "negative")
            for what in ("coverage", "precision")
        },
    }
    if variant.method == "distillhash":
        record["calibration_error"] = calibration_error(
            hasher.logits, fresh_labels(views[0], hasher, hasher.history_["rows"])
        )
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bits", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    source, backbone, cache = open_source(arguments.source), make_backbone(), FeatureCache()
    prepared = prepare(source, load_protocol("cifar10-validation"), backbone, cache=cache)
    train = source.select(prepared.split.train)
    views = extract_features(train, backbone, cache=cache, n_views=6).views
    assert views is not None
    arguments.out.mkdir(parents=True, exist_ok=True)
    kept = arguments.out / "rows.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = {(row["table"], row["name"], json.dumps(row["options"]), row["seed"]) for row in rows}
    for variant in VARIANTS:
        for seed in range(arguments.seeds):
            if (variant.table, variant.name, json.dumps(variant.options), seed) in done:
                continue
            row = {"table": variant.table, "name": variant.name, "options": variant.options, "seed": seed}
            row |= measure(variant, prepared, views, variant.n_bits or arguments.bits, seed)
            rows.append(row)
            with kept.open("a") as file:
                file.write(json.dumps(row) + "\n")
        print(f"{variant.table}: {variant.name} done", flush=True)
    (arguments.out / "study.md").write_text(tables(rows))
    drawing = sensitivity(rows)
    (arguments.out / "figure5.svg").write_text(drawing.svg())
    (arguments.out / "figure5.png").write_bytes(drawing.png())


def tables(rows: list[dict[str, Any]]) -> str:
    lines: list[str] = []
    for table in dict.fromkeys(variant.table for variant in VARIANTS):
        lines += [
            f"### {table}",
            "",
            "| variant | MAP | + share | + precision | - share | - precision | calibration error |",
        ]
        lines += ["|" + "---|" * 7]
        for variant in VARIANTS:
            mine = of(rows, variant)
            if variant.table != table or not mine:
                continue
            extra = f" ({variant.options['estimate']})" if "estimate" in variant.options and "=" in variant.name else ""
            scores = [row["map"] for row in mine]
            cells = [f"{np.mean(scores):.4f} ({np.std(scores, ddof=1):.4f})"]
            keys = ("coverage_positive", "precision_positive", "coverage_negative", "precision_negative")
            cells += [f"{np.mean([row[key] for row in mine]):.3f}" for key in keys]
            errors = [row["calibration_error"] for row in mine if "calibration_error" in row]
            cells.append(f"{np.mean(errors):.3f}" if errors else "")
            lines.append(f"| {variant.name}{extra} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def of(rows: list[dict[str, Any]], variant: Variant) -> list[dict[str, Any]]:
    key = (variant.table, variant.name, variant.options)
    return [row for row in rows if (row["table"], row["name"], row["options"]) == key]


def sensitivity(rows: list[dict[str, Any]]) -> figures.Drawing:
    """Figure 5: MAP against o (recommended reading) and against p (estimate by a network)."""
    series = {}
    for table, label, option in (
        ("o", "o, neighbours of the bounds", "n_neighbours"),
        ("p", "p, outputs of the estimator", "n_outputs"),
    ):
        points = []
        for variant in VARIANTS:
            scores = [row["map"] for row in of(rows, variant)]
            if variant.table == table and scores:
                points.append((variant.options[option], float(np.mean(scores)), min(scores), max(scores)))
        series[label] = points
    drawing = figures.method_comparison(series, "MAP")
    axes = drawing.figure.axes[0]
    axes.set_xlabel("Value (logarithmic)")
    axes.autoscale(axis="y")  # not from zero: the question is whether the curves are flat
    return drawing


if __name__ == "__main__":
    main()
