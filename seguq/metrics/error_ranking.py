"""How uncertainty ranks wrong pixels and right ones: one histogram of both, and the values that it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from seguq.core.checks import flat_images
from seguq.core.errors import SeguqError
from seguq.functional.ranking import (
    area_under_generalized_risk_coverage,
    area_under_risk_coverage,
    area_under_roc,
    area_under_sparsification_error,
    average_precision,
    fpr_at_tpr,
    order_bins,
)
from seguq.metrics.bootstrap import BootstrapMetric, split_last

_BITS = 16
_BOOT_BITS = 12


class ErrorRanking(BootstrapMetric):
    """Every value of how uncertainty ranks pixels by error, from one histogram of the right and the wrong ones.

    It gives what `ErrorDetection` (``auroc``, ``aupr``, ``fpr95``) and `RiskCoverage` (``aurc``, ``augrc``, ``ause``)
    give, in half the memory and time of the two.

    Scores are binned by the order of float32 (`seguq.functional.order_bins`), 2^16 bins of which none spans more than
    1/128 of its value; scores in one bin count as ties. The replicates of the bootstrap keep 2^12 bins (1/8 of the
    value); their interval is shifted by the difference that the coarser bins make to the value itself.

    Args:
        ignore_index: value of ``error`` that is left out.
        **kwargs: ``n_boot``, ``seed``, and those of `torchmetrics.Metric`.

    Example:
        >>> metric = ErrorRanking()
        >>> metric.update(torch.tensor([[0.1, 0.2, 0.8, 0.9]]), torch.tensor([[0, 0, 1, 0]]))
        >>> {name: round(float(value), 3) for name, value in metric.compute().items()}
        {'auroc': 0.667, 'aupr': 0.5, 'fpr95': 0.333, 'aurc': 0.146, 'augrc': 0.094, 'ause': 0.083}
    """

    higher_is_better: bool | None = None  # of some of the values more is better, of others less
    statistics: ClassVar[Mapping[str, Callable[[Tensor, Tensor], Tensor]]] = MappingProxyType(
        {
            "auroc": area_under_roc,
            "aupr": average_precision,
            "fpr95": fpr_at_tpr,
            "aurc": area_under_risk_coverage,
            "augrc": area_under_generalized_risk_coverage,
            "ause": area_under_sparsification_error,
        }
    )

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
        right, wrong = right_and_wrong(sums)
        return {name: value(right, wrong) for name, value in self.statistics.items()}

    def _replicate_values(self) -> dict[str, Tensor]:
        fine, coarse = self._value(self.sums), self._value(self._boot_sums(self.sums))
        values = self._value(self.replicates)
        return {name: (values[name] + fine[name] - coarse[name]).clamp(0, 1) for name in values}


def right_and_wrong(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Counts of the right and of the wrong pixels by score, each ``(..., n)``, without the bins that are empty in all.

    Most bins are: scores from 1e-6 to 1 fill 4 % of them at most. Leaving them out changes no value.
    """
    counts = split_last(sums, 2, -1)
    filled = counts.reshape(-1, counts.shape[-1]).sum(0) > 0
    filled[0] = True  # so that one bin is left where nothing was counted
    right, wrong = counts[..., filled].unbind(-2)
    return right, wrong
