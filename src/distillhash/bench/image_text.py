"""A cross-modal model and sources of pairs together: both directions, under every relevance the sources allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distillhash.errors import DataError
from distillhash.metrics.cross_modal import (
    CodedPairs,
    Relevance,
    evaluate_cross_modal,
    own_items,
    shared_labels,
    word_overlap,
)
from distillhash.models.image_text import CrossModalModel, PairFeatures
from distillhash.sources.pairs import PairSource, open_pairs


@dataclass(frozen=True)
class _Role:
    """Queries, or database: the source and what of it could be used."""

    source: PairSource
    features: PairFeatures
    codes: CodedPairs

    def keys(self) -> list[str]:
        return [self.source.keys[row] for row in self.features.rows]

    def texts(self) -> list[list[str]]:
        assert isinstance(self.source.texts, list)
        grouped: list[list[str]] = [[] for _ in self.features.rows]
        for place, owner in zip(self.features.places, self.features.owners, strict=True):
            grouped[owner].append(self.source.texts[place])
        return grouped


def evaluate_model(
    model: CrossModalModel, query: Any, database: Any, *, progress: bool = False, max_pixels: int | None = None
) -> dict[str, Any]:
    """Retrieval from images to texts and from texts to images.

    Args:
        model: A trained model.
        query: Pairs whose images and texts ask; whatever ``open_pairs`` takes.
        database: Pairs that are searched.
        progress: Show progress on stderr.
        max_pixels: Images above this are skipped.

    Returns:
        What :func:`distillhash.metrics.cross_modal.evaluate_cross_modal` gives, under ``own`` (where some query is in the
        database, by key),
        ``labels`` (where both sources carry them) and ``words`` (where both hold sentences); ``n_images`` and ``n_texts`` of the
        database; ``skipped`` items.

    Raises:
        DataError: no relevance applies, or a source has nothing usable.
    """
    opened = open_pairs(query), open_pairs(database)
    same = query is database or (isinstance(query, str) and query == database)
    asked = _encode(model, opened[0], progress, max_pixels)
    found = asked if same else _encode(model, opened[1], progress, max_pixels)
    relevances = _relevances(asked, found)
    if not relevances:
        raise DataError(
            f"{opened[0].name} and {opened[1].name} share no item, no labels and no words, so nothing says what is relevant; "
            "take the database from the queries' source"
        )
    report = evaluate_cross_modal(asked.codes, found.codes, relevances)
    skipped = asked.features.skipped if same else [*asked.features.skipped, *found.features.skipped]
    sizes = {"n_bits": model.n_bits, "n_images": len(found.codes.images), "n_texts": len(found.codes.texts)}
    return {**report, **sizes, "skipped": skipped}


def _encode(model: CrossModalModel, source: PairSource, progress: bool, max_pixels: int | None) -> _Role:
    features = model.pair_features(source, progress=progress, max_pixels=max_pixels)
    codes = CodedPairs(
        model.hasher.encode_images(features.images), model.hasher.encode_texts(features.texts), features.owners
    )
    return _Role(source, features, codes)


def _relevances(query: _Role, database: _Role) -> dict[str, Relevance]:
    found: dict[str, Relevance] = {}
    keys: tuple[Sequence[str], Sequence[str]] = query.keys(), database.keys()
    if set(keys[0]) & set(keys[1]):
        found["own"] = own_items(*keys)
    labels = query.source.labels, database.source.labels
    if labels[0] is not None and labels[1] is not None:
        found["labels"] = shared_labels(labels[0][query.features.rows], labels[1][database.features.rows])
    if not isinstance(query.source.texts, np.ndarray) and not isinstance(database.source.texts, np.ndarray):
        found["words"] = word_overlap(query.texts(), database.texts())
    return found
