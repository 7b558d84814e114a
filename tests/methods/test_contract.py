"""One suite for every method: whatever is registered must pass it, and the method of ``examples/new_method``, another package."""

import contextlib
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.base import clone

from degenerate import INPUTS, quick
from distillhash import Codes, Hasher, load_hasher, make_hasher, method_names
from distillhash.errors import DataError, FormatError, NotFittedError, ParameterError
from distillhash.methods import method_class, registry
from distillhash.methods.registry import hasher_from

HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "examples/new_method"
PLUGIN = [str(EXAMPLE), str(HERE / "example_plugin")]  # the module, and the metadata that it has when installed


@contextlib.contextmanager
def example_installed() -> Iterator[None]:
    """Put the example method where an installed package would be."""
    sys.path[:0] = PLUGIN
    registry._methods.cache_clear()
    try:
        yield
    finally:
        del sys.path[: len(PLUGIN)]
        registry._methods.cache_clear()


with example_installed():
    METHODS = method_names()


@pytest.fixture(scope="module", autouse=True)
def _example() -> Iterator[None]:
    with example_installed():
        yield


N_BITS = [1, 12, 33]


def clustered(n: int = 120, d: int = 40, seed: int = 0) -> NDArray[Any]:
    """Features of six clusters, positive like those after a ReLU."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((6, d))
    return np.maximum(centres[np.arange(n) % 6] + 0.4 * rng.standard_normal((n, d)), 0).astype(np.float32)


def classes(n: int) -> NDArray[Any]:
    """The clusters that :func:`clustered` draws its rows from."""
    return np.arange(n) % 6


def fit(hasher: Hasher, x: NDArray[Any], **options: Any) -> Hasher:
    """Fit, with the clusters as labels for the supervised methods."""
    return hasher.fit(x, labels=classes(len(x)) if hasher.needs_labels else None, **options)


@pytest.fixture(scope="module", params=METHODS)
def fitted(request: pytest.FixtureRequest) -> Hasher:
    return fit(make_hasher(request.param, 33, seed=3), clustered())


@pytest.mark.parametrize("n_bits", N_BITS)
@pytest.mark.parametrize("method", METHODS)
def test_shapes(method: str, n_bits: int) -> None:
    x = clustered()
    hasher = make_hasher(method, n_bits, seed=1)
    before = json.dumps(hasher.get_params())
    assert fit(hasher, x) is hasher
    assert json.dumps(hasher.get_params()) == before
    projection, codes = hasher.project(x), hasher.encode(x)
    assert projection.shape == (120, n_bits) and projection.dtype == np.float32
    assert codes.n_bits == n_bits and len(codes) == 120
    np.testing.assert_array_equal(codes.signs(), np.where(projection >= 0, 1, -1))


@pytest.mark.parametrize("n", [0, 1, 7, 33])
def test_rows_are_independent(fitted: Hasher, n: int) -> None:
    x = clustered(200, seed=9)
    everything = fitted.encode(x)
    assert fitted.encode(x[:n]) == everything[:n]
    order = np.random.default_rng(0).permutation(200)
    assert fitted.encode(x[order]) == everything[order]
    for row in range(0, 200, 29):
        assert fitted.encode(x[row : row + 1]) == everything[row]


def test_input_is_not_changed_and_layout_does_not_matter(fitted: Hasher) -> None:
    x = clustered(50, seed=2)
    copy = x.copy()
    codes = fitted.encode(x)
    np.testing.assert_array_equal(x, copy)
    assert fitted.encode(np.asfortranarray(x)) == codes
    assert fitted.encode(x.astype(np.float64)) == codes


def test_save_and_load(fitted: Hasher, tmp_path: Path) -> None:
    fitted.save(tmp_path / "hasher")
    assert sorted(p.name for p in (tmp_path / "hasher").iterdir()) == ["config.json", "model.safetensors"]
    loaded = load_hasher(tmp_path / "hasher")
    assert type(loaded) is type(fitted)
    assert loaded.get_params() == fitted.get_params()
    x = clustered(77, seed=4)
    np.testing.assert_array_equal(loaded.project(x), fitted.project(x))


def test_codes_are_decoded(fitted: Hasher, tmp_path: Path) -> None:
    x = clustered(77, seed=4)
    codes = fitted.encode(x)
    rebuilt = fitted.reconstruct(codes)
    assert rebuilt.shape == (77, 40) and rebuilt.dtype == np.float32 and np.isfinite(rebuilt).all()
    assert fitted.reconstruct(codes[:0]).shape == (0, 40)
    for row in (0, 7, 76):  # sums round apart
        np.testing.assert_allclose(fitted.reconstruct(codes[row]), rebuilt[row : row + 1], rtol=1e-4, atol=1e-5)
    fitted.save(tmp_path / "hasher")
    for other in (load_hasher(tmp_path / "hasher"), load_hasher(tmp_path / "hasher").fit_decoder(clustered())):
        np.testing.assert_array_equal(other.reconstruct(codes), rebuilt)
        np.testing.assert_array_equal(other.decoder.cosines(x, codes), fitted.decoder.cosines(x, codes))
    with pytest.raises(DataError, match="takes codes of 33 bits, got 32"):
        fitted.reconstruct(Codes.from_signs(codes.signs()[:, 1:]))


def test_the_decoder_is_ridge_regression_from_signs_to_directions() -> None:
    x, new = clustered(9000, 20).astype(np.float64), clustered(30, 20, seed=5)
    x[5] = 0
    for n_bits in (1, 12, 33):
        hasher = make_hasher("lsh", n_bits, seed=0).fit(x)
        signs = hasher.encode(x).signs().astype(float)
        units = np.stack([row / max(np.sqrt(row @ row), 1e-9) for row in x])
        # Ridge regression as plain least squares, with a row sqrt(K / 4) for each weight.
        rows = np.concatenate([signs, np.sqrt(n_bits / 4) * np.eye(n_bits)])
        wanted = np.concatenate([units - units.mean(axis=0), np.zeros((n_bits, 20))])
        weight = np.linalg.lstsq(rows, wanted, rcond=None)[0]
        codes = hasher.encode(new)
        rebuilt = units.mean(axis=0) + codes.signs() @ weight
        np.testing.assert_allclose(hasher.reconstruct(codes), rebuilt, atol=1e-5)
        cosines = [[a @ b / np.sqrt((a @ a) * (b @ b)) for b in rebuilt] for a in new.astype(float)]
        np.testing.assert_allclose(hasher.decoder.cosines(new, codes), cosines, atol=1e-5)
        assert hasher.decoder.cosines(np.zeros((1, 20)), codes).tolist() == [[0] * 30]


def test_a_model_without_a_decoder_encodes_and_says_what_to_do() -> None:
    hasher = make_hasher("itq", 8).fit(clustered())
    old = hasher_from(hasher.config(), hasher.state())
    assert old.encode(clustered()) == hasher.encode(clustered()) and old.tensors().keys() == hasher.state().keys()
    with pytest.raises(ParameterError, match=r"itq model has no decoder; call fit_decoder.*, or train it again"):
        old.reconstruct(old.encode(clustered()))
    with pytest.raises(NotFittedError):
        _ = make_hasher("itq", 8).decoder


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_codes(method: str) -> None:
    x = clustered()
    first, again = (fit(make_hasher(method, 16, seed=7), x).encode(x) for _ in range(2))
    assert first == again


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("pcah", "sh")])
def test_another_seed_gives_other_codes(method: str) -> None:
    x = clustered()
    first, other = (fit(make_hasher(method, 16, seed=seed), x).encode(x) for seed in (0, 1))
    assert first != other


@pytest.mark.parametrize("method", METHODS)
def test_fit_reads_a_memory_map(method: str, tmp_path: Path) -> None:
    x = clustered()
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert fit(make_hasher(method, 8, seed=0), mapped).encode(mapped) == fit(make_hasher(method, 8, seed=0), x).encode(
        x
    )


@pytest.mark.parametrize("method", METHODS)
def test_structure_is_kept(method: str) -> None:
    # Items of one cluster must end closer together than items of different clusters, for every method.
    x = clustered()
    signs = fit(make_hasher(method, 32, seed=0), x).encode(x).signs().astype(int)
    distances = (32 - signs @ signs.T) / 2
    same = np.equal.outer(np.arange(120) % 6, np.arange(120) % 6)
    assert distances[same].mean() < 0.9 * distances[~same].mean()


@pytest.mark.parametrize("method", METHODS)
def test_views_and_a_teacher_are_accepted_and_nothing_given_is_changed(method: str) -> None:
    given = {
        "x": clustered(),
        "views": np.stack([clustered() + 0.01, clustered() * 1.05]),
        "teacher": clustered(seed=1),
    }
    copies = {name: values.astype(np.float32) for name, values in given.items()}
    hasher = fit(make_hasher(method, 8), **copies)
    for name, values in copies.items():
        np.testing.assert_array_equal(values, given[name].astype(np.float32))
    assert len(hasher.encode(copies["x"])) == 120


@pytest.mark.parametrize("method", METHODS)
def test_refusals(method: str) -> None:
    hasher = make_hasher(method, 8)
    with pytest.raises(NotFittedError, match="call fit"):
        hasher.encode(clustered())
    with pytest.raises(NotFittedError, match="nothing to save"):
        hasher.save("unused")
    for bad, message in [
        (np.zeros(5), "2-d array"),
        (np.zeros((5, 0)), "d >= 1"),
        (clustered()[:1], "at least 2 rows"),
        (np.where(np.arange(40) == 3, np.nan, clustered()), "row 0 holds NaN or infinity"),
        (np.full((5, 4), "x"), "must be numbers"),
    ]:
        with pytest.raises(DataError, match=message):
            hasher.fit(bad)
    assert not hasher.is_fitted
    with pytest.raises(DataError, match=r"views must be \(n_views, 120, 40\)"):
        fit(hasher, clustered(), views=np.zeros((2, 120, 39)))
    with pytest.raises(ParameterError, match="labels"):  # given to an unsupervised method, or missing
        hasher.fit(clustered(), labels=None if hasher.needs_labels else classes(120))
    fit(hasher, clustered())
    with pytest.raises(DataError, match=r"must be \(n, 40\) as in fit, got shape \(3, 39\)"):
        hasher.encode(clustered()[:3, :39])
    infinite = clustered()[:3]
    infinite[2, 0] = np.inf
    with pytest.raises(DataError, match="row 2 holds"):
        hasher.encode(infinite)


@pytest.mark.parametrize("method", METHODS)
def test_fine_tuning_trains_the_backbone_or_is_refused(method: str) -> None:
    torch = pytest.importorskip("torch")
    from distillhash.methods.training import TrainableImages

    x = clustered()

    class Images:
        """Images whose features are their first half."""

        def __len__(self) -> int:
            return len(x)

        def batch(self, rows: NDArray[Any], seeds: NDArray[np.int64]) -> Any:
            noise = np.array([np.random.default_rng(seed).random(40, np.float32) for seed in seeds])
            return torch.from_numpy(np.concatenate([x[rows], noise], axis=1))

    trunk = torch.nn.Linear(80, 40, bias=False)
    torch.nn.init.eye_(trunk.weight)
    images: Any = TrainableImages(Images(), trunk)
    if not method_class(method).fine_tunes:
        with pytest.raises(ParameterError, match="cannot fine-tune a backbone"):
            fit(make_hasher(method, 8), x, images=images)
        return
    hasher = fit(make_hasher(method, 8, epochs=1, fine_tune_epochs=1), x, images=images)
    assert not torch.equal(trunk.weight.detach(), torch.eye(40, 80))
    assert len(hasher.history_["loss"]) == 2 and len(hasher.encode(x)) == 120
    with pytest.raises(ParameterError, match="no decoder"):  # the features of the trained backbone are not known here
        _ = hasher.decoder
    assert hasher.fit_decoder(x).reconstruct(hasher.encode(x)).shape == x.shape


@pytest.mark.parametrize("n_bits", [pytest.param(64, marks=pytest.mark.long), 127])
@pytest.mark.parametrize("method", METHODS)
def test_long_codes(method: str, n_bits: int) -> None:
    x = clustered(300, 160)
    codes = fit(make_hasher(method, n_bits, seed=0), x).encode(x)
    assert codes.n_bits == n_bits and len(codes) == 300
    assert len(np.unique(codes.packed, axis=0)) > 5  # six clusters: not all rows alike


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("method", METHODS)
def test_every_float_width(method: str, dtype: Any) -> None:
    x = clustered().astype(np.float16)
    hasher = fit(make_hasher(method, 12, seed=0), x.astype(dtype))
    wide = fit(make_hasher(method, 12, seed=0), x.astype(np.float64))
    agree = hasher.encode(x).signs() == wide.encode(x.astype(np.float64)).signs()
    assert agree.mean() > 0.97  # the values are the same; sums may round apart


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("error")
def test_degenerate_inputs_are_learned_from_or_refused_in_one_sentence(method: str, name: str) -> None:
    x = INPUTS[name]
    # One bit, more bits than principal directions, and as many as most tests have.
    for n_bits in (1, 12, 33) if name in ("two rows", "constant axes", "duplicates", "zeros") else (12,):
        hasher = quick(method, n_bits)
        try:
            fit(hasher, x)
        except DataError as error:
            assert not hasher.is_fitted
            assert len(str(error)) > 30 and "\n" not in str(error) and "nan" not in str(error)
            continue
        projection, codes = hasher.project(x), hasher.encode(x)
        assert projection.shape == (len(x), n_bits) and np.isfinite(projection).all()
        assert fit(quick(method, n_bits), x).encode(x) == codes
        loaded = hasher_from(hasher.config(), hasher.tensors())
        np.testing.assert_array_equal(loaded.project(x), projection)
        rebuilt = hasher.reconstruct(codes)
        assert rebuilt.shape == x.shape and np.isfinite(rebuilt).all()
        np.testing.assert_array_equal(loaded.reconstruct(codes), rebuilt)
        assert np.isfinite(hasher.decoder.cosines(x, codes)).all()


@pytest.mark.parametrize("method", METHODS)
def test_ordinary_layouts_and_types_are_learned_from(method: str) -> None:
    plain = fit(quick(method, 4), clustered()).encode(clustered())
    for same in (np.asfortranarray(clustered()), np.repeat(clustered(), 2, axis=1)[:, ::2], clustered().astype(">f4")):
        assert fit(quick(method, 4), same).encode(same) == plain
    numbers = (100 * clustered()).astype(np.int32)
    assert len(fit(quick(method, 4), numbers).encode(numbers)) == 120


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method", METHODS)
def test_a_row_that_is_too_large_is_named_with_value_bound_and_remedy(method: str) -> None:
    x = clustered().astype(np.float64)
    hasher = fit(quick(method, 8), x)
    for value, shown in ((1e25, r"1e\+25"), (-3e38, r"3e\+38"), (1e300, r"1e\+300"), (2e12, r"2e\+12")):
        x[17, 3] = value
        for call in (hasher.encode, lambda rows: fit(quick(method, 8), rows)):
            with pytest.raises(
                DataError, match=rf"within 1e\+12 of 0; row 17 holds {shown} \(remove such rows, or divide"
            ):
                call(x)
    x[17, 3] = 9e11
    assert np.isfinite(hasher.project(x)).all()
    for tiny in (1e-13 * clustered(), 1e-300 * clustered().astype(np.float64)):
        with pytest.raises(DataError, match=r"must be at least 1e-12 \(multiply all of them"):
            fit(quick(method, 8), tiny)


@pytest.mark.parametrize("method", METHODS)
def test_views_and_a_teacher_are_checked_as_features_are(method: str) -> None:
    for value in (np.nan, np.inf, 1e20):
        bad = clustered()
        bad[7, 2] = value
        for given in ({"views": np.stack([clustered(), bad])}, {"teacher": bad}):
            with pytest.raises(DataError, match=r"(views|teacher's features) must .* row 7 holds"):
                fit(quick(method, 8), clustered(), **given)


def test_what_was_learned_before_is_forgotten_when_fit_fails() -> None:
    hasher = quick("agh", 8).fit(clustered())
    with pytest.raises(DataError, match="anchor graph"):
        hasher.fit(np.zeros((60, 40)))
    assert not hasher.is_fitted
    with pytest.raises(NotFittedError):
        hasher.encode(clustered())


@pytest.mark.parametrize("method", METHODS)
def test_any_seed_that_is_accepted_trains(method: str) -> None:
    for seed in (0, 2**32, 2**63 - 9):
        fit(quick(method, 8, seed=seed), clustered())
    for seed in (-1, 2**63, 10**400):
        with pytest.raises(ParameterError, match="seed must"):
            quick(method, 8, seed=seed)


@pytest.mark.parametrize("n_bits", [0, -1, 1.5, True, "8", 5000])
def test_code_length_is_checked(n_bits: Any) -> None:
    with pytest.raises(ParameterError, match=r"n_bits must be (an integer|at least 1 and at most 4096), got"):
        make_hasher("lsh", n_bits)


def test_a_preset_may_be_part_of_the_name() -> None:
    by_option = make_hasher("distillhash", 8, preset="paper", epochs=3)
    assert make_hasher("distillhash:paper", 8, epochs=3).get_params() == by_option.get_params()
    assert registry.table_name("distillhash:paper") == "distillhash"
    assert registry.table_name("distillhash:recommended") == registry.table_name("distillhash") != "distillhash"
    assert registry.table_name("itq") == "itq" and registry.table_name("urph:nearest") == "urph, preset nearest"
    with pytest.raises(ParameterError, match="'distillhash:paper' names a preset already; leave out preset='code'"):
        make_hasher("distillhash:paper", 8, preset="code")
    with pytest.raises(ParameterError, match="unknown preset 'best' of itq; it has none"):
        registry.table_name("itq:best")


def test_names_are_checked() -> None:
    with pytest.raises(ParameterError, match="unknown method 'nope'; choose one of agh"):
        make_hasher("nope", 8)
    with pytest.raises(ParameterError, match="itq has no hyper-parameter 'epochs'; it takes iterations"):
        make_hasher("itq", 8, epochs=3)
    with pytest.raises(ParameterError, match="unknown preset 'best'"):
        make_hasher("distillhash", 8, preset="best")
    with pytest.raises(ParameterError, match="labels must be one of three-way, two-way, got 'four'"):
        make_hasher("ssdh", 8, labels="four")
    with pytest.raises(ParameterError, match="epochs must be an integer, got 'many'"):
        make_hasher("ssdh", 8, epochs="many")
    with pytest.raises(ParameterError, match=r"epochs must be an integer, got 2\.5"):
        make_hasher("ssdh", 8, epochs=2.5)
    with pytest.raises(ParameterError, match="learning_rate must be a number, got True"):
        make_hasher("ssdh", 8, learning_rate=True)
    with pytest.raises(ParameterError, match="start must be a number or null, got 'much'"):
        make_hasher("distillhash-contrast", 8, start="much")
    with pytest.raises(ParameterError, match="root must be true or false, got 1"):
        make_hasher("distillhash-contrast", 8, root=1)
    with pytest.raises(ParameterError, match="device must be text, got 0"):
        make_hasher("ssdh", 8, device=0)
    make_hasher("distillhash-contrast", 8, start=None, dropout=0)


@pytest.mark.parametrize("method", METHODS)
def test_scikit_learn_clones_it(method: str) -> None:
    hasher = make_hasher(method, 12, seed=5)
    copy = clone(hasher)
    assert copy is not hasher and type(copy) is type(hasher)
    assert copy.get_params() == hasher.get_params()
    assert not copy.is_fitted


def test_set_params_forgets_what_was_learned_and_changes_nothing_when_it_refuses() -> None:
    hasher = make_hasher("itq", 8).fit(clustered())
    with pytest.raises(ParameterError, match="iterations must be at least 1, got 0"):
        hasher.set_params(n_bits=9, iterations=0)
    with pytest.raises(ParameterError, match="itq has no hyper-parameter 'epochs'"):
        hasher.set_params(epochs=1)
    assert (hasher.is_fitted, hasher.get_params()) == (True, {"n_bits": 8, "seed": 0, "iterations": 50})
    assert hasher.set_params(n_bits=9, iterations=3) is hasher
    assert (hasher.is_fitted, hasher.get_params()) == (False, {"n_bits": 9, "seed": 0, "iterations": 3})
    assert hasher.fit(clustered()).encode(clustered()) == make_hasher("itq", 9, iterations=3).fit(clustered()).encode(
        clustered()
    )


def test_numbers_of_numpy_are_saved_as_numbers(tmp_path: Path) -> None:
    numbers: dict[str, Any] = {"n_bits": np.int64(8), "seed": np.int64(1), "iterations": np.int32(3)}
    hasher = make_hasher("itq", **numbers).fit(clustered())
    hasher.save(tmp_path / "hasher")
    loaded = load_hasher(tmp_path / "hasher")
    assert loaded.get_params() == {"n_bits": 8, "seed": 1, "iterations": 3}
    assert loaded.encode(clustered()) == hasher.encode(clustered())


def test_damaged_folders(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="not a model folder"):
        load_hasher(tmp_path)
    folder = tmp_path / "hasher"
    make_hasher("itq", 8).fit(clustered()).save(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "format_version": 99}))
    with pytest.raises(FormatError, match="format 99"):
        load_hasher(folder)
    (folder / "config.json").write_text(json.dumps({**config, "method": "gone"}))
    with pytest.raises(FormatError, match="unknown method 'gone'"):
        load_hasher(folder)
    (folder / "config.json").write_text(json.dumps(config))
    weights = (folder / "model.safetensors").read_bytes()
    for damaged in (b"", weights[:50], weights[:-1], b"\xff" * 100):
        (folder / "model.safetensors").write_bytes(damaged)
        with pytest.raises(FormatError, match="damaged or does not belong"):
            load_hasher(folder)


def test_another_package_registers_a_method(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np; from distillhash import load_hasher, make_hasher, method_names;"
        "x = np.random.default_rng(0).random((40, 9)); hasher = make_hasher('example', 8, width=5).fit(x); hasher.save(sys.argv[1]);"
        "assert load_hasher(sys.argv[1]).encode(x) == hasher.encode(x); assert 'example' in method_names();"
        "assert type(hasher).__module__ == 'example_method'"
    )
    path = os.pathsep.join([*PLUGIN, os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env={**os.environ, "PYTHONPATH": path})
    assert "example" in METHODS
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    (point,) = entry_points(group=registry.GROUP, name="example")
    assert project["entry-points"][point.group] == {point.name: point.value}
    assert len((EXAMPLE / "example_method.py").read_text().splitlines()) <= 50


def test_a_broken_package_disturbs_no_other_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken-1.0.dist-info").mkdir()
    places = {"absent": "absent_module:Method", "failing": "failing_module:Method", "other": "pathlib:Path"}
    lines = ["[distillhash.methods]", *(f"{name} = {place}" for name, place in places.items())]
    (tmp_path / "broken-1.0.dist-info" / "entry_points.txt").write_text("\n".join(lines))
    (tmp_path / "broken-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (tmp_path / "failing_module.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_methods", registry._methods.__wrapped__)
    assert method_names() == METHODS
    for name, reason in [
        ("absent", "No module named"),
        ("failing", "division by zero"),
        ("other", "must be a subclass"),
    ]:
        with pytest.raises(ParameterError, match=reason):
            make_hasher(name, 8)


def test_importing_the_package_and_a_linear_method_needs_no_torch() -> None:
    code = (
        "import sys, numpy as np, distillhash; from distillhash import make_hasher;"
        "x = np.random.default_rng(0).random((20, 9)); make_hasher('itq', 4).fit(x).encode(x); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ})
