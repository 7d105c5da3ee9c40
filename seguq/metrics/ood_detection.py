"""Whether the uncertain pixels are those of a kind that the model was not trained on."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from seguq.metrics.error_detection import ErrorDetection


class OODDetection(ErrorDetection):
    """How well uncertainty ranks what is out of distribution above what is not.

    ``auroc``, ``aupr`` (out of distribution is positive) and ``fpr95`` (share of the pixels in distribution that are
    taken for others where 95 % of the others are found), in the bins of `ErrorRanking`.

    Args:
        ignore_index: value of ``is_ood`` that is left out.
        **kwargs: ``n_boot``, ``seed``, and those of `torchmetrics.Metric`.

    References:
        Hendrycks et al., Scaling Out-of-Distribution Detection for Real-World Settings, 2022 (pixels of anomalies).

    Example:
        >>> import torch
        >>> metric = OODDetection()
        >>> metric.update(torch.tensor([[0.1, 0.2, 0.8, 0.9]]), torch.tensor([[0, 0, 1, 0]]))
        >>> metric.compute()["fpr95"]
        tensor(0.3333)
    """

    target = ("is_ood", "in distribution", "out of distribution")

    def update(self, uncertainty: Tensor, is_ood: Tensor, group: Sequence[str] | None = None) -> None:
        """Take in a batch.

        Args:
            uncertainty: ``(B, *spatial)``, larger is more uncertain; NaN is allowed where ``is_ood`` is ignored. Flat
                ``(N,)`` is one image; ``(N, 1)`` are N images with a score each.
            is_ood: ``(B, *spatial)`` of 0 (in distribution), 1 (out of distribution) or ``ignore_index``.
            group: one image id an item, for `compute_interval`.

        Raises:
            SeguqError: for shapes that differ, other values in ``is_ood``, or NaN in ``uncertainty`` where it counts.
        """
        super().update(uncertainty, is_ood, group)
