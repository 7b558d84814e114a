"""Hash functions that are torch modules, and what training keeps of networks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distillhash.errors import FormatError
from distillhash.methods.base import read_model_folder
from distillhash.methods.heads import Head, ModuleHasher
from distillhash.methods.training import Batch


class Normalised(nn.Module):
    """Batch statistics, dropout and an integer buffer: what must be saved, or be off in ``project``."""

    def __init__(self, n_features: int, n_bits: int) -> None:
        super().__init__()
        self.norm, self.drop, self.out = nn.BatchNorm1d(n_features), nn.Dropout(0.5), nn.Linear(n_features, n_bits)

    def forward(self, features: Tensor) -> Tensor:
        outputs: Tensor = self.out(self.drop(self.norm(features)))
        return outputs


@dataclass(eq=False, repr=False)
class Module(ModuleHasher):
    method = "module"
    title, venue, year, kind = "A module", "this project", 2026, "regularised"

    def network(self, n_features: int) -> nn.Module:
        return Normalised(n_features, self.n_bits)

    def batch_loss(self, outputs: Tensor, _batch: Batch) -> Tensor:
        return (outputs.abs() - 1).square().mean()


def features(n: int = 50) -> NDArray[Any]:
    return np.random.default_rng(0).standard_normal((n, 7)).astype(np.float32)


def test_a_module_projects_in_float64_and_eval_mode() -> None:
    hasher = Module(5, epochs=3).fit(features())
    state = hasher.state()
    assert hasher.history_["loss"][-1] < hasher.history_["loss"][0]
    assert state["norm.num_batches_tracked"] == 3
    normed = (features() - state["norm.running_mean"]) / np.sqrt(state["norm.running_var"] + 1e-5)
    normed = normed * state["norm.weight"] + state["norm.bias"]
    expected = normed @ state["out.weight"].T + state["out.bias"]
    np.testing.assert_allclose(hasher.project(features()), expected, rtol=1e-6)


def test_training_a_module_leaves_torchs_generator_alone_and_repeats() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = Module(5, epochs=2).fit(features())
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    np.testing.assert_array_equal(Module(5, epochs=2).fit(features()).project(features()), first.project(features()))


def test_a_saved_module_is_checked(tmp_path: Path) -> None:
    hasher = Module(5, epochs=1).fit(features())
    hasher.save(tmp_path)
    config, tensors = read_model_folder(tmp_path)
    loaded = Module(5, epochs=1).restore(config, tensors)
    np.testing.assert_array_equal(loaded.project(features()), hasher.project(features()))
    for damaged in (
        {name: array for name, array in tensors.items() if name != "out.bias"},
        tensors | {"out.weight": np.zeros((4, 7))},
    ):
        other = Module(5)
        with pytest.raises(FormatError, match="does not hold a module of 5 bits"):
            other.restore(config, damaged)
        assert not other.is_fitted


@pytest.mark.parametrize("hidden", [0, 6])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_folded_head_equals_the_network(hidden: int, batch_norm: bool) -> None:
    x = features() * 3 + 1
    head = Head(x, 4, 0, hidden, "gelu", batch_norm)
    for _ in range(3):
        head.train()(torch.from_numpy(x))  # statistics of batch normalisation
    outputs = x - head.mean
    for index, (weight, bias) in enumerate(head.fold()):
        hidden_outputs = torch.nn.functional.gelu(torch.from_numpy(outputs)).numpy() if index else outputs
        outputs = hidden_outputs @ weight + bias
    with torch.no_grad():
        np.testing.assert_allclose(outputs, head.eval()(torch.from_numpy(x)).numpy(), rtol=1e-4, atol=1e-5)
