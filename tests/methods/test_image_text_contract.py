"""One suite for every method of image-text pairs: whatever is registered must pass it."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from degenerate import INPUTS, quick
from distillhash import load_hasher, make_hasher, method_names
from distillhash.codes import hamming_distances
from distillhash.errors import DataError, FormatError, NotFittedError, ParameterError
from distillhash.methods import method_class
from distillhash.methods.image_text import CrossModalHasher
from distillhash.metrics import query_metrics
from pair_factory import paired_vectors

METHODS = method_names(image_text=True)
FAST: dict[str, dict[str, Any]] = {
    "ccaitq": {},
    "cross-contrast": {},
    "duh-eg": {"hidden": 32},
    "ugach": {"hidden": 32, "pretrain_epochs": 20, "rounds": 2},
}
IMAGES, TEXTS, OWNERS = paired_vectors()


def make(method: str, n_bits: int = 16, seed: int = 0) -> CrossModalHasher:
    hasher = make_hasher(method, n_bits, seed=seed, **FAST[method])
    assert isinstance(hasher, CrossModalHasher)
    return hasher


@pytest.fixture(scope="module", params=METHODS)
def fitted(request: pytest.FixtureRequest) -> CrossModalHasher:
    return make(request.param, seed=3).fit(IMAGES, TEXTS, owners=OWNERS)


def test_shapes_and_the_sign_rule(fitted: CrossModalHasher) -> None:
    for project, encode, rows in (
        (fitted.project, fitted.encode_images, IMAGES),
        (fitted.project_texts, fitted.encode_texts, TEXTS),
    ):
        projection, codes = project(rows), encode(rows)
        assert projection.shape == (len(rows), 16) and projection.dtype == np.float32
        np.testing.assert_array_equal(codes.signs(), np.where(projection >= 0, 1, -1))
    assert fitted.encode(IMAGES) == fitted.encode_images(IMAGES)
    assert (fitted.n_features_, fitted.n_text_features_) == (24, 18)


@pytest.mark.parametrize("n", [0, 1, 33])
def test_rows_are_independent(fitted: CrossModalHasher, n: int) -> None:
    for encode, rows in ((fitted.encode_images, IMAGES), (fitted.encode_texts, TEXTS)):
        everything = encode(rows)
        assert encode(rows[:n]) == everything[:n]
        order = np.random.default_rng(0).permutation(len(rows))
        assert encode(rows[order].astype(np.float64)) == everything[order]


def test_save_and_load(fitted: CrossModalHasher, tmp_path: Path) -> None:
    fitted.save(tmp_path / "hasher")
    assert sorted(path.name for path in (tmp_path / "hasher").iterdir()) == ["config.json", "model.safetensors"]
    loaded = load_hasher(tmp_path / "hasher")
    assert type(loaded) is type(fitted) and isinstance(loaded, CrossModalHasher)
    assert loaded.get_params() == fitted.get_params()
    np.testing.assert_array_equal(loaded.project(IMAGES), fitted.project(IMAGES))
    np.testing.assert_array_equal(loaded.project_texts(TEXTS), fitted.project_texts(TEXTS))
    config = json.loads((tmp_path / "hasher" / "config.json").read_text())
    config["parameters"]["n_bits"] = 17
    (tmp_path / "hasher" / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match="does not hold a"):
        load_hasher(tmp_path / "hasher")


@pytest.mark.parametrize("method", METHODS)
def test_seeds(method: str) -> None:
    def codes(seed: int) -> NDArray[np.uint8]:
        hasher = make(method, 12, seed).fit(IMAGES[:40], TEXTS[:80], owners=OWNERS[:80])
        return np.concatenate([hasher.encode_images(IMAGES).packed, hasher.encode_texts(TEXTS).packed])

    np.testing.assert_array_equal(codes(7), codes(7))
    assert (codes(7) != codes(8)).any()


def test_new_pairs_find_each_other(fitted: CrossModalHasher) -> None:
    images, texts, owners = paired_vectors(60, 1, seed=5)
    distances = hamming_distances(fitted.encode_images(images), fitted.encode_texts(texts))
    own = np.eye(60)
    chance = 10 / 60
    for table in (distances, distances.T):
        assert query_metrics(table, own)["hit@10"].mean() > 3 * chance
    assert owners.tolist() == list(range(60))


def test_owners_are_optional_and_may_come_in_any_order() -> None:
    images, texts, _ = paired_vectors(60, 1)
    plain = make("ccaitq").fit(images, texts)
    order = np.random.default_rng(0).permutation(60)
    turned = make("ccaitq").fit(images, texts[order], owners=order)
    np.testing.assert_allclose(plain.project_texts(texts), turned.project_texts(texts), atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_refusals(method: str, tmp_path: Path) -> None:
    hasher = make(method, 8)
    for call in (hasher.encode_images, hasher.encode_texts):
        with pytest.raises(NotFittedError, match="call fit"):
            call(IMAGES)
    with pytest.raises(NotFittedError, match="nothing to save"):
        hasher.save(tmp_path)
    with pytest.raises(ParameterError, match="images and texts together; give text_features"):
        hasher.fit(IMAGES)
    with pytest.raises(ParameterError, match="leave out labels"):
        hasher.fit(IMAGES, IMAGES, labels=np.zeros(120, int))
    with pytest.raises(DataError, match=r"views must be \(n_views, 120, 24\), got \(1, 120, 18\)"):
        hasher.fit(IMAGES, TEXTS, owners=OWNERS, views=TEXTS[None, :120])
    cases: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None, str]] = [
        (IMAGES, TEXTS, None, r"120 images but 240 texts; make them equal, or give owners \(240,\)"),
        (IMAGES, TEXTS, OWNERS + 1, "owners must be .* from 0 to 119"),
        (IMAGES, TEXTS, OWNERS[:5], "owners must be"),
        (IMAGES, TEXTS[:238], OWNERS[:238], "1 of 120 images have no text, first row 119"),
        (np.zeros(5), TEXTS, OWNERS, "image features must be a 2-d array"),
        (IMAGES, np.full((120, 3), np.nan), None, "text features must be finite; row 0"),
        (IMAGES[:1], TEXTS[:1], None, "at least 2 pairs"),
    ]
    for images, texts, owners, message in cases:
        with pytest.raises(DataError, match=message):
            hasher.fit(images, texts, owners=owners)
    assert not hasher.is_fitted
    hasher.fit(IMAGES, TEXTS, owners=OWNERS)
    with pytest.raises(DataError, match=r"text features must be \(n, 18\) as in fit, got shape \(120, 24\)"):
        hasher.encode_texts(IMAGES)


@pytest.mark.parametrize(
    ("images", "texts"),
    [
        (np.ones((30, 24), np.float32), TEXTS[:30]),
        (IMAGES[:30], np.zeros((30, 18), np.float32)),
        (np.repeat(IMAGES[:6], 5, axis=0), np.repeat(TEXTS[:6], 5, axis=0)),
        (IMAGES[:2], TEXTS[:2]),
    ],
    ids=["constant images", "zero texts", "duplicates", "two pairs"],
)
@pytest.mark.parametrize("method", METHODS)
def test_awkward_data_is_learned_from_or_refused_in_words(method: str, images: Any, texts: Any) -> None:
    hasher = make(method, 8)
    try:
        hasher.fit(images, texts)
    except DataError as error:
        assert not hasher.is_fitted and len(str(error)) > 30
        return
    assert np.isfinite(hasher.project(IMAGES)).all() and np.isfinite(hasher.project_texts(TEXTS)).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("method", METHODS)
def test_degenerate_inputs_are_learned_from_or_refused_in_one_sentence(method: str, name: str) -> None:
    x = INPUTS[name]
    for given in ((x, TEXTS[: len(x)]), (IMAGES[: len(x)], x), (x, x)):
        hasher = quick(method, 8)
        assert isinstance(hasher, CrossModalHasher)
        try:
            hasher.fit(*given)
        except DataError as error:
            assert not hasher.is_fitted
            assert len(str(error)) > 30 and "\n" not in str(error) and "nan" not in str(error)
            continue
        sides = hasher.project(given[0]), hasher.project_texts(given[1])
        assert all(side.shape == (len(x), 8) and np.isfinite(side).all() for side in sides)
        again = quick(method, 8)
        assert isinstance(again, CrossModalHasher)
        assert again.fit(*given).encode_images(given[0]) == hasher.encode_images(given[0])


def test_names_are_checked() -> None:
    assert not set(METHODS) & set(method_names())
    with pytest.raises(ParameterError, match="ccaitq has no hyper-parameter 'epochs'"):
        make_hasher("ccaitq", 8, epochs=3)
    with pytest.raises(ParameterError, match="unknown preset 'best' of ugach; choose one of recommended, code"):
        make_hasher("ugach", 8, preset="best")
    with pytest.raises(ParameterError, match="margin must be a number, got 'wide'"):
        make_hasher("ugach", 8, margin="wide")


@pytest.mark.parametrize(
    ("method", "option", "value", "message"),
    [
        ("ccaitq", "regularisation", 0, "above 0"),
        ("ccaitq", "power", -1, "at least 0"),
        ("ccaitq", "iterations", 0, "at least 1"),
        ("cross-contrast", "temperature", 0, "above 0"),
        ("cross-contrast", "hidden", -1, "at least 0"),
        ("cross-contrast", "inputs", "raw", "one of correlated, features"),
        ("ugach", "ridge", 0, "above 0"),
        ("cross-contrast", "epochs", 0, "epochs must be at least 1"),
        ("ugach", "pool", 1.5, "at most 1, got 1.5"),
        ("ugach", "margin", 0, "above 0"),
        ("ugach", "rounds", -1, "at least 0"),
        ("ugach", "log_prob", "all", "one of pool, sampled"),
        ("ugach", "reward", "tanh", "one of sigmoid, softplus"),
        ("ugach", "baseline", "zero", "one of mean, none"),
        ("ugach", "optimizer", "lbfgs", "one of adam, sgd"),
        ("ugach", "init", "zeros", "one of fan-in, truncated-normal"),
    ],
)
def test_values_are_checked(method: str, option: str, value: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        make_hasher(method, 8, **{option: value})


@pytest.mark.parametrize("method", METHODS)
def test_views_are_used_by_the_methods_that_say_so(method: str) -> None:
    views = IMAGES + np.random.default_rng(0).normal(0, 1, (2, *IMAGES.shape)).astype(np.float32)
    plain, viewed = (make(method, 12).fit(IMAGES, TEXTS, owners=OWNERS, views=given) for given in (None, views))
    changed = plain.encode_images(IMAGES) != viewed.encode_images(IMAGES)
    assert changed == method_class(method).uses_views == ("views" in method_class(method).about()["uses"])


def test_every_method_names_its_source() -> None:
    for method in METHODS:
        text = sys.modules[method_class(method).__module__].__doc__ or ""
        assert "Paper:" in text and "Departs from the paper in:" in text, method
