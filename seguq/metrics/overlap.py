"""Mean intersection over union, with an interval over images (torchmetrics has the value, but no such interval)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from seguq.core.checks import flat_images, require_count, require_target_range
from seguq.core.errors import SeguqError
from seguq.metrics.bootstrap import BootstrapMetric, split_last
from seguq.metrics.pieces import pieces_of


class MeanIoU(BootstrapMetric):
    r"""Intersection over union of each class over all pixels, and their mean over the classes that occur.

    .. math:: IoU_c = \frac{TP_c}{TP_c + FP_c + FN_c}

    Args:
        num_classes: C.
        ignore_index: value of the target that is left out.
        **kwargs: ``n_boot``, ``seed``, and those of `torchmetrics.Metric`.

    References:
        Everingham et al., The PASCAL Visual Object Classes Challenge, 2010, section 4.3.

    Example:
        >>> metric = MeanIoU(num_classes=2)
        >>> metric.update(torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 0, 0, 1]]))
        >>> metric.compute()
        tensor(0.5833)
    """

    higher_is_better = True

    def __init__(self, num_classes: int, ignore_index: int = 255, **kwargs: Any) -> None:
        require_count("num_classes", num_classes)
        super().__init__(3 * num_classes, ignore_index, **kwargs)
        self.num_classes = num_classes

    def update(self, prediction: Tensor, target: Tensor, group: Sequence[str] | None = None) -> None:
        """Take in a batch of class indices: both ``(B, *spatial)``; ``group`` one image id an item.

        Where the target is ignored, the prediction may be anything.
        """
        if prediction.shape != target.shape:
            raise SeguqError(
                f"prediction of shape {tuple(prediction.shape)} does not go with target of shape {tuple(target.shape)}"
            )
        require_target_range(target, self.num_classes, self.ignore_index)
        said, true = flat_images(prediction), flat_images(target)
        try:
            require_target_range(prediction, self.num_classes, None, name="prediction")
        except SeguqError:  # it may be of ignored pixels alone
            for place in pieces_of(true):
                ignored = true[place].long() == self.ignore_index
                require_target_range(said[place].masked_fill(ignored, 0), self.num_classes, None, name="prediction")
        self._add(true, group, lambda part: self._counts(said[part], true[part]))

    def _counts(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Pixels of each class predicted rightly, predicted, and true, in each image: ``(n, 3 * C)``."""
        nothing = self.num_classes  # one class more, of what is left out
        counts = target.new_zeros(3, len(target), nothing + 1, dtype=torch.int64)
        for rows, columns in pieces_of(target):
            true, said = target[rows, columns].long(), prediction[rows, columns].long()
            labeled = true != self.ignore_index
            if not bool(labeled.all()):
                true, said = true.where(labeled, nothing), said.where(labeled, nothing)
            if len(true) * (nothing + 1) ** 2 <= true.numel():  # one count of pairs has it all
                pairs = _bincount(torch.add(said, true, alpha=nothing + 1), (nothing + 1) ** 2)
                pairs = split_last(pairs, nothing + 1, nothing + 1)
                found = [pairs.diagonal(dim1=1, dim2=2), pairs.sum(1), pairs.sum(2)]
            else:
                found = [_bincount(each, nothing + 1) for each in (true.where(true == said, nothing), said, true)]
            counts[:, rows] += torch.stack(found)
        return counts[..., :-1].transpose(0, 1).flatten(1).double()

    def _value(self, sums: Tensor) -> Tensor:
        mean: Tensor = self._iou(sums).nanmean(-1)
        return mean

    def _iou(self, sums: Tensor) -> Tensor:
        both, said, true = split_last(sums, 3, self.num_classes).unbind(-2)
        iou = both / (said + true - both)
        if 0 <= self.ignore_index < self.num_classes:
            iou[..., self.ignore_index] = torch.nan
        return iou

    def per_class(self) -> Tensor:
        """``(C,)`` intersection over union of each class; NaN for a class that neither occurs nor is predicted."""
        return self._iou(self.sums).float()


def _bincount(values: Tensor, size: int) -> Tensor:
    """How often each number below ``size`` is in each row of ``(b, n)``: ``(b, size)``."""
    offset = size * torch.arange(len(values), device=values.device).unsqueeze(1)
    each = values + offset if len(values) > 1 else values
    return torch.bincount(each.flatten(), minlength=size * len(values)).view(len(values), size)
