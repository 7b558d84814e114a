"""VGG16, the network of the DistillHash paper: 4096 outputs of fc7 after the ReLU.

Paper: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015. https://arxiv.org/abs/1409.1556
Weights: torchvision's `vgg16-397923af.pth` (ImageNet, 528 MB), downloaded on first use, or a file of your own with the same keys, as
``.pth`` or ``.safetensors``. The SHA-256 of torchvision's file is checked; of another file its first digits, where the name states them.
torchvision itself is not needed. A ``.pth`` is read by torch with ``weights_only``, which makes tensors and runs no code of the file. A
file is at most 1 GiB.
"""

import contextlib
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

from distillhash.backbones.base import Backbone
from distillhash.errors import DataError, FormatError
from distillhash.pytorch import nn, torch
from distillhash.sources.download import check_file, download

URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
SHA256 = "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"
DIM = 4096
MAX_BYTES = 2**30
_CHANNELS = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool")


class VGG16(Backbone):
    """The paper's network up to fc7, without dropout.

    ``weights`` is a file, checked against the SHA-256 digits in its name (``name-0123abcd.pth``) if it has any; without it, torchvision's
    are downloaded into the user's cache.
    """

    def __init__(
        self,
        *,
        image_size: int | None = None,
        weights: str | Path | None = None,
        device: str = "auto",
        allow_download: bool = True,
    ) -> None:
        from safetensors.torch import load_file

        file = Path(weights) if weights is not None else download_weights(URL, allow_download=allow_download)
        if not file.is_file():
            raise DataError(f"there is no weights file at {file}; put it there, or give another with --weights")
        check_sizes(file)
        check_file(file, file, "sha256", _stated_digits(file.name), "delete it, and download it again")
        with torch.device("meta"):  # half a gigabyte that need not be drawn at random first
            network = _network()
        try:
            safe = file.suffix == ".safetensors"
            state = load_file(file) if safe else torch.load(file, map_location="cpu", weights_only=True)
            state = {name: tensor for name, tensor in state.items() if not name.startswith("classifier.6.")}  # fc8
            network.load_state_dict(state, assign=True)
        except Exception as error:
            raise FormatError(
                f"{file} does not hold weights of VGG16 in torchvision's layout; give {URL.rsplit('/', 1)[1]}"
            ) from error
        for weights_of_layer in network.parameters():  # a file may hold rows that overlap, which cannot be trained
            weights_of_layer.data = weights_of_layer.data.contiguous()
        super().__init__("vgg16", network.float(), DIM, image_size or self.default_size, device)
        self._weights = None if weights is None else str(Path(weights).resolve())

    def config(self) -> dict[str, Any]:
        """With the weights file, when one was given."""
        return {**super().config(), **({"weights": self._weights} if self._weights else {})}


def _network() -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for entry in _CHANNELS:
        if isinstance(entry, int):
            layers += [nn.Conv2d(channels, entry, 3, padding=1), nn.ReLU(inplace=True)]
            channels = entry
        else:
            layers.append(nn.MaxPool2d(2, 2))
    classifier = nn.Sequential(
        nn.Linear(512 * 7 * 7, DIM), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(DIM, DIM), nn.ReLU(inplace=True)
    )
    parts = [("features", nn.Sequential(*layers)), ("avgpool", nn.AdaptiveAvgPool2d(7)), ("flatten", nn.Flatten())]
    return nn.Sequential(OrderedDict([*parts, ("classifier", classifier)]))


def check_sizes(file: Path) -> None:
    """Raise :class:`DataError` where a weights file, or what a zip archive says it unpacks to, is above the limit."""
    sizes = [file.stat().st_size]
    if zipfile.is_zipfile(file):
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(file) as archive:
            sizes.append(sum(member.file_size for member in archive.infolist()))
    if max(sizes) > MAX_BYTES:
        raise DataError(f"{file} holds {max(sizes):,} bytes, over the limit of {MAX_BYTES:,}; give weights of VGG16")


def download_weights(url: str, *, allow_download: bool = True) -> Path:
    """Download a weights file into the user's cache, once, checked by its name; :class:`DataError` where that is not allowed."""
    from platformdirs import user_cache_path

    name = url.rsplit("/", 1)[1]
    target = user_cache_path("distillhash") / "weights" / name
    if not target.exists() and not allow_download:
        raise DataError(
            f"the model needs {name} (528 MB), which is not at {target}; put it there, or add --allow-download "
            "(Python: allow_download=True)"
        )
    if not target.exists():
        download(url, target, algorithm="sha256", checksum=_stated_digits(name))
    return target


def _stated_digits(name: str) -> str:
    """The SHA-256 of torchvision's file, or as many of its digits as the name of another states."""
    stated = re.search(r"-([0-9a-f]{8,64})\.(?:pth|safetensors)$", name)
    return SHA256 if name == URL.rsplit("/", 1)[1] else stated[1] if stated else ""
