"""Searching with an index and its model, against plain loops."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillhash import Codes, HashModel, load_hasher, make_hasher
from distillhash.errors import ParameterError
from distillhash.files import read_file
from distillhash.hamming.ranking import order
from distillhash.index import Index, open_index
from distillhash.methods.registry import hasher_from
from distillhash.search import NoItemError, Query, Searcher, cosines, open_searcher, projection_scores
from distillhash.sources.decode import open_encoded
from image_factory import make_jpeg

RNG = np.random.default_rng(0)


def test_scores() -> None:
    x = RNG.normal(size=(40, 7)).astype(np.float32)
    hasher: Any = make_hasher("lsh", 12).fit(x)
    codes, projection = hasher.encode(x), hasher.project(x[:1])[0]
    expected = [sum(p if s > 0 else -p for p, s in zip(projection, signs, strict=True)) for signs in codes.signs()]
    np.testing.assert_allclose(projection_scores(projection, codes), expected, rtol=1e-5)
    x[3] = 0
    expected = [0 if i == 3 else row @ x[0] / np.sqrt(row @ row) / np.sqrt(x[0] @ x[0]) for i, row in enumerate(x)]
    np.testing.assert_allclose(cosines(x[0], x), expected, rtol=1e-5)
    assert cosines(x[3], x).tolist() == [0] * 40


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of vectors of two kinds, in the folder of a model of them."""
    x = np.concatenate([RNG.normal(-1, 1, (60, 6)), RNG.normal(1, 1, (60, 6))]).astype(np.float32)
    model = HashModel(hasher=make_hasher("itq", 4), backbone="embeddings")
    model.fit(x)
    folder = tmp_path_factory.mktemp("model")
    model.save(folder)
    np.save(folder / "x.npy", x)
    return folder / "x.npy"


@pytest.mark.parametrize("by", ["projection", "decoder", "vectors"])
def test_the_candidates_are_put_in_order(file: Path, tmp_path: Path, by: Any) -> None:
    x = np.load(file)
    hasher: Any = load_hasher(file.parent)
    with open_searcher(tmp_path / "index", str(file.parent), create=True, keep_vectors="int8") as searcher:
        searcher.add(str(file))
        plain = searcher.find(x[:2], k=30).results
        found = searcher.find(x[:2], k=7, rerank=by, candidates=30).results
        inside = searcher.find(x[:2], radius=1, rerank=by).results
        default = searcher.find(x[:2], k=3, rerank=by).results
        everything = searcher.find(x[:2], k=3, rerank=by, candidates=10**12).results
    codes, projections = hasher.encode(x), hasher.project(x)
    for query in range(2):
        ids = [neighbour["id"] for neighbour in plain[query]["neighbours"]]
        if by == "projection":
            scores = codes[ids].signs() @ projections[query]
        else:
            others = hasher.reconstruct(codes) if by == "decoder" else np.rint(127 * x / np.abs(x).max(1)[:, None])
            everyone = [row @ x[query] / np.sqrt((row @ row) * (x[query] @ x[query])) for row in others]
            best = np.argsort(-np.array(everyone), kind="stable")[:3]
            assert [neighbour["score"] for neighbour in everything[query]["neighbours"]] == pytest.approx(
                [everyone[row] for row in best]
            )
            scores = np.array(everyone)[ids]
        expected = [ids[place] for place in np.argsort(-scores, kind="stable")]
        neighbours = found[query]["neighbours"]
        assert [neighbour["id"] for neighbour in neighbours] == expected[:7]
        assert [neighbour["id"] for neighbour in default[query]["neighbours"]] == expected[:3]
        np.testing.assert_allclose(
            [neighbour["score"] for neighbour in neighbours], np.sort(scores)[::-1][:7], rtol=1e-4
        )
        near = [neighbour["distance"] for neighbour in inside[query]["neighbours"]]
        assert max(near) <= 1 and len(near) == np.sum((codes.signs() != codes.signs()[query]).sum(axis=1) <= 1)


def test_what_cannot_be_done_is_said(file: Path, tmp_path: Path) -> None:
    x = np.load(file)
    with open_searcher(tmp_path / "index", str(file.parent), create=True) as searcher:
        searcher.add(str(file))
        for options, sentence in (
            ({"rerank": "magic"}, "one of projection, decoder, vectors, features, got 'magic'"),
            ({"candidates": 20}, "give rerank"),
            ({"candidates": 20, "rerank": "decoder", "radius": 2}, "no radius"),
            ({"candidates": 4, "rerank": "decoder", "k": 5}, "4 candidates cannot give 5"),
        ):
            with pytest.raises(ParameterError, match=sentence):
                searcher.find(x[:1], **options)
        with pytest.raises(ParameterError, match="takes embeddings"):
            searcher.find(x[:1], rerank="features")
        with pytest.raises(ParameterError, match=r"keeps no vectors; .* --keep-vectors int8, or re-rank by decoder"):
            searcher.find(x[:1], rerank="vectors")
        hasher = load_hasher(file.parent)
        old = Searcher(searcher.index, HashModel("embeddings", hasher_from(hasher.config(), hasher.state())))
        with pytest.raises(ParameterError, match=r"itq model has no decoder; .* train it again"):
            old.find(x[:1], rerank="decoder")


def test_items_are_fetched_once_for_all_queries(file: Path, tmp_path: Path) -> None:
    x = np.load(file)
    with open_searcher(tmp_path / "index", str(file.parent), create=True) as searcher:
        searcher.add(str(file))
        calls = []
        get = searcher.index.get
        searcher.index.get = lambda ids: calls.append(len(ids)) or get(ids)  # type: ignore[method-assign,func-returns-value]
        together = searcher.find(x[:50], x[50:60], k=3).results
        assert len(calls) == 1 and len(together) == 60
        alone = [searcher.find(row[None], k=3).results[0]["neighbours"] for row in x[:60]]
    assert [found["neighbours"] for found in together] == alone


def test_adding_reads_every_file_once(photo_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where files are unchanged, changed, or cannot be used; and a run that was interrupted goes on where it stopped."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(40):
        (photos / f"{number:02}.jpg").write_bytes(make_jpeg(40, 30, seed=number))
    (photos / "bad.jpg").write_bytes(make_jpeg()[:200])
    opened: Counter[str] = Counter()
    decoded: list[int] = []
    decode = open_encoded

    def counted(path: str, **options: Any) -> bytes:
        opened[Path(path).name] += 1
        return read_file(path, **options)

    def noted(content: Any, *arguments: Any) -> Any:
        decoded.append(len(content))
        return decode(content, *arguments)

    monkeypatch.setattr("distillhash.sources.files.read_file", counted)
    monkeypatch.setattr("distillhash.backbones.extract.open_encoded", noted)

    def add() -> tuple[int, int, int, int]:
        opened.clear()
        decoded.clear()
        with open_searcher(tmp_path / "index", str(photo_index / "model"), create=True) as searcher:
            added = searcher.add(str(photos))
        assert opened == {path.name: 1 for path in photos.iterdir()}
        assert len(decoded) == added.added + added.updated + len(added.skipped)
        return added.added, added.updated, added.unchanged, len(added.skipped)

    with open_searcher(tmp_path / "index", str(photo_index / "model"), create=True) as searcher:
        left, store = iter(range(1)), searcher.index.add

        def add_once(*arguments: Any, **options: Any) -> Any:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return store(*arguments, **options)

        monkeypatch.setattr(searcher.index, "add", add_once)
        with pytest.raises(KeyboardInterrupt):
            searcher.add(str(photos))
        n_stored = len(searcher.index)
    assert 0 < n_stored < 40
    assert add() == (40 - n_stored, 0, n_stored, 1)
    assert add() == (0, 0, 40, 1)
    (photos / "03.jpg").write_bytes(make_jpeg(40, 30, seed=99))
    (photos / "new.jpg").write_bytes(make_jpeg(40, 30, seed=98))
    assert add() == (1, 1, 39, 1)


def test_a_search_notices_every_change(tmp_path: Path) -> None:
    """Items are held in memory; a change by this process or another one is seen by the next search."""

    def one(code: int) -> Codes:
        return Codes.from_packed(np.array([[code]], np.uint8), 8)

    folder = tmp_path / "index"
    with Searcher(open_index(folder, n_bits=8, create=True)) as searcher:
        index = searcher.index

        def names() -> list[tuple[str, int]]:
            (found,) = searcher.answer([Query(b"\x01", 10)])
            assert not isinstance(found, Exception)
            return [((item.metadata or {})["name"], d) for item, d in zip(found.items, found.distances, strict=True)]

        index.add(one(1), keys=["a"], metadata=[{"name": "first"}])
        assert names() == [("first", 0)]
        index.add(one(1), keys=["a"], metadata=[{"name": "second"}], upsert=True)
        assert names() == [("second", 0)]
        with open_index(folder) as other:
            other.add(one(0), keys=["a"], metadata=[{"name": "third"}], upsert=True)
        assert names() == [("third", 1)]
        with open_index(folder) as other:
            other.remove(keys=["a"])
        assert names() == []
        assert isinstance(searcher.answer([Query(0, 1)])[0], NoItemError)


def test_the_state_of_an_index_moves_with_every_change(tmp_path: Path) -> None:
    def added(index: Index) -> int:
        return int(index.add(Codes.from_packed(np.zeros((1, 1), np.uint8), 8))[0])

    with open_index(tmp_path / "i", n_bits=8, create=True) as index, open_index(tmp_path / "i") as other:
        states = [index.state()]
        assert index.state() == states[0]
        added(index)
        states.append(index.state())
        identifier = added(other)
        states.append(index.state())
        index.remove([identifier])
        states.append(index.state())
        assert len(set(states)) == len(states)


class _TwoParts:
    """As much of a model as a searcher needs of one with codes of two parts."""

    class hasher:  # noqa: N801
        class_bits = 16


def test_codes_of_two_parts_are_searched_by_their_ranking() -> None:
    codes = Codes.from_signs(np.sign(np.random.default_rng(5).normal(size=(90, 64))), 16)
    searcher = Searcher(open_index("memory://", 64, create=True), _TwoParts())  # type: ignore[arg-type]
    searcher.index.add(codes)
    differing = codes.signs()[3] != codes.signs()
    far, of_class = differing.sum(axis=1), differing[:, :16].sum(axis=1)
    queries = [
        Query(3, 60, by="both"),
        Query(codes.packed[3].tobytes(), 60, by="kind"),
        Query(3, 60, by="nearest"),
        Query(3, None, 28, by="kind"),
        Query(3, 60, 28, by="nearest"),
    ]
    answers = [[item.id for item in answer.items] for answer in searcher.answer(queries)]  # type: ignore[union-attr]
    for query, answer in zip(queries, answers, strict=True):
        ranked = order(far, of_class, query.by)[: query.k].tolist()
        assert answer == [row for row in ranked if query.radius is None or far[row] <= query.radius]
    assert len({tuple(answer[:60]) for answer in answers[:3]}) == 3
    nearest = set(order(far, of_class, "nearest")[:50].tolist())
    assert nearest != set(order(far, of_class, "both")[:50].tolist())
    asked = Query(3, 50, rerank="projection", candidates=50, feature=np.zeros(64, np.float32))
    candidates = searcher._hits([asked], [codes.packed[3].tobytes()])[0]
    assert {identifier for identifier, _ in candidates} == nearest  # re-ranking looks for neighbours
    one_part = Searcher(searcher.index)
    refused = one_part.answer([Query(3, 10, by="kind"), Query(3, 10)])
    assert isinstance(refused[0], ParameterError) and not isinstance(refused[1], Exception)
