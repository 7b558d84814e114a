"""What every text encoder offers: sentences in, vectors out, and how well it knows the words."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError

FAMILIAR = 0.5  # a text with a smaller share of known words is reported as unfamiliar


class TextEncoder(ABC):
    """From texts to vectors. What it learns is kept as JSON, see :meth:`config`."""

    name: str
    dim: int  # width e of the vectors; 0 before ``fit`` where that decides it

    def fit(self, texts: Sequence[str]) -> Self:  # noqa: ARG002  # for encoders that learn a vocabulary
        """Learn from the training texts; encoders that are trained already learn nothing."""
        return self

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """``(len(texts), dim) float32``; row i depends on text i alone."""

    @abstractmethod
    def known_words(self, text: str) -> tuple[int, int]:
        """How many words of ``text`` the encoder knows as words, and how many words it has."""

    def config(self) -> dict[str, Any]:
        """JSON-able description from which :func:`distillhash.texts.text_encoder_from_config` makes it again."""
        return {"name": self.name}

    def restore(self, config: dict[str, Any]) -> None:  # noqa: ARG002  # for encoders that learn a vocabulary
        """Take what was learned from :meth:`config`'s description."""
        return


class Unfamiliar(NamedTuple):
    """A text of whose words the encoder knows few: its position, and a sentence that says so."""

    position: int
    usable: bool
    reason: str


def unfamiliar_texts(encoder: TextEncoder, texts: Sequence[str]) -> list[Unfamiliar]:
    """The texts of whose words the encoder knows less than half (see :meth:`TextEncoder.known_words`); not ``usable`` where it knows none.

    An English encoder breaks words of other languages into pieces. So this finds most texts in other languages, and misses those made of
    words that English has too.
    """
    found = []
    for position, text in enumerate(texts):
        known, words = encoder.known_words(text)
        if known == 0:
            what = f"has none of its {words} words" if words else "has no words"
            reason = f"the text {text!r:.80} {what} in the vocabulary of {encoder.name}; use other words, or another text encoder"
            found.append(Unfamiliar(position, False, reason))
        elif known < FAMILIAR * words:
            reason = (
                f"{encoder.name} knows {known} of the {words} words of {text!r:.80}; expect little where it is not the language "
                "or the field of the training texts"
            )
            found.append(Unfamiliar(position, True, reason))
    return found


class TextVectors(TextEncoder):
    """``embeddings``: no encoder, because the texts are vectors already; refuses sentences."""

    name = "embeddings"
    dim = 0

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Raise :class:`DataError`: there is no encoder."""
        raise DataError(
            f"this model was trained on ready text vectors and cannot read {texts[0]!r:.60}; give vectors of the same encoder"
        )

    def known_words(self, text: str) -> tuple[int, int]:
        """All of them."""
        return len(text.split()), len(text.split())
