"""Image-text pairs: a source of images, or of vectors, and the texts that belong to each of its items.

An item may have several texts (the five captions of Flickr8k) or none. Nothing is lost silently: an item without a text stays in the
source and is named by :meth:`PairSource.without_text`, a text that is empty is dropped and named in :attr:`PairSource.dropped`.
"""

import csv
import io
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError, FormatError, ParameterError
from distillhash.files import MAX_FILE_SIZE, read_file
from distillhash.sources.base import Columns, Skipped, Source, check_rows, no_column
from distillhash.sources.files import FileImages, find_images, path_exists, read_text
from distillhash.sources.parquet import column_type, find_column, open_parquet, plain_type, read_column, readable_table
from distillhash.sources.registry import (
    find_images_or_tables,
    open_source,
    refuse_columns,
    selected_rows,
    split_selections,
)
from distillhash.sources.table import is_list, is_text
from distillhash.sources.vectors import Archive, check_finite, labelled_vectors, usable_vectors

csv.field_size_limit(2**31 - 1)  # of the whole process, and too small for a long caption; the file is bounded instead

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
        several = entry is None or (isinstance(entry, Iterable) and not isinstance(entry, str | bytes | dict))
        for number, text in enumerate(([] if entry is None else entry) if several else [entry], 1):
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
_SEPARATORS = (",", ";", "\t", "|")
_SEPARATORS_SHOWN = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_CSV_NAMES = ("captions.csv", "metadata.csv", "captions.txt")
_ACCEPTED = (
    "a .parquet table with an image column and captions, a captions .csv beside its images (or the folder that holds both), "
    "an .npz with image_features and text_features, or flickr25k:DIR"
)


def open_pairs(
    spec: str | os.PathLike[str] | tuple[Any, Any] | PairSource,
    *,
    max_file_size: int = MAX_FILE_SIZE,
    image_column: str | None = None,
    embedding_column: str | None = None,
    label_column: str | None = None,
    caption_column: str | None = None,
) -> PairSource:
    """Open a source of image-text pairs.

    Args:
        spec: ``PAIRS`` or ``PAIRS#selection`` (selections as in :func:`distillhash.sources.open_source`), a tuple ``(images, texts)`` for
            ``open_source`` and :func:`pair_texts`, or an open :class:`PairSource`, which is returned as it is. PAIRS is one of

            - a ``.parquet`` table, or a folder of such shards: images or embeddings as in ``open_source``, and a column ``captions``,
              ``sentences`` or ``texts`` (lists of strings), ``caption``, ``sentence`` or ``text`` (strings), or ``tags`` (a list is one
              text);
            - a ``.csv`` (or ``captions.txt``) with a header, separated by commas, ``;``, tabs or ``|``: a column ``image`` (``file_name``,
              ``file``, ``path``) of paths relative to it and one of the columns above; one line a text. Or the folder that holds the images
              and ``captions.csv``, ``metadata.csv`` or ``captions.txt``; its images that no line names are items without a text;
            - an ``.npz`` with ``image_features (n, d)`` and ``text_features (t, e)``, ``owners (t,)`` (the image of each text; not needed
              where t = n), optional ``labels`` and ``keys``;
            - ``flickr25k:DIR``: MIRFLICKR-25000 with the tags of ``meta/tags``.
        max_file_size: Images of more bytes are skipped.
        image_column: The column of images in a table or CSV.
        embedding_column: The column of embeddings in a table.
        label_column: The column of labels in a table.
        caption_column: The column of texts in a table or CSV.

    Raises:
        ParameterError: an unknown selection, a column that is not there, or something that is no specification.
        DataError: nothing there, no column of texts, counts that do not match, nothing usable.
    """
    columns = Columns(image_column, embedding_column, label_column, caption_column)
    if isinstance(spec, PairSource):
        refuse_columns(columns, spec.name)
        return spec
    if isinstance(spec, tuple) and len(spec) == 2:
        refuse_columns(replace(columns, image=None, embedding=None, label=None), "a list of texts")
        images = _open_images(spec[0], columns, max_file_size)
        if isinstance(spec[1], np.ndarray) and spec[1].dtype.kind in "fiu":
            check_finite(usable_vectors(spec[1], "the texts"), "the texts")
        return pair_texts(images.name, images, spec[1])
    if not isinstance(spec, str | os.PathLike):
        raise ParameterError(f"pairs are a path, a string, (images, texts) or a PairSource, got {type(spec).__name__}")
    text = os.fspath(spec)
    place, selections = split_selections(text)
    pairs = _open_place(place, text, columns, max_file_size)
    for selection in selections:
        pairs = pairs.select(selected_rows(len(pairs), pairs.splits, selection, text))
    return pairs


def _open_images(spec: Any, columns: Columns, max_file_size: int) -> Source:
    return open_source(
        spec,
        max_file_size=max_file_size,
        image_column=columns.image,
        embedding_column=columns.embedding,
        label_column=columns.label,
    )


def pair_source_names() -> dict[str, str]:
    """What PAIRS can be, each with a line that says what it is."""
    return {
        "TABLE.parquet": "images (or embeddings) and a column 'captions' (lists of strings), 'caption' or 'tags'; or a folder of them",
        "CAPTIONS.csv": "a header, then image,caption (or ; tab |) on every line, paths relative to the file; or the folder that holds it",
        "VECTORS.npz": "image_features (n, d) and text_features (t, e), with owners (t,) where an image has several texts",
        "flickr25k:DIR": "MIRFLICKR-25000 with its users' tags and its 24 labels",
    }


def _open_place(place: str, name: str, columns: Columns, max_file_size: int) -> PairSource:
    if place.startswith("flickr25k:"):
        refuse_columns(columns, name)
        return _open_flickr25k(place, name, max_file_size)
    path = Path(place).expanduser()
    if path.is_dir():
        lists = [path / file for file in _CSV_NAMES if (path / file).is_file()]
        if lists:
            return _open_csv(lists[0], name, columns, max_file_size)
        _, tables = find_images_or_tables(path, name)
        if tables:
            return _open_tables(tables, place, name, columns, max_file_size)
        raise DataError(f"{name}: the folder holds none of {', '.join(_CSV_NAMES)} or .parquet; give {_ACCEPTED}")
    if not path.is_file():
        raise DataError(f"{name}: there is no readable {place}; give {_ACCEPTED}")
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _open_tables([path], place, name, columns, max_file_size)
    if suffix == ".npz":
        refuse_columns(columns, name)
        return _open_npz(path, name)
    if suffix in {".csv", ".tsv", ".txt"}:
        return _open_csv(path, name, columns, max_file_size)
    raise DataError(f"{name}: files with the suffix {path.suffix!r} hold no pairs; give {_ACCEPTED}")


def _open_tables(files: Sequence[Path], place: str, name: str, columns: Columns, max_file_size: int) -> PairSource:
    images = _open_images(place, columns, max_file_size)
    with readable_table(name):
        schemas = []
        for path in files:
            with open_parquet(path) as table:
                schemas.append(table.schema_arrow)
        candidates = _TEXT_COLUMNS if columns.caption is None else (columns.caption,)
        held = ", ".join(sorted(schemas[0].names))
        for column in candidates:
            found = [find_column(schema, column) for schema in schemas]
            if found[0] is not None and all(names is not None for names in found):
                break
        else:
            if columns.caption is not None:
                raise no_column("--caption-column", columns.caption, name, held)
            raise DataError(
                f"{name}: no column of texts ({', '.join(_TEXT_COLUMNS)}) among {held}; rename yours, or choose it with --caption-column"
            )
        kind = column_type(schemas[0], found[0])
        if columns.caption is not None and not (
            is_text(kind) or (is_list(kind) and is_text(plain_type(kind.value_type)))
        ):
            raise ParameterError(f"{name}: the column {column!r} holds no texts but {kind}; choose one of {held}")
        values = read_column(files, found[0]).to_pylist()
    if column == "tags":
        values = [" ".join(map(str, tags)) if isinstance(tags, list) else tags for tags in values]
    return pair_texts(name, images, values)


def _open_csv(path: Path, name: str, columns: Columns, max_file_size: int) -> PairSource:
    refuse_columns(replace(columns, image=None, caption=None), name)
    header, lines = _read_csv(path, name, columns)
    image = _csv_column(header, columns.image, _IMAGE_COLUMNS, "--image-column", name)
    text = _csv_column(header, columns.caption, _TEXT_COLUMNS, "--caption-column", name)
    if image is None or text is None:
        raise DataError(
            f"{name}: the first line of {path} names the columns {', '.join(header)[:1000] or 'none'}; "
            "it needs one called image (or file_name, file, path) and one called caption (or text, tags), or choose them with "
            "--image-column and --caption-column"
        )
    found = find_images(path.parent)
    own_name = _OwnNames(path.parent, found)
    texts: dict[str, list[str | None]] = {}
    nameless: list[tuple[int, Skipped]] = []
    for number, line in lines:
        place = line[image].strip() if image < len(line) else ""
        if place:
            texts.setdefault(own_name(place), []).append(line[text] if text < len(line) else None)
        else:
            nameless.append((-1, Skipped(f"{path.name} line {number}", "the line names no image")))
    if not texts:
        raise DataError(f"{name}: {path} names no images; write one line for each text: image,caption")
    if not set(found) & set(texts) and not any(path_exists(path.parent / place) for place in texts):
        first = next(iter(texts))
        raise DataError(
            f"{name}: none of the {len(texts)} images that {path} names exists (the first is {first[:200]!r}); "
            f"write paths relative to {path.parent}"
        )
    paths = [*texts, *(place for place in found if place not in texts)]
    images = FileImages(name, path.parent, paths)
    images.max_file_size = max_file_size
    pairs = pair_texts(name, images, [texts.get(place, []) for place in paths])
    pairs.dropped += nameless
    return pairs


def _read_csv(path: Path, name: str, columns: Columns) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header in lower case, and the other rows with the number of the line each begins on.

    The separator is the one of comma, ``;``, tab and ``|`` that makes columns of the header, or what a first line ``sep=`` says.
    """
    text = read_text(path, f"{name}: the CSV file")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{name}: line {line} of {path} holds a NUL, so it is not a CSV file; save it as UTF-8")
    start = 0
    if stated := re.match(r'"?sep=(.)"?(\r\n|\n|\r)', text):
        start, text = 1, text[stated.end() :]
    separators = [stated[1]] if stated else _SEPARATORS
    headers = [[cell.strip().lower() for cell in _first_row(text, separator)] for separator in separators]
    ranks = [(_is_header(header, columns), len(header)) for header in headers]
    best = ranks.index(max(ranks))
    header, separator = headers[best], separators[best]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    lines: list[tuple[int, list[str]]] = []
    number = start
    while True:
        number = start + reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return header, lines[1:]
        except csv.Error as error:
            raise DataError(
                f"{name}: the row at line {number} of {path} cannot be read ({error}); close the quotes and double those inside"
            ) from error
        if not row:
            continue
        if len(row) > len(header) and any(cell.strip() for cell in row[len(header) :]):
            raise DataError(
                f"{name}: line {number} of {path} has {len(row)} fields and the header {len(header)}; put texts that hold "
                f"{_SEPARATORS_SHOWN.get(separator, repr(separator))} in double quotes"
            )
        lines.append((number, row))


def _first_row(text: str, separator: str) -> list[str]:
    try:
        return next((row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if row), [])
    except csv.Error:
        return []


def _is_header(header: Sequence[str], columns: Columns) -> int:
    """How many of the two columns that are needed a header has."""
    images = _IMAGE_COLUMNS if columns.image is None else (columns.image.lower(),)
    texts = _TEXT_COLUMNS if columns.caption is None else (columns.caption.lower(),)
    return bool(set(images) & set(header)) + bool(set(texts) & set(header))


def _csv_column(header: Sequence[str], chosen: str | None, names: Sequence[str], option: str, name: str) -> int | None:
    """The place of a column in the header; None where it has none of ``names``."""
    column = next((column for column in names if column in header), None) if chosen is None else chosen.strip().lower()
    if column is None:
        return None
    if column not in header:
        raise no_column(option, column, name, ", ".join(header)[:1000])
    if header.count(column) > 1:
        raise DataError(
            f"{name}: {header.count(column)} columns of the header are called {column!r}; rename all but one"
        )
    return header.index(column)


class _OwnNames:
    """What the images of a folder are called in it, whatever a list calls them: one file is one item."""

    def __init__(self, folder: Path, found: Sequence[str]) -> None:
        self._folder, self._found = os.path.realpath(folder), set(found)
        self._others: dict[str, str] = {}  # names of files that are not among those found, by real path

    def __call__(self, place: str) -> str:
        for spelling in dict.fromkeys((place, place.replace("\\", "/"))):
            if spelling in self._found:
                return spelling
            try:
                real = os.path.realpath(os.path.join(self._folder, spelling))  # noqa: PTH118
                exists = os.path.exists(real)  # noqa: PTH110
            except (OSError, ValueError):
                continue
            own = os.path.relpath(real, self._folder).replace(os.sep, "/")
            if own in self._found:
                return own
            if exists:
                return self._others.setdefault(real, place)
        return place


def _open_npz(path: Path, name: str) -> PairSource:
    arrays = Archive(path, name)
    sides = ("image_features", "text_features")
    absent = [key for key in sides if key not in arrays]
    if absent:
        raise DataError(f"{name}: {path} lacks the array {absent[0]!r} (it holds {arrays.contents()})")
    vectors = [usable_vectors(arrays[key], f"{name}: {key}") for key in sides]
    for array, key in zip(vectors, sides, strict=True):
        check_finite(array, f"{name}: {key}")
    n, t = map(len, vectors)
    if "owners" not in arrays and t != n:
        raise DataError(
            f"{name}: {n} image_features but {t} text_features; add owners ({t},), the image row of each text, or make them equal"
        )
    owners = arrays["owners"] if "owners" in arrays else np.arange(n)
    if owners.shape != (t,) or owners.dtype.kind not in "iu" or owners.min() < 0 or owners.max() >= n:
        raise DataError(
            f"{name}: owners must be ({t},) integers from 0 to {n - 1}, got {owners.dtype} of shape {owners.shape}"
        )
    images = labelled_vectors(name, vectors[0], arrays, "images")
    order = np.argsort(owners, kind="stable")
    return PairSource(name, images, vectors[1][order], owners[order].astype(np.intp), [])


def _open_flickr25k(place: str, name: str, max_file_size: int) -> PairSource:
    """MIRFLICKR with the tags of its users: ``mirflickr/meta/tags/tags1.txt`` ..., one tag per line."""
    images = open_source(place, max_file_size=max_file_size)
    assert isinstance(images, FileImages)
    folder = Path(images.path(0)).parent / "meta" / "tags"
    if not folder.is_dir():
        raise DataError(f"{name}: the tags are missing, there is no folder {folder}; unpack all of mirflickr25k.zip")
    texts = [""] * len(images)
    for row in range(len(images)):
        file = folder / f"tags{row + 1}.txt"
        try:
            texts[row] = " ".join(read_file(file).decode("utf-8", "replace").split())
        except FileNotFoundError:
            continue
        except OSError as error:
            raise FormatError(
                f"{name}: {file} cannot be read ({error.strerror}); unpack mirflickr25k.zip again"
            ) from error
    return pair_texts(name, images, texts)
