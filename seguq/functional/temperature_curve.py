"""The negative log-likelihood and the calibration gaps along a whole grid of temperatures, in one reading of logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from seguq.core.checks import require_target_shape
from seguq.core.memory import Workspace

LOG_BETAS: tuple[float, ...] = tuple(math.log(2) / 2 * k for k in range(-9, 10))
"""log of the inverse temperatures: 2^-4.5, 2^-4, ... 2^4.5, which spans T = 0.05 .. 20; the middle one is T = 1."""

_POINTS = len(LOG_BETAS)
_SLOPED = slice(0, _POINTS, 2)
_BETAS = tuple(math.exp(log_beta) for log_beta in LOG_BETAS)
# bins are counted at steps of 2^(1/4) from T = .354 to 5.66; nobody reads a calibration error beyond closely
_COARSE_BEFORE, _FINE, _COARSE_AFTER = (0, 2), slice(4, 13), (14, 16, 18)
_POINTS_BINNED = (*_COARSE_BEFORE, *range(_POINTS)[_FINE], *_COARSE_AFTER)
_BETWEEN = tuple((k, k + 1) for k in range(_POINTS)[_FINE][:-1])
_ROWS_BINNED = (*_POINTS_BINNED, *(sum(pair) / 2 for pair in _BETWEEN))
_ORDER_BINNED = sorted(range(len(_ROWS_BINNED)), key=_ROWS_BINNED.__getitem__)
BINNED_LOG_BETAS: tuple[float, ...] = tuple(math.log(2) / 2 * (_ROWS_BINNED[row] - 9) for row in _ORDER_BINNED)
"""log of the inverse temperatures at which confidences are binned: those of `LOG_BETAS` but for some far from T = 1,
and the middles between them from T = .354 to 5.66."""
# weights of the polynomial through six points at the middle of them, from the inner pair to the outer
_MIDDLE = (150 / 256, -25 / 256, 3 / 256)

_SMALL = 1 << 16  # logits
_CPU_VALUES = 7 << 18  # at once, of the logits and of what is summed for each point: more would leave the cache
_GPU_VALUES = 1 << 26
_FACTORS = 8  # totals whose product is taken before its logarithm: classes to the power of it must be a float


class TemperatureSums(NamedTuple):
    """Sums over labeled pixels for each inverse temperature of `LOG_BETAS` (float64).

    Attributes:
        pixels: number of labeled pixels, a scalar.
        nll: negative log-likelihood, ``(K,)`` in nats.
        slope: its derivative along the inverse temperature at every second point, ``((K + 1) / 2,)``.
        gaps: for each bin of the confidence, the sum of confidence minus rightness, ``(J, n_bins)``, at the J inverse
            temperatures of `BINNED_LOG_BETAS`.
    """

    pixels: Tensor
    nll: Tensor
    slope: Tensor
    gaps: Tensor


def temperature_curve(
    logits: Tensor, target: Tensor, n_bins: int = 15, ignore_index: int | None = 255
) -> TemperatureSums:
    r"""What a temperature does to the likelihood and to the calibration, for all temperatures of a grid.

    .. math::
        L(\beta) = \log \sum_c e^{-\beta d_c} + \beta d_y, \quad d_c = \max_k z_k - z_c, \quad
        L' = d_y - E_p[d], \quad \max_c p_c = 1 / \sum_c e^{-\beta d_c}

    The grid is geometric with the ratio of the square root of 2, so two exponentials a logit are enough: the others
    are squares of these. In float32 their relative error reaches 3e-5 at the far end of the grid; the means over
    pixels were within 1e-7 of those in double precision, in which 65,000 logits and fewer are computed.
    Confidences are binned at twice as many temperatures: those in between are, for each pixel, the polynomial of degree
    5 through the confidences at the six points around (of all pixels, with all other classes at one distance below
    the first, the largest error was 1e-4 with 2 classes, 4e-3 with 19 and 2e-2 with 150).

    Args:
        logits: ``(B, C, *spatial)``, float32 or float64, finite.
        target: class indices ``(B, *spatial)``, int64.
        n_bins: number of bins of the confidence, as in `top1_calibration_bins`.
        ignore_index: the value of ``target`` that is left out.

    Returns:
        The sums, on the device of ``logits``.

    References:
        Guo et al., On Calibration of Modern Neural Networks, 2017, sections 2 and 4.2.

    Example:
        >>> sums = temperature_curve(torch.tensor([[2.0, 0.0]]), torch.tensor([1]), n_bins=2)
        >>> at = BINNED_LOG_BETAS.index(0.0)
        >>> [round(float(x), 4) for x in (sums.nll[9], sums.gaps[at, 1])]    # at T = 1
        [2.1269, 0.8808]
    """
    require_target_shape(logits, target)
    classes = logits.shape[1]
    if logits.device.type == "cpu" and logits.numel() <= _SMALL:
        logits = logits.double()  # costs nothing here, and few pixels leave a flat minimum, where rounding would count
    flat = logits.movedim(1, 0).reshape(classes, -1)
    target = target.reshape(-1)
    labeled = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    target = target.where(labeled, torch.zeros_like(target))
    nll = torch.zeros(_POINTS, dtype=torch.float64, device=logits.device)
    slope = torch.zeros_like(nll[_SLOPED])
    rows = len(_ROWS_BINNED)
    gaps = nll.new_zeros(rows, n_bins + 1)
    betas = nll.new_tensor(_BETAS)
    on_cpu = logits.device.type == "cpu"
    most = max(1, (_CPU_VALUES if on_cpu else _GPU_VALUES) // (classes + _POINTS + 2 * rows))
    memory = Workspace(flat, min(most, flat.shape[1]))
    for start in range(0, flat.shape[1], most):
        part = slice(start, start + most)
        y, counted = target[part], labeled[part].to(logits.dtype)
        below_top, true_below, right = _distances(flat[:, part], y, memory)
        totals, products = _partition_sums(below_top, memory)
        shares = torch.reciprocal(totals, out=memory("shares", _POINTS, len(y)))
        every = on_cpu and bool(labeled[part].all())  # most parts of most masks: two passes less over all points
        if not every:
            shares.mul_(counted)
            totals.masked_fill_(~labeled[part], 1)
        # a class that is ruled out by the smallest float must not make the sum overflow
        true_sum = (true_below.clamp_max(1e6).double() * counted).sum()
        nll += _log_sums(totals) + betas * true_sum
        slope += true_sum - products.mul_(shares[_SLOPED]).sum(1).double()
        confidences = _confidences(shares, memory)
        # a pixel that is not counted has no share, and falls into a bin of its own, the first
        bins = memory("bins", rows, len(y), torch.int64)
        bins.copy_(torch.mul(confidences, n_bins, out=memory("scaled", rows, len(y))).ceil_())
        part_gaps = shares.new_zeros(rows, n_bins + 1)
        part_gaps.scatter_add_(1, bins, confidences.sub_(right.to(logits.dtype) * counted))
        gaps += part_gaps.double()
    return TemperatureSums(labeled.sum(dtype=torch.float64), nll, slope, gaps[_ORDER_BINNED, 1:])


def _confidences(shares: Tensor, memory: Workspace) -> Tensor:
    """Of the confidences at the points ``(K, P)`` those that are binned ``(J, P)``: at points, then in between."""
    points, pixels = len(_POINTS_BINNED), shares.shape[1]
    out = memory("confidences", len(_ROWS_BINNED), pixels)
    before, fine = len(_COARSE_BEFORE), range(_POINTS)[_FINE]
    out[:before] = shares[_COARSE_BEFORE[0] : _COARSE_BEFORE[-1] + 1 : 2]
    out[before : before + len(fine)] = shares[_FINE]
    out[before + len(fine) : points] = shares[_COARSE_AFTER[0] : _COARSE_AFTER[-1] + 1 : 2]
    between, first, last = out[points:], fine[0], fine[-1]
    pair = memory("pair", len(_BETWEEN), pixels)
    for distance, weight in enumerate(_MIDDLE):
        torch.add(
            shares[first - distance : last - distance], shares[first + 1 + distance : last + 1 + distance], out=pair
        )
        if distance:
            between.add_(pair, alpha=weight)
        else:
            torch.mul(pair, weight, out=between)
    between.clamp_(0, 1)
    return out


def _log_sums(totals: Tensor) -> Tensor:
    """Sums of the logarithms of ``(K, P)``, ``(K,)`` float64; it overwrites them."""
    points, pixels = totals.shape
    whole = pixels // _FACTORS * _FACTORS
    products = totals[:, :whole].view(points, _FACTORS, -1).prod(1)
    return products.log_().sum(1).double() + totals[:, whole:].log_().sum(1).double()


def _partition_sums(below_top: Tensor, memory: Workspace) -> tuple[Tensor, Tensor]:
    """Of distances d ``(C, P)``: ``sum_c e_c``, ``(K, P)``, and ``sum_c e_c d_c`` at every second point."""
    if len(below_top) == 2:  # one of the two lies at 0: half of the work
        below_top = below_top.sum(0, keepdim=True)
        totals, products = _sums_over_classes(below_top, memory)
        return totals.add_(1), products
    return _sums_over_classes(below_top, memory)


def _sums_over_classes(below_top: Tensor, memory: Workspace) -> tuple[Tensor, Tensor]:
    classes, pixels = below_top.shape
    totals = memory("totals", _POINTS, pixels)
    products = memory("products", len(range(*_SLOPED.indices(_POINTS))), pixels)
    for first in (0, 1):
        powers = torch.mul(below_top, -_BETAS[first], out=memory("powers", classes, pixels)).exp_()
        weighted = None if first else torch.mul(powers, below_top, out=memory("weighted", classes, pixels))
        for k in range(first, _POINTS, 2):
            if k > first:  # the next inverse temperature of this chain is twice the last
                if weighted is not None:
                    weighted.mul_(powers)
                powers.mul_(powers)
            _sum(powers, totals[k])
            if weighted is not None:
                _sum(weighted, products[k // 2])
    return totals, products


def _sum(values: Tensor, out: Tensor) -> None:
    if len(values) == 1:
        out.copy_(values[0])
    else:
        torch.sum(values, 0, out=out)


def _distances(z: Tensor, y: Tensor, memory: Workspace) -> tuple[Tensor, Tensor, Tensor]:
    """How far each logit ``(C, P)`` lies below the largest, the same of the true class, and who is predicted rightly.

    Of several largest logits the first is the prediction, as argmax has it. That kernel is slow on a CPU, so there it
    is asked only where there are ties.
    """
    below = memory("below", *z.shape)
    if z.device.type != "cpu":
        top, prediction = z.max(0)
        torch.sub(top, z, out=below)
        return below, below.gather(0, y[None])[0], prediction == y
    torch.sub(z.amax(0), z, out=below)
    true_below = below.gather(0, y[None])[0]
    right = true_below == 0
    if int(torch.count_nonzero(below == 0)) > z.shape[1]:
        right &= z.argmax(0) == y
    return below, true_below, right


def curve_nll(sums: TemperatureSums, log_beta: float) -> float:
    """Mean negative log-likelihood in nats at any inverse temperature within the grid.

    Interpolated by the polynomial of degree 8 through the values of the six nearest grid points and the slopes of
    three of them. A mean over pixels has at most the largest error of one pixel. The largest found, with all other
    classes at one distance below the first, was below 1e-5 nats with 2 classes, 1e-3 with 19 and 1e-2 with 150, and
    below a third of that between T = 1/8 and 8 (and 5e-8 of the value). Pixels differ, and errors cancel: 1e-5 is seen.

    Args:
        sums: of `temperature_curve`, added up over any number of batches.
        log_beta: log of the inverse temperature, within `LOG_BETAS`.
    """
    nodes, table = _hermite(sums, log_beta)
    return _horner(nodes, table, log_beta)[0]


def curve_slope(sums: TemperatureSums, log_beta: float) -> float:
    """Derivative of `curve_nll` along ``log_beta``."""
    nodes, table = _hermite(sums, log_beta)
    return _horner(nodes, table, log_beta)[1]


def curve_calibration_error(sums: TemperatureSums, log_beta: float) -> float:
    r"""Expected calibration error at any inverse temperature within the grid.

    At T = 1 and the other points of `LOG_BETAS` that are binned it is exact. Between them each bin's sum is
    interpolated by the cubic through the four nearest of `BINNED_LOG_BETAS`: steps of 2^(1/4) in T from .354 to 5.66.
    The weights add up to at most 1.25 in absolute value there (2.8 beyond); so the error is at most so many times the
    mean change of the confidence plus twice the share of pixels that change bins, at the one of these four where this
    is most. In practice the changes are smooth and cancel: with a million pixels less than 2e-4 was seen at the best
    temperature, where all bins' sums are near zero, and 2e-5 elsewhere; up to 1e-2 (as much as the binning itself is
    worth there) with 3,000 pixels, or where the confidences of all pixels are nearly the same.

    Args:
        sums: of `temperature_curve`, added up over any number of batches.
        log_beta: log of the inverse temperature, within `LOG_BETAS`.

    References:
        Guo et al., On Calibration of Modern Neural Networks, 2017, eq. 3.
    """
    return float(curve_gaps(sums, log_beta).abs().sum()) / float(sums.pixels)


def curve_gaps(sums: TemperatureSums, log_beta: float) -> Tensor:
    """Confidence minus rightness summed in each bin, ``(n_bins,)``, interpolated as in `curve_calibration_error`."""
    first = _first_of(4, BINNED_LOG_BETAS, log_beta)
    nodes = BINNED_LOG_BETAS[first : first + 4]
    weights = [math.prod((log_beta - other) / (node - other) for other in nodes if other != node) for node in nodes]
    gaps: Tensor = torch.tensor(weights, dtype=torch.float64) @ sums.gaps.cpu()[first : first + 4]
    return gaps


def _first_of(count: int, nodes: Sequence[float], value: float) -> int:
    """Number of the first of the nodes around a value, as many on its left as on its right where there are."""
    left = max(k for k, node in enumerate(nodes) if k == 0 or node <= value)
    return min(max(left + 1 - count // 2, 0), len(nodes) - count)


def _hermite(sums: TemperatureSums, log_beta: float) -> tuple[list[float], list[float]]:
    """Newton's form of the polynomial through values and slopes (along log beta) of the grid points around."""
    first = _first_of(6, LOG_BETAS, log_beta)
    pixels = float(sums.pixels)
    nodes: list[float] = []
    column: list[float] = []
    slopes: list[float] = []  # of the node at the same place
    for k in range(first, first + 6):
        times = 2 if k % 2 == 0 else 1
        nodes += [LOG_BETAS[k]] * times
        column += [float(sums.nll[k]) / pixels] * times
        slopes += [_BETAS[k] * float(sums.slope[k // 2]) / pixels if times == 2 else math.nan] * times
    table = [column[0]]
    for order in range(1, len(nodes)):
        column = [
            slopes[i] if nodes[i + order] == nodes[i] else (column[i + 1] - column[i]) / (nodes[i + order] - nodes[i])
            for i in range(len(nodes) - order)
        ]
        table.append(column[0])
    return nodes, table


def _horner(nodes: list[float], table: list[float], x: float) -> tuple[float, float]:
    """Value and derivative of a polynomial in Newton's form."""
    value, derivative = table[-1], 0.0
    for node, coefficient in zip(reversed(nodes[:-1]), reversed(table[:-1]), strict=True):
        derivative = value + (x - node) * derivative
        value = coefficient + (x - node) * value
    return value, derivative
