"""Newton's method for a loss that is summed over pixels, of a few parameters or of several blocks of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from seguq.functional.likelihood import NLL

_LONGEST_STEP = 1.0


class Ridge(NamedTuple):
    """Half of ``weight (G, P)`` times the squared distance to ``center (G, P)``, added to the loss."""

    weight: Tensor
    center: Tensor

    def added(self, nll: NLL, parameters: Tensor) -> NLL:
        """A loss with this in it."""
        apart = parameters - self.center
        weight = torch.diag_embed(self.weight)
        return NLL(
            nll.loss + (self.weight * apart.square()).sum(1) / 2,
            nll.gradient + self.weight * apart,
            nll.hessian + weight,
            nll.convex + weight,
        )


def newton(
    evaluate: Callable[[Tensor], NLL],
    start: Tensor,
    *,
    ridge: Ridge | None = None,
    bound: float = torch.inf,
    most: int = 30,
    enough: float = 0.0,
) -> Tensor:
    """Parameters of the least loss.

    A step that does not lower the loss is halved; one that promises to lower it by less than ``enough`` is the last.

    Args:
        evaluate: gives the loss at parameters ``(G, P)``.
        start: where to begin, ``(G, P)`` float64.
        ridge: what is added to the loss.
        bound: the largest absolute value of a parameter.
        most: evaluations.
        enough: of the loss, summed over blocks.

    Returns:
        ``(G, P)`` float64.
    """
    parameters = best = start
    lowest = step = None
    for _ in range(most):
        here = evaluate(parameters)
        if ridge is not None:
            here = ridge.added(here, parameters)
        # rounding of float32 sums must not be taken for a step that was too long
        worse = (
            here.loss.new_zeros(len(start), dtype=torch.bool)
            if lowest is None
            else ~(here.loss <= lowest + 1e-7 * lowest.abs())
        )
        if lowest is None or step is None:
            lowest, step = here.loss, torch.zeros_like(start)
        best = torch.where(worse[:, None], best, parameters)
        lowest = torch.where(worse, lowest, here.loss)
        # a parameter at its bound stays there where the loss would have it beyond
        fixed = (parameters.abs() == bound) & (parameters * here.gradient < 0)
        anew = _step(_held(here, fixed))
        step = torch.where(worse[:, None], step / 2, anew)
        parameters = (best + step).clamp(-bound, bound)
        promised = -(here.gradient * (parameters - best)).sum(1) / 2
        if not bool(worse.any()) and float(promised.sum()) <= enough:
            break
    return parameters


def _held(nll: NLL, fixed: Tensor) -> NLL:
    """A loss that does not depend on some of its parameters ``(G, P)``."""
    both = fixed[:, None] | fixed[:, :, None]
    alone = torch.diag_embed(fixed.to(nll.hessian))
    hessian, convex = (matrix.masked_fill(both, 0) + alone for matrix in (nll.hessian, nll.convex))
    return NLL(nll.loss, nll.gradient.masked_fill(fixed, 0), hessian, convex)


def _step(here: NLL) -> Tensor:
    eye = torch.eye(here.gradient.shape[1], dtype=torch.float64, device=here.gradient.device)
    convex = _firm(here.convex, eye)
    least = torch.linalg.eigvalsh(here.hessian)[:, 0]
    bowl = least > 1e-3 * torch.linalg.eigvalsh(convex)[:, 0]
    step: Tensor = torch.linalg.solve(
        torch.where(bowl[:, None, None], _firm(here.hessian, eye), convex), -here.gradient
    )
    longest = step.abs().amax(1, keepdim=True).clamp_min(_LONGEST_STEP)
    return step * (_LONGEST_STEP / longest)


def _firm(matrix: Tensor, eye: Tensor) -> Tensor:
    """With a part in a billion of its size on the diagonal: what no pixel tells of stays where it is."""
    return matrix + (1e-9 * matrix.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-9))[:, None, None] * eye
