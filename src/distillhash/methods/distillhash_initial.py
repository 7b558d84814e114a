"""DistillHash*: the paper's own ablation, its Bayesian learning framework on the initial noisy labels, nothing distilled.

Paper: Yang, Liu, Deng, Liu, Tao, "DistillHash: Unsupervised Deep Hashing by Distilling Data Pairs", CVPR 2019, Table 2.
https://arxiv.org/abs/1905.03465

Symbols: S~ -> initial_pairs_ = pairs_ (Eq. 2); c -> scale; loss: Eq. (10)-(11).
Departs from the paper in: items 1, 2, 4 and 5 of :mod:`distillhash.methods.ssdh`, and the scale c of the inner product, 1/2 as in
the authors' release where the paper prints 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from distillhash.methods.head_hasher import Data, Head
from distillhash.methods.pair_hasher import PairHasher
from distillhash.pairs.similarity import Floats, PairLabels


@dataclass(eq=False, repr=False)
class DistillHashInitial(PairHasher):
    """Half-Gaussian pair labels and the likelihood. Hyper-parameters: see :class:`PairHasher`."""

    method = "distillhash-initial"

    def _pairs(self, distances: Floats, head: Head, data: Data) -> PairLabels:
        del distances, head, data  # trains on the initial labels as they are
        return self.initial_pairs_
