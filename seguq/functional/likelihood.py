"""Negative log-likelihood of calibrated logits with its derivatives along the parameters of a calibrator.

All take logits as rows of classes, ``(C, N)``, each pixel's largest at 0 and none above, and give sums over pixels in
float64.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

_PRODUCTS = 1 << 23  # of inputs and probabilities, held at once


class NLL(NamedTuple):
    """A negative log-likelihood, summed over pixels, with its derivatives along G blocks of P parameters (float64).

    Attributes:
        loss: ``(G,)`` in nats.
        gradient: ``(G, P)``.
        hessian: ``(G, P, P)``.
        convex: the part of the Hessian that has no negative eigenvalue (of Gauss and Newton).
    """

    loss: Tensor
    gradient: Tensor
    hessian: Tensor
    convex: Tensor

    @classmethod
    def total(cls, parts: Iterable[NLL]) -> NLL:
        """The sum over parts of the pixels, of which none is kept."""
        return functools.reduce(lambda sums, part: cls(*map(torch.add, sums, part)), parts)


def temperature_field_nll(logits: Tensor, target: Tensor, design: Tensor, weights: Tensor, bound: float) -> NLL:
    r"""Of one temperature a pixel, whose logarithm is linear in what is known of the pixel.

    .. math:: \log T_i = w \cdot \phi_i, \quad L = \sum_i - \log \mathrm{softmax}(z_i / T_i)_{y_i}

    The loss is convex in 1/T, not in its logarithm.

    Args:
        logits: z ``(C, N)``, the largest of each pixel at 0.
        target: y ``(N,)`` int64.
        design: phi ``(P, N)``.
        weights: w ``(P,)``.
        bound: log T is cut off at plus and minus it.

    Returns:
        One block of P parameters.
    """
    log_temperature = weights.to(design) @ design
    inside = log_temperature.abs() <= bound
    beta = torch.exp(-log_temperature.clamp(-bound, bound))
    below = logits.neg().clamp_max_(1e6)  # a class that is ruled out by the smallest float must not overflow
    true_below = below.gather(0, target[None])[0]
    powers = torch.mul(below, -beta).exp_()
    total = powers.sum(0)
    mean = powers.mul_(below).sum(0) / total
    square = powers.mul_(below).sum(0) / total
    loss = (total.log() + beta * true_below).sum(dtype=torch.float64)
    slope = beta * (true_below - mean) * inside  # along the logarithm of beta, which is minus w phi
    bend = beta.square() * (square - mean.square()).clamp_min_(0) * inside
    gradient = -(design @ slope).double()
    convex = ((design * bend) @ design.T).double()
    hessian = convex + ((design * slope) @ design.T).double()
    return NLL(loss[None], gradient[None], hessian[None], convex[None])


def class_affine_nll(log_probs: Tensor, target: Tensor, scale: Tensor, bias: Tensor) -> NLL:
    r"""Of a scale and a bias for each class.

    .. math:: z'_c = s_c \log p_c + b_c, \quad L = \sum_i - \log \mathrm{softmax}(z'_i)_{y_i}

    The loss is convex in both.

    Args:
        log_probs: ``(C, N)``.
        target: ``(N,)`` int64.
        scale: s ``(C,)``.
        bias: b ``(C,)``.

    Returns:
        One block of 2 C parameters, the scales first.
    """
    classes = len(log_probs)
    log_probs = log_probs.clamp_min(-1e4)
    scores = torch.addcmul(bias.to(log_probs)[:, None], log_probs, scale.to(log_probs)[:, None])
    log_total = scores.logsumexp(0)
    loss = (log_total - scores.gather(0, target[None])[0]).sum(dtype=torch.float64)
    probs = scores.sub_(log_total).exp_()
    weighted = probs * log_probs
    true = torch.zeros(classes, dtype=torch.float64, device=probs.device)
    true_logs = true.index_add(0, target, log_probs.gather(0, target[None])[0].double())
    counts = true.index_add(0, target, torch.ones_like(target, dtype=torch.float64))
    first = torch.cat((weighted.sum(1, dtype=torch.float64) - true_logs, probs.sum(1, dtype=torch.float64) - counts))
    both = torch.cat((weighted, probs))
    hessian = -(both @ both.T).double()
    diagonals = (
        (weighted * log_probs).sum(1, dtype=torch.float64),
        weighted.sum(1, dtype=torch.float64),
        probs.sum(1, dtype=torch.float64),
    )
    index = torch.arange(classes, device=probs.device)
    hessian[index, index] += diagonals[0]
    hessian[index, index + classes] += diagonals[1]
    hessian[index + classes, index] += diagonals[1]
    hessian[index + classes, index + classes] += diagonals[2]
    return NLL(loss[None], first[None], hessian[None], hessian[None])


def affine_nll(inputs: Tensor, target: Tensor, weights: Tensor) -> NLL:
    r"""Of a matrix for what is known of a pixel.

    .. math:: z' = W x, \quad L = \sum_i - \log \mathrm{softmax}(z'_i)_{y_i}

    The loss is convex.

    Args:
        inputs: x ``(K, N)``.
        target: ``(N,)`` int64.
        weights: W ``(C, K)``.

    Returns:
        One block of C K parameters, row by row.
    """
    classes, width = weights.shape
    loss = weights.new_zeros(())
    gradient = torch.zeros_like(weights)
    hessian = weights.new_zeros(classes * width, classes * width)
    most = max(1, _PRODUCTS // (classes * width))
    for start in range(0, len(target), most):
        x, y = inputs[:, start : start + most], target[start : start + most]
        scores = weights.to(x) @ x
        log_total = scores.logsumexp(0)
        loss = loss + (log_total - scores.gather(0, y[None])[0]).sum(dtype=torch.float64)
        probs = scores.sub_(log_total).exp_()
        products = (probs[:, None] * x).flatten(0, 1)  # (C K, N)
        hessian -= (products @ products.T).double()
        for k in range(classes):
            rows = slice(k * width, (k + 1) * width)
            hessian[rows, rows] += (products[rows] @ x.T).double()
        gradient += (probs.scatter_add_(0, y[None], -torch.ones_like(probs[:1])) @ x.T).double()
    return NLL(loss[None], gradient.view(1, -1), hessian[None], hessian[None])


def ranked_gaps(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The classes of each pixel from the most probable on, and the gaps between them.

    Args:
        logits: ``(C, N)``.

    Returns:
        The gaps ``(C - 1, N)``, 0 and above, and the classes in their order ``(C, N)``; of equal ones the first first.
    """
    ranked, order = logits.clamp_min(-1e4).sort(dim=0, descending=True, stable=True)
    return ranked[:-1] - ranked[1:], order


def ranked_gaps_nll(gaps: Tensor, predicted: Tensor, rank: Tensor, weights: Tensor) -> NLL:
    r"""Of a positive weight for each gap between classes that follow each other, by the predicted class.

    .. math::
        g_r = \log p_{(r)} - \log p_{(r+1)}, \quad z'_{(1)} = 0, \quad
        z'_{(r)} = - \sum_{j < r} e^{w_{kj}} g_j, \quad k = \arg\max p

    where (1), (2), ... are the classes of a pixel from the most probable on.

    Args:
        gaps: g ``(C - 1, N)``, as `ranked_gaps` gives them.
        predicted: k, the first class of each pixel, ``(N,)``.
        rank: of the true class, from 0, ``(N,)``.
        weights: w ``(C, C - 1)``, of each predicted class.

    Returns:
        C blocks of C - 1 parameters: the loss over the pixels of each predicted class.
    """
    classes, found = len(weights), []
    scaled = gaps * weights.exp().to(gaps).T[:, predicted]
    scores = torch.cat((scaled.new_zeros(1, scaled.shape[1]), -scaled.cumsum(0)))
    log_total = scores.logsumexp(0)
    losses = log_total - scores.gather(0, rank[None])[0]
    # the probability of all classes below each gap, and whether the true one is below
    below = scores.sub_(log_total).exp_().flip(0).cumsum(0).flip(0)[1:]
    slope = scaled * ((torch.arange(1, classes, device=rank.device)[:, None] <= rank).to(below) - below)
    for k in range(classes):
        rows = predicted == k
        g, q, s = scaled[:, rows], below[:, rows], slope[:, rows]
        upper = (g @ (g * q).T).triu()  # of two gaps both classes are below where they are below the later one
        convex = (upper + upper.triu(1).T - (g * q) @ (g * q).T).double()
        gradient = s.sum(1, dtype=torch.float64)
        found.append((losses[rows].sum(dtype=torch.float64), gradient, convex + torch.diag(gradient), convex))
    return NLL(*(torch.stack(items) for items in zip(*found, strict=True)))
