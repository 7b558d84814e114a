"""What codes keep of the nearest neighbours: itq, urph as first read (its defaults), and urph with preset=nearest.

    python benchmarks/urph.py cifar10:DIR grocery=train.parquet,test.parquet captions=vectors.npy --out results/urph

Data sets are given as [NAME=]SOURCE, [NAME=]TRAIN,ITEMS or [NAME=]TRAIN,QUERIES,DATABASE, sources of images or vectors. Items search among
themselves; of one source the last fifth does, and the rows before it are trained on. cifar10:DIR alone takes the protocol
cifar10-distillhash: its training rows, its queries, and 10,000 other rows of its database, drawn by seed 0. No item is trained on.

- recall: the share of the 10 nearest by cosine of the features among the first 10 by Hamming distance, in expectation over ties.
- graph: the file of ``export --to faiss-hnsw``, its first 10: the share that exact search has at these distances, and the recall.
- re-ranked: the recall of the first 10 of 100 candidates, ordered by cosine with the features that the decoder rebuilds from their codes.

Default backbone, at --image-size. Mean (sample standard deviation) over seeds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distillhash import Codes, make_hasher
from distillhash.backbones import FeatureCache, extract_features, make_backbone
from distillhash.bench.protocols import load_protocol
from distillhash.bench.runs import prepare
from distillhash.codes import hamming_distances
from distillhash.export import export_codes
from distillhash.metrics import neighbour_recall
from distillhash.sources import open_source

Floats = NDArray[np.float32]
READINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "itq": ("itq", {}),
    "urph": ("urph", {}),
    "urph, preset=nearest": ("urph", {"preset": "nearest"}),
}
CANDIDATES = 100


class DataSet(NamedTuple):
    """Features to train on, to search with and to search in; ``same`` where items search among themselves."""

    train: Floats
    queries: Floats
    database: Floats
    same: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", metavar="DATA")
    parser.add_argument("--bits", default="16,32,64,128,256")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--skip-old", action="store_true", help="leave out urph's defaults, which take longest")
    parser.add_argument("--out", required=True, metavar="DIR")
    arguments = parser.parse_args()
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for spec in arguments.data:
        name, _, sources = spec.rpartition("=")
        data = load(sources, arguments.image_size)
        for n_bits in map(int, arguments.bits.split(",")):
            for reading in READINGS:
                if reading == "urph" and arguments.skip_old:
                    continue
                runs = [measured(data, reading, n_bits, seed) for seed in range(arguments.seeds)]
                row: dict[str, Any] = {"data": name or sources.partition(":")[0], "bits": n_bits, "method": reading}
                for column in runs[0]:
                    values = [run[column] for run in runs if column in run]
                    spread = f" ({np.std(values, ddof=1):.3f})" if len(values) > 1 else ""
                    row[column] = f"{np.mean(values):.3f}{spread}" if column != "seconds" else f"{np.mean(values):.0f}"
                rows.append(row)
                print(row, flush=True)
                write(out, rows)


def write(out: Path, rows: list[dict[str, Any]]) -> None:
    """The table, as far as it is known."""
    header = list(dict.fromkeys(column for row in rows for column in row))
    lines = [header, ["---"] * len(header), *([str(row.get(column, "")) for column in header] for row in rows)]
    command = "    python benchmarks/urph.py cifar10:data grocery=train.parquet,test.parquet captions=vectors.npy --out results/urph\n\n"
    (out / "table.md").write_text(command + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    (out / "table.json").write_text(json.dumps(rows, indent=1) + "\n")


def load(sources: str, image_size: int | None) -> DataSet:
    """Features of a data set, see above."""
    if sources.startswith("cifar10:") and "," not in sources:
        protocol = load_protocol("cifar10-distillhash")
        prepared = prepare(open_source(sources), protocol, make_backbone(), cache=FeatureCache())
        split, x = prepared.split, prepared.features
        rows = np.random.default_rng(0).choice(np.setdiff1d(split.database, split.train), 10_000, replace=False)
        return DataSet(x[split.train], x[split.query[::10]], x[rows], False)
    parts = [features(source, image_size) for source in sources.split(",")]
    if len(parts) == 1:
        held = len(parts[0]) // 5
        parts = [parts[0][:-held], parts[0][-held:]]
    return DataSet(parts[0], parts[1], parts[-1], len(parts) == 2)


def features(source: str, image_size: int | None) -> Floats:
    """Vectors as they are, images by the default backbone."""
    opened = open_source(source)
    vectors: Any = getattr(opened, "vectors", None)
    if vectors is not None:
        return np.asarray(vectors, np.float32)
    return np.asarray(extract_features(opened, make_backbone(image_size=image_size), cache=FeatureCache()).features)


def measured(data: DataSet, reading: str, n_bits: int, seed: int) -> dict[str, float]:
    """Every column of one training."""
    method, settings = READINGS[reading]
    start = time.perf_counter()
    hasher: Any = make_hasher(method, n_bits, seed=seed, **settings).fit(data.train)
    seconds = time.perf_counter() - start
    queries, database = hasher.encode(data.queries), hasher.encode(data.database)
    options: Any = {"ks": [10], "depths": [10, 100], "same_items": data.same}
    found = neighbour_recall(queries, database, data.queries, data.database, **options)
    result = {"recall@10": found["recall10@10"], "@100": found["recall10@100"], "seconds": seconds}
    if seed == 0:
        wanted = order(cosines(data.queries, data.database, data.same), 10)
        near = order(-distances_of(queries, database, data.same).astype(np.float32), CANDIDATES)
        result |= graph(queries, database, wanted, near, data.same)
        scores = np.take_along_axis(cosines(data.queries, hasher.reconstruct(database), False), near, 1)
        result["re-ranked"] = overlap(np.take_along_axis(near, order(scores, 10), 1), wanted)
    return result


def cosines(queries: NDArray[Any], database: NDArray[Any], same: bool) -> Floats:
    """``(q, n)``; an item and itself have -2 where items search among themselves."""
    sides = [
        np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12), np.float32)
        for x in (queries, database)
    ]
    values = np.asarray(sides[0] @ sides[1].T)
    if same:
        np.fill_diagonal(values, -2)
    return values


def distances_of(queries: Codes, database: Codes, same: bool) -> NDArray[np.int64]:
    """Hamming distances ``(q, n)``; an item is far from itself where items search among themselves."""
    values = hamming_distances(queries, database).astype(np.int64)
    if same:
        np.fill_diagonal(values, queries.n_bits + 1)
    return values


def order(scores: Floats, k: int) -> NDArray[np.intp]:
    """The places of the ``k`` largest of each row, largest first."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def overlap(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """The share of ``wanted`` in ``found``, row by row."""
    return float(np.mean([np.isin(right, left).mean() for left, right in zip(found, wanted, strict=True)]))


def graph(
    queries: Codes, database: Codes, wanted: NDArray[np.intp], near: NDArray[np.intp], same: bool
) -> dict[str, float]:
    """The graph's answers beside exact ones, and beside the neighbours by cosine."""
    import faiss

    with tempfile.TemporaryDirectory() as place:
        (file,) = export_codes(database, None, "faiss-hnsw", Path(place) / "codes.hnsw.faiss")
        index = faiss.read_index_binary(str(file))
    _, found = index.search(queries.packed, 10 + same)
    exact = distances_of(queries, database, same)
    tenth = np.take_along_axis(exact, near[:, 9:10], 1)
    rows = np.arange(len(found))[:, None]
    firsts = np.array([[i for i in row if i != own or not same][:10] for own, row in enumerate(found.tolist())])
    return {
        "graph: of exact": float((exact[rows, firsts] <= tenth).mean()),
        "graph: recall@10": overlap(firsts, wanted),
    }


if __name__ == "__main__":
    main()
