"""The DistillHash study: what the rule, the estimate, the thresholds, the optimiser, the head and the views give, all else equal.

    python benchmarks/distillhash_study.py cifar10:DIR --grocery train.parquet --out results/distillhash-study

Two data sets, neither of which holds a query of a published table. cifar10: protocol cifar10-validation, whose queries are carved from the
database side. grocery: of the photographs given, a fifth drawn by seed 7 are the queries, and the others are learned from and searched.
Backbone efficientnet-lite0, at 128 pixels for CIFAR-10 and at its native 224 for photographs; its features are kept in the user's cache.

- crossing: thresholds x recipe x views x pairs with a linear head, in full. Thresholds are (alpha, beta): (2, 2) is printed, (1.5, 0) the
  default. A recipe is constant and optimiser: ``printed`` is c = 1 and SGD 1e-3, ``adam`` is c = 1/2 and Adam 1e-3. Pairs are the initial
  labels (by the likelihood: DistillHash*; by the squared loss: SSDH), or come from one of three estimates of eta~: by Theorem 1 to the
  letter (``strict``), with the certain pairs (``certain``; only a local estimate has any), or by the ``sign`` of the estimate, all pairs.
- lengths: 16, 64 and 128 bits at the two central settings, that of the paper (2, 2, printed, network) and ours (1.5, 0, adam, local).
- controls: the pairs replaced and all else left, for both thresholds, recipe adam, local estimate. Two of them use labels.
- estimates: alpha x beta x local_neighbours in full, recipe adam.
- others: ITQ at all four lengths; DistillHash's release (preset ``code``) at 32 bits.
- hidden: a head with a hidden layer of 1,024 at the two central settings, at ours also with views; cifar10 alone.

A finished cell is a line of OUT/rows.jsonl, so a stopped study goes on. At the end OUT/tables.md holds all tables. ``--groups`` takes some.
Precision of pairs, and the controls that say so, use labels: for diagnosis only.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from distillhash import make_hasher
from distillhash.backbones import FeatureCache, extract_features, make_backbone, sized_for
from distillhash.bench.protocols import load_protocol
from distillhash.bench.runs import prepare
from distillhash.methods.base import Hasher, TrainingSet
from distillhash.methods.distillhash import DistillHash
from distillhash.methods.heads import Data
from distillhash.methods.ssdh import PairHasher
from distillhash.methods.training import Targets, pair_targets
from distillhash.metrics import evaluate_codes, find_neighbours, recall_measures
from distillhash.sources import ImageSource, open_source
from distillhash.supervision.flip_rate import distil_pairs
from distillhash.supervision.neighbours import nearest_neighbours, neighbourhood_mean
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

N_VIEWS = 6
Setting = dict[str, Any]
RECIPES: dict[str, Setting] = {
    "printed": {"scale": 1.0, "estimate_scale": 1.0, "optimizer": "sgd", "learning_rate": 1e-3},
    "adam": {"scale": 0.5, "estimate_scale": 0.5, "optimizer": "adam", "learning_rate": 1e-3},
}
MEASURES = {
    "map": "MAP",
    "map@1000": "MAP@1000",
    "precision@10": "P@10",
    "precision@100": "P@100",
    "precision@1000": "P@1000",
    "neighbour_recall@10": "recall@10",
}
NAMES = {
    "initial": "DistillHash*",
    "squared": "SSDH",
    "itq": "ITQ",
    "release": "DistillHash's release, diagonal mended",
}
OTHERS: dict[str, tuple[str, Setting]] = {"itq": ("itq", {}), "release": ("distillhash", {"preset": "code"})}


@dataclass(frozen=True)
class Cell:
    """One setting: what is learned from, which pairs, and how the head is trained."""

    data: str
    pairs: str = "initial"
    estimate: str = ""
    alpha: float = 2.0
    beta: float = 2.0
    recipe: str = "printed"
    hidden: int = 0
    views: int = 0
    n_bits: int = 32
    options: dict[str, int] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        """What a row of a table is called."""
        if self.pairs in NAMES:
            return NAMES[self.pairs]
        extra = "".join(f", {key}={value}" for key, value in self.options.items())
        return f"{self.estimate}, {self.pairs}{extra}"

    @property
    def setting(self) -> str:
        """What a column of a table is called."""
        if self.pairs in OTHERS:
            return "own"
        return (
            f"{self.alpha:g}/{self.beta:g}, {self.recipe}"
            + ", views" * (self.views > 0)
            + ", hidden" * bool(self.hidden)
        )


PAIRS: list[Setting] = [
    {"pairs": "initial"},
    {"pairs": "squared"},
    *({"pairs": pairs, "estimate": "local"} for pairs in ("strict", "certain", "sign")),
    *({"pairs": pairs, "estimate": estimate} for estimate in ("network", "held-out") for pairs in ("strict", "sign")),
]
THRESHOLDS: list[Setting] = [{"alpha": 2.0, "beta": 2.0}, {"alpha": 1.5, "beta": 0.0}]
PAPER: Setting = {"alpha": 2.0, "beta": 2.0, "recipe": "printed"}
OURS: Setting = {"alpha": 1.5, "beta": 0.0, "recipe": "adam"}
BASES: list[Setting] = [{"pairs": "initial"}, {"pairs": "squared"}]
LOCAL: Setting = {"pairs": "certain", "estimate": "local"}
NETWORK: Setting = {"pairs": "strict", "estimate": "network"}
CONTROLS = ["extreme", "extreme, few", "thinned", "agreeing", "relabelled", "true labels", "all true labels"]


def crossing(data: str) -> list[Cell]:
    combinations = product(THRESHOLDS, RECIPES, (0, N_VIEWS), PAIRS)
    return [Cell(data, recipe=recipe, views=views, **at, **pairs) for at, recipe, views, pairs in combinations]


def lengths(data: str) -> list[Cell]:
    central = ((PAPER, [*BASES, NETWORK]), (OURS, [*BASES, LOCAL]))
    return [
        Cell(data, n_bits=n_bits, **at, **pairs)
        for at, rows in central
        for n_bits, pairs in product((16, 32, 64, 128), rows)
    ]


def controls(data: str) -> list[Cell]:
    chosen: list[Setting] = [*BASES, LOCAL, {"pairs": "sign", "estimate": "local"}]
    chosen += [{"pairs": control, "estimate": "local"} for control in CONTROLS]
    return [Cell(data, recipe="adam", **at, **pairs) for at, pairs in product(THRESHOLDS, chosen)]


def estimates(data: str) -> list[Cell]:
    at: list[Setting] = [
        {"alpha": alpha, "beta": beta, "recipe": "adam"} for alpha, beta in product((2.0, 1.5), (2.0, 0.0))
    ]
    rows: list[Setting] = [*BASES, *(LOCAL | {"options": {"local_neighbours": m}} for m in (5, 100)), LOCAL]
    return [Cell(data, **thresholds, **pairs) for thresholds, pairs in product(at, rows)]


def hidden(data: str) -> list[Cell]:
    if data == "grocery":
        return []
    central = ((PAPER, 0, [*BASES, NETWORK]), (OURS, 0, [*BASES, LOCAL]), (OURS, N_VIEWS, [*BASES, LOCAL]))
    return [Cell(data, hidden=1024, views=views, **at, **pairs) for at, views, rows in central for pairs in rows]


def others(data: str) -> list[Cell]:
    return [*(Cell(data, pairs="itq", n_bits=n_bits) for n_bits in (16, 32, 64, 128)), Cell(data, pairs="release")]


GROUPS: dict[str, Callable[[str], list[Cell]]] = {
    "crossing": crossing,
    "controls": controls,
    "lengths": lengths,
    "estimates": estimates,
    "others": others,
    "hidden": hidden,
}


class OnPairs(PairHasher):
    """A head trained on pair labels that are given."""

    method = "on-pairs"
    title, venue, year, kind = "", "", 0, "pair labels"

    def targets(self, data: Data) -> Targets:  # noqa: ARG002  # they are known
        """The pair labels to train on."""
        return pair_targets(self.pairs_)


def upper_of(square: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(square[np.triu_indices(len(square), 1)])


def counts(pairs: PairLabels) -> dict[int, int]:
    """Of unordered pairs."""
    return {sign: int(np.count_nonzero(pairs == sign)) // 2 for sign in (1, -1)}


def symmetric(n: int, upper: NDArray[np.intp], sign: int, into: PairLabels) -> None:
    """Give the pairs at the flat places ``upper`` of the upper triangle the label ``sign``, both ways."""
    rows, columns = np.triu_indices(n, 1)
    into[rows[upper], columns[upper]] = sign
    into[columns[upper], rows[upper]] = sign


def thinned(distilled: PairLabels, wanted: dict[int, int], rng: np.random.Generator) -> PairLabels:
    """A random part of the pairs: of each sign at most as many as wanted."""
    upper, pairs = upper_of(distilled), np.zeros_like(distilled)
    for sign in (1, -1):
        places = np.flatnonzero(upper == sign)
        symmetric(len(pairs), rng.choice(places, min(wanted[sign], len(places)), replace=False), sign, pairs)
    return pairs


def most_extreme(logits: Floats, wanted: dict[int, int], rng: np.random.Generator) -> PairLabels:
    """The most extreme estimates, of each sign as many as wanted; equals at random."""
    values, pairs = upper_of(logits), np.zeros(logits.shape, np.int8)
    shuffled = rng.permutation(len(values))
    order = shuffled[np.argsort(values[shuffled], kind="stable")]
    symmetric(len(pairs), order[: wanted[-1]], -1, pairs)
    symmetric(len(pairs), order[len(order) - wanted[1] :], 1, pairs)
    return pairs


def same_class(labels: NDArray[Any]) -> PairLabels:
    pairs = np.where(np.equal.outer(labels, labels), 1, -1).astype(np.int8)
    np.fill_diagonal(pairs, 0)
    return pairs


def signs(logits: Floats) -> PairLabels:
    """Every pair by the sign of its estimate: no abstention."""
    pairs = np.sign(logits).astype(np.int8)
    np.fill_diagonal(pairs, 0)
    return pairs


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


def initial_labels(features: Floats, alpha: float, beta: float) -> PairLabels:
    """Noisy labels by the distances of features (Eq. 2)."""
    distances = cosine_distances(features)
    return label_pairs(distances, pair_thresholds(distances, fit_half_gaussians(distances), alpha=alpha, beta=beta))


class Workbench:
    """A data set and what several cells share: distances, initial labels, estimates."""

    def __init__(
        self, train: Floats, views: Floats, query: Floats, database: Floats, labels: list[NDArray[Any]]
    ) -> None:
        """``labels`` are those of train, query and database."""
        self.train, self.views, self.query, self.database, self.labels = train, views, query, database, labels
        self.initial = lru_cache(4)(lambda alpha, beta: initial_labels(train, alpha, beta))
        self.fresh = lru_cache(4)(lambda alpha, beta: initial_labels(views[0], alpha, beta))  # of the same pairs
        self.local = lru_cache(4)(self._estimated)
        self.trained = lru_cache(1)(self._estimated)
        self.facts_of_certain = lru_cache(16)(self._facts_of_certain)
        self.calibration: dict[str, float] = {}  # of local estimates, which no seed changes

    @cached_property
    def distances(self) -> Floats:
        """``(n, n)`` cosine distances of the training rows."""
        return cosine_distances(self.train)

    @cached_property
    def nearest(self) -> NDArray[np.int32]:
        """The neighbours that bound the flip rates."""
        return nearest_neighbours(self.distances, DistillHash.n_neighbours)

    @cached_property
    def neighbours(self) -> Any:
        """The nearest of the queries by their features."""
        return find_neighbours(self.query, self.database)

    def _estimated(self, alpha: float, beta: float, options: str, views: int) -> Floats:
        hasher = DistillHash(32, **json.loads(options))
        hasher.initial_pairs_ = self.initial(alpha, beta)
        given = TrainingSet(self.train, views=self.views if views else None)
        return hasher._estimate(self.distances, Data(given, np.arange(len(self.train))))

    def logits(self, cell: Cell, seed: int) -> Floats:
        """Of eta~ for every pair."""
        given: dict[str, Any] = {"estimate": cell.estimate, **cell.options}
        if cell.estimate == "local":
            return self.local(cell.alpha, cell.beta, json.dumps(given), 0)
        given |= RECIPES[cell.recipe] | {"hidden": cell.hidden, "seed": seed}
        return self.trained(cell.alpha, cell.beta, json.dumps(given), cell.views)

    def pairs(self, cell: Cell, seed: int) -> PairLabels:
        """What a cell's head is trained on."""
        initial = self.initial(cell.alpha, cell.beta)
        if cell.pairs in ("initial", "squared"):
            return initial
        if cell.pairs == "all true labels":
            return same_class(self.labels[0])
        logits, rng = self.logits(cell, seed), np.random.default_rng(seed + 1000)
        if cell.pairs == "sign":
            return signs(logits)
        if cell.pairs == "extreme, few":
            return most_extreme(logits, counts(initial), rng)
        if cell.pairs == "relabelled":
            return np.where(initial != 0, signs(logits), 0).astype(np.int8)
        distilled = distil_pairs(logits, self.nearest, keep_certain=cell.pairs != "strict")
        if cell.pairs == "extreme":
            return most_extreme(logits, counts(distilled), rng)
        if cell.pairs == "thinned":
            return thinned(distilled, counts(initial), rng)
        if cell.pairs == "agreeing":
            return np.where(distilled == initial, distilled, 0).astype(np.int8)
        if cell.pairs == "true labels":
            return np.where(distilled != 0, same_class(self.labels[0]), 0).astype(np.int8)
        return distilled

    def _facts_of_certain(self, alpha: float, beta: float, m: int) -> dict[str, float]:
        """Of the pairs whose local estimate is exactly 0 or 1: their share, and how few labelled pairs they rest on."""
        around = nearest_neighbours(self.distances, m, include_self=True)
        initial = self.initial(alpha, beta)
        similar, dissimilar = (
            np.rint(upper_of(neighbourhood_mean((initial == sign).astype(np.float32), around)) * m * m)
            for sign in (1, -1)
        )
        number = (similar + dissimilar)[(similar == 0) != (dissimilar == 0)]
        return {
            "certain": len(number) / len(similar),
            "certain_by_one": float(np.mean(number == 1)) if len(number) else 0.0,
            "certain_by_few": float(np.mean(number < 0.01 * m * m)) if len(number) else 0.0,
        }

    def calibration_error(self, cell: Cell, seed: int) -> float:
        """Of a cell's estimate."""
        key = json.dumps([cell.alpha, cell.beta, cell.options])
        if cell.estimate == "local" and key in self.calibration:
            return self.calibration[key]
        error = calibration_error(self.logits(cell, seed), self.fresh(cell.alpha, cell.beta))
        if cell.estimate == "local":
            self.calibration[key] = error
        return error

    def judged(self, hasher: Hasher) -> dict[str, float]:
        """The measures of a fitted method's codes."""
        codes = hasher.encode(self.query), hasher.encode(self.database)
        found = evaluate_codes(*codes, self.labels[1], self.labels[2], cutoffs=(1000,), topn=(10, 100, 1000))
        found |= recall_measures(*codes, self.neighbours)
        return {name: round(found[name], 5) for name in MEASURES}

    def measure(self, cell: Cell, seed: int) -> dict[str, Any]:
        """One fit, its codes' measures, and facts of its pairs."""
        started = time.process_time()
        if cell.pairs in OTHERS:
            method, settings = OTHERS[cell.pairs]
            other = make_hasher(method, cell.n_bits, seed=seed, **settings).fit(self.train)
            return self.judged(other) | {"seconds": round(time.process_time() - started, 1)}
        pairs = self.pairs(cell, seed)
        recipe = {key: value for key, value in RECIPES[cell.recipe].items() if key != "estimate_scale"}
        loss: Any = "squared" if cell.pairs == "squared" else "likelihood"
        hasher = OnPairs(cell.n_bits, seed=seed, loss=loss, hidden=cell.hidden, **recipe)
        hasher.pairs_ = pairs
        hasher.fit(self.train, views=self.views if cell.views else None)
        record: dict[str, Any] = self.judged(hasher)
        facts = {**describe_pairs(pairs), **judge_pairs(pairs, self.labels[0])}
        kinds = product(("coverage", "precision"), ("positive", "negative"))
        record |= {f"{what}_{sign}": round(facts[f"{what}_{sign}"], 4) for what, sign in kinds}
        if cell.pairs in ("strict", "certain"):
            record["calibration_error"] = round(self.calibration_error(cell, seed), 4)
        if cell.pairs == "certain":
            m = cell.options.get("local_neighbours", DistillHash.local_neighbours)
            record |= {name: round(value, 5) for name, value in self.facts_of_certain(cell.alpha, cell.beta, m).items()}
        return record | {"seconds": round(time.process_time() - started, 1)}


def cifar10(word: str) -> Workbench:
    source, backbone, cache = open_source(word), make_backbone(), FeatureCache()
    prepared = prepare(source, load_protocol("cifar10-validation"), backbone, cache=cache, n_views=N_VIEWS)
    split, x = prepared.split, prepared.features
    assert prepared.views is not None
    parts = split.train, split.query, split.database
    return Workbench(
        x[split.train], prepared.views, x[split.query], x[split.database], [prepared.labels[p] for p in parts]
    )


def grocery(word: str) -> Workbench:
    source, cache = open_source(word), FeatureCache()
    assert isinstance(source, ImageSource) and source.labels is not None
    backbone = sized_for(make_backbone(), source)
    order = np.random.default_rng(7).permutation(len(source))
    learned, query = (np.sort(part) for part in np.split(order, [len(order) * 4 // 5]))
    found = extract_features(source.select(learned), backbone, cache=cache, n_views=N_VIEWS, progress=True)
    assert found.views is not None and not found.skipped
    queries = extract_features(source.select(query), backbone, cache=cache).features
    labels = [source.labels[rows] for rows in (learned, query, learned)]
    return Workbench(found.features, found.views, queries, found.features, labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar10")
    parser.add_argument("--grocery", required=True, help="photographs with a column of labels")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--groups", default=",".join(GROUPS))
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    kept = arguments.out / "rows.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = {identity(row, row["seed"]) for row in rows}
    opened: dict[str, Workbench] = {}
    for group, (data, of) in product(arguments.groups.split(","), (("cifar10", cifar10), ("grocery", grocery))):
        started = time.process_time()
        for seed, cell in product(range(arguments.seeds), GROUPS[group](data)):
            if identity(asdict(cell), seed) in done:
                continue
            if data not in opened:
                opened[data] = of(getattr(arguments, data))
            row = {**asdict(cell), "seed": seed, **opened[data].measure(cell, seed)}
            rows.append(row)
            done.add(identity(row, seed))
            with kept.open("a") as file:
                file.write(json.dumps(row) + "\n")
        print(f"{group}, {data} done, {time.process_time() - started:.0f} s of CPU", flush=True)
    (arguments.out / "tables.md").write_text(tables(rows))


def identity(row: dict[str, Any], seed: int) -> str:
    return json.dumps([*(row[name] for name in Cell.__dataclass_fields__), seed])


Rows = list[dict[str, Any]]
FACTORS = {
    "thresholds 1.5/0 for 2/2": ("alpha", 2.0, 1.5),
    "adam for printed": ("recipe", "printed", "adam"),
    "six views for none": ("views", 0, N_VIEWS),
}
INITIAL, SQUARED = "DistillHash*", "SSDH"
DIFFERENCES = [
    *((f"{estimate}, strict", base) for base in (INITIAL, SQUARED) for estimate in ("network", "held-out", "local")),
    *(("local, certain", base) for base in (INITIAL, SQUARED)),
    *((f"{estimate}, sign", INITIAL) for estimate in ("network", "held-out", "local")),
    *((f"{estimate}, strict", f"{estimate}, sign") for estimate in ("network", "held-out", "local")),
    ("local, certain", "local, sign"),
    ("local, certain", "local, strict"),
    (SQUARED, INITIAL),
]


def tables(rows: Rows) -> str:
    """All tables as Markdown."""
    lines = ["# The DistillHash study: tables", "", "Mean over seeds (sample standard deviation).", ""]
    for data in dict.fromkeys(row["data"] for row in rows):
        mine = [row for row in rows if row["data"] == data]
        cells = named(mine)
        lines += [f"## {data}", ""]
        columns = list(dict.fromkeys(cell.setting for cell in crossing(data)))
        names = list(dict.fromkeys(cell.name for cell in crossing(data)))
        for measure, title in MEASURES.items():
            scores = {
                (cell.name, cell.setting): scores_of(cells[cell], measure) for cell in crossing(data) if cell in cells
            }
            if not scores:
                continue
            body = [[name, *(spread(scores.get((name, column), [])) for column in columns)] for name in names]
            lines += [f"### crossing, {title}", "", *table(["pairs", *columns], body)]
            lines += [f"### crossing, {title}: paired differences", "", *differences(scores, columns)]
            lines += [f"### crossing, {title}: main effects", "", *effects(scores, data, names)]
        for group in [group for group in GROUPS if group != "crossing"]:
            chosen = [cell for cell in GROUPS[group](data) if cell in cells]
            if chosen:
                lines += [f"### {group}", "", *plain(chosen, cells)]
        lines += [f"### calibration, {data}", "", *calibration(data, cells)]
    return "\n".join(lines)


def named(rows: Rows) -> dict[Any, Rows]:
    """Rows by their cell, in order of their seeds."""
    found: dict[Any, Rows] = {}
    for row in sorted(rows, key=lambda row: int(row["seed"])):
        found.setdefault(Cell(**{name: row[name] for name in Cell.__dataclass_fields__}), []).append(row)
    return found


def scores_of(rows: Rows, measure: str) -> list[float]:
    return [row[measure] for row in rows]


def spread(values: Any, sign: str = "") -> str:
    values = np.asarray(values)
    if not len(values):
        return ""
    deviation = f" ({np.std(values, ddof=1):.3f})" if len(values) > 1 else ""
    return f"{np.mean(values):{sign}.3f}{deviation}".replace("0.", ".")


def table(head: list[str], body: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *body]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def differences(scores: dict[tuple[str, str], list[float]], columns: list[str]) -> list[str]:
    """Seed by seed; at last the mean over all settings, its spread over seeds, and in how many settings every seed agrees with it."""
    body = []
    for ours, theirs in DIFFERENCES:
        pairs = [(scores.get((ours, column), []), scores.get((theirs, column), [])) for column in columns]
        gaps = [np.array(one) - np.array(other) if len(one) == len(other) else np.empty(0) for one, other in pairs]
        complete = [gap for gap in gaps if len(gap)]
        means, agreeing = "", ""
        if complete and len({len(gap) for gap in complete}) == 1:
            means = spread(np.mean(complete, axis=0), "+")
            sign = np.sign(np.mean(complete))
            agreeing = f"{sum(bool((np.sign(gap) == sign).all()) for gap in complete)} of {len(complete)}"
        body.append([f"{ours} less {theirs}", *(spread(gap, "+") for gap in gaps), means, agreeing])
    return table(["difference", *columns, "mean", "every seed agrees"], body)


def effects(scores: dict[tuple[str, str], list[float]], data: str, names: list[str]) -> list[str]:
    """What one level of a factor gives over the other, averaged over the levels of the other factors."""
    body = []
    for name in names:
        cells = [cell for cell in crossing(data) if cell.name == name]
        line = [name]
        for attribute, low, high in FACTORS.values():
            sides = [
                [
                    scores[key]
                    for cell in cells
                    if getattr(cell, attribute) == level and (key := (name, cell.setting)) in scores
                ]
                for level in (low, high)
            ]
            lengths = {len(values) for side in sides for values in side}
            full = len(lengths) == 1 and len(sides[0]) == len(sides[1])
            line.append(spread(np.mean(sides[1], axis=0) - np.mean(sides[0], axis=0), "+") if full else "")
        body.append(line)
    return table(["pairs", *FACTORS], body)


def plain(chosen: list[Cell], cells: dict[Any, Rows]) -> list[str]:
    """One row a cell, with facts of its pairs."""
    facts = {
        "coverage_positive": "+ share",
        "precision_positive": "+ precision",
        "coverage_negative": "- share",
        "precision_negative": "- precision",
        "calibration_error": "calibration error",
        "certain": "certain",
    }
    body = []
    for cell in chosen:
        rows = cells[cell]
        means = [f"{np.mean([row[fact] for row in rows]):.3f}" if fact in rows[0] else "" for fact in facts]
        scores = [spread(scores_of(rows, measure)) for measure in MEASURES]
        body.append([cell.setting, f"{cell.n_bits}", cell.name, *scores, *means])
    return table(["setting", "bits", "pairs", *MEASURES.values(), *facts.values()], body)


def calibration(data: str, cells: dict[Any, Rows]) -> list[str]:
    """Rank correlation of an estimate's calibration error with the measures of the codes, over means of seeds."""
    sets = {
        "local estimates: alpha x beta x local_neighbours": [c for c in estimates(data) if c.pairs == "certain"],
        "network, held-out and local estimates of the crossing": [
            c for c in crossing(data) if c.pairs == ("certain" if c.estimate == "local" else "strict")
        ],
    }
    body = []
    for name, chosen in sets.items():
        rows = [cells[cell] for cell in chosen if cell in cells]
        if len(rows) < 3:
            continue
        errors = [np.mean(scores_of(found, "calibration_error")) for found in rows]
        means = [[np.mean(scores_of(found, measure)) for found in rows] for measure in MEASURES]
        body.append([name, str(len(rows)), *(f"{spearmanr(errors, values).statistic:+.2f}" for values in means)])
    return table(["Spearman of the calibration error with", "estimates", *MEASURES.values()], body)


if __name__ == "__main__":
    main()
