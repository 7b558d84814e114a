"""The radius of a collection: how far its own copies lie, and how many pairs of different pictures lie as near."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes
from distillhash.dedup.edits import LIGHT, MIRRORED, EditedImages
from distillhash.dedup.encoder import Encoder
from distillhash.dedup.false_pairs import LEVEL, Tail, count_pairs, fit_tail
from distillhash.errors import ParameterError
from distillhash.sources import ImageSource

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

Distances = NDArray[np.int64]


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

    def recall_interval(self, radius: int, *, seed: int = 0) -> tuple[float, float]:
        """``LEVEL`` interval of :meth:`recall` by bootstrap over images; of one image, everything is possible."""
        found = np.mean(self.to_original <= radius, axis=1)
        if len(found) < 2:
            return 0.0, 1.0
        draws = np.random.default_rng(seed).integers(0, len(found), (1000, len(found)))
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


def measure_copies(
    encoder: Encoder,
    source: ImageSource,
    codes: Codes,
    rows: NDArray[np.intp],
    *,
    mirror: bool = False,
    seed: int = 0,
    max_pixels: int | None = None,
    progress: bool = False,
) -> Copies:
    """Edit some of the images and measure how far the edits lie.

    Args:
        encoder: What made ``codes``.
        source: The images.
        codes: Codes of ``rows``.
        rows: ``(n,)`` usable rows of the source.
        mirror: Mirror images count as edits too.
        seed: Chooses the images and draws the edits' strengths.
        max_pixels: Images above this cannot be edited.
        progress: Show progress on stderr.
    """
    edits = LIGHT | (MIRRORED if mirror else {})
    chosen = np.sort(np.random.default_rng(seed).permutation(len(rows))[:EDITED])
    edited = EditedImages(source.select(rows[chosen]), edits, seed=seed, max_pixels=max_pixels)
    made = encoder.encode(edited, progress=progress, max_pixels=max_pixels)
    complete = np.flatnonzero(np.bincount(made.rows // len(edits), minlength=len(chosen)) == len(edits))
    kept = np.isin(made.rows // len(edits), complete)
    copies = made.codes.words()[kept].reshape(len(complete), len(edits), -1)
    originals = codes.words()[chosen[complete]]
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
    seed: int = 0,
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
        seed: Controls what is sampled.

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
        counts = count_pairs(codes, others, reach=max(reach, radius or 0), seed=seed)
        shapes = known or [np.random.default_rng(seed).exponential(reach / 4, 1000).astype(np.int64)]
        tail, nearest = fit_tail(counts, shapes, seed=seed), np.cumsum(counts.nearest)
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
