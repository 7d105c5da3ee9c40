"""Whether the uncertain pixels are the wrong ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from seguq.core.checks import flat_images
from seguq.core.errors import SeguqError
from seguq.functional.ranking import area_under_roc, average_precision, fpr_at_tpr, order_bins
from seguq.metrics.bootstrap import BootstrapMetric, split_last

_BITS = 16
_BOOT_BITS = 12


class ErrorDetection(BootstrapMetric):
    """How well uncertainty ranks wrong pixels above right ones.

    Scores are binned by the order of float32 (`seguq.functional.order_bins`), 2^16 bins of which none spans more than
    1/128 of its value; scores in one bin count as ties. The replicates of the bootstrap keep 2^12 bins (1/8 of the
    value); their interval is shifted by the difference that the coarser bins make to the value itself.

    Args:
        ignore_index: value of ``error`` that is left out.
        **kwargs: ``n_boot``, ``seed``, and those of `torchmetrics.Metric`.

    References:
        Hendrycks and Gimpel, A Baseline for Detecting Misclassified and Out-of-Distribution Examples, 2017.

    Example:
        >>> metric = ErrorDetection()
        >>> metric.update(torch.tensor([[0.1, 0.2, 0.8, 0.9]]), torch.tensor([[0, 0, 1, 0]]))
        >>> metric.compute()["auroc"]
        tensor(0.6667)
    """

    higher_is_better = True

    def __init__(self, ignore_index: int = 255, **kwargs: Any) -> None:
        super().__init__(2 << _BITS, boot_size=2 << _BOOT_BITS, **kwargs)
        self.ignore_index = ignore_index

    def update(self, uncertainty: Tensor, error: Tensor, group: Sequence[str] | None = None) -> None:
        """Take in a batch.

        Args:
            uncertainty: ``(B, *spatial)``, larger is more uncertain.
            error: ``(B, *spatial)`` of 0 (right), 1 (wrong) or ``ignore_index``.
            group: one image id an item, for `compute_interval`.

        Raises:
            SeguqError: for shapes that differ, other values in ``error``, or NaN in ``uncertainty``.
        """
        if uncertainty.shape != error.shape:
            raise SeguqError(
                f"uncertainty of shape {tuple(uncertainty.shape)} does not go with error of shape {tuple(error.shape)}"
            )
        counted = error != self.ignore_index
        if bool(((error != 0) & (error != 1) & counted).any()):
            raise SeguqError(f"error must hold 0 (right), 1 (wrong) or ignore_index={self.ignore_index}")
        bins = flat_images(order_bins(uncertainty, _BITS))
        index = bins + (flat_images((error == 1).long()) << _BITS)
        image_sums = torch.zeros(len(error), 2 << _BITS, dtype=torch.float64, device=bins.device)
        image_sums.scatter_add_(1, index, flat_images(counted).double())
        self._add(image_sums, group)

    def _boot_sums(self, image_sums: Tensor) -> Tensor:
        # the leading 12 bits of a pattern are those of its leading 16: bins of 2^(16 - 12) neighbors fall together
        return split_last(image_sums, 2 << _BOOT_BITS, 1 << (_BITS - _BOOT_BITS)).sum(-1)

    def _value(self, sums: Tensor) -> dict[str, Tensor]:
        right, wrong = split_last(sums, 2, -1).unbind(-2)
        return {
            "auroc": area_under_roc(right, wrong),
            "aupr": average_precision(right, wrong),
            "fpr95": fpr_at_tpr(right, wrong),
        }

    def _replicate_values(self) -> dict[str, Tensor]:
        fine, coarse = self._value(self.sums), self._value(self._boot_sums(self.sums))
        values = self._value(self.replicates)
        return {name: (values[name] + fine[name] - coarse[name]).clamp(0, 1) for name in values}
