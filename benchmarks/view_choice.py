"""Where augmented views help, and whether the share of recognised views tells: `distillhash-contrast` with and without them.

    python benchmarks/view_choice.py --cifar10 cifar10:DIR --grocery DIR --flickr8k pairs.parquet --out results/view-choice

Sets, truths and folds are those of `backbones.py`: no image that any protocol asks with is read, except digits, of which all are cut into
folds. The images of a fold are searched among those of the two others, which are learned from. Six views; with them the teacher, where
images are smaller than in the network's training. 32 bits, one seed a fold. ``recognised`` is
:func:`~distillhash.supervision.agreement.recognised_views` of 500 images and a view of each, and decides; labels are only used to judge.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from backbones import Images, cifar10, flickr8k, folds, grocery, labels_of
from distillhash import make_hasher
from distillhash.backbones import FeatureCache, extract_features, make_backbone, sized_for
from distillhash.bench.runs import versions
from distillhash.cli.common import DEFAULT_BACKBONE
from distillhash.metrics import evaluate_codes, neighbour_recall
from distillhash.sources import ImageSource, open_source
from distillhash.supervision.agreement import ASKED, RECOGNISED, recognised_views

N_BITS, N_VIEWS = 32, 6
VARIANTS = ("itq", "without views", "with views")


def digits() -> Images:
    source = open_source("digits:")
    assert isinstance(source, ImageSource)
    return Images(source, {"digits": load_digits(return_X_y=True)[1]})


def records(name: str, images: Images, size: int | None) -> list[dict[str, Any]]:
    """A row for each variant and truth."""
    backbone = make_backbone(DEFAULT_BACKBONE, image_size=size)
    backbone = sized_for(backbone, images.source) if size is None else backbone
    options: dict[str, Any] = {"cache": FeatureCache(), "n_views": N_VIEWS, "teacher": True, "progress": True}
    found = extract_features(images.source, backbone, **options)
    assert found.views is not None
    rows = np.sort(np.random.default_rng(0).permutation(len(found.rows))[:ASKED])
    share = recognised_views(found.features[rows], found.views[:1, rows])
    out = []
    for variant in VARIANTS:
        measured: dict[str, list[list[float]]] = {truth: [] for truth in images.truths}
        for seed, (query, database) in enumerate(folds(len(found.rows))):
            hasher = make_hasher("itq" if variant == "itq" else "distillhash-contrast", N_BITS, seed=seed)
            teacher = None if found.teacher is None else found.teacher[database]
            views = {"views": found.views[:, database], "teacher": teacher}
            given: dict[str, Any] = views if variant == "with views" else {}
            hasher.fit(found.features[database], **given)
            codes = hasher.encode(found.features[query]), hasher.encode(found.features[database])
            near = neighbour_recall(*codes, found.features[query], found.features[database], (10,), (10,))
            for truth, of_images in images.truths.items():
                metrics = evaluate_codes(*codes, *labels_of(of_images, query, database), cutoffs=(), topn=(10,))
                measured[truth].append([metrics["map"], metrics["precision@10"], near["recall10@10"]])
        for truth, values in measured.items():
            mean, spread = np.mean(values, axis=0).tolist(), np.std(values, axis=0, ddof=1).tolist()
            row = {
                "set": name,
                "truth": truth,
                "images": len(found.rows),
                "pixels": backbone.image_size,
                "recognised": share,
            }
            out.append({**row, "variant": variant, "mean": mean, "spread": spread})
            print(out[-1], flush=True)
    return out


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row for each truth and size."""
    lines = [
        "| truth | images | pixels | recognised | itq: MAP / P@10 / recall@10 | without views | with views | chosen | better MAP |"
    ]
    lines.append("|" + "---|" * 9)
    for itq, plain, seen in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        cells = [
            " / ".join(f"{mean:.3f} ({spread:.3f})" for mean, spread in zip(row["mean"], row["spread"], strict=True))
            for row in (itq, plain, seen)
        ]
        chosen = "without" if plain["recognised"] >= RECOGNISED else "with"
        better = "with" if seen["mean"][0] > plain["mean"][0] else "without"
        lines.append(
            f"| {itq['truth']} | {itq['images']} | {itq['pixels']} | {itq['recognised']:.2f} | {' | '.join(cells)} | {chosen} | {better} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", required=True, metavar="cifar10:DIR")
    parser.add_argument("--grocery", required=True, metavar="DIR")
    parser.add_argument("--flickr8k", required=True, metavar="FILE")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    sets: dict[str, tuple[Images, list[int | None]]] = {
        "digits": (digits(), [None]),
        "flickr8k": (flickr8k(arguments.flickr8k, 1000), [None, 128]),
        "cifar10": (cifar10(arguments.cifar10, 4500), [None]),
        "cifar10, 1,500": (cifar10(arguments.cifar10, 1500), [None]),
        "grocery": (grocery(arguments.grocery, 10_000), [128, None]),
    }
    rows: list[dict[str, Any]] = []
    for name, (images, sizes) in sets.items():
        for size in sizes:
            found = records(name, images, size)
            rows += sorted(found, key=lambda row: list(images.truths).index(row["truth"]))  # variants side by side
            arguments.out.mkdir(parents=True, exist_ok=True)
            (arguments.out / "table.json").write_text(
                json.dumps({"versions": versions(), "rows": rows}, indent=1) + "\n"
            )
            (arguments.out / "table.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
