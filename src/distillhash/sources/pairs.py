"""Image-text pairs: a source of images, or of vectors, and the texts that belong to each of its items.

An item may have several texts (the five captions of Flickr8k) or none. Nothing is lost silently: an item without a text stays in the
source and is named by :meth:`PairSource.without_text`, a text that is empty is dropped and named in :attr:`PairSource.dropped`.
"""

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError, FormatError, ParameterError
from distillhash.sources.base import Skipped, Source, check_rows
from distillhash.sources.files import FileImages, find_images
from distillhash.sources.registry import open_source, selected_rows, split_selections
from distillhash.sources.table import read_column, readable_table
from distillhash.sources.vectors import check_finite, labelled_vectors, read_npz, usable_vectors

Texts = list[str] | NDArray[Any]


class PairSource:
    """Images (or image vectors) and their texts (or text vectors).

    Attributes:
        texts: ``t`` texts, or ``(t, e)`` floats, grouped by item in the order of the ``n`` ``images``, whose labels serve evaluation only.
        owners: ``(t,) intp``, ascending: the item each text belongs to.
        dropped: Texts that cannot be used, by the row of their item (-1: of no item).
    """

    def __init__(
        self, name: str, images: Source, texts: Texts, owners: NDArray[np.intp], dropped: list[tuple[int, Skipped]]
    ) -> None:
        if not len(owners):
            first = f"; first {dropped[0][1].key}: {dropped[0][1].reason}" if dropped else ""
            raise DataError(f"{name}: none of the {len(images)} items has a usable text{first}")
        self.name, self.images, self.texts, self.owners, self.dropped = name, images, texts, owners, dropped
        self.keys, self.labels, self.splits = images.keys, images.labels, images.splits

    def __len__(self) -> int:
        """Number of items, with texts or without."""
        return len(self.images)

    def select(self, rows: NDArray[np.intp]) -> "PairSource":
        """The pairs of ``rows`` (``(m,) int``), in that order; at least one of them must have a text."""
        rows = check_rows(rows, len(self))
        starts = np.searchsorted(self.owners, rows, side="left")
        counts = np.searchsorted(self.owners, rows, side="right") - starts
        owners = np.repeat(np.arange(len(rows)), counts)
        first = np.cumsum(counts) - counts
        places = np.arange(len(owners)) - first[owners] + starts[owners]
        position = {int(row): place for place, row in enumerate(rows)}
        dropped = [(position.get(row, -1), skipped) for row, skipped in self.dropped if row in position or row < 0]
        return PairSource(self.name, self.images.select(rows), take_texts(self.texts, places), owners, dropped)

    def without_text(self) -> NDArray[np.intp]:
        """Rows of the items that have no text, ascending."""
        return np.flatnonzero(np.bincount(self.owners, minlength=len(self)) == 0)

    def unusable(self) -> list[Skipped]:
        """The dropped texts, and the items that have no text left."""
        explained = {row for row, _ in self.dropped}
        bare = [row for row in self.without_text().tolist() if row not in explained]
        return [
            *(skipped for _, skipped in self.dropped),
            *(Skipped(self.keys[row], "the image has no text") for row in bare),
        ]


def take_texts(texts: Texts, places: NDArray[np.intp]) -> Texts:
    """The texts, or text vectors, at ``places``."""
    return texts[places] if isinstance(texts, np.ndarray) else [texts[place] for place in places.tolist()]


def pair_texts(name: str, images: Source, given: Any) -> PairSource:
    """Pairs from a source of ``n`` images and ``n`` texts, ``n`` sequences of texts, or ``(n, e)`` text vectors."""
    if isinstance(given, str) or not isinstance(given, Sequence | np.ndarray):
        raise ParameterError(f"{name}: texts are a list with an entry an image, or (n, e) vectors; got {given!r:.40}")
    if len(given) != len(images):
        raise DataError(
            f"{name}: {len(images)} images but {len(given)} texts; give every image its entry (an empty list where there is no text)"
        )
    if isinstance(given, np.ndarray) and given.dtype.kind in "fiu":
        return PairSource(name, images, given, np.arange(len(images)), [])
    texts: list[str] = []
    owners: list[int] = []
    dropped: list[tuple[int, Skipped]] = []
    for row, entry in enumerate(given):
        several = not isinstance(entry, str)
        for number, text in enumerate((entry or []) if several else [entry], 1):
            if isinstance(text, str) and text.strip():
                texts.append(" ".join(text.split()))
                owners.append(row)
                continue
            kind = (
                "missing"
                if text is None
                else "empty"
                if isinstance(text, str)
                else f"no string but {type(text).__name__}"
            )
            key = f"{images.keys[row]} text {number}" if several else images.keys[row]
            dropped.append((row, Skipped(key, f"the text is {kind}")))
    return PairSource(name, images, texts, np.array(owners, np.intp), dropped)


_TEXT_COLUMNS = ("captions", "caption", "sentences", "sentence", "texts", "text", "tags")
_IMAGE_COLUMNS = ("image", "file_name", "filename", "file", "path")
_CSV_NAMES = ("captions.csv", "metadata.csv", "captions.txt")
_ACCEPTED = (
    "a .parquet table with an image column and captions, a captions .csv beside its images (or the folder that holds both), "
    "an .npz with image_features and text_features, or flickr25k:DIR"
)


def open_pairs(spec: str | os.PathLike[str] | tuple[Any, Any] | PairSource) -> PairSource:
    """Open a source of image-text pairs.

    Args:
        spec: ``PAIRS`` or ``PAIRS#selection`` (selections as in :func:`distillhash.sources.open_source`), a tuple ``(images, texts)`` for
            ``open_source`` and :func:`pair_texts`, or an open :class:`PairSource`, which is returned as it is. PAIRS is one of

            - a ``.parquet`` table, or a folder of such shards: images or embeddings as in ``open_source``, and a column ``captions``,
              ``sentences`` or ``texts`` (lists of strings), ``caption``, ``sentence`` or ``text`` (strings), or ``tags`` (a list is one
              text);
            - a ``.csv`` (or ``captions.txt``) with a header, a column ``image`` (``file_name``, ``file``, ``path``) of paths relative to it
              and one of the columns above; one line a text. Or the folder that holds the images and ``captions.csv``, ``metadata.csv`` or
              ``captions.txt``; its images that no line names are items without a text;
            - an ``.npz`` with ``image_features (n, d)`` and ``text_features (t, e)``, ``owners (t,)`` (the image of each text; not needed
              where t = n), optional ``labels`` and ``keys``;
            - ``flickr25k:DIR``: MIRFLICKR-25000 with the tags of ``meta/tags``.

    Raises:
        ParameterError: an unknown selection, or something that is no specification.
        DataError: nothing there, no column of texts, counts that do not match, nothing usable.
    """
    if isinstance(spec, PairSource):
        return spec
    if isinstance(spec, tuple) and len(spec) == 2:
        images = open_source(spec[0])
        if isinstance(spec[1], np.ndarray) and spec[1].dtype.kind in "fiu":
            check_finite(usable_vectors(spec[1], "the texts"), "the texts")
        return pair_texts(images.name, images, spec[1])
    if not isinstance(spec, str | os.PathLike):
        raise ParameterError(f"pairs are a path, a string, (images, texts) or a PairSource, got {type(spec).__name__}")
    text = os.fspath(spec)
    place, selections = split_selections(text)
    pairs = _open_place(place, text)
    for selection in selections:
        pairs = pairs.select(selected_rows(len(pairs), pairs.splits, selection, text))
    return pairs


def pair_source_names() -> dict[str, str]:
    """What PAIRS can be, each with a line that says what it is."""
    return {
        "TABLE.parquet": "images (or embeddings) and a column 'captions' (lists of strings), 'caption' or 'tags'; or a folder of them",
        "CAPTIONS.csv": "a header, then image,caption on every line, paths relative to the file; or the folder that holds it",
        "VECTORS.npz": "image_features (n, d) and text_features (t, e), with owners (t,) where an image has several texts",
        "flickr25k:DIR": "MIRFLICKR-25000 with its users' tags and its 24 labels",
    }


def _open_place(place: str, name: str) -> PairSource:
    if place.startswith("flickr25k:"):
        return _open_flickr25k(place, name)
    path = Path(place).expanduser()
    if path.is_dir():
        lists = [path / file for file in _CSV_NAMES if (path / file).is_file()]
        if lists:
            return _open_csv(lists[0], name)
        shards = sorted(path.glob("*.parquet"))
        if shards:
            return _open_tables(shards, place, name)
        raise DataError(f"{name}: the folder holds none of {', '.join(_CSV_NAMES)} or .parquet; give {_ACCEPTED}")
    if not path.is_file():
        raise DataError(f"{name}: there is no readable {place}; give {_ACCEPTED}")
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _open_tables([path], place, name)
    if suffix == ".npz":
        return _open_npz(path, name)
    if suffix in {".csv", ".txt"}:
        return _open_csv(path, name)
    raise DataError(f"{name}: files with the suffix {path.suffix!r} hold no pairs; give {_ACCEPTED}")


def _open_tables(files: Sequence[Path], place: str, name: str) -> PairSource:
    import pyarrow.parquet as pq

    images = open_source(place)
    with readable_table(name):
        for column in _TEXT_COLUMNS:
            found = read_column(files, column)
            if found is not None:
                break
        else:
            held = ", ".join(sorted(pq.read_schema(files[0]).names))
            raise DataError(f"{name}: no column of texts ({', '.join(_TEXT_COLUMNS)}) among {held}; rename yours")
        values = found.to_pylist()
    if column == "tags":
        values = [" ".join(map(str, tags)) if isinstance(tags, list) else tags for tags in values]
    return pair_texts(name, images, values)


def _open_csv(path: Path, name: str) -> PairSource:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            header = [column.strip().lower() for column in reader.fieldnames or []]
            reader.fieldnames = header
            lines = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{name}: {path} is not a readable CSV file ({error}); save it as UTF-8 with commas") from error
    image = next((column for column in _IMAGE_COLUMNS if column in header), None)
    text = next((column for column in _TEXT_COLUMNS if column in header), None)
    if image is None or text is None:
        raise DataError(
            f"{name}: the first line of {path} names the columns {', '.join(header) or 'none'}; "
            "it needs one called image (or file_name, file, path) and one called caption (or text, tags)"
        )
    texts: dict[str, list[str | None]] = {}
    nameless: list[tuple[int, Skipped]] = []
    for number, line in enumerate(lines, 2):
        place = (line[image] or "").strip()
        if place:
            texts.setdefault(place, []).append(line[text])
        else:
            nameless.append((-1, Skipped(f"{path.name} line {number}", "the line names no image")))
    found = find_images(path.parent)
    if not texts:
        raise DataError(f"{name}: {path} names no images; write one line for each text: image,caption")
    if not set(found) & set(texts) and not any((path.parent / place).exists() for place in texts):
        first = next(iter(texts))
        raise DataError(
            f"{name}: none of the {len(texts)} images that {path} names exists (the first is {first!r}); "
            f"write paths relative to {path.parent}"
        )
    paths = [*texts, *(place for place in found if place not in texts)]
    images = FileImages(name, path.parent, paths)
    pairs = pair_texts(name, images, [texts.get(place, []) for place in paths])
    pairs.dropped += nameless
    return pairs


def _open_npz(path: Path, name: str) -> PairSource:
    arrays = read_npz(path, name)
    sides = ("image_features", "text_features")
    absent = [key for key in sides if key not in arrays]
    if absent:
        held = ", ".join(f"{key} {array.shape}" for key, array in arrays.items()) or "nothing"
        raise DataError(f"{name}: {path} lacks the array {absent[0]!r} (it holds {held})")
    vectors = [usable_vectors(arrays[key], f"{name}: {key}") for key in sides]
    for array, key in zip(vectors, sides, strict=True):
        check_finite(array, f"{name}: {key}")
    n, t = map(len, vectors)
    if "owners" not in arrays and t != n:
        raise DataError(
            f"{name}: {n} image_features but {t} text_features; add owners ({t},), the image row of each text, or make them equal"
        )
    owners = arrays.get("owners", np.arange(n))
    if owners.shape != (t,) or owners.dtype.kind not in "iu" or owners.min() < 0 or owners.max() >= n:
        raise DataError(
            f"{name}: owners must be ({t},) integers from 0 to {n - 1}, got {owners.dtype} of shape {owners.shape}"
        )
    images = labelled_vectors(name, vectors[0], arrays, "images")
    order = np.argsort(owners, kind="stable")
    return PairSource(name, images, vectors[1][order], owners[order].astype(np.intp), [])


def _open_flickr25k(place: str, name: str) -> PairSource:
    """MIRFLICKR with the tags of its users: ``mirflickr/meta/tags/tags1.txt`` ..., one tag per line."""
    images = open_source(place)
    assert isinstance(images, FileImages)
    folder = Path(images.path(0)).parent / "meta" / "tags"
    if not folder.is_dir():
        raise DataError(f"{name}: the tags are missing, there is no folder {folder}; unpack all of mirflickr25k.zip")
    texts = [""] * len(images)
    for row in range(len(images)):
        file = folder / f"tags{row + 1}.txt"
        try:
            texts[row] = " ".join(file.read_text("utf-8", errors="replace").split())
        except FileNotFoundError:
            continue
        except OSError as error:
            raise FormatError(
                f"{name}: {file} cannot be read ({error.strerror}); unpack mirflickr25k.zip again"
            ) from error
    return pair_texts(name, images, texts)
