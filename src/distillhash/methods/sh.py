"""SH: spectral hashing.

Paper: Weiss, Torralba, Fergus, "Spectral hashing", NIPS 2008. https://papers.nips.cc/paper/3383-spectral-hashing

Symbols: P -> components_; [a_i, b_i], the range of principal component i -> low_ and width_; k -> the mode number. The graph
Laplacian of a uniform density on that box has the eigenfunctions sin(pi/2 + k pi (v_i - a_i) / (b_i - a_i)), and an eigenvalue
that grows with the frequency k pi / (b_i - a_i): the n_bits lowest frequencies are the bits.
Departs from the paper in: features are centred before PCA, which changes no code. As in the authors' release only modes along one axis
are listed, without products. Values outside the training range keep oscillating, as there.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError
from distillhash.methods.base import Hasher, TrainingSet
from distillhash.methods.linear_algebra import principal_components, row_blocks


class SH(Hasher):
    """Lowest frequencies along the principal components: one component can give several bits.

    Nothing is random: the seed changes nothing.

    For each bit: ``components_`` its principal component, ``low_`` the lowest training value there, ``frequency_`` k pi / range.
    """

    method = "sh"
    title = "Spectral Hashing"
    venue, year = "NIPS", 2008
    kind = "shallow"
    ARRAYS: ClassVar[dict[str, str]] = {"mean": "d", "components": "dk", "low": "k", "frequency": "k"}

    def _fit(self, given: TrainingSet) -> None:
        mean, components = principal_components(given.features, min(self.n_bits, given.features.shape[1]))
        projected = ((block - mean) @ components for block in row_blocks(given.features))
        extremes = np.array([(values.min(axis=0), values.max(axis=0)) for values in projected])  # (blocks, 2, axes)
        low = extremes[:, 0].min(axis=0)
        width = extremes[:, 1].max(axis=0) - low
        if width.max() <= 1e-12 * max(1.0, float(np.abs(mean).max())):  # no more than rounding of the mean
            raise DataError("sh needs training rows that differ; all of them are equal")
        axis, mode = lowest_modes(width, self.n_bits)
        self.mean_, self.components_, self.low_ = mean, components[:, axis], low[axis]
        self.frequency_: NDArray[np.float64] = mode * np.pi / width[axis]

    def _project(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        values = (features - self.mean_) @ self.components_
        return np.asarray(np.cos(self.frequency_ * (values - self.low_)))  # sin(pi / 2 + t) = cos(t)


def lowest_modes(width: NDArray[np.float64], n_bits: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Axis and mode number (from 1) of the ``n_bits`` lowest frequencies k / width, ascending; ties to the earlier axis."""
    # The widest axis alone has n_bits modes, so there are always enough, and modes above its n_bits-th cannot be among the first n_bits.
    # A constant axis has none below that, whether its width is rounded to 0 or not.
    most = np.maximum(np.ceil((n_bits + 1) * width / width.max()).astype(np.intp) - 1, 0)
    axis = np.repeat(np.arange(len(width)), most)
    mode = np.concatenate([np.arange(1, count + 1) for count in most])
    first = np.argsort(mode / width[axis], kind="stable")[:n_bits]
    return axis[first], mode[first]
