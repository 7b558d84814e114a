"""Re-ranking against plain loops."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillhash import HashModel, load_hasher, load_model, make_hasher
from distillhash.errors import ParameterError
from distillhash.search import Reranker, add_source, cosines, decoder_scores, find, open_model_index, projection_scores

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
    np.testing.assert_allclose(
        decoder_scores(x[0], x), [-sum((a - b) ** 2 for a, b in zip(x[0], y, strict=True)) for y in x], rtol=1e-5
    )


@pytest.fixture(scope="module")
def urph(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, HashModel]:
    """Vectors of two kinds, and a model of them."""
    x = np.concatenate([RNG.normal(-1, 1, (60, 6)), RNG.normal(1, 1, (60, 6))]).astype(np.float32)
    model = HashModel(hasher=make_hasher("urph", 4, epochs=5, decoder_epochs=20, batch_size=32), backbone="embeddings")
    model.fit(x)
    folder = tmp_path_factory.mktemp("model")
    model.save(folder)
    np.save(folder / "x.npy", x)
    return folder / "x.npy", load_model(folder)


@pytest.mark.parametrize("by", ["projection", "decoder"])
def test_the_candidates_are_put_in_order(urph: tuple[Path, HashModel], tmp_path: Path, by: Any) -> None:
    file, model = urph
    x = np.load(file)
    hasher: Any = load_hasher(file.parent)
    with open_model_index(tmp_path / "index", model) as index:
        add_source(index, model, str(file))
        plain, _ = find(index, model, x[:2], k=30)
        found, _ = find(index, model, x[:2], k=7, rerank=by, candidates=30)
        inside, _ = find(index, model, x[:2], radius=1, rerank=by)
        default, _ = find(index, model, x[:2], k=3, rerank=by)
    codes, projections = hasher.encode(x), hasher.project(x)
    for query in range(2):
        ids = [neighbour["id"] for neighbour in plain[query]["neighbours"]]
        if by == "projection":
            scores = codes[ids].signs() @ projections[query]
        else:
            scores = -np.square(hasher.reconstruct(codes[ids]) - x[query]).sum(axis=1)
        expected = [ids[place] for place in np.argsort(-scores, kind="stable")]
        neighbours = found[query]["neighbours"]
        assert [neighbour["id"] for neighbour in neighbours] == expected[:7]
        assert [neighbour["id"] for neighbour in default[query]["neighbours"]] == expected[:3]
        np.testing.assert_allclose(
            [neighbour["score"] for neighbour in neighbours], np.sort(scores)[::-1][:7], rtol=1e-4
        )
        near = [neighbour["distance"] for neighbour in inside[query]["neighbours"]]
        assert max(near) <= 1 and len(near) == np.sum((codes.signs() != codes.signs()[query]).sum(axis=1) <= 1)


def test_what_cannot_be_done_is_said(urph: tuple[Path, HashModel], tmp_path: Path) -> None:
    file, model = urph
    x = np.load(file)
    with open_model_index(tmp_path / "index", model) as index:
        add_source(index, model, str(file))
        for options, sentence in (
            ({"rerank": "magic"}, "one of projection, decoder, features, got 'magic'"),
            ({"candidates": 20}, "give rerank"),
            ({"candidates": 20, "rerank": "decoder", "radius": 2}, "no radius"),
            ({"candidates": 4, "rerank": "decoder", "k": 5}, "4 candidates cannot give 5"),
        ):
            with pytest.raises(ParameterError, match=sentence):
                find(index, model, x[:1], **options)
        with pytest.raises(ParameterError, match="takes embeddings"):
            find(index, model, x[:1], rerank="features")
    with pytest.raises(ParameterError, match="itq trains no decoder"):
        Reranker(HashModel("embeddings", make_hasher("itq", 4)), "decoder")
