r"""Intervals of the binned calibration error, from the bins of all images and those of bootstrap replicates.

The error is a norm of gaps, such as :math:`\sum_b |g_b|` with :math:`g_b = (conf_b - acc_b) n_b / n`, and absolute
values turn noise into error: few images show one where there is none, and replicates, which add noise to noise, show
more still, so that their percentiles lie too high. Hence the replicates serve here for nothing but the noise of the
gaps. Noise counts with both signs, and is that of Student's t: as many images as the replicates' numbers of pixels
scatter like, N, make it :math:`\sqrt{N / (N - 3)}` times as large as a bootstrap shows.

Bins are those of `top1_calibration_bins`, ``(3, n_bins)`` summed over all images, and ``(R, 3, n_bins)`` of R
replicates; replicates without a pixel are left out. Those of several classes stand side by side, ``(3, K * n_bins)``,
with a `Weighting` that says how gaps count.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_BELOW = 0.75  # share of what an interval leaves out that lies below it: near 0 its upper end cannot miss
_STEPS = 40  # halvings: to 1e-12 of the value


class Weighting(NamedTuple):
    """How gaps make an error: ``(sum_b |a_b g_b|^p)^(1/p)``.

    Attributes:
        factors: ``a``, ``(n_bins,)``, by which the gaps times their share of all pixels are multiplied.
        order: ``p``.
    """

    factors: Tensor
    order: float = 1


class Gaps(NamedTuple):
    """Signed gaps of the bins, as seen ``(n_bins,)``, and what noise may add to them ``(2R, n_bins)``, float64.

    Attributes:
        seen: the gaps, each times what it counts.
        noise: the same of the replicates, less ``seen``, with both signs.
        order: of the norm that makes an error of them.
    """

    seen: Tensor
    noise: Tensor
    order: float = 1

    def norm(self, gaps: Tensor) -> Tensor:
        """The error of gaps ``(..., n_bins)``, ``(...)``."""
        out: Tensor = torch.linalg.vector_norm(gaps, self.order, -1)
        return out

    @property
    def value(self) -> Tensor:
        """The calibration error as seen."""
        return self.norm(self.seen)

    @property
    def shrunk(self) -> Tensor:
        """Gaps times ``1 - variance / gap^2``, 0 where that is negative; as seen where nothing would be left."""
        rest = (1 - self.noise.square().mean(0) / self.seen.square()).nan_to_num(0, 0, 0).clamp_min(0) * self.seen
        return rest if bool(rest.any()) else self.seen


def calibration_gaps(bins: Tensor, replicates: Tensor, weighting: Weighting | None = None) -> Gaps:
    """Gaps between confidence and accuracy, each weighted by its bin's share of the pixels, and their noise.

    Args:
        bins: ``(3, n_bins)``.
        replicates: ``(R, 3, n_bins)``; those without a pixel give noise that is NaN.
        weighting: what each gap counts besides; None: nothing, and they are added up.
    """
    seen, drawn = _signed(bins), _signed(replicates)
    if weighting is not None:
        seen, drawn = seen * weighting.factors, drawn * weighting.factors
    pixels = bins[0].sum()
    # of images with weights of variance 1, so 1 / N whatever their sizes (Kish's effective number)
    per_image = (replicates[:, 0].sum(-1) / pixels - 1).square().mean()
    noise = (drawn - seen) / (1 - 3 * per_image).clamp_min(0.25).sqrt()
    return Gaps(seen, torch.cat((noise, -noise)), 1 if weighting is None else weighting.order)


def calibration_error_interval(
    bins: Tensor, replicates: Tensor, level: float = 0.95, weighting: Weighting | None = None
) -> tuple[Tensor, Tensor]:
    """Interval of the calibration error that allows for its upward bias, by inversion of a test.

    The lower end is the least true error that explains the value: with gaps of that sum, in proportion to those seen
    less their noise, noise lifts the value seen or a larger one often enough. So it is 0 where a calibrated model may
    well show that value. The upper end is a percentile of the gaps seen with noise, which is never too low: the true
    error is a sum of gaps with fixed signs, and absolute values only add to it. Of the share that is left out, three
    quarters lie below.

    Simulated (`tests/slow/test_coverage.py`; accuracy that scatters by image), 95 % intervals hold the true error in
    92 to 98 % of the experiments from 20 images on, and in more where it is below the noise: the noise alone has a
    sum of gaps well above it.

    Args:
        bins: ``(3, n_bins)``.
        replicates: ``(R, 3, n_bins)``.
        level: share of experiments in which the interval holds the true error.
        weighting: see `calibration_gaps`.

    Returns:
        The two ends, float64 from 0 to 1, with the value between them; NaN where there is no replicate with a pixel.

    References:
        Carpenter, Test Inversion Bootstrap Confidence Intervals, 1999 (the lower end); James and Stein, Estimation
        with Quadratic Loss, 1961 (gaps less their noise).

    Example:
        >>> bins = torch.tensor([[400.0], [360.0], [340.0]])     # 400 images of a pixel: 90 % sure, right 85 in 100
        >>> expected = torch.tensor([340.0, 60.0]).expand(1000, 2)
        >>> right, wrong = torch.poisson(expected, generator=torch.Generator().manual_seed(0)).unbind(1)
        >>> drawn = torch.stack((right + wrong, 0.9 * (right + wrong), right), 1).unsqueeze(-1)
        >>> [round(float(end), 2) for end in calibration_error_interval(bins, drawn)]
        [0.02, 0.09]
    """
    gaps = calibration_gaps(bins, _drawn(replicates), weighting)
    below, above = _BELOW * (1 - level), (1 - _BELOW) * (1 - level)
    low = _least_explaining(gaps, gaps.shrunk, 1 - below)
    high = _quantile(gaps.norm(gaps.seen + gaps.noise), 1 - above)
    return low, high.clamp(max=1).maximum(gaps.value)  # which it is but for rounding, and for levels near 0


def debiased_calibration_error(bins: Tensor, replicates: Tensor, weighting: Weighting | None = None) -> Tensor:
    """The true calibration error at which the value seen is the median of what noise makes of it.

    Args:
        bins: ``(3, n_bins)``.
        replicates: ``(R, 3, n_bins)``.
        weighting: see `calibration_gaps`.

    Returns:
        float64 from 0 to the value seen; NaN where there is no replicate with a pixel.

    References:
        Andrews, Exactly Median-Unbiased Estimation of First Order Autoregressive / Unit Root Models, 1993.

    Example:
        >>> bins = torch.tensor([[0.0, 400.0], [0.0, 360.0], [0.0, 340.0]])
        >>> debiased_calibration_error(bins, bins.expand(5, 3, 2))      # as if there were no noise
        tensor(0.0500)
    """
    gaps = calibration_gaps(bins, _drawn(replicates), weighting)
    return _least_explaining(gaps, gaps.seen, 0.5)


def calibration_error_difference_interval(
    first: tuple[Tensor, Tensor],
    second: tuple[Tensor, Tensor],
    level: float = 0.95,
    weightings: tuple[Weighting | None, Weighting | None] = (None, None),
) -> tuple[Tensor, Tensor]:
    """Interval of the first calibration error minus the second, both over the same images and the same replicates.

    Noise lifts a small error more than a large one, and so moves their difference towards 0. The upper end allows for
    a second error at the lower end of its own interval, and a first one of what its gaps are then, less the noise they
    share; the lower end for the same with the two exchanged. What both models see alike, as a calibrated and a plain
    one do, cancels bin by bin. Percentiles, which it holds as well, would be too narrow: where one model is calibrated
    and the other is not, they hold the true difference in as few as half of the experiments.

    Simulated as in `calibration_error_interval`, 95 % intervals hold the true difference in 91 % of the experiments and
    more where it is .02, and in nearly all where both models are calibrated: there they are up to twice as wide as they
    had to be.

    Args:
        first: bins ``(3, n_bins)`` and replicates ``(R, 3, n_bins)`` of the one model.
        second: those of the other.
        level: share of experiments in which the interval holds the true difference.
        weightings: of the one and of the other, see `calibration_gaps`.

    Returns:
        The two ends, float64 from -1 to 1, with the difference as seen between them; NaN where there is no replicate
        with a pixel.

    Example:
        >>> bins = torch.tensor([[0.0, 400.0], [0.0, 360.0], [0.0, 340.0]])
        >>> drawn = torch.poisson(bins.expand(50, 3, 2), generator=torch.Generator().manual_seed(0))
        >>> calibration_error_difference_interval((bins, drawn), (bins, drawn))
        (tensor(0.), tensor(0.))
    """
    kept = _with_pixels(first[1]) & _with_pixels(second[1])
    one, two = (
        calibration_gaps(bins, replicates[kept], weighting)
        for (bins, replicates), weighting in zip((first, second), weightings, strict=True)
    )
    value = one.value - two.value
    drawn = one.norm(one.seen + one.noise) - two.norm(two.seen + two.noise)
    below, above = (1 - level) / 2, (1 + level) / 2
    low = _quantile(drawn, below).minimum(value - _quantile(_rises(two, one, level), above))
    high = _quantile(drawn, above).maximum(value + _quantile(_rises(one, two, level), above))
    return low.clamp(min=-1).minimum(value), high.clamp(max=1).maximum(value)


def _signed(bins: Tensor) -> Tensor:
    count, confidence, correct = bins.unbind(-2)
    return (confidence - correct) / count.sum(-1, keepdim=True)


def _with_pixels(replicates: Tensor) -> Tensor:
    return replicates[:, 0].sum(-1) > 0


def _drawn(replicates: Tensor) -> Tensor:
    return replicates[_with_pixels(replicates)]


def _quantile(values: Tensor, share: float) -> Tensor:
    return values.quantile(share) if len(values) else values.new_full((), torch.nan)


def _least_explaining(gaps: Gaps, direction: Tensor, share: float) -> Tensor:
    """The least error along ``direction`` at which the given quantile of errors with noise reaches the value seen.

    With noise of both signs the quantile grows with the error, and from the median on it is at least the error.
    """
    value = gaps.value
    if not len(gaps.noise) or bool(value.isnan()):
        return value.new_full((), torch.nan)
    unit = direction / gaps.norm(direction).clamp_min(torch.finfo(direction.dtype).tiny)

    def reached(error: Tensor) -> Tensor:
        return _quantile(gaps.norm(error * unit + gaps.noise), share) >= value

    low, high = torch.zeros_like(value), value
    if bool(reached(low)):
        return low
    for _ in range(_STEPS):
        middle = (low + high) / 2
        enough = reached(middle)
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return high


def _rises(gaps: Gaps, other: Gaps, level: float) -> Tensor:
    """By how much the error may exceed the other one by more than is seen, for each noise, ``(2R,)``.

    The other error counts as that of its interval's lower end. Noise that both share, bin by bin, moves both at once;
    noise of the gaps' own is taken to have hidden what it can show, as for the upper end of one error.
    """
    low = _least_explaining(other, other.shrunk, 1 - _BELOW * (1 - level))
    true_other = other.seen * (low / other.value).nan_to_num(0)
    share = ((gaps.noise * other.noise).mean(0) / other.noise.square().mean(0)).nan_to_num(0, 0, 0)
    # in this order: of a model beside itself the two are exactly the same
    true = (gaps.seen - share * other.seen) + share * true_other
    shared = true + share * other.noise
    moved = gaps.norm(shared) - gaps.norm(true)
    hidden = gaps.norm(shared - (gaps.noise - share * other.noise)) - gaps.norm(shared)
    return hidden - moved + (other.norm(true_other + other.noise) - other.norm(true_other))
