"""Models for others: the model card, golden vectors, and the Hugging Face hub.

A published model folder holds, beside the files of :mod:`distillhash.models.hash_model`, ``README.md``, the model card, and
``golden.safetensors``: ten inputs and their codes. They are compared when the model is loaded, because search in an index of other codes
fails silently.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes
from distillhash.errors import DataError, FormatError, MissingDependencyError, ParameterError, first_line
from distillhash.files import read_file, write_atomic
from distillhash.sources import open_source

if TYPE_CHECKING:
    from distillhash.models.hash_model import HashModel

GOLDEN, CARD = "golden.safetensors", "README.md"
_GOLDEN_ROWS, _CANDIDATES, _GOLDEN_SIDE, _MAX_GOLDEN = 10, 40, 64, 16 * 2**20
_VERSIONS = ("distillhash", "numpy", "PIL", "torch", "onnxruntime")  # of what codes depend on, where it is in use
_NEAR_ZERO = 0.01
"""Golden bits with a projection nearer to 0 than this share of the mean are not compared: a processor may round them to the other side."""


def write_pretrained(
    model: HashModel, folder: Path, name: str, license: str | None, measures: Mapping[str, float] | None
) -> None:
    """What :meth:`HashModel.save_pretrained` does; ``name`` is that of the model in its card."""
    from safetensors.numpy import save

    try:
        from jinja2 import Environment, PackageLoader
    except ImportError as error:
        raise MissingDependencyError("a model card needs Jinja; pip install 'distillhash[hub]'") from error
    public = copy(model)
    config = model.model_config()
    own_files = config["backbone"].get("weights") or model.backbone_name.partition(":")[2]
    if own_files and Path(own_files).expanduser().exists():
        raise ParameterError(
            f"backbone {model.backbone_name} reads {own_files}, which is on this machine alone; train with one of "
            "`distillhash ls backbones`, or with hf:OWNER/NAME from the hub"
        )
    if "source" in model.training:
        public.training = {**model.training, "source": _without_folders(str(model.training["source"]))}
    public.save(folder)
    inputs, packed = _golden(model)
    card = Environment(loader=PackageLoader("distillhash", "models"), trim_blocks=True, lstrip_blocks=True)
    text = card.get_template("card.md.j2").render(
        name=name,
        license=license,
        measures=measures,
        hasher=model.hasher,
        vectors=model.backbone_name == "embeddings",
        backbone=config["backbone"],
        base_model=model.backbone_name.removeprefix("hf:") if model.backbone_name.startswith("hf:") else None,
        text_encoder=config.get("text_encoder", {}).get("name"),
        training=public.training,
        fingerprint=public.fingerprint,
        n_golden=len(inputs),
        versions=[f"{name} {sys.modules[name].__version__}" for name in _VERSIONS if name in sys.modules],
    )
    try:
        write_atomic(folder / GOLDEN, save({"inputs": inputs, "packed": packed}), durable=True)
        write_atomic(folder / CARD, text.encode(), durable=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error.strerror}); give another folder") from error


def _golden(model: HashModel) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Ten drawn inputs and their codes: those whose projections are farthest from 0, with different codes where there are some."""
    rng = np.random.default_rng(0)
    if model.backbone_name == "embeddings":
        lengths = 10.0 ** rng.integers(-3, 7, (_CANDIDATES, 1))  # the scale of the vectors is not known
        inputs: NDArray[Any] = (lengths * rng.standard_normal((_CANDIDATES, model.hasher.n_features_ or 0))).astype(
            np.float32
        )
    else:  # squares of random colours, from one to 16 a side
        sides = [1 << number % 5 for number in range(_CANDIDATES)]
        squares = [np.kron(rng.integers(0, 256, (n, n, 3)), np.ones((_GOLDEN_SIDE // n,) * 2 + (1,))) for n in sides]
        inputs = np.stack(squares).astype(np.uint8)
    projection = _project(model, inputs)
    packed = Codes.from_projection(projection).packed
    size = np.abs(projection)
    order = np.argsort(-size.min(axis=1) / np.maximum(size.mean(axis=1), 1e-30), kind="stable")
    _, first = np.unique(packed[order], axis=0, return_index=True)
    chosen = order[[*np.sort(first), *np.setdiff1d(np.arange(_CANDIDATES), first)][:_GOLDEN_ROWS]]
    return inputs[chosen], packed[chosen]


def _project(model: HashModel, inputs: NDArray[Any]) -> NDArray[np.float32]:
    """Outputs before the sign of images ``(n, h, w, 3) uint8`` or vectors, computed now and not taken from a cache."""
    from distillhash.backbones import iter_features

    batches = iter_features(open_source(inputs), model.backbone)
    return np.concatenate([model.hasher.project(batch.features) for batch in batches])


def compare_golden(model: HashModel, folder: Path) -> None:
    """Raise :class:`FormatError` where this machine gives other codes than the folder holds for its golden vectors, if it has any."""
    from safetensors.numpy import load

    if not (folder / GOLDEN).exists():
        return
    _ = model.backbone  # where it cannot be had, that is the error
    try:
        arrays = load(read_file(folder / GOLDEN, limit=_MAX_GOLDEN))
        inputs, wanted = arrays["inputs"], Codes.from_packed(arrays["packed"], model.n_bits)
        if not 1 <= len(inputs) == len(wanted) <= _GOLDEN_ROWS:
            raise DataError(f"it holds {len(inputs)} inputs and {len(wanted)} codes, not up to {_GOLDEN_ROWS} of both")
        projection = _project(model, inputs)
        if len(projection) != len(inputs):
            raise DataError("not all of its inputs can be used")
    except Exception as error:  # the file may be anybody's, and safetensors raises errors of its own
        raise FormatError(
            f"{folder / GOLDEN} cannot be compared ({first_line(error)}); load_model(folder) does not read it"
        ) from error
    size = np.abs(projection)
    compared = size > _NEAR_ZERO * size.mean(axis=1, keepdims=True)
    differing = ((Codes.from_projection(projection).signs() != wanted.signs()) & compared).sum(axis=1)
    if differing.any():
        raise FormatError(
            f"{differing.sum()} bits in {np.count_nonzero(differing)} of {len(wanted)} golden codes are others here than where "
            f"{folder} was written, so indexes made there would not fit; install the versions that its {CARD} names, or use "
            "load_model(folder), which does not compare"
        )


def upload(
    model: HashModel, repo: str, private: bool | None, license: str | None, measures: Mapping[str, float] | None
) -> str:
    """What :meth:`HashModel.push_to_hub` does."""
    hub = _hub("push_to_hub")
    with TemporaryDirectory() as folder:
        write_pretrained(model, Path(folder), repo, license, measures)
        try:
            hub.create_repo(repo, private=private, exist_ok=True)
            return str(hub.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload a distillhash model"))
        except Exception as error:  # of the hub's client and of the network below it
            raise DataError(
                f"{repo} cannot be written on the hub ({_in_one_line(error)}); try `hf auth login`"
            ) from error


def _hub(what: str) -> Any:
    """The client of the Hugging Face hub."""
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise MissingDependencyError(f"{what} needs huggingface_hub; pip install 'distillhash[hub]'") from error
    return HfApi()


def _in_one_line(error: Exception) -> str:
    """The hub's client tells the reason after the first line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def downloaded(name: str, revision: str | None) -> Path:
    """The folder of a model of the hub in the user's cache of it, downloaded where that is not the newest."""
    hub = _hub(f"{name} is no folder on this machine; to look for it on the hub from_pretrained")
    try:
        return Path(
            hub.snapshot_download(
                name, revision=revision, allow_patterns=["config.json", "model.safetensors", GOLDEN, CARD]
            )
        )
    except Exception as error:  # of the hub's client and of the network below it
        raise DataError(
            f"{name} is no folder on this machine, and the hub does not give it ({_in_one_line(error)}); check name and network"
        ) from error


def _without_folders(source: str) -> str:
    """``cifar10:/home/me/data#train`` -> ``cifar10:data#train``: a source without the path above it."""
    return re.sub(r"[^:#]*[/\\](?=[^/\\#])", "", source)
