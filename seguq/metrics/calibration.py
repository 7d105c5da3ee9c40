"""How well probabilities hold: calibration error, negative log-likelihood, Brier score."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from seguq.core.checks import require_choice
from seguq.core.errors import SeguqError
from seguq.functional.calibration import expected_calibration_error, top1_calibration_bins
from seguq.functional.calibration_interval import (
    calibration_error_difference_interval,
    calibration_error_interval,
    debiased_calibration_error,
)
from seguq.metrics.bootstrap import BootstrapMetric, Interval, axes_for, is_history, split_last
from seguq.metrics.pieces import checked_probs, checked_scores, of_true_class, sums_in_pieces


class CalibrationError(BootstrapMetric):
    r"""Expected calibration error of the predicted class, in bins of equal width.

    .. math:: \sum_b \frac{n_b}{n} |acc_b - conf_b|

    Over few images the value is biased upward: absolute gaps of a calibrated model do not average out. Where images
    scatter by .07 in accuracy, twenty show an error of .02 when there is none, and two hundred still one of .007. The
    interval is free of that bias, and `compute_debiased` of most of it; both need ``group``.

    Args:
        num_classes: C.
        n_bins: number of bins over [0, 1].
        kind: ``"top1"``: the confidence of the predicted class.
        ignore_index: value of the target that is left out.
        **kwargs: ``n_boot``, ``seed``, and those of `torchmetrics.Metric`.

    References:
        Guo et al., On Calibration of Modern Neural Networks, 2017, eq. 3.

    Example:
        >>> metric = CalibrationError(num_classes=2)
        >>> metric.update(torch.tensor([[0.9, 0.1]] * 4), torch.tensor([0, 0, 0, 1]))      # 90 % sure, right 3 in 4
        >>> metric.compute()
        tensor(0.1500)
    """

    higher_is_better = False

    def __init__(
        self, num_classes: int, n_bins: int = 15, kind: Literal["top1"] = "top1", ignore_index: int = 255, **kwargs: Any
    ) -> None:
        require_choice("kind", kind, ("top1",))
        if n_bins < 1:
            raise SeguqError(f"n_bins must be at least 1, but is {n_bins}")
        super().__init__(3 * n_bins, ignore_index, **kwargs)
        self.num_classes, self.n_bins, self.kind = num_classes, n_bins, kind

    def update(self, probs: Tensor, target: Tensor, group: Sequence[str] | None = None) -> None:
        """Take in a batch.

        Args:
            probs: ``(B, C, *spatial)``.
            target: class indices ``(B, *spatial)``.
            group: one image id an item, for `compute_interval`.
        """
        probs, target = checked_probs(probs, target, self.num_classes, self.ignore_index)

        def sums_of(part: slice) -> Tensor:
            return sums_in_pieces(probs[part], target[part], 3 * self.n_bins, self._bins_of)

        self._add(target, group, sums_of)

    def _bins_of(self, probs: Tensor, target: Tensor) -> Tensor:
        return top1_calibration_bins(probs, target, self.n_bins, self.ignore_index).flatten(1)

    def compute_interval(self, level: float = 0.95) -> Interval:
        """The interval of the calibration error over images, free of the value's upward bias.

        It is that of `seguq.functional.calibration_error_interval`: of errors that explain the value, with noise as
        the bootstrap over images shows it. It begins at 0 where a calibrated model may well show that value, and never
        leaves the value out. 95 % intervals hold the true error (in these bins, over all images there might be) in 92
        to 98 % of simulated experiments with 20 to 200 images whose accuracy scatters as a whole, and in more where
        the error is too small to tell from none. They say nothing of what the bins hide.

        Args:
            level: share of experiments in which the interval holds the true error.

        Returns:
            (low, high) of the value, from 0 to 1.

        Raises:
            SeguqError: if images were passed without ``group=``, or ``level`` is out of range.
        """
        out = super().compute_interval(level)
        assert isinstance(out, tuple)
        return out

    def compute_debiased(self) -> Tensor:
        """The true error at which the value would be the median of what is seen: never above it, often 0.

        Half of the bias and more is gone; what is left comes of a calibration error having no negative values. Give
        it beside the value, not in its place, where others compare with the plain one.

        Raises:
            SeguqError: if images were passed without ``group=``.
        """
        with self._all_images():
            return debiased_calibration_error(self.bins, self._drawn_bins()).float()

    def _value(self, sums: Tensor) -> Tensor:
        return expected_calibration_error(split_last(sums, 3, self.n_bins))

    def _interval(self, level: float) -> Interval:
        return calibration_error_interval(self.bins, self._drawn_bins(), level)

    def _difference_interval(self, other: BootstrapMetric, level: float) -> Interval:
        assert isinstance(other, CalibrationError)
        if other.n_bins != self.n_bins:
            raise SeguqError(f"a difference needs the same bins, but n_bins is {self.n_bins} here and {other.n_bins}")
        return calibration_error_difference_interval(
            (self.bins, self._drawn_bins()), (other.bins, other._drawn_bins()), level
        )

    def _drawn_bins(self) -> Tensor:
        return split_last(self.replicates, 3, self.n_bins)

    @property
    def bins(self) -> Tensor:
        """``(3, n_bins)`` float64: pixels, sum of confidences, and number predicted rightly, in each bin."""
        return self.sums.view(3, self.n_bins)

    def plot(
        self, val: Any = None, ax: Any = None, label: str | None = None, color: str | None = None
    ) -> tuple[Any, Any]:
        """Draw the reliability diagram: accuracy against confidence, with the interval of the accuracy in each bin.

        Bins with fewer than one pixel in 10,000 are left out. Drawn is what this process has seen.

        Args:
            val: a sequence of values is drawn over its steps instead; one value, as a collection passes it, is not
                looked at.
            ax: matplotlib's axes to draw into; None: new ones.
            label: what is measured, for the legend.
            color: of curve and band.

        Returns:
            The matplotlib figure and axes.
        """
        if is_history(val):
            return super().plot(val, ax)
        figure, ax = axes_for(ax)
        count, confidence, correct = self.bins.cpu().numpy()
        shown = count > 1e-4 * count.sum()
        ax.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", zorder=1)
        low, high = self._accuracy_interval()
        x, y = confidence[shown] / count[shown], correct[shown] / count[shown]
        if low is not None and high is not None:
            ax.fill_between(x, low[shown], high[shown], color=color, alpha=0.18, linewidth=0)
        text = f"ECE {float(self.compute()):.3f}"  # type: ignore[arg-type]
        ax.plot(x, y, marker="o", markersize=4, label=f"{label}: {text}" if label else text, color=color, zorder=3)
        ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy", aspect="equal")
        ax.legend(loc="upper left", frameon=False)
        return figure, ax

    def _accuracy_interval(self) -> tuple[Any, Any]:
        """2.5 and 97.5 percentiles of the accuracy in each bin, over the replicates, where there are ids."""
        if int(self.ungrouped) or not bool(self.replicates.any()):
            return None, None
        count, _, correct = self._drawn_bins().unbind(1)
        tails = torch.tensor([0.025, 0.975], dtype=torch.float64, device=count.device)
        low, high = torch.nanquantile(correct / count, tails, dim=0).cpu().numpy()
        return low, high


class _PixelMean(BootstrapMetric):
    """The mean of a value a pixel over all labeled pixels."""

    higher_is_better = False

    def __init__(self, num_classes: int, ignore_index: int = 255, **kwargs: Any) -> None:
        super().__init__(2, ignore_index, **kwargs)
        self.num_classes = num_classes

    def _add_means(self, scores: Tensor, target: Tensor, group: Sequence[str] | None) -> None:
        """Take in checked scores ``(B, C, *spatial)``, of which the labeled pixels count."""
        sums = sums_in_pieces(scores, target, 2, self._sums_of)
        self._add(target, group, lambda part: sums[part])

    def _sums_of(self, scores: Tensor, target: Tensor) -> Tensor:
        """Number of labeled pixels and the sum of their values, of each image: ``(b, 2)``."""
        labeled = target != self.ignore_index
        values = self._values(scores, target.where(labeled, 0))
        values = values.masked_fill(~labeled, 0)  # an ignored pixel may hold NaN
        if bool(values.isnan().any()):
            raise SeguqError("logits hold NaN, or an infinity that leaves no probability")
        return torch.stack((labeled.sum(1), values.sum(1, dtype=torch.float64)), 1)

    @abstractmethod
    def _values(self, scores: Tensor, target: Tensor) -> Tensor:
        """The value of each pixel ``(b, n)``, of scores ``(b, C, n)`` and class indices ``(b, n)``."""

    def _value(self, sums: Tensor) -> Tensor:
        return sums[..., 1] / sums[..., 0]


class NegativeLogLikelihood(_PixelMean):
    r"""Mean negative log-likelihood of the true class, in nats a pixel.

    .. math:: -\tfrac1n \sum_i \log p_{i, y_i}

    Probabilities below 1e-38 are 0 in float32, so a model that is that sure of what is wrong is told apart from logits
    alone: pass them where you have them (`pooled_logits` of an estimator are the logarithms of its probabilities,
    however small). Over probabilities a pixel counts 87 nats at most.

    Args:
        num_classes: C.
        ignore_index: value of the target that is left out.
        from_logits: whether updates bring logits (log-probabilities are some) instead of probabilities.
        **kwargs: ``n_boot``, ``seed``, and those of `torchmetrics.Metric`.

    Example:
        >>> metric = NegativeLogLikelihood(num_classes=2)
        >>> metric.update(torch.tensor([[0.5, 0.5]]), torch.tensor([1]))
        >>> metric.compute()
        tensor(0.6931)
        >>> metric = NegativeLogLikelihood(num_classes=2, from_logits=True)
        >>> metric.update(torch.tensor([[200.0, 0.0]]), torch.tensor([1]))
        >>> metric.compute()
        tensor(200.)
    """

    def __init__(self, num_classes: int, ignore_index: int = 255, from_logits: bool = False, **kwargs: Any) -> None:
        super().__init__(num_classes, ignore_index, **kwargs)
        self.from_logits = from_logits

    def update(self, probs: Tensor, target: Tensor, group: Sequence[str] | None = None) -> None:
        """Take in a batch: ``probs`` (or logits, with ``from_logits``) (B, C, *spatial), ``target`` (B, *spatial).

        A probability of exactly 0 counts as the smallest normal number of its type, so that the mean stays finite.

        Args:
            probs: ``(B, C, *spatial)``.
            target: class indices ``(B, *spatial)``.
            group: one image id an item, for `compute_interval`.
        """
        check = checked_scores if self.from_logits else checked_probs
        self._add_means(*check(probs, target, self.num_classes, self.ignore_index), group)

    def _values(self, scores: Tensor, target: Tensor) -> Tensor:
        if self.from_logits:
            return torch.nn.functional.cross_entropy(scores, target, reduction="none")
        true = of_true_class(scores, target)
        return -true.clamp_min(torch.finfo(true.dtype).tiny).log()


class BrierScore(_PixelMean):
    r"""Mean squared distance of the probabilities from the truth, summed over the classes.

    .. math:: \tfrac1n \sum_i \sum_c (p_{ic} - [y_i = c])^2

    Args:
        num_classes: C.
        ignore_index: value of the target that is left out.
        **kwargs: ``n_boot``, ``seed``, and those of `torchmetrics.Metric`.

    References:
        Brier, Verification of Forecasts Expressed in Terms of Probability, 1950.

    Example:
        >>> metric = BrierScore(num_classes=2)
        >>> metric.update(torch.tensor([[0.5, 0.5]]), torch.tensor([1]))
        >>> metric.compute()
        tensor(0.5000)
    """

    def update(self, probs: Tensor, target: Tensor, group: Sequence[str] | None = None) -> None:
        """Take in a batch: ``probs`` (B, C, *spatial), ``target`` (B, *spatial), ``group`` one image id an item."""
        self._add_means(*checked_probs(probs, target, self.num_classes, self.ignore_index), group)

    def _values(self, scores: Tensor, target: Tensor) -> Tensor:
        # not 1 - 2 p + p^2, of which a sure model's small scores would lose their digits
        others = scores.square().scatter_(1, target.unsqueeze(1), 0).sum(1)
        return others.add_((1 - of_true_class(scores, target)).square_())
