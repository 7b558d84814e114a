"""Whether one picture is another, or a part of it, by laying the one on the other.

Two pictures of one thing, and two frames of a burst, have near features. A crop, a mirror image, a thumbnail and a screenshot lie on their
original, pixel by pixel; those do not. So the verdict is how well brightness correlates where two pictures lie on each other, and the place
is known with it.

Only details count, for light and dark areas of different scenes correlate. The longer side is first 32 pixels: each picture, and its mirror
image, is laid on the other in all sizes of ``SCALES`` at every place (normalised cross-correlation: Lewis, Vision Interface 1995). The best
is refined at 128 pixels, in position and in width and height, by Gauss-Newton steps. The score is taken over the best three quarters of the
blocks of a grid, so that text and stickers do not count.

Two photographs of a scene, taken a moment apart, may agree as well as a copy does. The camera moved between them, so near things moved
against far ones. So a second look at 256 pixels estimates where each cell of a grid went, and the standard error of that (Lucas and
Kanade, IJCAI 1981). What moves, stretches and turns the picture as a whole is taken off. The cells of a copy stay where they are, within
their errors; these are large where compression left little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from threadpoolctl import threadpool_limits

from distillhash.dedup.groups import compiled
from distillhash.files import cores
from distillhash.output import Progress
from distillhash.sources import MAX_PIXELS, BadItemError, ImageSource
from distillhash.sources.decode import decode_thumbnail

SIDE, FINE_SIDE, CLOSER_SIDE = 32, 128, 256  # pixels of the longer side
SCALES = np.geomspace(0.4, 1, 13)  # of the longer side of a part, of the longer side of the whole
SAME, SAME_PART, PART = 0.995, 0.98, 0.75
"""Scores from which two pictures are the same, where one covers nearly all of the other and where it covers less than ``PART`` of it.
Frames of a burst cover each other and have .994 at most, but for a few where little moved; other pictures agree in a part by
.96 at most."""
SCENE = 0.9  # from here on they show one scene
LOOSE = 0.8  # from here on the place is good enough for a closer look
MOVED = 4.0
"""Standard errors from which they are two photographs (:func:`movement`). Copies have 2.8 at most, but for a few that were stretched or
turned. Two photographs that agree by .95 or more have 4.3 at least, and mostly more than 10 (by hand, grocery training photographs)."""
SURELY_STILL = 2.0  # standard errors up to which one look is enough
_KEPT_LOOKS, _KEPT_CLOSER = 1000, 64  # about 100 and 200 kB each

_BAND = 0.7, 3.0  # standard deviations of the two blurs whose difference are the details, at 64 pixels
_LEAST = 8  # pixels of the shorter side of a part
_LEAST_SPREAD = 0.5  # grey levels; what varies less has no details
_STEPS = 8
_EDGE = 4  # samples at the edge of a part that do not count
_BLOCKS, _KEPT = 6, 0.75  # a side; share that the score is taken over
_FURTHEST = 1.25  # sizes that refining may change to, relative to those tried
_QUICK_STEPS = (((1, 1),),)
_CLOSER_STEPS = (4, 1), (2, 1), (1, 2)  # factors that widen ``_BAND``, and how many steps are taken with each
# Each pass turns the picture as the pass before found.
_ALL_STEPS = (*_QUICK_STEPS, _CLOSER_STEPS, _CLOSER_STEPS, _CLOSER_STEPS)
_LEAST_TURN = np.radians(0.05)  # what was turned by less is not turned back
_CELLS, _CELL_SIDE = 8, 6  # cells a side at most; pixels of the shortest side of a cell
_FEWEST_CELLS, _WORST_ERROR, _LEAST_ERROR = 8, 0.15, 0.02  # that tell; pixels
_FAR = 3.0  # pixels that a cell cannot be followed over

Floats = NDArray[np.float32]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Aligned:
    """How two pictures lie on each other."""

    score: float  # correlation of details, at most 1
    mirrored: bool
    turned: int  # degrees that the second was turned by, against the clock
    inside: bool  # whether the second is a part of the first; else the first is a part of the second
    box: Box  # left, top, right, bottom of the part, as shares of the whole

    @property
    def same(self) -> bool:
        """Whether they are one picture."""
        return self.score >= (SAME_PART if self.area < PART else SAME)

    @property
    def area(self) -> float:
        """Share of the whole that the part covers."""
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)

    def swapped(self) -> Aligned:
        """The same with first and second exchanged; a mirrored part lies on the other side of the whole then."""
        left, top, right, bottom = self.box
        box = (1 - right, top, 1 - left, bottom) if self.mirrored else self.box
        return replace(self, inside=not self.inside, box=box)


NOWHERE = Aligned(-1.0, False, 0, True, (0, 0, 1, 1))
_WHOLE = Aligned(1.0, False, 0, True, (0, 0, 1, 1))


class Look:
    """A small grey copy of a picture, and what is computed of it once."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        """Of ``(h, w, 3) uint8`` pixels, or of a grey copy, ``(h, w) float32``."""
        if pixels.ndim == 3:
            image = Image.fromarray(pixels).convert("L")
            scale = FINE_SIDE / max(image.size)
            size = tuple(max(1, round(side * scale)) for side in reversed(image.size))
            self.grey = _resized(np.asarray(image, np.float32), size)
        else:
            self.grey = np.asarray(pixels, np.float32)

    @cached_property
    def fine(self) -> Floats:
        """Details, ``(h, w) float32``."""
        return _band(self.grey, self.grey.shape, FINE_SIDE)

    @cached_property
    def parts(self) -> list[Floats]:
        """Details at every scale, the largest last, which has ``SIDE`` pixels."""
        height, width = (SIDE * side / max(self.grey.shape) for side in self.grey.shape)
        return [_band(self.grey, (max(2, round(height * s)), max(2, round(width * s))), SIDE) for s in SCALES]

    @cached_property
    def sums(self) -> NDArray[np.float64]:
        """See :func:`_summed`."""
        return _summed(self.parts[-1])

    @cached_property
    def mirrored(self) -> Look:
        """The same with left and right exchanged."""
        other = Look(np.ascontiguousarray(self.grey[:, ::-1]))
        other.__dict__["parts"] = [np.ascontiguousarray(part[:, ::-1]) for part in self.parts]
        return other

    def turned(self, angle: int) -> Look:
        """The same turned against the clock, with grey corners."""
        image, ground = Image.fromarray(self.grey), float(self.grey.mean())
        turned = image.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=ground)
        return Look(np.asarray(turned, np.float32))


def align(first: Look, second: Look, *, turns: Sequence[int] = (0,)) -> Aligned:
    """Lay two pictures on each other; with ``turns``, the second turned by any of these angles as well."""
    best, place = NOWHERE, None
    for angle in turns:
        upright = second.turned(angle) if angle else second
        for mirrored in (False, True):
            other = upright.mirrored if mirrored else upright
            for inside, whole, part in ((True, first, other), (False, other, first)):
                score, *box = _find(whole, part)
                if score > best.score:
                    best, place = Aligned(score, mirrored, angle, inside, best.box), (whole, part, box)
    if place is None:
        return best
    score, refined = _refined(*place)
    return Aligned(score, best.mirrored, best.turned, best.inside, refined)


class Looks:
    """The pictures of a source, as far as they can be read."""

    def __init__(self, source: ImageSource, max_pixels: int | None = None) -> None:
        """Keep references; a few looks are kept as well."""
        self._source, self._max_pixels = source, MAX_PIXELS if max_pixels is None else max_pixels
        self.get = lru_cache(_KEPT_LOOKS)(self._read)
        self.closer = lru_cache(_KEPT_CLOSER)(self._read_closer)

    def _read(self, row: int) -> Look | None:
        pixels = self._pixels(row, FINE_SIDE)
        return None if pixels is None else Look(pixels)

    def _read_closer(self, row: int) -> Floats | None:
        pixels = self._pixels(row, CLOSER_SIDE)
        return None if pixels is None else np.asarray(Image.fromarray(pixels).convert("L"), np.float32)

    def _pixels(self, row: int, side: int) -> NDArray[np.uint8] | None:
        try:
            return decode_thumbnail(self._source.read(row), side, max_pixels=self._max_pixels)
        except BadItemError:
            return None


def align_pairs(first: Looks, second: Looks, pairs: NDArray[np.int64], *, progress: bool = False) -> list[Aligned]:
    """Lay the pictures of each pair of rows on each other; what cannot be read lies on nothing."""
    return _each(partial(_lie, first, second), pairs.tolist(), progress)


def taken_twice(
    first: Looks, second: Looks, pairs: NDArray[np.int64], lies: Sequence[Aligned | None], *, progress: bool = False
) -> list[bool]:
    """Whether the pictures of each pair are two photographs of one scene; ``lies`` says how they lie on each other, where it is known."""

    def one(asked: tuple[list[int], Aligned | None]) -> bool:
        pair, lie = asked
        a, b = first.closer(pair[0]), second.closer(pair[1])
        if a is None or b is None:
            return False
        if lie is None:
            if movement(a, b, _WHOLE, quick=True) < MOVED:
                return False
            lie = _lie(first, second, pair)
        return lie.score >= LOOSE and movement(a, b, lie) >= MOVED

    return _each(one, zip(pairs.tolist(), lies, strict=True), progress)


def _lie(first: Looks, second: Looks, pair: Sequence[int]) -> Aligned:
    a, b = first.get(pair[0]), second.get(pair[1])
    return NOWHERE if a is None or b is None else align(a, b)


def _each(one: Callable[[Any], Any], asked: Iterable[Any], progress: bool) -> list[Any]:
    """``one`` of all that is asked, on all cores."""
    found: list[Any] = []
    asked = list(asked)
    shown = Progress("comparing pictures", len(asked), unit="pairs", quiet=not progress)
    one_thread = threadpool_limits(limits=1, user_api="blas")  # of matrices this small; more cost more than they save
    with shown, one_thread, ThreadPoolExecutor(cores()) as pool:
        for start in range(0, len(asked), 256):
            part = asked[start : start + 256]
            found += pool.map(one, part)
            shown.advance(len(part))
    return found


def movement(first: Floats, second: Floats, lies: Aligned, *, quick: bool = False) -> float:
    """How far the cells of a grid moved against each other, between two grey pictures that lie on each other.

    Args:
        first: ``(h, w) float32`` grey levels.
        second: The same of the other picture.
        lies: Where one lies on the other, to within a few pixels; within half a pixel where it is to be ``quick``.
        quick: Look once. The answer is infinite where that does not show that nothing moved.

    Returns:
        The median over the cells that have details, in standard errors, each of .02 pixels at least; the least of all passes. 0 where the
        common picture is less than a fifth of a side, or has fewer than three cells a side, or where too few cells have details.
        Deterministic.
    """
    if lies.mirrored:
        second = np.ascontiguousarray(second[:, ::-1])
    whole, part = (first, second) if lies.inside else (second, first)
    left, top, right, bottom = lies.box
    shares = np.array([bottom - top, right - left])
    if shares.min() < SCALES[0] / 2:
        return 0.0
    scale = min(1.0, float(np.max(shares * whole.shape / part.shape)))
    size = np.maximum(1, np.round(np.array(part.shape) * scale)).astype(int)
    n_cells = np.minimum(_CELLS, size // _CELL_SIDE)
    if n_cells.min() < 3:
        return 0.0
    cell = size // n_cells
    middles = [(np.arange(n) + 0.5) * c for n, c in zip(n_cells, cell, strict=True)]
    places = np.stack(np.meshgrid(*middles, indexing="ij")).reshape(2, -1) / size[:, None]
    whole_size = np.maximum(2, np.round(size / shares)).astype(int)
    lines = np.array([[top, shares[0]], [left, shares[1]]], float) * whole_size[:, None]  # start and length, pixels
    part, whole = _resized(part, tuple(size)), _resized(whole, tuple(whole_size))
    # A picture that was straightened is a copy; it is turned back where it does not fit as it is.
    found, angle = np.inf, 0.0
    for steps in _QUICK_STEPS if quick else _ALL_STEPS:
        upright = _turned(part, angle) if angle else part
        for blur, n_steps in steps:
            target, fine = (_band(picture, picture.shape, 64 * blur) for picture in (upright, whole))
            for _ in range(n_steps):
                points = [
                    np.float32(a + b * (np.arange(m) + 0.5) / m - 0.5) for (a, b), m in zip(lines, size, strict=True)
                ]
                moves, errors = _moves(target, _sampled(fine, *points)[0], n_cells, cell)
                change = np.stack([_line(*known) for known in zip(places, moves, errors, strict=True)])
                lines += change
        moves = moves - change[:, :1] - change[:, 1:] * places
        error = np.hypot(*errors)
        telling = error < _WORST_ERROR
        moved = np.inf
        if telling.sum() >= _FEWEST_CELLS:
            moved = float(np.median((np.hypot(*moves) / np.hypot(error, _LEAST_ERROR))[telling]))
        if steps is _CLOSER_STEPS or (telling.mean() >= 0.5 and moved < SURELY_STILL):
            found = min(found, moved)
            if found < MOVED:
                break
        down, across = (places - 0.5) * size[:, None]
        arms = np.concatenate([across, -down])
        ratio = float(np.median(moves.ravel() * arms) / np.median(arms**2))
        if steps is _CLOSER_STEPS:
            turn = float(_fitted(arms[None], moves.ravel(), errors.ravel(), np.array([ratio]))[0])
            if abs(turn) < _LEAST_TURN:
                break
            angle += turn
    return found if quick or found < np.inf else 0.0


def _turned(picture: Floats, angle: float) -> Floats:
    """Turned around its middle, with the clock, by radians; what lies beyond is as at the edge."""
    edge = 2 + int(np.ceil(abs(np.sin(angle)) * max(picture.shape)))
    image = Image.fromarray(np.pad(picture, edge, mode="edge"))
    turned = np.asarray(image.rotate(-np.degrees(angle), Image.Resampling.BICUBIC), np.float32)
    return turned[edge:-edge, edge:-edge]


def _moves(target: Floats, values: Floats, n_cells: Sequence[int], cell: Sequence[int]) -> tuple[Any, Any]:
    """How far each cell of ``values`` is from its place in ``target``, down and right, and the standard errors: ``(2, cells)`` pixels."""
    known = np.stack([target, values, *np.gradient(values)])[:, : n_cells[0] * cell[0], : n_cells[1] * cell[1]]
    known = known.reshape(4, n_cells[0], cell[0], n_cells[1], cell[1]).transpose(1, 3, 0, 2, 4)
    known = known.reshape(n_cells[0] * n_cells[1], 4, -1)
    known -= known.mean(axis=2, keepdims=True)
    wanted, design, n = known[:, :1], known[:, 1:], known.shape[2]
    inverse = np.linalg.inv(design @ design.transpose(0, 2, 1) + 1e-2 * n * np.eye(3))
    solved = wanted @ design.transpose(0, 2, 1) @ inverse  # contrast, and what the slopes are to be multiplied by
    noise = ((wanted - solved @ design) ** 2).sum(axis=(1, 2)) / (n - 3) + 1 / 6  # two pictures in whole grey levels
    contrast = np.maximum(solved[:, 0, 0], 0.1)
    errors = np.sqrt(noise * inverse[:, (1, 2), (1, 2)].T)
    return solved[:, 0, 1:].T / contrast, errors / contrast


def _line(places: Any, moves: Any, errors: Any) -> Any:
    """Start and slope of a line through most of the moves."""
    return _fitted(np.stack([np.ones_like(places), places]), moves, errors, np.array([np.median(moves), 0.0]))


def _fitted(design: Any, moves: Any, errors: Any, found: Any) -> Any:
    """Least squares from ``found`` on, reweighted for errors of Cauchy's distribution; zeros where too few cells tell."""
    use = (errors < _WORST_ERROR) & (np.abs(moves) < _FAR)
    if use.sum() < _FEWEST_CELLS:
        return np.zeros(len(design))
    design, moves = design[:, use], moves[use]
    weights = 1 / (errors[use] ** 2 + _LEAST_ERROR**2)
    for _ in range(_STEPS):
        kept = weights / (1 + weights * (moves - found @ design) ** 2 / 4)
        found = np.linalg.solve(design * kept @ design.T + 1e-9 * np.eye(len(design)), design * kept @ moves)
    return found


def _find(whole: Look, part: Look) -> tuple[float, int, int, int, int]:
    """The best correlation of the part with a place of the whole, and the place: top, left, height, width in pixels of ``SIDE``."""
    best = (-1.0, 0, 0, 1, 1)
    height, width = whole.parts[-1].shape
    for template in part.parts:
        h, w = template.shape
        if h > height + 1 or w > width + 1 or min(h, w) < min(_LEAST, height, width):
            continue
        template = template[:height, :width]
        score, y, x = _correlate(whole.parts[-1], whole.sums, np.ascontiguousarray(template))
        if score > best[0]:
            best = (score, y, x, *template.shape)
    return best


@compiled
def _correlate(whole: Any, sums: Any, part: Any) -> Any:
    """Normalised cross-correlation at the best place, and that place; ``sums`` are :func:`_summed` of the whole."""
    h, w = part.shape
    n = h * w
    centred = part - part.mean()
    squares = max((centred * centred).sum(), n * 0.25)
    best, best_y, best_x = -1.0, 0, 0
    places = whole.shape[1] - w + 1
    product = np.empty(places, np.float32)  # of all places in a row at a time, which the processor adds up side by side
    for y in range(whole.shape[0] - h + 1):
        product[:] = 0
        for i in range(h):
            for j in range(w):
                weight = centred[i, j]
                for x in range(places):
                    product[x] += whole[y + i, x + j] * weight
        for x in range(places):
            total = sums[0, y + h, x + w] - sums[0, y, x + w] - sums[0, y + h, x] + sums[0, y, x]
            square = sums[1, y + h, x + w] - sums[1, y, x + w] - sums[1, y + h, x] + sums[1, y, x]
            spread = max(square - total * total / n, n * 0.25)
            found = product[x] / np.sqrt(spread * squares)
            if found > best:
                best, best_y, best_x = found, y, x
    return best, best_y, best_x


def _summed(picture: Floats) -> NDArray[np.float64]:
    """Sums of all values above and to the left of each corner, ``(2, h + 1, w + 1)``, and of their squares."""
    sums = np.zeros((2, picture.shape[0] + 1, picture.shape[1] + 1))
    values = picture.astype(np.float64)
    sums[:, 1:, 1:] = np.stack([values, values**2]).cumsum(axis=1).cumsum(axis=2)
    return sums


def _refined(whole: Look, part: Look, box: Sequence[int]) -> tuple[float, Box]:
    """Gauss-Newton steps from a place at ``SIDE`` pixels; the score over the best blocks, and the box."""
    unit = FINE_SIDE / SIDE
    y, x, h, w = (unit * value for value in box)
    sides = h, w
    target = _band(part.grey, (max(2, round(h / 2)), max(2, round(w / 2))), FINE_SIDE // 2)  # at every other pixel
    down, right = ((np.arange(n, dtype=np.float32) + np.float32(0.5)) / n for n in target.shape)
    # At its edges a part does not know what the whole shows beyond.
    inner = [slice(min(_EDGE, n // 7), n - min(_EDGE, n // 7)) for n in target.shape]
    target, down, right = target[inner[0], inner[1]], down[inner[0]], right[inner[1]]
    target = (target - target.mean()) / max(float(target.std()), _LEAST_SPREAD)
    best: tuple[float, Any, Any] = (-1.0, None, (y, x, h, w))
    shorter = False
    for _ in range(_STEPS):
        values, dy, dx = _sampled(whole.fine, y + down * h - 0.5, x + right * w - 0.5)
        spread = max(float(values.std()), _LEAST_SPREAD)
        values = (values - values.mean()) / spread
        score = float(np.mean(target * values))
        if score <= best[0] + 1e-4:
            if shorter or score > best[0] - 1e-4:
                break
            shorter = True  # the step was too long
            y, x, h, w = ((a + b) / 2 for a, b in zip(best[2], (y, x, h, w), strict=True))
            continue
        best = score, values, (y, x, h, w)
        design = np.stack([dy, dx, dy * down[:, None], dx * right]).reshape(4, -1) / spread
        design = np.vstack([design, values.ravel()[None], np.ones((1, values.size), np.float32)])
        step = np.linalg.solve(design @ design.T + 1e-2 * np.eye(6), design @ (target - values).ravel())
        y, x, h, w = y + step[0], x + step[1], h + step[2], w + step[3]
        if max(abs(np.log(h / sides[0])), abs(np.log(w / sides[1]))) > np.log(_FURTHEST):
            break
    _, values, (y, x, h, w) = best
    score = -1.0 if values is None else _over_best_blocks(target, values)
    rows, columns = whole.grey.shape
    return score, (x / columns, y / rows, (x + w) / columns, (y + h) / rows)


@compiled
def _sampled(image: Any, rows: Any, columns: Any) -> Any:
    """Bilinear values at a grid of points, and their slopes down and to the right, ``(3, h, w) float32``; the nearest beyond the edges."""
    height, width = image.shape
    found = np.zeros((3, len(rows), len(columns)), np.float32)
    for i in range(len(rows)):
        y = min(max(rows[i], 0.0), height - 1.0)
        top = min(int(y), height - 2)
        v = np.float32(y - top)
        for j in range(len(columns)):
            x = min(max(columns[j], 0.0), width - 1.0)
            left = min(int(x), width - 2)
            u = np.float32(x - left)
            a, b = image[top, left], image[top, left + 1]
            c, d = image[top + 1, left], image[top + 1, left + 1]
            found[0, i, j] = (a * (1 - u) + b * u) * (1 - v) + (c * (1 - u) + d * u) * v
            found[1, i, j] = (c - a) * (1 - u) + (d - b) * u
            found[2, i, j] = (b - a) * (1 - v) + (d - c) * v
    return found


def _over_best_blocks(a: Floats, b: Floats) -> float:
    """Correlation over the blocks of a grid in which the two agree best."""
    number = [np.arange(side) * _BLOCKS // side for side in a.shape]
    block = _BLOCKS * number[0][:, None] + number[1]
    counts = np.bincount(block.ravel(), minlength=_BLOCKS**2)
    errors = np.bincount(block.ravel(), ((a - b) ** 2).ravel(), _BLOCKS**2) / np.maximum(counts, 1)
    there = np.flatnonzero(counts)
    kept = there[np.argsort(errors[there], kind="stable")][: max(1, round(_KEPT * len(there)))]
    chosen = np.isin(block, kept)
    one, other = (values[chosen] - values[chosen].mean() for values in (a, b))
    least = 0.05 * len(one)  # what is left must have details
    return float(one @ other / np.sqrt(max(one @ one, least) * max(other @ other, least)))


def _band(picture: Floats, size: tuple[int, ...], side: int) -> Floats:
    """Details of a picture, resized to ``size``, in whose scale the longer side of the whole has ``side`` pixels."""
    (height, width), (rows, columns) = size, picture.shape
    blurred = [_blur(height, rows, s * side / 64) @ picture @ _blur(width, columns, s * side / 64).T for s in _BAND]
    band: Floats = np.subtract(*blurred)
    return band


@lru_cache(maxsize=1024)
def _blur(n_out: int, n_in: int, sigma: float) -> Floats:
    """``(n_out, n_in) float32``: what a Gaussian of ``sigma`` pixels of the result sees from the middle of each of its pixels."""
    middles = (np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5
    away = (np.arange(n_in) - middles[:, None]) * (n_out / n_in) / sigma
    weights: NDArray[np.float64] = np.exp(-0.5 * away**2)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def _resized(picture: Floats, size: tuple[int, ...]) -> Floats:
    return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BICUBIC), np.float32)
