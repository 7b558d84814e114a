"""The radius of a collection: how far its own copies lie, and how many pairs of different pictures lie as near.

Copies: known edits are applied to some of the user's images, and their distances to the originals measured.

False pairs: the tail of the collection's own distances. Random pairs alone cannot say: at the radii of interest there is one in a million
or less, and the few at tiny distances are real duplicates. So pairs are counted at every distance from 0 to a distance that about one pair
in a hundred reaches. The counts are modelled as a sum of two parts (Poisson maximum likelihood):

* pairs of different pictures, a power of the distance: near any point, the number of others within a distance grows with a power of it,
  the local dimension (Houle 2017; Amsaleg et al., KDD 2015). The power may change once, slowly, over a factor of e below the largest
  distance, and is constant below that. The many pairs at the upper end determine it, and the lower end follows;
* duplicates, in about the shape that known edits of the collection's own images have (copy against original, and copy against copy), in
  unknown numbers.

Copies of one picture count as a few at most, equal items as one, and pictures without structure as none
(:func:`distillhash.dedup.groups.different_pictures`), so that a thousand placeholders tell nothing about the rest. Counts are then said of
all items again.

Codes of features and a perceptual hash are calibrated in parts (:func:`calibrate_rule`): the whole code and the hash alone, up to where
next to no false pairs are expected; and the features alone, up to where as few are expected as can be looked at.

The interval comes from a Bayesian bootstrap over pictures (Rubin 1981), where near copies count as one picture. Pairs are far from
independent: a pair of scenes that is close brings all pairs of their copies with it. A pair weighs the product of the weights of its two
pictures, and a pair of copies the weight of its one picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from distillhash.codes import Codes
from distillhash.dedup.codes import Coded, Encoder
from distillhash.dedup.edits import LIGHT, Edit, EditedImages
from distillhash.dedup.groups import Pictures, Rule
from distillhash.errors import MissingDependencyError, ParameterError
from distillhash.hamming import planes_of, within
from distillhash.hamming.search import Planes
from distillhash.sources import ImageSource

WANTED_RECALL = 0.99
"""Share of light edits to find. Beyond it, the radius grows only where nearly all of what it adds are copies."""

FALSE_PER_FOUND = 0.01
FALSE_PER_ITEM = 0.001
FALSE_AT_LEAST = 0.5
"""False pairs accepted: one per hundred duplicates found, or one per thousand images, or half a pair, whichever is most."""

BY_HASH, BY_CODE, BY_LOOKING = 0.15, 0.15, 0.1
"""Shares of them that the parts of a rule may bring: the hash; the whole code, and again with the hash of the mirror image; and pairs that
are looked at, by the features and by the whole code."""

MISTAKEN, FEWEST_LOOKS = 0.002, 200
"""Share of different pictures that are taken for one when they are looked at, before the closer look: 3 of 1,842 grocery photographs. So
many false pairs may be looked at in any collection."""

OPEN_HASH = 64
"""Bits of the hash, beyond which it alone takes no pair for a copy, nor for one to look at. None of 500,000 pairs of different pictures
is as near, and copies with large letters are."""

MOST_OPENED = 200_000  # items; in larger collections only the features leave pairs open, for wide radii take long there

FEWEST_COPIES = 0.5  # expected pairs of copies at the next distance; with fewer, the radius does not grow
EDITED, HEAVILY_EDITED = 120, 50  # images edited to calibrate, at most
KEEPING = {"re-encoded", "resized", "brightness", "turned by EXIF", "thumbnail", "strong JPEG", "colours"}
FEW_REPLICATES = 5  # of the bootstrap, where no interval is wanted
LOOKED_AT = (
    150  # pairs of an image and its edit that are laid on each other to know how many of them are found, at most
)
ENOUGH_EDITED = 100  # with fewer, the largest distances are one picture's: a smooth law is drawn upon
FEWEST_PAIRS = 28  # pairs of different pictures, those of 8; with fewer, nothing is said of false pairs
TAIL = 0.01  # share of random pairs that are counted
FEWEST = 300  # pairs in the tail, where there are as many
MOST_COMPARED = 2**28  # pairs; above, a random part of the items is compared with all
CROWD = 10  # pairs of one item that count for the number of copies: a thousand copies of one picture must not outweigh the rest
MOST_KEPT = 2000  # pairs at one distance kept for the bootstrap, about
REPLICATES = 50
LEVEL = 0.9
USUAL_POWER, POWER_SPREAD = 10.0, 3.0  # with few pairs, the density is assumed to rise with this power or a higher one
BEND_SPREAD = 0.3  # how far the logarithm of the power is assumed to change
KNOTS, WARP_SPREAD = (
    8,
    0.1,
)  # known copies are few: their shape may be warped by about this much at each of these places
CERTAINLY = 10  # where copies are this many times as frequent as false pairs, two near items count as one picture for the bootstrap
ENOUGH = 100.0  # most weight of one distance, in pairs: else a million at the upper end would bend the curve away from the few below
_QUERIES = 64
_SMOOTHING = 0.08  # width of the kernel over distances of edits, relative to the distance

Distances = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Copies:
    """Distances of known edits of the collection's own images."""

    names: Sequence[str]  # e edits
    to_original: Distances  # (m, e) bits between image and edit
    between: Distances  # (m, e (e - 1) / 2) bits between two edits of one image

    def recall(self, radius: int) -> float:
        """Share of edits within the radius of their original."""
        return float(np.mean(self.to_original <= radius))


@dataclass(frozen=True)
class Edited:
    """Known edits of some of the images, and their codes."""

    names: list[str]  # e edits
    images: ImageSource  # edit j of image i is item i * e + j
    rows: NDArray[np.intp]  # (m,) of the images in the collection
    originals: Codes  # (m,)
    edits: Codes  # (m * e,)

    def copies(self, part: Callable[[Codes], Codes] = lambda codes: codes) -> Copies:
        """Distances, by a part of the codes."""
        return copies_of(self.names, part(self.originals), part(self.edits))

    def judged(self, rule: Rule, look: Callable[[Edited, NDArray[np.int64]], NDArray[np.bool_]]) -> Floats:
        """Whether each edit is found, ``(m, e)`` between 0 and 1: the share of a sample where the rule leaves it open.

        ``look`` says of numbers of edits whether they lie on their originals.
        """
        m, e = len(self.rows), len(self.names)
        verdicts, _ = rule.judge(self.originals[np.repeat(np.arange(m), e)], self.edits)
        found: Floats = (verdicts == 2).astype(np.float64).reshape(m, e)
        left = np.flatnonzero(verdicts == 1)
        for edit in range(e):
            mine = left[left % e == edit]
            sample = mine[: max(1, LOOKED_AT // e)]
            if len(mine):
                found[mine // e, edit] = look(self, sample).mean()
        return found


def copies_of(names: Sequence[str], originals: Codes, edits: Codes) -> Copies:
    """Distances of edits, as many as ``names`` of each of the originals, one original after the other."""
    words = originals.words()
    edited = edits.words().reshape(len(words), len(names), -1)
    first, second = np.triu_indices(len(names), 1)
    return Copies(
        names,
        np.bitwise_count(words[:, None] ^ edited).sum(axis=2, dtype=np.int64),
        np.bitwise_count(edited[:, first] ^ edited[:, second]).sum(axis=2, dtype=np.int64),
    )


def _recall_interval(found: NDArray[Any]) -> tuple[float, float]:
    """``LEVEL`` interval of the mean of ``(m, e)`` shares by bootstrap over images; of one image, everything is possible."""
    if len(found) < 2:
        return 0.0, 1.0
    draws = np.random.default_rng(0).integers(0, len(found), (1000, len(found)))
    return _interval(found.mean(axis=1)[draws].mean(axis=1))


@dataclass(frozen=True)
class Calibration:
    """A radius and what is to be expected of it; intervals are 90% intervals."""

    radius: int  # bits
    n_bits: int
    n_items: int
    chosen_by: str  # ``calibration`` or ``user``
    expected_false_pairs: float | None  # pairs of different pictures within the radius
    false_pairs_interval: tuple[float, float] | None
    recall: float | None  # share of light edits found; None where no edits could be made
    recall_interval: tuple[float, float] | None
    recall_heavy: float | None  # share of heavy edits; None where codes have one part
    recall_heavy_interval: tuple[float, float] | None
    recall_by_edit: dict[str, float]
    unknown: str | None  # why false pairs cannot be estimated; what is said of them is None then
    rule: Rule  # all radii
    curve: list[dict[str, Any]]  # ``radius``, ``expected_false_pairs`` and ``recall`` of all radii worth looking at
    n_held: int | None = None  # items of an index in which ``n_items`` are looked up
    accepted: float | None = None  # false matches that these were to bring at most; None where the radius was given

    def per_thousand(self, n_false: float) -> float:
        """So many false matches of all look-ups, for each 1,000 of them."""
        return 1000 * n_false / max(1, self.n_items)

    def caution(self) -> str | None:
        """What to say where the false matches are more than were accepted; what is looked at may bring a tenth more."""
        if self.accepted is None or (self.expected_false_pairs or 0) <= (1 + BY_LOOKING) * self.accepted:
            return None
        why = f"codes of {self.n_bits} bits cannot tell some look-alikes from copies"
        accepted = f"{_count(self.per_thousand(self.accepted))} per 1,000"
        return f"more false matches than the {accepted} accepted are expected, for {why}; take a model of more bits"

    def sentence(self) -> str:
        """The calibration in one line."""
        caution = self.caution()
        return self._stated() + (f"; {caution}" if caution else "")

    def _stated(self) -> str:
        text = f"radius {self.radius} of {self.n_bits} bits: "
        if self.expected_false_pairs is None or self.false_pairs_interval is None:
            text += f"how many false pairs to expect cannot be told, for {self.unknown}"
        else:
            low, high = _count(self.false_pairs_interval[0]), _count(max(self.false_pairs_interval[1], 0.1))
            what, where = "pairs", f"among {self.n_items:,} images"
            if self.n_held is not None:
                per_thousand = f"{_count(self.per_thousand(self.expected_false_pairs))} per 1,000"
                what, where = "matches", f"in {self.n_items:,} look-ups among {self.n_held:,} items, {per_thousand}"
            text += f"about {_count(self.expected_false_pairs)} false {what} expected ({low} to {high}) {where}"
        if self.recall is None or self.recall_interval is None:
            why = "for vectors and pictures without structure cannot be edited"
            return f"{text}; how many copies it finds is not known, {why}"
        worst, best = self.recall_interval
        text += f", finds {self.recall:.0%} of light edits ({worst:.0%} to {best:.0%})"
        if self.recall_heavy is None or self.recall_heavy_interval is None:
            return text
        worst, best = self.recall_heavy_interval
        return text + f" and {self.recall_heavy:.0%} of heavy ones ({worst:.0%} to {best:.0%})"


def edit_some(
    encoder: Encoder, source: ImageSource, coded: Coded, pictures: Pictures, edits: dict[str, Edit] = LIGHT
) -> Edited | None:
    """Edit some of the images that ``encoder`` coded, one of each picture; None where there are none."""
    most = EDITED if edits is LIGHT else HEAVILY_EDITED
    chosen = np.sort(pictures.one[:most])
    if not len(chosen):
        return None
    e = len(edits)
    images = EditedImages(source.select(coded.rows[chosen]), edits, max_pixels=encoder.settings.max_pixels)
    made = encoder.encode(images)
    complete = np.flatnonzero(np.bincount(made.rows // e, minlength=len(chosen)) == e)
    kept = np.isin(made.rows // e, complete)
    images = EditedImages(source.select(coded.rows[chosen[complete]]), edits, max_pixels=encoder.settings.max_pixels)
    return Edited(list(edits), images, coded.rows[chosen[complete]], coded.codes[chosen[complete]], made.codes[kept])


def check_wanted(radius: int | None, most_false_pairs: float | None, n_bits: int) -> None:
    """Refuse a radius that codes of ``n_bits`` do not have, false pairs that are no number, and a calibration without SciPy."""
    if radius is not None and not 0 <= radius < n_bits:
        raise ParameterError(f"the radius must lie in 0..{n_bits - 1} bits, got {radius}")
    if most_false_pairs is not None and not 0 <= most_false_pairs < np.inf:
        raise ParameterError(
            f"the number of false pairs to accept must be finite and at least 0, got {most_false_pairs}"
        )
    if radius is None and find_spec("scipy") is None:
        raise MissingDependencyError(
            "calibrating a radius needs SciPy; pip install 'distillhash[dedup]', or give --radius BITS"
        )


def calibrate(
    codes: Codes,
    others: Codes | None = None,
    *,
    copies: Copies | None = None,
    radius: int | None = None,
    most_false_pairs: float | None = None,
    n_items: int | None = None,
    pairs: float = 1.0,
    wants: str = "more",
    replicates: int = REPLICATES,
) -> Calibration:
    """Choose a radius, or say what to expect of a given one.

    The radius is the smallest that finds ``WANTED_RECALL`` of the light edits, and from there on grows as long as the next distance adds at
    most ``FALSE_PER_FOUND`` false pairs for each pair of copies; but never beyond what the expected false pairs allow, or an eighth of the
    bits where these cannot be told. With ``wants="enough"`` it does not grow, and with ``wants="all"`` it is the largest that the false
    pairs allow.

    With ``others``, pairs across the two collections count. Without ``copies`` (of vectors) the false pairs alone decide. Where ``codes``
    are those of different pictures alone, ``n_items`` is how many items they stand for, and ``pairs`` how many pairs each of theirs does.
    """
    check_wanted(radius, most_false_pairs, codes.n_bits)
    n_pictures = len(codes) + (0 if others is None else len(others))
    copies = None if copies is None or not copies.to_original.size else copies
    known = [] if copies is None else [copies.to_original.ravel(), copies.between.ravel()]
    fits = find_spec("scipy") is not None
    needed = None if copies is None or not fits else needed_radius(copies)
    reach = 2 * (codes.n_bits // 16 if needed is None else needed)
    n_pairs = len(codes) * (len(codes) - 1) // 2 if others is None else len(codes) * len(others)
    unknown = None if n_pairs >= FEWEST_PAIRS else f"there are too few different pictures with structure ({n_pictures})"
    unknown = unknown if fits else "SciPy is not installed (pip install 'distillhash[dedup]')"
    if not n_pairs or not fits:
        nearest = np.zeros(reach + 1)
        tail = Tail(nearest, nearest, nearest[None])
    else:
        counts = count_pairs(codes, others, reach=max(reach, radius or 0))
        shapes = known or [np.random.default_rng(0).exponential(reach / 4, 1000).astype(np.int64)]
        tail, nearest = fit_tail(counts, shapes, replicates), np.cumsum(counts.nearest)
    false = np.cumsum(tail.false)
    recalls = [None if copies is None else copies.recall(r) for r in range(len(false))]
    if radius is None:
        rule = max(FALSE_PER_ITEM * n_pictures, FALSE_AT_LEAST)
        allowed = np.maximum(FALSE_PER_FOUND * (nearest - false), rule)
        is_allowed = false <= allowed if most_false_pairs is None else pairs * false <= most_false_pairs
        chosen = int(np.flatnonzero(is_allowed).max(initial=0))
        if wants == "enough" and needed is not None:
            chosen = min(chosen, needed)
        elif wants == "more" and needed is not None and needed < len(false):
            added, copied = tail.false[needed + 1 :], tail.duplicates[needed + 1 :]
            grows = np.cumprod((copied >= FEWEST_COPIES) & (added <= FALSE_PER_FOUND * copied))
            chosen = min(chosen, needed + int(grows.sum()))
        if unknown is not None:
            chosen = min(chosen, codes.n_bits // 8)
    else:
        chosen = radius
    expected = pairs * float(tail.false[: chosen + 1].sum())
    interval = _interval(pairs * tail.replicates[:, : chosen + 1].sum(axis=1))
    if unknown is None and not (np.isfinite(expected) and interval[0] < interval[1]):
        unknown = "the distances of the pictures have no spread to tell it from"
    shares = [] if copies is None else (copies.to_original <= chosen).mean(axis=0).tolist()
    return Calibration(
        radius=chosen,
        n_bits=codes.n_bits,
        n_items=n_pictures if n_items is None else n_items,
        chosen_by="calibration" if radius is None else "user",
        expected_false_pairs=None if unknown else expected,
        false_pairs_interval=None if unknown else interval,
        recall=None if copies is None else copies.recall(chosen),
        recall_interval=None if copies is None else _recall_interval(copies.to_original <= chosen),
        recall_heavy=None,
        recall_heavy_interval=None,
        recall_by_edit={} if copies is None else dict(zip(copies.names, shares, strict=True)),
        unknown=unknown,
        rule=Rule(chosen),
        curve=[
            {"radius": r, "expected_false_pairs": None if unknown else pairs * float(false[r]), "recall": recalls[r]}
            for r in range(0, len(false), max(1, len(false) // 50))
        ],
    )


def calibrate_rule(
    rule: Rule,
    codes: Codes,
    others: Codes | None,
    light: Edited | None,
    heavy: Edited | None,
    *,
    most_false_pairs: float | None,
    n_items: int,
    pairs: float,
) -> Calibration:
    """Choose all radii of a rule for codes of features and hash; arguments as in :func:`calibrate`, one code of each picture.

    The whole code may differ as far as 99% of the light edits do, and no farther than its share of the false pairs allows. The hash alone
    may as far as 99% of the edits that leave the whole picture visible do (``KEEPING``). What is near by the features or by the whole code,
    up to where ``MISTAKEN`` of the false pairs there are their share, is left open.
    """
    n_pictures = len(codes) + (0 if others is None else len(others))
    most = pairs * max(FALSE_PER_ITEM * n_pictures, FALSE_AT_LEAST) if most_false_pairs is None else most_false_pairs

    looks = max(BY_LOOKING / MISTAKEN * most, FEWEST_LOOKS if most_false_pairs is None else 0.0)

    def part(of: Callable[[Codes], Codes], edited: Edited | None, limit: float, **options: Any) -> Calibration:
        copies = None if edited is None else edited.copies(of)
        sides = of(codes), None if others is None else of(others)
        return calibrate(*sides, copies=copies, most_false_pairs=limit, n_items=n_items, pairs=pairs, **options)

    def seen(curve: list[dict[str, Any]], radius: int) -> float:
        return max((row["expected_false_pairs"] or 0.0 for row in curve if row["radius"] <= radius), default=0.0)

    whole = part(lambda found: found, light, BY_CODE * most, wants="enough")
    if whole.unknown is not None:
        return replace(whole, rule=replace(rule, radius=whole.radius))
    few: dict[str, Any] = {"wants": "all", "replicates": FEW_REPLICATES}
    by_hash = part(rule.hash, light, BY_HASH * most, **few)
    near = part(rule.features, heavy, looks, **few)
    kept = [edited.copies(rule.hash) for edited in (light, heavy) if edited is not None]
    away = [c.to_original[:, [name in KEEPING for name in c.names]].ravel() for c in kept]
    hash_radius = min(by_hash.radius, OPEN_HASH, int(np.quantile(np.concatenate([*away, [0]]), WANTED_RECALL)))
    is_large = n_items > MOST_OPENED
    within_limit = [row["radius"] for row in whole.curve if row["expected_false_pairs"] <= looks and not is_large]
    open_radius = max([whole.radius, *within_limit])

    def stated(of: Callable[[Calibration], float]) -> float:
        looked_at = seen(near.curve, near.radius) + seen(whole.curve, open_radius)
        return 2 * of(whole) + min(of(by_hash), BY_HASH * most) + MISTAKEN * looked_at

    return replace(
        whole,
        expected_false_pairs=stated(lambda one: one.expected_false_pairs or 0),
        false_pairs_interval=(
            stated(lambda one: (one.false_pairs_interval or (0, 0))[0]),
            stated(lambda one: (one.false_pairs_interval or (0, 0))[1]),
        ),
        rule=replace(
            rule,
            radius=whole.radius,
            hash_radius=hash_radius,
            open_radius=open_radius,
            open_features=near.radius,
            open_hash=-1 if is_large else OPEN_HASH,
        ),
    )


def calibrate_lookups(
    held: Codes,
    new: Codes | None,
    *,
    n_held: int,
    n_lookups: int,
    copies: Copies | None,
    radius: int | None = None,
    most_false: float | None = None,
    looks: bool = False,
) -> Calibration:
    """Choose a radius to look ``n_lookups`` new pictures up in an index of ``n_held`` items; pairs are matches then.

    The radius finds ``WANTED_RECALL`` of the light edits, or as many as ``most_false`` false matches allow (None: ``FALSE_PER_ITEM`` times
    the look-ups). ``held`` are codes of different pictures of the index, a sample, and ``new`` those of the new ones. None says that they
    are few; then pairs of the index tell what to expect. Where pictures can be looked at (``looks``), farther matches are left open.
    """
    n_pairs = len(held) * (len(held) - 1) / 2 if new is None else len(held) * len(new)
    most = FALSE_PER_ITEM * n_lookups if most_false is None else most_false
    times = n_held * n_lookups / max(1.0, n_pairs)
    options: dict[str, Any] = {"most_false_pairs": most, "n_items": n_lookups, "pairs": times, "wants": "enough"}
    found = calibrate(held, new, copies=copies, radius=radius, **options)
    found = replace(found, n_held=n_held, accepted=most if radius is None else None)
    if not looks or radius is not None or found.expected_false_pairs is None or found.false_pairs_interval is None:
        return found
    limit = BY_LOOKING / MISTAKEN * most
    near = [row for row in found.curve if row["radius"] > found.radius and row["expected_false_pairs"] <= limit]
    open_radius = max([found.radius, *(row["radius"] for row in near)])
    mistaken = MISTAKEN * max([0.0, *(row["expected_false_pairs"] for row in near)])
    low, high = found.false_pairs_interval
    return replace(
        found,
        rule=Rule(found.radius, open_radius=open_radius),
        expected_false_pairs=found.expected_false_pairs + mistaken,
        false_pairs_interval=(low + mistaken, high + mistaken),
    )


def with_recall(calibration: Calibration, light: Floats | None, heavy: Floats | None, names: list[str]) -> Calibration:
    """The calibration with the shares of edits that its rule finds, see :meth:`Edited.judged`."""
    if light is None:
        return calibration
    shares = [*light.mean(axis=0).tolist(), *([] if heavy is None else heavy.mean(axis=0).tolist())]
    return replace(
        calibration,
        recall=float(light.mean()),
        recall_interval=_recall_interval(light),
        recall_heavy=None if heavy is None else float(heavy.mean()),
        recall_heavy_interval=None if heavy is None else _recall_interval(heavy),
        recall_by_edit=dict(zip(names, shares, strict=True)),
    )


def needed_radius(copies: Copies) -> int:
    """The smallest radius that finds ``WANTED_RECALL`` of the edits.

    Of few pictures, that is the distance of one edit of one of them. So it is drawn towards the radius that would find as many of edits
    whose distances follow lognormal laws, one for each kind of edit, with the median and the spread of those measured.
    """
    counted = np.sort(copies.to_original.ravel())
    measured = int(counted[min(len(counted) - 1, int(np.ceil(WANTED_RECALL * len(counted))) - 1)])
    share = min(1.0, len(copies.to_original) / ENOUGH_EDITED)
    if share == 1:
        return measured
    from scipy.special import ndtr

    logs = np.log1p(copies.to_original)
    middle = np.median(logs, axis=0)
    spread = np.maximum(1.4826 * np.median(np.abs(logs - middle), axis=0), 0.05)
    radii = np.arange(2 * int(counted[-1]) + 2)
    found = ndtr((np.log1p(radii)[:, None] - middle) / spread).mean(axis=1)
    smooth = int(radii[found >= WANTED_RECALL].min(initial=radii[-1]))
    return round(share * measured + (1 - share) * smooth)


def _interval(samples: Floats) -> tuple[float, float]:
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _count(number: float) -> str:
    """A count with two digits, and no decimals from ten on."""
    if number < 0.05:
        return "0"
    return f"{number:.1f}".removesuffix(".0") if number < 10 else f"{float(f'{number:.2g}'):,.0f}"


@dataclass(frozen=True)
class PairCounts:
    """Pairs of a collection by distance. The last four columns hold counted pairs, at crowded distances a random part of them."""

    histogram: Floats  # (furthest + 1,) counted pairs at each distance
    share: float  # counted pairs per pair of the collection
    nearest: Floats  # (furthest + 1,) pairs at each distance where an item has at most CROWD of them, in pairs of the collection
    distance: NDArray[np.int32]
    weight: Floats  # how many counted pairs each stands for
    left: NDArray[np.int64]  # row of one item
    right: NDArray[np.int64]  # row of the other


def count_pairs(codes: Codes, others: Codes | None = None, *, reach: int = 0) -> PairCounts:
    """Count the pairs of the tail; all pairs of a small collection, those of randomly chosen items of a large one.

    With ``others``, pairs across the two are counted; their rows follow those of ``codes``. Counting goes up to ``reach`` at
    least, but not into the bulk of random pairs.
    """
    own, n, n_database = others is None, len(codes), len(codes if others is None else others)
    rng = np.random.default_rng(0)
    queries = planes_of(codes)
    database = queries if others is None else planes_of(others)
    pilot = _random_distances(queries, database, own, rng)
    # Counting stops beyond all copies if that can be, but below the bulk of random pairs, where there are enough to know it.
    n_pairs = n * n_database // (2 if own else 1)
    tail = float(np.quantile(pilot, max(TAIL, min(0.3, FEWEST / n_pairs))))
    bulk = 0.1 if n_pairs >= 10 * FEWEST else 0.5 if n_pairs >= 20 else None
    furthest = int(max(tail, reach if bulk is None else min(reach, float(np.quantile(pilot, bulk)))))
    n_queries = max(1, min(n, max(_QUERIES, MOST_COMPARED // n_database)))
    rows = np.sort(rng.permutation(n)[:n_queries])
    shares = np.bincount(pilot, minlength=furthest + 1)[: furthest + 1] / len(pilot)
    kept_share = np.minimum(1, MOST_KEPT / np.maximum(shares * n_queries * n_database, 1))
    histogram, nearest = np.zeros(furthest + 1), np.zeros(furthest + 1)
    parts: list[tuple[NDArray[Any], ...]] = []
    for start in range(0, n_queries, _QUERIES):
        query = rows[start : start + _QUERIES]
        limits, found, distances = within(queries[:, query], database, furthest)
        owner = np.repeat(np.arange(len(query)), np.diff(limits))
        if own:
            other = found != query[owner]
            owner, found, distances = owner[other], found[other], distances[other]
        firsts = np.searchsorted(owner, np.arange(len(query)))
        few = np.arange(len(owner)) - firsts[owner] < CROWD
        nearest += np.bincount(distances[few], minlength=furthest + 1)
        once = found > query[owner] if own and n_queries == n else np.ones(len(found), bool)
        histogram += np.bincount(distances[once], minlength=furthest + 1)
        once &= rng.random(len(once), np.float32) < kept_share[distances]
        kept = distances[once]
        parts.append((kept, 1 / kept_share[kept], query[owner[once]], found[once] + (0 if own else n)))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    met = n_queries / n * (2 if own and n_queries < n else 1)  # a pair of one's own is met from both its ends
    return PairCounts(histogram, met, nearest * (n / n_queries) / (2 if own else 1), *columns)


def _random_distances(queries: Planes, database: Planes, own: bool, rng: np.random.Generator) -> NDArray[np.int64]:
    """Distances of 200,000 random pairs."""
    a, b = rng.integers(0, queries.shape[1], 200_000), rng.integers(0, database.shape[1], 200_000)
    if own:
        a, b = a[a != b], b[a != b]
    blocks = (slice(start, start + 4096) for start in range(0, len(a), 4096))
    return np.concatenate(
        [np.bitwise_count(queries[:, a[i]] ^ database[:, b[i]]).sum(axis=0, dtype=np.int64) for i in blocks]
    )


@dataclass(frozen=True)
class Tail:
    """The two parts of the counts, ``(furthest + 1,)`` each, in pairs of the whole collection."""

    false: Floats  # pairs of different pictures at each distance
    duplicates: Floats  # pairs of copies at each distance
    replicates: Floats  # (n_replicates, furthest + 1) of ``false``, from the bootstrap


@threadpool_limits.wrap(limits=1)  # products of a few hundred numbers, for which threads cost more than they save
def fit_tail(counts: PairCounts, shapes: Sequence[NDArray[np.integer[Any]]], n_replicates: int = REPLICATES) -> Tail:
    """Split the counts into false pairs and duplicates; ``shapes`` holds distances between known copies, an array for each kind of pair."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    furthest = len(counts.histogram) - 1
    known = np.array([_density(shape, furthest) for shape in shapes if len(shape)]).reshape(-1, furthest + 1)
    start, (false, duplicates) = _fit(counts.histogram, known, None)
    rng = np.random.default_rng(0)
    certain = int(np.cumprod(duplicates[1:] > CERTAINLY * false[1:]).sum())
    # Rows joined by near pairs are one picture.
    near = counts.distance <= certain
    rows, ends = np.unique(np.stack([counts.left, counts.right]), return_inverse=True)
    ends = ends.reshape(2, -1)
    graph = coo_array((np.ones(int(near.sum()), np.int8), tuple(ends[:, near])), shape=(len(rows), len(rows)))
    n_pictures, picture = connected_components(graph, directed=False)
    left, right = picture[ends]
    replicates = np.empty((n_replicates, furthest + 1))
    for replicate in replicates:
        weight = rng.standard_exponential(n_pictures)
        weight /= weight.mean()
        weights = counts.weight * np.where(left == right, weight[left], weight[left] * weight[right])
        histogram = np.bincount(counts.distance, weights, furthest + 1).astype(np.float64)
        replicate[:] = _fit(histogram, known, start)[1][0]
    return Tail(false / counts.share, duplicates / counts.share, replicates / counts.share)


def _density(distances: NDArray[np.integer[Any]], furthest: int) -> Floats:
    """Shape of a set of distances: a Gaussian kernel whose width grows with the distance; what lies beyond ``furthest`` is cut off."""
    grid = np.arange(furthest + 1)
    values, counts = np.unique(distances, return_counts=True)
    density = np.zeros(furthest + 1)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        kernel = np.exp(-0.5 * ((grid - value) / (1 + _SMOOTHING * value)) ** 2)
        density += count * kernel / max(kernel.sum(), 1e-300)
    return density / len(distances)


def _fit(histogram: Floats, known: Floats, start: Floats | None) -> tuple[Floats, tuple[Floats, Floats]]:
    """Penalised maximum likelihood: parameters, and (false, duplicates). Powers and amounts are exponentials, so they stay positive."""
    from scipy.optimize import minimize

    furthest = len(histogram) - 1
    depth = np.log((furthest + 0.5) / (np.arange(furthest + 1) + 0.5))
    by_last = np.minimum(depth, 1) ** 2 / 2 + np.maximum(depth - 1, 0)  # integrals over the logarithm of the distance
    by_first = depth - by_last
    shapes = np.vstack([known, np.full(furthest + 1, 1 / (furthest + 1))])
    trust = np.minimum(1, ENOUGH / np.maximum(histogram, 1))
    knots = np.linspace(0, furthest, KNOTS)
    hats = np.array([np.interp(np.arange(furthest + 1), knots, row) for row in np.eye(KNOTS)])
    amounts, warps = slice(3, 3 + len(shapes)), slice(3 + len(shapes), None)

    def parts(theta: Floats) -> tuple[Floats, ...]:
        powers, warp = np.exp(np.clip(theta[1:3], -20, 8)), np.exp(np.clip(theta[warps] @ hats, -5, 5))
        amount = np.exp(np.clip(theta[amounts], -50, 50))
        shape = np.exp(np.clip(-powers[0] * by_first - powers[1] * by_last, -700, 0))
        return np.exp(np.clip(theta[0], -50, 50)) * shape, amount @ shapes * warp, powers, amount, warp

    def loss(theta: Floats) -> tuple[float, Floats]:
        false, duplicates, (first, last), amount, warp = parts(theta)
        rate = false + duplicates + 1e-12
        residual = trust * (1 - histogram / rate)
        lacking, bend = max(USUAL_POWER - last, 0.0) / POWER_SPREAD, (theta[2] - theta[1]) / BEND_SPREAD
        gradient = [
            residual @ false,
            -(residual @ (false * by_first)) * first - bend / BEND_SPREAD,
            -(residual @ (false * by_last)) * last - lacking * last / POWER_SPREAD + bend / BEND_SPREAD,
            *(amount * (shapes @ (residual * warp))),
            *(hats @ (residual * duplicates) + theta[warps] / WARP_SPREAD**2),
        ]
        value = float(trust @ (rate - histogram * np.log(rate)))
        value += (lacking**2 + bend**2 + float(np.sum((theta[warps] / WARP_SPREAD) ** 2))) / 2
        return value / total, np.array(gradient) / total

    total = max(float(trust @ histogram), 1.0)
    top = max(float(histogram[-max(3, furthest // 20) :].mean()), 0.1)
    few = np.full(len(shapes), np.log(max(float(histogram[: furthest // 2 + 1].sum()), 0.5) / len(shapes)))
    starts = [start]
    if start is None:
        starts = [np.r_[np.log(top), np.log(b), np.log(b), few, np.zeros(KNOTS)] for b in (5.0, 10.0, 20.0)]
    precise = {"maxiter": 500, "ftol": 1e-12, "gtol": 1e-10}
    found = [minimize(loss, begin, jac=True, method="L-BFGS-B", options=precise) for begin in starts]
    best = min(found, key=lambda one: float(one.fun))
    false, duplicates, *_ = parts(best.x)
    return np.asarray(best.x), (false, duplicates)
