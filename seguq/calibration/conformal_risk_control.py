"""Conformal risk control: sets of classes whose expected loss on a new image is at most alpha."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from seguq.calibration.conformal_sets import (
    LARGEST,
    ConformalSets,
    false_positive_levels,
    miss_levels,
    share_wrong,
)
from seguq.core.errors import SeguqError, UsageError
from seguq.functional.conformal import bin_edge, probability_bins
from seguq.functional.logits import Task

RiskFunction = Callable[[Tensor, Tensor], Tensor]

_STEP = 4  # of the bins of probabilities: thresholds with three binary digits behind the leading one
_OWN_BINS = [0, *range(int(probability_bins(torch.tensor(2.0**-16))), LARGEST + 1, _STEP)]
_OWN_LEVELS = [bin_edge(number) for number in reversed(_OWN_BINS)]


class ConformalRiskControl(ConformalSets):
    r"""Sets of classes whose expected loss on a new image is at most ``alpha``.

    .. math:: \hat\lambda = \inf\{\lambda : \tfrac{n}{n + 1} R_n(\lambda) + \tfrac{1}{n + 1} \le \alpha\}

    with the mean R_n of the losses of n exchangeable images (or groups). What is promised is an expectation over the
    images it is fitted on and the new one: of many new images the mean loss, not the loss of each, of each class or of
    each pixel. The loss of an image is

    - ``risk="miss"``: the share of its labeled pixels whose class is not in the set; for binary the share of the
      foreground that the mask misses, for multilabel the share of its labels that are missed (each label of each pixel
      counted once). Sets grow with lambda, from the most probable class (nothing, where it is labels) to all classes.
    - ``risk="false_positive"``: of all pairs of a labeled pixel and a class that it is not, the share that is in the
      sets; for binary the share of the background that is in the mask, for multilabel the same of labels that are not
      there. With C classes it is the mean number of wrong classes in a set, divided by C - 1. Sets are the larger the
      better here, and lambda is the largest that keeps the risk; where no class is sure enough, a set is empty.
    - a function of one's own, ``risk(sets, target) -> (B,)``: of sets (bool, as the object gives them) and class
      indices ``(B, *spatial)`` (multilabel: ``(B, L, *spatial)``), ``ignore_index`` among them, to a loss in [0, 1]
      that does not rise as sets grow, and is at most alpha where they hold all classes. NaN says that an image has no
      such loss. Of a group it is the mean over its images. It is asked at 130 thresholds, from 1 to 1/65536 and 0.

    Images without such pixels (no labeled pixel; for binary no foreground, or no background) have no loss: they are
    left out, and the promise is about images that have one. It needs at least 1 / alpha - 1 images or groups.

    Args:
        risk: "miss", "false_positive" or a function.
        alpha: the risk that is kept, between 0 and 1.
        task: what probabilities are, as `ConformalSets` says.
        ignore_index: value of the target that is left out.

    References:
        Angelopoulos et al., Conformal Risk Control, 2022; Mossina et al., Conformal Semantic Image Segmentation, 2024.

    Example:
        >>> import torch
        >>> from seguq import ConformalRiskControl
        >>> _ = torch.manual_seed(0)
        >>> probs = torch.randn(40, 3, 16, 16).mul(2).softmax(1)
        >>> target = (probs.cumsum(1) < torch.rand(40, 1, 16, 16)).sum(1)
        >>> sets = ConformalRiskControl("miss", alpha=0.1).fit([(probs[:39], target[:39])])
        >>> sets(probs[39:]).shape, sets.size(probs[39:]).shape
        (torch.Size([1, 3, 16, 16]), torch.Size([1, 16, 16]))
        >>> sets
        ConformalRiskControl() [lambda_hat=0.8242, threshold=0.1758, empirical_risk=0.07622, images=39, groups=39]
    """

    name: ClassVar[str] = "conformal_risk_control"

    def __init__(
        self,
        risk: str | RiskFunction = "miss",
        alpha: float = 0.1,
        task: Task = "multiclass",
        ignore_index: int = 255,
    ) -> None:
        super().__init__(alpha, task, ignore_index)
        known = risk in ("miss", "false_positive") if isinstance(risk, str) else callable(risk)
        if not known and not _is_import_path(risk):
            raise UsageError(f"risk must be 'miss', 'false_positive' or a function of sets and target, but is {risk!r}")
        self.risk = risk
        self.grows = risk != "false_positive"

    def plain_arguments(self) -> dict[str, Any]:
        """Arguments as plain values; of a function of one's own its name, as it is asked for in a fit alone."""
        found = self.arguments()
        if not isinstance(self.risk, str):
            named = self.risk if hasattr(self.risk, "__qualname__") else type(self.risk)
            found["risk"] = f"{named.__module__}.{named.__qualname__}"
        return found

    @property
    def counts_what(self) -> str:
        if not isinstance(self.risk, str):
            return "a loss"
        if self.task == "multiclass":
            return "a labeled pixel"
        what = "of the foreground" if self.task == "binary" else "with a label"
        other = "of the background" if self.task == "binary" else "without a label"
        return f"a pixel {what if self.risk == 'miss' else other}"

    def promise(self) -> str:
        what = {
            ("miss", "multiclass"): "the share of its pixels whose class is not in the set",
            ("miss", "binary"): "the share of its foreground that is not in the mask",
            ("miss", "multilabel"): "the share of its labels that are not in the sets",
            ("false_positive", "multiclass"): "the share of the classes that its pixels are not which are in the sets",
            ("false_positive", "binary"): "the share of its background that is in the mask",
            ("false_positive", "multilabel"): "the share of the labels that it has not which are in the sets",
        }
        loss = what.get((str(self.risk), self.task), f"the loss {self.plain_arguments()['risk']}")
        return f"for a new image, {loss} is at most {self.alpha} in expectation"

    def measure_of(self, probs: Tensor, target: Tensor) -> Tensor:
        if self.risk == "miss":
            return miss_levels(probs, target, self.task, self.ignore_index)
        if self.risk == "false_positive":
            return false_positive_levels(probs, target, self.task, self.ignore_index)
        return self._own(probs, target)

    def losses(self, sums: Tensor) -> Tensor:
        return share_wrong(sums) if isinstance(self.risk, str) else sums[:, :-1] / sums[:, -1:]

    def set_level(self, level: int) -> None:
        if not isinstance(self.risk, str):
            threshold = _OWN_LEVELS[level]
        else:
            threshold = bin_edge(LARGEST - level if self.risk == "miss" else level)
        self.threshold = torch.full_like(self.threshold, threshold)
        if threshold == 0 and self.grows:
            _warn(f"all classes are in the set of every pixel, as no smaller sets keep a risk of {self.alpha}")
        elif threshold > 1:
            _warn(f"all sets are empty, as no larger ones keep a risk of {self.alpha}")

    # ---- a risk of one's own ----

    def _own(self, probs: Tensor, target: Tensor) -> Tensor:
        """The loss of each image at each level and whether it has one, ``(B, levels + 1)`` float64."""
        if isinstance(self.risk, str):
            raise UsageError(f"the risk {self.risk} is known by its name alone: to fit anew, pass the function itself")
        probs = probs.squeeze(1) if self.task == "multilabel" else probs
        probs = probs.float().nan_to_num(0)  # of ignored pixels
        losses = torch.stack([self._loss(self.sets_at(probs, level), target) for level in _OWN_LEVELS], 1)
        without = losses.isnan()
        if bool((without.any(1) & ~without.all(1)).any()):
            raise SeguqError("the risk of an image is NaN for some sets but not for others: NaN says that it has none")
        if bool((losses.diff(dim=1) > 1e-6).any()):
            raise SeguqError("the risk of an image rises as sets grow: a risk that is kept must fall, or stay")
        if bool((losses[:, -1] > self.alpha).any()):
            raise SeguqError(
                f"the risk of an image is {float(losses[:, -1].nan_to_num(0).max()):.4g} where sets hold all classes, "
                f"so that none keeps alpha={self.alpha}"
            )
        counted = ~without.any(1, keepdim=True)
        return torch.cat((losses.nan_to_num(0), counted.double()), 1)

    def _loss(self, sets: Tensor, target: Tensor) -> Tensor:
        assert callable(self.risk)
        found = self.risk(sets, target)
        if not isinstance(found, Tensor) or found.shape != (len(sets),):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise SeguqError(
                f"the risk must give a loss for each of {len(sets)} images, a tensor (B,), but gives {shape}"
            )
        found = found.detach().double()
        if bool(((found < 0) | (found > 1)).any()):
            raise SeguqError("the risk of an image must lie between 0 and 1")
        return found


def _is_import_path(risk: Any) -> bool:
    """Whether it is what a checkpoint holds in the place of a function."""
    return isinstance(risk, str) and "." in risk and all(part.strip("<>").isidentifier() for part in risk.split("."))


def _warn(what: str) -> None:
    warnings.warn(f"{what}: more images, a larger alpha or a better model make them informative", stacklevel=4)
