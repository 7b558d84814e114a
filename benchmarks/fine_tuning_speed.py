"""Images a second and memory while a backbone is trained, on whatever device there is; one JSON object.

    python benchmarks/fine_tuning_speed.py photos/ --images 512
    torchrun --nproc-per-node 2 benchmarks/fine_tuning_speed.py photos/ --images 512

``images_per_second`` is of decoding, augmenting and training, head and loss included; ``cpu_ms_per_image`` is the CPU time of all
processes for it. ``head_step_ms`` is a step on cached features, and ``exchange_ms`` what averaging its gradients between the processes
would add. ``--float32`` switches mixed precision off, for comparison; on a CPU there is none.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from typing import Any

import numpy as np
import torch

from distillhash import distributed, make_hasher
from distillhash.backbones import FeatureCache, ImageInputs, TorchBackbone, extract_features, make_backbone, sized_for
from distillhash.backbones.base import choose_device
from distillhash.methods import heads, training
from distillhash.methods.training import TrainableImages
from distillhash.sources import ImageSource, open_source

HEAD_EPOCHS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--backbone", default="efficientnet-lite2")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--method", default="ssdh")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--float32", action="store_true")
    arguments = parser.parse_args()
    device = distributed.own_device(choose_device(arguments.device))
    if distributed.launched():
        distributed.start(device, lambda message, _: print(message))
    if arguments.float32:
        for module in (heads, training):
            module.mixed_precision = lambda _: None  # type: ignore[attr-defined]
    source = open_source(arguments.source)
    assert isinstance(source, ImageSource)
    source = source.select(np.arange(min(arguments.images, len(source))))
    backbone = make_backbone(arguments.backbone, image_size=arguments.image_size, device=device)
    backbone = backbone if arguments.image_size else sized_for(backbone, source)
    assert isinstance(backbone, TorchBackbone)
    table = extract_features(source, backbone, cache=FeatureCache())
    options: dict[str, Any] = {"device": device, "batch_size": arguments.batch, "fine_tune_batch": arguments.batch}
    hasher = make_hasher(arguments.method, 64, epochs=HEAD_EPOCHS, fine_tune_epochs=arguments.epochs, **options)
    hasher.fit(table.features)  # the first one warms up
    head, _ = timed(lambda: hasher.fit(table.features))
    n_steps = HEAD_EPOCHS * -(-len(table.rows) // arguments.batch)
    images = TrainableImages(ImageInputs(source.select(table.rows), backbone), backbone.network)
    both, cpu = timed(lambda: hasher.fit(table.features, images=images))
    n = len(table.rows) * arguments.epochs
    rank, world = distributed.rank_and_size()
    exchange = 0.0
    if world > 1:
        gradients = [torch.zeros(64, backbone.dim)]

        def exchanges() -> None:
            for _ in range(20):
                distributed.average(gradients)

        exchange, _ = timed(exchanges)
    cuda = device.startswith("cuda")
    peak = (
        torch.cuda.max_memory_allocated(device) if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    parts = distributed.shared_objects((cpu, peak)) if world > 1 else [(cpu, peak)]
    precision = training.mixed_precision(device) or torch.float32
    if rank == 0:
        report = {
            "images": len(table.rows),
            "image_size": backbone.image_size,
            "backbone": backbone.name,
            "batch": arguments.batch,
            "device": torch.cuda.get_device_name(device) if cuda else device,
            "precision": str(precision).removeprefix("torch."),
            "processes": world,
            "images_per_second": round(n / (both - head), 2),
            "cpu_ms_per_image": round(1000 * sum(part[0] for part in parts) / n, 2),
            "peak_mb_a_process": round(max(part[1] for part in parts) / 2**20),
            "head_step_ms": round(1000 * head / n_steps, 3),
            "exchange_ms": round(1000 * exchange / 20, 3),
            "torch": torch.__version__,
        }
        print(json.dumps(report))
    distributed.finish()


def timed(call: Any) -> tuple[float, float]:
    """Wall and CPU seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    main()
