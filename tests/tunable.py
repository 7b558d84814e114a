"""Images that are made from vectors, and a backbone that takes vectors: fine-tuning without pixels."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distillhash.methods import make_hasher, method_class, method_names

FINE_TUNING = [name for name in method_names() if method_class(name).fine_tunes]
CLASSES = 6


class VectorImages:
    """Rows of ``x``, each with noise that its seed decides; ``stop`` may raise before a batch is drawn."""

    def __init__(self, x: NDArray[np.float32], stop: Any = lambda: None) -> None:
        self.x, self.stop = x, stop

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, rows: NDArray[np.intp], seeds: NDArray[np.int64]) -> torch.Tensor:
        self.stop()
        noise = [np.random.default_rng(seed).normal(0, 0.1, self.x.shape[1]) for seed in seeds]
        return torch.from_numpy(self.x[rows] + np.array(noise, np.float32))


def clusters(n: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(n)
    centres = rng.standard_normal((CLASSES, 20)) * 3
    return (centres[np.arange(n) % CLASSES] + rng.standard_normal((n, 20))).astype(np.float32)


def backbone() -> torch.nn.Module:
    trunk = torch.nn.Linear(20, 20)
    torch.nn.init.eye_(trunk.weight)
    torch.nn.init.zeros_(trunk.bias)
    return trunk


def hasher(method: str, **options: Any) -> Any:
    """A small one: a batch of 64 rows, two passes over the features and two over the images."""
    return make_hasher(method, 8, epochs=2, fine_tune_epochs=2, batch_size=64, **options)


def labels(method: str, n: int) -> dict[str, Any]:
    return {"labels": np.arange(n) % CLASSES} if method_class(method).needs_labels else {}
