"""Evaluation of an image-text model: both directions, under every relevance that the sources allow."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from distillhash.errors import DataError
from distillhash.metrics import CodedPairs, evaluate_cross_modal, own_items, shared_labels, word_overlap
from distillhash.metrics.cross_modal import Relevance
from distillhash.models import CrossModalModel, PairFeatures
from distillhash.sources.pairs import PairSource, open_pairs


def evaluate_model(
    model: CrossModalModel, query: Any, database: Any, *, progress: bool = False, max_pixels: int | None = None
) -> dict[str, Any]:
    """Retrieval from images to texts and from texts to images; ``query`` and ``database`` are whatever ``open_pairs`` takes.

    The report is that of :func:`distillhash.metrics.cross_modal.evaluate_cross_modal` under ``own`` (where some query is in the database,
    by key), ``labels`` (where both sources carry them) and ``words`` (where both hold sentences), with ``n_bits``, ``n_images`` and
    ``n_texts`` of the database, and ``skipped`` items.
    """
    same = query is database or (isinstance(query, str) and query == database)
    asked = _encode(model, open_pairs(query), progress, max_pixels)
    found = asked if same else _encode(model, open_pairs(database), progress, max_pixels)
    relevances: dict[str, Relevance] = {}
    sides = asked, found
    keys, others = ([side.source.keys[row] for row in side.features.rows] for side in sides)
    if set(keys) & set(others):
        relevances["own"] = own_items(keys, others)
    labels = [side.source.labels[side.features.rows] for side in sides if side.source.labels is not None]
    if len(labels) == 2:
        relevances["labels"] = shared_labels(*labels)
    if not any(isinstance(side.source.texts, np.ndarray) for side in sides):
        texts: list[list[list[str]]] = [[[] for _ in side.features.rows] for side in sides]
        for side, grouped in zip(sides, texts, strict=True):
            for place, owner in zip(side.features.places, side.features.owners, strict=True):
                grouped[owner].append(str(side.source.texts[place]))
        relevances["words"] = word_overlap(*texts)
    if not relevances:
        raise DataError(
            f"{asked.source.name} and {found.source.name} share no item, no labels and no words, so nothing says what is relevant; "
            "take the database from the queries' source"
        )
    report = evaluate_cross_modal(asked.codes, found.codes, relevances)
    skipped = asked.features.skipped if same else [*asked.features.skipped, *found.features.skipped]
    sizes = {"n_bits": model.n_bits, "n_images": len(found.codes.images), "n_texts": len(found.codes.texts)}
    return {**report, **sizes, "skipped": skipped}


class _EncodedPairs(NamedTuple):
    """A source and what of it could be used."""

    source: PairSource
    features: PairFeatures
    codes: CodedPairs


def _encode(model: CrossModalModel, source: PairSource, progress: bool, max_pixels: int | None) -> _EncodedPairs:
    features = model.pair_features(source, progress=progress, max_pixels=max_pixels)
    images, texts = model.hasher.encode_images(features.images), model.hasher.encode_texts(features.texts)
    return _EncodedPairs(source, features, CodedPairs(images, texts, features.owners))
