"""What shorter vectors and other lengths of vectors cost: truncation, PCA, and rows that are not of length 1.

    python benchmarks/embeddings.py captions.npz grocery.npz --out results/compression

SOURCE is any file of embeddings. The split is that of `distillhash advise`, and the neighbours are the 10 nearest by cosine of the whole
vectors. Means over 3 seeds of neighbour recall@10 by Hamming distance.

1. itq on the first dimensions alone (as one truncates a Matryoshka model), and on as many principal components.
2. Training rows as they are or divided by their lengths, and queries alike, all of the mean
   length of the training rows, or three times as long.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash import make_hasher
from distillhash.bench.advice import Parts, split, unit_rows
from distillhash.codes import hamming_distances
from distillhash.methods.linear_algebra import principal_components
from distillhash.metrics import neighbour_recall
from distillhash.sources import open_source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", metavar="SOURCE")
    parser.add_argument("--methods", default="itq,distillhash-contrast", help="of the second table")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", required=True, metavar="DIR")
    arguments = parser.parse_args()
    lines = [f"    python benchmarks/embeddings.py {' '.join(arguments.sources)} --out {arguments.out}", ""]
    for place in arguments.sources:
        source: Any = open_source(place)
        parts = [split(np.asarray(source.vectors), seed) for seed in range(arguments.seeds)]
        sizes = ", ".join(f"{name} {value:,}" for name, value in parts[0].sizes().items())
        norms = np.linalg.norm(parts[0].train, axis=1)
        lengths = f"lengths of the rows {norms.mean():.3f} (standard deviation {norms.std():.3f})"
        lines += [f"## {Path(place).stem}", "", f"{sizes}; {lengths}.", ""]
        for title, rows in (
            ("vectors", shorter),
            ("method, training rows", lambda p, s: scaled(p, s, arguments.methods)),
        ):
            cells: dict[str, dict[str, list[float]]] = {}
            for seed, part in enumerate(parts):
                for row, column, value in rows(part, seed):
                    cells.setdefault(row, {}).setdefault(column, []).append(value)
                    print(place, row, column, f"{value:.4f}", flush=True)
            columns = list(dict.fromkeys(column for row in cells.values() for column in row))
            lines += [f"| {title} | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
            for row, values in cells.items():
                shown = (f"{np.mean(values[column]):.3f}" if column in values else "" for column in columns)
                lines.append(f"| {row} | {' | '.join(shown)} |")
            lines.append("")
    Path(arguments.out).mkdir(parents=True, exist_ok=True)
    (Path(arguments.out) / "embeddings.md").write_text("\n".join(lines))


def shorter(parts: Parts, seed: int) -> Iterator[tuple[str, str, float]]:
    """Neighbour recall of itq on all dimensions, on the first half and quarter, and on as many principal components."""
    d = parts.train.shape[1]
    mean, components = principal_components(parts.train, d // 2)
    kinds: dict[str, list[NDArray[Any]]] = {f"all {d}": list(parts)}
    for width in (d // 2, d // 4):
        kinds[f"the first {width}"] = [rows[:, :width] for rows in parts]
        kinds[f"{width} principal components"] = [(rows - mean) @ components[:, :width] for rows in parts]
    for name, (train, database, query) in kinds.items():
        for n_bits in (64, 128, 256):
            if n_bits <= train.shape[1]:
                hasher = make_hasher("itq", n_bits, seed=seed).fit(train)
                codes = hasher.encode(query), hasher.encode(database)
                found = neighbour_recall(*codes, parts.query, parts.database, depths=(10,))
                yield name, f"{n_bits // 8} bytes", float(found["recall10@10"])


def scaled(parts: Parts, seed: int, methods: str) -> Iterator[tuple[str, str, float]]:
    """Codes of 128 bits trained on rows as they are or of length 1; queries of other lengths."""
    for method in methods.split(","):
        for name, (train, database, query) in (("as they are", parts), ("of length 1", Parts(*map(unit_rows, parts)))):
            hasher = make_hasher(method, 128, seed=seed).fit(train)
            codes, plain = hasher.encode(database), hasher.encode(query)
            length = float(np.linalg.norm(train, axis=1).mean())
            asked = {
                "queries alike": query,
                "3 times as long": 3 * query,
                "of the mean length": length * unit_rows(query),
            }
            for column, rows in asked.items():
                found = neighbour_recall(hasher.encode(rows), codes, parts.query, parts.database, depths=(10,))
                yield f"{method}, {name}", column, float(found["recall10@10"])
            moved = hamming_distances(hasher.encode(3 * query), plain).diagonal().mean() / 128
            yield f"{method}, {name}", "bits that change at 3 times", float(moved)


if __name__ == "__main__":
    main()
