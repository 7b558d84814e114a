"""An index and its model together: add what a source holds, find what is near a query.

The command line and the server both search through :class:`Searcher`. An index folder carries its model (in ``model/``), so a query
needs the index alone. An index on a server keeps the model's fingerprint, and refuses any other model.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, get_args

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes, bytes_per_code
from distillhash.errors import DataError, DistillHashError, FormatError, ParameterError
from distillhash.files import digest, read_file, write_atomic
from distillhash.hamming.ranking import By, check_by
from distillhash.index import Index, Item, open_index
from distillhash.index.address import folder_of, shown
from distillhash.index.base import VectorType, check_keys
from distillhash.index.sync import CODES_OF, Added, Batch, Rows, Update, identity_of, is_part, is_row, row_key, rows_of
from distillhash.methods.base import MAX_WEIGHTS
from distillhash.models import (
    ONNX_NAME,
    CrossModalModel,
    Encoded,
    HashModel,
    load_model,
    onnx_file,
    stored_fingerprint,
)
from distillhash.output import Progress
from distillhash.sources import EmbeddingSource, Skipped, Source, open_source
from distillhash.sources.base import RowKeys, nothing_usable
from distillhash.sources.parquet import open_parquet
from distillhash.sources.vectors import Archive
from distillhash.texts import unfamiliar_texts

if TYPE_CHECKING:
    from distillhash.backbones import Engine, FeatureCache

Rerank = Literal["projection", "decoder", "vectors", "features"]

__all__ = ["Added", "is_row"]  # made below the index, and known from here

UPLOAD_PREFIX = "upload:"
"""Of the keys that the server gives to uploads; no key in a file of codes may look like one."""

_MODEL_FOLDER = "model"
_MODEL_FILES = ("config.json", "model.safetensors")
_NOT_IMAGES = (".npy", ".npz", ".parquet", ".txt", ".lst")
_CODES_AT_ONCE = 50_000
_MOST_HELD = 50_000  # items in memory, about 1 KB each
_TRIES = 5


class NoItemError(DataError):
    """There is no item with this id."""


class _ItemsGoneError(Exception):
    """Another process removed items meanwhile."""


class Results(NamedTuple):
    """What :meth:`Searcher.find` found."""

    results: list[dict[str, Any]]  # per query {"query", "neighbours": [{"id", "distance", "key", "metadata"}]}
    skipped: list[Skipped]  # items that could not be used as queries
    notes: list[str]  # sentences about texts of which the model knows little


@dataclass(frozen=True)
class Query:
    """One search; options that exclude each other raise :class:`ParameterError`.

    Candidates are re-ranked by ``projection`` (inner product of the query's real projection and the candidate's signs), or by the cosine
    of the query's feature to another one: ``decoder`` (rebuilt from the candidate's code), ``vectors`` (kept in the index) or
    ``features`` (of the candidate's image file, read again unless cached).
    """

    item: int | bytes  # the id of an item, or a packed code
    k: int | None = 10  # neighbours at most; None takes all within the radius
    radius: int | None = None  # largest distance in bits; None sets no limit
    where: str | None = None  # a condition that items must meet, see distillhash.index.Index.search
    rerank: Rerank | None = None  # None: by distance
    candidates: int | None = None  # how many nearest codes are re-ranked; None takes 10 k, or all within the radius
    feature: NDArray[np.float32] | None = None  # (d,) of the query, for re-ranking
    by: By = "both"  # the ranking of codes of two parts; the candidates of ``both`` are those of ``nearest``

    def __post_init__(self) -> None:
        if self.rerank is not None and self.rerank not in get_args(Rerank):
            raise ParameterError(f"rerank must be one of {', '.join(get_args(Rerank))}, got {self.rerank!r}")
        if self.rerank is not None and self.feature is None:
            raise ParameterError(
                "re-ranking compares the query's feature, which an id, a code or a text does not have; leave out rerank, "
                "or search by an image or an embedding"
            )
        if self.candidates is not None and (self.rerank is None or self.radius is not None):
            raise ParameterError("candidates are for re-ranking the k nearest; give rerank, and no radius")
        if self.candidates is not None and self.candidates < (self.k or 0):
            raise ParameterError(
                f"{self.candidates} candidates cannot give {self.k} neighbours; ask for {self.k} at least"
            )

    @property
    def limit(self) -> int | None:
        """Number of nearest codes to look up; None: all within the radius."""
        if self.rerank is None or self.k is None:
            return self.k
        return 10 * self.k if self.candidates is None else self.candidates


class Found(NamedTuple):
    """The answer to a query."""

    code: bytes  # packed, of the query
    items: list[Item]  # nearest first with ties by ascending id, or by descending score
    distances: list[int]  # in bits
    scores: list[float] | None  # what was re-ranked by, larger is nearer; None without re-ranking
    is_cut: bool  # more items lie within the radius than were asked for, or may do so with codes of two parts


class Searcher:
    """An index and its model; a context manager that closes the index. Only one thread at a time may use it."""

    def __init__(self, index: Index, model: HashModel | None = None, *, max_pixels: int | None = None) -> None:
        """Without a model, queries are ids and codes only. Images above ``max_pixels`` are skipped."""
        self.index, self.model, self._max_pixels = index, model, max_pixels
        self._held: dict[int, Item] = {}
        self._state: Hashable | None = None

    @property
    def class_bits(self) -> int:
        """Leading bits of the model's codes that are their class part; 0 where they have one part, or there is no model."""
        return 0 if self.model is None else self.model.hasher.class_bits

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.index.close()

    def find(
        self,
        *sources: Any,
        texts: Sequence[str] = (),
        k: int = 10,
        radius: int | None = None,
        where: str | None = None,
        rerank: Rerank | None = None,
        candidates: int | None = None,
        by: By = "both",
    ) -> Results:
        """The neighbours of every item of ``sources``, and of every text where the model was trained with texts.

        A source is an image file, or whatever :func:`distillhash.sources.open_source` takes. A radius takes the place of ``k``. Texts are
        not re-ranked. The other options are those of :class:`Query`. Raises :class:`ParameterError` for what the index, the model or the
        re-ranking cannot do, and :class:`DataError` for a text of which the model knows no word.
        """
        if rerank is not None:
            self.check_rerank(rerank)
        check_by(by, self.class_bits)
        k = self.index.cut(k)
        candidates = None if candidates is None else self.index.cut(candidates)
        near = k if radius is None else None, radius, where
        results = Results([], [], [])
        names: list[str] = []
        queries: list[Query] = []
        for given in sources:
            source = open_source([given] if isinstance(given, str) and is_image_file(given) else given)
            for batch in self._encode(source):
                results.skipped.extend(batch.skipped)
                names += [source.path(row) or source.keys[row] for row in batch.rows.tolist()]
                features = batch.features if rerank is not None else [None] * len(batch.rows)
                for code, feature in zip(batch.codes.packed, features, strict=True):
                    queries.append(Query(code.tobytes(), *near, rerank, candidates, feature, by))
        if texts:
            model = self.known_model()
            if not isinstance(model, CrossModalModel):
                raise ParameterError(
                    f"this index was built with {model.hasher.method}, which knows images alone; "
                    "search by text needs one trained with --pairs"
                )
            names += texts
            queries += [Query(code.tobytes(), *near, by=by) for code in model.encode_texts(texts).packed]
            results.notes.extend(odd.reason for odd in unfamiliar_texts(model.text_encoder, texts))
        for name, found in zip(names, self.answer(queries), strict=True):
            if isinstance(found, Exception):
                raise found
            neighbours: list[dict[str, Any]] = [
                {"id": item.id, "distance": distance, "key": item.key, "metadata": item.metadata}
                for item, distance in zip(found.items, found.distances, strict=True)
            ]
            for neighbour, score in zip(neighbours, found.scores or (), strict=False):
                neighbour["score"] = score
            results.results.append({"query": name, "neighbours": neighbours})
        return results

    def answer(self, queries: Sequence[Query]) -> list[Found | DistillHashError]:
        """The answers, or what prevents one (:class:`NoItemError`: no such id). Queries with the same options share one engine call."""
        answers: dict[int, Found | DistillHashError] = {}
        alike: dict[tuple[int | None, int | None, str | None, By], list[int]] = defaultdict(list)
        for place, query in enumerate(queries):
            alike[query.limit, query.radius if query.k is None else None, query.where, self._ranking(query)].append(
                place
            )
        for places in alike.values():
            try:
                found = self._search([queries[place] for place in places])
            except DistillHashError as error:
                found = [error] * len(places)
            answers.update(zip(places, found, strict=True))
        return [answers[place] for place in range(len(queries))]

    def _search(self, queries: list[Query]) -> list[Found | DistillHashError]:
        """The answers to queries with the same limit, radius, condition and ranking."""
        for _ in range(_TRIES):
            held = self._items({query.item for query in queries if isinstance(query.item, int)})
            known = {identifier: item.code.packed.tobytes() for identifier, item in held.items()}
            codes = [query.item if isinstance(query.item, bytes) else known.get(query.item) for query in queries]
            hits = self._hits(queries, codes)
            wanted = {identifier for hit in hits for identifier, _ in hit}
            items = self._items(wanted)
            if len(items) == len(wanted):  # else another process removed what the search had found
                with contextlib.suppress(_ItemsGoneError):
                    return [
                        NoItemError(f"there is no item with id {query.item!r}")
                        if code is None
                        else self._ranked(query, code, hit, [items[identifier] for identifier, _ in hit])
                        for query, code, hit in zip(queries, codes, hits, strict=True)
                    ]
        raise DataError("the index changes faster than it can be read; try again")

    def _hits(self, queries: list[Query], codes: list[bytes | None]) -> list[list[tuple[int, int]]]:
        """(id, distance) pairs for every query, nearest first; none for a query without a code."""
        first, known = queries[0], [code for code in codes if code is not None]
        packed = np.frombuffer(b"".join(known), np.uint8).reshape(len(known), bytes_per_code(self.index.n_bits))
        wanted, by = Codes(packed, self.index.n_bits, self.class_bits), self._ranking(first)
        if first.limit is None:
            assert first.radius is not None
            rows = iter(self.index.range_search(wanted, first.radius, where=first.where, by=by))
        else:
            rows = iter(self.index.search(wanted, first.limit, where=first.where, by=by))
        hits = [[] if code is None else next(rows) for code in codes]
        return [
            hit if query.radius is None else [pair for pair in hit if pair[1] <= query.radius]
            for query, hit in zip(queries, hits, strict=True)
        ]

    def _ranking(self, query: Query) -> By:
        """What codes are looked up by: candidates of ``both`` are the nearest alone, since re-ranking looks for neighbours."""
        return "nearest" if self.class_bits and query.rerank is not None and query.by == "both" else query.by

    def _ranked(self, query: Query, code: bytes, hit: list[tuple[int, int]], items: list[Item]) -> Found:
        distances = [distance for _, distance in hit]
        is_cut = query.k is not None and query.radius is not None and (len(hit) == query.limit or len(hit) > query.k)
        if self.class_bits and query.k is not None and query.radius is not None:  # near ones may be late in the ranking
            is_cut = len(self.index) > (query.limit or 0)
        if query.rerank is None:
            return Found(code, items, distances, None, is_cut)
        scores = self._scores(query, items) if items else np.zeros(0)
        order = np.argsort(-scores, kind="stable")[: query.k].tolist()
        items, distances = [items[place] for place in order], [distances[place] for place in order]
        return Found(code, items, distances, scores[order].tolist(), is_cut)

    def _scores(self, query: Query, items: list[Item]) -> NDArray[np.float64]:
        """How near every candidate is, ``(m,)``, larger is nearer."""
        assert query.feature is not None
        hasher: Any = self.known_model().hasher
        if query.rerank == "features":
            batches = list(self._encode(open_source([item.key or "" for item in items])))
            for bad in [bad for batch in batches for bad in batch.skipped]:
                reason = f"cannot be read as an image file ({bad.reason})"
                raise DataError(f"the candidate {bad.key!r} {reason}; re-rank by projection")
            return cosines(query.feature, np.concatenate([batch.features for batch in batches]))
        if query.rerank == "vectors":
            ids = [item.id for item in items]
            try:
                return cosines(query.feature, self.index.vectors(ids, hasher.n_features_))
            except DataError as error:
                if len(self.index.present(ids)) < len(ids):
                    raise _ItemsGoneError from error
                raise
        codes = Codes.concatenate([item.code for item in items], self.index.n_bits)
        if query.rerank == "decoder":
            return np.asarray(hasher.decoder.cosines(query.feature[None], codes)[0])
        return projection_scores(hasher.project(query.feature[None])[0], codes)

    def check_rerank(self, rerank: Rerank) -> None:
        """Raise :class:`ParameterError` where the model cannot be re-ranked by."""
        model = self.known_model()
        if rerank == "decoder":
            _ = model.hasher.decoder  # raises where there is none
        if rerank == "vectors" and self.index.vector_type is None:
            raise ParameterError(
                "this index keeps no vectors; index its sources into a new folder with --keep-vectors int8, or re-rank by decoder"
            )
        if rerank == "features" and model.backbone_name == "embeddings":
            raise ParameterError(
                "this model takes embeddings, which are no image files to read again; re-rank by decoder, or by vectors where the index "
                "keeps them"
            )

    def _items(self, ids: set[int]) -> dict[int, Item]:
        """Those of the ids that are there, held until the index changes: reading rows takes most of the time of a search."""
        state = self.index.state()
        if state is None or state != self._state or len(self._held) > _MOST_HELD:
            self._held.clear()
            self._state = state
        missing = ids.difference(self._held)
        if missing:
            present = sorted(self.index.present(list(missing)))
            self._held.update((item.id, item) for item in self.index.get(present))
        return {identifier: self._held[identifier] for identifier in ids if identifier in self._held}

    def known_model(self) -> HashModel:
        """The model; a :class:`ParameterError` where the index keeps none."""
        if self.model is None:
            raise ParameterError("this index keeps no model; give --model DIR")
        return self.model

    def _encode(self, source: Source, **options: Any) -> Iterator[Encoded]:
        return self.known_model().encode_batches(source, max_pixels=self._max_pixels, **options)

    def add(self, source: Any, *, prune: bool = False, progress: bool = False) -> Added:
        """Add the items of a source that the index does not hold, replace those whose content changed, and recognise those renamed.

        Every item is read once; one that the index holds unchanged is neither decoded nor embedded. Each batch is committed before the next
        one is computed, so after a crash, running again goes on where it stopped. ``prune`` removes what is gone from the source.
        :class:`DataError` where no item can be used, :class:`ParameterError` where a part of a source is to be pruned.
        """
        opened = open_source(source)
        identity = identity_of(opened.name)
        if opened.name == "array" and not isinstance(source, str | os.PathLike):  # its content is all that it is
            data: Any = opened
            contents = data.vectors if isinstance(opened, EmbeddingSource) else map(data.read, range(len(opened)))
            identity = f"array:{digest(b''.join(map(digest, contents))).hex()}"
        opened, rows = rows_of(opened, identity)
        if prune and rows.is_part:
            raise _cannot_prune(opened.name)
        update = Update(self.index, rows)
        skipped: list[Skipped] = []
        for batch in self._encode(opened, known=update.recognise, progress=progress):
            skipped += batch.skipped
            update.store(Batch(batch.rows, batch.codes, batch.digests, batch.known, batch.features))
        added = update.finish(skipped, prune=prune)
        if len(skipped) == len(opened):
            raise nothing_usable(opened.name, skipped)
        return added

    def add_codes(self, path: str, *, prune: bool = False, replace: bool = False, progress: bool = False) -> Added:
        """Add codes that ``encode`` wrote, and replace those that changed; ``prune`` removes what the file does not hold any more.

        Names are the keys of their items. Row numbers are not: those items are known by what was encoded and the row. Codes are stored in
        batches, and those that the index holds already are not sent again: after a crash, running again goes on where it stopped.
        :class:`DataError` where the lengths of codes or class parts differ, or where a name is that of another source's item with another
        code and ``replace`` is not set; :class:`ParameterError` for an index that keeps vectors.
        """
        if self.index.vector_type is not None:
            raise ParameterError(
                f"this index keeps the vector of every item, and {path} holds codes alone; index the images or embeddings"
            )
        codes, given = Codes.load(path)
        own = given or [str(row) for row in range(len(codes))]
        origin = _read_origin(path)
        identity = CODES_OF + (origin.source or os.path.realpath(path))
        are_rows = all(map(str.isdecimal, own)) if origin.has_names is None else not origin.has_names
        keys = [row_key(identity, key) for key in own] if are_rows else own
        for key in check_keys(keys):
            if key.startswith(UPLOAD_PREFIX):
                raise DataError(f"the key {key!r} of {path} looks like an upload's; give the item another one")
        if prune and origin.is_part:
            raise _cannot_prune(path)
        self.index.check_codes(codes)
        if self.model is not None and codes.class_bits != self.class_bits:
            raise DataError(
                f"the codes of the index's model have {self.class_bits} class bits, those of {path} {codes.class_bits}; "
                "encode with that model"
            )
        digests = [digest(code) for code in codes.packed]
        update = Update(self.index, Rows(identity, own, keys, own, is_part=origin.is_part, by_content=False))
        update.refuse_other_codes(codes, digests, replace=replace)
        with Progress("storing", len(codes), unit="codes", quiet=not progress) as shown_progress:
            for start in range(0, len(codes), _CODES_AT_ONCE):
                part = slice(start, start + _CODES_AT_ONCE)
                is_known = np.array(update.recognise(own[part], digests[part]), bool)
                new = start + np.flatnonzero(~is_known)
                changed = [digests[row] for row in new.tolist()]
                update.store(Batch(new, codes[new], changed, start + np.flatnonzero(is_known)))
                shown_progress.advance(len(is_known))
        return update.finish([], prune=prune)


def open_searcher(
    place: Path | str,
    model_folder: str | None = None,
    *,
    create: bool = False,
    device: str = "auto",
    engine: Engine = "auto",
    cache: FeatureCache | None = None,
    max_pixels: int | None = None,
    allow_download: bool = False,
    keep_vectors: VectorType | None = None,
) -> Searcher:
    """Open an index, a folder or a URI, and its model.

    With ``create``, a model folder that is given is copied into an index folder that has none. From then on :class:`FormatError` refuses
    another model. :class:`ParameterError` where a new index, or one on a server, comes without a model, :class:`DataError` where there is
    no index and none is to be made. Images above ``max_pixels`` are skipped. ``device``, ``engine`` and ``allow_download``: see
    :func:`distillhash.load_model`, ``keep_vectors``: see :func:`distillhash.index.open_index`.
    """
    folder, keeps_model = folder_of(place), has_model(place)
    own = None if folder is None else folder / _MODEL_FOLDER
    if model_folder is None and not keeps_model:
        if folder is None or folder.exists():
            raise ParameterError(f"{shown(place)} keeps no model; give --model DIR")
        remedy = f"make one with `distillhash index SOURCE --model DIR --index {folder}`"
        raise (ParameterError if create else DataError)(f"there is no index at {folder}; {remedy}")
    options: dict[str, Any] = {"device": device, "engine": engine, "allow_download": allow_download}
    model = load_model(model_folder or str(own), cache=cache, **options)
    options = {"model_fingerprint": model.fingerprint, "keep_vectors": keep_vectors}
    index = open_index(place, n_bits=model.n_bits, create=create, **options)
    try:
        if own is not None and keeps_model:
            if model_folder is not None and (kept := stored_fingerprint(own)) != model.fingerprint:
                other = f"another model (fingerprint {kept}, not {model.fingerprint})"
                raise FormatError(f"{folder} was built with {other}; make a new index for this one")
        elif own is not None and model_folder is not None and create:
            file = onnx_file(model_folder)
            # config.json last: its presence says the copy is whole
            names = (
                {name: Path(model_folder) / name for name in reversed(_MODEL_FILES)}
                if file is None
                else {ONNX_NAME: file}
            )
            for name, source in names.items():
                data = read_file(source, limit=MAX_WEIGHTS)
                try:
                    write_atomic(own / name, data)
                except OSError as error:
                    reason = f"{own / name} cannot be written ({error.strerror})"
                    raise DistillHashError(f"{reason}; check the disk and the permissions") from error
    except BaseException:
        index.close()
        raise
    return Searcher(index, model, max_pixels=max_pixels)


def has_model(place: Path | str) -> bool:
    """Whether the index is a folder that carries its model."""
    folder = folder_of(place)
    return folder is not None and any((folder / _MODEL_FOLDER / name).exists() for name in (_MODEL_FILES[0], ONNX_NAME))


def is_image_file(query: str) -> bool:
    """Whether a query names one file that is to be read as an image, whatever its suffix; lists and tables are not."""
    try:
        return Path(query).is_file() and Path(query).suffix.lower() not in _NOT_IMAGES
    except (OSError, ValueError):  # no path at all
        return False


def is_codes_file(source: str) -> bool:
    """Whether a SOURCE names a file of codes that ``encode`` wrote rather than images or embeddings."""
    return _stored_with_codes(source, "n_bits") is not None


def _stored_with_codes(path: str, field: str) -> str | None:
    """``n_bits`` or ``origin`` as a file of codes states it; None where it is no such file, absent, or damaged in any way."""
    with contextlib.suppress(Exception):
        if path.endswith(".npz"):
            arrays = Archive(Path(path), path)
            return str(arrays[field]) if "packed" in arrays else None
        if path.endswith(".parquet"):
            with open_parquet(Path(path)) as table:
                return str(table.schema_arrow.metadata[f"distillhash.{field}".encode()], "utf-8")
    return None


class Origin(NamedTuple):
    """Where codes in a file come from, as far as that is known."""

    source: str | None = None  # its identity
    has_names: bool | None = None  # whether the keys are more than numbers of rows
    is_part: bool = False


def origin_of(source: Source) -> str:
    """Where the codes of an open source come from, as :meth:`Codes.save` keeps it."""
    identity = identity_of(source.name)
    origin = Origin(identity, not isinstance(source.keys, RowKeys), is_part(source.name, identity))
    return json.dumps(origin._asdict())


def _read_origin(path: str) -> Origin:
    """What :func:`origin_of` gave when a file of codes was written; files of version 0.1 do not tell."""
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        origin = Origin(**json.loads(_stored_with_codes(path, "origin") or "{}"))
        if [type(value) for value in origin] == [str, bool, bool]:
            return origin
    return Origin()


def _cannot_prune(name: str) -> ParameterError:
    return ParameterError(
        f"{name} is a part of a source, which does not tell what is gone; prune with the whole source"
    )


def projection_scores(projection: NDArray[np.float32], codes: Codes) -> NDArray[np.float64]:
    """Inner products of a query's projection ``(n_bits,)`` and the signs of ``m`` codes, ``(m,)``."""
    return np.asarray(codes.signs().astype(np.float64) @ projection)


def cosines(feature: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosines of a feature ``(d,)`` and ``m`` others ``(m, d)``; 0 for a feature of zeros."""
    wide = others.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1) * np.linalg.norm(feature.astype(np.float64))
    return np.asarray(np.divide(wide @ feature, lengths, out=np.zeros(len(wide)), where=lengths > 0))
