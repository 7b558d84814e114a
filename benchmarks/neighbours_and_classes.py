"""What codes keep of kinds and of near neighbours, by method and length.

    python benchmarks/neighbours_and_classes.py cifar10 --data cifar10:DIR --out results/neighbours-and-classes
    python benchmarks/neighbours_and_classes.py grocery --data DIR --out results/neighbours-and-classes
    python benchmarks/neighbours_and_classes.py captions --data pairs.parquet --out results/neighbours-and-classes
    python benchmarks/neighbours_and_classes.py photos --data pairs.parquet --out results/neighbours-and-classes
    python benchmarks/neighbours_and_classes.py digits --out results/neighbours-and-classes

Nothing that is measured was trained on.

- cifar10: protocol cifar10-distillhash, six views and teacher; 1,000 of its queries. MAP and precision over the whole database of 50,000,
  neighbour recall in 10,000 rows of it; both drawn by the protocol's seed.
- grocery: photographs at the backbone's native size, vectors only; learned from the train part, which is also the database, searched by
  the test part.
- grocery-validation: of the train part alone, those that the data set's authors took to validate search the others.
- grocery-scenes-0, -1 and -2: of the train part alone, a third of every product's scenes searches the others. Photographs of a product
  whose features have a cosine above .85, or that others of the kind connect, are one scene. Photographs drawn at random share scenes with
  those that are learned from, and codes of them look better than they are: 96% of their nearest are of their class, in the test part 76%.
- captions: ``minilm`` embeddings of the captions; learned from those of the first 800 pictures, each of the other 1,000 searched among the
  rest of them. ``same picture@10`` is the share of the four other captions of a picture among the first 10.
- photos: the pictures of the same file at the native size; learned from 800, each of the other 200 searched among the rest. They have no
  classes.
- digits: scikit-learn's digits, learned from the train part, which is also the database, searched by the test part.

With ``--folds`` only training rows are used, four fifths to learn from and the others in the place of what is measured; of the labels,
only the pictures of captions are kept. Mean and sample standard deviation over the seeds. ``decoder@10`` is the neighbour recall where
the whole database is ordered by the cosine of the query's features and those decoded from the codes; ``int8@10`` that where the first 100
are ordered by the vectors that ``index --keep-vectors int8`` keeps. ``graph@10``, of `urph`, is that of the first 10 in the graph that
``export --to faiss-hnsw`` writes (extra ``faiss``), which its paper proposes to search by.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.datasets import load_digits

from distillhash import make_hasher
from distillhash.backbones import FeatureCache, extract_features, make_backbone, sized_for
from distillhash.bench.protocols import load_protocol
from distillhash.bench.runs import prepare, versions
from distillhash.cli.common import parse_settings
from distillhash.codes import Codes
from distillhash.export import export_codes
from distillhash.hamming import nearest, planes_of, ranking
from distillhash.index.base import quantise
from distillhash.metrics import evaluate_codes, neighbour_recall
from distillhash.metrics.neighbours import Neighbours, find_neighbours
from distillhash.sources import Source, open_source
from distillhash.sources.pairs import open_pairs
from distillhash.texts import make_text_encoder

Floats = NDArray[np.float32]
METHODS = "itq;urph preset=nearest;distillhash-contrast;distillhash-nested"
RANKINGS = {  # items of the head, then weights of a neighbour bit and a class bit in the head and in the tail
    "one Hamming distance": (40, (1, 1), (1, 1)),
    "head 1 : 0": (40, (1, 0), (1, 8)),
    "head 4 : 1": (40, (4, 1), (1, 8)),
    "head 1 : 1": (40, (1, 1), (1, 8)),
    "tail 1 : 4": (40, (2, 1), (1, 4)),
    "tail 0 : 1": (40, (2, 1), (1, 1000)),
    "head of 20": (20, (2, 1), (1, 8)),
    "head of 100": (100, (2, 1), (1, 8)),
}
RECALL_ROWS, PICTURES, LEARNED = 10_000, 1000, 800
SCENE = 0.85  # cosine of the features of two photographs of one scene


class Data(NamedTuple):
    """What is learned from and what is measured; ``labels`` are (name, of the queries, of the database)."""

    train: Floats
    query: Floats
    database: Floats
    labels: Sequence[tuple[str, NDArray[Any], NDArray[Any]]] = ()
    same: bool = False  # the queries are the database
    near: NDArray[np.intp] | None = None  # rows of the database that neighbour recall is measured in; None: all
    views: Floats | None = None
    teacher: Floats | None = None
    pictures: NDArray[Any] | None = None  # of the training rows


def cifar10(source: str, backbone: str) -> Data:
    protocol = load_protocol("cifar10-distillhash")
    options: dict[str, Any] = {"cache": FeatureCache(), "n_views": 6, "teacher": True, "progress": True}
    found = prepare(open_source(source), protocol, make_backbone(backbone), **options)
    split, rng = found.split, np.random.default_rng(protocol.rule.seed)
    query = np.sort(rng.choice(split.query, 1000, replace=False))
    near = np.sort(rng.choice(len(split.database), RECALL_ROWS, replace=False))
    train, features = found.features[split.train], found.features
    labels = [("class", found.labels[query], found.labels[split.database])]
    sides = train, features[query], features[split.database]
    return Data(*sides, labels, near=near, views=found.views, teacher=found.teacher)


def grocery(folder: str, backbone: str) -> Data:
    files = [Path(folder) / f"{part}.parquet" for part in ("test", "train")]
    query, train = (photograph_features(open_source(file), backbone) for file in files)
    columns = [pq.read_table(file, columns=["label", "fine_label"]) for file in files]
    labels = [(name, *(table[name].to_numpy() for table in columns)) for name in ("label", "fine_label")]
    return Data(train, query, train, [("coarse", *labels[0][1:]), ("fine", *labels[1][1:])])


def training_part(folder: str, backbone: str) -> tuple[Floats, pa.Table]:
    """Features of grocery's train part, of length 1 as `distillhash-nested` makes them, and its table."""
    file = Path(folder) / "train.parquet"
    features = photograph_features(open_source(file), backbone)
    return features / np.linalg.norm(features, axis=1, keepdims=True), pq.read_table(file)


def divided(features: Floats, table: pa.Table, held: NDArray[np.bool_]) -> Data:
    """The held photographs search the others."""
    columns = (("coarse", table["label"].to_numpy()), ("fine", table["fine_label"].to_numpy()))
    labels = [(name, column[held], column[~held]) for name, column in columns]
    return Data(features[~held], features[held], features[~held], labels)


def grocery_validation(folder: str, backbone: str) -> Data:
    features, table = training_part(folder, backbone)
    files = [image["path"] for image in table["image"].to_pylist()]
    return divided(features, table, np.array([file.startswith("val/") for file in files]))


def grocery_scenes(folder: str, backbone: str, fold: int) -> Data:
    features, table = training_part(folder, backbone)
    products = table["fine_label"].to_numpy()
    alike = np.triu((features @ features.T > SCENE) & np.equal.outer(products, products))
    _, scenes = connected_components(coo_matrix(alike), directed=False)
    rng, held = np.random.default_rng(0), np.zeros(len(features), bool)
    for product in np.unique(products):
        names, sizes = np.unique(scenes[products == product], return_counts=True)
        order = rng.permutation(len(names))
        largest_first = order[np.argsort(-sizes[order], kind="stable")]
        parts, filled = rng.permutation(3), np.zeros(3, int)
        for scene in largest_first:
            part = parts[np.argmin(filled[parts])]  # the one that has least
            filled[part] += sizes[scene]
            if part == fold:
                held |= scenes == names[scene]
    return divided(features, table, held)


def photograph_features(source: Source, backbone: str) -> Floats:
    """Features at the size that suits photographs."""
    network = sized_for(make_backbone(backbone), source)
    return extract_features(source, network, cache=FeatureCache(), progress=True).features


def captions(file: str, _: str) -> Data:
    pairs, encoder = open_pairs(file), make_text_encoder("minilm")
    assert isinstance(pairs.texts, list)
    features = np.concatenate([encoder.encode(pairs.texts[i : i + 256]) for i in range(0, len(pairs.texts), 256)])
    new = pairs.owners >= LEARNED
    rows = features[new]
    labels = [("picture", pairs.owners[new], pairs.owners[new])]
    return Data(features[~new], rows, rows, labels, same=True, pictures=pairs.owners[~new])


def photos(file: str, backbone: str) -> Data:
    features = photograph_features(open_pairs(file).images, backbone)
    return Data(features[:LEARNED], features[LEARNED:], features[LEARNED:], same=True)


def digits(_: str, __: str) -> Data:
    images, labels = load_digits(return_X_y=True)
    splits = open_source("digits:").splits
    (query, of_query), (train, of_train) = ((images[splits[part]], labels[splits[part]]) for part in ("test", "train"))
    train, query = (np.asarray(part, np.float32) for part in (train, query))
    return Data(train, query, train, (("class", of_query, of_train),))


DATA: dict[str, Callable[[str, str], Data]] = {
    "cifar10": cifar10,
    "grocery": grocery,
    "grocery-validation": grocery_validation,
    **{f"grocery-scenes-{fold}": partial(grocery_scenes, fold=fold) for fold in range(3)},
    "captions": captions,
    "photos": photos,
    "digits": digits,
}


def folded(data: Data) -> Data:
    """The training rows alone: four fifths are learned from, the others search each other. Captions of a picture stay together."""
    units = np.arange(len(data.train)) if data.pictures is None else data.pictures
    names = np.random.default_rng(7).permutation(np.unique(units))
    is_held = np.isin(units, names[len(names) * 4 // 5 :])
    learned, held = np.flatnonzero(~is_held), np.flatnonzero(is_held)
    views, teacher = (None if part is None else part[..., learned, :] for part in (data.views, data.teacher))
    labels = [] if data.pictures is None else [("picture", data.pictures[held], data.pictures[held])]
    return Data(data.train[learned], data.train[held], data.train[held], labels, True, views=views, teacher=teacher)


def sampled(data: Data, n: int) -> Data:
    """Only ``n`` of the training rows."""
    rows = np.sort(np.random.default_rng(7).permutation(len(data.train))[:n])
    views, teacher = (None if part is None else part[..., rows, :] for part in (data.views, data.teacher))
    return data._replace(train=data.train[rows], views=views, teacher=teacher)


def shared(rows: NDArray[np.intp], neighbours: Neighbours) -> float:
    """Share of the nearest that are among the first 10 of ``rows (q, 11)``, without the query itself."""
    lists = zip(rows.tolist(), neighbours.nearest.tolist(), neighbours.own.tolist(), strict=True)
    found = [len(set([row for row in given if row != own][:10]) & set(near)) / 10 for given, near, own in lists]
    return float(np.mean(found))


def by_graph(query: Codes, database: Codes, k: int) -> NDArray[np.intp]:
    """Rows that FAISS finds in the exported graph of codes."""
    import faiss

    with tempfile.TemporaryDirectory() as folder:
        (file, *_) = export_codes(database, None, "faiss-hnsw", Path(folder) / "codes.faiss")
        graph = faiss.read_index_binary(str(file))
    packed = np.zeros((len(query), graph.d // 8), np.uint8)
    packed[:, : query.packed.shape[1]] = query.packed
    return np.asarray(graph.search(packed, k)[1], np.intp)


def by_kept_vectors(query: Codes, database: Codes, features: Floats, kept: NDArray[Any]) -> NDArray[np.intp]:
    """The first 11 rows where the 100 nearest by code, and the query itself, are ordered by vectors that the index keeps."""
    by: ranking.By = "nearest" if query.class_bits else "both"
    rows, _ = nearest(planes_of(query), planes_of(database), 101, class_bits=query.class_bits, by=by)
    vectors = kept[rows].astype(np.float32)
    cosines = np.einsum("qd,qkd->qk", features, vectors) / np.linalg.norm(vectors, axis=2)
    return np.take_along_axis(rows, np.argsort(-cosines, axis=1, kind="stable")[:, :11], axis=1)


def measure(hasher: Any, data: Data) -> dict[str, float]:
    query, database = hasher.encode(data.query), hasher.encode(data.database)
    near = slice(None) if data.near is None else data.near
    sides = query, database[near], data.query, data.database[near]
    recall = neighbour_recall(*sides, (10,), (10, 40, 100), same_items=data.same)
    found = {f"neighbour recall@{depth}": recall[f"recall10@{depth}"] for depth in (10, 40, 100)}
    neighbours = find_neighbours(data.query, data.database[near], 10, same_items=data.same)
    asked = neighbours.queries
    cosines = hasher.decoder.cosines(data.query[asked], database[near])
    found["decoder@10"] = shared(np.argsort(-cosines, axis=1)[:, :11], neighbours)
    kept = quantise(data.database[near], "int8")
    found["int8@10"] = shared(by_kept_vectors(query[asked], database[near], data.query[asked], kept), neighbours)
    if hasher.method == "urph":
        found["graph@10"] = shared(by_graph(query[asked], database[near], 11), neighbours)
    for name, of_query, of_database in data.labels:
        if name == "picture":  # the nearest by these features are the other captions of the picture
            pictures = np.equal.outer(of_query, np.unique(of_query)).astype(np.float32)
            same = neighbour_recall(query, database, pictures, pictures, (4,), (10,), same_items=True)
            found["same picture@10"] = same["recall4@10"]
            continue
        metrics = evaluate_codes(query, database, of_query, of_database, cutoffs=(), topn=(10, 100))
        found |= {f"{name} MAP": metrics["map"]}
        found |= {f"{name} P@{depth}": metrics[f"precision@{depth}"] for depth in (10, 100)}
    return found | {"class bits": hasher.class_bits}


def by_other_rankings(hasher: Any, data: Data, method: str) -> Iterator[dict[str, Any]]:
    """The measures with each of ``RANKINGS`` in the place of the package's."""
    own = ranking.HEAD, ranking.HEAD_WEIGHTS, ranking.TAIL_WEIGHTS
    for name, setting in RANKINGS.items():
        ranking.HEAD, ranking.HEAD_WEIGHTS, ranking.TAIL_WEIGHTS = setting
        yield {"method": f"{method}, {name}", **measure(hasher, data)}
    ranking.HEAD, ranking.HEAD_WEIGHTS, ranking.TAIL_WEIGHTS = own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=DATA)
    parser.add_argument("--data", default="", help="where it is")
    parser.add_argument("--backbone", default="efficientnet-lite0", help="of cifar10, grocery and photos")
    parser.add_argument("--methods", default=METHODS, help="separated by ';', each with its settings after it")
    parser.add_argument("--bits", default="32,64,128,256")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--folds", action="store_true", help="measure on training rows that were held out")
    parser.add_argument("--learned", type=int, help="learn from so many of the training rows, drawn at random")
    parser.add_argument("--no-views", action="store_true", help="learn from plain features alone")
    parser.add_argument("--rankings", action="store_true", help="measure codes of two parts by other rankings as well")
    parser.add_argument("--name", dest="name_of_table", help="of the table (default: the data's)")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    data = DATA[arguments.name](arguments.data, arguments.backbone)
    data = folded(data) if arguments.folds else data
    data = data._replace(views=None, teacher=None) if arguments.no_views else data
    data = data if arguments.learned is None else sampled(data, arguments.learned)
    name = arguments.name + arguments.folds * "-folds" if arguments.name_of_table is None else arguments.name_of_table
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / f"{name}.json"
    records: list[dict[str, Any]] = json.loads(file.read_text())["records"] if file.exists() else []
    for n_bits in map(int, arguments.bits.split(",")):
        for method in arguments.methods.split(";"):
            method_name, *pairs = method.split()
            for seed in map(int, arguments.seeds.split(",")):
                key = {"method": method, "n_bits": n_bits, "seed": seed}
                if n_bits > data.train.shape[1] or any(key.items() <= record.items() for record in records):
                    continue
                hasher = make_hasher(method_name, n_bits, seed=seed, **parse_settings(pairs))
                started = time.perf_counter()
                hasher.fit(
                    data.train,
                    views=data.views if hasher.uses_views else None,
                    teacher=data.teacher if hasher.uses_teacher else None,
                )
                seconds = time.perf_counter() - started
                record = {**key, "seconds to fit": seconds, **measure(hasher, data)}
                chosen = hasher.history_.get("chosen")
                records.append({**record, "chosen": chosen} if chosen else record)
                print(records[-1], flush=True)
                if arguments.rankings and hasher.class_bits:
                    records += [{**record, **found} for found in by_other_rankings(hasher, data, method)]
                file.write_text(json.dumps({"versions": versions(), "records": records}, indent=1) + "\n")
    text = table(records)
    file.with_suffix(".md").write_text(text)
    print(text)


def table(records: list[dict[str, Any]]) -> str:
    """Markdown: a row for each length and method, mean (sample standard deviation) over seeds."""
    measures = [key for record in records for key, value in record.items() if isinstance(value, float)]
    measures = [key for key in dict.fromkeys(measures) if key != "seconds to fit"]
    measures += ["class bits", "seconds to fit"]
    lines = [f"| bits | method | {' | '.join(measures)} |", "|" + "---|" * (len(measures) + 2)]
    for n_bits, method in dict.fromkeys((record["n_bits"], record["method"]) for record in records):
        runs = [record for record in records if (record["n_bits"], record["method"]) == (n_bits, method)]
        cells = []
        for key in measures:
            values = [run[key] for run in runs if key in run]
            if not values:
                cells.append("")
                continue
            spread = f" ({np.std(values, ddof=1):.3f})" if len(values) > 1 else ""
            digits = (
                f"{np.mean(values):.3f}{spread}"
                if isinstance(values[0], float)
                else "/".join(map(str, sorted(set(values))))
            )
            cells.append(f"{np.mean(values):.0f}" if key == "seconds to fit" else digits)
        lines.append(f"| {n_bits} | {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
