"""The two jobs: duplicates in a collection, and items of one collection that another holds already."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distillhash.dedup.calibration import Calibration, Copies, calibrate, measure_copies
from distillhash.dedup.encoder import Coded, Encoder, encode_or_fail, make_encoder
from distillhash.dedup.groups import Rules, near_rows, star_groups
from distillhash.dedup.keep import CRITERIA, Facts, gather_facts, phash_distance, preference
from distillhash.dedup.matches import match
from distillhash.dedup.parts import connected_parts
from distillhash.dedup.verdicts import Verdicts
from distillhash.errors import DataError
from distillhash.sources import ImageSource, Skipped, Source

if TYPE_CHECKING:
    from distillhash.backbones import FeatureCache

AGREES = 8
"""Perceptual hashes of 64 bits that differ in at most this many say "the same picture"."""


@dataclass(frozen=True)
class Settings:
    """What both jobs take.

    Attributes:
        model: A model folder, or None for codes made for the collection.
        radius: In bits, or None to calibrate.
        most_false_pairs: False pairs to accept, or None for the rule of :func:`distillhash.dedup.calibration.calibrate`.
        mirror: Look for mirror images too, with codes of the features alone.
        device: Where the backbone runs.
        cache: Where features are kept.
        max_pixels: Images above this are skipped.
        progress: Show progress on stderr.
    """

    model: str | None = None
    radius: int | None = None
    most_false_pairs: float | None = None
    mirror: bool = False
    device: str = "auto"
    cache: FeatureCache | None = None
    max_pixels: int | None = None
    progress: bool = False


@dataclass(frozen=True, slots=True)
class Item:
    """One image or vector of a report.

    Attributes:
        path: The file, or the key where the item is no file of its own.
        distance: Bits to the keeper.
        source: Where it can be read.
        row: Its row there.
        facts: What is known of it; None for vectors.
        match: ``keeper``; ``same file`` and ``same pixels`` by digest; ``same picture`` where the perceptual hash agrees, ``similar`` where
            it does not; ``near`` for vectors.
        phash_distance: Bits between its perceptual hash of 64 bits and the keeper's.
    """

    path: str
    distance: int
    source: Source
    row: int
    facts: Facts | None = None
    match: str = "near"
    phash_distance: int | None = None


@dataclass(frozen=True)
class Report:
    """What a job found.

    Attributes:
        calibration: The radius and what is to be expected of it.
        codes: What the codes are.
        groups: Keeper first in each, then by distance.
        skipped: Items that could not be used.
        n_items: Items compared.
        n_aliases: Items left out as other names of a file that is compared.
    """

    calibration: Calibration
    codes: str
    groups: list[list[Item]]
    skipped: list[Skipped]
    n_items: int
    n_aliases: int = 0

    @property
    def n_duplicates(self) -> int:
        """Items that could go."""
        return sum(len(group) - 1 for group in self.groups)


def find_duplicates(
    source: Source,
    settings: Settings | None = None,
    *,
    reference: Source | None = None,
    policy: Sequence[str] = CRITERIA,
    ignore_same_folder: bool = False,
    verdicts: Verdicts | None = None,
) -> Report:
    """Groups of near-duplicates.

    Args:
        source: Images or vectors.
        settings: See :class:`Settings`.
        reference: A collection that is kept whole: groups are then a reference item and what of ``source`` is nearest to it, and
            duplicates within ``source`` or within the reference are not looked for. The order of items changes nothing.
        policy: What makes the better image, see :data:`distillhash.dedup.keep.CRITERIA`.
        ignore_same_folder: Two images in one folder are never linked (bursts, series).
        verdicts: Pairs that people said are no duplicates.

    Raises:
        DataError: nothing usable.
        ParameterError: a setting out of range.
    """
    settings = settings or Settings()
    if reference is not None:
        return _against(source, reference, settings, verdicts or Verdicts())
    source, n_aliases = _without_aliases(source)
    encoder, coded, copies = _encode(source, settings)
    calibration = calibrate(
        coded.codes, copies=copies, radius=settings.radius, most_false_pairs=settings.most_false_pairs
    )
    places = _folders(source, coded.rows) if ignore_same_folder else None
    parts = connected_parts(coded.codes, calibration.radius)
    rules = None if places is None else Rules(places)
    near = near_rows(coded.codes, calibration.radius, rules=rules, parts=parts)
    facts, near = _facts(source, coded.rows, near, settings)
    apart = _apart([facts.get(int(row)) for row in near], verdicts)
    keys = [_path(source, int(coded.rows[row])) for row in near]
    order = preference([facts[int(row)] for row in near], keys, policy) if facts else None
    rules = Rules(None if places is None else places[near], apart)
    stars = star_groups(coded.codes[near], calibration.radius, order=order, rules=rules, parts=parts[near])
    groups = [
        [
            _item(
                source,
                int(coded.rows[near[row]]),
                int(stars.distance[row]),
                facts.get(int(near[row])),
                facts.get(int(near[group[0]])),
                row == group[0],
            )
            for row in group
        ]
        for group in stars.groups()
    ]
    return Report(calibration, encoder.description, groups, coded.skipped, len(coded.rows), n_aliases)


@dataclass(frozen=True)
class Leak:
    """An item of the test set that the training set holds: both, the distance in bits, how many training items are within the radius."""

    test: Item
    train: Item
    n_matches: int


@dataclass(frozen=True)
class LeakReport:
    """What :func:`find_leaks` found; ``calibration`` counts pairs across the two sets."""

    calibration: Calibration
    codes: str
    leaks: list[Leak]
    skipped: list[Skipped] = field(default_factory=list)
    n_train: int = 0
    n_test: int = 0


def find_leaks(train: Source, test: Source, settings: Settings | None = None) -> LeakReport:
    """Test items that have a near-duplicate in the training set, nearest training item each, by (distance, path).

    Raises:
        DataError: nothing usable in one of the two, or images against vectors.
        ParameterError: a setting out of range.
    """
    settings = settings or Settings()
    encoder, coded_train, coded_test, calibration = _across(train, test, settings)
    found = match(coded_test.codes, coded_train.codes, calibration.radius)
    leaks = []
    for place in np.flatnonzero(found.row >= 0).tolist():
        ours, theirs = int(coded_test.rows[place]), int(coded_train.rows[found.row[place]])
        pair = np.array([ours]), np.array([theirs])
        facts = [
            gather_facts(side, rows, max_pixels=settings.max_pixels).get(int(rows[0]))
            if isinstance(side, ImageSource)
            else None
            for side, rows in zip((test, train), pair, strict=True)
        ]
        kept = _item(train, theirs, 0, facts[1], facts[1], is_keeper=True)
        leaked = _item(test, ours, int(found.distance[place]), facts[0], facts[1], is_keeper=False)
        leaks.append(Leak(leaked, kept, int(found.count[place])))
    leaks.sort(key=lambda leak: (leak.test.distance, leak.test.path))
    skipped = coded_train.skipped + coded_test.skipped
    return LeakReport(calibration, encoder.description, leaks, skipped, len(coded_train.rows), len(coded_test.rows))


def _against(source: Source, reference: Source, settings: Settings, verdicts: Verdicts) -> Report:
    encoder, kept, coded, calibration = _across(reference, source, settings)
    files: dict[Any, int] = {}
    places = [
        np.array([_file_number(side, int(row), files) for row in rows.rows], np.int64)
        for side, rows in ((source, coded), (reference, kept))
    ]
    found = match(coded.codes, kept.codes, calibration.radius, query_places=places[0], database_places=places[1])
    held = np.isin(places[0], places[1][places[1] >= 0])  # a file of the reference, reached through the source as well
    members: dict[int, list[int]] = {}
    for place in np.flatnonzero((found.row >= 0) & ~held).tolist():
        members.setdefault(int(found.row[place]), []).append(place)
    groups = []
    for keeper, places_of in sorted(members.items()):
        facts_kept, _ = _facts(reference, kept.rows, np.array([keeper]), settings)
        facts, _ = _facts(source, coded.rows, np.array(places_of), settings)
        first = facts_kept.get(keeper)
        group = [_item(reference, int(kept.rows[keeper]), 0, first, first, is_keeper=True)]
        for place in sorted(places_of, key=lambda one: (int(found.distance[one]), one)):
            fact = facts.get(place)
            if fact is None or first is None or not verdicts.apart(fact.digest, first.digest):
                row, distance = int(coded.rows[place]), int(found.distance[place])
                group.append(_item(source, row, distance, fact, first, is_keeper=False))
        if len(group) > 1:
            groups.append(group)
    skipped = kept.skipped + coded.skipped
    return Report(calibration, encoder.description, groups, skipped, len(kept.rows) + len(coded.rows), int(held.sum()))


def _encode(source: Source, settings: Settings) -> tuple[Encoder, Coded, Copies | None]:
    pixels, progress = settings.max_pixels, settings.progress
    encoder = make_encoder(
        source,
        model=settings.model,
        mirror=settings.mirror,
        device=settings.device,
        cache=settings.cache,
        max_pixels=pixels,
        progress=progress,
    )
    coded = encode_or_fail(encoder, source, max_pixels=pixels, progress=progress)
    return encoder, coded, _copies(encoder, source, coded, settings)


def _across(kept: Source, other: Source, settings: Settings) -> tuple[Encoder, Coded, Coded, Calibration]:
    """Codes of both by one encoder, fitted on the larger, and the radius for pairs across them."""
    if isinstance(kept, ImageSource) != isinstance(other, ImageSource):
        raise DataError(f"{kept.name} and {other.name} cannot be compared: one holds images and the other embeddings")
    larger = kept if len(kept) >= len(other) else other
    encoder, coded_larger, copies = _encode(larger, settings)
    smaller = other if larger is kept else kept
    coded_smaller = encode_or_fail(encoder, smaller, max_pixels=settings.max_pixels, progress=settings.progress)
    first, second = (coded_larger, coded_smaller) if larger is kept else (coded_smaller, coded_larger)
    calibration = calibrate(
        second.codes, first.codes, copies=copies, radius=settings.radius, most_false_pairs=settings.most_false_pairs
    )
    return encoder, first, second, calibration


def _copies(encoder: Encoder, source: Source, coded: Coded, settings: Settings) -> Copies | None:
    if not isinstance(source, ImageSource):
        return None
    return measure_copies(
        encoder,
        source,
        coded.codes,
        coded.rows,
        mirror=settings.mirror,
        max_pixels=settings.max_pixels,
        progress=settings.progress,
    )


def _facts(
    source: Source, rows: NDArray[np.intp], places: NDArray[np.int64], settings: Settings
) -> tuple[dict[int, Facts], NDArray[np.int64]]:
    """Facts by place, and the places that still can be read; vectors have none and stay."""
    if not isinstance(source, ImageSource):
        return {}, places
    found = gather_facts(source, rows[places], max_pixels=settings.max_pixels, progress=settings.progress)
    facts = {int(place): found[int(rows[place])] for place in places if int(rows[place]) in found}
    return facts, np.array([place for place in places if int(place) in facts], np.int64)


def _apart(facts: Sequence[Facts | None], verdicts: Verdicts | None) -> NDArray[np.int64]:
    """Pairs of rows that people keep apart."""
    if verdicts is None or not len(verdicts):
        return np.zeros((0, 2), np.int64)
    by_digest: dict[str, list[int]] = {}
    for row, fact in enumerate(facts):
        if fact is not None:
            by_digest.setdefault(fact.digest, []).append(row)
    pairs = [
        (a, b) for left, right in verdicts for a in by_digest.get(left, []) for b in by_digest.get(right, []) if a != b
    ]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _item(source: Source, row: int, distance: int, facts: Facts | None, kept: Facts | None, is_keeper: bool) -> Item:
    if facts is None or kept is None:
        return Item(_path(source, row), distance, source, row, facts, "keeper" if is_keeper else "near")
    away = phash_distance(facts.phash, kept.phash)
    if is_keeper:
        match = "keeper"
    elif facts.digest == kept.digest:
        match = "same file"
    elif facts.pixels_digest == kept.pixels_digest:
        match = "same pixels"
    else:
        match = "same picture" if away <= AGREES else "similar"
    return Item(_path(source, row), distance, source, row, facts, match, away)


def _path(source: Source, row: int) -> str:
    return source.path(row) or source.keys[row]


def _folders(source: Source, rows: NDArray[np.intp]) -> NDArray[np.int64]:
    """A number for the folder of every item; -1 for items that are no files."""
    numbers: dict[str, int] = {}
    places = np.full(len(rows), -1, np.int64)
    for place, row in enumerate(rows.tolist()):
        if (path := source.path(row)) is not None:
            places[place] = numbers.setdefault(str(Path(path).parent), len(numbers))
    return places


def _file_number(source: Source, row: int, numbers: dict[Any, int]) -> int:
    """A number for the file behind an item, the same under all its names; -1 for items that are no files."""
    path = source.path(row)
    if path is None:
        return -1
    try:
        status = os.stat(path)  # noqa: PTH116  # a Path per file is slower
    except OSError:
        return -1
    return numbers.setdefault((status.st_dev, status.st_ino), len(numbers))


def _without_aliases(source: Source) -> tuple[Source, int]:
    """A source whose every file appears once: further names of a file (links) are no duplicates. Real names go first."""
    if len(source) == 0 or source.path(0) is None:
        return source, 0
    numbers: dict[Any, int] = {}
    files = np.array([_file_number(source, row, numbers) for row in range(len(source))], np.int64)
    links = np.array([Path(source.path(row) or "").is_symlink() for row in range(len(source))])
    order = np.lexsort((np.arange(len(source)), links))
    _, firsts = np.unique(files[order], return_index=True)
    chosen = np.zeros(len(source), bool)
    chosen[order[firsts]] = True
    chosen |= files < 0
    return (source, 0) if chosen.all() else (source.select(np.flatnonzero(chosen)), int((~chosen).sum()))
