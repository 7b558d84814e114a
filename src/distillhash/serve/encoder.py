"""Uploads to codes: decoded, embedded and hashed in batches, exactly as ``distillhash index`` does it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError
from distillhash.hamming.pool import cores
from distillhash.model import HashModel
from distillhash.serve.batching import Batcher, nobody
from distillhash.sources import BadItemError, decode_resized

Upload = bytes | NDArray[np.float32]


class Encoder:
    """A model behind a queue. It takes images, or vectors where the model was trained on embeddings."""

    def __init__(
        self,
        model: HashModel,
        *,
        max_pixels: int,
        max_batch: int = 0,
        wait_seconds: float = 0.008,
        observe: Callable[[int], None] = nobody,
    ) -> None:
        """Keep the model; its weights are read by :meth:`warm_up`."""
        self.model = model
        self.takes_images = model.backbone_name != "embeddings"
        self._max_pixels = max_pixels
        self._settings = {"max_batch": max_batch, "wait_seconds": wait_seconds, "observe": observe}
        self._jobs: Batcher[Upload, bytes] | None = None

    def warm_up(self) -> None:
        """Read the weights and run one pass, so that the first request does not wait for it; blocks.

        Raises:
            FormatError: the weights are not those the model was trained with.
        """
        if self.takes_images:
            import torch
            from threadpoolctl import threadpool_limits

            from distillhash.backbones.pipeline import keep_freed_memory

            keep_freed_memory()
            torch.set_num_threads(1)  # passes run beside each other, one core each, as they do when an index is filled
            threadpool_limits(1, user_api="blas")
            size = self.model.backbone.image_size
            self._encode([np.zeros((size, size, 3), np.uint8)])

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the threads, after :meth:`warm_up`: one per core, or one that feeds an accelerator."""
        backbone = self.model.backbone if self.takes_images else None
        on_cpu = backbone is None or backbone.device == "cpu"
        settings: dict[str, Any] = dict(self._settings)
        settings["max_batch"] = settings["max_batch"] or (backbone.batch_size if backbone is not None else 256)
        self._jobs = Batcher(self._encode, name="model", threads=cores() if on_cpu else 1, **settings)
        self._jobs.start(loop)

    def stop(self) -> None:
        """Finish what waits."""
        if self._jobs is not None:
            self._jobs.stop()

    @property
    def n_waiting(self) -> int:
        """Uploads not yet encoded."""
        return 0 if self._jobs is None else self._jobs.n_waiting

    async def encode(self, upload: Upload) -> bytes:
        """The packed code of an encoded image file, or of a vector.

        Raises:
            BadItemError: not an image, too many pixels, damaged.
            DataError: a vector of another length than the model's, or not finite; an image for a model of vectors, or the reverse.
        """
        if isinstance(upload, bytes) != self.takes_images:
            wanted = "an image file" if self.takes_images else "an embedding"
            raise DataError(f"this index's model takes {wanted}; send that instead")
        if isinstance(upload, np.ndarray) and upload.shape != (self.model.hasher.n_features_,):
            raise DataError(f"the embedding must have {self.model.hasher.n_features_} numbers, got {upload.size}")
        if isinstance(upload, np.ndarray) and not np.isfinite(upload).all():
            raise DataError("the embedding holds NaN or infinite numbers (32-bit floats); send finite ones")
        assert self._jobs is not None, "start comes first"
        return await self._jobs.submit(upload)

    def _encode(self, uploads: list[Upload]) -> Sequence[bytes | Exception]:
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
