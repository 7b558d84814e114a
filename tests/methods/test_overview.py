"""Overview Hashing: the overview and both losses against the released formulas, and the memory."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax
from torch import nn

from distillhash.methods import make_hasher
from distillhash.methods.overview import Overview, _Encoder, _Overviews, overview
from distillhash.methods.training import Batch


def unit(rows: NDArray[Any]) -> NDArray[Any]:
    return np.stack([row / np.sqrt(row @ row) for row in rows])


def overviews(b: Any, c: Any, memory_b: Any, memory_c: Any, t: float) -> NDArray[Any]:
    """The same, an image at a time."""
    rows = []
    for bits, vector in zip(b, c, strict=True):
        similarity = np.array([bits @ other + (1 - bits) @ (1 - other) for other in memory_b]) / len(bits) / t
        found = (softmax(similarity)[:, None] * memory_c).sum(axis=0)
        rows.append(found / np.sqrt(found @ found) + 0.5 * vector)
    return unit(np.array(rows))


def test_the_overview_is_the_papers() -> None:
    rng = np.random.default_rng(0)
    b, memory_b = rng.integers(2, size=(5, 7)).astype(float), rng.integers(2, size=(11, 7)).astype(float)
    c, memory_c = unit(rng.standard_normal((5, 4))), rng.standard_normal((11, 4))
    tensors = [torch.from_numpy(array) for array in (b, c, memory_b, memory_c)]
    found = overview(tensors[0], tensors[1], tensors[2], tensors[3], 0.2)
    np.testing.assert_allclose(found, overviews(b, c, memory_b, memory_c, 0.2), rtol=1e-9)


def test_a_step_is_the_releases() -> None:
    """Keys are compared with the memory as it was, the batch with the memory that holds its keys."""
    torch.manual_seed(0)
    encoders = [_Encoder(nn.Linear(6, 5), nn.Linear(5, 7), nn.Linear(5, 4)).double() for _ in range(2)]
    settings = Overview(7, latent=4, memory=9, momentum=0.75, temperature=0.3)
    network = _Overviews(encoders[0], encoders[1], 7, settings, torch.Generator().manual_seed(1)).double()
    b, c, p = (array.numpy().copy() for array in (network.bits, network.vectors, network.overviews))
    wanted = [
        0.75 * old.detach() + 0.25 * new.detach()
        for old, new in zip(network.follower.parameters(), network.online.parameters(), strict=True)
    ]
    x = torch.randn(6, 6, dtype=torch.float64)  # three images, twice
    with_memory, in_batch = network(x)
    for parameter, value in zip(network.follower.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.detach(), value)
    query_b, query_c = (array.detach().numpy() for array in network.online(x[:3]))
    query = overviews(query_b, query_c, b, c, 0.3)
    key_b, key_c = (array.detach().numpy() for array in network.follower(x[3:]))
    key = overviews(key_b, key_c, b, c, 0.3)
    logits = np.hstack([(query * key).sum(axis=1, keepdims=True), query @ p.T]) / 0.3
    np.testing.assert_allclose(with_memory.detach(), logits, rtol=1e-6)
    b, c = np.vstack([key_b, b])[:9], np.vstack([key_c, c])[:9]
    np.testing.assert_array_equal(network.bits, b)
    np.testing.assert_allclose(network.overviews, np.vstack([key, p])[:9], rtol=1e-6)
    other_b, other_c = (array.detach().numpy() for array in network.online(x[3:]))
    others = overviews(other_b, other_c, b, c, 0.3)
    np.testing.assert_allclose(in_batch.detach(), query @ others.T / 0.3, rtol=1e-6)
    loss = np.mean(logsumexp(logits, axis=1) - logits[:, 0])
    square = query @ others.T / 0.3
    loss += np.mean(logsumexp(square, axis=1) - np.diag(square))
    found = settings.batch_loss((with_memory, in_batch), Batch(x, np.arange(3)))
    assert float(found.detach()) == pytest.approx(loss)
    torch.autograd.backward(found)
    assert all(parameter.grad is not None for parameter in network.online.parameters())  # the bits have one too
    assert all(parameter.grad is None for parameter in network.follower.parameters())


def test_the_presets_numbers_are_the_releases() -> None:
    found = make_hasher("overview", 8, preset="paper").get_params()
    released = {"hidden": 2048, "latent": 1024, "memory": 4096, "momentum": 0.999, "temperature": 0.2}
    released |= {"epochs": 200, "batch_size": 50, "learning_rate": 1e-5, "adam_eps": 1e-7}
    assert found | released == found
