"""A model and an index together: add a source, find what is near a query.

An index folder carries its model (in ``model/``), so that a query needs the index alone. An index on a server does not: it keeps the
model's fingerprint, and refuses any other.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes
from distillhash.errors import DataError, FormatError, ParameterError
from distillhash.index import Index, Item, RangeResult, SearchResult, open_index
from distillhash.index.address import folder_of, shown
from distillhash.index.rows import check_keys
from distillhash.models import HashModel, load_model
from distillhash.progress import Progress
from distillhash.sources import BadItemError, EmbeddingSource, ImageSource, Skipped, Source, open_source

if TYPE_CHECKING:
    from distillhash.backbones import FeatureCache

    pass  # SELF


# Re-ranking: the nearest by Hamming distance, put in order by something finer.
#
# A short code leaves many items at one distance. Three things tell them apart, by what is at hand:
#
# - ``projection``: the real numbers behind the query's bits against the candidates' bits (asymmetric distance): a bit whose projection was
#   close to zero counts little. Needs nothing but the codes.
# - ``decoder``: the query's features against features that the model's decoder makes of the candidates' codes; for methods that train one
#   (``urph``).
# - ``features``: the cosine of the query's features and the candidates' own, for candidates that are image files, read anew where the
#   feature cache does not hold them.

Rerank = Literal["projection", "decoder", "features"]


class Reranker:
    """Scores of candidates by one of the three."""

    def __init__(self, model: HashModel, by: Rerank, *, max_pixels: int | None = None) -> None:
        """Choose.

        Args:
            model: The model the codes come from.
            by: What to score by.
            max_pixels: For ``features``: images above this cannot be candidates.

        Raises:
            ParameterError: an unknown choice, a model without a decoder, or features of embeddings.
        """
        if by not in get_args(Rerank):
            raise ParameterError(f"rerank must be one of {', '.join(get_args(Rerank))}, got {by!r}")
        if by == "decoder" and not hasattr(model.hasher, "reconstruct"):
            raise ParameterError(
                f"the method {model.hasher.method} trains no decoder; re-rank by projection, or train with --method urph"
            )
        if by == "features" and model.backbone_name == "embeddings":
            raise ParameterError(
                "this model takes embeddings, of which an index keeps the codes alone; re-rank by projection"
            )
        self.model, self.by, self.max_pixels = model, by, max_pixels

    def scores(self, feature: NDArray[np.float32], items: list[Item]) -> NDArray[np.float64]:
        """How near every candidate is, larger is nearer.

        Args:
            feature: ``(d,)`` of the query.
            items: ``m`` candidates.

        Returns:
            ``(m,)``.

        Raises:
            DataError: by ``features``, a candidate that is not an image file that can be read.
        """
        if not items:
            return np.zeros(0)
        if self.by == "features":
            return cosines(feature, self._features_of(items))
        codes = Codes(np.concatenate([item.code.packed for item in items]), self.model.n_bits)
        if self.by == "decoder":
            hasher: Any = self.model.hasher
            return decoder_scores(feature, hasher.reconstruct(codes))
        return projection_scores(self.model.hasher.project(feature[None])[0], codes)

    def _features_of(self, items: list[Item]) -> NDArray[np.float32]:
        source = open_source([item.key or "" for item in items])
        batches = list(self.model.encode_batches(source, max_pixels=self.max_pixels))
        for batch in batches:
            if batch.skipped:
                first = batch.skipped[0]
                raise DataError(
                    f"the candidate {first.key!r} cannot be read as an image file ({first.reason}); re-rank by projection"
                )
        return np.concatenate([batch.features for batch in batches])


def projection_scores(projection: NDArray[np.float32], codes: Codes) -> NDArray[np.float64]:
    """Inner products of a query's projection ``(n_bits,)`` and the signs of ``m`` codes, ``(m,)``."""
    return np.asarray(codes.signs().astype(np.float64) @ projection)


def decoder_scores(feature: NDArray[np.float32], rebuilt: NDArray[np.float32]) -> NDArray[np.float64]:
    """Negative squared distances of a feature ``(d,)`` and ``m`` rebuilt ones ``(m, d)``."""
    return np.asarray(-np.square(rebuilt.astype(np.float64) - feature).sum(axis=1))


def cosines(feature: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosines of a feature ``(d,)`` and ``m`` others ``(m, d)``; 0 for a feature of zeros."""
    wide = others.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1) * np.linalg.norm(feature.astype(np.float64))
    return np.asarray(np.divide(wide @ feature, lengths, out=np.zeros(len(wide)), where=lengths > 0))


_MODEL_FOLDER = "model"
_MODEL_FILES = ("config.json", "model.safetensors")
_CODES_AT_ONCE = 50_000


@dataclass
class Added:
    """What :func:`add_source` or :func:`add_codes_file` did: items added, replaced as their content changed, left alone, not usable."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    skipped: list[Skipped] = field(default_factory=list)


def index_model(
    place: Path | str, model_folder: str | None, *, device: str = "auto", cache: FeatureCache | None = None
) -> HashModel:
    """The model of an index; at first use it is copied from ``model_folder`` into the index, if that lives in a folder.

    Raises:
        ParameterError: a new index, or one on a server, without a model.
        FormatError: ``model_folder`` is another model than the index was built with.
    """
    folder = folder_of(place)
    if folder is None:
        if model_folder is None:
            raise ParameterError(f"{shown(place)} keeps no model; give --model DIR")
        return load_model(model_folder, device=device, cache=cache)
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


def open_model_index(place: Path | str, model: HashModel, *, create: bool = True) -> Index:
    """The index at ``place`` (a folder or a URI), tied to ``model``."""
    return open_index(place, n_bits=model.n_bits, create=create, model_fingerprint=model.fingerprint)


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


def add_codes_file(index: Index, path: str, *, progress: bool = False) -> Added:
    """Add codes that ``encode`` wrote; known keys get their new code.

    Codes with keys go in batches, and those that the index holds are not sent again: after a crash, running again goes on where it
    stopped. Codes without keys go in one call of ``add``.

    Raises:
        DataError: the codes have another length than the index.
    """
    from distillhash.sources import digest

    codes, keys = Codes.load(path)
    result = Added()
    if keys is None:
        result.added = len(index.add(codes))
        return result
    check_keys(keys)
    with Progress("storing", len(codes), unit="codes", quiet=not progress) as shown_progress:
        for start in range(0, len(codes), _CODES_AT_ONCE):
            part, part_keys = codes[start : start + _CODES_AT_ONCE], keys[start : start + _CODES_AT_ONCE]
            digests = [digest(code) for code in part.packed]
            known = index.known(part_keys)
            rows = [row for row, key in enumerate(part_keys) if known.get(key, (0, None))[1] != digests[row]]
            if rows:
                chosen_keys = [part_keys[row] for row in rows]
                index.add(part[rows], keys=chosen_keys, digests=[digests[row] for row in rows], upsert=True)
                replaced = sum(key in known for key in chosen_keys)
                result.updated += replaced
                result.added += len(rows) - replaced
            result.unchanged += len(part) - len(rows)
            shown_progress.advance(len(part))
    return result


def find(
    index: Index,
    model: HashModel,
    query: Any,
    *,
    k: int = 10,
    radius: int | None = None,
    where: str | None = None,
    rerank: Rerank | None = None,
    candidates: int | None = None,
    max_pixels: int | None = None,
) -> tuple[list[dict[str, Any]], list[Skipped]]:
    """The neighbours of every item of ``query``, nearest first.

    Args:
        index: Where to search.
        model: The index's model.
        query: An image file, or whatever :func:`distillhash.sources.open_source` takes.
        k: Neighbours per item.
        radius: Everything within this many bits instead.
        where: Only items for which this condition holds, see :meth:`distillhash.index.Index.search`.
        rerank: Order the candidates by this, see :mod:`distillhash.search`; None leaves them by distance.
        candidates: How many nearest codes are put in order to give the first ``k``; None takes 10 k. With a radius, all within it are.
        max_pixels: Images above this are skipped.

    Returns:
        One ``{"query", "neighbours": [{"id", "distance", "key", "metadata"}]}`` per usable item, with ``score`` where they are re-ranked,
        and the skipped items.

    Raises:
        ParameterError: what the index or the re-ranking cannot do, or fewer candidates than ``k``.
    """
    pass  # SELF

    if candidates is not None and (rerank is None or radius is not None):
        raise ParameterError("candidates are for re-ranking the k nearest; give rerank, and no radius")
    wanted = 10 * k if candidates is None else candidates
    if wanted < k:
        raise ParameterError(f"{wanted} candidates cannot give {k} neighbours; ask for {k} at least")
    reranker = None if rerank is None else Reranker(model, rerank, max_pixels=max_pixels)
    source = _open_query(query)
    results: list[dict[str, Any]] = []
    skipped: list[Skipped] = []
    for batch in model.encode_batches(source, max_pixels=max_pixels):
        skipped += batch.skipped
        found: SearchResult | RangeResult = (
            index.search(batch.codes, k if reranker is None else wanted, where=where)
            if radius is None
            else index.range_search(batch.codes, radius, where=where)
        )
        for position, row in enumerate(batch.rows):
            items = index.get([identifier for identifier, _ in found[position]])
            neighbours = _neighbours(items, found[position])
            if reranker is not None:
                scores = reranker.scores(batch.features[position], items)
                order = np.argsort(-scores, kind="stable")[: len(items) if radius is not None else k]
                neighbours = [neighbours[place] | {"score": float(scores[place])} for place in order]
            results.append({"query": source.path(int(row)) or source.keys[row], "neighbours": neighbours})
    return results, skipped


def find_texts(
    index: Index,
    model: HashModel,
    texts: Sequence[str],
    *,
    k: int = 10,
    radius: int | None = None,
    where: str | None = None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """The items nearest to each of ``texts``, as :func:`find` gives them; and remarks about texts the model knows little of.

    Raises:
        ParameterError: a model without texts.
        DataError: a text of which the model knows no word.
    """
    from distillhash.models.image_text import CrossModalModel
    from distillhash.texts import unfamiliar_texts

    if not isinstance(model, CrossModalModel):
        raise ParameterError(
            f"this index was built with {model.hasher.method}, which knows images alone; search by text needs one trained with --pairs"
        )
    codes = model.encode_texts(texts)
    found: SearchResult | RangeResult = (
        index.search(codes, k, where=where) if radius is None else index.range_search(codes, radius, where=where)
    )
    results = []
    for position, text in enumerate(texts):
        items = index.get([identifier for identifier, _ in found[position]])
        results.append({"query": text, "neighbours": _neighbours(items, found[position])})
    return results, [odd.reason for odd in unfamiliar_texts(model.text_encoder, texts)]


def _neighbours(items: Sequence[Item], pairs: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
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
