"""PUDH: unsupervised deep hashing with pseudo labels.

Paper: Zhang, Liu, Long, Shao, "Unsupervised Deep Hashing With Pseudo Labels for Scalable Image Retrieval", IEEE Transactions on Image
Processing 27(4), 2018, pp. 1626-1638. https://doi.org/10.1109/TIP.2017.2781422

Symbols: X -> principal components of the features; Y -> probabilities of the pseudo labels; rho -> canonical correlations of X and Y;
V -> canonical variates of X; R -> rotation; B = sign(V R) -> codes_, which a head then regresses: mean (tanh(outputs) - B)^2.

RECONSTRUCTED: of the paper only the abstract and a survey's account were found. The abstract says: "we convert the unsupervised DH model
into supervised by discovering pseudo labels", and "the framework unifies likelihood maximization, mutual information maximization, and
quantization error minimization so that the pseudo labels can maximumly preserve the distribution of visual features". The survey names
the steps: PCA, pseudo labels by Bayes' rule, correlation between projected features and pseudo labels, a rotation, and a network that
learns the codes. Here the likelihood is that of a Gaussian mixture, the mutual information -1/2 sum log(1 - rho^2) that of canonical
correlation analysis, and the rotation that of ITQ: largely our own method.

Departs from the paper in:
1. The number of clusters, the covariance and the scale of V, unknown, are ours. Canonical correlation leaves the scale of a direction free:
   it gets (rho^2 / (1 - rho^2))^``emphasis``, its variance between clusters over that within, to the power.
2. C clusters have at most C - 1 canonical directions. With more bits than that, V is padded with zero columns, and R, still a rotation
   of all bits, spreads the directions over the bits.
3. The head sits on standardised features of any backbone, frozen unless fine-tuned, and the steps run once; the paper trains a network.
"""

from __future__ import annotations

import warnings
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt
from numpy.typing import NDArray

from distillhash.errors import DataError
from distillhash.methods.heads import Data, HeadHasher
from distillhash.methods.linear_algebra import principal_components, procrustes_rotation
from distillhash.methods.training import Batch, Targets, row_targets
from distillhash.pytorch import Tensor, functional, torch
from distillhash.supervision.clusters import ROWS_PER_CLUSTER

Doubles = NDArray[np.float64]
_SUREST = 0.95  # rho^2 counts at most this, or one well separated cluster would take all bits


class PUDH(HeadHasher):
    """Codes from pseudo labels in closed form, and a head that learns them. Further hyper-parameters: see :class:`HeadHasher`.

    ``codes_`` are the codes regressed, ``clusters_`` the likeliest pseudo labels; ``history_`` also records ``correlations`` (rho) and
    ``quantisation`` (||B - V R||^2 / n before each update of R).

    Attributes:
        components: Principal components kept, at most; fewer than the features drop noise.
        n_clusters: Pseudo labels; at most one per 10 rows are made.
        covariance: Of the mixture: ``tied`` (one for all clusters), ``diag`` or ``spherical`` (one each).
        emphasis: Exponent of rho^2 / (1 - rho^2) in the scale of a direction: 0 gives all directions the same variance.
        ridge: Added to both covariances of the canonical correlation, relative to their mean variance.
        iterations: Updates of the rotation.
    """

    method = "pudh"
    title = "Unsupervised Deep Hashing With Pseudo Labels for Scalable Image Retrieval"
    venue, year = "IEEE TIP", 2018
    kind = "pseudo labels"
    reconstructed = "what each step computes"
    components: Annotated[int, Ge(1)] = 64
    n_clusters: Annotated[int, Ge(2)] = 70
    covariance: Literal["tied", "diag", "spherical"] = "tied"
    emphasis: Annotated[float, Ge(0)] = 1.0
    ridge: Annotated[float, Gt(0)] = 1e-3
    iterations: Annotated[int, Ge(1)] = 50

    def targets(self, data: Data) -> Targets:
        """The codes from pseudo labels."""
        self.codes_: NDArray[np.int8] = self._codes(data.features).astype(np.int8)
        return row_targets(torch.from_numpy(self.codes_.astype(np.float32)))

    def batch_loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Squared error of the relaxed outputs."""
        (codes,) = batch.targets
        return functional.mse_loss(torch.tanh(outputs), codes)

    def _codes(self, features: NDArray[Any]) -> Doubles:
        mean, directions = principal_components(features, min(self.components, features.shape[1]))
        X = (np.asarray(features, np.float64) - mean) @ directions
        if not X.any():
            raise DataError("all rows of the features are equal, so there is nothing to learn from")
        Y = self._pseudo_labels(X)
        self.clusters_: NDArray[np.intp] = Y.argmax(axis=1)
        weight, rho = canonical_directions(X, Y, self.ridge)
        kept = min(self.n_bits, Y.shape[1] - 1, X.shape[1])
        self.history_["correlations"] = rho[:kept].tolist()
        power = np.minimum(rho[:kept] ** 2, _SUREST)
        V = np.zeros((len(X), self.n_bits))
        V[:, :kept] = X @ (weight[:, :kept] * (power / (1 - power)) ** self.emphasis)
        R, self.history_["quantisation"] = procrustes_rotation(V, self.iterations, np.random.default_rng(self.seed))
        return np.where(V @ R >= 0, 1.0, -1.0)

    def _pseudo_labels(self, X: Doubles) -> Doubles:
        """Posterior probabilities ``(n, n_clusters)`` under a mixture of Gaussians of the rows' directions, started by k-means."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture

        lengths = np.linalg.norm(X, axis=1, keepdims=True)
        unit = X / np.where(lengths > 0, lengths, 1)
        n_clusters = max(2, min(self.n_clusters, len(X) // ROWS_PER_CLUSTER))
        mixture = GaussianMixture(
            n_clusters, covariance_type=self.covariance, max_iter=20, random_state=self.seed % 2**32
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a start for the next step, not an estimate
            try:
                return np.asarray(mixture.fit(unit).predict_proba(unit))
            except ValueError as error:  # a covariance that is not positive; whether it happens depends on rounding
                raise DataError(
                    f"no mixture of {n_clusters} Gaussians fits these {len(X)} rows; give more varied ones, lower n_clusters "
                    f"({self.n_clusters}), set covariance to diag, or use another method (itq)"
                ) from error


def canonical_directions(X: Doubles, Y: Doubles, ridge: float) -> tuple[Doubles, Doubles]:
    """Directions of ``X`` (centred) by falling correlation with ``Y``, and the correlations.

    Solves Sxy (Syy + r I)^-1 Syx w = rho^2 (Sxx + r I) w with w' (Sxx + r I) w = 1. ``(d, d)``, a direction a column, and ``(d,)``.
    """
    from scipy.linalg import eigh, solve

    Y = Y - Y.mean(axis=0)
    Sxx, Sxy, Syy = (a.T @ b / len(X) for a, b in ((X, X), (X, Y), (Y, Y)))
    for S in (Sxx, Syy):
        # Pseudo labels that all agree would make a singular matrix.
        S[np.diag_indices_from(S)] += ridge * (np.trace(S) / len(S) or 1.0)
    squares, directions = eigh(Sxy @ solve(Syy, Sxy.T, assume_a="pos"), Sxx)
    return directions[:, ::-1], np.sqrt(np.clip(squares[::-1], 0, 1))
