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

The interval comes from a Bayesian bootstrap over pictures (Rubin 1981), where near copies count as one picture. Pairs are far from
independent: a pair of scenes that is close brings all pairs of their copies with it. A pair weighs the product of the weights of its two
pictures, and a pair of copies the weight of its one picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFont
from threadpoolctl import threadpool_limits

from distillhash.codes import Codes
from distillhash.dedup.codes import Coded, Encoder
from distillhash.errors import ParameterError
from distillhash.hamming import planes_of, within
from distillhash.hamming.search import Planes
from distillhash.sources import ImageSource, decode_image, digest
from distillhash.sources.base import check_rows

WANTED_RECALL = 0.99
"""Share of light edits that are to be found; beyond, the radius grows only where nearly all of what it adds are copies."""

FALSE_PER_FOUND = 0.01
FALSE_PER_ITEM = 0.001
FALSE_AT_LEAST = 0.5
"""False pairs accepted: one per hundred duplicates found, or one per thousand images, or half a pair, whichever is most."""

FEWEST_COPIES = 0.5
"""Expected pairs of copies at the next distance, without which it is not worth to go there."""

EDITED = 200
"""Images edited to calibrate, at most."""

TAIL = 0.01  # share of random pairs that are counted
FEWEST = 300  # pairs in the tail, where there are as many
MOST_COMPARED = 2**29  # pairs; above, a random part of the items is compared with all
CROWD = 10  # pairs of one item that count for the number of copies: a thousand copies of one picture must not outweigh the rest
MOST_KEPT = 2000  # pairs at one distance kept for the bootstrap, about
REPLICATES = 50
LEVEL = 0.9
USUAL_POWER, POWER_SPREAD = 10.0, 3.0
"""Where there is little to go by: the density is assumed to rise with this power of the distance, or a higher one."""
BEND_SPREAD = 0.3
"""How far the logarithm of the power is assumed to change."""
KNOTS, WARP_SPREAD = 8, 0.1
"""Known copies are few, so their shape is uncertain: it may be warped by about this much at each of these places."""
CERTAINLY = 10
"""At distances where copies are so many times as frequent as false pairs, two near items count as one picture for the bootstrap."""
ENOUGH = 100.0
"""Pairs at one distance beyond which more say no more: else a million at the upper end would bend the curve away from the few below."""
_QUERIES = 64
_SMOOTHING = 0.08  # width of the kernel over distances of edits, relative to the distance

QUALITY = 90
"""JPEG quality of the edited file where the edit is not the encoding itself."""

LONGEST_SIDE = 1024
"""Larger originals are reduced to this before they are edited: features need fewer pixels, and edits of 50 megapixels are slow."""

_ORIENTATION_TAG = 0x0112
_TURNS = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}

Pixels = NDArray[np.uint8]
Edit = Callable[[Image.Image, np.random.Generator], bytes]
Distances = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Copies:
    """Distances that known edits of the collection's own images have.

    Attributes:
        names: ``e`` edits.
        to_original: ``(m, e) int64`` bits between image and edit.
        between: ``(m, e (e - 1) / 2) int64`` bits between two edits of one image.
    """

    names: Sequence[str]
    to_original: Distances
    between: Distances

    def recall(self, radius: int) -> float:
        """Share of edits within the radius of their original."""
        return float(np.mean(self.to_original <= radius))

    def recall_interval(self, radius: int) -> tuple[float, float]:
        """``LEVEL`` interval of :meth:`recall` by bootstrap over images; of one image, everything is possible."""
        found = np.mean(self.to_original <= radius, axis=1)
        if len(found) < 2:
            return 0.0, 1.0
        draws = np.random.default_rng(0).integers(0, len(found), (1000, len(found)))
        low, high = np.quantile(found[draws].mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return float(low), float(high)


@dataclass(frozen=True)
class Calibration:
    """A radius and what is to be expected of it.

    Attributes:
        radius: In bits.
        n_bits: Code length.
        n_items: Items compared.
        chosen_by: ``calibration`` or ``user``.
        expected_false_pairs: Pairs of different pictures expected within the radius.
        false_pairs_interval: Its 90% interval.
        recall: Share of light edits found; None where no edits could be made.
        recall_interval: Its 90% interval.
        recall_by_edit: The same for each edit.
        curve: ``{"radius", "expected_false_pairs", "recall"}`` of all radii worth looking at.
    """

    radius: int
    n_bits: int
    n_items: int
    chosen_by: str
    expected_false_pairs: float
    false_pairs_interval: tuple[float, float]
    recall: float | None
    recall_interval: tuple[float, float] | None
    recall_by_edit: dict[str, float]
    curve: list[dict[str, Any]]

    def sentence(self) -> str:
        """The calibration in one line."""
        low, high = self.false_pairs_interval
        text = (
            f"radius {self.radius} of {self.n_bits} bits: about {_count(self.expected_false_pairs)} false pairs expected "
            f"({_count(low)} to {_count(high)}) among {self.n_items:,} images"
        )
        if self.recall is None or self.recall_interval is None:
            return text + "; how many copies it finds is not known, for vectors cannot be edited"
        worst, best = self.recall_interval
        return text + f", finds {self.recall:.0%} of light edits ({worst:.0%} to {best:.0%})"


def measure_copies(encoder: Encoder, source: ImageSource, coded: Coded) -> Copies:
    """Edit some of the images and measure how far the edits lie from them.

    Args:
        encoder: What made ``coded``; its settings say whether mirror images count as edits.
        source: The images.
        coded: Their codes.
    """
    edits = LIGHT | (MIRRORED if encoder.settings.mirror else {})
    chosen = np.sort(np.random.default_rng(0).permutation(len(coded.rows))[:EDITED])
    edited = EditedImages(source.select(coded.rows[chosen]), edits, max_pixels=encoder.settings.max_pixels)
    made = encoder.encode(edited)
    complete = np.flatnonzero(np.bincount(made.rows // len(edits), minlength=len(chosen)) == len(edits))
    kept = np.isin(made.rows // len(edits), complete)
    copies = made.codes.words()[kept].reshape(len(complete), len(edits), -1)
    originals = coded.codes.words()[chosen[complete]]
    first, second = np.triu_indices(len(edits), 1)
    return Copies(
        list(edits),
        np.bitwise_count(originals[:, None] ^ copies).sum(axis=2, dtype=np.int64),
        np.bitwise_count(copies[:, first] ^ copies[:, second]).sum(axis=2, dtype=np.int64),
    )


def calibrate(
    codes: Codes,
    others: Codes | None = None,
    *,
    copies: Copies | None = None,
    radius: int | None = None,
    most_false_pairs: float | None = None,
) -> Calibration:
    """Choose a radius, or say what to expect of a given one.

    The radius is the smallest that finds ``WANTED_RECALL`` of the light edits, and from there on grows as long as the next distance adds at
    most ``FALSE_PER_FOUND`` false pairs for each pair of copies; but never beyond what the expected false pairs allow.

    Args:
        codes: ``n`` codes of the collection.
        others: Codes of another collection, where pairs across the two are looked for.
        copies: Known edits; None for vectors, where false pairs alone decide.
        radius: Take this one.
        most_false_pairs: Accept this many false pairs; None takes the module's rule.

    Raises:
        ParameterError: a radius outside of the code length, or a negative number of false pairs.
    """
    if radius is not None and not 0 <= radius < codes.n_bits:
        raise ParameterError(f"the radius must lie in 0..{codes.n_bits - 1} bits, got {radius}")
    if most_false_pairs is not None and not most_false_pairs >= 0:
        raise ParameterError(f"the number of false pairs to accept must be at least 0, got {most_false_pairs}")
    n_items = len(codes) + (0 if others is None else len(others))
    known = (
        [] if copies is None or not copies.to_original.size else [copies.to_original.ravel(), copies.between.ravel()]
    )
    reach = 2 * (int(np.quantile(known[0], WANTED_RECALL)) if known else codes.n_bits // 16)
    if len(codes) < (2 if others is None else 1):
        tail, nearest = None, np.zeros(reach + 1)
    else:
        counts = count_pairs(codes, others, reach=max(reach, radius or 0))
        shapes = known or [np.random.default_rng(0).exponential(reach / 4, 1000).astype(np.int64)]
        tail, nearest = fit_tail(counts, shapes), np.cumsum(counts.nearest)
    radii = np.arange(len(nearest))
    false = np.zeros(len(radii)) if tail is None else np.cumsum(tail.false)
    recall = None if copies is None or not known else np.array([copies.recall(int(r)) for r in radii])
    if radius is None:
        found = np.maximum(nearest - false, 0)
        accepted = np.maximum(FALSE_PER_FOUND * found, max(FALSE_PER_ITEM * n_items, FALSE_AT_LEAST))
        if most_false_pairs is not None:
            accepted = np.full(len(radii), most_false_pairs)
        allowed = np.flatnonzero(false <= accepted)
        chosen = int(allowed[-1]) if len(allowed) else 0
        if recall is not None and (enough := np.flatnonzero(recall >= WANTED_RECALL)).size:
            chosen = min(chosen, int(enough[0]) + (0 if tail is None else _more(tail, int(enough[0]))))
    else:
        chosen = radius
    return _calibration(chosen, radius is not None, codes.n_bits, n_items, tail, copies if known else None, false)


def _more(tail: Tail, radius: int) -> int:
    """By how many bits the radius can grow while nearly all of what each adds are copies, and there is something to add."""
    false, copies = tail.false[radius + 1 :], tail.duplicates[radius + 1 :]
    return int(np.cumprod((copies >= FEWEST_COPIES) & (false <= FALSE_PER_FOUND * copies)).sum())


def _calibration(
    radius: int, given: bool, n_bits: int, n_items: int, tail: Tail | None, copies: Copies | None, false: NDArray[Any]
) -> Calibration:
    by_edit = (
        {} if copies is None else dict(zip(copies.names, (copies.to_original <= radius).mean(axis=0), strict=True))
    )
    step = max(1, len(false) // 50)
    return Calibration(
        radius=radius,
        n_bits=n_bits,
        n_items=n_items,
        chosen_by="user" if given else "calibration",
        expected_false_pairs=0.0 if tail is None else tail.within(radius),
        false_pairs_interval=(0.0, 0.0) if tail is None else tail.interval(radius),
        recall=None if copies is None else copies.recall(radius),
        recall_interval=None if copies is None else copies.recall_interval(radius),
        recall_by_edit={name: float(share) for name, share in by_edit.items()},
        curve=[
            {
                "radius": r,
                "expected_false_pairs": float(false[r]),
                "recall": None if copies is None else copies.recall(r),
            }
            for r in range(0, len(false), step)
        ],
    )


def _count(number: float) -> str:
    """A count as people say it: two digits, none behind the point from ten on."""
    if number < 0.05:
        return "0"
    if number < 10:
        return f"{number:.1f}".removesuffix(".0")
    digits = 10 ** max(0, len(str(round(number))) - 2)
    return f"{round(number / digits) * digits:,}"


@dataclass(frozen=True)
class PairCounts:
    """Pairs of a collection by distance.

    Attributes:
        histogram: ``(furthest + 1,)`` counted pairs at each distance.
        share: Counted pairs per pair of the collection (1: all of them).
        nearest: ``(furthest + 1,)`` pairs at each distance when an item has at most ``CROWD`` of them, in pairs of the collection.
        distance: ``(p,)`` of the counted pairs, of which those at crowded distances are a random part.
        weight: ``(p,)`` how many counted pairs each stands for.
        left: ``(p,)`` one row of each.
        right: ``(p,)`` the other.
    """

    histogram: Floats
    share: float
    nearest: Floats
    distance: NDArray[np.int32]
    weight: Floats
    left: NDArray[np.int64]
    right: NDArray[np.int64]


def count_pairs(codes: Codes, others: Codes | None = None, *, reach: int = 0) -> PairCounts:
    """Count the pairs of the tail; all pairs of a small collection, those of randomly chosen items of a large one.

    Args:
        codes: ``n`` codes, n >= 1 (2 without ``others``).
        others: ``m`` codes; the pairs counted are then those of a code and another collection's, which has the rows from ``n`` on.
        reach: Count at least up to this distance, but not into the bulk of random pairs.
    """
    own, n, n_database = others is None, len(codes), len(codes if others is None else others)
    rng = np.random.default_rng(0)
    queries = planes_of(codes)
    database = queries if others is None else planes_of(others)
    pilot = _random_distances(queries, database, own, rng)
    furthest = _furthest(pilot, reach, n * n_database // (2 if own else 1))
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


def _furthest(pilot: NDArray[np.int64], reach: int, n_pairs: int) -> int:
    """Where counting stops: beyond all copies if that can be, but below the bulk of random pairs, where there are enough to know it."""
    tail = float(np.quantile(pilot, max(TAIL, min(0.3, FEWEST / n_pairs))))
    bulk = 0.1 if n_pairs >= 10 * FEWEST else 0.5 if n_pairs >= 20 else None
    return int(max(tail, reach if bulk is None else min(reach, float(np.quantile(pilot, bulk)))))


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
    """The two parts of the counts, ``(furthest + 1,)`` each, in pairs of the whole collection.

    Attributes:
        false: Pairs of different pictures at each distance.
        duplicates: Pairs of copies at each distance.
        replicates: ``(REPLICATES, furthest + 1)`` of ``false``, from the bootstrap.
    """

    false: Floats
    duplicates: Floats
    replicates: Floats

    def within(self, radius: int) -> float:
        """Expected number of false pairs within ``radius`` bits."""
        return float(self.false[: radius + 1].sum())

    def interval(self, radius: int) -> tuple[float, float]:
        """The ``LEVEL`` interval of the same."""
        sums = self.replicates[:, : radius + 1].sum(axis=1)
        low, high = np.quantile(sums, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return float(low), float(high)


@threadpool_limits.wrap(limits=1)  # products of a few hundred numbers, for which threads cost more than they save
def fit_tail(counts: PairCounts, shapes: Sequence[NDArray[np.integer[Any]]]) -> Tail:
    """Split the counts into false pairs and duplicates.

    Args:
        counts: From :func:`count_pairs`.
        shapes: Distances between known copies, one array for each kind of pair; empty where no copies could be made.
    """
    furthest = len(counts.histogram) - 1
    known = np.array([_density(shape, furthest) for shape in shapes if len(shape)]).reshape(-1, furthest + 1)
    start, (false, duplicates) = _fit(counts.histogram, known, None)
    rng = np.random.default_rng(0)
    certain = int(np.cumprod(duplicates[1:] > CERTAINLY * false[1:]).sum())
    left, right, n_pictures = _pictures(counts.left, counts.right, counts.distance <= certain)
    replicates = np.empty((REPLICATES, furthest + 1))
    for replicate in replicates:
        weight = rng.standard_exponential(n_pictures)
        weight /= weight.mean()
        weights = counts.weight * np.where(left == right, weight[left], weight[left] * weight[right])
        histogram = np.bincount(counts.distance, weights, furthest + 1).astype(np.float64)
        replicate[:] = _fit(histogram, known, start)[1][0]
    return Tail(false / counts.share, duplicates / counts.share, replicates / counts.share)


def _pictures(
    left: NDArray[np.int64], right: NDArray[np.int64], near: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """The pictures that the two sides of every pair show, and how many there are; rows joined by near pairs are one picture."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows, numbers = np.unique(np.concatenate([left, right]), return_inverse=True)
    left, right = numbers[: len(left)], numbers[len(left) :]
    graph = coo_array((np.ones(int(near.sum()), np.int8), (left[near], right[near])), shape=(len(rows), len(rows)))
    n, picture = connected_components(graph, directed=False)
    return picture[left], picture[right], int(n)


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
    """Penalised maximum likelihood: parameters, and (false, duplicates).

    Powers and amounts are exponentials, so they cannot turn negative.
    """
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

    def parts(theta: Floats) -> tuple[Floats, Floats]:
        first, last = np.exp(np.clip(theta[1:3], -20, 8))
        shape = np.exp(np.clip(-first * by_first - last * by_last, -700, 0))
        warp = np.exp(np.clip(theta[warps] @ hats, -5, 5))
        return np.exp(np.clip(theta[0], -50, 50)) * shape, np.exp(np.clip(theta[amounts], -50, 50)) @ shapes * warp

    def loss(theta: Floats) -> tuple[float, Floats]:
        false, duplicates = parts(theta)
        rate = false + duplicates + 1e-12
        residual = trust * (1 - histogram / rate)
        first, last = np.exp(np.clip(theta[1:3], -20, 8))
        lacking, bend = max(USUAL_POWER - last, 0.0) / POWER_SPREAD, (theta[2] - theta[1]) / BEND_SPREAD
        warp = np.exp(np.clip(theta[warps] @ hats, -5, 5))
        gradient = [
            residual @ false,
            -(residual @ (false * by_first)) * first - bend / BEND_SPREAD,
            -(residual @ (false * by_last)) * last - lacking * last / POWER_SPREAD + bend / BEND_SPREAD,
            *(np.exp(np.clip(theta[amounts], -50, 50)) * (shapes @ (residual * warp))),
            *(hats @ (residual * duplicates) + theta[warps] / WARP_SPREAD**2),
        ]
        value = float(trust @ (rate - histogram * np.log(rate)))
        value += (lacking**2 + bend**2 + float(np.sum((theta[warps] / WARP_SPREAD) ** 2))) / 2
        return value / total, np.array(gradient) / total

    total = max(float(trust @ histogram), 1.0)
    top = max(float(histogram[-max(3, furthest // 20) :].mean()), 0.1)
    few = np.full(len(shapes), np.log(max(float(histogram[: furthest // 2 + 1].sum()), 0.5) / len(shapes)))
    starts = (
        [start]
        if start is not None
        else [np.r_[np.log(top), np.log(b), np.log(b), few, np.zeros(KNOTS)] for b in (5.0, 10.0, 20.0)]
    )
    precise = {"maxiter": 500, "ftol": 1e-12, "gtol": 1e-10}
    found = [minimize(loss, begin, jac=True, method="L-BFGS-B", options=precise) for begin in starts]
    best = min(found, key=lambda one: float(one.fun))
    return np.asarray(best.x), parts(best.x)


def reencode(image: Image.Image, *, quality: int, format: str = "JPEG") -> bytes:
    """The image saved again, ``quality`` 1 to 95."""
    return _encoded(image, quality=quality, format=format)


def resize(image: Image.Image, *, scale: float) -> bytes:
    """Both sides times ``scale``."""
    return _encoded(image.resize(_scaled(image, scale), Image.Resampling.LANCZOS))


def crop(image: Image.Image, *, keep: float, x: float = 0.5, y: float = 0.5) -> bytes:
    """A part whose sides are ``keep`` of the image's; ``x`` and ``y`` in [0, 1] say where it lies."""
    width, height = _scaled(image, keep)
    left, top = round(x * (image.width - width)), round(y * (image.height - height))
    return _encoded(image.crop((left, top, left + width, top + height)))


def brighten(image: Image.Image, *, factor: float) -> bytes:
    """Every value times ``factor``, clipped."""
    return _encoded(ImageEnhance.Brightness(image).enhance(factor))


def write_text(image: Image.Image, *, height: float, y: float = 0.9, text: str = "holiday 2026") -> bytes:
    """White ``text`` with a dark outline, letters ``height`` of the image's height, at ``y`` in [0, 1] from the top."""
    edited = image.copy()
    size = max(height * image.height, 6.0)
    place = (image.width / 2, y * image.height)
    ImageDraw.Draw(edited).text(
        place, text, fill="white", font=ImageFont.load_default(size), anchor="mm", stroke_width=1, stroke_fill="black"
    )
    return _encoded(edited)


def turn_by_exif(image: Image.Image, *, orientation: int) -> bytes:
    """The pixels turned by 90 or 180 degrees, and the EXIF orientation (3, 6 or 8) that turns them back."""
    exif = Image.Exif()
    exif[_ORIENTATION_TAG] = orientation
    return _encoded(image.transpose(_TURNS[orientation]), exif=exif)


def mirror(image: Image.Image) -> bytes:
    """Left and right exchanged."""
    return _encoded(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))


LIGHT: dict[str, Edit] = {
    "re-encoded": lambda image, rng: reencode(image, quality=int(rng.integers(40, 86))),
    "resized": lambda image, rng: resize(image, scale=float(rng.uniform(0.5, 0.9))),
    "cropped": lambda image, rng: crop(
        image, keep=float(rng.uniform(0.9, 0.98)), x=float(rng.uniform()), y=float(rng.uniform())
    ),
    "brightness": lambda image, rng: brighten(image, factor=float(np.exp(rng.uniform(-0.3, 0.3)))),
    "text": lambda image, rng: write_text(
        image, height=float(rng.uniform(0.05, 0.09)), y=float(rng.uniform(0.05, 0.95))
    ),
    "turned by EXIF": lambda image, rng: turn_by_exif(image, orientation=int(rng.choice([3, 6, 8]))),
}
"""Light edits by name; the generator draws how strong each is."""

MIRRORED: dict[str, Edit] = {"mirrored": lambda image, rng: mirror(image)}  # noqa: ARG005  # nothing to draw


class EditedImages(ImageSource):
    """Every edit of every image of a source, made when it is read: item ``i * len(edits) + j`` is edit j of image i.

    An edit depends on the seed, its name and the image's content alone, so the feature cache knows it in the next run.
    """

    def __init__(
        self,
        source: ImageSource,
        edits: dict[str, Edit],
        *,
        seed: int = 0,
        max_pixels: int | None = None,
        rows: NDArray[np.intp] | None = None,
    ) -> None:
        """Keep references; nothing is read yet."""
        self.name = f"edits of {source.name}"
        self.labels = self.label_names = None
        self._source, self._edits, self._seed, self._max_pixels = source, edits, seed, max_pixels
        self._rows = np.arange(len(source) * len(edits)) if rows is None else rows
        names = list(edits)
        self.keys: Sequence[str] = [
            f"{source.keys[row // len(names)]} ({names[row % len(names)]})" for row in self._rows.tolist()
        ]

    def select(self, rows: NDArray[np.intp]) -> EditedImages:
        """The edits of ``rows``."""
        chosen = self._rows[check_rows(rows, len(self))]
        return EditedImages(self._source, self._edits, seed=self._seed, max_pixels=self._max_pixels, rows=chosen)

    def read(self, row: int) -> bytes:
        """The edited image as an encoded file."""
        image, number = divmod(int(self._rows[row]), len(self._edits))
        name = list(self._edits)[number]
        data = self._source.read(image)
        limit = {} if self._max_pixels is None else {"max_pixels": self._max_pixels}
        rng = np.random.default_rng([self._seed, *name.encode(), int.from_bytes(digest(data), "big")])
        return self._edits[name](_reduced(decode_image(data, **limit)), rng)


def _reduced(pixels: Pixels) -> Image.Image:
    image = Image.fromarray(pixels)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return image


def _scaled(image: Image.Image, scale: float) -> tuple[int, int]:
    if not scale > 0:
        raise ParameterError(f"an edit's scale must be above 0, got {scale}")
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def _encoded(
    image: Image.Image, *, quality: int = QUALITY, format: str = "JPEG", exif: Image.Exif | None = None
) -> bytes:
    stream = BytesIO()
    options = {} if exif is None else {"exif": exif}
    image.save(stream, format, quality=quality, **options)
    return stream.getvalue()
