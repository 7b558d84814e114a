"""Feature extraction against the bare network over images that are in memory already, side by side.

    python benchmarks/extraction_rate.py grocery/train.parquet#0:1000 --image-size 224 --out results/extraction

The bare network gets square ``uint8`` images of its size, on one worker a core as extraction has: no reading, decoding, resizing,
augmentation or cache. Extraction starts from the source and fills an empty cache, once with features alone (encoding) and once with
features, views and teacher. Rounds alternate, and medians are reported: wall time, and CPU time of all threads, which other programs on
the machine disturb less. Writes ``table.json`` with all rounds and ``table.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distillhash.backbones import Backbone, FeatureCache, extract_features, make_backbone
from distillhash.backbones.extract import keep_freed_memory
from distillhash.files import cores
from distillhash.sources import ImageSource, decode_resized, open_source

COLUMNS = ("bare network, ms an image", "encoding", "bare / encoding", "all passes", "all passes / bare")


def measured(work: Callable[[], object]) -> dict[str, float]:
    """Seconds of wall and CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def embed_all(backbone: Backbone, images: NDArray[np.uint8]) -> None:
    """The bare network over all images, a worker a core."""
    keep_freed_memory()  # as extraction does while it runs
    parts = np.split(images, range(backbone.batch_size, len(images), backbone.batch_size))
    with ThreadPoolExecutor(cores(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(backbone.embed, parts))


def extract(source: ImageSource, backbone: Backbone, **wanted: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        extract_features(source, backbone, cache=FeatureCache(folder), **wanted)


def measure(spec: str, backbone: Backbone, n_views: int, rounds: int) -> dict[str, Any]:
    """All rounds, and for wall and CPU time the numbers of ``COLUMNS``."""
    source = open_source(spec)
    if not isinstance(source, ImageSource):
        raise SystemExit(f"{spec} holds no images")
    networks = {"bare": backbone}
    if (larger := backbone.enlarged()) is not None:
        networks["bare teacher"] = larger
    images = {
        name: np.stack([decode_resized(source.read(row), network.image_size) for row in range(len(source))])
        for name, network in networks.items()
    }
    spent: dict[str, list[dict[str, float]]] = {name: [] for name in (*networks, "encoding", "all passes")}
    for _ in range(rounds):
        for name, network in networks.items():
            embed_all(network, images[name][:64])  # takes the memory that extraction has given back
            spent[name].append(measured(partial(embed_all, network, images[name])))
        spent["encoding"].append(measured(partial(extract, source, backbone)))
        spent["all passes"].append(measured(partial(extract, source, backbone, n_views=n_views, teacher=True)))
    medians: dict[str, Any] = {}
    for clock in ("wall", "cpu"):
        at = {name: float(np.median([found[clock] for found in runs])) for name, runs in spent.items()}
        bare = at["bare"] * (1 + n_views) + at.get("bare teacher", 0)
        milliseconds = [1000 * at[name] / len(source) for name in ("bare", "encoding", "all passes")]
        numbers = (*milliseconds[:2], at["bare"] / at["encoding"], milliseconds[2], at["all passes"] / bare)
        medians[clock] = dict(zip(COLUMNS, numbers, strict=True))
    about = {"source": spec, "backbone": backbone.name, "image_size": backbone.image_size, "images": len(source)}
    return {**about, "n_views": n_views, "teacher": larger is not None, "medians": medians, "seconds": spent}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--backbone", default="efficientnet-lite0")
    parser.add_argument("--image-size", type=int, nargs="+", default=[None])
    parser.add_argument("--views", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    lines = ["| source | backbone, size | images | clock | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * 8]
    found = []
    for size in arguments.image_size:
        backbone = make_backbone(arguments.backbone, image_size=size, device="cpu")
        for spec in arguments.sources:
            found.append(result := measure(spec, backbone, arguments.views, arguments.rounds))
            name = "/".join(Path(spec).parts[-2:])
            for clock, numbers in result["medians"].items():
                cells = " | ".join(f"{number:.3g}" for number in numbers.values())
                about = f"| {name} | {backbone.name}, {backbone.image_size} | {result['images']} | {clock} |"
                lines.append(f"{about} {cells} |")
                print(lines[-1], file=sys.stderr, flush=True)
    record = {"command": " ".join(["python", *sys.argv]), "cores": os.cpu_count(), "results": found}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "table.json").write_text(json.dumps(record, indent=1) + "\n")
    (arguments.out / "table.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
