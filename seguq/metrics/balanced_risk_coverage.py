"""What is gained by leaving the uncertain pixels to somebody else, each class counting the same."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from seguq.core.checks import flat_images, require_count, require_target_range
from seguq.core.errors import SeguqError
from seguq.functional.ranking import area_under_generalized_risk_coverage
from seguq.functional.shares import (
    area_under_risk_coverage_of_shares,
    area_under_sparsification_error_of_shares,
    class_balanced,
)
from seguq.metrics.bootstrap import split_last
from seguq.metrics.risk_coverage import RiskCoverage


class BalancedRiskCoverage(RiskCoverage):
    r"""`RiskCoverage` of pixels that weigh so much that each true class that occurs has the same share of the whole.

    The values are those of an image set in which every class has as many pixels, so that background does not decide
    alone: with the weight :math:`w_i = N / (C n_{y_i})` of each of N pixels, of which :math:`n_y` are of class y and C
    classes occur, they are accepted by rising uncertainty, and

    .. math:: AURC = \int_0^1 R(c) \, dc, \qquad R(c) = \frac{\sum_{accepted} w_i e_i}{\sum_{accepted} w_i}

    is the area under the error rate of what is accepted, over the accepted share c of all weight; equal scores are
    accepted in equal parts, side by side. ``augrc`` and ``ause`` follow from the same curve, as in `RiskCoverage`. With
    one class they are those of `RiskCoverage` for many pixels. Each replicate of the bootstrap weighs its classes anew.

    The bins are those of `ErrorRanking` for each class apart, and half as many in the replicates (2^11, 1/4 of the
    value): it takes 10.25 MiB a class, 215 MiB for 21 classes, of which 6.25 MiB a class are those of 200 replicates:
    a smaller ``n_boot`` takes less. Measured against the raw scores: where these spread over a factor of two or more, a
    value is within 1e-4, and the bounds of an interval within 8 % of its width; where they are packed within a
    hundredth of 1, a value is within .02, and the interval says nothing. `compute_bounds` gives the bounds that hold
    for any scores.

    Args:
        num_classes: how many classes there are.
        ignore_index: value of ``target`` or of ``error`` that is left out.
        **kwargs: ``n_boot``, ``seed``, and those of `torchmetrics.Metric`.

    References:
        Geifman, Uziel and El-Yaniv, Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers, 2019 (AURC).

    Example:
        >>> metric = BalancedRiskCoverage(2)
        >>> uncertainty, error = torch.tensor([[0.1, 0.2, 0.3, 0.9]]), torch.tensor([[0, 0, 0, 1]])
        >>> metric.update(uncertainty, error, target=torch.tensor([[0, 0, 0, 1]]))
        >>> metric.compute()["aurc"]                       # the one pixel of class 1 is half of all
        tensor(0.1534)
    """

    statistics = MappingProxyType(
        {
            "aurc": lambda right, wrong, mixed=None: area_under_risk_coverage_of_shares(right, wrong),
            "augrc": lambda right, wrong, mixed=None: area_under_generalized_risk_coverage(right, wrong),
            "ause": lambda right, wrong, mixed=None: area_under_sparsification_error_of_shares(right, wrong),
        }
    )
    boot_bits = 11
    area = "class-balanced AURC"

    def __init__(self, num_classes: int, ignore_index: int = 255, **kwargs: Any) -> None:
        require_count("num_classes", num_classes)
        self.histograms = 2 * num_classes  # before the states are made, of this size
        super().__init__(ignore_index, **kwargs)
        self.num_classes = num_classes

    def update(  # type: ignore[override]  # the classes cannot be done without
        self, uncertainty: Tensor, error: Tensor, target: Tensor, group: Sequence[str] | None = None
    ) -> None:
        """Take in a batch.

        Args:
            uncertainty: ``(B, *spatial)``, larger is more uncertain; NaN is allowed at pixels that are left out. Flat
                ``(N,)`` is one image; ``(N, 1)`` are N images with a score each.
            error: ``(B, *spatial)`` of 0 (right), 1 (wrong) or ``ignore_index``; anything where ``target`` is ignored.
            target: ``(B, *spatial)``, the true class of each pixel, or ``ignore_index``.
            group: one image id an item, for `compute_interval`.

        Raises:
            SeguqError: for shapes that differ, other values in ``error`` or ``target``, or NaN in ``uncertainty`` where
                it counts.
        """
        self._require_shape(uncertainty, error)
        if target.shape != error.shape:
            raise SeguqError(
                f"target of shape {tuple(target.shape)} does not go with error of shape {tuple(error.shape)}"
            )
        require_target_range(target, self.num_classes, self.ignore_index)
        self._take_in(flat_images(uncertainty), flat_images(error), flat_images(target), group)
        self._look(target)

    def _right_and_wrong(self, sums: Tensor) -> Tensor:
        """Shares of the right and of the wrong pixels in each bin, ``(..., 2, n)``, each class weighing the same."""
        right, wrong = split_last(sums, self.num_classes, 2, -1).unbind(-2)
        return torch.stack(class_balanced(right, wrong), -2)
