"""The engines of inference side by side: the bare network, extraction, uploads of a server, and whether codes are equal.

    python benchmarks/inference_engines.py cifar10:cifar10#test#0:5000 --image-size 128 --out results/inference-engines/cifar10
    python benchmarks/inference_engines.py photos/ --image-size 260 --uploads --out results/inference-engines/photos

For both engines in turn, round after round: ``bare`` embeds images that are in memory, on one worker a core; ``encoding`` reads, decodes,
resizes and embeds them, into an empty cache; ``uploads`` answers JPEGs in the processes of a server, without HTTP. Reported are medians of
wall time, and of CPU time, which other programs disturb less (uploads run in other processes: wall time alone). Codes are those of `itq`
and the default method, 64 bits, fitted on torch's features.
Writes ``table.json`` with all rounds and ``table.md``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from distillhash import HashModel, make_hasher
from distillhash.backbones import extract_features, make_backbone
from distillhash.serve.encoding import Encoder
from distillhash.serve.settings import Settings
from distillhash.sources import ImageSource, decode_resized, open_source
from extraction_rate import embed_all, extract, measured

ENGINES = ("torch", "onnx")
MOST_UPLOADS = 400


def same_codes(source: ImageSource, backbones: dict[str, Any]) -> dict[str, Any]:
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


def uploads(source: ImageSource, backbones: dict[str, Any], rounds: int) -> dict[str, list[dict[str, float]]]:
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
    found = {"source": "/".join(Path(spec).parts[-2:]), "backbone": name, "image_size": size, "images": len(source)}
    differ = same_codes(source, backbones)
    if with_uploads:
        spent["uploads"] = uploads(source, backbones, rounds)
    return {**found, "differences": differ, "seconds_an_image": spent}


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
    return [
        about,
        "",
        *lines,
        "",
        f"Bits that differ, of {64 * differ['images']}: {bits}. Features: {differ['features']:.1e} of the largest.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--backbone", default="efficientnet-lite2")
    parser.add_argument("--image-size", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--uploads", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    options = arguments.backbone, arguments.image_size, arguments.rounds
    found = measure(arguments.source, *options, with_uploads=arguments.uploads)
    facts = {
        "command": " ".join(["python", "benchmarks/inference_engines.py", found["source"], *sys.argv[2:]]),
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
