"""BinaryHasher: any method of features as a scikit-learn transformer, for pipelines, searches over parameters and data frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes, bytes_per_code
from distillhash.errors import DataError, MissingDependencyError, ParameterError
from distillhash.methods.registry import make_hasher, method_class, method_names
from distillhash.metrics import neighbour_recall

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils.validation import check_is_fitted, validate_data  # since 1.6
except ImportError as error:
    raise MissingDependencyError(
        "BinaryHasher needs scikit-learn 1.6 or newer; pip install 'distillhash[sklearn]'"
    ) from error


class BinaryHasher(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]  # sklearn has no types
    """From features to binary codes, as scikit-learn wants it.

    Everything random follows the seed: equal seeds, data and threads give equal codes on one machine.

    Attributes:
        method: A method of features, ``NAME`` or ``NAME:PRESET`` of ``distillhash ls methods``.
        n_bits: Code length K, 1 to 4096.
        packed: Give bytes, ``(n, ceil(K / 8)) uint8`` in the order of :func:`numpy.packbits`, in place of bits, ``(n, K) uint8`` 0 or 1.
        seed: Controls everything random in ``fit``.
        parameters: Hyper-parameters of the method by name; None takes its defaults.
        hasher_: The fitted :class:`~distillhash.Hasher`. Of it are codes, projection, ``save``.
        n_features_in_: Width d of the features.
    """

    def __init__(
        self,
        method: str = "itq",
        n_bits: int = 64,
        *,
        packed: bool = False,
        seed: int = 0,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        self.method = method
        self.n_bits = n_bits
        self.packed = packed
        self.seed = seed
        self.parameters = parameters

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn from ``(n, d)`` finite numbers, n >= 2.

        Labels ``y``, ``(n,)`` integer classes or ``(n, n_labels)`` bool, are for the supervised methods; all others ignore them.

        Raises:
            ParameterError: an unknown method or hyper-parameter, a value out of range, a method of image-text pairs, labels missing.
            DataError: too little data for ``n_bits``, or data that the method cannot learn from.
            ValueError: what scikit-learn refuses, such as NaN, sparse matrices and complex numbers.
        """
        kind = method_class(self.method)
        if kind.needs_texts:
            choices = ", ".join(method_names())
            raise ParameterError(
                f"{self.method} learns from image-text pairs, not from features; choose one of {choices}"
            )
        X = validate_data(self, X, dtype=[np.float32, np.float64], ensure_min_samples=2)
        labels = np.asarray(y) if kind.needs_labels and y is not None else None
        hasher = make_hasher(self.method, self.n_bits, seed=self.seed, **(self.parameters or {}))
        self.hasher_ = hasher.fit(X, labels=labels)
        return self

    def transform(self, X: Any) -> NDArray[np.uint8]:
        """Codes of ``(n, d)`` features: bits ``(n, K) uint8``, or bytes where ``packed``. Row i depends on row i only."""
        codes = self.hasher_.encode(self._checked(X))
        return codes.packed.copy() if self.packed else (codes.signs() > 0).astype(np.uint8)

    def inverse_transform(self, X: Any) -> NDArray[np.float32]:
        """Directions of features that codes of :meth:`transform` stand for, ``(n, d) float32``, of lengths about 1."""
        check_is_fitted(self)
        rows = np.asarray(X)
        if self.packed:
            return self.hasher_.reconstruct(Codes.from_packed(rows, self.n_bits))
        if not np.isin(rows, (0, 1)).all():
            raise DataError("bits to go back from must be 0 or 1; give what transform gave")
        return self.hasher_.reconstruct(Codes.from_signs(2 * rows.astype(np.int8) - 1))

    def score(self, X: Any, y: Any = None) -> float:  # noqa: ARG002  # scikit-learn passes y
        """Neighbour recall@10 of the codes of ``X``, ``(n, d)`` with n >= 2: the higher the better, at most 1.

        For every row: which share of the 10 other rows that are nearest by cosine of the features is among the 10 nearest by code. Ties
        count by expectation, and above 1,000 rows a sample of 1,000 asks, see :func:`distillhash.metrics.neighbour_recall`.
        """
        X = self._checked(X)
        codes = self.hasher_.encode(X)
        found = neighbour_recall(codes, codes, X, X, (10,), (10,), same_items=True)
        return float(found["recall10@10"])

    def _checked(self, X: Any) -> NDArray[Any]:
        check_is_fitted(self)
        checked: NDArray[Any] = validate_data(self, X, dtype=[np.float32, np.float64], reset=False)
        return checked

    @property
    def _n_features_out(self) -> int:
        """How many columns :meth:`transform` gives; scikit-learn names them by it."""
        return bytes_per_code(self.n_bits) if self.packed else self.n_bits

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn asks about an estimator."""
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []
        return tags
