"""A method in a package of its own: a small network whose codes keep the cosines of the features. Not in a paper.

Loss over the pairs of a batch: the mean of (<u_i, u_j> / K - cos(x_i, x_j))^2, with u = tanh(outputs) and features x less their mean.
"""

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn.functional import mse_loss, normalize

from distillhash.methods.heads import Data, ModuleHasher
from distillhash.methods.training import Batch, Targets, row_targets


class SkipNetwork(nn.Module):
    """A linear map, plus a network with one hidden layer."""

    def __init__(self, n_features: int, width: int, n_bits: int) -> None:
        super().__init__()
        self.direct = nn.Linear(n_features, n_bits)
        self.learned = nn.Sequential(nn.Linear(n_features, width), nn.GELU(), nn.Linear(width, n_bits))

    def forward(self, features: Tensor) -> Tensor:
        outputs: Tensor = self.direct(features) + self.learned(features)
        return outputs


class Example(ModuleHasher):
    """Codes that keep cosines. ``width`` is that of the hidden layer; further hyper-parameters: see :class:`ModuleHasher`."""

    method = "example"
    title = "An example of a method"
    venue, year = "this project", 2026
    kind = "similarity preserving"

    width: Annotated[int, Ge(1)] = 64

    def network(self, n_features: int) -> nn.Module:
        return SkipNetwork(n_features, self.width, self.n_bits)

    def targets(self, data: Data) -> Targets:
        features = torch.from_numpy(data.features)
        return row_targets(normalize(features - features.mean(dim=0)))

    def batch_loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        (directions,) = batch.targets
        codes = torch.tanh(outputs)
        return mse_loss(codes @ codes.T / self.n_bits, directions @ directions.T)
