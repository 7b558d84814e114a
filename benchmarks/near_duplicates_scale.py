"""Time and memory of grouping synthetic codes of 768 bits, and of the review page over synthetic pictures.

    python benchmarks/near_duplicates_scale.py --out results/near-duplicates/scale.json

Each case runs in a process of its own, with two threads. *clustered*: a quarter as many pictures as codes, each code a picture's with about
a third of the radius flipped. *crowd*: the same, but 20,000 of the codes are of one picture. *chain*: a video, each frame a few bits from
the one before, so that everything is connected and no frame is near more than some of the others.

Seconds: to find connected parts by all three radii of a rule; to list what is to be looked at, and the groups; to count pairs for the
calibration; to make and write the review page, with thumbnails of as many groups as it shows. Memory: the process with the codes in it
before, and its peak.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from distillhash import Codes
from distillhash.bench.runs import versions
from distillhash.dedup.calibration import calibrate, count_pairs
from distillhash.dedup.groups import Rule, Stars, linked_rows, open_pairs, rule_parts, star_groups
from distillhash.dedup.job import Item, Report
from distillhash.dedup.keep import Facts
from distillhash.dedup.review import review_page
from distillhash.sources import ImageSource

BITS = 768
HASH_RADIUS, OPEN = (
    20,
    0.5,
)  # bits; the radius of the features alone, up to which pairs are looked at, of that of the whole code
CROWD = 20_000
CASES = [
    ("clustered", 200_000, 160),
    ("clustered", 200_000, 190),
    ("clustered", 2_000_000, 160),
    ("clustered", 2_000_000, 190),
    ("crowd", 200_000, 160),
    ("crowd", 200_000, 190),
    ("chain", 100_000, 160),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", nargs=3, metavar=("KIND", "ITEMS", "RADIUS"), help="only this one, on stdout")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measured(arguments.case[0], int(arguments.case[1]), int(arguments.case[2]))))
        return
    rows = []
    for case in CASES:
        command = [sys.executable, __file__, "--case", *map(str, case)]
        rows.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
        print(json.dumps(rows[-1]), file=sys.stderr)
    words = "python benchmarks/near_duplicates_scale.py --out results/near-duplicates/scale.json"
    text = json.dumps({"command": words, "versions": versions(), "cases": rows}, indent=1) + "\n"
    if arguments.out:
        arguments.out.write_text(text)


def measured(kind: str, n: int, radius: int) -> dict[str, Any]:
    """One case."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    small = clustered(64, radius)
    star_groups(small, radius)  # compiles
    codes = {"clustered": clustered, "crowd": crowded, "chain": chained}[kind](n, radius)
    row: dict[str, Any] = {"kind": kind, "items": n, "radius": radius, "rss_before_mb": peak()}
    times = [time.perf_counter()]
    rule = Rule(radius, 1, 512, HASH_RADIUS, radius, round(OPEN * radius))
    parts = rule_parts(codes, rule)
    times.append(time.perf_counter())
    pairs, _ = open_pairs(codes, rule, parts)
    row["open"] = len(pairs)
    near = linked_rows(parts)
    stars = star_groups(codes[near], rule.certain(), parts=parts[near])
    groups = stars.groups()
    times.append(time.perf_counter())
    row |= {"near": len(near), "groups": len(groups), "largest": max(map(len, groups))}
    count_pairs(codes)
    times.append(time.perf_counter())
    row["peak_rss_codes_mb"] = peak()
    row["page_mb"] = round(page(stars, near, groups, radius) / 1e6, 1)
    times.append(time.perf_counter())
    steps = ("parts_s", "groups_s", "count_s", "page_s")
    row |= {step: round(b - a, 2) for step, a, b in zip(steps, times[:-1], times[1:], strict=True)}
    return row | {"total_s": round(times[-1] - times[0], 1), "peak_rss_mb": peak()}


def page(stars: Stars, near: Any, groups: list[Any], radius: int) -> int:
    """Bytes of the review page."""
    source = Drawn(int(near.max()) + 1)
    items = [
        [_item(source, int(near[row]), int(stars.distance[row]), row == group[0]) for row in group] for group in groups
    ]
    calibration = calibrate(clustered(2_000, radius), radius=radius)
    report = Report(calibration, "synthetic codes", items, [], len(source.keys))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "review.html"
        file.write_text(review_page(report, "distillhash dedup", source.name), "utf-8")
        return file.stat().st_size


def _item(source: Drawn, row: int, distance: int, is_keeper: bool) -> Item:
    """With facts as large as real ones."""
    facts = Facts(480, 360, 20_000 + row, "JPEG", row / 7, row.to_bytes(40))
    return Item(source.keys[row], distance, source, row, facts, "keeper" if is_keeper else "similar", 9)


class Drawn(ImageSource):
    """JPEG files of 480 x 360 pixels; 64 different ones, in turn."""

    def __init__(self, n: int) -> None:
        """``n`` pictures."""
        self.name, self.labels, self.label_names = "drawn pictures", None, None
        self.keys = [f"picture-{row:07}.jpg" for row in range(n)]
        coarse = np.random.default_rng(0).integers(0, 256, (64, 9, 12, 3), np.uint8)
        self._files = [_jpeg(Image.fromarray(one).resize((480, 360), Image.Resampling.BICUBIC)) for one in coarse]

    def select(self, rows: Any) -> Drawn:
        """Not needed here."""
        raise NotImplementedError

    def read(self, row: int) -> bytes:
        """A JPEG file."""
        return self._files[row % len(self._files)]


def _jpeg(image: Image.Image) -> bytes:
    stream = BytesIO()
    image.save(stream, "JPEG")
    return stream.getvalue()


def clustered(n: int, radius: int) -> Codes:
    """Copies of ``n / 4`` random pictures."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (max(n // 4, 1), BITS // 8), np.uint8)
    return _flipped(pictures[rng.integers(0, len(pictures), n)], radius / BITS / 3, rng)


def crowded(n: int, radius: int) -> Codes:
    """The same, with ``CROWD`` copies of one picture among them."""
    rng = np.random.default_rng(1)
    packed = clustered(n, radius).packed.copy()
    one = np.repeat(rng.integers(0, 256, (1, BITS // 8), np.uint8), CROWD, axis=0)
    packed[rng.permutation(n)[:CROWD]] = _flipped(one, radius / BITS / 3, rng).packed
    return Codes.from_packed(packed, BITS)


def chained(n: int, radius: int) -> Codes:
    """A random walk, a tenth of the radius at a time."""
    rng = np.random.default_rng(2)
    steps = _flipped(np.zeros((n, BITS // 8), np.uint8), radius / BITS / 10, rng).packed
    return Codes.from_packed(np.bitwise_xor.accumulate(steps, axis=0), BITS)


def _flipped(packed: Any, share: float, rng: np.random.Generator) -> Codes:
    for start in range(0, len(packed), 50_000):
        flips = rng.random((len(packed[start : start + 50_000]), BITS), np.float32) < share
        packed[start : start + 50_000] ^= np.packbits(flips, axis=1)
    return Codes.from_packed(packed, BITS)


def peak() -> int:
    """Highest resident memory of this process so far, in MB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    main()
