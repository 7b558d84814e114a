"""The engines of inference side by side: the bare network, extraction, uploads of a server, and whether codes are equal.

    python benchmarks/inference_engines.py cifar10:cifar10#test#0:5000 --image-size 128 --out results/inference-engines/cifar10
    python benchmarks/inference_engines.py photos/ --image-size 260 --uploads --out results/inference-engines/photos
    python benchmarks/inference_engines.py cifar10:cifar10#test#0:6000 --image-size 128 --int8 cifar10:cifar10#train#0:100 --out ...

For both engines in turn, round after round: ``bare`` embeds images that are in memory, on one worker a core; ``encoding`` reads, decodes,
resizes and embeds them, into an empty cache; ``uploads`` answers JPEGs in the processes of a server, without HTTP. Reported are medians of
wall time, and of CPU time, which other programs disturb less (uploads run in other processes: wall time alone). Codes are those of `itq`
and the default method, 64 bits, fitted on torch's features.

With ``--int8`` the network in int8 (ranges from the given images) and torch in bf16 stand beside float32: CPU time, bits, MAP, neighbour
recall@10 of `itq` at 64 bits. The first 1,000 items are the queries, the others the database, and it is fitted on the first 2,000 of these.

Writes ``table.json`` with all rounds and ``table.md``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from distillhash import HashModel, make_hasher
from distillhash.backbones import Backbone, Engine, TorchBackbone, extract_features, make_backbone
from distillhash.backbones.onnx import Passes, export_network, quantised
from distillhash.metrics import evaluate_codes
from distillhash.metrics.neighbours import neighbour_recall
from distillhash.serve.encoding import Encoder
from distillhash.serve.settings import Settings
from distillhash.sources import ImageSource, decode_resized, open_source
from extraction_rate import embed_all, extract, measured

ENGINES: tuple[Engine, ...] = ("torch", "onnx")
MOST_UPLOADS = 400


def same_codes(source: ImageSource, backbones: dict[Engine, Backbone]) -> dict[str, Any]:
    """The largest difference of features, relative to the largest, and bits that differ."""
    features = {engine: extract_features(source, backbone).features for engine, backbone in backbones.items()}
    plain, run = (features[engine] for engine in ENGINES)
    found: dict[str, Any] = {"features": float(np.abs(plain - run).max() / np.abs(plain).max()), "images": len(plain)}
    for method in ("itq", "distillhash-nested"):
        hasher = make_hasher(method, 64).fit(plain[: min(len(plain), 2000)])
        codes = [hasher.encode(features[engine]).packed for engine in ENGINES]
        found[method] = int(np.bitwise_count(codes[0] ^ codes[1]).sum())
    return found


async def answered(encoder: Encoder, contents: list[bytes]) -> None:
    await asyncio.gather(*(encoder.encode(content) for content in contents))


def uploads(source: ImageSource, backbones: dict[Engine, Backbone], rounds: int) -> dict[str, list[dict[str, float]]]:
    """Seconds for the same uploads in servers' encoders that run beside each other and take turns."""
    contents = [
        bytes(content)
        for content in map(source.read, range(min(len(source), MOST_UPLOADS)))
        if isinstance(content, bytes)
    ]
    hasher = make_hasher("itq", 64).fit(extract_features(source.select(np.arange(200)), backbones["torch"]).features)
    spent: dict[str, list[dict[str, float]]] = {engine: [] for engine in ENGINES}

    async def take_turns() -> None:
        encoders = {}
        for engine, backbone in backbones.items():
            options: dict[str, Any] = {"image_size": backbone.image_size, "device": "cpu", "engine": engine}
            encoders[engine] = Encoder(HashModel(backbone.name, hasher, **options), Settings(), lambda _: None)
            await encoders[engine].start()
        for _ in range(rounds):
            for engine, encoder in encoders.items():
                started = asyncio.get_running_loop().time()
                await answered(encoder, contents)
                spent[engine].append({"wall": (asyncio.get_running_loop().time() - started) / len(contents)})
        for encoder in encoders.values():
            await encoder.stop()

    asyncio.run(take_turns())
    return spent


def measure(spec: str, name: str, size: int, rounds: int, *, with_uploads: bool) -> dict[str, Any]:
    source = open_source(spec)
    if not isinstance(source, ImageSource):
        raise SystemExit(f"{spec} holds no images")
    backbones = {engine: make_backbone(name, image_size=size, device="cpu", engine=engine) for engine in ENGINES}
    images = np.stack([decode_resized(source.read(row), size) for row in range(len(source))])
    spent: dict[str, Any] = {work: {engine: [] for engine in ENGINES} for work in ("bare", "encoding")}
    for backbone in backbones.values():
        embed_all(backbone, images[:64])
    for _ in range(rounds):
        for engine, backbone in backbones.items():
            for work, run in (
                ("bare", partial(embed_all, backbone, images)),
                ("encoding", partial(extract, source, backbone)),
            ):
                seconds = measured(run)
                spent[work][engine].append({clock: value / len(source) for clock, value in seconds.items()})
    found = {"source": shortened(spec), "backbone": name, "image_size": size, "images": len(source)}
    differ = same_codes(source, backbones)
    if with_uploads:
        spent["uploads"] = uploads(source, backbones, rounds)
    return {**found, "differences": differ, "seconds_an_image": spent}


def in_fewer_bits(source: ImageSource, plain: Backbone, spec: str) -> dict[str, Any]:
    """What int8 and bf16 take and lose."""
    ranges = open_source(spec)
    assert isinstance(plain, TorchBackbone) and isinstance(ranges, ImageSource)
    size = plain.image_size
    network = export_network(plain, as_bytes=True)
    chosen = np.stack([decode_resized(ranges.read(row), size) for row in range(len(ranges))])
    images = np.stack([decode_resized(source.read(row), size) for row in range(len(source))])
    runs: dict[str, Callable[[Any], Any]] = {
        "float32": Passes("float32", network, size),
        "int8": Passes("int8", quantised(network, chosen), size),
        "bf16 (torch)": make_backbone(plain.name, image_size=size, device="cpu", options={"precision": "bf16"}).embed,
    }
    torch.set_num_threads(1)  # as ONNX Runtime has here; waiting threads would count as CPU time
    features: dict[str, Any] = {}
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(2):
        for name, run in runs.items():
            started = time.process_time()
            features[name] = run(images)
            spent[name].append(1000 * (time.process_time() - started) / len(images))
    queries, database = slice(1000), slice(1000, None)
    found: dict[str, Any] = {"images": len(images), "calibration": len(chosen)}
    same = make_hasher("itq", 64).fit(features["float32"][1000:3000])
    codes = {name: same.encode(features[name]).packed for name in runs}
    for name, rows in features.items():
        hasher, labels = make_hasher("itq", 64).fit(rows[1000:3000]), source.labels
        codes_of = hasher.encode(rows[queries]), hasher.encode(rows[database])
        exact = features["float32"]
        near = neighbour_recall(*codes_of, exact[queries], exact[database], ks=(10,), depths=(10,))["recall10@10"]
        report = {} if labels is None else evaluate_codes(*codes_of, labels[queries], labels[database])
        changed = float(np.bitwise_count(codes[name] ^ codes["float32"]).sum() / codes[name].size / 8)
        measured = {"cpu_ms": min(spent[name]), "recall10@10": float(near), "map": report.get("map")}
        found[name] = measured | {"bits_changed": changed}
    return found


def table(found: dict[str, Any]) -> list[str]:
    lines = ["| what | clock | torch, ms an image | ONNX Runtime | times as fast |", "|---|---|---|---|---|"]
    at: dict[tuple[str, str], list[float]] = {}
    for work, by_engine in found["seconds_an_image"].items():
        for clock in by_engine["torch"][0]:
            plain, run = (1000 * float(np.median([one[clock] for one in by_engine[engine]])) for engine in ENGINES)
            at[work, clock] = [plain, run]
            lines.append(f"| {work} | {clock} | {plain:.2f} | {run:.2f} | {plain / run:.2f} |")
    for clock in ("wall", "cpu"):
        shares = [bare / whole for bare, whole in zip(at["bare", clock], at["encoding", clock], strict=True)]
        lines.append(f"| bare / encoding | {clock} | {shares[0]:.2f} | {shares[1]:.2f} | |")
    differ = found["differences"]
    bits = f"{differ['itq']} (itq) and {differ['distillhash-nested']} (distillhash-nested)"
    about = f"{found['source']}, {found['images']} images, {found['backbone']} at {found['image_size']} pixels"
    more = []
    if small := found.get("int8"):
        more = ["", "| arithmetic | CPU ms an image | MAP | recall@10 | bits changed |", "|---|---|---|---|---|"]
        for name, numbers in ((name, part) for name, part in small.items() if isinstance(part, dict)):
            level = "" if numbers["map"] is None else f"{numbers['map']:.4f}"
            more.append(
                f"| {name} | {numbers['cpu_ms']:.2f} | {level} | {numbers['recall10@10']:.3f} | {numbers['bits_changed']:.2%} |"
            )
    return [
        about,
        "",
        *lines,
        "",
        f"Bits that differ, of {64 * differ['images']}: {bits}. Features: {differ['features']:.1e} of the largest.",
        *more,
    ]


def shortened(word: str) -> str:
    return "/".join(Path(word).parts[-2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--backbone", default="efficientnet-lite2")
    parser.add_argument("--image-size", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--uploads", action="store_true")
    parser.add_argument("--int8", metavar="SOURCE", help="images that give the ranges")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    options = arguments.backbone, arguments.image_size, arguments.rounds
    found = measure(arguments.source, *options, with_uploads=arguments.uploads)
    if arguments.int8:
        source, plain = open_source(arguments.source), make_backbone(*options[:1], image_size=options[1], device="cpu")
        assert isinstance(source, ImageSource)
        found["int8"] = in_fewer_bits(source, plain, arguments.int8)
    facts = {
        "command": " ".join(
            ["python", "benchmarks/inference_engines.py", found["source"], *map(shortened, sys.argv[2:])]
        ),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "table.json").write_text(json.dumps({**facts, **found}, indent=1) + "\n")
    (arguments.out / "table.md").write_text("\n".join(table(found)) + "\n")
    print((arguments.out / "table.md").read_text(), file=sys.stderr)


if __name__ == "__main__":
    main()
