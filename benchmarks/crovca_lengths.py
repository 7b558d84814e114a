"""Does MAP fall with the code length for crovca, and is it the method or the features?

    python benchmarks/crovca_lengths.py cifar10=cifar10.npz grocery=grocery.npz captions=captions.npz --out results/crovca

Each NAME=FILE.npz holds ``train (n, d)``, ``views (v, n, d)`` where there are some, ``query``, ``database`` and the labels ``y_query`` and
``y_database``; queries are carved from the side that teaches, never test queries. Two questions for every code length k:

- crovca with its default and with ``preset=paper``: MAP, MAP@1000, P@10, and recall of the 10 nearest neighbours in the first 100.
- The features themselves, as floats, in their k leading principal directions, as they are and whitened: MAP by cosine. The coding rate of
  crovca is largest where all directions have the same variance, which is whitening.

Finished rows are kept in OUT/rows.jsonl, so a stopped run goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash import make_hasher
from distillhash.methods.linear_algebra import directions, principal_components
from distillhash.metrics import evaluate_codes
from distillhash.metrics.neighbours import neighbour_recall

LENGTHS = (16, 32, 64, 128)
SETTINGS: dict[str, dict[str, Any]] = {"crovca": {}, "crovca:paper": {"preset": "paper"}}
FLOATS = ("principal directions", "the same, whitened")
MOST_QUERIES, MOST_DATABASE = 300, 10_000  # of the float rankings


def float_map(data: dict[str, NDArray[Any]], k: int, whiten: bool) -> dict[str, float]:
    """MAP and P@10 of a ranking by cosine in the ``k`` leading principal directions."""
    mean, components = principal_components(data["train"], k)
    scale = ((data["train"] - mean) @ components).std(axis=0) if whiten else np.ones(k)
    rows = np.random.default_rng(0).permutation(len(data["database"]))[:MOST_DATABASE]
    query, database = (
        directions((x - mean) @ components / scale) for x in (data["query"][:MOST_QUERIES], data["database"][rows])
    )
    order = np.argsort(-(query @ database.T), axis=1)
    relevant = data["y_database"][rows][order] == data["y_query"][:MOST_QUERIES, None]
    precision = np.cumsum(relevant, axis=1) / np.arange(1, len(rows) + 1)
    ap = (precision * relevant).sum(axis=1) / np.maximum(relevant.sum(axis=1), 1)
    return {"map": float(ap.mean()), "precision@10": float(precision[:, 9].mean())}


def code_metrics(data: dict[str, NDArray[Any]], setting: str, k: int, seed: int) -> dict[str, float]:
    """Metrics of the codes of a setting."""
    hasher = make_hasher("crovca", k, seed=seed, **SETTINGS[setting]).fit(data["train"], views=data.get("views"))
    codes = hasher.encode(data["query"]), hasher.encode(data["database"])
    found = evaluate_codes(*codes, data["y_query"], data["y_database"])
    mean = data["database"].mean(axis=0)
    recall = neighbour_recall(*codes, data["query"] - mean, data["database"] - mean, depths=(100,))
    wanted = ("map", "map@1000_hits", "precision@10")
    return {name: float(found[name]) for name in wanted} | {"recall10@100": float(recall["recall10@100"])}


def cells(names: list[str], seeds: list[int]) -> Iterator[tuple[str, str, int, int]]:
    """Data set, setting, length and seed of every row."""
    for seed in seeds:
        for name in names:
            for k in LENGTHS:
                yield from ((name, setting, k, seed) for setting in (*SETTINGS, *(FLOATS if seed == seeds[0] else ())))


def table(rows: list[dict[str, Any]]) -> str:
    """Mean and sample standard deviation over seeds, a table a metric."""
    lines: list[str] = []
    for metric in ("map", "map@1000_hits", "precision@10", "recall10@100"):
        lines += [f"### {metric}", "", "| data | | " + " | ".join(f"{k} bits" for k in LENGTHS) + " |"]
        lines.append("|---" * (len(LENGTHS) + 2) + "|")
        for name, setting in sorted({(row["data"], row["setting"]) for row in rows if metric in row}):
            shown = []
            for k in LENGTHS:
                at = (name, setting, k)
                values = [row[metric] for row in rows if (row["data"], row["setting"], row["k"]) == at]
                spread = f" ({np.std(values, ddof=1):.3f})" if len(values) > 1 else ""
                shown.append(f"{np.mean(values):.3f}{spread}" if values else "")
            lines.append(f"| {name} | {setting} | " + " | ".join(shown) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", metavar="NAME=FILE.npz")
    parser.add_argument("--out", type=Path, default=Path("results/crovca"))
    parser.add_argument("--seeds", default="0,1,2")
    arguments = parser.parse_args()
    paths = dict(word.split("=", 1) for word in arguments.data)
    arguments.out.mkdir(parents=True, exist_ok=True)
    kept = arguments.out / "rows.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = {(row["data"], row["setting"], row["k"], row["seed"]) for row in rows}
    loaded: dict[str, dict[str, NDArray[Any]]] = {}
    for cell in cells(list(paths), [int(seed) for seed in arguments.seeds.split(",")]):
        name, setting, k, seed = cell
        if cell in done:
            continue
        if name not in loaded:
            with np.load(paths[name]) as arrays:
                loaded = {name: dict(arrays)}  # one at a time
        data = loaded[name]
        found = float_map(data, k, setting == FLOATS[1]) if setting in FLOATS else code_metrics(data, setting, k, seed)
        rows.append({"data": name, "setting": setting, "k": k, "seed": seed, **found})
        with kept.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        (arguments.out / "table.md").write_text(table(rows))


if __name__ == "__main__":
    main()
