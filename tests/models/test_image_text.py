"""Images and texts end to end on a MIRFLICKR-style miniature, and what is said about bad pairs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distillhash import HashModel, load_model
from distillhash.backbones import FeatureCache
from distillhash.bench.image_text import evaluate_model
from distillhash.codes import hamming_distances
from distillhash.errors import DataError, NotFittedError, ParameterError
from distillhash.methods import CCAITQ, make_hasher
from distillhash.metrics import own_items, query_metrics, shared_labels
from distillhash.models import CrossModalModel
from distillhash.sources.pairs import open_pairs
from image_factory import make_png, make_truncated
from pair_factory import CONCEPTS, paired_vectors, write_miniature


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_miniature(tmp_path_factory.mktemp("mir") / "miniature.parquet", 90)


def new_model(method: str = "ccaitq", n_bits: int = 16, text_encoder: str = "tfidf", **options: Any) -> CrossModalModel:
    hasher = make_hasher(method, n_bits, **options)
    return CrossModalModel(hasher=hasher, text_encoder=text_encoder, image_size=32, device="cpu", cache=FeatureCache())


@pytest.fixture(scope="module")
def model(miniature: Path) -> CrossModalModel:
    return new_model().fit(f"{miniature}#:60")


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ccaitq", {}),
        ("cross-contrast", {}),
        ("ugach", {"hidden": 64, "pretrain_epochs": 20, "rounds": 2, "batch_size": 16}),
    ],
)
def test_every_method_finds_pictures_by_their_tags(miniature: Path, method: str, options: dict[str, Any]) -> None:
    fitted = new_model(method, text_encoder="bow", **options).fit(f"{miniature}#:60")
    report = evaluate_model(fitted, f"{miniature}#60:", f"{miniature}#:60")
    labels = open_pairs(miniature).labels
    assert labels is not None
    chance = np.mean(labels[60:] @ labels[:60].T > 0)
    for direction in ("image_to_text", "text_to_image"):
        assert set(report[direction]) == {"labels", "words"}  # no query is in the database
        assert report[direction]["labels"]["map"] > chance + 0.25


def test_a_model_folder_holds_everything(model: CrossModalModel, miniature: Path, tmp_path: Path) -> None:
    model.save(tmp_path / "m")
    assert {path.name for path in (tmp_path / "m").iterdir()} == {"config.json", "model.safetensors"}
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["method"] == "ccaitq" and config["text_encoder"]["name"] == "tfidf"
    assert "waves" in config["text_encoder"]["words"] and config["training"]["n_texts"] == 60
    loaded = load_model(tmp_path / "m", device="cpu")
    assert isinstance(loaded, CrossModalModel) and loaded.fingerprint == model.fingerprint
    texts = ["sea waves", "a night of stars", "bloom"]
    assert loaded.encode_texts(texts) == model.encode_texts(texts)
    assert loaded.encode(f"{miniature}#60:") == model.encode(f"{miniature}#60:")
    assert "CrossModalModel(backbone='efficientnet-lite0', text_encoder='tfidf', hasher=CCAITQ(n_bits=16" in repr(
        loaded
    )


def test_words_find_their_concept(model: CrossModalModel, miniature: Path) -> None:
    labels = open_pairs(f"{miniature}#60:").labels
    assert labels is not None
    images = model.encode(f"{miniature}#60:")
    for number, (_, words) in enumerate(CONCEPTS.values()):
        distances = hamming_distances(model.encode_texts([" ".join(words)]), images)[0]
        has = labels[:, number] > 0
        assert distances[has].mean() < distances[~has].mean()


def test_evaluation_is_the_metrics_of_the_codes(model: CrossModalModel, miniature: Path) -> None:
    pairs = open_pairs(f"{miniature}#60:")
    report = evaluate_model(model, pairs, pairs)
    assert isinstance(pairs.texts, list) and pairs.labels is not None
    distances = hamming_distances(model.encode(pairs.images), model.encode_texts(pairs.texts))
    rows = np.arange(30)
    for name, values in query_metrics(distances, own_items(pairs.keys, pairs.keys)(rows)).items():
        assert report["image_to_text"]["own"][name] == np.mean(values)
    gains = shared_labels(pairs.labels, pairs.labels)(rows)
    for name, values in query_metrics(distances.T, gains.T).items():
        assert report["text_to_image"]["labels"][name] == np.mean(values)
    assert (report["n_images"], report["n_texts"], report["skipped"]) == (30, 30, [])


def test_vectors_on_both_sides(tmp_path: Path) -> None:
    images, texts, owners = paired_vectors()
    np.savez(tmp_path / "p.npz", image_features=images, text_features=texts, owners=owners)
    hasher = CCAITQ(12)
    fitted = CrossModalModel("embeddings", hasher, text_encoder="embeddings").fit(tmp_path / "p.npz")
    direct = CCAITQ(12).fit(images, texts, owners=owners)
    assert fitted.encode_texts(texts) == direct.encode_texts(texts)
    fitted.save(tmp_path / "m")
    assert load_model(tmp_path / "m").encode(images) == direct.encode_images(images)
    with pytest.raises(DataError, match="trained on ready text vectors and cannot read 'a dog'"):
        fitted.encode_texts(["a dog"])
    with pytest.raises(DataError, match=r"takes text vectors \(text encoder embeddings\), but .* holds texts"):
        fitted.fit((images, ["word"] * 120))


def test_what_cannot_be_used_is_named_and_the_rest_is_learned_from(miniature: Path, tmp_path: Path) -> None:
    rows = pq.read_table(miniature).to_pylist()[:40]
    rows[3]["tags"], rows[5]["tags"], rows[7]["tags"] = None, [], ["!", "?"]
    rows[9]["image"]["bytes"] = make_truncated()
    rows[11]["tags"] = ["sea", "Strandkorb", "Möwe"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    fitted = new_model(text_encoder="tfidf:22").fit(tmp_path / "p.parquet")
    reasons = {item.key: item.reason for item in fitted.skipped_}
    assert set(reasons) == {"im3.png", "im5.png", "im7.png", "im9.png"}
    assert reasons["im3.png"] == "the image has no text" and reasons["im5.png"] == "the text is empty"
    assert "has no words in the vocabulary of tfidf:22" in reasons["im7.png"]
    assert "cannot be decoded" in reasons["im9.png"]
    assert fitted.training["n_used"] == 36 and fitted.training["n_items"] == 40
    assert any("knows 1 of the 3 words of 'sea Strandkorb Möwe'" in note for note in fitted.notes_)


def test_refusals(model: CrossModalModel, miniature: Path, photos: Path) -> None:
    with pytest.raises(
        DataError, match="the text 'Katze' has none of its 1 words in the vocabulary of tfidf; use other words"
    ):
        model.encode_texts(["sea", "Katze"])
    with pytest.raises(NotFittedError, match="not trained"):
        new_model().encode_texts(["sea"])
    with pytest.raises(ParameterError, match="itq does not learn from image-text pairs; choose one of ccaitq, cross"):
        CrossModalModel(hasher=make_hasher("itq", 8))
    with pytest.raises(ParameterError, match="CrossModalModel needs a hasher"):
        CrossModalModel("embeddings")
    with pytest.raises(ParameterError, match="leave out fine-tuning"):
        new_model().fit(miniature, fine_tune=True)
    with pytest.raises(ParameterError, match="views and fine-tuning need images; this source holds embeddings"):
        CrossModalModel("embeddings", CCAITQ(4), text_encoder="embeddings").fit(paired_vectors(20, 1)[:2], n_views=2)
    with pytest.raises(ParameterError, match="views must be at least 0, got -1"):
        new_model().fit(miniature, n_views=-1)
    with pytest.raises(ParameterError, match="max_images must be at least 2, got 1"):
        new_model().fit(miniature, max_images=1)
    with pytest.raises(ParameterError, match="images and texts together"):
        HashModel(hasher=CCAITQ(8), image_size=32).fit(photos)
    with pytest.raises(DataError, match="share no item, no labels and no words"):
        evaluate_vectors()


def evaluate_vectors() -> None:
    images, texts, _ = paired_vectors(30, 1)
    fitted = CrossModalModel("embeddings", CCAITQ(4), text_encoder="embeddings").fit((images, texts))
    other = open_pairs((images, texts))
    other.keys = [f"other {i}" for i in range(30)]
    evaluate_model(fitted, (images, texts), other)


def test_the_method_that_uses_views_gets_six() -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), np.uint8)
    pairs = open_pairs((images, [f"word{i % 3}" for i in range(12)]))
    assert new_model("cross-contrast", n_bits=2, epochs=1).fit(pairs).training["n_views"] == 6
    assert new_model("ccaitq", n_bits=2).fit(pairs).training["n_views"] == 0


def test_max_images_bounds_what_is_learned_from(miniature: Path) -> None:
    fitted = new_model(n_bits=8).fit(miniature, max_images=25)
    assert fitted.training["n_used"] == 25 and fitted.training["n_items"] == 90


def test_captions_of_a_folder(tmp_path: Path) -> None:
    lines = ["image,caption"]
    for number in range(20):
        (tmp_path / f"{number}.png").write_bytes(make_png(16, 16, number))
        lines += [f"{number}.png,word{number % 4} word{number % 5}", f"{number}.png,word{number % 4}"]
    (tmp_path / "captions.csv").write_text("\n".join([*lines[:-2], "gone.png,word1"]))
    fitted = new_model(n_bits=4).fit(tmp_path)
    assert fitted.training["n_used"] == 19 and fitted.training["n_texts"] == 38
    assert {item.key for item in fitted.skipped_} == {"gone.png", "19.png"}
