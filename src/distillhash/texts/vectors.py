"""No encoder: texts that are vectors already."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError
from distillhash.texts.base import TextEncoder


class TextVectors(TextEncoder):
    """``embeddings``: stands where an encoder would, and refuses sentences."""

    name = "embeddings"
    dim = 0

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Nothing: there is no encoder.

        Raises:
            DataError: always.
        """
        raise DataError(
            f"this model was trained on ready text vectors and cannot read {texts[0]!r:.60}; give vectors of the same encoder"
        )

    def known_words(self, text: str) -> tuple[int, int]:
        """All of them, as far as this can tell."""
        return len(text.split()), len(text.split())
