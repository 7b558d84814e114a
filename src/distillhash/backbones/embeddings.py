"""The backbone of sources that are vectors already: features are the vectors, as float32."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from distillhash.backbones.base import Backbone
from distillhash.errors import DataError


class Embeddings(Backbone):
    """Stands where a backbone is expected; it cannot embed images."""

    def __init__(self) -> None:
        """Nothing to load."""
        super().__init__("embeddings", nn.Identity(), 0, self.default_size, "cpu")

    def normalise(self, pixels: Tensor) -> Tensor:
        """Vectors need no pixels.

        Raises:
            DataError: always.
        """
        del pixels
        raise DataError(
            "the backbone 'embeddings' takes vectors, not images; choose an image backbone such as efficientnet-lite0"
        )

    def preprocessing(self) -> dict[str, Any]:
        """None."""
        return {}
