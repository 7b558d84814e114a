"""How the bits of codes behave. Good bits are balanced (half +1), uncorrelated, and spread the items over many codes."""

from __future__ import annotations

from typing import Any

import numpy as np

from distillhash.codes import Codes
from distillhash.errors import DataError

_SIGN_BLOCK = 1 << 16  # rows; a float32 sum of that many signs is exact


def bit_statistics(codes: Codes) -> dict[str, Any]:
    """How the bits of at least one code behave, as a JSON-able dictionary; exact, deterministic, one pass.

    - ``n``, ``n_bits`` (K);
    - ``balance``: K floats, the mean sign of each bit in [-1, 1] (0: half the items are +1; -1 or +1: constant);
    - ``correlation``: K x K Pearson correlations of the signs; a constant bit correlates 0 with every bit and with itself;
    - ``mean_abs_balance``, and ``mean_abs_correlation`` off the diagonal (0 for one bit);
    - ``constant_bits``: how many bits never change;
    - ``effective_bits``: participation ratio ``(sum w)^2 / sum w^2`` of the eigenvalues w of the correlation matrix: K for uncorrelated
      bits, 1 for copies of one bit, 0 where all bits are constant. Sampling noise alone lowers it to about ``K / (1 + K / n)``, so compare
      it between codes of the same items;
    - ``unique_fraction``: distinct codes over ``n``; ``largest_bucket_fraction``: share of the commonest code.
    """
    n, n_bits = len(codes), codes.n_bits
    if n == 0:
        raise DataError("bit statistics need at least one code, got 0; encode some items first")
    sums, products = np.zeros(n_bits, np.int64), np.zeros((n_bits, n_bits), np.int64)
    for start in range(0, n, _SIGN_BLOCK):
        signs = codes[start : start + _SIGN_BLOCK].signs().astype(np.float32)
        sums += signs.sum(axis=0).astype(np.int64)
        products += (signs.T @ signs).astype(np.int64)
    # Integers up to here, so a constant bit is recognised exactly and a copied bit has a correlation of exactly 1.
    variance = n * n - sums * sums
    squares = variance.astype(np.float64)
    # The smallest variance of a bit that changes is above 1; a constant bit has a covariance of exactly 0.
    correlation = (n * products - np.outer(sums, sums)) / np.maximum(np.sqrt(np.outer(squares, squares)), 1.0)
    live = variance > 0
    np.fill_diagonal(correlation, live.astype(np.float64))
    off_diagonal = np.abs(correlation).sum() - live.sum()
    energy = float(np.square(correlation).sum())  # the sum of squared eigenvalues; their sum is the trace
    # As one value per code: bytes compare as a whole, several times faster than rows of columns.
    scalars = np.ascontiguousarray(codes.packed).view(f"V{codes.packed.shape[1]}").ravel()
    _, buckets = np.unique(scalars, return_counts=True)
    balance = sums / n
    return {
        "n": n,
        "n_bits": n_bits,
        "balance": balance.tolist(),
        "correlation": correlation.tolist(),
        "mean_abs_balance": float(np.mean(np.abs(balance))),
        "mean_abs_correlation": float(off_diagonal / max(n_bits * (n_bits - 1), 1)),
        "constant_bits": int(n_bits - live.sum()),
        "effective_bits": float(live.sum()) ** 2 / energy if energy else 0.0,
        "unique_fraction": len(buckets) / n,
        "largest_bucket_fraction": int(buckets.max()) / n,
    }
