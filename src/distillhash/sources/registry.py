"""From one string to an open source: the grammar of SOURCE, and the table of schemes."""

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError, ParameterError
from distillhash.files import MAX_FILE_SIZE
from distillhash.sources.base import Columns, EmbeddingSource, ImageSource, Source, printable
from distillhash.sources.cifar10 import open_cifar10
from distillhash.sources.digits import open_digits
from distillhash.sources.files import IMAGE_SUFFIXES, FileImages, find_files, open_folder, open_list, open_paths
from distillhash.sources.flickr25k import open_flickr25k
from distillhash.sources.nuswide import open_nuswide
from distillhash.sources.table import open_tables
from distillhash.sources.tar import is_tar_pattern, open_tar_pattern, open_tars
from distillhash.sources.vectors import check_finite, open_array, open_npy, open_npz

_logger = logging.getLogger(__name__)


def open_source(
    spec: str | os.PathLike[str] | NDArray[Any] | Sequence[str | os.PathLike[str]] | Source,
    *,
    max_file_size: int = MAX_FILE_SIZE,
    image_column: str | None = None,
    embedding_column: str | None = None,
    label_column: str | None = None,
) -> Source:
    """Open a source of images or of embeddings.

    A string or path is ``SOURCE`` or ``SOURCE#selection``. ``SOURCE`` is one of :func:`source_names`; a path that exists wins over a
    scheme, and over a selection when it has a ``#`` in its own name. A selection is a split (``#train``, ``#test``, where the source has
    it) or rows ``#start:stop`` as in a Python slice (``#:100``, ``#-100:``; past the end is the end); several apply from left to right,
    ``#train#0:5000``. An array ``(n, d)`` holds embeddings, ``(n, h, w, 3) uint8`` images. A sequence holds image paths. An open source is
    returned as it is. Images of more than ``max_file_size`` bytes are skipped.

    ``image_column``, ``embedding_column`` and ``label_column`` choose columns of a Parquet table (dotted where they lie in structs); the
    last two also choose arrays of an ``.npz``. Labels that cannot be used are ignored with a warning, unless they were chosen so.

    Returns:
        An :class:`ImageSource` or :class:`EmbeddingSource`, never empty. Embeddings are floats and finite.

    Raises:
        ParameterError: an unknown selection, a scheme without its folder, or a column that the source does not have.
        DataError: nothing there (an unknown scheme too), nothing usable, embeddings with NaN or infinity.
        FormatError: an official archive is damaged.
    """
    columns = Columns(image_column, embedding_column, label_column)
    if isinstance(spec, Source):
        refuse_columns(columns, spec.name)
        return spec
    if max_file_size < 1:
        raise ParameterError(f"the limit of a file's size must be at least 1 byte, got {max_file_size}")
    if isinstance(spec, np.ndarray):
        refuse_columns(columns, "an array")
        source = open_array(spec, "array")
    elif isinstance(spec, str | os.PathLike):
        text = os.fspath(spec)
        place, selections = split_selections(text)
        source = _open_place(place, text, columns)
        for selection in selections:
            source = source.select(selected_rows(len(source), source.splits, selection, text))
    elif isinstance(spec, Sequence):
        refuse_columns(columns, "a list of paths")
        source = open_paths(spec, f"{len(spec)} paths")
    else:
        raise ParameterError(f"a source is a path, a string, paths, an array or a Source, got {type(spec).__name__}")
    if isinstance(source, EmbeddingSource):
        check_finite(source.vectors, source.name)
    if isinstance(source, ImageSource):
        source.max_file_size = max_file_size
    return source


def source_names() -> dict[str, str]:
    """What SOURCE can be, each with a line that says what it is."""
    return {
        "FOLDER": "every image in a folder and its sub-folders; sub-folder names are the classes",
        "IMAGE.jpg": "one image file (.png, .webp, .tif, ...)",
        "LIST.txt": "a text file (.txt, .lst) with one image path per line, optionally a tab and an integer label",
        "TABLE.parquet": "images (a struct with 'bytes' or 'path') or embeddings (lists of floats), perhaps a label; or a folder of them",
        "SHARDS.tar": "images in a tar file (WebDataset layout), or in many: 'shards/*.tar', 'shards/{00000..00063}.tar'",
        "VECTORS.npy": "a memory-mapped array of embeddings (n, d)",
        "VECTORS.npz": "embeddings under 'features', 'embeddings' or 'vectors'; optional 'labels' and 'keys'",
        "digits:": "1,797 handwritten digits, 8x8, that ship with scikit-learn; splits train and test",
        "cifar10:DIR": "CIFAR-10 in any of its layouts, downloaded when absent; splits train and test",
        "flickr25k:DIR": "MIRFLICKR-25000 with its 24 labels, as unpacked from its two archives",
        "nuswide:DIR": "NUS-WIDE images with one of the 10 most frequent concepts, as unpacked from its archives",
    }


_FOLDER_SCHEMES: dict[str, Callable[[Path, str], Source]] = {
    "cifar10": open_cifar10,
    "flickr25k": open_flickr25k,
    "nuswide": open_nuswide,
}
_SCHEMES = ("digits", *_FOLDER_SCHEMES)
_FILES: dict[str, Callable[[Path, str], Source]] = {
    ".txt": open_list,
    ".lst": open_list,
    ".npy": open_npy,
    ".tar": lambda path, name: open_tars([path], name),
}
_PACKED = (".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
_ACCEPTED = f"one of {', '.join(source_names())}"


def split_selections(spec: str) -> tuple[str, list[str]]:
    """The place and the selections of ``PLACE#a#b``: they come off the right end until what is left exists or has no ``#``."""
    if not spec:
        raise ParameterError(f"the source is empty; give {_ACCEPTED}")
    place, selections = spec, list[str]()
    while "#" in place and not _exists(place):
        scheme, _, folder = place.partition(":")
        if scheme in _SCHEMES and _exists(folder):
            break
        place, _, selection = place.rpartition("#")
        selections.insert(0, selection)
    return place, selections


def refuse_columns(columns: Columns, name: str) -> None:
    """A :class:`ParameterError` where columns were chosen of something that has none."""
    for option, column in columns.chosen().items():
        raise ParameterError(f"{name}: {option} {column!r:.100} is for tables, which this is not; leave it out")


def _open_place(place: str, name: str, columns: Columns) -> Source:
    if not _exists(place):
        if is_tar_pattern(place):
            refuse_columns(columns, name)
            return open_tar_pattern(place, name)
        scheme, colon, rest = place.partition(":")
        if colon and scheme in _SCHEMES:
            refuse_columns(columns, name)
        if colon and scheme == "digits":
            if rest:
                raise ParameterError(f"{name}: digits: takes no folder, got {rest!r}; write digits: alone")
            return open_digits(name)
        if colon and scheme in _FOLDER_SCHEMES:
            if not rest:
                raise ParameterError(f"{name}: {scheme}: needs a folder, write {scheme}:DIR")
            return _FOLDER_SCHEMES[scheme](Path(rest).expanduser(), name)
        if colon and re.fullmatch(r"[A-Za-z][A-Za-z0-9_+.-]+", scheme):  # two letters or more: C:\ is a drive
            known = ", ".join(f"{known}:" for known in _SCHEMES)
            raise DataError(f"{name}: unknown scheme {scheme!r}; the schemes are {known} and everything else is a path")
        raise DataError(f"{name}: there is no readable {place}; give {_ACCEPTED}")
    path = Path(place).expanduser()
    suffix = path.suffix.lower()
    if path.is_dir():
        images, tables = find_images_or_tables(path, name)
        if tables:
            return open_tables(tables, name, columns=columns, root=path)
        refuse_columns(columns, name)
        return open_folder(path, images, name)
    if suffix == ".parquet":
        return open_tables([path], name, columns=columns)
    if suffix == ".npz":
        refuse_columns(replace(columns, embedding=None, label=None), name)
        return open_npz(path, name, embedding_column=columns.embedding, label_column=columns.label)
    refuse_columns(columns, name)
    if suffix in _FILES:
        return _FILES[suffix](path, name)
    if suffix in IMAGE_SUFFIXES:
        return FileImages(name, Path.cwd(), [str(path)], keys=[printable(path.name)])
    if path.name.lower().endswith(_PACKED):
        raise DataError(f"{name}: a compressed tar file cannot be read by seeking; unpack it to a plain .tar (gunzip)")
    raise DataError(f"{name}: files with the suffix {suffix!r} are not a source; give {_ACCEPTED}")


def find_images_or_tables(folder: Path, name: str) -> tuple[list[str], list[Path]]:
    """The images in a folder, or if there are none the Parquet files directly in it, or if there are none those below it.

    Names that start with ``_`` are left out among the latter, as writers of such folders use them for their own files.
    """
    found = find_files(folder, IMAGE_SUFFIXES | {".parquet"})
    images = [path for path in found if not path.lower().endswith(".parquet")]
    tables = [path for path in found if path.lower().endswith(".parquet") and not re.search("(^|/)_", path)]
    direct = [path for path in tables if "/" not in path]
    if images and tables:
        first = folder / (direct or tables)[0]
        _logger.warning(
            "%s: %d images are read, not Parquet files such as %s; give that one to read it", name, len(images), first
        )
    elif direct and len(direct) < len(tables):
        below = len(tables) - len(direct)
        _logger.warning("%s: the Parquet files directly in the folder are read, and not the %d below it", name, below)
    return images, [] if images else [folder / path for path in direct or tables]


def selected_rows(n: int, splits: Mapping[str, NDArray[np.intp]], selection: str, spec: str) -> NDArray[np.intp]:
    """Rows that ``selection`` (a split, or ``start:stop``) takes of ``n`` items; ``spec`` is for messages."""
    if match := re.fullmatch(r"(-?\d{1,18})?:(-?\d{1,18})?", selection):
        start, stop = (None if text is None else int(text) for text in match.groups())
        rows = np.arange(n)[start:stop]
    elif selection in splits:
        rows = splits[selection]
    else:
        offered = ", ".join(f"#{split}" for split in splits)
        what = f"its splits are {offered}" if offered else "it has no named splits"
        raise ParameterError(f"{spec}: unknown selection '#{selection}'; {what}, and #start:stop selects rows")
    if not rows.size:
        raise DataError(f"{spec}: nothing usable, '#{selection}' selects none of the {n} items")
    return rows


def _exists(place: str) -> bool:
    try:
        return bool(place) and Path(place).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long for a path, a NUL, or the home of a user who is not there
        return False
