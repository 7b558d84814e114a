"""Uploads to codes: checked, queued, and encoded in batches, in processes of their own or in the server's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np

from distillhash.errors import DataError
from distillhash.files import cores
from distillhash.models.hash_model import HashModel
from distillhash.serve.batching import Batcher, nobody
from distillhash.serve.child import Children
from distillhash.serve.hashing import Upload, UploadHasher

_WAIT_SECONDS = 0.008
_MOST_PROCESSES = 4


class Encoder:
    """A model behind a queue."""

    def __init__(
        self,
        model: HashModel,
        *,
        max_pixels: int,
        processes: int | None = None,
        observe: Callable[[int], None] = nobody,
    ) -> None:
        """Keep the model; its weights are read by :meth:`warm_up`.

        Args:
            model: What encodes.
            max_pixels: Largest image.
            processes: Processes that encode images on the processor, each with the model in its memory; 0 encodes in threads of this
                process, None takes one per core and four at most. An accelerator and vectors have no need of them.
            observe: Told the size of every batch.
        """
        hasher = UploadHasher(model, max_pixels=max_pixels)
        self.takes_images = hasher.takes_images
        self._n_features = model.hasher.n_features_
        if processes is None:
            processes = min(cores(), _MOST_PROCESSES)
        self._work: UploadHasher | Children = hasher
        threads = cores() if hasher.on_cpu else 1
        if processes and hasher.takes_images and hasher.on_cpu:
            self._work, threads = Children(hasher, processes), processes
        self._jobs: Batcher[Upload, bytes] = Batcher(
            self._work,
            name="model",
            threads=threads,
            max_batch=hasher.batch_size,
            wait_seconds=_WAIT_SECONDS,
            observe=observe,
        )

    def warm_up(self) -> None:
        """Read the weights and run one pass, so that the first request does not wait for it; blocks.

        Raises:
            FormatError: the weights are not those the model was trained with.
            DistillHashError: a process that encodes ended.
        """
        self._work.warm_up()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the threads, after :meth:`warm_up`: one per core, per process, or one that feeds an accelerator."""
        self._jobs.start(loop)

    def stop(self) -> None:
        """Finish what waits."""
        self._jobs.stop()
        if isinstance(self._work, Children):
            self._work.stop()

    @property
    def n_waiting(self) -> int:
        """Uploads not yet encoded."""
        return self._jobs.n_waiting

    async def encode(self, upload: Upload) -> bytes:
        """The packed code of an encoded image file, or of a vector.

        Raises:
            BadItemError: not an image, too many pixels, damaged.
            DataError: a vector of another length than the model's, or not finite; an image for a model of vectors, or the reverse.
            DistillHashError: the process that encoded it ended.
        """
        if isinstance(upload, bytes) != self.takes_images:
            wanted = "an image file" if self.takes_images else "an embedding"
            raise DataError(f"this index's model takes {wanted}; send that instead")
        if isinstance(upload, np.ndarray) and upload.shape != (self._n_features,):
            raise DataError(f"the embedding must have {self._n_features} numbers, got {upload.size}")
        if isinstance(upload, np.ndarray) and not np.isfinite(upload).all():
            raise DataError("the embedding holds NaN or infinite numbers (32-bit floats); send finite ones")
        return await self._jobs.submit(upload)
