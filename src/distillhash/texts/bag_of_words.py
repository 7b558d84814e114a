"""Bags of words by scikit-learn: binary (`bow`, as in UGACH) or weighted by inverse document frequency (`tfidf`).

UGACH represents a text by a bag of 1,386 (MIRFLICKR tags) or 1,000 words (NUS-WIDE). The vocabulary and the weights go into the model's
``config.json`` as text and numbers.
"""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError, ParameterError
from distillhash.texts.base import TextEncoder

DEFAULT_WORDS = 2000


class BagOfWords(TextEncoder):
    """The ``n_words`` commonest words, lower case, accents removed; a word is two letters or digits or more.

    Rows have length 1; a text without a known word is a row of zeros.
    """

    def __init__(self, kind: str, n_words: int = DEFAULT_WORDS) -> None:
        if n_words < 1:
            raise ParameterError(f"a bag of words needs at least 1 word, got {n_words}")
        self.name = kind if n_words == DEFAULT_WORDS else f"{kind}:{n_words}"
        self.dim, self._kind, self._n_words = 0, kind, n_words

    def fit(self, texts: Sequence[str]) -> Self:
        """Learn the vocabulary; texts without any word are a :class:`DataError`."""
        vectoriser = self._new()
        try:
            vectoriser.fit(texts)
        except ValueError as error:
            raise DataError(
                f"the {len(texts)} texts hold no word of two letters or more ({error}); use another text encoder"
            ) from error
        self._take(vectoriser)
        return self

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """``(n, dim) float32``."""
        return np.asarray(self._vectoriser.transform(texts).toarray(), np.float32)

    def known_words(self, text: str) -> tuple[int, int]:
        """Words in the vocabulary, and words."""
        words = self._analyse(text)
        return sum(word in self._vectoriser.vocabulary_ for word in words), len(words)

    def config(self) -> dict[str, Any]:
        """The words in the order of their columns and, for ``tfidf``, their weights."""
        vocabulary: dict[str, int] = self._vectoriser.vocabulary_
        words = sorted(vocabulary, key=vocabulary.__getitem__)
        weights = {"idf": self._vectoriser.idf_.tolist()} if self._kind == "tfidf" else {}
        return {**super().config(), "words": words, **weights}

    def restore(self, config: dict[str, Any]) -> None:
        """Take words and weights; :class:`ParameterError` where they are not words and as many finite numbers."""
        words, weights = config.get("words"), config.get("idf")
        if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
            raise ParameterError(f"{self.name}: the words must be a list of texts, got {words!r:.80}")
        if len(set(words)) < len(words):
            raise ParameterError(f"{self.name}: the {len(words)} words hold one twice")
        vectoriser = self._new(vocabulary={word: column for column, word in enumerate(words)})
        if self._kind == "tfidf":
            if not isinstance(weights, list) or not all(
                type(weight) is float and abs(weight) < 1e9 for weight in weights
            ):
                raise ParameterError(f"{self.name}: the idf must be numbers, got {weights!r:.80}")
            if len(weights) != len(words):
                raise ParameterError(f"{self.name}: it has {len(words)} words and {len(weights)} weights")
            vectoriser.idf_ = np.array(weights, np.float64)
        else:
            vectoriser.fit([" ".join(words)])  # a bag without weights: fitting checks the vocabulary, no more
        self._take(vectoriser)

    def _new(self, vocabulary: dict[str, int] | None = None) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer

        weighted = self._kind == "tfidf"
        options = {"strip_accents": "unicode", "max_features": self._n_words, "vocabulary": vocabulary}
        return TfidfVectorizer(**options, binary=not weighted, use_idf=weighted, norm="l2")

    def _take(self, vectoriser: Any) -> None:
        self._vectoriser = vectoriser
        self._analyse = vectoriser.build_analyzer()
        self.dim = len(vectoriser.vocabulary_)
