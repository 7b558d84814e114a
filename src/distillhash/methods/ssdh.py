"""SSDH: semantic structure-based unsupervised deep hashing.

Paper: Yang, Deng, Liu, Liu, Tao, "Semantic Structure-based Unsupervised Deep Hashing", IJCAI 2018, pp. 1064-1070.
https://doi.org/10.24963/ijcai.2018/148

Symbols: D -> cosine distances; d_l, d_r -> thresholds; S -> pairs_; u -> relaxed codes; K -> n_bits.
Loss: sum |S_ij| (<u_i, u_j> / K - S_ij)^2 over a batch, u = tanh(outputs).

Departs from the paper in:
1. The backbone is whatever the features come from, frozen unless fine-tuned, and then without dropout and
   with the batch normalisation it was learned with; the paper fine-tunes a VGG network end to end.
2. Batch size, epochs and step size are for a head on standardised features (released: Adam 1e-3 with epsilon 1, batch 24, 10 epochs).
3. beta is 0, not the released 2: on frozen features more dissimilar pairs measure better, on queries carved from the database side.
4. Self-pairs and self-distances are left out (``self_pairs``, ``self_distances`` bring them back).
5. More than ``max_train`` rows are sampled down, because D is n x n.
"""

from __future__ import annotations

from dataclasses import dataclass

from distillhash.methods.head_hasher import Data, Head
from distillhash.methods.pair_hasher import PairHasher
from distillhash.pairs.losses import PairLoss
from distillhash.pairs.similarity import Floats, PairLabels


@dataclass(eq=False, repr=False)
class SSDH(PairHasher):
    """Half-Gaussian pair labels and the squared loss. Hyper-parameters: see :class:`PairHasher`."""

    method = "ssdh"
    loss: PairLoss = "squared"

    def _pairs(self, distances: Floats, head: Head, data: Data) -> PairLabels:
        del distances, head, data  # SSDH trains on the initial labels as they are
        return self.initial_pairs_
