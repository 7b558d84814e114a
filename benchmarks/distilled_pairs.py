"""Time and memory of flip-rate bounds and distilled pairs at the paper's largest training set: N = 10,500, o = 4.

    python benchmarks/distilled_pairs.py

Prints one JSON object. The logits come from 48 outputs of a random network, as dense and varied as real ones.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import numpy as np

from distillhash.supervision.flip_rate import distil_pairs
from distillhash.supervision.neighbours import nearest_neighbours
from distillhash.supervision.similarity import cosine_distances


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=10_500)
    parser.add_argument("--o", type=int, default=4)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    outputs = np.tanh(rng.standard_normal((arguments.n, 48))).astype(np.float32)
    neighbours = nearest_neighbours(cosine_distances(outputs[:2000]), arguments.o)
    distil_pairs(outputs[:50] @ outputs[:50].T, neighbours[:50] % 50)  # compile outside the clock
    neighbours = rng.integers(0, arguments.n, (arguments.n, arguments.o)).astype(np.int32)
    started = time.perf_counter()
    logits = np.float32(0.5) * (outputs @ outputs.T)
    pairs = distil_pairs(logits, neighbours)
    seconds = time.perf_counter() - started
    result = {
        "n": arguments.n,
        "o": arguments.o,
        "seconds": round(seconds, 2),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "kept_positive": float(np.mean(pairs > 0)),
        "kept_negative": float(np.mean(pairs < 0)),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
