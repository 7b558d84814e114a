"""Re-ranking: the nearest by Hamming distance, put in order by something finer.

A short code leaves many items at one distance. Three things tell them apart, by what is at hand:

- ``projection``: the real numbers behind the query's bits against the candidates' bits (asymmetric distance): a bit whose projection was
  close to zero counts little. Needs nothing but the codes.
- ``decoder``: the query's features against features that the model's decoder makes of the candidates' codes; for methods that train one
  (``urph``).
- ``features``: the cosine of the query's features and the candidates' own, for candidates that are image files, read anew where the
  feature cache does not hold them.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes
from distillhash.errors import DataError, ParameterError
from distillhash.index import Item
from distillhash.model import HashModel
from distillhash.sources import open_source

Rerank = Literal["projection", "decoder", "features"]


class Reranker:
    """Scores of candidates by one of the three."""

    def __init__(self, model: HashModel, by: Rerank, *, max_pixels: int | None = None) -> None:
        """Choose.

        Args:
            model: The model the codes come from.
            by: What to score by.
            max_pixels: For ``features``: images above this cannot be candidates.

        Raises:
            ParameterError: an unknown choice, a model without a decoder, or features of embeddings.
        """
        if by not in get_args(Rerank):
            raise ParameterError(f"rerank must be one of {', '.join(get_args(Rerank))}, got {by!r}")
        if by == "decoder" and not hasattr(model.hasher, "reconstruct"):
            raise ParameterError(
                f"the method {model.hasher.method} trains no decoder; re-rank by projection, or train with --method urph"
            )
        if by == "features" and model.backbone_name == "embeddings":
            raise ParameterError(
                "this model takes embeddings, of which an index keeps the codes alone; re-rank by projection"
            )
        self.model, self.by, self.max_pixels = model, by, max_pixels

    def scores(self, feature: NDArray[np.float32], items: list[Item]) -> NDArray[np.float64]:
        """How near every candidate is, larger is nearer.

        Args:
            feature: ``(d,)`` of the query.
            items: ``m`` candidates.

        Returns:
            ``(m,)``.

        Raises:
            DataError: by ``features``, a candidate that is not an image file that can be read.
        """
        if not items:
            return np.zeros(0)
        if self.by == "features":
            return cosines(feature, self._features_of(items))
        codes = Codes(np.concatenate([item.code.packed for item in items]), self.model.n_bits)
        if self.by == "decoder":
            hasher: Any = self.model.hasher
            return decoder_scores(feature, hasher.reconstruct(codes))
        return projection_scores(self.model.hasher.project(feature[None])[0], codes)

    def _features_of(self, items: list[Item]) -> NDArray[np.float32]:
        source = open_source([item.key or "" for item in items])
        batches = list(self.model.encode_batches(source, max_pixels=self.max_pixels))
        for batch in batches:
            if batch.skipped:
                first = batch.skipped[0]
                raise DataError(
                    f"the candidate {first.key!r} cannot be read as an image file ({first.reason}); re-rank by projection"
                )
        return np.concatenate([batch.features for batch in batches])


def projection_scores(projection: NDArray[np.float32], codes: Codes) -> NDArray[np.float64]:
    """Inner products of a query's projection ``(n_bits,)`` and the signs of ``m`` codes, ``(m,)``."""
    return np.asarray(codes.signs().astype(np.float64) @ projection)


def decoder_scores(feature: NDArray[np.float32], rebuilt: NDArray[np.float32]) -> NDArray[np.float64]:
    """Negative squared distances of a feature ``(d,)`` and ``m`` rebuilt ones ``(m, d)``."""
    return np.asarray(-np.square(rebuilt.astype(np.float64) - feature).sum(axis=1))


def cosines(feature: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosines of a feature ``(d,)`` and ``m`` others ``(m, d)``; 0 for a feature of zeros."""
    wide = others.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1) * np.linalg.norm(feature.astype(np.float64))
    return np.asarray(np.divide(wide @ feature, lengths, out=np.zeros(len(wide)), where=lengths > 0))
