"""EfficientNet-Lite0, Lite1 and Lite2 at 128 pixels and at the size of their training: quality of frozen features, and time.

    python benchmarks/backbones.py --cifar10 cifar10:DIR --grocery DIR --flickr8k pairs.parquet --out results/backbones

No image that any protocol asks with is read. A set is cut into three folds; the images of a fold are searched among those of the two
others, from which ITQ is learned as well. So every image is a query once. Mean of 3 seeds of ITQ.

- cifar10: training images of protocol cifar10-distillhash, ten classes.
- grocery: the train part, coarse and fine classes.
- flickr8k: 1,000 photographs without classes. Relevant are the 10 of the database whose captions are nearest: cosine of the mean
  ``minilm`` embedding of a picture's captions.
- near-duplicates: six light and six heavy edits (those of `near_duplicates_set.py`) of 80 of these photographs; the share whose nearest
  of the 1,000 originals is the right one.
- sizes: grocery photographs shrunk to a side first, and their float MAP at both image sizes: from which side on the larger size is better.

``recall`` is the share of the 10 nearest by the floats of the same network among the first 10 by code. Milliseconds are CPU time of one
thread, the best of five rounds in which the networks take turns.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image

from distillhash import Codes, make_hasher
from distillhash.backbones import Backbone, FeatureCache, extract_features, make_backbone
from distillhash.backbones.efficientnet_lite import TRAINED_SIZES
from distillhash.bench.protocols import load_protocol
from distillhash.bench.runs import versions
from distillhash.bench.tables import bootstrap_difference
from distillhash.codes import hamming_distances
from distillhash.metrics import evaluate_queries, neighbour_recall
from distillhash.sources import ImageSource, decode_image, open_source
from distillhash.sources.pairs import open_pairs
from distillhash.texts import make_text_encoder
from near_duplicates_set import HEAVY, LIGHT

Floats = NDArray[np.float32]
FOLDS, SEEDS, BITS, RELEVANT, EDITED = 3, (0, 1, 2), (32, 64), 10, 80
SIDES = (48, 64, 96, 128, 160, 192, 256)
ROUNDS, TIMED = 5, 32


class Images(NamedTuple):
    """A set, and its truths by name: ``(n,)`` classes, or ``(n, d)`` vectors of which near ones are relevant."""

    source: ImageSource
    truths: dict[str, NDArray[Any]]


class Made(ImageSource):
    """Encoded images in memory."""

    def __init__(self, name: str, files: list[bytes]) -> None:
        super().__init__(name, [str(row) for row in range(len(files))])
        self.files = files

    def read(self, row: int) -> bytes:
        """File ``row``."""
        return self.files[row]


def sampled(n: int, most: int) -> NDArray[np.intp]:
    """At most ``most`` of ``n`` rows, by a fixed seed."""
    return np.sort(np.random.default_rng(7).permutation(n)[:most])


def cifar10(spec: str, most: int) -> Images:
    source = open_source(spec)
    train = load_protocol("cifar10-distillhash").split(source).train
    part = source.select(train[sampled(len(train), most)])
    assert isinstance(part, ImageSource) and part.labels is not None
    return Images(part, {"cifar10": part.labels})


def grocery(folder: str, most: int) -> Images:
    file = Path(folder) / "train.parquet"
    source, table = open_source(file), pq.read_table(file, columns=["label", "fine_label"])
    rows = sampled(len(source), most)
    part = source.select(rows)
    assert isinstance(part, ImageSource)
    return Images(
        part,
        {
            f"grocery {kind}": table[name].to_numpy()[rows]
            for kind, name in (("coarse", "label"), ("fine", "fine_label"))
        },
    )


def flickr8k(file: str, most: int) -> Images:
    pairs = open_pairs(file)
    texts = pairs.texts
    assert isinstance(texts, list)
    encoder = make_text_encoder("minilm")
    embedded = np.concatenate([encoder.encode(texts[start : start + 256]) for start in range(0, len(texts), 256)])
    n = min(len(pairs), most)
    means = np.stack([embedded[pairs.owners == row].mean(axis=0) for row in range(n)])
    images = pairs.images.select(np.arange(n))
    assert isinstance(images, ImageSource)
    return Images(images, {"flickr8k captions": unit(means)})


def unit(x: Floats) -> Floats:
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / np.maximum(lengths, 1e-12), np.float32)


def folds(n: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Rows of the queries and of the database."""
    order = np.random.default_rng(11).permutation(n)
    for part in np.array_split(order, FOLDS):
        yield part, np.setdiff1d(order, part)


def labels_of(
    truth: NDArray[Any], query: NDArray[np.intp], database: NDArray[np.intp]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Labels of both sides; of vectors, each query is a label that its nearest of the database carry."""
    if truth.ndim == 1:
        return truth[query], truth[database]
    nearest = np.argsort(-(truth[query] @ truth[database].T), axis=1, kind="stable")[:, :RELEVANT]
    carried = np.zeros((len(database), len(query)), np.uint8)
    np.put_along_axis(carried, nearest.T, 1, axis=0)
    return np.eye(len(query), dtype=np.uint8), carried


def by_floats(query: Floats, database: Floats, relevant: NDArray[np.bool_]) -> tuple[NDArray[np.float64], float]:
    """Average precision of each query (NaN where nothing is relevant) and P@10, ranked by cosine."""
    order = np.argsort(-(unit(query) @ unit(database).T), axis=1, kind="stable")
    hits = np.take_along_axis(relevant, order, axis=1)
    precision = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
    with np.errstate(invalid="ignore"):
        average = (precision * hits).sum(axis=1) / hits.sum(axis=1)
    return average, float(hits[hits.any(axis=1), :10].mean())


def measure(
    features: Floats, truths: dict[str, NDArray[Any]]
) -> tuple[dict[str, dict[str, float]], dict[tuple[str, str], NDArray[np.float64]]]:
    """The measures of each truth, and the average precision of every image by (truth, ``float`` or ``itq-K``)."""
    found: dict[str, dict[str, list[float]]] = {truth: {} for truth in truths}
    rankings = ["float", *(f"itq-{n_bits}" for n_bits in BITS)]
    average = {(truth, ranking): np.zeros(len(features)) for truth in truths for ranking in rankings}
    for query, database in folds(len(features)):
        labels = {truth: labels_of(values, query, database) for truth, values in truths.items()}
        for truth, (of_query, of_database) in labels.items():
            relevant = np.equal.outer(of_query, of_database) if of_query.ndim == 1 else of_database.T > 0
            average[truth, "float"][query], precision = by_floats(features[query], features[database], relevant)
            found[truth].setdefault("float P@10", []).append(precision)
        for n_bits, seed in product(BITS, SEEDS):
            hasher = make_hasher("itq", n_bits, seed=seed).fit(features[database])
            sides = hasher.encode(features[query]), hasher.encode(features[database])
            recall = neighbour_recall(*sides, features[query], features[database], (10,), (10,))["recall10@10"]
            for truth, both in labels.items():
                metrics, one = evaluate_queries(*sides, *both, cutoffs=(), topn=(10,))
                average[truth, f"itq-{n_bits}"][query] += one / len(SEEDS)
                found[truth].setdefault(f"itq-{n_bits} P@10", []).append(metrics["precision@10"])
                found[truth].setdefault(f"itq-{n_bits} recall", []).append(recall)
    measures = {
        truth: {f"{ranking} MAP": float(np.nanmean(average[truth, ranking])) for ranking in rankings}
        for truth in truths
    }
    for truth, lists in found.items():
        measures[truth] |= {name: float(np.mean(values)) for name, values in lists.items()}
    return measures, average


def edited_photographs(source: ImageSource) -> Made:
    """Every edit of each of the first photographs, the edits of one after another."""
    files = []
    for row in range(EDITED):
        image = Image.fromarray(decode_image(source.read(row)))
        files += [edit(image) for edit in (*LIGHT.values(), *HEAVY.values())]
    return Made("edits", files)


def near_duplicates(originals: Floats, edits: Floats) -> dict[str, float]:
    """Rank-1 recall of light and heavy edits, by floats and by ITQ codes; of ties at the first place, the expectation."""
    own = np.repeat(np.arange(EDITED), len(LIGHT) + len(HEAVY))
    is_light = np.tile(np.arange(len(LIGHT) + len(HEAVY)) < len(LIGHT), EDITED)
    first = {"float": ((unit(edits) @ unit(originals).T).argmax(axis=1) == own).astype(float)}
    for n_bits in BITS:
        scores = []
        for seed in SEEDS:
            hasher = make_hasher("itq", n_bits, seed=seed).fit(originals)
            distances = distances_of(hasher.encode(edits), hasher.encode(originals))
            best = distances == distances.min(axis=1, keepdims=True)
            scores.append(best[np.arange(len(own)), own] / best.sum(axis=1))
        first[f"itq-{n_bits}"] = np.mean(scores, axis=0)
    parts = {"light": is_light, "heavy": ~is_light}
    return {
        f"{name} {part}": float(values[rows].mean()) for name, values in first.items() for part, rows in parts.items()
    }


def distances_of(query: Codes, database: Codes) -> NDArray[Any]:
    return np.asarray(hamming_distances(query, database))


def shrunk(source: ImageSource, side: int) -> Made:
    """The photographs with a shorter side of ``side`` pixels at most, as PNG."""
    files = []
    for row in range(len(source)):
        image = Image.fromarray(decode_image(source.read(row)))
        scale = side / min(image.size)
        stream = BytesIO()
        if scale < 1:
            image = image.resize([round(scale * length) for length in image.size], Image.Resampling.LANCZOS)
        image.save(stream, "PNG", compress_level=1)
        files.append(stream.getvalue())
    return Made(f"shrunk to {side}", files)


def milliseconds(backbones: dict[str, Backbone]) -> dict[str, float]:
    """CPU time of one image in one thread."""
    torch.set_num_threads(1)
    rng, best = np.random.default_rng(0), dict.fromkeys(backbones, np.inf)
    images = {
        name: rng.integers(0, 256, (TIMED, one.image_size, one.image_size, 3), dtype=np.uint8)
        for name, one in backbones.items()
    }
    for _ in range(ROUNDS + 1):  # the first warms up, and is no better than the others
        for name, backbone in backbones.items():
            started = time.process_time()
            backbone.embed(images[name])
            best[name] = min(best[name], 1000 * (time.process_time() - started) / TIMED)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("cifar10", "grocery", "flickr8k"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--images", type=int, default=1200, help="of a set, at most")
    parser.add_argument("--shrunk", type=int, default=400, help="photographs that are shrunk")
    parser.add_argument("--cache")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    cache = FeatureCache(arguments.cache)
    backbones = {
        f"{name.removeprefix('efficientnet-')}@{size}": make_backbone(name, image_size=size, device="cpu")
        for name, native in TRAINED_SIZES.items()
        for size in (128, native)
    }
    words = "--cifar10 cifar10:data --grocery DIR --flickr8k pairs.parquet --out results/backbones"
    record: dict[str, Any] = {"command": f"python benchmarks/backbones.py {words}", "versions": versions()}
    times = milliseconds(backbones)
    sets = [make(getattr(arguments, make.__name__), arguments.images) for make in (cifar10, grocery, flickr8k)]
    record["n_images"] = {truth: len(one.source) for one in sets for truth in one.truths}
    edits, photographs = edited_photographs(sets[2].source), sets[1].source
    rows: list[dict[str, Any]] = []
    average: dict[tuple[str, str, str], NDArray[np.float64]] = {}
    for name, backbone in backbones.items():
        row: dict[str, Any] = {"backbone": name, "fingerprint": backbone.fingerprint, "ms": times[name]}
        for images in sets:
            features = extract_features(images.source, backbone, cache=cache).features
            measures, per_query = measure(features, images.truths)
            row |= measures
            average |= {(name, *which): one for which, one in per_query.items()}
        row["near-duplicates"] = near_duplicates(features, extract_features(edits, backbone, cache=cache).features)
        rows.append(row)
        print(json.dumps(row), flush=True)
    record["backbones"] = rows
    record["differences"] = list(differences(average))
    record["sizes"] = []
    part = photographs.select(np.arange(min(arguments.shrunk, len(photographs))))
    for side in SIDES:
        source = shrunk(part, side)
        for name in ("lite2@128", "lite2@260"):
            features = extract_features(source, backbones[name], cache=cache).features
            for truth, values in sets[1].truths.items():
                found = [
                    by_floats(features[query], features[database], np.equal.outer(values[query], values[database]))[0]
                    for query, database in folds(len(part))
                ]
                record["sizes"].append(
                    {"side": side, "backbone": name, "truth": truth, "map": float(np.nanmean(np.concatenate(found)))}
                )
        print(json.dumps(record["sizes"][-4:]), flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "backbones.json").write_text(json.dumps(record, indent=1) + "\n")
    text = table(record)
    (arguments.out / "table.md").write_text(text)
    print(text)


def differences(average: dict[tuple[str, str, str], NDArray[np.float64]]) -> Iterator[dict[str, Any]]:
    """MAP of one backbone less that of another over the same queries, with paired bootstrap intervals of 95%."""
    native = {name: f"{name}@{size}" for name, size in (("lite0", 224), ("lite1", 240), ("lite2", 260))}
    compared = [("lite2@128", "lite0@128"), (native["lite2"], native["lite0"]), ("lite1@128", "lite0@128")]
    compared += [(native["lite1"], native["lite0"]), (native["lite2"], "lite2@128"), (native["lite0"], "lite0@128")]
    for first, second in compared:
        for truth, ranking in dict.fromkeys((truth, ranking) for _, truth, ranking in average):
            found = bootstrap_difference(average[first, truth, ranking], average[second, truth, ranking])
            yield {"first": first, "second": second, "truth": truth, "ranking": ranking, **asdict(found)}


def table(record: dict[str, Any]) -> str:
    """Markdown."""
    rows = record["backbones"]
    lines = [f"    {record['command']}", "", "## Time", "", "| backbone | ms an image, one thread |", "|---|---|"]
    lines += [f"| {row['backbone']} | {row['ms']:.1f} |" for row in rows]
    for name in [*record["n_images"], "near-duplicates"]:
        keys = sorted(rows[0][name], key=lambda key: (key.split()[0] != "float", key.split()[0]))
        n = f", {record['n_images'][name]:,} images" if name in record["n_images"] else ""
        lines += ["", f"## {name}{n}", "", f"| backbone | {' | '.join(keys)} |", "|---" * (len(keys) + 1) + "|"]
        lines += [f"| {row['backbone']} | {' | '.join(f'{row[name][key]:.4f}' for key in keys)} |" for row in rows]
    rankings = list(dict.fromkeys(one["ranking"] for one in record["differences"]))
    lines += ["", "## Differences of MAP", "", f"| | | {' | '.join(rankings)} |", "|---" * (len(rankings) + 2) + "|"]
    for pair in dict.fromkeys((one["first"], one["second"], one["truth"]) for one in record["differences"]):
        cells = [one for one in record["differences"] if (one["first"], one["second"], one["truth"]) == pair]
        words = [f"{one['mean']:+.4f} [{one['low']:+.4f}, {one['high']:+.4f}]" for one in cells]
        lines.append(f"| {pair[0]} less {pair[1]} | {pair[2]} | {' | '.join(words)} |")
    lines += ["", "## Photographs shrunk first, float MAP", ""]
    truths = list(dict.fromkeys(one["truth"] for one in record["sizes"]))
    names = list(dict.fromkeys(one["backbone"] for one in record["sizes"]))
    heads = [f"{truth}, {name}" for truth in truths for name in names]
    lines += [f"| shorter side | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for side in dict.fromkeys(one["side"] for one in record["sizes"]):
        found = {(one["truth"], one["backbone"]): one["map"] for one in record["sizes"] if one["side"] == side}
        lines.append(f"| {side} | {' | '.join(f'{found[truth, name]:.4f}' for truth in truths for name in names)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
