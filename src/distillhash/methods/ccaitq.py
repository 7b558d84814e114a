"""CCA-ITQ: canonical correlation of images and texts, then the rotation that loses least by taking signs.

Paper: Gong, Lazebnik, Gordo, Perronnin, "Iterative quantization: a Procrustean approach to learning binary codes for large-scale image
retrieval", TPAMI 2013, section 4 (supervised codes by CCA; here the texts stand where its labels did).
https://doi.org/10.1109/TPAMI.2012.193; the scaling by correlations from Gong, Ke, Isard, Lazebnik, "A multi-view embedding space for
modeling internet images, tags, and their semantics", IJCV 2014. https://arxiv.org/abs/1212.4522

Symbols: X, Y -> centred images and texts, one pair per row; C_xx + r I -> covariances with a ridge; W_x, W_y -> directions, by falling
correlation rho; R -> rotation. Maximises the correlation of X W_x and Y W_y column by column; then minimises ||B - V R||_F^2, V the rows
of both sides.

Departs from the paper in:
1. The rotation is learned on the rows of both modalities, the paper has one.
2. The ridge is a share of the mean variance (``regularisation``), so that it means the same for all features; the paper's is 1e-4.
3. Columns are scaled by rho to the ``power`` and rows to one length before the rotation. Otherwise the modality with the larger
   features would be quantised well at the cost of the other.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt

from distillhash.methods.base import AffineLayers
from distillhash.methods.image_text import CrossModalHasher, TrainingPairs, code_rotation
from distillhash.methods.linear_algebra import canonical_directions


class CCAITQ(CrossModalHasher):
    """CCA and ITQ. ``history_["loss"]`` holds the quantisation error per row before each update, ``history_["correlations"]`` rho.

    Attributes:
        regularisation: Ridge, as a share of each modality's mean variance.
        power: Exponent of rho in the scale of the columns; 0 scales none.
        iterations: Alternating updates of the rotation.
    """

    method = "ccaitq"
    title = "Iterative Quantization: A Procrustean Approach to Learning Binary Codes (its CCA)"
    venue, year = "TPAMI", 2013
    kind = "cross-modal"
    regularisation: Annotated[float, Gt(0)] = 3.0
    power: Annotated[float, Ge(0)] = 1.0
    iterations: Annotated[int, Ge(1)] = 50

    def _fit_pairs(self, pairs: TrainingPairs) -> tuple[AffineLayers, AffineLayers]:
        images, texts = np.asarray(pairs.images, np.float64)[pairs.owners], np.asarray(pairs.texts, np.float64)
        means = images.mean(axis=0), texts.mean(axis=0)
        images, texts = images - means[0], texts - means[1]
        W_x, W_y, rho = canonical_directions(images, texts, self.n_bits, self.regularisation)
        weights = W_x * rho**self.power, W_y * rho**self.power
        rows = np.concatenate([images @ weights[0], texts @ weights[1]])  # (2 t, n_bits)
        rotation, losses = code_rotation(rows, self.iterations, self.seed)
        self.history_ = {"loss": losses, "correlations": rho.tolist()}
        layers = [[(weight @ rotation, np.zeros(self.n_bits))] for weight in weights]
        return AffineLayers(means[0], layers[0], self.activation), AffineLayers(means[1], layers[1], self.activation)
