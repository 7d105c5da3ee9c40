"""How far confidences are off in one place of an image, which an average over places hides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as nn_functional

from seguq.core.checks import require_count
from seguq.core.errors import SeguqError
from seguq.functional.calibration import expected_calibration_error, top1_calibration_bins
from seguq.functional.logits import full_precision
from seguq.metrics.bootstrap import BootstrapMetric
from seguq.metrics.pieces import checked_probs


class LocalCalibrationError(BootstrapMetric):
    """The calibration error of the predicted class within windows of an image, and its mean over all windows.

    Over- and underconfident places cancel in the error over a whole image, and do not here. Windows lie side by side
    (those at the far border are cut off by it); the published figure takes windows at random places. The fewer pixels a
    window has, the larger is the error of a calibrated model, too: compare values of one ``window`` alone.

    Args:
        num_classes: C.
        window: side of the windows in pixels.
        n_bins: number of bins over [0, 1].
        ignore_index: value of the target that is left out; windows of these alone are, too.
        **kwargs: ``n_boot``, ``seed``, and those of `torchmetrics.Metric`.

    References:
        Ding et al., Local Temperature Scaling for Probability Calibration, 2021, section 4.2 (windows of 72 pixels).

    Example:
        >>> metric = LocalCalibrationError(num_classes=2, window=2)
        >>> probs = torch.tensor([[[0.75] * 4, [0.25] * 4]])          # 75 % sure: right in one half, wrong in the other
        >>> metric.update(probs, torch.tensor([[0, 0, 1, 1]]))
        >>> metric.compute()
        tensor(0.5000)
    """

    higher_is_better = False

    def __init__(
        self, num_classes: int, window: int = 64, n_bins: int = 15, ignore_index: int = 255, **kwargs: Any
    ) -> None:
        require_count("num_classes", num_classes)
        require_count("window", window)
        require_count("n_bins", n_bins)
        settings = {"window": window, "n_bins": n_bins}
        super().__init__(2, ignore_index, settings=settings, **kwargs)  # number of windows, and the sum of their errors
        self.num_classes, self.window, self.n_bins = num_classes, window, n_bins

    def update(self, probs: Tensor, target: Tensor, group: Sequence[str] | None = None) -> None:
        """Take in a batch.

        Args:
            probs: ``(B, C, *spatial)`` of one to three dimensions.
            target: class indices ``(B, *spatial)``.
            group: one image id an item, for `compute_interval`.

        Raises:
            SeguqError: for shapes that do not go together, a target out of range, or what are no probabilities.
        """
        probs, target = checked_probs(probs, target, self.num_classes, self.ignore_index)
        if target.ndim > 4:
            raise SeguqError(f"windows are of 1 to 3 dimensions, but target has shape {tuple(target.shape)}")
        sums = torch.zeros(len(target), 2, dtype=torch.float64, device=target.device)
        for some, labels in self._windows(probs, target.long()):
            bins = top1_calibration_bins(some.flatten(0, 1), labels.flatten(0, 1), self.n_bins, self.ignore_index)
            errors = expected_calibration_error(bins).view(labels.shape[:2])
            counted = ~errors.isnan()
            sums += torch.stack((counted.sum(1).double(), errors.where(counted, 0).sum(1)), 1)
        self._add(target, group, lambda part: sums[part])

    def _windows(self, probs: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Windows a strip at a time: ``(B, windows, C, n)`` and ``(B, windows, n)``."""
        spatial = target.shape[1:]
        windows = [min(self.window, max(1, side)) for side in spatial]
        missing = [-side % window for side, window in zip(spatial, windows, strict=True)][1:]
        for start in range(0, spatial[0], windows[0]):
            some, labels = probs[:, :, start : start + windows[0]], target[:, start : start + windows[0]]
            pads = [width for side in reversed(missing) for width in (0, side)] + [0, windows[0] - labels.shape[1]]
            yield (
                _cut(nn_functional.pad(full_precision(some), pads), windows),
                _cut(nn_functional.pad(labels, pads, value=self.ignore_index).unsqueeze(1), windows).squeeze(2),
            )

    def _value(self, sums: Tensor) -> Tensor:
        return sums[..., 1] / sums[..., 0]


def _cut(values: Tensor, windows: list[int]) -> Tensor:
    """``(B, C, *spatial)`` as ``(B, windows, C, n)``; sides are multiples of the window's."""
    dims = len(windows)
    shape = [part for side, window in zip(values.shape[2:], windows, strict=True) for part in (side // window, window)]
    parts = values.reshape(*values.shape[:2], *shape)
    outer, inner = ([2 + 2 * axis + offset for axis in range(dims)] for offset in (0, 1))
    return parts.permute(0, *outer, 1, *inner).flatten(dims + 2).flatten(1, dims)
