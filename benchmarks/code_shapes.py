"""Made codes of three shapes, because the shape decides which index works; queries come from the same process.

clustered   n / 1000 centres, 4 to 16 % of the bits flipped (a rate for each centre), and a tenth of uniform noise
uniform     independent fair bits
collapsed   10 centres, 2 % of the bits flipped: what a hash gives that has learned 10 labels
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distillhash import Codes

SHAPES = ("clustered", "uniform", "collapsed")
_AT_ONCE = 1 << 18


def made_codes(shape: str, n: int, n_bits: int, n_queries: int, seed: int = 0) -> tuple[Codes, Codes]:
    """A database of ``n`` codes, and queries."""
    rng = np.random.default_rng(seed)
    n_centres = {"clustered": max(1, n // 1000), "uniform": 1, "collapsed": 10}[shape]
    centres = rng.integers(0, 2, (n_centres, n_bits), np.uint8)
    rates = rng.uniform(0.04, 0.16, n_centres).astype(np.float32) if shape == "clustered" else np.full(n_centres, 0.02)
    noise = {"clustered": 0.1, "uniform": 1.0, "collapsed": 0.0}[shape]

    def draw(count: int) -> Codes:
        parts = [np.zeros((0, -(-n_bits // 8)), np.uint8)]
        for start in range(0, count, _AT_ONCE):
            size = min(_AT_ONCE, count - start)
            chosen = rng.integers(0, n_centres, size)
            flips = np.where(rng.random(size) < noise, 0.5, rates[chosen])  # half the bits flipped is noise
            bits = centres[chosen] ^ (rng.random((size, n_bits), np.float32) < flips[:, None])
            parts.append(np.packbits(bits, axis=1))
        packed: NDArray[np.uint8] = np.concatenate(parts)
        return Codes(packed, n_bits)

    return draw(n), draw(n_queries)
