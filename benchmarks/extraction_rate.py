"""Feature extraction against a bare loop of the same backbone over tensors already in memory, side by side.

    python benchmarks/extraction_rate.py cifar10:../shared/data/cifar10#test#0:5000 ../shared/data/flickr8k_mini/pairs.parquet

The bare loop has no reading, decoding, resizing, hashing or caching: normalised channels-last batches wait in memory and go through
the backbone's network in inference mode with torch's own threads, at the best of several batch sizes; once as published and once with
batch normalisation folded, as extraction runs it. The allocator setting of extraction holds for both. Extraction starts from the
source with an empty cache and writes that cache. Rounds alternate; medians are reported, as a table on stderr and one JSON object
per source on stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time

import numpy as np
import torch

from distillhash.backbones import Backbone, FeatureCache, extract_features, make_backbone
from distillhash.backbones.extract import keep_freed_memory
from distillhash.sources import ImageSource, decode_resized, open_source

BATCHES = (8, 16, 32, 64)
PROBED = 512


def bare_rate(network: torch.nn.Module, images: torch.Tensor, size: int) -> float:
    """Images per second of a plain loop over batches of ``size``."""
    batches = torch.split(images, size)
    keep_freed_memory()  # as extraction does while it runs
    started = time.perf_counter()
    with torch.inference_mode():
        for batch in batches:
            network(batch)
    return len(images) / (time.perf_counter() - started)


def extraction_rate(source: ImageSource, backbone: Backbone) -> float:
    """Images per second of extraction with an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        extract_features(source, backbone, cache=FeatureCache(folder))
        return len(source) / (time.perf_counter() - started)


def load(source: ImageSource, backbone: Backbone) -> torch.Tensor:
    """All images of a source, decoded and normalised, in memory."""
    size = backbone.image_size
    images = torch.empty((len(source), 3, size, size), memory_format=torch.channels_last)
    for row in range(len(source)):
        pixels = torch.from_numpy(decode_resized(source.read(row), size))
        images[row] = backbone.normalise(pixels.permute(2, 0, 1).float())
    return images


def measure(spec: str, backbone: Backbone, rounds: int) -> dict[str, object]:
    source = open_source(spec)
    if not isinstance(source, ImageSource):
        raise SystemExit(f"{spec} holds no images")
    images = load(source, backbone)
    networks = {"published": backbone.network, "folded": backbone.inference}
    best = {}
    for name, network in networks.items():
        bare_rate(network, images[:PROBED], 16)  # warm
        probes = {size: bare_rate(network, images[:PROBED], size) for size in BATCHES}
        best[name] = max(probes, key=probes.__getitem__)
    rates: dict[str, list[float]] = {"extraction": [], **{name: [] for name in networks}}
    for _ in range(rounds):
        for name, network in networks.items():
            rates[name].append(bare_rate(network, images, best[name]))
        rates["extraction"].append(extraction_rate(source, backbone))
    medians = {name: float(np.median(values)) for name, values in rates.items()}
    return {
        "source": spec,
        "backbone": backbone.name,
        "image_size": backbone.image_size,
        "images": len(source),
        "threads": torch.get_num_threads(),
        "images_per_second": {name: [round(value, 1) for value in values] for name, values in rates.items()},
        "median_images_per_second": {name: round(value, 1) for name, value in medians.items()},
        "best_batch_of_bare_loop": best,
        "ratio_to_published": round(medians["extraction"] / medians["published"], 3),
        "ratio_to_folded": round(medians["extraction"] / medians["folded"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--image-size", type=int, default=None)
    arguments = parser.parse_args()
    backbone = make_backbone(image_size=arguments.image_size, device="cpu")
    print(f"{'source':<48} {'published':>10} {'folded':>10} {'extraction':>10} {'ratios':>13}", file=sys.stderr)
    for spec in arguments.sources:
        found = measure(spec, backbone, arguments.rounds)
        medians = found["median_images_per_second"]
        assert isinstance(medians, dict)
        columns = " ".join(f"{medians[name]:>8.1f}/s" for name in ("published", "folded", "extraction"))
        ratios = f"{found['ratio_to_published']:>6} {found['ratio_to_folded']:>6}"
        print(f"{spec[-48:]:<48} {columns} {ratios}", file=sys.stderr)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
