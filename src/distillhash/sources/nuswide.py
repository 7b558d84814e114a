r"""NUS-WIDE with its 10 most frequent concepts, in the layout of its archives.

Chua et al., "NUS-WIDE: A Real-World Web Image Database from National University of Singapore", CIVR 2009.
https://lms.comp.nus.edu.sg/wp-content/uploads/2019/research/nuswide/NUS-WIDE.html

``ImageList/Imagelist.txt`` names 269,648 images, one a line, as ``actor\0001_2124494179.jpg``; each of the 81 files
``Groundtruth/AllLabels/Labels_<concept>.txt`` says 0 or 1 for each of them. The images come on request from the authors.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError, FormatError
from distillhash.files import read_file
from distillhash.sources.files import FileImages

_CONCEPTS = """
airport animal beach bear birds boats book bridge buildings cars castle cat cityscape clouds computer coral cow dancing dog earthquake
elk fire fish flags flowers food fox frost garden glacier grass harbor horses house lake leaf map military moon mountain nighttime ocean
person plane plants police protest railroad rainbow reflection road rocks running sand sign sky snow soccer sports statue street sun sunset
surf swimmers tattoo temple tiger tower town toy train tree valley vehicle water waterfall wedding whales window zebra
"""
CONCEPTS = tuple(_CONCEPTS.split())
_N_KEPT = 10
_ORIGIN = "https://lms.comp.nus.edu.sg/wp-content/uploads/2019/research/nuswide/NUS-WIDE.html"


def open_nuswide(folder: Path, name: str) -> FileImages:
    """The images that have at least one of the 10 most frequent concepts, in the order of the list; labels ``(n, 10) uint8``.

    The concepts are counted over the whole list, most frequent first, ties by name. Images lie under ``Flickr/`` or ``images/``; one that
    is absent is reported when it is read. With ``ImageList/TrainImagelist.txt`` and ``TestImagelist.txt`` there are the splits ``train``
    and ``test``.
    """
    listed = folder / "ImageList" / "Imagelist.txt"
    truth = [folder / "Groundtruth" / "AllLabels" / f"Labels_{concept}.txt" for concept in CONCEPTS]
    missing = [path for path in (listed, *truth) if not path.exists()]
    if missing:
        archive = "ImageList.zip" if missing[0] == listed else "Groundtruth.zip"
        raise DataError(
            f"{name}: {missing[0]} is missing ({len(missing)} of the {1 + len(truth)} list and ground-truth files are); "
            f"unpack {archive} from {_ORIGIN}"
        )
    root = next((place for place in (folder / "Flickr", folder / "images") if place.is_dir()), None)
    if root is None:
        raise DataError(f"{name}: {folder / 'Flickr'} is missing; the images are sent on request, see {_ORIGIN}")
    paths = _image_list(listed, name)
    table = np.stack([_indicators(path, len(paths), name) for path in truth], axis=1)
    kept = np.argsort(-table.sum(axis=0, dtype=np.int64), kind="stable")[:_N_KEPT]  # CONCEPTS are sorted by name
    rows = np.flatnonzero(table[:, kept].any(axis=1))
    if not rows.size:
        raise DataError(f"{name}: nothing usable, no image has a concept; unpack Groundtruth.zip again from {_ORIGIN}")
    chosen = [paths[row] for row in rows.tolist()]
    return FileImages(
        name,
        root,
        chosen,
        labels=table[rows][:, kept],
        label_names=[CONCEPTS[concept] for concept in kept],
        splits=_splits(folder / "ImageList", chosen, name),
    )


def _read(path: Path, name: str) -> bytes:
    try:
        return read_file(path)
    except OSError as error:
        raise FormatError(
            f"{name}: {path} cannot be read ({error.strerror}); unpack it again from {_ORIGIN}"
        ) from error


def _image_list(path: Path, name: str) -> list[str]:
    lines = _read(path, name).decode("utf-8", "surrogateescape").split("\n")
    return [line.strip().replace("\\", "/") for line in lines if line.strip()]


def _indicators(path: Path, n: int, name: str) -> NDArray[np.uint8]:
    characters = np.frombuffer(_read(path, name), np.uint8)
    bits: NDArray[np.uint8] = characters[characters > ord(" ")] - ord("0")
    if len(bits) != n or np.any(bits > 1):
        raise FormatError(
            f"{name}: {path} holds {len(bits)} characters, expected {n} lines of 0 or 1; unpack it again from {_ORIGIN}"
        )
    return bits


def _splits(folder: Path, paths: list[str], name: str) -> dict[str, NDArray[np.intp]]:
    files = {"train": folder / "TrainImagelist.txt", "test": folder / "TestImagelist.txt"}
    if not all(path.exists() for path in files.values()):
        return {}
    members = {split: set(_image_list(path, name)) for split, path in files.items()}
    return {split: np.flatnonzero([path in names for path in paths]) for split, names in members.items()}
