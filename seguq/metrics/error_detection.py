"""Whether the uncertain pixels are the wrong ones."""

from __future__ import annotations

from types import MappingProxyType

from seguq.metrics.error_ranking import ErrorRanking


class ErrorDetection(ErrorRanking):
    """How well uncertainty ranks wrong pixels above right ones.

    The bins are those of `ErrorRanking`: equal scores tie as in scikit-learn, and where scores spread over a factor of
    two or more, ``auroc`` and ``aupr`` are within 2e-4 and ``fpr95`` within 1e-3 of those of the raw scores. Crowded
    scores (within a hundredth of 1, say) share few bins; with those, a value was off by up to .015.
    `compute_bounds` gives the bounds that hold for any scores.

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
