import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillhash import Codes, HashModel, load_hasher, load_model, make_hasher
from distillhash.errors import DataError, FormatError, NotFittedError, ParameterError, SkippedItemsWarning
from distillhash.supervision import agreement
from image_factory import make_png


def small(bits: int = 8, method: str = "itq") -> HashModel:
    return HashModel(hasher=make_hasher(method, bits), image_size=32, device="cpu")


def test_model_equals_backbone_then_hasher(photos: Path) -> None:
    from distillhash.backbones import extract_features, make_backbone
    from distillhash.sources import open_source

    model = small().fit(photos)
    features = extract_features(open_source(photos), make_backbone(image_size=32)).features
    assert model.encode(photos) == make_hasher("itq", 8).fit(features).encode(features)


def test_save_and_load(photos: Path, tmp_path: Path) -> None:
    model = small().fit(photos)
    codes = model.encode(photos)
    model.save(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.encode(photos) == codes
    assert loaded.fingerprint == model.fingerprint is not None
    assert loaded.training == model.training
    assert load_hasher(tmp_path).get_params() == model.hasher.get_params()


def test_unreadable_items_have_no_code_and_say_so(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(make_png(seed=number))
    (tmp_path / "2.png").write_bytes(b"rubbish")
    model = small(method="lsh")
    model.fit(tmp_path)
    assert [item.key for item in model.skipped_] == ["2.png"]
    with pytest.warns(SkippedItemsWarning, match=r"1 items could not be used and have no code, first 2\.png"):
        codes = model.encode(tmp_path)
    assert len(codes) == 3
    batches = list(model.encode_batches(tmp_path))
    assert np.concatenate([batch.rows for batch in batches]).tolist() == [0, 1, 3]


def test_training_can_be_sampled(photos: Path) -> None:
    model = small(method="lsh").fit(photos, max_images=10)
    assert (model.training["n_items"], model.training["n_used"]) == (24, 10)
    assert len(model.encode(photos)) == 24


def test_arrays_and_views(vectors: Path, photos: Path) -> None:
    x = np.load(vectors)
    model = HashModel("embeddings", make_hasher("pcah", 4)).fit(x)
    assert model.encode(x) == make_hasher("pcah", 4).fit(x).encode(x)
    assert small(method="ssdh").fit(photos, n_views=1).training["n_views"] == 1
    assert small(method="ssdh").fit(photos).training["n_views"] == 0
    assert small(method="distillhash-contrast").fit(photos).training["n_views"] == 6
    assert HashModel("embeddings", make_hasher("distillhash-contrast", 4)).fit(x).training["n_views"] == 0


@pytest.mark.parametrize(("share", "n_views"), [(0.89, 6), (0.9, 0)])
def test_views_are_used_where_features_see_them(
    share: float, n_views: int, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def recognised(*given: Any) -> float:
        asked.append(given)
        return share

    monkeypatch.setattr(agreement, "recognised_views", recognised)
    model = small(method="distillhash-contrast").fit(photos)
    assert (model.training["n_views"], model.training["views_recognised"]) == (n_views, share)
    ((features, views),) = asked
    assert views.shape == (1, *features.shape) and len(features) == 24
    assert small(method="bihalf").fit(photos).training["n_views"] == 6 and len(asked) == 1  # its paper has them


@pytest.mark.long
def test_views_bring_a_teacher_for_the_method_that_has_one(photos: Path) -> None:
    from distillhash.backbones import extract_features, make_backbone
    from distillhash.sources import open_source

    table = extract_features(open_source(photos), make_backbone(image_size=32, device="cpu"), n_views=1, teacher=True)
    assert table.teacher is not None
    # Of so few images the teacher counts next to nothing by default.
    options: dict[str, Any] = {"epochs": 1, "plain_share": 0.5}
    hasher, other, alone = (make_hasher("distillhash-contrast", 8, **options) for _ in range(3))
    model = HashModel(hasher=hasher, image_size=32, device="cpu").fit(photos, n_views=1)
    other.fit(table.features, views=table.views, teacher=table.teacher)
    assert model.encode(photos) == other.encode(table.features)
    alone.fit(table.features, views=table.views)
    assert alone.encode(table.features) != other.encode(table.features)
    model.fit(photos, n_views=0)
    assert model.encode(photos) == other.fit(table.features).encode(table.features)


def test_labels_are_never_read(photos: Path) -> None:
    from distillhash.sources import open_source

    source = open_source(photos)
    plain = small(method="ssdh").fit(source).encode(source)
    source.labels = None
    assert small(method="ssdh").fit(source).encode(source) == plain


def test_refusals(photos: Path, vectors: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="needs a hasher"):
        HashModel("efficientnet-lite0")
    with pytest.raises(NotFittedError, match="not trained"):
        small().encode(photos)
    with pytest.raises(DataError, match=r"takes images .* holds embeddings"):
        small().fit(vectors)
    with pytest.raises(ParameterError, match="max_images must be at least 2, got 1"):
        small().fit(photos, max_images=1)
    with pytest.raises(ParameterError, match="at least 0, got -1"):
        small().fit(photos, n_views=-1)
    make_hasher("lsh", 8).fit(np.ones((3, 4))).save(tmp_path / "hasher")
    with pytest.raises(FormatError, match="without a backbone; read it with load_hasher"):
        load_model(tmp_path / "hasher")


def test_other_weights_than_in_training_are_refused(photos: Path, tmp_path: Path) -> None:
    small(method="lsh").fit(photos).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["backbone"]["fingerprint"] = "0" * 32
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match="are not those the model was trained with"):
        load_model(tmp_path).encode(photos)


def test_encoding_a_clean_source_warns_of_nothing(photos: Path) -> None:
    model = small(method="lsh").fit(photos)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(model.encode(photos), Codes)
