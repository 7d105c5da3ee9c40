"""A margin around predicted masks that covers the true object in all but a share alpha of new images."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from seguq.calibration.conformal import Conformal, rounded_up
from seguq.calibration.conformal_sets import too_few_right
from seguq.calibration.prediction_sets import require_coverage
from seguq.core.checks import require_dims, require_target_range
from seguq.core.errors import SeguqError
from seguq.functional.dilation import dilate, dilations_to_reach
from seguq.functional.logits import class_target

WIDEST = 1023
"""The widest margin in pixels; what lies further away counts as out of reach."""


class ConformalMargin(Conformal):
    """A margin around predicted masks that covers the true object in all but a share ``alpha`` of new images.

    With a probability of at least 1 - alpha (over the images it is fitted on and the new one), the predicted mask grown
    by `margin` pixels covers at least the share ``coverage`` of the true pixels of a new image. It needs masks alone,
    of whatever made them. The margin is the conformal quantile of the least number of 3 x 3 (3 x 3 x 3) dilations
    after which each image's mask covers enough. With ``group`` that is said of all true pixels of a new group.

    Images without a true pixel have nothing to cover: they are left out, and the promise is about images with an
    object. An image with an object but no predicted pixel is not covered by any margin, and counts as such; where there
    are more of these than ``alpha`` allows, there is no margin, and a fit says so.

    A mask is ``(B, *spatial)``: bool, 0 and 1, or the probability of the foreground, of which more than .5 is in the
    mask (of an estimator: ``maps.prediction``, or ``maps.probs[:, 1]``; for one class of several ``maps.prediction ==
    k``). A true mask may hold ``ignore_index``.

    Args:
        alpha: share of images for which the margin may be too small, between 0 and 1.
        coverage: share of the true pixels of an image that is covered, above 0 up to 1.
        ignore_index: value of true masks that is left out.

    Attributes:
        margin: in pixels, int64; up to 1023.

    References:
        Mossina and Friedrich, Conformal Prediction for Image Segmentation Using Morphological Prediction Sets, 2025.

    Example:
        >>> import torch
        >>> from seguq import ConformalMargin
        >>> predicted, true = torch.zeros(2, 20, 1, 9, dtype=torch.bool)
        >>> predicted[:, :, 3:5], true[:, :, 3:7] = True, True  # each image misses two pixels at the right
        >>> margin = ConformalMargin(alpha=0.1).fit([(predicted, true)])
        >>> margin
        ConformalMargin() [margin=2, empirical_risk=0, images=20, groups=20]
        >>> margin(predicted[:1])[0].int().tolist()
        [[0, 1, 1, 1, 1, 1, 1, 0, 0]]
    """

    name: ClassVar[str] = "conformal_margin"
    margin: Tensor

    def __init__(self, alpha: float = 0.1, coverage: float = 1.0, ignore_index: int = 255) -> None:
        super().__init__(alpha, ignore_index)
        self.coverage = require_coverage(coverage)
        self.register_buffer("margin", torch.tensor(-1))

    @property
    def counts_what(self) -> str:
        return "a true pixel"

    def channels_of(self, prediction: Tensor) -> int:
        return 1

    def promise(self) -> str:
        return (
            f"with probability {1 - self.alpha:.4g}, the mask of a new image grown by {int(self.margin)} pixels covers "
            f"at least {self.coverage:.4g} of its true pixels"
        )

    def learned(self) -> dict[str, float]:
        return {"margin": int(self.margin)}

    def measure(self, prediction: Tensor, target: Tensor) -> Tensor:
        """True pixels of each image by how many dilations reach them, ``(B, WIDEST + 2)``; the last: none does."""
        prediction = _mask(prediction)
        target = class_target(target, target, "multilabel")  # whole numbers, no axis dropped
        if prediction.shape != target.shape:
            raise SeguqError(
                f"a predicted and a true mask are both (B, *spatial), but have the shapes {tuple(prediction.shape)} "
                f"and {tuple(target.shape)}: of probabilities of two classes pass probs[:, 1]"
            )
        require_target_range(target, 2, self.ignore_index)
        true, width = target == 1, WIDEST + 2
        outside = (true & ~prediction).nonzero()
        reached = dilations_to_reach(prediction, outside)
        reached = reached.masked_fill(reached == max(prediction.shape[1:]), width).clamp_max(width - 1)
        sums = torch.bincount(outside[:, 0] * width + reached, minlength=len(target) * width).view(-1, width)
        sums[:, 0] += (true & prediction).flatten(1).sum(1)
        return sums.double()

    def losses(self, sums: Tensor) -> Tensor:
        return too_few_right(sums, self.coverage)[:, :-1]

    def require_keepable(self, losses: Tensor, units: int) -> None:
        out_of_reach = int(losses[-1])
        raise SeguqError(
            f"no margin keeps alpha={self.alpha}: in {out_of_reach} of {units} images or groups nothing is predicted, "
            f"or too little within {WIDEST} pixels of the truth; take a lower coverage, or an alpha of at least "
            f"{rounded_up((out_of_reach + 1) / (units + 1))}"
        )

    def set_level(self, level: int) -> None:
        self.margin = torch.full_like(self.margin, level)

    def require_valid(self) -> None:
        super().require_valid()
        if not 0 <= int(self.margin) <= WIDEST:
            raise ValueError(f"its 'margin' is {int(self.margin)}")

    def forward(self, mask: Tensor) -> Tensor:
        """The mask, grown by the margin.

        Args:
            mask: ``(B, *spatial)``, as in `fit`.

        Returns:
            bool, the same shape.

        Raises:
            SeguqError: before a fit, or for what is no mask.
        """
        self.require_fitted()
        return dilate(_mask(mask), int(self.margin))


def _mask(given: Tensor) -> Tensor:
    """A predicted mask as bool."""
    require_dims("a predicted mask", given, "(B, *spatial)", at_least=2)
    if given.dtype == torch.bool:
        return given
    if given.is_floating_point() and given.numel() and not bool(((given >= 0) & (given <= 1)).all()):
        raise SeguqError("a predicted mask of probabilities holds NaN, or values that are not between 0 and 1")
    if not given.is_floating_point():
        require_target_range(given, 2, None, name="a predicted mask")
    return given > 0.5 if given.is_floating_point() else given == 1
