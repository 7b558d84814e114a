"""An index and its model together: add what a source holds, find what is near a query.

The command line and the server both search through :class:`Searcher`. An index folder carries its model (in ``model/``), so a query
needs the index alone. An index on a server keeps the model's fingerprint, and refuses any other model.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes
from distillhash.errors import DataError, DistillHashError, FormatError, ParameterError
from distillhash.index import Index, Item, RangeResult, SearchResult, open_index
from distillhash.index.address import folder_of, shown
from distillhash.index.rows import check_keys
from distillhash.models.hash_model import HashModel, load_model
from distillhash.models.image_text import CrossModalModel
from distillhash.progress import Progress
from distillhash.sources import BadItemError, EmbeddingSource, ImageSource, Skipped, Source, digest, open_source
from distillhash.texts import unfamiliar_texts

if TYPE_CHECKING:
    from distillhash.backbones import FeatureCache

Rerank = Literal["projection", "decoder", "features"]

_MODEL_FOLDER = "model"
_MODEL_FILES = ("config.json", "model.safetensors")
_CODES_AT_ONCE = 50_000
_MOST_HELD = 50_000  # items in memory, about 1 KB each
_TRIES = 5


class NoItemError(DataError):
    """There is no item with this id."""


@dataclass
class Added:
    """What adding did: items added, replaced because their content changed, left alone, not usable."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    skipped: list[Skipped] = field(default_factory=list)


@dataclass(frozen=True)
class Query:
    """One search.

    Attributes:
        item: The id of an item, or a packed code.
        k: Number of neighbours at most; None takes all within ``radius``.
        radius: Largest distance in bits; None sets no limit.
        where: Only items for which this condition holds, see :meth:`distillhash.index.Index.search`.
        rerank: Order the candidates by ``projection`` (inner product of the query's real projection and the candidate's signs),
            ``decoder`` (distance of the query's feature to the feature that the method decodes from the candidate's code) or
            ``features`` (cosine to the feature of the candidate's image file, read again unless cached). None: by distance.
        candidates: Number of nearest codes that are ordered to give the first ``k``; None takes ``10 k``. With a radius and no ``k``, all
            within the radius are.
        feature: ``(d,)`` of the query, for re-ranking.

    Raises:
        ParameterError: on construction, options that exclude each other.
    """

    item: int | bytes
    k: int | None = 10
    radius: int | None = None
    where: str | None = None
    rerank: Rerank | None = None
    candidates: int | None = None
    feature: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        """Check the options."""
        if self.k is None and self.radius is None:
            raise ParameterError("a search needs k or a radius; give one of them")
        if self.rerank is not None and self.rerank not in get_args(Rerank):
            raise ParameterError(f"rerank must be one of {', '.join(get_args(Rerank))}, got {self.rerank!r}")
        if self.candidates is not None:
            if self.rerank is None or self.radius is not None:
                raise ParameterError("candidates are for re-ranking the k nearest; give rerank, and no radius")
            if self.k is not None and self.candidates < self.k:
                raise ParameterError(
                    f"{self.candidates} candidates cannot give {self.k} neighbours; ask for {self.k} at least"
                )
        if self.rerank is not None and self.feature is None:
            raise ParameterError(
                "re-ranking compares the query's feature, which an id, a code or a text does not have; leave out rerank, "
                "or search by an image or an embedding"
            )

    @property
    def limit(self) -> int | None:
        """Number of nearest codes to look up; None: all within the radius."""
        if self.rerank is None or self.k is None:
            return self.k
        return 10 * self.k if self.candidates is None else self.candidates


@dataclass(frozen=True)
class Found:
    """The answer to a query.

    Attributes:
        code: Packed code of the query.
        items: The neighbours: nearest first with equal distances by ascending id, or by descending score.
        distances: Their distances in bits.
        scores: What they were re-ranked by, larger is nearer; None without re-ranking.
        is_cut: More items lie within the radius than were asked for.
    """

    code: bytes
    items: list[Item]
    distances: list[int]
    scores: list[float] | None
    is_cut: bool


class Searcher:
    """An index and its model; a context manager that closes the index. Only one thread at a time may use it."""

    def __init__(self, index: Index, model: HashModel | None = None) -> None:
        """Keep both; without a model, queries are ids and codes only."""
        self.index, self.model = index, model
        self._held: dict[int, Item] = {}
        self._state: Hashable | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.index.close()

    def find(
        self,
        *sources: Any,
        texts: Sequence[str] = (),
        k: int | None = 10,
        radius: int | None = None,
        where: str | None = None,
        rerank: Rerank | None = None,
        candidates: int | None = None,
        max_pixels: int | None = None,
    ) -> Results:
        """The neighbours of every item of ``sources`` and of every text.

        Args:
            sources: Image files, or whatever :func:`distillhash.sources.open_source` takes.
            texts: Sentences, for a model that was trained with texts.
            k: See :class:`Query`, as for the other options.
            radius: All items within this many bits, whatever ``k`` is.
            where: A condition.
            rerank: Another order than by distance.
            candidates: Number of codes to re-rank.
            max_pixels: Images above this are skipped.

        Raises:
            ParameterError: what the index, the model or the re-ranking cannot do.
            DataError: a text of which the model knows no word.
        """
        if rerank is not None:
            self.check_rerank(rerank)
        options: dict[str, Any] = {"k": k if radius is None else None, "radius": radius, "where": where}
        ranking: dict[str, Any] = {"rerank": rerank, "candidates": candidates}
        results = Results()
        names: list[str] = []
        queries: list[Query] = []
        for given in sources:
            source = _open_query(given)
            for batch in self._known_model().encode_batches(source, max_pixels=max_pixels):
                results.skipped += batch.skipped
                names += [source.path(int(row)) or source.keys[row] for row in batch.rows]
                features = batch.features if rerank is not None else [None] * len(batch.rows)
                for code, feature in zip(batch.codes.packed, features, strict=True):
                    queries.append(Query(code.tobytes(), **options, **ranking, feature=feature))
        if texts:
            codes, results.notes = self.encode_texts(texts)
            names += texts
            queries += [Query(code.tobytes(), **options) for code in codes.packed]
        for name, found in zip(names, self.answer(queries, max_pixels=max_pixels), strict=True):
            if isinstance(found, Exception):
                raise found
            results.results.append({"query": name, "neighbours": _neighbours(found)})
        return results

    def encode_texts(self, texts: Sequence[str]) -> tuple[Codes, list[str]]:
        """Codes of sentences, and notes about sentences of which the model knows little.

        Raises:
            ParameterError: a model without texts.
            DataError: a text of which the model knows no word.
        """
        model = self._known_model()
        if not isinstance(model, CrossModalModel):
            raise ParameterError(
                f"this index was built with {model.hasher.method}, which knows images alone; search by text needs one trained with --pairs"
            )
        return model.encode_texts(texts), [odd.reason for odd in unfamiliar_texts(model.text_encoder, texts)]

    def answer(self, queries: Sequence[Query], *, max_pixels: int | None = None) -> list[Found | Exception]:
        """The answers to several queries, or what prevents one: :class:`NoItemError` where the query's id is not there.

        Queries with the same options share one call of the engine.
        """
        answers: list[Found | Exception] = [DataError("not answered")] * len(queries)
        alike: dict[tuple[int | None, int | None, str | None], list[int]] = defaultdict(list)
        for place, query in enumerate(queries):
            alike[query.limit, query.radius if query.k is None else None, query.where].append(place)
        for places in alike.values():
            found: Sequence[Found | Exception]
            try:
                found = self._search([queries[place] for place in places], max_pixels)
            except DistillHashError as error:
                found = [error] * len(places)
            for place, one in zip(places, found, strict=True):
                answers[place] = one
        return answers

    def _search(self, queries: list[Query], max_pixels: int | None) -> list[Found | Exception]:
        """The answers to queries with the same limit, radius and condition."""
        for _ in range(_TRIES):
            try:
                return self._search_once(queries, max_pixels)
            except NoItemError:  # another process removed what the search had found
                continue
        raise DataError("the index changes faster than it can be read; try again")

    def _search_once(self, queries: list[Query], max_pixels: int | None) -> list[Found | Exception]:
        first, index = queries[0], self.index
        held = self._items({query.item for query in queries if isinstance(query.item, int)})
        codes = [_code_of(query, held) for query in queries]
        known = [code for code in codes if code is not None]
        found: SearchResult | RangeResult | list[Any] = []
        if known:
            packed = Codes(np.frombuffer(b"".join(known), np.uint8).reshape(len(known), -1), index.n_bits)
            if first.limit is not None:
                found = index.search(packed, first.limit, where=first.where)
            else:
                assert first.radius is not None
                found = index.range_search(packed, first.radius, where=first.where)
        rows = iter(found)
        hits = [
            [] if code is None else _within(next(rows), query.radius)
            for query, code in zip(queries, codes, strict=True)
        ]
        wanted = {identifier for hit in hits for identifier, _ in hit}
        items = self._items(wanted)
        if len(items) < len(wanted):
            raise NoItemError("an item is gone")
        answers: list[Found | Exception] = []
        for query, code, hit in zip(queries, codes, hits, strict=True):
            if code is None:
                answers.append(NoItemError(f"there is no item with id {query.item!r}"))
            else:
                answers.append(self._ranked(query, code, [items[identifier] for identifier, _ in hit], hit, max_pixels))
        return answers

    def _ranked(
        self, query: Query, code: bytes, items: list[Item], hit: list[tuple[int, int]], max_pixels: int | None
    ) -> Found:
        distances = [distance for _, distance in hit]
        is_cut = query.k is not None and query.radius is not None and (len(hit) == query.limit or len(hit) > query.k)
        if query.rerank is None:
            return Found(code, items, distances, None, is_cut)
        scores = self._scores(query, items, max_pixels)
        order = np.argsort(-scores, kind="stable")[: query.k].tolist()
        return Found(
            code,
            [items[place] for place in order],
            [distances[place] for place in order],
            [float(scores[place]) for place in order],
            is_cut,
        )

    def _scores(self, query: Query, items: list[Item], max_pixels: int | None) -> NDArray[np.float64]:
        """How near every candidate is, ``(m,)``, larger is nearer."""
        assert query.feature is not None
        model, feature = self._known_model(), query.feature
        if not items:
            return np.zeros(0)
        if query.rerank == "features":
            return cosines(feature, self._features_of(items, max_pixels))
        codes = Codes(np.concatenate([item.code.packed for item in items]), model.n_bits)
        hasher: Any = model.hasher
        if query.rerank == "decoder":
            return decoder_scores(feature, hasher.reconstruct(codes))
        return projection_scores(hasher.project(feature[None])[0], codes)

    def check_rerank(self, rerank: Rerank) -> None:
        """Raise :class:`ParameterError` where the model cannot be re-ranked by."""
        model = self._known_model()
        if rerank == "decoder" and not hasattr(model.hasher, "reconstruct"):
            raise ParameterError(
                f"the method {model.hasher.method} trains no decoder; re-rank by projection, or train with --method urph"
            )
        if rerank == "features" and model.backbone_name == "embeddings":
            raise ParameterError(
                "this model takes embeddings, of which an index keeps the codes alone; re-rank by projection"
            )

    def _features_of(self, items: list[Item], max_pixels: int | None) -> NDArray[np.float32]:
        """Features of the items' image files, ``(m, d)``."""
        source = open_source([item.key or "" for item in items])
        batches = list(self._known_model().encode_batches(source, max_pixels=max_pixels))
        for batch in batches:
            if batch.skipped:
                first = batch.skipped[0]
                raise DataError(
                    f"the candidate {first.key!r} cannot be read as an image file ({first.reason}); re-rank by projection"
                )
        return np.concatenate([batch.features for batch in batches])

    def _items(self, ids: set[int]) -> dict[int, Item]:
        """Those of the ids that are there.

        Items are held as long as the index reports no change: reading rows takes most of the time of a search.
        """
        state = self.index.state()
        if state is None or state != self._state or len(self._held) > _MOST_HELD:
            self._held.clear()
            self._state = state
        missing = ids.difference(self._held)
        if missing:
            present = sorted(self.index.present(list(missing)))
            self._held.update((item.id, item) for item in self.index.get(present))
        return {identifier: self._held[identifier] for identifier in ids if identifier in self._held}

    def _known_model(self) -> HashModel:
        if self.model is None:
            raise ParameterError("this index keeps no model; give --model DIR")
        return self.model

    def add(self, source: Any, *, progress: bool = False, max_pixels: int | None = None) -> Added:
        """Add the items of a source that the index does not hold, and replace those whose content changed.

        Each batch is committed before the next is computed: after a crash, running again goes on where it stopped.
        """
        index, model = self.index, self._known_model()
        opened = open_source(source)
        result = Added()
        keys = [item_key(opened, row) for row in range(len(opened))]
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
                metadata=[{"source": opened.name, "key": opened.keys[row]} for row in batch_rows],
                keys=batch_keys,
                digests=[digests[row].tobytes() for row in batch_rows],
                upsert=True,
            )
            replaced = sum(key in known for key in batch_keys)
            result.updated += replaced
            result.added += len(batch_keys) - replaced
        return result

    def add_codes(self, path: str, *, progress: bool = False) -> Added:
        """Add codes that ``encode`` wrote; known keys get their new code.

        Codes with keys are committed in batches, and those that the index holds already are not sent again: after a crash, running again
        goes on where it stopped. Codes without keys are added in one call.

        Raises:
            DataError: the codes have another length than the index.
        """
        codes, keys = Codes.load(path)
        result = Added()
        if keys is None:
            result.added = len(self.index.add(codes))
            return result
        check_keys(keys)
        with Progress("storing", len(codes), unit="codes", quiet=not progress) as shown_progress:
            for start in range(0, len(codes), _CODES_AT_ONCE):
                part, part_keys = codes[start : start + _CODES_AT_ONCE], keys[start : start + _CODES_AT_ONCE]
                self._store(part, part_keys, [digest(code) for code in part.packed], None, result)
                shown_progress.advance(len(part))
        return result

    def _store(
        self,
        codes: Codes,
        keys: Sequence[str],
        digests: Sequence[bytes],
        metadata: Sequence[dict[str, Any]] | None,
        result: Added,
    ) -> None:
        """Add those codes in one transaction whose digests the index does not hold, and count what happened."""
        known = self.index.known(keys)
        rows = [row for row, key in enumerate(keys) if known.get(key, (0, None))[1] != digests[row]]
        if rows:
            self.index.add(
                codes[rows],
                metadata=None if metadata is None else [metadata[row] for row in rows],
                keys=[keys[row] for row in rows],
                digests=[digests[row] for row in rows],
                upsert=True,
            )
        replaced = sum(keys[row] in known for row in rows)
        result.updated += replaced
        result.added += len(rows) - replaced
        result.unchanged += len(keys) - len(rows)


@dataclass
class Results:
    """What :meth:`Searcher.find` found.

    Attributes:
        results: One ``{"query", "neighbours": [{"id", "distance", "key", "metadata"}]}`` per usable item or text; neighbours have a
            ``score`` where they are re-ranked.
        skipped: Items that could not be used as queries.
        notes: Sentences about texts of which the model knows little.
    """

    results: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def open_searcher(
    place: Path | str,
    model_folder: str | None = None,
    *,
    create: bool = False,
    device: str = "auto",
    cache: FeatureCache | None = None,
) -> Searcher:
    """Open an index and its model.

    Args:
        place: A folder or a URI.
        model_folder: The model; at first use it is copied into an index that is a folder. None takes the copy.
        create: Make the index if it is absent.
        device: Where the backbone runs.
        cache: Where features are kept between runs.

    Raises:
        ParameterError: a new index, or one on a server, without a model.
        FormatError: ``model_folder`` is another model than the index was built with.
    """
    model = _model_of(place, model_folder, device, cache)
    index = open_index(place, n_bits=model.n_bits, create=create, model_fingerprint=model.fingerprint)
    return Searcher(index, model)


def has_model(place: Path | str) -> bool:
    """Whether the index is a folder that carries its model."""
    folder = folder_of(place)
    return folder is not None and (folder / _MODEL_FOLDER / _MODEL_FILES[0]).exists()


def _model_of(place: Path | str, model_folder: str | None, device: str, cache: FeatureCache | None) -> HashModel:
    folder = folder_of(place)
    if folder is None:
        if model_folder is None:
            raise ParameterError(f"{shown(place)} keeps no model; give --model DIR")
        return load_model(model_folder, device=device, cache=cache)
    own = folder / _MODEL_FOLDER
    if not has_model(place) and model_folder is None:
        if not folder.exists():
            raise ParameterError(
                f"there is no index at {folder}; make one with `distillhash index SOURCE --model DIR --index {folder}`"
            )
        raise ParameterError(f"{folder} holds no model yet; give --model DIR")
    model = load_model(model_folder or own, device=device, cache=cache)
    if has_model(place):
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


def item_key(source: Source, row: int) -> str:
    """The key of a source's item in an index, unique over sources: the file where there is one, else the source and the key."""
    return source.path(row) or _row_key(source.name, source.keys[row])


def is_row(item: Item) -> bool:
    """Whether an item's key names a row of its source rather than a file; the source may have an absolute path."""
    metadata = item.metadata or {}
    return item.key == _row_key(str(metadata.get("source")), str(metadata.get("key")))


def _row_key(source: str, key: str) -> str:
    return f"{source.partition('#')[0].removesuffix(':')}:{key}"


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


def _open_query(query: Any) -> Source:
    path = Path(query) if isinstance(query, str) else None
    vectors = (".npy", ".npz", ".parquet", ".txt", ".lst")
    if path is not None and path.is_file() and path.suffix.lower() not in vectors:
        return open_source([str(path)])
    return open_source(query)


def _code_of(query: Query, held: dict[int, Item]) -> bytes | None:
    if isinstance(query.item, bytes):
        return query.item
    return held[query.item].code.packed.tobytes() if query.item in held else None


def _within(pairs: Iterable[tuple[int, int]], radius: int | None) -> list[tuple[int, int]]:
    return list(pairs) if radius is None else [pair for pair in pairs if pair[1] <= radius]


def _neighbours(found: Found) -> list[dict[str, Any]]:
    scores = [{}] * len(found.items) if found.scores is None else [{"score": score} for score in found.scores]
    return [
        {"id": item.id, "distance": distance, "key": item.key, "metadata": item.metadata} | score
        for item, distance, score in zip(found.items, found.distances, scores, strict=True)
    ]


def _digests(source: Source) -> tuple[NDArray[np.uint8], dict[int, Skipped]]:
    """Content digest of every item, ``(n, 16) uint8``, and the items that cannot be read."""
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
