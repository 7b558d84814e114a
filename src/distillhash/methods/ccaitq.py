"""CCA-ITQ: canonical correlation of images and texts, then the rotation that loses least by taking signs.

Paper: Gong, Lazebnik, Gordo, Perronnin, "Iterative quantization: a Procrustean approach to learning binary codes for large-scale image
retrieval", TPAMI 2013, section 4 (supervised codes by CCA; here the texts stand where its labels did).
https://doi.org/10.1109/TPAMI.2012.193; the scaling by correlations from Gong, Ke, Isard, Lazebnik, "A multi-view embedding space for
modeling internet images, tags, and their semantics", IJCV 2014. https://arxiv.org/abs/1212.4522

Symbols: X, Y -> centred images and texts, a row a pair; C_xx + r I -> covariances with a ridge; W_x, W_y -> directions, by falling
correlation rho; R -> rotation. Maximises the correlation of X W_x and Y W_y column by column; then minimises ||B - V R||_F^2, V the rows
of both sides.

Departs from the paper in:
1. The rotation is learned on the rows of both modalities, the paper has one.
2. The ridge is a share of the mean variance (``regularisation``), so that it means the same for all features; the paper's is 1e-4.
3. Columns are scaled by rho to the ``power`` and rows to length 1 before the rotation: a scale of its own for each modality would else
   decide which of the two is quantised well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import ParameterError
from distillhash.methods.image_text import CrossModalHasher, Side, TrainingPairs
from distillhash.methods.linear_algebra import canonical_directions, code_rotation

Floats = NDArray[np.float64]


@dataclass(eq=False, repr=False)
class CCAITQ(CrossModalHasher):
    """CCA and ITQ. ``history_["loss"]`` holds the quantisation error a row before each update, ``history_["correlations"]`` rho.

    Attributes:
        regularisation: Ridge, as a share of each modality's mean variance.
        power: Exponent of rho in the scale of the columns; 0 scales none.
        iterations: Alternating updates of the rotation.
    """

    method = "ccaitq"
    title = "Iterative Quantization: A Procrustean Approach to Learning Binary Codes (its CCA)"
    venue = "TPAMI"
    year = 2013
    kind = "cross-modal"
    regularisation: float = 3.0
    power: float = 1.0
    iterations: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.regularisation > 0:
            raise ParameterError(f"regularisation must be above 0, got {self.regularisation}")
        if not self.power >= 0:
            raise ParameterError(f"power must be at least 0, got {self.power}")
        if self.iterations < 1:
            raise ParameterError(f"iterations must be at least 1, got {self.iterations}")

    def _fit_pairs(self, pairs: TrainingPairs) -> tuple[Side, Side]:
        images, texts = np.asarray(pairs.images, np.float64)[pairs.owners], np.asarray(pairs.texts, np.float64)
        means = images.mean(axis=0), texts.mean(axis=0)
        images, texts = images - means[0], texts - means[1]
        directions = canonical_directions(images, texts, self.n_bits, self.regularisation)
        scale = directions[2] ** self.power
        weights = directions[0] * scale, directions[1] * scale
        rows = np.concatenate([images @ weights[0], texts @ weights[1]])  # (2 t, n_bits)
        rotation, losses = code_rotation(rows, self.seed, self.iterations)
        self.history_ = {"loss": losses, "correlations": directions[2].tolist()}
        bias = np.zeros(self.n_bits)
        sides = [
            Side(mean, [(weight @ rotation, bias)], self.activation)
            for mean, weight in zip(means, weights, strict=True)
        ]
        return sides[0], sides[1]
