"""Codes of images and captions on the first 1,000 pictures of Flickr8k: four methods beside chance and float CCA.

    python benchmarks/cross_modal.py PAIRS.parquet --out results/cross-modal

800 pictures teach, 200 ask; the split is drawn once by a fixed seed and kept in OUT/split.json with its checksum. Default backbone (with
six augmented views of every picture) and text encoder, computed once. Two questions, both ways (image to text, text to image):

- own: the 200 pictures and their 1,000 captions among each other; relevant is what belongs together;
- words: the 200 ask, the 800 answer; relevance is graded by common content words of all captions of two pictures.

Options were chosen with --validate 'METHOD name=value ...', on five folds of the 800: the 200 are never asked there. Finished rows are
kept in OUT/rows.jsonl and OUT/validation.jsonl, so a stopped run goes on.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.backbones import FeatureCache, extract_features, make_backbone
from distillhash.bench.runs import versions
from distillhash.codes import hamming_distances
from distillhash.methods import make_hasher
from distillhash.methods.image_text import CrossModalHasher
from distillhash.methods.linear_algebra import canonical_directions
from distillhash.metrics.cross_modal import own_items, query_metrics, word_overlap
from distillhash.sources.pairs import open_pairs
from distillhash.texts import DEFAULT_TEXT_ENCODER, make_text_encoder

SPLIT_SEED, N_QUERIES, FOLDS = 2018, 200, 5
DEPTHS = (1, 5, 10)
N_VIEWS = 6


@dataclass(frozen=True)
class Variant:
    """A row of the table: a method with its options; without one, a reference."""

    name: str
    method: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    views: bool = True


VARIANTS = [
    Variant("chance"),
    Variant("float CCA"),
    Variant("ccaitq", "ccaitq"),
    Variant("cross-contrast", "cross-contrast"),
    Variant("cross-contrast, no views", "cross-contrast", views=False),
    Variant("cross-contrast, neighbours", "cross-contrast", {"neighbourhood": 0.02}),
    Variant("duh-eg", "duh-eg"),
    Variant("duh-eg, no matching", "duh-eg", {"match_temperature": 0}),
    Variant("ugach", "ugach"),
    Variant("ugach, uniform negatives", "ugach", {"adversarial": False}),
    Variant("ugach, pre-trained only", "ugach", {"rounds": 0}),
]


@dataclass(frozen=True)
class Part:
    """Pictures, their captions, and features of both."""

    keys: list[str]
    captions: list[list[str]]
    images: NDArray[np.float32]
    texts: NDArray[np.float32]
    owners: NDArray[np.intp]
    views: NDArray[np.float32]

    def take(self, rows: NDArray[np.intp]) -> Part:
        """The pictures of ``rows`` with their captions."""
        position = {int(row): place for place, row in enumerate(rows)}
        kept = np.flatnonzero(np.isin(self.owners, rows))
        order = kept[np.argsort([position[int(owner)] for owner in self.owners[kept]], kind="stable")]
        return Part(
            [self.keys[row] for row in rows],
            [self.captions[row] for row in rows],
            self.images[rows],
            self.texts[order],
            np.array([position[int(owner)] for owner in self.owners[order]], np.intp),
            self.views[:, rows],
        )


Distances = Callable[[Part, Part], tuple[NDArray[Any], NDArray[Any]]]
"""From queries and database to distances image to text ``(q, t)`` and text to image ``(t_q, n)``."""


def load(spec: str, text_encoder: str) -> Part:
    """Features of all pictures and captions; a vocabulary is learned from the teaching pictures' captions alone."""
    pairs = open_pairs(spec)
    assert isinstance(pairs.texts, list)
    table = extract_features(pairs.images, make_backbone(), cache=FeatureCache(), n_views=N_VIEWS, progress=True)
    if table.skipped or len(pairs.without_text()):
        raise SystemExit("the table must hold usable images with captions only")
    captions: list[list[str]] = [[] for _ in pairs.keys]
    for owner, text in zip(pairs.owners, pairs.texts, strict=True):
        captions[owner].append(text)
    assert table.views is not None
    keys = list(pairs.keys)
    train = split(keys)[0]
    encoder = make_text_encoder(text_encoder).fit([text for row in train for text in captions[row]])
    kept = (
        FeatureCache().folder or Path()
    ) / f"texts-{sha256(json.dumps([text_encoder, pairs.texts]).encode()).hexdigest()}.npy"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(kept, encoder.encode(pairs.texts))
    return Part(keys, captions, table.features, np.load(kept), pairs.owners, table.views)


def split(keys: list[str]) -> tuple[NDArray[np.intp], NDArray[np.intp], dict[str, Any]]:
    """Rows that teach and rows that ask, and what results keep of it."""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(keys))
    query, train = np.sort(order[:N_QUERIES]), np.sort(order[N_QUERIES:])
    names = {"train": [keys[row] for row in train], "query": [keys[row] for row in query]}
    digest = sha256(json.dumps(names).encode()).hexdigest()
    return train, query, {"seed": SPLIT_SEED, "sha256": digest, **names}


def learn(variant: Variant, train: Part, n_bits: int, seed: int) -> tuple[Distances, dict[str, Any]]:
    """A way to compare, learned from ``train``, and what is worth keeping about it."""
    if variant.name == "chance":  # all items tied: the expectation over random orders
        return lambda q, d: (np.zeros((len(q.keys), len(d.texts)), int), np.zeros((len(q.texts), len(d.keys)), int)), {}
    started = time.perf_counter()
    if variant.name == "float CCA":
        return float_cca(train, n_bits), {"fit_seconds": time.perf_counter() - started}
    hasher = make_hasher(variant.method, n_bits, seed=seed, **variant.options)
    assert isinstance(hasher, CrossModalHasher)
    hasher.fit(train.images, train.texts, owners=train.owners, views=train.views if variant.views else None)
    facts: dict[str, Any] = {"fit_seconds": time.perf_counter() - started}
    facts |= {name: hasher.history_[name] for name in ("hardness", "reward") if hasher.history_.get(name)}

    def distances(query: Part, database: Part) -> tuple[NDArray[Any], NDArray[Any]]:
        return (
            hamming_distances(hasher.encode_images(query.images), hasher.encode_texts(database.texts)),
            hamming_distances(hasher.encode_texts(query.texts), hasher.encode_images(database.images)),
        )

    return distances, facts


def float_cca(train: Part, n_bits: int) -> Distances:
    """Cosine distances of the canonical variables that ``ccaitq`` rounds."""
    images, texts = train.images[train.owners].astype(float), train.texts.astype(float)
    means = images.mean(axis=0), texts.mean(axis=0)
    options = make_hasher("ccaitq", n_bits).get_params()
    A, B, rho = canonical_directions(images - means[0], texts - means[1], n_bits, options["regularisation"])
    weights = A * rho ** options["power"], B * rho ** options["power"]

    def unit(features: NDArray[np.float32], side: int) -> NDArray[np.float64]:
        projected = (features - means[side]) @ weights[side]
        return np.asarray(projected / np.linalg.norm(projected, axis=1, keepdims=True))

    def distances(query: Part, database: Part) -> tuple[NDArray[Any], NDArray[Any]]:
        return (
            1 - unit(query.images, 0) @ unit(database.texts, 1).T,
            1 - unit(query.texts, 1) @ unit(database.images, 0).T,
        )

    return distances


def measure(distances: Distances, train: Part, query: Part) -> dict[str, float]:
    """Every metric by name: ``own_i2t_map``, ``words_t2i_ndcg@10`` ..."""
    found: dict[str, float] = {}
    for name, database, relevance in (
        ("own", query, own_items(query.keys, query.keys)),
        ("words", train, word_overlap(query.captions, train.captions)),
    ):
        gains = relevance(np.arange(len(query.keys)))
        tables = distances(query, database)
        sides = {"i2t": gains[:, database.owners], "t2i": gains[query.owners]}
        for (direction, relevant), table in zip(sides.items(), tables, strict=True):
            for metric, values in query_metrics(table, relevant, DEPTHS).items():
                found[f"{name}_{direction}_{metric}"] = float(np.nanmean(values))
    return found


def run(everything: Part, out: Path, bits: list[int], seeds: list[int]) -> list[dict[str, Any]]:
    train_rows, query_rows, description = split(everything.keys)
    out.mkdir(parents=True, exist_ok=True)
    (out / "split.json").write_text(json.dumps(description, indent=1) + "\n")
    train, query = everything.take(train_rows), everything.take(query_rows)
    kept = out / "rows.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = {(row["variant"], row["n_bits"], row["seed"]) for row in rows}
    for variant in VARIANTS:
        for n_bits in bits:
            for seed in seeds if variant.method else seeds[:1]:
                if (variant.name, n_bits, seed) in done:
                    continue
                distances, facts = learn(variant, train, n_bits, seed)
                row: dict[str, Any] = {"variant": variant.name, "method": variant.method, "options": variant.options}
                row |= {"n_bits": n_bits, "seed": seed, **measure(distances, train, query), **facts}
                rows.append(row)
                with kept.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(f"{variant.name}, {n_bits} bits, seed {seed} done", flush=True)
    return rows


COLUMNS = {
    "own_i2t_hit@10": "R@10, image to text",
    "own_t2i_hit@10": "R@10, text to image",
    "own_i2t_map": "MAP, image to text",
    "own_t2i_map": "MAP, text to image",
    "words_i2t_map": "words MAP, image to text",
    "words_t2i_map": "words MAP, text to image",
    "words_i2t_ndcg@10": "words NDCG@10, image to text",
    "words_t2i_ndcg@10": "words NDCG@10, text to image",
}


def tables(rows: list[dict[str, Any]]) -> str:
    """One table a metric: rows are variants, columns are code lengths; mean and sample standard deviation over seeds."""
    bits = sorted({row["n_bits"] for row in rows})
    lines: list[str] = []
    for metric, title in {**COLUMNS, "fit_seconds": "seconds to fit"}.items():
        lines += [
            f"### {title}",
            "",
            "| | " + " | ".join(f"{n} bits" for n in bits) + " |",
            "|---" * (len(bits) + 1) + "|",
        ]
        for variant in VARIANTS:
            cells = []
            for n_bits in bits:
                values = [
                    row[metric]
                    for row in rows
                    if (row["variant"], row["n_bits"]) == (variant.name, n_bits) and metric in row
                ]
                spread = f" ({np.std(values, ddof=1):.4f})" if len(values) > 1 else ""
                cells.append(f"{np.mean(values):.4f}{spread}" if values else "")
            if any(cells):
                lines.append(f"| {variant.name} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


SHORT = {
    "R@10": ("own_i2t_hit@10", "own_t2i_hit@10"),
    "MAP": ("own_i2t_map", "own_t2i_map"),
    "words MAP": ("words_i2t_map", "words_t2i_map"),
    "words NDCG@10": ("words_i2t_ndcg@10", "words_t2i_ndcg@10"),
    "seconds": ("fit_seconds",),
}


def validate(everything: Part, out: Path, settings: list[str], bits: list[int], n_folds: int) -> None:
    """Settings ``METHOD name=value ...`` (``views=false`` withholds the views) on folds of the 800; OUT/validation.md."""
    out.mkdir(parents=True, exist_ok=True)
    kept = out / "validation.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = {(row["setting"], row["n_bits"], row["n_folds"]) for row in rows}
    for n_bits in bits:
        for setting in settings:
            if (setting, n_bits, n_folds) not in done:
                rows.append(
                    {
                        "setting": setting,
                        "n_bits": n_bits,
                        "n_folds": n_folds,
                        **over_folds(everything, shlex.split(setting), n_bits, n_folds),
                    }
                )
                with kept.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
                print(rows[-1], flush=True)
    lines = ["| setting | bits | folds | " + " | ".join(SHORT) + " |", "|---" * (len(SHORT) + 3) + "|"]
    for row in rows:
        values = [float(np.mean([row[name] for name in names])) for names in SHORT.values()]
        lines.append(
            f"| `{row['setting']}` | {row['n_bits']} | {row['n_folds']} | "
            + " | ".join(f"{value:.3f}" for value in values)
            + " |"
        )
    (out / "validation.md").write_text("\n".join(lines) + "\n")


def over_folds(everything: Part, words: list[str], n_bits: int, n_folds: int) -> dict[str, float]:
    """Mean metrics of a setting over the first ``n_folds`` of five folds."""
    train_rows, _, _ = split(everything.keys)
    order = np.random.default_rng(7).permutation(train_rows)
    folds = np.array_split(order, FOLDS)
    options = {name: as_value(value) for name, _, value in (word.partition("=") for word in words[1:])}
    views = options.pop("views", True)
    found = []
    for seed, fold in enumerate(folds[:n_folds]):
        rest = np.sort(np.setdiff1d(order, fold))
        train, query = everything.take(rest), everything.take(np.sort(fold))
        distances, facts = learn(Variant(words[0], words[0], options, views), train, n_bits, seed)
        found.append({**measure(distances, train, query), "fit_seconds": facts["fit_seconds"]})
    return {name: float(np.mean([row[name] for row in found])) for name in (*COLUMNS, "fit_seconds")}


def as_value(text: str) -> Any:
    """A number, true or false where the text is one, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--out", type=Path, default=Path("results/cross-modal"))
    parser.add_argument("--bits", default="16,32,64,128")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--text-encoder", default=DEFAULT_TEXT_ENCODER)
    parser.add_argument("--validate", action="append", metavar="'METHOD name=value ...'", default=[])
    parser.add_argument("--folds", type=int, default=FOLDS, help="of the five, for --validate")
    arguments = parser.parse_args()
    everything = load(arguments.source, arguments.text_encoder)
    bits, seeds = ([int(word) for word in words.split(",")] for words in (arguments.bits, arguments.seeds))
    if arguments.validate:
        validate(everything, arguments.out, arguments.validate, bits, arguments.folds)
        return
    rows = run(everything, arguments.out, bits, seeds)
    (arguments.out / "table.md").write_text(tables(rows))
    provenance = {
        "command": shlex.join(["python", *(Path(w).name if w == arguments.source else w for w in sys.argv)]),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seeds": seeds,
        "text_encoder": arguments.text_encoder,
        "split_sha256": split(everything.keys)[2]["sha256"],
        "versions": versions(),
    }
    (arguments.out / "provenance.json").write_text(json.dumps(provenance, indent=1) + "\n")


if __name__ == "__main__":
    main()
