"""False pairs as `distillhash dedup` states them and as they are counted, on held-out samples with many of them.

    python benchmarks/near_duplicates_false_pairs.py cifar10:DIR --out results/near-duplicates

Three disjoint samples of 8,000 CIFAR-10 pictures, on which nothing was tuned: the 14,000 training pictures that no earlier version of this
estimate or of this benchmark was looked at on, and the 10,000 test pictures. Which pictures was fixed before anything was looked at.

Each sample is looked at three times: with six light edits of every tenth picture; with one edit of every tenth, another each time, for a
close pair of pictures that have six copies each counts 49 times, which leaves few that are independent; and the latter with
`--false-pairs 50`, where there is something to count. "Behind them" is the number of pairs of pictures that the counted pairs show.

*Truth.* A pair is false if it shows two pictures. Edits show the picture they were made from. CIFAR-10 itself holds pictures twice and
more (catalogue photographs, cropped, recoloured, mirrored): at small distances most pairs of its pictures are of this kind. Two pictures
count as one if their pixels say so, without the codes: the details of brightness (between 0.7 and 3 pixels) in the middle 20 x 20 pixels
of each correlate by ``SAME`` or more with some window of the other, up to 5 pixels away, scaled by 0.85 to 1.17, mirrored or not. Over near
pairs of other pictures than these, the correlation has two humps, below 0.75 and above 0.85. Both counts are given.

The pixels miss pictures that were stretched along one side. So a further count says how many of the counted pairs show one picture after
all because others between them do (A as B, B as C). It was added after the counts had been seen, and `counted` is what it was before.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from distillhash import Codes
from distillhash.backbones import FeatureCache
from distillhash.bench.runs import versions
from distillhash.dedup.calibration import Calibration, calibrate, edit_some
from distillhash.dedup.codes import Settings, encode_collection
from distillhash.dedup.edits import LIGHT, EditedImages
from distillhash.dedup.groups import different_pictures
from distillhash.sources import ImageSource, decode_image, open_source
from near_duplicates import hamming_levels

SAMPLES, SIZE, EVERY = 3, 8_000, 10
LOOKED_AT = 36_000
"""Training pictures that earlier versions were looked at on: the first of a permutation, 12,000 for tuning and three samples of 8,000."""
SAME = 0.8
SCALES, SHIFT, MIDDLE = (0.85, 0.92, 1.0, 1.08, 1.17), 5, 20
MOST_KEPT = 500  # pictures, 2 MB each

Floats = NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar10")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache")
    arguments = parser.parse_args()
    source = open_source(arguments.cifar10)
    assert isinstance(source, ImageSource)
    train, test = source.splits["train"], source.splits["test"]
    fresh = np.sort(np.random.default_rng(5).permutation(train)[LOOKED_AT:])
    drawn = np.random.default_rng(6).permutation(np.concatenate([fresh, test]))
    rows: list[dict[str, Any]] = []
    for number in range(SAMPLES):
        sample = source.select(np.sort(drawn[number * SIZE : (number + 1) * SIZE]))
        rows += stated_and_counted(f"sample {number + 1}", sample, FeatureCache(arguments.cache))
    command = "python benchmarks/near_duplicates_false_pairs.py cifar10:DIR --out results/near-duplicates"
    record = {"command": command, "versions": versions(), "same": SAME, "samples": rows}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "false-pairs.json").write_text(json.dumps(record, indent=1) + "\n")
    (arguments.out / "false-pairs.md").write_text(table(command, rows))


def stated_and_counted(name: str, pictures: ImageSource, cache: FeatureCache) -> list[dict[str, Any]]:
    """One sample, looked at three times."""
    encoder, coded = encode_collection(pictures, Settings(cache=cache))
    edited = encoder.encode(EditedImages(pictures.select(np.arange(0, len(pictures), EVERY)), LIGHT, seed=99))
    known = edit_some(encoder, pictures, coded, different_pictures(coded.codes, nearly=1 / 8))
    copies = None if known is None else known.copies()
    image, edit = np.divmod(edited.rows, len(LIGHT))
    alikeness = Alikeness(pictures)
    rows = []
    for edits, most in ((6, None), (1, None), (1, 50.0)):
        kept = (edit - image) % len(LIGHT) < edits
        codes = Codes.from_packed(np.concatenate([coded.codes.packed, edited.codes.packed[kept]]), coded.codes.n_bits)
        shown = np.concatenate([coded.rows, EVERY * image[kept]])
        different = different_pictures(codes, nearly=1 / 8)  # as `dedup` does
        calibration = calibrate(
            codes[different.kept],
            copies=copies,
            most_false_pairs=most,
            n_items=len(codes),
            pairs=different.pairs,
        )
        row = {"sample": name, "edits": edits, "most_false_pairs": most, "images": len(codes)}
        rows.append(row | compared(calibration, codes, shown, alikeness))
        keys = (
            "sample",
            "edits",
            "most_false_pairs",
            "radius",
            "stated",
            "counted",
            "joined_by_others",
            "twice_in_cifar10",
        )
        print(json.dumps({key: rows[-1][key] for key in keys}), flush=True)
    return rows


def compared(calibration: Calibration, codes: Codes, shown: Any, alikeness: Alikeness) -> dict[str, Any]:
    """Stated and counted at the radius and at those around it."""
    most = 5 * calibration.radius // 4
    curve = [row for row in calibration.curve if calibration.radius // 2 <= row["radius"] <= most]
    pairs, distances = (np.concatenate(column) for column in zip(*hamming_levels(codes, most), strict=True))
    a, b = np.sort(shown[pairs], axis=1).T
    a, b, distances = a[a != b], b[a != b], distances[a != b]
    pictures, which = np.unique(np.stack([a, b], 1), axis=0, return_inverse=True)
    which = which.ravel()
    twice = np.array([alikeness(int(one), int(other)) >= SAME for one, other in pictures], bool)[which]

    joined = _joined(pictures, which[twice])[which] & ~twice

    def counted(radius: int) -> dict[str, int]:
        near = (distances <= radius) & ~twice
        return {
            "counted": int(near.sum()),
            "behind": len(np.unique(which[near])),
            "joined_by_others": int(np.sum((distances <= radius) & joined)),
            "twice_in_cifar10": int(np.sum((distances <= radius) & twice)),
        }

    return {
        "sentence": calibration.sentence(),
        "radius": calibration.radius,
        "stated": calibration.expected_false_pairs,
        "interval": calibration.false_pairs_interval,
        **counted(calibration.radius),
        "curve": [
            {"radius": one["radius"], "stated": one["expected_false_pairs"], **counted(one["radius"])} for one in curve
        ],
    }


def _joined(pairs: Any, same: Any) -> NDArray[np.bool_]:
    """Which pairs of pictures are connected by those at the places ``same``."""
    names, ends = np.unique(pairs, return_inverse=True)
    a, b = ends.reshape(pairs.shape).T
    graph = coo_array((np.ones(len(same)), (a[same], b[same])), shape=(len(names), len(names)))
    part = connected_components(graph, directed=False)[1]
    connected: NDArray[np.bool_] = part[a] == part[b]
    return connected


class Alikeness:
    """Whether pictures of one size show the same, by their pixels."""

    def __init__(self, pictures: ImageSource) -> None:
        """Keep a reference."""
        self._pictures = pictures
        self._kept: dict[int, tuple[Floats, Floats]] = {}

    def __call__(self, a: int, b: int) -> float:
        """Correlation of details, the mean over both directions."""
        (middle_a, windows_a), (middle_b, windows_b) = self._of(a), self._of(b)
        return float((windows_b @ middle_a).max() + (windows_a @ middle_b).max()) / 2

    def _of(self, row: int) -> tuple[Floats, Floats]:
        """The middle of a picture, and all windows that another's middle is held against, each of mean 0 and norm 1."""
        if row not in self._kept:
            image = Image.fromarray(decode_image(self._pictures.read(row)).astype(np.float32).mean(axis=2))
            windows = []
            for scale in SCALES:
                side = round(scale * image.width)
                grey = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))
                detail = gaussian_filter(grey, 0.7) - gaussian_filter(grey, 3.0)
                first, last = max(0, (side - MIDDLE) // 2 - SHIFT), (side - MIDDLE + 1) // 2 + SHIFT + 1
                for turned in (detail, detail[:, ::-1]):
                    found = np.lib.stride_tricks.sliding_window_view(turned, (MIDDLE, MIDDLE))[first:last, first:last]
                    windows.append(found.reshape(-1, MIDDLE * MIDDLE))
                if scale == 1:
                    middle = detail[tuple([slice((side - MIDDLE) // 2, (side + MIDDLE) // 2)] * 2)].ravel()
            self._kept[row] = _unit(middle[None])[0], _unit(np.concatenate(windows))
            if len(self._kept) > MOST_KEPT:
                self._kept.pop(next(iter(self._kept)))
        return self._kept[row]


def _unit(rows: Floats) -> Floats:
    rows = rows - rows.mean(axis=1, keepdims=True)
    unit: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
    return unit


def table(command: str, rows: list[dict[str, Any]]) -> str:
    """The samples as Markdown."""
    lines = [
        "# False pairs, stated and counted",
        "",
        f"    {command}",
        "",
        *_head("At the chosen radius", "90% interval"),
    ]
    for one in rows:
        low, high = one["interval"]
        lines.append(_line(_name(one), one, f"{low:.1f} to {high:.1f}"))
    lines += ["", *_head("At radii around it", "")]
    for one in rows:
        if one["most_false_pairs"] is None:
            lines += [_line(_name(one), row, "") for row in one["curve"] if row["counted"] >= 1]
    return "\n".join(lines) + "\n"


def _head(title: str, interval: str) -> list[str]:
    names = ["collection", "radius", "stated", interval, "counted", "behind them", "stated / counted"]
    names += ["of the counted, joined by others", "one picture twice in CIFAR-10"]
    return [f"## {title}", "", "| " + " | ".join(names) + " |", "|---" * len(names) + "|"]


def _name(row: dict[str, Any]) -> str:
    asked = "" if row["most_false_pairs"] is None else f", `--false-pairs {row['most_false_pairs']:.0f}`"
    return f"{row['sample']}, {row['edits']} of every tenth{asked}"


def _line(name: str, row: dict[str, Any], interval: str) -> str:
    ratio = f"{row['stated'] / row['counted']:.2f}" if row["counted"] else ""
    cells = [name, row["radius"], f"{row['stated']:.1f}", interval, row["counted"], row["behind"], ratio]
    return "| " + " | ".join(map(str, [*cells, row["joined_by_others"], row["twice_in_cifar10"]])) + " |"


if __name__ == "__main__":
    main()
