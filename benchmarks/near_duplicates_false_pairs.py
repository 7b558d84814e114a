"""False pairs as `distillhash dedup` states them and as they are counted: pairs inside the groups that it reports.

    python benchmarks/near_duplicates_false_pairs.py --collection NAME=SOURCE --cifar10 cifar10:DIR --out results/near-duplicates

**Collections without edits**, `--collection` once for each. Every pair inside a group counts as false, but those of the same file or the
same pixels. Every keeper and what it holds is listed, to be looked at. `--backbone NAME` or `NAME@SIZE` adds a network to the default one,
as in near_duplicates.py.

**CIFAR-10**: three disjoint samples of 8,000 pictures, on which nothing was tuned: the 14,000 training pictures that no earlier version of
this estimate or of this benchmark was looked at on, and the 10,000 test pictures. Which pictures was fixed before anything was looked at.

Each sample is looked at three times: with six light edits of every tenth picture; with one edit of every tenth, another each time, for a
close pair of pictures that have six copies each counts 49 times, which leaves few that are independent; and the latter with
`--false-pairs 50`, where there is something to count. "Behind them" is the number of pairs of pictures that the counted pairs show.

*Truth.* A pair is false if it shows two pictures. Edits show the picture they were made from. CIFAR-10 itself holds pictures twice and
more (catalogue photographs, cropped, recoloured, mirrored): at small distances most pairs of its pictures are of this kind. Two pictures
count as one if their pixels say so, without the codes: the details of brightness (between 0.7 and 3 pixels) in the middle 20 x 20 pixels
of each correlate by ``SAME`` or more with some window of the other, up to 5 pixels away, scaled by 0.85 to 1.17, mirrored or not. Over near
pairs of other pictures than these, the correlation has two humps, below 0.75 and above 0.85. Both counts are given.

The pixels miss pictures that were stretched along one side. So a further count says how many of the counted pairs show one picture after
all because others between them do (A as B, B as C).
"""

from __future__ import annotations

import argparse
import json
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from distillhash.backbones import Backbone, FeatureCache
from distillhash.bench.runs import versions
from distillhash.dedup.codes import DEFAULT_BACKBONE, Settings
from distillhash.dedup.edits import LIGHT, EditedImages
from distillhash.dedup.job import Report, find_duplicates
from distillhash.sources import ImageSource, decode_image, open_source
from near_duplicates import labelled, made

SAMPLES, SIZE, EVERY = 3, 8_000, 10
LOOKED_AT = 36_000
"""Training pictures that earlier versions were looked at on: the first of a permutation, 12,000 for tuning and three samples of 8,000."""
SAME = 0.8
SCALES, SHIFT, MIDDLE = (0.85, 0.92, 1.0, 1.08, 1.17), 5, 20
MOST_KEPT = 500  # pictures, 2 MB each

Floats = NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collection", action="append", default=[], metavar="NAME=SOURCE")
    parser.add_argument("--cifar10", metavar="SOURCE")
    parser.add_argument("--backbone", action="append", default=[], metavar="NAME[@SIZE]")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache")
    arguments = parser.parse_args()
    cache = FeatureCache(arguments.cache)
    networks = [made(name) for name in (f"{DEFAULT_BACKBONE}@224", *arguments.backbone)]
    collections, samples = list[dict[str, Any]](), list[dict[str, Any]]()

    def write() -> None:
        words = ["python benchmarks/near_duplicates_false_pairs.py --collection NAME=SOURCE --cifar10 cifar10:DIR"]
        words += ["--out results/near-duplicates"]
        command = " ".join([*words, *(f"--backbone '{labelled(network)}'" for network in networks[1:])])
        record = {
            "command": command,
            "versions": versions(),
            "same": SAME,
            "collections": collections,
            "samples": samples,
        }
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "false-pairs.json").write_text(json.dumps(record, indent=1) + "\n")
        (arguments.out / "false-pairs.md").write_text(table(command, collections, samples))

    for name, spec in (one.split("=", 1) for one in arguments.collection):
        source = open_source(spec)
        assert isinstance(source, ImageSource)
        for network in networks:
            report = find_duplicates(source, Settings(backbone=network, cache=cache))
            collections.append({"collection": name, "backbone": labelled(network)} | without_edits(report))
            write()
    if arguments.cifar10:
        source = open_source(arguments.cifar10)
        assert isinstance(source, ImageSource)
        train, test = source.splits["train"], source.splits["test"]
        fresh = np.sort(np.random.default_rng(5).permutation(train)[LOOKED_AT:])
        drawn = np.random.default_rng(6).permutation(np.concatenate([fresh, test]))
        for number in range(SAMPLES):
            sample = source.select(np.sort(drawn[number * SIZE : (number + 1) * SIZE]))
            for row in stated_and_counted(f"sample {number + 1}", sample, networks[0], cache):
                samples.append(row)
                write()


def stated(report: Report) -> dict[str, Any]:
    """What the calibration says."""
    calibration = report.calibration
    return {
        "images": report.n_items,
        "sentence": calibration.sentence(),
        "stated": calibration.expected_false_pairs,
        "interval": calibration.false_pairs_interval,
        "looked_at": report.n_looked_at,
    }


def without_edits(report: Report) -> dict[str, Any]:
    """A collection in which every pair is false but exact copies."""
    pairs, n_counted = [], 0
    for keeper, *others in report.groups:
        n_counted += comb(1 + sum(item.match not in ("same file", "same pixels") for item in others), 2)
        for item in others:
            if item.match not in ("same file", "same pixels"):
                score = None if item.aligned is None else round(item.aligned.score, 4)
                words = {"match": item.match, "found_by": item.found_by, "edits": item.edits}
                pairs.append(
                    {"keeper": keeper.path, "item": item.path, "distance": item.distance, "score": score} | words
                )
    scenes = sum(len(group) - 1 for group in report.scenes)
    n_exact = report.n_duplicates - len(pairs)
    return stated(report) | {"counted": n_counted, "exact": n_exact, "same_scene": scenes, "pairs": pairs}


class Together(ImageSource):
    """Two sources, one after the other."""

    def __init__(self, first: ImageSource, second: ImageSource) -> None:
        super().__init__(f"{first.name} and {second.name}", [*first.keys, *second.keys])
        self._parts, self._rows = (first, second), np.arange(len(self))

    def _take(self, rows: NDArray[np.intp]) -> None:
        self._rows = self._rows[rows]

    def read(self, row: int) -> bytes | NDArray[np.uint8]:
        """As in its source."""
        first, second = self._parts
        at = int(self._rows[row])
        return first.read(at) if at < len(first) else second.read(at - len(first))


def stated_and_counted(
    name: str, pictures: ImageSource, network: Backbone, cache: FeatureCache
) -> list[dict[str, Any]]:
    """One sample, looked at three times."""
    edited = EditedImages(pictures.select(np.arange(0, len(pictures), EVERY)), LIGHT, seed=99)
    image, edit = np.divmod(np.arange(len(edited)), len(LIGHT))
    alikeness = Alikeness(pictures)
    rows = []
    for edits, most in ((6, None), (1, None), (1, 50.0)):
        kept = np.flatnonzero((edit - image) % len(LIGHT) < edits)
        shown = np.concatenate([np.arange(len(pictures)), EVERY * image[kept]])
        collection = Together(pictures, edited.select(kept))
        report = find_duplicates(collection, Settings(backbone=network, cache=cache, most_false_pairs=most))
        row = {"sample": name, "backbone": labelled(network), "edits": edits, "most_false_pairs": most}
        rows.append(row | stated(report) | counted(report, shown, alikeness))
        print(json.dumps(rows[-1]), flush=True)
    return rows


def counted(report: Report, shown: Any, alikeness: Alikeness) -> dict[str, int]:
    """The pairs inside the groups that show two pictures."""
    groups = [np.array([item.row for item in group]) for group in report.groups]
    pairs = np.concatenate([np.zeros((0, 2), np.int64), *(g[np.stack(np.triu_indices(len(g), 1), 1)] for g in groups)])
    a, b = np.sort(shown[pairs], axis=1).T
    a, b = a[a != b], b[a != b]
    pictures, which = np.unique(np.stack([a, b], 1), axis=0, return_inverse=True)
    which = which.ravel()
    twice = np.array([alikeness(int(one), int(other)) >= SAME for one, other in pictures], bool)[which]
    joined = _joined(pictures, which[twice])[which] & ~twice
    return {
        "counted": int((~twice).sum()),
        "behind": len(np.unique(which[~twice])),
        "joined_by_others": int(joined.sum()),
        "twice_in_cifar10": int(twice.sum()),
        "true": len(pairs) - len(a),
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


def table(command: str, collections: list[dict[str, Any]], samples: list[dict[str, Any]]) -> str:
    """All of it as Markdown."""
    lines = ["# False pairs, stated and counted", "", f"    {command}", ""]
    if collections:
        names = [
            "collection",
            "backbone",
            "images",
            "stated",
            "90% interval",
            "counted",
            "of 1,000 images",
            "exact copies",
        ]
        lines += ["## Collections without edits", "", *_head(*names, "same scene, apart")]
        for one in collections:
            low, high = one["interval"]
            words = [
                one["collection"],
                one["backbone"],
                f"{one['images']:,}",
                f"{one['stated']:.1f}",
                f"{low:.1f} to {high:.1f}",
            ]
            words += [one["counted"], f"{1000 * one['counted'] / one['images']:.2f}", one["exact"], one["same_scene"]]
            lines.append(_line(*words))
        names = ["collection", "backbone", "kept", "other", "bits", "score", "match", "found by", "edits"]
        lines += ["", "Each counted pair:", "", *_head(*names)]
        for one in collections:
            for pair in one["pairs"]:
                words = [one["collection"], one["backbone"], Path(pair["keeper"]).name, Path(pair["item"]).name]
                score = "" if pair["score"] is None else f"{pair['score']:.3f}"
                words += [pair["distance"], score, pair["match"], pair["found_by"], ", ".join(pair["edits"])]
                lines.append(_line(*words))
        lines.append("")
    if samples:
        names = ["collection", "images", "stated", "90% interval", "counted", "behind them", "stated / counted"]
        names += ["of the counted, joined by others", "one picture twice in CIFAR-10"]
        lines += ["## Samples of CIFAR-10", "", *_head(*names)]
        for one in samples:
            low, high = one["interval"]
            ratio = f"{one['stated'] / one['counted']:.2f}" if one["counted"] else ""
            words = [
                _name(one),
                f"{one['images']:,}",
                f"{one['stated']:.1f}",
                f"{low:.1f} to {high:.1f}",
                one["counted"],
            ]
            lines.append(_line(*words, one["behind"], ratio, one["joined_by_others"], one["twice_in_cifar10"]))
        lines.append("")
    return "\n".join(lines)


def _head(*names: str) -> list[str]:
    return [_line(*names), "|---" * len(names) + "|"]


def _line(*cells: Any) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _name(row: dict[str, Any]) -> str:
    asked = "" if row["most_false_pairs"] is None else f", `--false-pairs {row['most_false_pairs']:.0f}`"
    return f"{row['sample']}, {row['edits']} of every tenth{asked}"


if __name__ == "__main__":
    main()
