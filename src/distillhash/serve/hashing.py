"""A batch of uploads to codes: decoded, embedded and hashed exactly as ``distillhash index`` does it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.models.hash_model import HashModel
from distillhash.sources import BadItemError, decode_resized

Upload = bytes | NDArray[np.float32]

_VECTORS_AT_ONCE = 256


class UploadHasher:
    """A model that takes images, or vectors where it was trained on embeddings. It can be pickled until it is warmed up."""

    def __init__(self, model: HashModel, *, max_pixels: int) -> None:
        """Keep the model; its weights are read by :meth:`warm_up`."""
        self.model = model
        self.takes_images = model.backbone_name != "embeddings"
        self._max_pixels = max_pixels

    @property
    def on_cpu(self) -> bool:
        """Whether passes run on the processor."""
        return not self.takes_images or self.model.device == "cpu"

    @property
    def batch_size(self) -> int:
        """Uploads of one pass."""
        from distillhash.backbones.base import images_a_pass

        return images_a_pass(self.model.device) if self.takes_images else _VECTORS_AT_ONCE

    def warm_up(self) -> None:
        """Read the weights and run one pass, so that the first request does not wait for it.

        Raises:
            FormatError: the weights are not those the model was trained with.
        """
        if self.takes_images:
            import torch
            from threadpoolctl import threadpool_limits

            from distillhash.backbones.extract import keep_freed_memory

            keep_freed_memory()
            torch.set_num_threads(1)  # passes run beside each other, one core each, as they do when an index is filled
            threadpool_limits(1, user_api="blas")
            size = self.model.backbone.image_size
            self.model.hasher.encode(self.model.backbone.embed(np.zeros((1, size, size, 3), np.uint8)))

    def __call__(self, uploads: list[Upload]) -> list[bytes | Exception]:
        """The packed code of each upload, or why it has none (:class:`BadItemError`)."""
        answers: list[bytes | Exception] = [b""] * len(uploads)
        good: list[int] = []
        inputs: list[NDArray[Any]] = []
        for place, upload in enumerate(uploads):
            try:
                if self.takes_images:
                    inputs.append(decode_resized(upload, self.model.backbone.image_size, self._max_pixels))
                else:
                    inputs.append(np.asarray(upload))
                good.append(place)
            except BadItemError as error:
                answers[place] = error
        if good:
            batch = np.stack(inputs)
            features = self.model.backbone.embed(batch) if self.takes_images else batch
            for place, code in zip(good, self.model.hasher.encode(features).packed, strict=True):
                answers[place] = code.tobytes()
        return answers
