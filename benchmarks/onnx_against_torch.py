"""A backbone exported by torch, through ``onnx:``, against itself in torch: features and time.

    python benchmarks/onnx_against_torch.py cifar10:../shared/data/cifar10#test --images 500

The export is torch's own (``torch.onnx.export``, weights in a file beside). Both backbones get the same decoded images, on one thread.
Differences are relative: of a row its Euclidean norm over that of torch's row, of an element over the largest element. Times are CPU
milliseconds an image, the best of three rounds that alternate. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from distillhash.backbones import TorchBackbone, make_backbone
from distillhash.cli.common import DEFAULT_BACKBONE
from distillhash.sources import ImageSource, decode_resized, open_source


def export(backbone: TorchBackbone, file: Path) -> None:
    """Write the network for images of the backbone's size, any number of them."""
    example = torch.zeros(2, 3, backbone.image_size, backbone.image_size)
    free = ({0: torch.export.Dim("n")},)
    torch.onnx.export(backbone.network, (example,), str(file), dynamic_shapes=free, dynamo=True, verbose=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE, help="one of the EfficientNets")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    source = open_source(arguments.source)
    assert isinstance(source, ImageSource)
    backbone = make_backbone(arguments.backbone, image_size=arguments.image_size, device="cpu", engine="torch")
    assert isinstance(backbone, TorchBackbone)
    rows = np.linspace(0, len(source) - 1, arguments.images).astype(int)
    pixels = np.stack([decode_resized(source.read(int(row)), backbone.image_size) for row in rows])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        export(backbone, file)
        normalisation = {"mean": 127, "std": 128, "rescale_factor": 1}
        exported = make_backbone(f"onnx:{file}", options=normalisation)
    features, milliseconds = {}, dict.fromkeys(("torch", "onnx"), np.inf)
    for _ in range(3):
        for name, one in (("torch", backbone), ("onnx", exported)):
            started = time.process_time()
            features[name] = one.embed(pixels).astype(np.float64)
            milliseconds[name] = min(milliseconds[name], 1000 * (time.process_time() - started) / len(pixels))
    expected, difference = features["torch"], features["onnx"] - features["torch"]
    lengths = np.linalg.norm(difference, axis=1) / np.linalg.norm(expected, axis=1)
    found = {
        "backbone": backbone.name,
        "images": len(pixels),
        "image_size": backbone.image_size,
        "largest_row_difference": lengths.max(),
        "largest_element_difference": np.abs(difference).max() / np.abs(expected).max(),
        "milliseconds": milliseconds,
        "onnxruntime": onnxruntime.__version__,
        "torch": torch.__version__,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
