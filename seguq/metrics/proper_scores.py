"""Proper scores of probabilities: negative log-likelihood, Brier score and its parts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from seguq.core.checks import require_count
from seguq.core.errors import SeguqError
from seguq.functional.calibration_kinds import brier_parts, classwise_calibration_bins
from seguq.metrics.bootstrap import BootstrapMetric, split_last
from seguq.metrics.pieces import checked_probs, checked_scores, of_true_class, sums_in_pieces


class _PixelMean(BootstrapMetric):
    """The mean of a value a pixel over all labeled pixels."""

    higher_is_better = False

    def __init__(self, num_classes: int, ignore_index: int = 255, **kwargs: Any) -> None:
        require_count("num_classes", num_classes)
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


class BrierDecomposition(BootstrapMetric):
    r"""The Brier score and its parts: how far from calibrated, how much is told apart, how uncertain the data are.

    .. math:: brier = reliability - resolution + uncertainty + within

    Each is summed over the classes. ``reliability`` is 0 for a calibrated model; ``resolution`` is larger the more the
    predictions tell apart; ``uncertainty`` is a matter of the data alone; ``within`` is what the bins hide, small with
    enough of them.

    Args:
        num_classes: C.
        n_bins: number of bins over [0, 1].
        ignore_index: value of the target that is left out.
        **kwargs: ``n_boot``, ``seed``, and those of `torchmetrics.Metric`.

    References:
        Murphy, A New Vector Partition of the Probability Score, 1973; Stephenson et al., Two Extra Components in the
        Brier Score Decomposition, 2008 (``within``).

    Example:
        >>> metric = BrierDecomposition(num_classes=2)
        >>> metric.update(torch.tensor([[0.75, 0.25], [0.25, 0.75]]), torch.tensor([0, 1]))
        >>> {name: float(value) for name, value in metric.compute().items()}
        {'brier': 0.125, 'reliability': 0.125, 'resolution': 0.5, 'uncertainty': 0.5, 'within': 0.0}
    """

    higher_is_better: bool | None = None  # of resolution more is better, of reliability less

    def __init__(self, num_classes: int, n_bins: int = 15, ignore_index: int = 255, **kwargs: Any) -> None:
        require_count("num_classes", num_classes)
        require_count("n_bins", n_bins)
        super().__init__(1 + 3 * num_classes * n_bins, ignore_index, settings={"n_bins": n_bins}, **kwargs)
        self.num_classes, self.n_bins = num_classes, n_bins

    def update(self, probs: Tensor, target: Tensor, group: Sequence[str] | None = None) -> None:
        """Take in a batch.

        Args:
            probs: ``(B, C, *spatial)``.
            target: class indices ``(B, *spatial)``.
            group: one image id an item, for `compute_interval`.

        Raises:
            SeguqError: for shapes that do not go together, a target out of range, or what are no probabilities.
        """
        probs, target = checked_probs(probs, target, self.num_classes, self.ignore_index)
        size = self.sums.numel()
        self._add(target, group, lambda part: sums_in_pieces(probs[part], target[part], size, self._sums_of))

    def _sums_of(self, probs: Tensor, target: Tensor) -> Tensor:
        """The squared distances and the bins of each image: ``(b, size)``."""
        labeled = (target != self.ignore_index).unsqueeze(1)
        classes = torch.arange(self.num_classes, device=target.device).view(1, -1, 1)
        right = target.unsqueeze(1) == classes
        squares = (probs - right.to(probs)).square().masked_fill(~labeled, 0).sum((1, 2), dtype=torch.float64)
        bins = classwise_calibration_bins(probs, right, labeled.expand_as(right), self.n_bins)
        return torch.cat((squares.unsqueeze(1), bins.flatten(1)), 1)

    def _value(self, sums: Tensor) -> dict[str, Tensor]:
        bins = split_last(sums[..., 1:], self.num_classes, 3, self.n_bins)
        brier, parts = sums[..., 0] / bins[..., 0, 0, :].sum(-1), brier_parts(bins)
        within = brier - parts["reliability"] + parts["resolution"] - parts["uncertainty"]
        return {"brier": brier, **parts, "within": within}
