"""The two jobs: duplicates in a collection, and items of one collection that another holds already."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes, hamming_distances
from distillhash.dedup.alignment import NOWHERE, SCENE, Aligned, Looks, align_pairs, taken_twice
from distillhash.dedup.calibration import (
    EDITED,
    Calibration,
    Edited,
    calibrate,
    calibrate_lookups,
    calibrate_rule,
    check_wanted,
    edit_some,
    with_recall,
)
from distillhash.dedup.codes import RANDOM_BITS, Coded, Encoder, Settings, encode_collection
from distillhash.dedup.edits import HEAVY, LIGHT
from distillhash.dedup.groups import (
    MOST_OPEN,
    Matches,
    Rule,
    Stars,
    central_rows,
    different_pictures,
    join_rows,
    linked_rows,
    match,
    open_pairs,
    rule_parts,
    star_groups,
)
from distillhash.dedup.keep import CRITERIA, Facts, agree, gather_facts, kinds, preference
from distillhash.errors import DataError, FormatError, MissingDependencyError
from distillhash.files import digest, read_file
from distillhash.hamming.search import compiles
from distillhash.index import Index
from distillhash.index import Item as Stored
from distillhash.models import load_model
from distillhash.search import Searcher, is_row
from distillhash.sources import BadItemError, ImageSource, Skipped, Source

FIRST_FRAME, SCENE_MATCH = "same first frame", "same scene"
UNCUT = 0.93  # share of the area from which nothing was cut off
IN_CHAIN = 0.92  # score from which two pictures are the same that copies of one another join
ROUNDS = 3  # keepers of such a chain that are laid on the rest of it
MOST_IN_CHAIN = 30  # of these
MOST_CLOSER = 5  # pairs that are looked at closer, for each item that may be linked
SMALLER = 0.8  # of the pixels: a copy with fewer was made smaller
MOST_CANDIDATES = 1000  # items of the other collection that are looked at where the nearest shows something else
LOOKED_UP = 50_000  # items of an index that tell how far different pictures lie
FEWEST_LOOKED_UP = 1_000  # new pictures that tell it better than the index's own do
CHECKED, CHECKED_PAIRS = 1_000, 150  # items that are looked up to count false matches, and matches that are looked at
AT_ONCE = 1_000  # look-ups, and items read
AGREES = 8  # perceptual hashes of 64 bits that differ in at most this many bits show the same picture
_HEAD = "# pairs that are not duplicates: two content digests, then the two files when it was said\n"


Picture = Callable[[Stored], bytes | NDArray[np.uint8]]


class Verdicts:
    """What people said: pairs that are not duplicates, by content, so that files may move.

    A text file with a pair of content digests per line; read whole, appended to.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Read the file if it is there; None keeps nothing.

        A :class:`DataError` where it cannot be read, a :class:`FormatError` where a line is not a pair of digests.
        """
        self.path = path
        self._pairs: set[tuple[str, str]] = set()
        if path is None:
            return
        try:
            text = read_file(path).decode("utf-8", "replace")
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}); give --verdicts FILE") from error
        for number, line in enumerate(text.splitlines(), 1):
            if line.startswith("#") or not line.strip():
                continue
            words = line.split("\t")
            if len(words) < 2 or any(len(word) != 32 for word in words[:2]):
                raise FormatError(f"line {number} of {path} is not two content digests; repair or remove it")
            self._pairs.add(_sorted(words[0], words[1]))

    def __len__(self) -> int:
        return len(self._pairs)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """The pairs, sorted."""
        return iter(sorted(self._pairs))

    def apart(self, a: str, b: str) -> bool:
        """Whether people said that these contents are no duplicates."""
        return _sorted(a, b) in self._pairs

    def add(self, a: Path, b: Path) -> None:
        """Remember that two files are no duplicates; on the disk when this returns."""
        try:
            pair = _sorted(*(digest(path.read_bytes()).hex() for path in (a, b)))
        except OSError as error:
            raise DataError(f"{error.filename} cannot be read ({error.strerror}); give two image files") from error
        if pair in self._pairs:
            return
        self._pairs.add(pair)
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                names = (str(path.absolute()).replace("\t", " ").replace("\n", " ") for path in (a, b))
                file.write((_HEAD if file.tell() == 0 else "") + "\t".join([*pair, *names]) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DataError(f"{self.path} cannot be written ({error.strerror}); give --verdicts FILE") from error


def _sorted(a: str, b: str) -> tuple[str, str]:
    return (a, b) if a <= b else (b, a)


@dataclass(frozen=True, slots=True)
class Item:
    """One image or vector of a report."""

    path: str  # the file, or the key where the item is no file
    distance: int  # bits to the keeper
    source: Source  # where it can be read
    row: int  # its row there
    facts: Facts | None = None  # None for vectors
    match: str = "near"  # by codes alone; or ``keeper``, ``same file``, ``same pixels``, ``copy`` and others: see _item
    phash_distance: int | None = None  # bits between its perceptual hash of 64 bits and the keeper's
    found_by: str | None = None  # ``hash``, ``features and hash`` or ``alignment``; None for the keeper
    edits: tuple[str, ...] = ()  # what it looks as if was done to one of the two
    aligned: Aligned | None = None  # how it lies on its keeper (the first), where that was looked at


@dataclass(frozen=True)
class Report:
    """What :func:`find_duplicates` found."""

    calibration: Calibration
    codes: str  # what the codes are
    groups: list[list[Item]]  # keeper first in each, then by distance
    skipped: list[Skipped]  # items that could not be used
    n_items: int  # items compared
    n_aliases: int = 0  # items left out as other names of a file that is compared
    first_frames: list[list[Item]] = field(default_factory=list)  # like groups, by the first frame alone; all stay
    scenes: list[list[Item]] = field(default_factory=list)  # like groups, of one scene each, and no copies
    n_looked_at: int = 0  # pairs that codes left open

    @property
    def n_duplicates(self) -> int:
        """Items that could go."""
        return sum(len(group) - 1 for group in self.groups)


class IndexedImages(ImageSource):
    """The pictures of some items of an index, where they can be found."""

    def __init__(self, name: str, items: Sequence[Stored], picture: Picture) -> None:
        """``picture`` gives the content of an item, whose digest is what the index holds, or raises :class:`DataError`."""
        super().__init__(name, [item.key or f"item {item.id}" for item in items])
        self._items, self._picture = list(items), picture

    def _take(self, rows: NDArray[np.intp]) -> None:
        self._items = [self._items[row] for row in rows.tolist()]

    def path(self, row: int) -> str | None:
        """The file that was indexed, if the item is one."""
        item = self._items[row]
        return item.key if item.key and os.path.isabs(item.key) and not is_row(item) else None  # noqa: PTH117  # any text

    def read(self, row: int) -> bytes | NDArray[np.uint8]:
        """The content of an item; a :class:`BadItemError` where it is gone or has changed."""
        try:
            return self._picture(self._items[row])
        except DataError as error:
            raise BadItemError(str(error)) from error


@dataclass(frozen=True)
class Indexed:
    """An index that new items are looked up in, with its model, and what reads the picture of an item (:class:`IndexedImages`)."""

    name: str
    searcher: Searcher
    picture: Picture


@dataclass(frozen=True)
class Leak:
    """A test item that the training set holds: both, and how many training items are within the radius. Also of a reference."""

    test: Item
    train: Item
    n_matches: int


@dataclass(frozen=True)
class LeakReport:
    """What :func:`find_leaks` found; ``calibration`` counts pairs across the two sets."""

    calibration: Calibration
    codes: str
    leaks: list[Leak]
    skipped: list[Skipped]
    n_train: int
    n_test: int


def find_duplicates(
    source: Source,
    settings: Settings | None = None,
    *,
    reference: Source | Indexed | None = None,
    policy: Sequence[str] = CRITERIA,
    ignore_same_folder: bool = False,
    first_frame: bool = False,
    verdicts: Verdicts | None = None,
) -> Report:
    """Groups of near-duplicates.

    Args:
        source: Images or vectors.
        settings: Model, radius and how to read.
        reference: A collection that is kept whole: groups are then a reference item and what of ``source`` is nearest to it, and
            duplicates within ``source`` or within the reference are not looked for; ``policy`` and ``ignore_same_folder`` do nothing. Of an
            index, items whose pictures cannot be read are matched by codes alone.
        policy: What makes the better image, see :data:`distillhash.dedup.keep.CRITERIA`.
        ignore_same_folder: Two images in one folder are never linked (bursts, series).
        first_frame: Frames and pages after the first do not count: what agrees in the first is a duplicate.
        verdicts: Pairs that people said are no duplicates.

    Raises:
        DataError: nothing usable.
        ParameterError: a setting out of range.
    """
    settings, verdicts = settings or Settings(), verdicts or Verdicts()
    _check(source, settings, reference)
    if reference is not None:
        return _against(source, reference, settings, first_frame, verdicts)
    source, n_aliases = _without_aliases(source)
    encoder, coded = encode_collection(source, settings)
    calibration = _calibrated(encoder, source, coded, coded, None)
    found = _Pairs(source, coded, calibration.rule, settings)
    places = _folders(source, coded.rows) if ignore_same_folder else None
    near = linked_rows(found.parts, places)
    facts = gather_facts(source, coded.rows[near], settings)
    if isinstance(source, ImageSource):
        near = near[[row in facts for row in coded.rows[near].tolist()]]  # what can still be read
    rows = coded.rows[near].tolist()
    codes, parts = coded.codes[near], found.parts[near]
    rules: dict[str, Any] = {"places": None if places is None else places[near], "parts": parts}
    by_first = by_all = None
    if facts:
        known = [facts[row] for row in rows]
        by_hash = replace(calibration.rule, radius=-1).certain()
        central = central_rows(codes, by_hash, parts) if by_hash.hash_radius >= 0 else None
        rules["order"] = preference(known, [_path(source, row) for row in rows], policy, central)
        rules["apart"] = _apart([fact.digest for fact in known], verdicts)
        by_first, by_all = (kinds(known, parts, first_frame=first) for first in (True, first_frame))
    certain = calibration.rule.certain()
    stars = star_groups(codes, certain, kinds=by_all, linked=found.linked(near), **rules)
    for nth in range(ROUNDS if calibration.rule.leaves_open and facts else 0):
        found.look_around(near, stars, rules["order"], nth)
        stars = star_groups(codes, certain, kinds=by_all, linked=found.linked(near), **rules)
    kept_apart = rules.get("apart")
    while facts and found.look_closer(near, stars):
        rules["apart"] = np.concatenate([kept_apart, found.taken_twice(near)])
        stars = star_groups(codes, certain, kinds=by_all, linked=found.linked(near), **rules)
    own = np.arange(len(near))
    if by_all is not None and (doubtful := found.doubtful(near, stars)).any():
        alone = np.where(doubtful, -1 - own, by_all)
        stars = star_groups(codes, certain, kinds=alone, linked=found.linked(near), **rules)

    def items(made: Stars, match: str | None) -> list[list[Item]]:
        groups = []
        for group in made.groups():
            keeper, *others = group.tolist()
            kept = facts.get(rows[keeper])
            groups.append([_item(source, rows[keeper], 0, kept, kept, "keeper")])
            for place, distance in zip(others, made.distance[group[1:]].tolist(), strict=True):
                fact = facts.get(rows[place])
                label = match or (FIRST_FRAME if first_frame and fact and kept and not agree(fact, kept) else None)
                item = _item(source, rows[place], distance, fact, kept, label)
                groups[-1].append(found.explained(item, int(near[keeper]), int(near[place]), kept))
        return groups

    groups, first_frames, scenes = items(stars, None), [], []
    if by_first is not None and by_all is not None:
        # Keepers and what is alone, by their first frames: groups of what would be one but for the others.
        alone = stars.keeper == own
        by_first = np.where(alone, by_first, -1 - own)
        again = star_groups(codes, certain, kinds=by_first, linked=found.linked(near), **rules)
        first_frames = items(again, FIRST_FRAME)
        by_scene = np.where(alone & (again.keeper == own), by_all, -1 - own)
        none = Rule(-1, encoder.hashes, encoder.model.n_bits)
        rules["apart"] = kept_apart
        scenes = items(star_groups(codes, none, kinds=by_scene, linked=found.scenes(near), **rules), SCENE_MATCH)
    return Report(
        calibration,
        encoder.description,
        groups,
        coded.skipped,
        len(coded.rows),
        n_aliases,
        first_frames,
        scenes,
        len(found.aligned),
    )


class _Pairs:
    """Pairs of a collection that the codes leave open, and how they lie on each other."""

    def __init__(self, source: Source, coded: Coded, rule: Rule, settings: Settings) -> None:
        """Look at all pairs that decide what belongs together; ``parts`` joins what may be linked."""
        self._coded, self._rule, self._settings = coded, rule, settings
        self._looks: Looks | None = None
        if isinstance(source, ImageSource) and compiles():
            self._looks = Looks(source, settings.max_pixels)
        self.aligned: dict[tuple[int, int], Aligned] = {}
        self._checked = np.full(len(coded.rows), -1)  # the keeper that each was looked at closer with
        self._n_checked = 0
        self._twice: list[tuple[int, int]] = []
        self._same: list[tuple[int, int]] = []
        self.parts = rule_parts(coded.codes, rule)
        if rule.leaves_open:
            pairs, chains = open_pairs(coded.codes, rule, self.parts)
            self._look(pairs)
            self._chains = join_rows(chains, _pairs(self._same))
            self.parts = join_rows(self._chains, self._scenes())

    def _look(self, pairs: NDArray[np.int64], least: float | None = None) -> None:
        """Lay what was not yet on each other; they are one where :attr:`Aligned.same` says so, or from a score of ``least``."""
        assert self._looks is not None
        new = _pairs([(a, b) for a, b in pairs.tolist() if (a, b) not in self.aligned])
        rows = self._coded.rows[new]
        for (a, b), found in zip(
            new.tolist(), align_pairs(self._looks, self._looks, rows, progress=self._settings.progress), strict=True
        ):
            self.aligned[a, b] = found
            if found.same or (least is not None and found.score >= least):
                self._same.append((a, b))

    def _scenes(self) -> NDArray[np.int64]:
        return _pairs([pair for pair, found in self.aligned.items() if found.score >= SCENE] + self._twice)

    def look_closer(self, near: NDArray[np.int64], stars: Stars) -> bool:
        """Look closer at members on their keepers; whether some are two photographs of one scene, so that groups are to be made again.

        Of a burst whose frames are all near to each other this may be any pair, so it ends at ``MOST_CLOSER`` pairs for each item; see
        :meth:`doubtful`.
        """
        keeper, new = near[stars.keeper], near[self._unseen(near, stars)]
        new = new[: max(0, MOST_CLOSER * len(near) - self._n_checked)]
        if self._looks is None or not len(new):
            return False
        keeper = keeper[np.searchsorted(near, new)]
        self._checked[new], self._n_checked = keeper, self._n_checked + len(new)
        pairs = np.sort(np.stack([keeper, new], 1), axis=1)
        pairs = pairs[np.lexsort((new, keeper))]  # what is decoded for one keeper is decoded once
        known = [self.aligned.get((a, b)) for a, b in pairs.tolist()]
        rows = self._coded.rows[pairs]
        twice = taken_twice(self._looks, self._looks, rows, known, progress=self._settings.progress)
        self._twice += [(a, b) for a, b in pairs[np.array(twice)].tolist()]
        return any(twice)

    def doubtful(self, near: NDArray[np.int64], stars: Stars) -> NDArray[np.bool_]:
        """Which members were not looked at on their keepers, where one of the two is of a scene that was photographed twice.

        They count as such photographs themselves.
        """
        keeper, photographed = near[stars.keeper], np.unique(_pairs(self._twice))
        found = self._unseen(near, stars) & (np.isin(near, photographed) | np.isin(keeper, photographed))
        self._twice += np.sort(np.stack([keeper, near], 1)[found], axis=1).tolist()
        return found

    def _unseen(self, near: NDArray[np.int64], stars: Stars) -> NDArray[np.bool_]:
        """Which members were not looked at closer on their keepers; equal files need not be."""
        keeper, digests = near[stars.keeper], self._coded.digests
        unseen: NDArray[np.bool_] = (digests[keeper] != digests[near]) & (self._checked[near] != keeper)
        return unseen

    def taken_twice(self, near: NDArray[np.int64]) -> NDArray[np.int64]:
        """Pairs that are two photographs of one scene, as places in ``near``."""
        return _places_in(near, _pairs(self._twice))

    def linked(self, near: NDArray[np.int64]) -> NDArray[np.int64]:
        """Pairs that are one picture, as places in ``near``."""
        return _places_in(near, _pairs(self._same))

    def scenes(self, near: NDArray[np.int64]) -> NDArray[np.int64]:
        """Pairs that show one scene."""
        return _places_in(near, self._scenes())

    def look_around(self, near: NDArray[np.int64], stars: Stars, order: NDArray[np.int64], nth: int) -> None:
        """Lay the ``nth`` keeper of every chain of copies on what of the chain belongs to no keeper before it, nor to itself."""
        chain = self._chains[near]
        rank = np.empty(len(near), np.int64)
        rank[order] = np.arange(len(near))
        pairs = []
        by_chain = np.lexsort((rank[stars.keeper], chain))
        for members in np.split(by_chain, np.flatnonzero(np.diff(chain[by_chain])) + 1):
            keepers = list(dict.fromkeys(stars.keeper[members].tolist()))
            if len(keepers) > nth + 1:
                later = members[np.isin(stars.keeper[members], keepers[nth + 1 :])][:MOST_IN_CHAIN]
                pairs += [sorted((int(near[keepers[nth]]), int(near[one]))) for one in later.tolist()]
        self._look(_pairs(pairs), IN_CHAIN)

    def explained(self, item: Item, keeper: int, row: int, kept: Facts | None) -> Item:
        """The item with what found it, and what was done to it."""
        if item.facts is None or kept is None or self._looks is None or item.match in (SCENE_MATCH, FIRST_FRAME):
            return item
        pair = (min(keeper, row), max(keeper, row))
        looked = pair in self.aligned
        found = self.aligned.get(pair)
        if found is None and item.match == "similar":
            (found,) = align_pairs(self._looks, self._looks, self._coded.rows[_pairs([pair])])
        if found is not None and pair[0] != keeper:
            found = found.swapped()
        if looked:
            by = "alignment"
        else:
            codes = self._coded.codes
            one, other = codes[[keeper]], codes[[row]]
            by_hash = replace(self._rule, radius=-1).certain().judge(one, other)[0][0] == 2
            by = "hash" if self._rule.hash_radius >= 0 and by_hash else "features and hash"
        lies = found if looked or (found is not None and found.same) else None
        return replace(item, **_judged(item, kept, lies), found_by=by if self._rule.hashes else None)


def _pairs(found: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    return np.array(found, np.int64).reshape(-1, 2)


def _places_in(near: NDArray[np.int64], pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pairs of rows as places in ``near``, which is ascending; without those that it lacks."""
    places = np.searchsorted(near, pairs)
    held = np.append(near, -1)[np.minimum(places, len(near))] == pairs
    kept: NDArray[np.int64] = places[held.all(axis=1)]
    return kept


def _judged(item: Item, kept: Facts, found: Aligned | None) -> dict[str, Any]:
    """The match of an item with its keeper, and the edits, by how they lie on each other; None where they do not."""
    assert item.facts is not None
    match, edits = item.match, []
    if found is not None:
        if found.mirrored:
            edits.append("mirrored")
        if found.area < UNCUT:
            edits.append("cropped" if found.inside else "in a frame")
        if match == "similar" or (match == "copy" and edits):
            match = "edited copy"
    size, whole = item.facts.width * item.facts.height, kept.width * kept.height
    if match in ("copy", "edited copy"):
        if size < SMALLER * whole * (found.area if found is not None and found.inside else 1):
            edits.append("smaller")
        if not edits and match == "copy":
            edits.append("re-encoded")
    return {"match": match, "edits": tuple(edits), "aligned": found}


def find_leaks(train: Source, test: Source, settings: Settings | None = None) -> LeakReport:
    """Test items that have a near-duplicate in the training set, with the nearest training item each, by (distance, path).

    Raises:
        DataError: nothing usable in one of the two, or images against vectors.
        ParameterError: a setting out of range.
    """
    settings = settings or Settings()
    _check(test, settings)
    encoder, kept, coded, calibration = _across(train, test, settings)
    found = match(coded.codes, kept.codes, calibration.rule, most=MOST_OPEN)
    leaks = list(_matched(test, coded, np.arange(len(coded.rows)), train, kept, found, calibration.rule, settings))
    leaks.sort(key=lambda leak: (leak.test.distance, leak.test.path))
    skipped = kept.skipped + coded.skipped
    return LeakReport(calibration, encoder.description, leaks, skipped, len(kept.rows), len(coded.rows))


def _check(source: Source, settings: Settings, reference: Source | Indexed | None = None) -> None:
    """Refuse what no calibration will take, before anything is encoded."""
    n_bits = RANDOM_BITS + isinstance(source, ImageSource) * RANDOM_BITS // 2  # of the longest codes that are made
    if isinstance(reference, Indexed):
        n_bits = reference.searcher.index.n_bits
    elif settings.model is not None and settings.radius is not None:
        n_bits = load_model(settings.model).n_bits
    elif isinstance(source, ImageSource) and (settings.model or settings.backbone or find_spec("torch")) is None:
        raise MissingDependencyError(
            "the features of images need PyTorch; pip install 'distillhash[train]', or give --model MODEL.onnx"
        )
    check_wanted(settings.radius, settings.most_false_pairs, n_bits)


def _against(
    source: Source, reference: Source | Indexed, settings: Settings, first_frame: bool, verdicts: Verdicts
) -> Report:
    """Groups of a reference item and what of ``source`` is nearest to it."""
    other: Source
    if isinstance(reference, Indexed):
        encoder, other, kept, coded, calibration, found = _looked_up(source, reference, settings)
        n_kept = len(reference.searcher.index)
    else:
        encoder, kept, coded, calibration = _across(reference, source, settings)
        other, n_kept = reference, len(kept.rows)
        found = match(coded.codes, kept.codes, calibration.rule, most=MOST_OPEN)
    files: dict[Any, int] = {}
    ours, theirs = (
        np.array([_file_number(side, row, files) for row in rows.rows.tolist()], np.int64)
        for side, rows in ((source, coded), (other, kept))
    )
    held = np.isin(ours, theirs[theirs >= 0])  # a file of the reference, reached through the source as well
    if isinstance(reference, Indexed):
        held |= _known_files(source, coded.rows, reference.searcher.index)
    matched = _matched(source, coded, np.flatnonzero(~held), other, kept, found, calibration.rule, settings)
    groups: dict[tuple[int, int], list[Item]] = {}
    for pair in sorted(matched, key=lambda pair: (pair.train.row, pair.test.distance, pair.test.row)):
        item, keeper = pair.test, pair.train
        if item.facts and keeper.facts and verdicts.apart(item.facts.digest, keeper.facts.digest):
            continue
        part = 2 if item.match == SCENE_MATCH else int(item.match == FIRST_FRAME and not first_frame)
        groups.setdefault((part, keeper.row), [keeper]).append(item)
    certain, first_frames, scenes = (
        [group for (part, _), group in groups.items() if part == kind] for kind in range(3)
    )
    skipped, n_items = kept.skipped + coded.skipped, n_kept + len(coded.rows)
    return Report(calibration, encoder.description, certain, skipped, n_items, int(held.sum()), first_frames, scenes)


def _known_files(source: Source, rows: NDArray[np.intp], index: Index) -> NDArray[np.bool_]:
    """Which items are files that the index names, whatever their content is now."""
    paths = [source.path(row) for row in rows.tolist()]
    real = ["" if path is None else os.path.realpath(path) for path in paths]
    known: set[str] = set()
    for start in range(0, len(real), AT_ONCE):
        known.update(index.known([path for path in real[start : start + AT_ONCE] if path]))
    return np.array([path in known for path in real], bool)


def _looked_up(
    source: Source, reference: Indexed, settings: Settings
) -> tuple[Encoder, IndexedImages, Coded, Coded, Calibration, Matches]:
    """Codes of the source by the index's model, the radius, and the items of the index that are near, as a collection of their own."""
    index, model, picture = reference.searcher.index, reference.searcher.known_model(), reference.picture
    if not len(index):
        raise DataError(f"the index {reference.name} is empty; fill it with `distillhash index`")
    if isinstance(source, ImageSource) == (model.backbone_name == "embeddings"):
        ours, theirs = ("images", "embeddings") if isinstance(source, ImageSource) else ("embeddings", "images")
        text = f"{source.name} holds {ours}, and the model of the index {reference.name} takes {theirs}"
        raise DataError(f"they cannot be compared: {text}")
    description = f"codes of {model.n_bits} bits by the model of the index {reference.name}"
    encoder = Encoder(model, description, 0, settings)
    coded = encoder.encode(source)
    sample = items_of(index, sample_ids(index.ids(), LOOKED_UP))
    held = stored_codes(sample, index.n_bits)
    images = IndexedImages(reference.name, sample, picture)
    of_index, of_new = (
        different_pictures(side.codes, side.digests, np.flatnonzero(~side.flat)) for side in (held, coded)
    )
    looks, readable = Looks(images, settings.max_pixels), np.zeros(0, np.int64)
    light, enough, can_look = None, len(of_new.kept) >= FEWEST_LOOKED_UP, False
    if isinstance(source, ImageSource):
        tried = of_index.one[: 2 * EDITED]
        readable = tried[[looks.get(row) is not None for row in tried.tolist()]]
        can_look = compiles() and len(readable) > 0
        if enough or not len(readable):
            light, looks = edit_some(encoder, source, coded, of_new), Looks(source, settings.max_pixels)
        else:
            light = edit_some(encoder, images, held, replace(of_index, one=readable))
    calibration = calibrate_lookups(
        held.codes[of_index.kept],
        coded.codes[of_new.kept] if enough else None,
        n_held=len(index),
        n_lookups=len(coded.rows),
        copies=None if light is None else light.copies(),
        radius=settings.radius,
        most_false=settings.most_false_pairs,
        looks=can_look,
    )
    if calibration.rule.leaves_open:
        calibration = _judging(calibration, looks, light, None)
    if can_look:
        asked = sample[:: max(1, len(sample) // CHECKED)]
        near = near_items(index, stored_codes(asked, index.n_bits).codes, Rule(calibration.radius))
        calibration = with_counted(calibration, asked, *near, picture, max_pixels=settings.max_pixels)
    if isinstance(source, ImageSource) and not len(readable):
        encoder = replace(encoder, description=f"{description}, alone, for its pictures cannot be read")
    items, found = near_items(index, coded.codes, calibration.rule)
    return (
        encoder,
        IndexedImages(reference.name, items, picture),
        stored_codes(items, index.n_bits),
        coded,
        calibration,
        found,
    )


def with_counted(
    calibration: Calibration,
    asked: Sequence[Stored],
    near: Sequence[Stored],
    found: Matches,
    picture: Picture,
    *,
    max_pixels: int | None,
) -> Calibration:
    """The calibration, stating what is counted where that is more: matches of items of the index (``asked``) that show other scenes.

    Short codes are equal for pictures that look alike, and from codes alone these cannot be told from copies. ``near`` and ``found`` are
    what :func:`near_items` gives for the items and the radius.
    """
    expected = calibration.expected_false_pairs
    one, nth = np.nonzero(found.row >= 0)
    other = found.row[one, nth]
    apart = [asked[a].digest != near[b].digest for a, b in zip(one.tolist(), other.tolist(), strict=True)]
    pairs = np.stack([one, other], 1)[np.array(apart, bool)]
    if not len(pairs) or expected is None:
        return calibration
    drawn = np.random.default_rng(0).permutation(pairs)[:CHECKED_PAIRS]
    ours, theirs = (Looks(IndexedImages("index", items, picture), max_pixels) for items in (asked, near))
    scores = [lies.score for lies in align_pairs(ours, theirs, drawn) if lies is not NOWHERE]
    n_pairs = float(len(pairs) + np.maximum(found.count - MOST_OPEN, 0).sum())
    share = sum(score < SCENE for score in scores) / max(1, len(scores))
    ends = np.sort([(asked[a].id, near[b].id) for a, b in pairs.tolist()], axis=1)
    once = n_pairs * len(np.unique(ends, axis=0)) / len(ends)  # some are met from both ends
    times = n_pairs / once * calibration.n_items / len(asked)
    low, counted, high = (times * number for number in _poisson(share * once))
    if low <= expected:
        return calibration
    return replace(calibration, expected_false_pairs=counted, false_pairs_interval=(low, high))


def _poisson(count: float) -> tuple[float, float, float]:
    """The ends of the 90% interval of the mean of a Poisson count, around the count."""
    from scipy.special import gammaincinv

    return float(gammaincinv(count, 0.05)) if count else 0.0, count, float(gammaincinv(count + 1, 0.95))


def sample_ids(ids: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Some of the ids, ascending; nearly the same when there are more."""
    if len(ids) <= most:
        return ids
    mixed = (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    return np.sort(ids[np.argpartition(mixed ^ (mixed >> np.uint64(32)), most)[:most]])


def items_of(index: Index, ids: NDArray[np.int64]) -> list[Stored]:
    """Those of the items that are still there, read a part at a time."""
    parts = (ids[start : start + AT_ONCE].tolist() for start in range(0, len(ids), AT_ONCE))
    return [item for part in parts for item in index.get(sorted(index.present(part)))]


def stored_codes(items: Sequence[Stored], n_bits: int) -> Coded:
    """Items of an index as a collection; what has no digest is a content of its own."""
    codes = Codes.concatenate([item.code for item in items], n_bits)
    digests = np.array([item.digest or b"item %d" % item.id for item in items], "S16")
    return Coded(codes, np.arange(len(items)), [], digests, np.zeros(len(items), bool))


def near_items(index: Index, codes: Codes, rule: Rule) -> tuple[list[Stored], Matches]:
    """Items of an index that are near to some of the codes, and where they are among these."""
    n, most = len(codes), MOST_OPEN
    hits: list[tuple[NDArray[np.int64], ...]] = []
    count = np.zeros(n, np.int64)
    for start in range(0, n, AT_ONCE):
        found = index.range_search(codes[start : start + AT_ONCE], max(rule.radius, rule.open_radius))
        owner = np.repeat(np.arange(len(found)), np.diff(found.limits))
        nth, certain = np.arange(len(owner)) - found.limits[owner], found.distances <= rule.radius
        count[start : start + len(found)] = np.bincount(owner[certain], minlength=len(found))
        sure = count[start + owner] > 0
        kept = np.where(sure, certain & (nth < MOST_CANDIDATES), nth < most)
        hits.append((start + owner[kept], found.ids[kept], found.distances[kept].astype(np.int64), nth[kept]))
    owner, ids, distances, nth = (np.concatenate(column) for column in zip(*hits, strict=True))
    items = items_of(index, np.unique(ids))
    known = np.array([item.id for item in items], np.int64)
    places = np.searchsorted(known, ids)
    first = (nth < most) & (np.append(known, -1)[places] == ids)  # another process may have removed one
    row, distance = np.full((n, most), -1, np.int64), np.full((n, most), -1, np.int32)
    row[owner[first], nth[first]], distance[owner[first], nth[first]] = places[first], distances[first]
    return items, Matches(row, distance, (row >= 0) & (distance <= rule.radius), count)


def _matched(
    source: Source,
    coded: Coded,
    places: NDArray[np.int64],
    other: Source,
    kept: Coded,
    matches: Matches,
    rule: Rule,
    settings: Settings,
) -> Iterator[Leak]:
    """Items of ``coded`` at ``places`` with a match in ``kept``: the nearest that shows the same in all frames, or in the first."""
    found = Matches(*(getattr(matches, name)[places] for name in ("row", "distance", "certain", "count")))
    chosen, count = np.where(found.certain[:, 0], 0, -1), found.count.copy()
    aligned: dict[tuple[int, int], Aligned] = {}
    twice: dict[tuple[int, int], bool] = {}
    looks: tuple[Looks, Looks] | None = None
    if isinstance(source, ImageSource) and isinstance(other, ImageSource) and compiles():
        looks = Looks(other, settings.max_pixels), Looks(source, settings.max_pixels)
        owner = np.broadcast_to(places[:, None], found.row.shape)
        pictures = np.stack([np.append(kept.rows, -1)[found.row], coded.rows[owner]], 2)
        changed = np.append(kept.digests, b"")[found.row] != coded.digests[owner]
        query, nth = np.nonzero((found.row >= 0) & ~found.certain[:, :1])
        usable = found.certain.copy()
        lie = align_pairs(*looks, pictures[query, nth], progress=settings.progress)
        for one, place, how in zip(query.tolist(), nth.tolist(), lie, strict=True):
            if how.same:
                count[one] += 1
                usable[one, place], aligned[one, place] = True, how
        nearest_usable = np.where(usable.any(axis=1), usable.argmax(axis=1), -1)
        for _ in range(MOST_OPEN):  # the nearest that is no other photograph of the scene, or else the nearest
            chosen = np.where(usable.any(axis=1), usable.argmax(axis=1), nearest_usable)
            asked = [
                (one, at)
                for one, at in enumerate(chosen.tolist())
                if at >= 0 and changed[one, at] and (one, at) not in twice
            ]
            if not asked:
                break
            rows = pictures[tuple(np.array(asked, np.int64).reshape(-1, 2).T)]
            known = [aligned.get(pair) for pair in asked]
            twice |= dict(zip(asked, taken_twice(*looks, rows, known, progress=settings.progress), strict=True))
            for pair in asked:
                usable[pair] = not twice[pair]
        chosen = np.where(usable.any(axis=1), usable.argmax(axis=1), nearest_usable)
    hits = np.flatnonzero(chosen >= 0)
    nearest, distances = (
        column[np.arange(len(chosen)), np.maximum(chosen, 0)] for column in (found.row, found.distance)
    )
    facts = gather_facts(source, coded.rows[places[hits]], settings)
    kept_facts = gather_facts(other, kept.rows[np.unique(nearest[hits])], settings)
    for hit in hits.tolist():
        row, near, label = int(coded.rows[places[hit]]), int(nearest[hit]), None
        distance, ours, theirs = int(distances[hit]), facts.get(row), kept_facts.get(int(kept.rows[near]))
        if ours is not None and theirs is None and (ours.flat or ours.n_frames != 1):
            continue  # its picture cannot be read, and codes say nothing of such
        if ours is not None and theirs is not None and not agree(ours, theirs):
            away = hamming_distances(coded.codes[places[hit : hit + 1]], kept.codes)[0]
            candidates = np.flatnonzero(away <= rule.radius)
            candidates = candidates[np.lexsort((candidates, away[candidates]))][:MOST_CANDIDATES]
            unknown = [one for one in kept.rows[candidates].tolist() if one not in kept_facts]
            kept_facts |= gather_facts(other, np.array(unknown, np.intp), settings)
            told = [(one, kept_facts.get(int(kept.rows[one]))) for one in candidates.tolist()]
            whole, first = (
                next((one for one, fact in told if fact and agree(ours, fact, first_frame=by_first)), -1)
                for by_first in (False, True)
            )
            if first < 0 and whole < 0:
                continue
            near, label = (first, FIRST_FRAME) if whole < 0 else (whole, None)
            distance, theirs = int(away[near]), kept_facts[int(kept.rows[near])]
        keeper = _item(other, int(kept.rows[near]), 0, theirs, theirs, "keeper")
        item = _item(source, row, distance, ours, theirs, label)
        pair = hit, int(chosen[hit])
        lies = aligned.get(pair)
        is_twice = twice.get(pair, False)
        if looks is not None and label is None and near != nearest[hit]:
            (is_twice,) = taken_twice(*looks, np.array([[kept.rows[near], row]]), [None])
        if label is None and is_twice:
            yield Leak(replace(item, match=SCENE_MATCH), keeper, int(count[hit]))
            continue
        if lies is None and looks is not None and item.match == "similar":
            lies = align_pairs(*looks, np.array([[kept.rows[near], row]]))[0]
        if lies is not None and lies.same and theirs is not None and label is None:
            found_by = "alignment" if pair in aligned else None
            item = replace(item, **_judged(item, theirs, lies), found_by=found_by)
        yield Leak(item, keeper, int(count[hit]))


def _across(kept: Source, other: Source, settings: Settings) -> tuple[Encoder, Coded, Coded, Calibration]:
    """Codes of both by one encoder, fitted on the larger, and the radius for pairs across them."""
    if isinstance(kept, ImageSource) != isinstance(other, ImageSource):
        raise DataError(f"{kept.name} and {other.name} cannot be compared: one holds images and the other embeddings")
    swapped = len(other) > len(kept)
    larger, smaller = (other, kept) if swapped else (kept, other)
    encoder, coded = encode_collection(larger, settings)
    first, second = (encoder.encode(smaller), coded) if swapped else (coded, encoder.encode(smaller))
    return encoder, first, second, _calibrated(encoder, larger, coded, second, first)


def _calibrated(encoder: Encoder, source: Source, coded: Coded, one: Coded, other: Coded | None) -> Calibration:
    """The radius for pairs within ``one``, or of ``one`` and ``other``, by edits of the images of ``source``, whose codes are ``coded``."""
    settings, sides = encoder.settings, [side for side in (one, other) if side is not None]
    nearly = 1 / 8 if encoder.hashes else 1 / 16  # features alone are near for scenes of one kind as well
    pictures = [different_pictures(s.codes, s.digests, np.flatnonzero(~s.flat), nearly=nearly) for s in sides]
    edited = pictures[0] if coded is one else pictures[-1]
    n_items = [len(side.rows) for side in sides]
    light = edit_some(encoder, source, coded, edited) if isinstance(source, ImageSource) else None
    in_parts = encoder.hashes > 0 and settings.radius is None
    rows = [found.one if in_parts else found.kept for found in pictures]
    compared = [side.codes[chosen] for side, chosen in zip(sides, rows, strict=True)]
    times = pictures[0].pairs_of_one if in_parts else pictures[0].pairs
    if other is not None:
        times = math.prod(n_items) / max(1, math.prod(map(len, rows)))
    options: dict[str, Any] = {
        "most_false_pairs": settings.most_false_pairs,
        "n_items": sum(n_items),
        "pairs": times,
    }
    if not in_parts or not isinstance(source, ImageSource):
        copies = None if light is None else light.copies()
        return calibrate(*compared, copies=copies, radius=settings.radius, **options)
    heavy = edit_some(encoder, source, coded, edited, HEAVY)
    second = compared[1] if other is not None else None
    calibration = calibrate_rule(encoder.rule(0), compared[0], second, light, heavy, **options)
    return _judging(calibration, Looks(source, settings.max_pixels), light, heavy)


def _judging(calibration: Calibration, looks: Looks, light: Edited | None, heavy: Edited | None) -> Calibration:
    """The calibration with the shares of edits that its rule finds, by laying what it leaves open on the originals."""

    def lie_on_originals(edits: Edited, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        pairs = np.stack([edits.rows[numbers // len(edits.names)], numbers], 1)
        return np.array([found.same for found in align_pairs(looks, Looks(edits.images), pairs)], bool)

    judged = [None if one is None else one.judged(calibration.rule, lie_on_originals) for one in (light, heavy)]
    return with_recall(calibration, judged[0], judged[1], [*LIGHT, *([] if heavy is None else HEAVY)])


def _apart(digests: Sequence[str], verdicts: Verdicts) -> NDArray[np.int64]:
    """Pairs of places in ``digests`` that people keep apart."""
    places: dict[str, list[int]] = {}
    for place, content in enumerate(digests):
        places.setdefault(content, []).append(place)
    pairs = [(a, b) for left, right in verdicts for a in places.get(left, []) for b in places.get(right, []) if a != b]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _item(
    source: Source, row: int, distance: int, facts: Facts | None, kept: Facts | None, match: str | None = None
) -> Item:
    """One item of a report, and how it matches its keeper: the digests of file and pixels agree, or the perceptual hashes nearly do."""
    path = _path(source, row)
    if facts is None or kept is None:
        return Item(path, distance, source, row, facts, match or "near")
    away = (int(facts.phash, 16) ^ int(kept.phash, 16)).bit_count()
    if match is None and facts.digest == kept.digest:
        match = "same file"
    elif match is None and facts.pixels_digest == kept.pixels_digest:
        match = "same pixels"
    elif match is None:
        match = "copy" if away <= AGREES else "similar"
    return Item(path, distance, source, row, facts, match, away)


def _path(source: Source, row: int) -> str:
    return source.path(row) or source.keys[row]


def _folders(source: Source, rows: NDArray[np.intp]) -> NDArray[np.int64]:
    """A number for the folder of every item; -1 for items that are no files."""
    numbers: dict[str, int] = {}
    paths = [source.path(row) for row in rows.tolist()]
    places = [-1 if path is None else numbers.setdefault(str(Path(path).parent), len(numbers)) for path in paths]
    return np.array(places, np.int64)


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
    """A source in which every file appears once, and how many other names (links) were left out. Real names go first."""
    if len(source) == 0 or source.path(0) is None:
        return source, 0
    numbers: dict[Any, int] = {}
    files = np.array([_file_number(source, row, numbers) for row in range(len(source))], np.int64)
    links = np.array([Path(source.path(row) or "").is_symlink() for row in range(len(source))])
    order = np.lexsort((np.arange(len(source)), links))
    _, firsts = np.unique(files[order], return_index=True)
    chosen = files < 0
    chosen[order[firsts]] = True
    return (source, 0) if chosen.all() else (source.select(np.flatnonzero(chosen)), int((~chosen).sum()))
