"""All deep methods with one recipe, so that what differs is the idea.

    python benchmarks/one_recipe.py cifar10:DIR --out results/one-recipe

Everyone gets the same features, six augmented views of every training image, a head with a hidden layer of 512, batches of 128, Adam at
1e-3 with a cosine schedule, and 12 passes; nobody gets larger images. What is a method's own, such as a temperature or the weight of a
term, is tuned: five settings each (:data:`TUNED`), the first its own default, one seed, 32 bits, by MAP on the carved queries of protocol
cifar10-validation. That uses labels, for every method alike; the queries of the table are others. ``sgh`` has nothing to tune.
The setting that won is then run on cifar10-distillhash. Finished runs are kept in OUT/tuning and OUT/runs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from distillhash.backbones import FeatureCache, make_backbone, sized_for
from distillhash.bench.protocols import load_protocol
from distillhash.bench.report import write_results
from distillhash.bench.runs import Prepared, Provenance, Run, prepare, run_matrix, versions
from distillhash.bench.tables import markdown_lines
from distillhash.methods import table_name
from distillhash.sources import open_source

RECIPE: dict[str, Any] = {
    "hidden": 512,
    "batch_size": 128,
    "epochs": 12,
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "schedule": "cosine",
    "adam_eps": 1e-8,
    "weight_decay": 0.0,
}
PAIRS = [{}, {"scale": 0.25}, {"scale": 1.0}, {"alpha": 1.0}, {"alpha": 2.5}]
PAPER_PAIRS = [{}, {"scale": 0.25}, {"scale": 0.5}, {"alpha": 1.0}, {"alpha": 2.5}]  # its own scale is 1
TUNED: dict[str, list[dict[str, Any]]] = {
    "bihalf:paper": [{}, *({"pull": value} for value in (1.5, 3.0, 12.0, 24.0))],
    "cibhash": [{}, *({"temperature": value} for value in (0.1, 0.2, 0.3, 1.0))],
    "cimon": [{}, *({"temperature": value} for value in (0.1, 0.2, 0.3)), {"contrast": 1.0}],
    "crovca:paper": [{}, *({"diversity": value} for value in (0.025, 0.05, 0.2, 0.4))],
    "deepbit": [{}, {"invariance": 0.25}, {"invariance": 4.0}, {"even": 4.0}, {"quantisation": 0.25}],
    "distillhash": PAIRS,
    "distillhash:paper": PAPER_PAIRS,
    "distillhash-contrast": [{}, *({"temperature": value} for value in (0.1, 0.2, 0.3, 0.5))],
    "distillhash-initial:paper": PAPER_PAIRS,
    "dsg": [{}, {"alpha": 0.5}, {"alpha": 1.5}, {"priority": 0.5}, {"priority": 2.0}],
    "greedyhash": [{}, *({"penalty": value} for value in (0.001, 0.01, 0.1, 1.0))],
    "mls3rduh": [
        {},
        {"neighbour_share": 0.02},
        {"neighbour_share": 0.12},
        {"manifold_ratio": 1.0},
        {"manifold_ratio": 2.5},
    ],
    "nsh": [{}, *({"temperature": value} for value in (0.1, 0.2, 0.5, 1.0))],
    "overview": [{}, *({"temperature": value} for value in (0.05, 0.1, 0.4, 0.8))],
    "pudh": [{}, {"n_clusters": 35}, {"n_clusters": 140}, {"emphasis": 0.5}, {"emphasis": 2.0}],
    "sdc": [{}, {"beta": 1.25}, {"beta": 20.0}, {"quantisation": 0.25}, {"quantisation": 4.0}],
    "sgh": [{}],
    "ssdh:paper": [{}, *({"alpha": value} for value in (1.0, 1.5, 2.5, 3.0))],
    "tbh": [{}, {"latent": 128}, {"latent": 512}, {"adversarial": 1e-4}, {"adversarial": 1e-6}],
    "urph": [{}, *({"code_temperature": value} for value in (0.05, 0.1, 0.4, 0.8))],
}


class SameViews(Prepared):
    """Every method gets the views."""

    def uses_views(self, method: str) -> bool:  # noqa: ARG002
        """Always."""
        return True


def make_prepared(source: Any, protocol: str, backbone: Any) -> SameViews:
    found = prepare(source, load_protocol(protocol), backbone, cache=FeatureCache(), n_views=6)
    return SameViews(**{name: getattr(found, name) for name in found.__dataclass_fields__})


def tune(prepared: Prepared, methods: list[str], folder: Path) -> list[dict[str, Any]]:
    """For every method and setting ``{"method", "settings", "map"}`` on the carved queries."""
    rows = []
    for method in methods:
        for number, settings in enumerate(TUNED[method]):
            ((run, _),) = run_matrix(prepared, [method], [32], [0], RECIPE | settings, folder / str(number))
            rows.append({"method": method, "settings": settings, "map": run.record["map"]})
            print(f"{method} {settings} {run.record['map']:.4f}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backbone", default="efficientnet-lite2")
    parser.add_argument("--bits", default="16,32,64,128")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", default=",".join(TUNED))
    arguments = parser.parse_args()
    methods, bits, seeds = (getattr(arguments, name).split(",") for name in ("methods", "bits", "seeds"))
    source = open_source(arguments.source)
    backbone = sized_for(make_backbone(arguments.backbone), source)
    rows = tune(make_prepared(source, "cifar10-validation", backbone), methods, arguments.out / "tuning")
    best = {method: max((row for row in rows if row["method"] == method), key=_map)["settings"] for method in methods}

    prepared, runs = make_prepared(source, "cifar10-distillhash", backbone), list[Run]()
    for method in methods:
        options = RECIPE | best[method]
        folder = arguments.out / "runs"
        for run, kept in run_matrix(prepared, [method], list(map(int, bits)), list(map(int, seeds)), options, folder):
            runs.append(run)
            print(f"{run.name} {run.record['n_bits']} {run.record['seed']} {run.record['map']:.4f} {kept}", flush=True)
    provenance = Provenance(
        command=f"python benchmarks/one_recipe.py cifar10:DIR --backbone {arguments.backbone} --out results/one-recipe",
        protocol=prepared.protocol.name,
        split_sha256=prepared.split.checksum,
        source="cifar10:DIR",
        backbone=prepared.backbone,
        seeds=list(map(int, seeds)),
        versions=versions(),
        n_views=6,
        settings={"recipe": RECIPE, "tuned": {table_name(method): best[method] for method in methods}},
    )
    write_results(arguments.out, runs, prepared.protocol, provenance)
    (arguments.out / "tuning.json").write_text(json.dumps(rows, indent=1) + "\n")
    (arguments.out / "tuning.md").write_text("\n".join(tuning_lines(rows)) + "\n")


def _map(row: dict[str, Any]) -> float:
    return float(row["map"])


def tuning_lines(rows: list[dict[str, Any]]) -> list[str]:
    """A table of the settings tried, the best of every method in bold, as Markdown."""
    table = [["method", "setting", "MAP, carved queries"]]
    for row in rows:
        is_best = row["map"] == max(map(_map, (other for other in rows if other["method"] == row["method"])))
        words = ", ".join(f"{name} {value:g}" for name, value in row["settings"].items()) or "own default"
        table.append([table_name(row["method"]), words, f"**{row['map']:.4f}**" if is_best else f"{row['map']:.4f}"])
    return markdown_lines(table)


if __name__ == "__main__":
    main()
