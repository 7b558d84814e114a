"""A model and an index together: add a source, find what is near a query.

An index folder carries its model (in ``model/``), so that a query needs the index alone.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes
from distillhash.errors import DataError, FormatError, ParameterError
from distillhash.index import Index, open_index
from distillhash.model import HashModel, load_model
from distillhash.sources import BadItemError, EmbeddingSource, ImageSource, Skipped, Source, open_source

if TYPE_CHECKING:
    from distillhash.backbones import FeatureCache

_MODEL_FOLDER = "model"
_MODEL_FILES = ("config.json", "model.safetensors")


@dataclass
class Added:
    """What :func:`add_source` did: items added, replaced because their content changed, left alone, and not usable."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    skipped: list[Skipped] = field(default_factory=list)


def index_model(
    folder: Path, model_folder: str | None, *, device: str = "auto", cache: FeatureCache | None = None
) -> HashModel:
    """The model of an index; at first use it is copied into the index from ``model_folder``.

    Raises:
        ParameterError: a new index without a model.
        FormatError: ``model_folder`` is another model than the index was built with.
    """
    own = folder / _MODEL_FOLDER
    has_own = (own / _MODEL_FILES[0]).exists()
    if not has_own and model_folder is None:
        if not folder.exists():
            raise ParameterError(
                f"there is no index at {folder}; make one with `distillhash index SOURCE --model DIR --index {folder}`"
            )
        raise ParameterError(f"{folder} holds no model yet; give --model DIR")
    model = load_model(model_folder or own, device=device, cache=cache)
    if has_own:
        kept = json.loads((own / _MODEL_FILES[0]).read_text()).get("fingerprint")
        if kept != model.fingerprint:
            raise FormatError(
                f"{folder} was built with another model (fingerprint {kept}, not {model.fingerprint}); make a new index for this one"
            )
    elif model_folder is not None:
        own.mkdir(parents=True, exist_ok=True)
        for name in reversed(_MODEL_FILES):  # config.json last: its presence says the copy is whole
            shutil.copyfile(Path(model_folder) / name, own / f".{name}")
            (own / f".{name}").replace(own / name)
    return model


def open_model_index(folder: Path, model: HashModel, *, create: bool = True) -> Index:
    """The index in ``folder``, tied to ``model``."""
    return open_index(folder, n_bits=model.n_bits, create=create, model_fingerprint=model.fingerprint)


def add_source(
    index: Index, model: HashModel, source: Any, *, progress: bool = False, max_pixels: int | None = None
) -> Added:
    """Add the items of a source that the index does not hold, and replace those whose content changed.

    Each batch is committed before the next is computed: after a crash, running again goes on where it stopped.
    """
    opened = open_source(source)
    result = Added()
    keys = [_item_key(opened, row) for row in range(len(opened))]
    digests, unreadable = _digests(opened)
    known = index.known(keys)
    rows = []
    for row, key in enumerate(keys):
        if row in unreadable:
            result.skipped.append(unreadable[row])
        elif key in known and known[key][1] == digests[row].tobytes():
            result.unchanged += 1
        else:
            rows.append(row)
    if not rows:
        if not len(index) and result.skipped:
            first = result.skipped[0]
            raise DataError(f"nothing usable in {opened.name}: {first.key}: {first.reason}")
        return result
    chosen = np.array(rows, np.intp)
    for batch in model.encode_batches(opened.select(chosen), progress=progress, max_pixels=max_pixels):
        result.skipped += batch.skipped
        batch_rows = chosen[batch.rows]
        if not len(batch_rows):
            continue
        batch_keys = [keys[row] for row in batch_rows]
        index.add(
            batch.codes,
            metadata=[_metadata(opened, row) for row in batch_rows],
            keys=batch_keys,
            digests=[digests[row].tobytes() for row in batch_rows],
            upsert=True,
        )
        replaced = sum(key in known for key in batch_keys)
        result.updated += replaced
        result.added += len(batch_keys) - replaced
    return result


def is_codes_file(source: str) -> bool:
    """Whether a SOURCE names a file of codes that ``encode`` wrote rather than images or embeddings."""
    path = Path(source)
    if not path.is_file():
        return False
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return {"packed", "n_bits"} <= set(arrays.files)
        except (OSError, ValueError):
            return False
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return b"distillhash.n_bits" in (pq.read_schema(path).metadata or {})
        except (OSError, pa.ArrowException):
            return False
    return False


def add_codes_file(index: Index, path: str) -> Added:
    """Add codes that ``encode`` wrote; known keys get their new code.

    Raises:
        DataError: the codes have another length than the index.
    """
    codes, keys = Codes.load(path)
    result = Added()
    known = index.known(keys) if keys is not None else {}
    index.add(codes, keys=keys, upsert=keys is not None)
    result.updated = len(known)
    result.added = len(codes) - len(known)
    return result


def find(
    index: Index, model: HashModel, query: Any, *, k: int = 10, radius: int | None = None, max_pixels: int | None = None
) -> tuple[list[dict[str, Any]], list[Skipped]]:
    """The neighbours of every item of ``query``, nearest first.

    Args:
        index: Where to search.
        model: The index's model.
        query: An image file, or whatever :func:`distillhash.sources.open_source` takes.
        k: Neighbours per item.
        radius: Everything within this many bits instead.
        max_pixels: Images above this are skipped.

    Returns:
        One ``{"query", "neighbours": [{"id", "distance", "key", "metadata"}]}`` per usable item, and the skipped items.
    """
    source = _open_query(query)
    results: list[dict[str, Any]] = []
    skipped: list[Skipped] = []
    for batch in model.encode_batches(source, max_pixels=max_pixels):
        skipped += batch.skipped
        found = index.search(batch.codes, k) if radius is None else index.range_search(batch.codes, radius)
        for position, row in enumerate(batch.rows):
            name = source.path(int(row)) or source.keys[row]
            results.append({"query": name, "neighbours": _neighbours(index, found[position])})
    return results, skipped


def find_texts(
    index: Index, model: HashModel, texts: Sequence[str], *, k: int = 10, radius: int | None = None
) -> tuple[list[dict[str, Any]], list[str]]:
    """The items nearest to each of ``texts``, as :func:`find` gives them; and remarks about texts the model knows little of.

    Raises:
        ParameterError: a model without texts.
        DataError: a text of which the model knows no word.
    """
    from distillhash.crossmodal import CrossModalModel
    from distillhash.texts import unfamiliar_texts

    if not isinstance(model, CrossModalModel):
        raise ParameterError(
            f"this index was built with {model.hasher.method}, which knows images alone; search by text needs one trained with --pairs"
        )
    codes = model.encode_texts(texts)
    found = index.search(codes, k) if radius is None else index.range_search(codes, radius)
    results = [
        {"query": text, "neighbours": _neighbours(index, found[position])} for position, text in enumerate(texts)
    ]
    return results, [odd.reason for odd in unfamiliar_texts(model.text_encoder, texts)]


def _neighbours(index: Index, pairs: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    items = index.get([identifier for identifier, _ in pairs])
    return [
        {"id": identifier, "distance": distance, "key": item.key, "metadata": item.metadata}
        for (identifier, distance), item in zip(pairs, items, strict=True)
    ]


def _open_query(query: Any) -> Source:
    path = Path(query) if isinstance(query, str) else None
    vectors = (".npy", ".npz", ".parquet", ".txt", ".lst")
    if path is not None and path.is_file() and path.suffix.lower() not in vectors:
        return open_source([str(path)])
    return open_source(query)


def _item_key(source: Source, row: int) -> str:
    """Unique over sources: the file where there is one, else the source and the key."""
    return source.path(row) or f"{source.name.partition('#')[0].removesuffix(':')}:{source.keys[row]}"


def _metadata(source: Source, row: int) -> dict[str, Any]:
    return {"source": source.name, "key": source.keys[row]}


def _digests(source: Source) -> tuple[NDArray[np.uint8], dict[int, Skipped]]:
    """Content digest of every item, ``(n, 16) uint8``, and the items that cannot be read."""
    from distillhash.sources import digest

    digests = np.zeros((len(source), 16), np.uint8)
    unreadable: dict[int, Skipped] = {}
    for row in range(len(source)):
        if isinstance(source, ImageSource):
            try:
                content = source.read(row)
            except BadItemError as error:
                unreadable[row] = Skipped(source.keys[row], str(error))
                continue
        else:
            assert isinstance(source, EmbeddingSource)
            content = np.ascontiguousarray(source.vectors[row]).view(np.uint8)
        digests[row] = np.frombuffer(digest(content), np.uint8)
    return digests, unreadable
