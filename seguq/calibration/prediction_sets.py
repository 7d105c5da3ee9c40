"""Prediction sets: sets of classes that hold the class of enough pixels in all but a share alpha of new images."""

from __future__ import annotations

import warnings
from typing import ClassVar

import torch
from torch import Tensor

from seguq.calibration.conformal_sets import LARGEST, ConformalSets, miss_levels, too_few_right
from seguq.core.checks import is_number
from seguq.core.errors import UsageError
from seguq.functional.conformal import bin_edge
from seguq.functional.logits import Task


class PredictionSets(ConformalSets):
    """Sets of classes that hold the class of enough pixels in all but a share ``alpha`` of new images.

    With a probability of at least 1 - alpha (over the images it is fitted on and the new one), the sets of a new image
    hold the class of at least the share ``coverage`` of its labeled pixels. `ConformalRiskControl` with "miss" promises
    a mean over images instead, where some may be far below; this is conformal risk control of the loss that is 1 for an
    image whose coverage is too low, else 0: lambda is the conformal quantile of the smallest lambda that is enough for
    each image. With ``group`` that is said of all pixels of a new group.

    Images without a labeled pixel (binary: of the foreground; multilabel: with a label) are left out, as in
    `ConformalRiskControl`. It needs at least 1 / alpha - 1 images or groups.

    Args:
        alpha: share of images for which the coverage may be lower, between 0 and 1.
        coverage: share of the pixels of an image, above 0 up to 1; None: 1 - alpha.
        task: what probabilities are, as `ConformalSets` says.
        ignore_index: value of the target that is left out.

    References:
        Mossina et al., Conformal Semantic Image Segmentation, 2024.

    Example:
        >>> import torch
        >>> from seguq import PredictionSets
        >>> probs = torch.tensor([[0.7, 0.5], [0.2, 0.3], [0.1, 0.2]]).expand(20, 3, 2)  # 20 images of 2 pixels
        >>> sets = PredictionSets(alpha=0.1, coverage=1.0).fit([(probs, torch.tensor([[0, 1]]).expand(20, 2))])
        >>> sets(probs[:1])[0].T.tolist()
        [[True, False, False], [True, True, False]]
        >>> print(sets.summary().promise)
        with probability 0.9, the sets of a new image hold the class of at least 1 of its pixels
    """

    name: ClassVar[str] = "prediction_sets"

    def __init__(
        self, alpha: float = 0.1, coverage: float | None = None, task: Task = "multiclass", ignore_index: int = 255
    ) -> None:
        super().__init__(alpha, task, ignore_index)
        self.coverage = coverage
        self.share = require_coverage(1 - alpha if coverage is None else coverage)

    @property
    def counts_what(self) -> str:
        kinds = {"multiclass": "a labeled pixel", "binary": "a pixel of the foreground"}
        return kinds.get(self.task, "a pixel with a label")

    def promise(self) -> str:
        what = {
            "multiclass": f"the sets of a new image hold the class of at least {self.share:.4g} of its pixels",
            "binary": f"the mask of a new image holds at least {self.share:.4g} of its foreground",
            "multilabel": f"the sets of a new image hold at least {self.share:.4g} of its labels",
        }
        return f"with probability {1 - self.alpha:.4g}, {what[self.task]}"

    def measure_of(self, probs: Tensor, target: Tensor) -> Tensor:
        return miss_levels(probs, target, self.task, self.ignore_index)

    def losses(self, sums: Tensor) -> Tensor:
        return too_few_right(sums, self.share)

    def set_level(self, level: int) -> None:
        self.threshold = torch.full_like(self.threshold, bin_edge(LARGEST - level))
        if level == LARGEST:
            warnings.warn(
                f"all classes are in the set of every pixel, as no smaller sets cover {self.share:.4g} of enough "
                "images: a lower coverage or a larger alpha makes them informative",
                stacklevel=3,
            )


def require_coverage(coverage: object) -> float:
    """A share of pixels that is to be covered.

    Raises:
        UsageError: unless it is a number above 0 up to 1.
    """
    if not (is_number(coverage) and 0 < coverage <= 1):
        raise UsageError(f"coverage is a share of pixels, a number above 0 up to 1, but is {coverage!r}")
    return float(coverage)
