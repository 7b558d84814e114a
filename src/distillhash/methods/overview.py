"""Overview Hashing: a contrastive loss on what an image's code finds in a memory of other images.

Paper: Yu, Shen, Zhang, "Hashing One With All", ACM MM 2023. https://doi.org/10.1145/3581783.3611977; numbers from the authors' release.

Symbols: b -> bits [sg(outputs) > 1/2], the gradient that of sg; c -> continuous vectors of length 1; B, C, P -> memories of b, c and p of
the last images, newest first. The overview of an image is
p = unit(unit(softmax((b B^T + (1 - b) (1 - B)^T) / (K t)) C) + c / 2). Keys come from a momentum network. Loss: the cross-entropy of
finding the key's p of the other view among it and P, plus that of finding it among the p of the batch's other views; t also divides these
logits.

Departs from the paper in:
1. A head on standardised features of any backbone; released: on a ResNet50 that is trained as well.
2. A hidden layer of 512 (released: 2,048), continuous vectors of 128 (1,024), a memory of 1,024 (4,096), 15 epochs of Adam at 1e-3 in
   batches of 64 (200 at 1e-5, batches of 50). ``preset="paper"`` has the released numbers.
3. The last epoch; released: the one with the best MAP on the test queries, tried every 10.
4. Without views, noise on the features stands in for augmentation (``noise``).
"""

from __future__ import annotations

import copy
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Interval

from distillhash.methods.heads import Data, Head, TwoViewHasher, linear
from distillhash.methods.training import Batch
from distillhash.pytorch import Tensor, functional, nn, torch


class Overview(TwoViewHasher):
    """Contrast of overviews. Further hyper-parameters: see :class:`TwoViewHasher`.

    Attributes:
        latent: Width of the continuous vectors.
        memory: Images remembered.
        momentum: Of the network that the keys come from.
        temperature: t.
    """

    method = "overview"
    title = "Hashing One With All"
    venue, year = "ACM MM", 2023
    kind = "contrastive"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {
            "hidden": 2048,
            "latent": 1024,
            "memory": 4096,
            "epochs": 200,
            "batch_size": 50,
            "learning_rate": 1e-5,
            "adam_eps": 1e-7,
        }
    }
    hidden: Annotated[int, Ge(1)] = 512
    epochs: Annotated[int, Ge(1)] = 15
    latent: Annotated[int, Ge(1)] = 128
    memory: Annotated[int, Ge(1)] = 1024
    momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.999
    temperature: Annotated[float, Gt(0)] = 0.2

    def network(self, head: Head, _data: Data) -> nn.Module:
        """The head, a second output for continuous vectors, their momentum copies, and the memory."""
        *below, binary = head
        generator = torch.Generator().manual_seed(self.seed + 1)
        continuous = linear(self.hidden, self.latent, generator)
        encoder = _Encoder(nn.Sequential(*below), binary, continuous)
        return _Overviews(encoder, copy.deepcopy(encoder), self.n_bits, self, generator)

    def above(self, trunk: nn.Module, network: nn.Module) -> nn.Module:
        """The momentum network has its own trunk, which follows as well."""
        assert isinstance(network, _Overviews)
        network.online.trunk = nn.Sequential(trunk, network.online.trunk)
        network.follower.trunk = nn.Sequential(copy.deepcopy(trunk), network.follower.trunk).requires_grad_(False)
        return network

    def batch_loss(self, outputs: tuple[Tensor, Tensor], _batch: Batch) -> Tensor:
        """Both cross-entropies: the first column, and the diagonal, are the right answers."""
        with_memory, in_batch = outputs
        rows = torch.arange(len(in_batch), device=in_batch.device)
        return functional.cross_entropy(with_memory, torch.zeros_like(rows)) + functional.cross_entropy(in_batch, rows)


class _Encoder(nn.Module):
    def __init__(self, trunk: nn.Module, binary: nn.Module, continuous: nn.Module) -> None:
        super().__init__()
        self.trunk, self.binary, self.continuous = trunk, binary, continuous

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Bits in {0, 1} and continuous vectors of length 1."""
        hidden = self.trunk(inputs)
        shares = torch.sigmoid(self.binary(hidden))
        return shares + ((shares >= 0.5).to(shares) - shares).detach(), functional.normalize(self.continuous(hidden))


class _Overviews(nn.Module):
    """The encoder, the momentum encoder that follows it, and the memory, which starts as noise."""

    bits: Tensor
    vectors: Tensor
    overviews: Tensor

    def __init__(
        self, online: _Encoder, follower: _Encoder, n_bits: int, settings: Overview, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.online, self.follower = online, follower.requires_grad_(False)
        self.momentum, self.temperature = settings.momentum, settings.temperature
        for name, width in (("bits", n_bits), ("vectors", settings.latent), ("overviews", settings.latent)):
            self.register_buffer(name, torch.randn(settings.memory, width, generator=generator))

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(b, 1 + memory)`` against the key and the memory, and ``(b, b)`` against the batch, of two views of every row."""
        first, second = inputs.chunk(2)
        query = self._overview(*self.online(first))
        with torch.no_grad():
            for slow, fast in zip(self.follower.parameters(), self.online.parameters(), strict=True):
                slow.lerp_(fast, 1 - self.momentum)
            b, c = self.follower(second)
            key = self._overview(b, c)
        right = (query * key).sum(dim=1, keepdim=True)
        with_memory = torch.cat([right, query @ self.overviews.T], dim=1) / self.temperature
        with torch.no_grad():
            self.bits, self.vectors, self.overviews = (
                torch.cat([new, old])[: len(old)]
                for new, old in ((b, self.bits), (c, self.vectors), (key, self.overviews))
            )
            others = self._overview(*self.online(second))
        return with_memory, query @ others.T / self.temperature

    def _overview(self, bits: Tensor, vectors: Tensor) -> Tensor:
        return overview(bits, vectors, self.bits, self.vectors, self.temperature)


def overview(bits: Tensor, vectors: Tensor, memory_bits: Tensor, memory_vectors: Tensor, temperature: float) -> Tensor:
    """The overview p ``(b, l)`` of ``bits (b, K)`` and ``vectors (b, l)``, from the memory ``(m, K)`` and ``(m, l)``."""
    agreeing = bits @ memory_bits.T + (1 - bits) @ (1 - memory_bits).T
    found = torch.softmax(agreeing / (bits.shape[1] * temperature), dim=1) @ memory_vectors
    return functional.normalize(functional.normalize(found) + 0.5 * vectors)
