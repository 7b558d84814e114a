"""Feature extraction against a bare loop of the same backbone over tensors already in memory, side by side.

    python benchmarks/extraction_rate.py cifar10:../shared/data/cifar10#test#0:5000 ../shared/data/flickr8k_mini/pairs.parquet

The bare loop has no reading, decoding, resizing, hashing or caching: normalised channels-last batches wait in memory and go
through the backbone's network in inference mode with torch's own threads, at the best of several batch sizes; once as published
and once with batch normalisation folded, as extraction uses it. Extraction starts from encoded files with an empty cache and
writes that cache. Rounds alternate; medians are reported. Prints one JSON object per source.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time

import numpy as np
import torch

from distillhash.backbones import Backbone, FeatureCache, extract_features, make_backbone
from distillhash.sources import ImageSource, decode_resized, open_source

BATCHES = (8, 16, 32, 64)


def bare_rate(network: torch.nn.Module, batches: list[torch.Tensor], n: int) -> float:
    """Images per second of a plain loop."""
    started = time.perf_counter()
    with torch.inference_mode():
        for batch in batches:
            network(batch)
    return n / (time.perf_counter() - started)


def load(source: ImageSource, backbone: Backbone) -> torch.Tensor:
    """All images of a source, decoded and normalised, in memory."""
    pixels = np.stack([decode_resized(source.read(row), backbone.image_size) for row in range(len(source))])
    parts = [
        backbone.normalise(torch.from_numpy(part).permute(0, 3, 1, 2).float()) for part in np.array_split(pixels, 20)
    ]
    return torch.cat(parts).contiguous(memory_format=torch.channels_last)


def measure(spec: str, backbone: Backbone, rounds: int) -> dict[str, object]:
    source = open_source(spec)
    assert isinstance(source, ImageSource)
    images = load(source, backbone)
    n = len(images)
    networks = {"published": backbone.network, "folded": backbone._inference}
    probes = {
        (name, size): bare_rate(network, list(torch.split(images[:512], size)), 512)
        for name, network in networks.items()
        for size in BATCHES
    }
    best = {name: max(BATCHES, key=lambda size, name=name: probes[name, size]) for name in networks}  # type: ignore[misc]
    rates: dict[str, list[float]] = {"extraction": [], **{name: [] for name in networks}}
    for _ in range(rounds):
        for name, network in networks.items():
            rates[name].append(bare_rate(network, list(torch.split(images, best[name])), n))
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            extract_features(source, backbone, cache=FeatureCache(folder))
            rates["extraction"].append(n / (time.perf_counter() - started))
    medians = {name: float(np.median(values)) for name, values in rates.items()}
    return {
        "source": spec,
        "images": n,
        "images_per_second": {name: round(value, 1) for name, value in medians.items()},
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
    for spec in arguments.sources:
        print(json.dumps(measure(spec, backbone, arguments.rounds)))


if __name__ == "__main__":
    main()
