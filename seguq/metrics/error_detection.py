"""Whether the uncertain pixels are the wrong ones."""

from __future__ import annotations

from types import MappingProxyType

from seguq.metrics.error_ranking import ErrorRanking


class ErrorDetection(ErrorRanking):
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
        >>> import torch
        >>> metric = ErrorDetection()
        >>> metric.update(torch.tensor([[0.1, 0.2, 0.8, 0.9]]), torch.tensor([[0, 0, 1, 0]]))
        >>> metric.compute()["auroc"]
        tensor(0.6667)
    """

    higher_is_better = True
    statistics = MappingProxyType({name: ErrorRanking.statistics[name] for name in ("auroc", "aupr", "fpr95")})
