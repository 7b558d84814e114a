"""distillhash-contrast with its defaults untouched on other data, beside ITQ and the float features.

    python benchmarks/contrast_elsewhere.py --cifar10 cifar10:DIR --photos pairs.parquet --out results/contrast-elsewhere

- digits: scikit-learn's 1,797 digits, protocol ``folder``: MAP by class.
- photos: a Parquet table of images with a column ``captions`` (Flickr8k: five a photo), 800 to train on and search in, 200 queries drawn
  by seed 0. Relevance without classes: the mean TF-IDF cosine of captions of the 10, and of the 100, nearest with those of the query; how
  many of the 10 nearest by float cosine are among the first 100; and the same of the floats at 224 pixels, which the backbone was trained
  with. Captions less those of the floats' own nearest come with the 95% interval of a paired bootstrap over queries (means over seeds).
  "itq at 224" is ITQ of features that no code of 128 pixels can see; "re-ranked" is ``search --rerank projection``, all 800 the candidates.
- folds: what the head starts from and how much of that it keeps, as functions of n below 2,000 and of the code length, on five folds of
  those 800, without the 200 queries: the settings that the defaults were chosen from; and ten-folds: two of them on ten folds.
- limits: on the same folds, captions and recall of floats and of ITQ, both of the features at 128 pixels, of those at 224, which no code of
  128 pixels can see, and of what a regression predicts of them; and, using captions, of what it predicts of the captions themselves,
  alone and beside the plain features.
- embeddings: CIFAR-10, protocol cifar10-distillhash, given as vectors only, so there are no views.
- passes: MAP by the number of passes over 5,000 and 48,000 embeddings, 32 bits, protocol cifar10-validation, whose queries are carved from
  the database side: what ``max_seen`` was chosen by.
- large: protocol cifar10-distillhash with all 50,000 database images to train on, as vectors only and as images with the six views that
  ``train`` takes: MAP, time and memory.

Default backbone, 3 seeds: mean (sample standard deviation). The float rows rank by cosine of centred features.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge

from distillhash import make_hasher
from distillhash.backbones import FeatureCache, extract_features, make_backbone
from distillhash.bench.protocols import load_protocol
from distillhash.bench.runs import prepare
from distillhash.bench.tables import bootstrap_difference
from distillhash.codes import Codes, hamming_distances
from distillhash.metrics import evaluate_codes, neighbour_recall
from distillhash.search import projection_scores
from distillhash.sources import open_source
from distillhash.supervision.agreement import centred_unit, root_rows
from distillhash.supervision.similarity import unit_rows

METHODS = ("itq", "distillhash-contrast")
Floats = NDArray[np.float32]


def float_map(query: Floats, database: Floats, query_labels: NDArray[Any], database_labels: NDArray[Any]) -> float:
    """Mean average precision of the ranking by cosine; distinct floats have no ties to speak of."""
    rows = centred_unit(np.vstack([database, query]))
    ranks = np.arange(1, len(database) + 1)
    values = []
    for start in range(0, len(query), 500):
        cosines = (
            rows[len(database) + start : len(database) + start + 500][: len(query) - start] @ rows[: len(database)].T
        )
        for row, label in zip(np.argsort(-cosines, axis=1), query_labels[start : start + 500], strict=True):
            hits = database_labels[row] == label
            values.append(float((np.cumsum(hits) / ranks)[hits].mean()))
    return float(np.mean(values))


def spread(values: list[float]) -> str:
    return f"{np.mean(values):.4f} ({np.std(values, ddof=1):.4f})"


def numbers(values: dict[str, float]) -> dict[str, str]:
    return {name: f"{value:.4f}" for name, value in values.items()}


def classes(source: Any, protocol: str, n_views: int, bits: list[int], seeds: int) -> list[dict[str, Any]]:
    prepared = prepare(
        source, load_protocol(protocol), make_backbone(), cache=FeatureCache(), n_views=n_views, teacher=True
    )
    split, x, labels = prepared.split, prepared.features, prepared.labels
    sides = labels[split.query], labels[split.database]
    rows: list[dict[str, Any]] = [
        {"method": "float cosine", "n_bits": "", "map": f"{float_map(x[split.query], x[split.database], *sides):.4f}"}
    ]
    for method in METHODS:
        for n_bits in bits:
            scores = []
            for seed in range(seeds):
                given: dict[str, Any] = prepared.given(method)
                hasher = make_hasher(method, n_bits, seed=seed).fit(x[split.train], **given)
                scores.append(
                    evaluate_codes(hasher.encode(x[split.query]), hasher.encode(x[split.database]), *sides)["map"]
                )
            rows.append({"method": method, "n_bits": n_bits, "map": spread(scores)})
            print(rows[-1], flush=True)
    return rows


def read_photos(path: str) -> tuple[Floats, Floats, Floats, NDArray[np.float64], NDArray[np.intp]]:
    """Features, views, teacher, caption overlap of all pairs, and the order whose first 200 are the queries."""
    captions = [" ".join(several) for several in pq.read_table(path, columns=["captions"])["captions"].to_pylist()]
    table = extract_features(open_source(path), make_backbone(), cache=FeatureCache(), n_views=6, teacher=True)
    assert table.views is not None and table.teacher is not None and len(table.features) == len(captions)
    words = TfidfVectorizer(stop_words="english").fit_transform(captions)
    order = np.random.default_rng(0).permutation(len(captions))
    return table.features, table.views, table.teacher, (words @ words.T).toarray(), order


def photos(path: str, bits: list[int], seeds: int) -> list[dict[str, Any]]:
    x, views, teacher, overlap, order = read_photos(path)
    query, database = np.sort(order[:200]), np.sort(order[200:])
    graded = overlap[np.ix_(query, database)]
    floats = {"recall10@100": centred_unit(x), "recall10@100 at 224": centred_unit(teacher)}
    rankings = [np.argsort(-unit[query] @ unit[database].T, axis=1) for unit in floats.values()]

    def scores_of(ranking: NDArray[np.intp]) -> dict[str, NDArray[np.float64]]:
        """Of every query."""
        scores = captions_of(ranking, graded)
        for name, nearest in zip(floats, rankings, strict=True):
            found = [np.isin(theirs[:10], mine[:100]).mean() for theirs, mine in zip(nearest, ranking, strict=True)]
            scores[name] = np.array(found)
        return scores

    of_floats = scores_of(rankings[0])
    chance = {name: float(graded.mean()) if "captions" in name else 100 / len(database) for name in of_floats}
    rows: list[dict[str, Any]] = [{"method": "random", "n_bits": ""} | numbers(chance)]
    for method, scores in (("float cosine", of_floats), ("float cosine at 224", scores_of(rankings[1]))):
        means = {name: float(values.mean()) for name, values in scores.items()}
        rows.append({"method": method, "n_bits": ""} | numbers(means))
    ours: dict[str, Any] = {"views": views[:, database], "teacher": teacher[database]}
    for method, hashing, seen, given in (
        ("itq", "itq", x, {}),
        ("distillhash-contrast", "distillhash-contrast", x, ours),
        ("itq at 224", "itq", teacher, {}),
    ):
        for n_bits in bits:
            several: dict[str, list[dict[str, NDArray[np.float64]]]] = {}
            for seed in range(seeds):
                hasher = make_hasher(hashing, n_bits, seed=seed).fit(seen[database], **given)
                codes = hasher.encode(seen[query]), hasher.encode(seen[database])
                scores = scores_of(np.argsort(hamming_distances(*codes), axis=1, kind="stable"))
                for name, unit in floats.items():  # of equal distances, not of one order of them
                    recall = neighbour_recall(*codes, unit[query], unit[database], ks=(10,), depths=(100,))
                    scores[name] = np.array(recall["recall10@100"])
                several.setdefault(method, []).append(scores)
                finer = np.array([projection_scores(row, codes[1]) for row in hasher.project(seen[query])])
                several.setdefault(f"{method}, re-ranked", []).append(scores_of(np.argsort(-finer, axis=1)))
            for name, found in several.items():
                rows.append({"method": name, "n_bits": n_bits})
                rows[-1] |= {score: spread([float(scores[score].mean()) for scores in found]) for score in of_floats}
                for score in ("captions @10", "captions @100"):
                    gap = bootstrap_difference(np.mean([scores[score] for scores in found], axis=0), of_floats[score])
                    rows[-1][f"{score} less the floats'"] = f"{gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]"
                print(rows[-1], flush=True)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    rows.sort(key=lambda row: methods.index(row["method"]))
    return [dict.fromkeys(rows[-1], "") | row for row in rows]


def captions_of(ranking: NDArray[np.intp], graded: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Mean caption overlap of every query with the first 10 and the first 100 of a ranking."""
    sorted_grades = np.take_along_axis(graded, ranking, 1)
    return {f"captions @{depth}": sorted_grades[:, :depth].mean(axis=1) for depth in (10, 100)}


def scores_of_codes(
    codes: tuple[Codes, Codes], graded: NDArray[np.float64], query: Floats, database: Floats
) -> dict[str, float]:
    """Captions, and recall of the 10 nearest floats among the first 80."""
    captions = captions_of(np.argsort(hamming_distances(*codes), axis=1, kind="stable"), graded)
    recall = neighbour_recall(*codes, query, database, ks=(10,), depths=(80,))["recall10@80"]
    return {name: float(values.mean()) for name, values in captions.items()} | {"recall10@80": recall}


def scores_of_floats(
    ranking: NDArray[np.intp], graded: NDArray[np.float64], near: NDArray[np.intp]
) -> dict[str, float]:
    """The same of a ranking, where ``near`` are the 10 nearest floats."""
    recall = np.mean([np.isin(theirs, mine[:80]) for theirs, mine in zip(near, ranking, strict=True)])
    means = {name: float(values.mean()) for name, values in captions_of(ranking, graded).items()}
    return means | {"recall10@80": float(recall)}


def means_of(found: dict[str, list[dict[str, float]]]) -> dict[str, str]:
    """Of the scores by size, score by score."""
    names = next(iter(found.values()))[0]
    return numbers(
        {
            f"{name}, {size}": float(np.mean([scores[name] for scores in values]))
            for name in names
            for size, values in found.items()
        }
    )


class Rule(NamedTuple):
    """Of the head's start and the plain features' share, as functions of n and the code length."""

    exponent: str
    slope: float
    offset: float
    power: float

    def options(self, trusted: float, n_bits: int) -> dict[str, float]:
        """With ``trusted`` n / 2,000."""
        exponent = self.slope * np.log2(n_bits) + self.offset
        return {"start": float(3 / trusted**exponent), "plain_share": 1 - trusted**self.power}


RULES = (
    Rule("log2(bits) - 3.5", 1, -3.5, 2),
    Rule("log2(bits / 16)", 1, -4, 1.5),
    Rule("3/4 log2(bits / 8)", 0.75, -2.25, 1.5),
    Rule("3", 0, 3, 1.5),
    Rule("log2(bits / 16)", 1, -4, 1),
    Rule("log2(bits / 16)", 1, -4, 2),
    Rule("log2(bits / 16)", 1, -4, 0),
)


def folds(path: str, bits: list[int], seeds: int, number: int, rules: tuple[Rule, ...]) -> list[dict[str, Any]]:
    x, views, teacher, overlap, order = read_photos(path)
    ours = order[200:]
    parts = [np.sort(part) for part in np.array_split(ours, number)]
    unit, trusted = centred_unit(x), (len(ours) - len(parts[0])) / 2000
    pairs = [(query, np.setdiff1d(ours, query)) for query in parts]
    rankings = [np.argsort(-unit[query] @ unit[rest].T, axis=1) for query, rest in pairs]
    floats = [
        scores_of_floats(ranking, overlap[np.ix_(*pair)], ranking[:, :10])
        for pair, ranking in zip(pairs, rankings, strict=True)
    ]

    def scores(method: str, n_bits: int, options: dict[str, float]) -> list[dict[str, float]]:
        found = []
        for seed in range(seeds):
            for query, rest in pairs:
                hasher: Any = make_hasher(method, n_bits, seed=seed, **options)
                hasher.fit(x[rest], **({"views": views[:, rest], "teacher": teacher[rest]} if options else {}))
                codes = hasher.encode(x[query]), hasher.encode(x[rest])
                found.append(scores_of_codes(codes, overlap[np.ix_(query, rest)], unit[query], unit[rest]))
        return found

    rows = [
        {"setting": "float cosine"} | means_of({str(n_bits): floats for n_bits in bits}),
        {"setting": "itq"} | means_of({str(n_bits): scores("itq", n_bits, {}) for n_bits in bits}),
    ]
    for rule in rules:
        found = {str(n_bits): scores("distillhash-contrast", n_bits, rule.options(trusted, n_bits)) for n_bits in bits}
        name = f"start = 3 (2,000 / n)^({rule.exponent}), plain_share = 1 - (n / 2,000)^{rule.power:g}"
        rows.append({"setting": name} | means_of(found))
        print(rows[-1], flush=True)
    return rows


def limits(path: str, bits: list[int], seeds: int) -> list[dict[str, Any]]:
    x, _, teacher, overlap, order = read_photos(path)
    ours = order[200:]
    unit, rows = centred_unit(x), []

    def predicted(aims: NDArray[Any], rest: NDArray[np.intp]) -> Floats:
        """Of all images, by a regression from the roots at 128 pixels to the aims of ``rest``."""
        roots = root_rows(x)
        length = np.square(roots[rest] - roots[rest].mean(axis=0)).sum() / len(rest)
        return np.asarray(Ridge(alpha=float(length)).fit(roots[rest], aims).predict(roots), np.float32)

    def caption_axes(rest: NDArray[np.intp]) -> NDArray[np.float64]:
        """The 300 principal axes of the captions of ``rest``."""
        variances, axes = np.linalg.eigh(overlap[np.ix_(rest, rest)])
        return np.asarray(axes[:, -300:] * np.sqrt(np.maximum(variances[-300:], 0)))

    def beside_captions(share: float, rest: NDArray[np.intp]) -> Floats:
        """Plain features, and a share of the squared length what is predicted of captions."""
        kinds = x, predicted(caption_axes(rest), rest)
        plain, captions = (unit_rows(kind - kind[rest].mean(axis=0)) for kind in kinds)
        return np.hstack([np.sqrt(1 - share) * plain, np.sqrt(share) * captions]).astype(np.float32)

    def at_once(features: Floats) -> Callable[[NDArray[np.intp]], Floats]:
        return lambda _: features

    kinds: dict[str, Callable[[NDArray[np.intp]], Floats]] = {
        "of 128 pixels": at_once(x),
        "of 224 pixels as predicted from 128": lambda rest: predicted(root_rows(teacher)[rest], rest),
        "of 224 pixels": at_once(teacher),
        "of captions as predicted from 128 (uses captions)": lambda rest: predicted(caption_axes(rest), rest),
    }
    for share in (0.1, 0.2, 0.3, 0.5):
        name = f"of 128 pixels, and {share:.0%} of captions as predicted (uses captions)"
        kinds[name] = partial(beside_captions, share)
    for name, features_of in kinds.items():
        found: dict[str, list[dict[str, float]]] = {}
        for query in np.array_split(ours, 5):
            rest = np.setdiff1d(ours, query)
            seen, graded = features_of(rest), overlap[np.ix_(query, rest)]
            near = np.argsort(-unit[query] @ unit[rest].T, axis=1)[:, :10]
            cosines = centred_unit(seen)
            ranking = np.argsort(-cosines[query] @ cosines[rest].T, axis=1)
            found.setdefault("floats", []).append(scores_of_floats(ranking, graded, near))
            for n_bits in bits:
                for seed in range(seeds):
                    hasher = make_hasher("itq", n_bits, seed=seed).fit(seen[rest])
                    codes = hasher.encode(seen[query]), hasher.encode(seen[rest])
                    found.setdefault(str(n_bits), []).append(scores_of_codes(codes, graded, unit[query], unit[rest]))
        rows.append({"features": name} | means_of(found))
        print(rows[-1], flush=True)
    return rows


def passes(source: Any, seeds: int) -> list[dict[str, Any]]:
    prepared = prepare(source, load_protocol("cifar10-validation"), make_backbone(), cache=FeatureCache())
    split, x, labels = prepared.split, prepared.features, prepared.labels
    rows: list[dict[str, Any]] = []
    for train in (split.train, split.database):
        row = {"training images": f"{len(train):,}"}
        for number in (1, 2, 5, 10, 20):
            scores = []
            for seed in range(seeds):
                hasher = make_hasher("distillhash-contrast", 32, seed=seed, max_seen=number * len(train)).fit(x[train])
                codes = hasher.encode(x[split.query]), hasher.encode(x[split.database])
                scores.append(evaluate_codes(*codes, labels[split.query], labels[split.database])["map"])
            row[f"{number} passes" if number > 1 else "1 pass"] = spread(scores)
        rows.append(row)
        print(row, flush=True)
    return rows


def large(source: Any) -> list[dict[str, Any]]:
    backbone, cache = make_backbone(), FeatureCache()
    prepared = prepare(source, load_protocol("cifar10-distillhash"), backbone, cache=cache)
    split, x, labels = prepared.split, prepared.features, prepared.labels
    rows = []
    for n_views in (0, 6):  # the larger last: peak memory is that of the process so far
        for train in (split.train, split.database):
            given: dict[str, Any] = {}
            if n_views:
                found = extract_features(source.select(train), backbone, cache=cache, n_views=n_views, teacher=True)
                given = {"views": found.views, "teacher": found.teacher}
                del found
            started = time.perf_counter()
            hasher = make_hasher("distillhash-contrast", 32).fit(x[train], **given)
            seconds = time.perf_counter() - started
            codes = hasher.encode(x[split.query]), hasher.encode(x[split.database])
            score = evaluate_codes(*codes, labels[split.query], labels[split.database])["map"]
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            rows.append(
                {
                    "training images": f"{len(train):,}",
                    "given": "six views and the teacher" if n_views else "embeddings",
                    "map": f"{score:.4f}",
                    "fit, s": f"{seconds:.0f}",
                    "peak memory, MB": f"{peak:.0f}",
                }
            )
            print(rows[-1], flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return "\n".join(lines + ["| " + " | ".join(str(row[name]) for name in names) + " |" for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10")
    parser.add_argument("--photos")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bits", default="32,64")
    parser.add_argument("--photo-bits", default="32,64,128,256")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parts", default="digits,photos,folds,ten-folds,limits,embeddings,passes,large")
    arguments = parser.parse_args()
    bits, photo_bits = ([int(word) for word in words.split(",")] for words in (arguments.bits, arguments.photo_bits))
    arguments.out.mkdir(parents=True, exist_ok=True)
    parts = {
        "digits": lambda: classes(open_source("digits:"), "folder", 6, bits, arguments.seeds),
        "photos": lambda: photos(arguments.photos, photo_bits, arguments.seeds),
        "folds": lambda: folds(arguments.photos, photo_bits, arguments.seeds, 5, RULES),
        "ten-folds": lambda: folds(arguments.photos, photo_bits, arguments.seeds, 10, RULES[:2]),
        "limits": lambda: limits(arguments.photos, photo_bits, arguments.seeds),
        "embeddings": lambda: classes(open_source(arguments.cifar10), "cifar10-distillhash", 0, bits, arguments.seeds),
        "passes": lambda: passes(open_source(arguments.cifar10), arguments.seeds),
        "large": lambda: large(open_source(arguments.cifar10)),
    }
    for name in arguments.parts.split(","):
        (arguments.out / f"{name}.json").write_text(json.dumps(parts[name](), indent=1) + "\n")
    done = {name: json.loads(path.read_text()) for name in parts if (path := arguments.out / f"{name}.json").exists()}
    (arguments.out / "tables.md").write_text("\n".join(f"### {name}\n\n{table(rows)}\n" for name, rows in done.items()))


if __name__ == "__main__":
    main()
