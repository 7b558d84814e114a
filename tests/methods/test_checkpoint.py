"""A fit that is stopped while it trains the backbone, and begun again, ends as one that was not."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from distillhash.errors import DataError
from distillhash.methods import training
from distillhash.methods.training import Checkpoint, TrainableImages, mixed_precision
from tunable import VectorImages, backbone, clusters, hasher, labels

# Generators of targets and of networks, a memory, momentum networks, two trainings, batch normalisation, both optimisers.
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("sgh", {}),
    ("cibhash", {"optimizer": "sgd"}),
    ("tbh", {}),
    ("overview", {"memory": 32}),
    ("dmuh", {"optimizer": "adamw", "schedule": "cosine"}),
    ("crovca", {}),
    ("distillhash-contrast", {}),
    ("distillhash", {"estimate": "network", "estimate_epochs": 1, "beta": 0.0}),
]
X = clusters(67)  # batches of 64 and 3 rows


class StoppedError(Exception):
    pass


class Stop:
    """Raises before batch ``at``."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise StoppedError


def fit(method: str, options: dict[str, Any], checkpoint: Checkpoint | None, stop: Any = lambda: None) -> Any:
    made, trunk = hasher(method, **options), backbone()
    images = TrainableImages(VectorImages(X, stop), trunk, checkpoint)
    made.fit(X, images=images, **labels(method, len(X)))
    return made, trunk


@pytest.mark.parametrize(("method", "options"), METHODS, ids=[name for name, _ in METHODS])
def test_a_stopped_fit_goes_on_to_the_same_weights(
    method: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, trunk = fit(method, options, None)
    stopped = 0
    for seconds, stops in ((0.0, (1, 2)), (600.0, (3,))):  # kept after every step; kept after every epoch
        monkeypatch.setattr(training, "KEEP_SECONDS", seconds)
        folder = tmp_path / f"{seconds:.0f}"
        for at in stops:
            try:
                fit(method, options, Checkpoint(folder, {"seed": 0}), Stop(at))
            except StoppedError:
                stopped += 1
        again, other = fit(method, options, Checkpoint(folder, {"seed": 0}))
        assert torch.equal(trunk.weight, other.weight) and torch.equal(trunk.bias, other.bias)
        assert again.history_["loss"] == whole.history_["loss"]
        assert again.history_.get("iteration_loss") == whole.history_.get("iteration_loss")
        state = again.state()
        for name, array in whole.state().items():
            np.testing.assert_array_equal(array, state[name])
    assert stopped == 3


def test_what_a_checkpoint_holds_and_when_it_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    with pytest.raises(StoppedError):
        fit("ssdh", {}, Checkpoint(folder, {"data": "a", "seed": 0}), Stop(3))
    (path,) = folder.iterdir()
    arrays = load_file(path)
    numbers = json.loads(arrays["numbers"].tobytes())
    assert (numbers["epoch"], numbers["done"]) == (1, 0) and len(arrays["losses"]) == 2
    assert arrays["network.0.network.weight"].shape == (20, 20) and arrays["optimizer.0.step"] == 2
    whole, trunk = fit("ssdh", {}, Checkpoint(folder, {"data": "a", "seed": 0}))
    with pytest.raises(
        DataError, match="unfinished training with another data and seed; finish it with its own command"
    ):
        fit("ssdh", {}, Checkpoint(folder, {"data": "b", "seed": 1}))
    done, same = fit("ssdh", {}, Checkpoint(folder, {"seed": 0, "data": "a"}), Stop(2))  # 2: for the medians alone
    assert torch.equal(trunk.weight, same.weight) and done.history_.keys() == whole.history_.keys()
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"is damaged .*; delete .*kept to start again"):
        fit("ssdh", {}, Checkpoint(folder, {"data": "a", "seed": 0}))
    (folder / ".0.partial").write_bytes(b"of a killed process")
    Checkpoint(folder, {}).remove()
    assert not folder.exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").touch()
    Checkpoint(tmp_path / "other", {}).remove()
    assert (tmp_path / "other" / "mine").exists()


def test_the_device_decides_the_precision_of_the_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mixed_precision("cpu") is mixed_precision("mps") is None
    for has, expected in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert mixed_precision("cuda:1") == expected
