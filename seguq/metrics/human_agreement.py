"""Whether a model is unsure where people disagree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from seguq.core.checks import is_whole, require_count, require_target_range
from seguq.core.errors import SeguqError
from seguq.functional.agreement import (
    annotator_disagreement,
    generalized_energy_distance,
    normalized_cross_correlation,
    require_masks,
)
from seguq.metrics.bootstrap import BootstrapMetric


class HumanAgreement(BootstrapMetric):
    """How far uncertainty and samples go with the masks of several annotators of each image.

    ``ncc`` is the mean over images of the correlation, over pixels, of uncertainty and the variance of the masks; an
    image where one of the two is the same everywhere has none and is left out. ``ged`` is the mean over images of the
    squared generalized energy distance between samples and masks, over the pixels that every annotator labeled (a mask
    without a label is not one of an annotator); NaN where no samples were passed.

    Args:
        num_classes: C.
        ignore_index: value of pixels that an annotator left out.
        background: class that ``ged`` leaves out; None: all count.
        **kwargs: ``n_boot``, ``seed``, and those of `torchmetrics.Metric`.

    References:
        Hu et al., Supervised Uncertainty Quantification for Segmentation with Multiple Annotators, 2019 (``ncc``);
        Kohl et al., A Probabilistic U-Net for Segmentation of Ambiguous Images, 2018 (``ged``).

    Example:
        >>> metric = HumanAgreement(num_classes=2)
        >>> masks = torch.tensor([[[0, 0, 1, 1], [0, 1, 1, 1]]])
        >>> metric.update(torch.tensor([[0.1, 0.5, 0.1, 0.1]]), masks, samples=masks)
        >>> metric.compute()
        {'ncc': tensor(1.), 'ged': tensor(0.)}
    """

    higher_is_better: bool | None = None  # of ncc more is better, of ged less

    def __init__(self, num_classes: int, ignore_index: int = 255, background: int | None = 0, **kwargs: Any) -> None:
        require_count("num_classes", num_classes)
        if background is not None and not (is_whole(background, 0) and background < num_classes):
            raise SeguqError(f"background must be a class in 0..{num_classes - 1} or None, but is {background!r}")
        # images and sum of ncc, images and sum of ged
        super().__init__(4, ignore_index, settings={"background": background}, **kwargs)
        self.num_classes, self.background = num_classes, background

    def update(
        self, uncertainty: Tensor, masks: Tensor, samples: Tensor | None = None, group: Sequence[str] | None = None
    ) -> None:
        """Take in a batch.

        Args:
            uncertainty: ``(B, *spatial)``, larger is more uncertain.
            masks: class indices of M annotators, ``(B, M, *spatial)``.
            samples: class indices of S samples of the model, ``(B, S, *spatial)``; None: no ``ged`` of these images.
            group: one image id an item, for `compute_interval`.

        Raises:
            SeguqError: for shapes that do not go together, NaN or infinity in ``uncertainty`` where two annotators say
                anything, or values that are no class.
        """
        require_masks("masks", masks, self.num_classes, self.ignore_index)
        if uncertainty.shape != (len(masks), *masks.shape[2:]):
            raise SeguqError(
                f"uncertainty must be (B, *spatial) = {(len(masks), *masks.shape[2:])} to go with masks of shape "
                f"{tuple(masks.shape)}, but has shape {tuple(uncertainty.shape)}"
            )
        if samples is not None:
            require_target_range(samples, self.num_classes, None, name="samples")
        variance = annotator_disagreement(masks, self.num_classes, self.ignore_index)
        if bool((~uncertainty.isfinite() & ~variance.isnan()).any()):
            raise SeguqError("uncertainty holds NaN or infinity where annotators say something")
        uncertainty = uncertainty.double().masked_fill(variance.isnan(), torch.nan)
        values = [normalized_cross_correlation(uncertainty, variance)]
        if samples is not None:
            values.append(
                generalized_energy_distance(samples, masks, self.num_classes, self.ignore_index, self.background)
            )
        else:
            values.append(values[0].new_full((len(masks),), torch.nan))
        pairs = [part for value in values for part in ((~value.isnan()).double(), value.nan_to_num(0))]
        sums = torch.stack(pairs, 1)
        self._add(masks, group, lambda part: sums[part])

    def _value(self, sums: Tensor) -> dict[str, Tensor]:
        return {"ncc": sums[..., 1] / sums[..., 0], "ged": sums[..., 3] / sums[..., 2]}
