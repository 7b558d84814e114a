"""The image size that a backbone gets for a source, from the sizes in the headers of a sample of its images.

The rule: ``side`` is the median of the shorter sides. Where it is above the backbone's ``default_size``, the images are photographs and get
its ``trained_size``; otherwise they are thumbnails, which ``default_size`` keeps. A backbone with one size keeps that.

The sample is ``N_RUNS`` runs of ``RUN`` items that follow each other, drawn by a fixed seed, so few row groups of a table are read. Of a
file, the first ``HEADER`` bytes are read. Items that cannot be read are passed over.
"""

import contextlib
import sys

import numpy as np

from distillhash.backbones.base import Backbone
from distillhash.files import open_regular
from distillhash.output import escaped
from distillhash.sources.base import BadItemError, ImageSource, Source, item_memory
from distillhash.sources.decode import image_size

N_RUNS, RUN = 64, 4
HEADER = 1 << 17  # bytes of a file that hold its size


def sized_for(backbone: Backbone, source: Source, *, quiet: bool = True) -> Backbone:
    """``backbone`` at the size that suits the images of ``source``, sharing its weights.

    Unless ``quiet``, a line on stderr says which, and why. Deterministic. A source of vectors, or one of which nothing can be
    read, leaves the backbone as it is.
    """
    if not isinstance(source, ImageSource):
        return backbone
    size, reason = backbone.image_size, f"the own size of {backbone.name}"
    if backbone.trained_size is not None:
        sides = sampled_sides(source)
        if not sides:
            return backbone
        side = sides[len(sides) // 2]  # at least half of them reach it, and at least half do not exceed it
        photographs = side > backbone.default_size
        size = backbone.trained_size if photographs else backbone.default_size
        reason = f"half of the images have a shorter side of at {'least' if photographs else 'most'} {side} pixels"
    if not quiet:
        sys.stderr.write(escaped(f"image size {size}: {reason}") + "\n")
    return backbone if size == backbone.image_size else backbone.at_size(size)


def sampled_sides(source: ImageSource) -> list[int]:
    """The shorter sides, in pixels and ascending, of a sample of the images."""
    n, n_items = len(source), N_RUNS * RUN
    rows = np.arange(n)
    if n > n_items:
        starts = np.sort(np.random.default_rng(0).choice(n // RUN, N_RUNS, replace=False)) * RUN
        rows = (starts[:, None] + np.arange(RUN)).ravel()
    sides = []
    for row in rows.tolist():
        with contextlib.suppress(BadItemError), item_memory():
            sides.append(min(_size(source, row)))
    return sorted(sides)


def _size(source: ImageSource, row: int) -> tuple[int, int]:
    path = source.path(row)
    if path is not None:
        with contextlib.suppress(OSError, BadItemError), open_regular(path) as file:
            return image_size(file.read(HEADER) or b"")
    return image_size(source.read(row))  # some formats keep their header at the end
