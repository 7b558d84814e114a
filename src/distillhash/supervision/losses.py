"""Losses over the Gram matrix of a batch of relaxed codes and its pair labels."""

from __future__ import annotations

import math

from distillhash.pytorch import Tensor, functional, torch


def _products(codes: Tensor, pairs: Tensor) -> Tensor:
    """Inner products of the first codes with the last, as many of both as ``pairs`` have rows and columns."""
    return codes[: pairs.shape[0]] @ codes[-pairs.shape[1] :].T


def likelihood_loss(codes: Tensor, pairs: Tensor, *, scale: float) -> Tensor:
    """Negative mean log-likelihood of labelled pairs under P(+1 | u_i, u_j) = sg(scale <u_i, u_j>) (DistillHash Eq. 10-11).

    The mean runs over the labelled pairs of ``(b, b)`` labels in {-1, 0, +1}, or ``(a, c)`` of the first a codes with the last c; it is 0
    where there are none. ``scale`` is 1 in the paper, 1/2 in the authors' release.
    """
    logits = scale * _products(codes, pairs)
    labelled = (pairs != 0).to(logits.dtype)
    # -log sg(s) = functional.softplus(s) - s and -log(1 - sg(s)) = functional.softplus(s)
    losses = functional.softplus(logits) - (pairs > 0) * logits
    return (losses * labelled).sum() / labelled.sum().clamp(min=1)


def squared_loss(codes: Tensor, pairs: Tensor, weights: Tensor | None = None) -> Tensor:
    """Squared error of the normalised inner product on labelled pairs (SSDH; the released DistillHash; weighted: DSG, CIMON).

    ``sum w_ij |S_ij| (<u_i, u_j> / K - S_ij)^2 / b^2``: unlabelled pairs stay in the divisor, as released.
    """
    similarity = _products(codes, pairs) / codes.shape[1]
    errors = (similarity - pairs) ** 2 * pairs.abs()
    return (errors if weights is None else errors * weights).sum() / pairs.numel()


def nt_xent(first: Tensor, second: Tensor, *, temperature: float) -> Tensor:
    """Contrastive loss of two views ``(b, n_bits)`` by cosine: each row's positive is its other view, its negatives the 2 (b - 1) rest.

    Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020. Mean of 2 b rows.
    """
    n = len(first)
    unit = functional.normalize(torch.cat([first, second]))
    logits = unit @ unit.T / temperature
    logits = logits.masked_fill(torch.eye(2 * n, dtype=torch.bool, device=logits.device), -torch.inf)
    return functional.cross_entropy(logits, torch.arange(2 * n, device=logits.device).roll(n))


def neighbour_contrast(codes: Tensor, positives: Tensor, *, temperature: float) -> Tensor:
    """Contrastive loss with many positives a row: the mean over rows of the mean over their positives of -log softmax(cos / temperature).

    Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, Eq. 2 (the mean outside the logarithm).

    ``positives`` is ``(b, b) bool``. Its diagonal is ignored, and a row without positives counts nothing.
    """
    unit = functional.normalize(codes)
    own = torch.eye(len(codes), dtype=torch.bool, device=codes.device)
    logs = functional.log_softmax((unit @ unit.T / temperature).masked_fill(own, -torch.inf), dim=1)
    positives = positives & ~own
    counts = positives.sum(dim=1)
    means = torch.where(positives, logs, 0.0).sum(dim=1) / counts.clamp(min=1)
    return -means.sum() / (counts > 0).sum().clamp(min=1)


def log_cosh_loss(codes: Tensor, targets: Tensor) -> Tensor:
    """Mean log cosh(<u_i, u_j> / K - S_ij) over all pairs of a batch (MLS3RDUH)."""
    errors = (codes @ codes.T / codes.shape[1] - targets).abs()
    # log cosh x = |x| + log(1 + exp(-2 |x|)) - log 2, which does not overflow
    return (errors + functional.softplus(-2 * errors) - math.log(2)).mean()
