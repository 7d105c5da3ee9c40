"""How often each class is right in each of 15 bins of its probability."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from seguq.calibration.one_vs_rest import OneVersusRest, bin_of


class HistogramBinning(OneVersusRest):
    r"""Replace each class probability by how often the class was there in its bin; then make all sum to 1.

    .. math::
        \theta_{cm} = \frac{\#\{i : p_{ic} \in B_m, y_i = c\} + \bar B_m}{\#\{i : p_{ic} \in B_m\} + 1}, \quad
        B_m = (\tfrac{m - 1}{15}, \tfrac{m}{15}]

    where :math:`\bar B_m` is the middle of a bin: each counts as one pixel more, so that none gives 0 or 1. Bins are of
    equal width: in a segmentation most classes are improbable at most pixels, and bins of equal mass would leave one
    for all that is not.

    **For comparison only.** It was measured worse than one temperature on an unseen video: all that is in one bin is
    made alike, which loses likelihood even where the model is calibrated. The predicted class of a pixel can change. A
    pixel that lies within rounding of a bin's edge may fall on either side of it.

    Args:
        num_classes: C.
        task: as in `seguq.functional.class_logits`.
        ignore_index: value of the target that is left out.

    Attributes:
        levels: theta ``(C, 15)``, a buffer.

    References:
        Zadrozny, Elkan, Obtaining calibrated probability estimates from decision trees and naive Bayesian classifiers,
        2001; Guo et al., On Calibration of Modern Neural Networks, 2017, section 4 (one-versus-rest).

    Example:
        >>> cal = HistogramBinning(num_classes=2)
        >>> cal(torch.tensor([[0.0, 2.0]])).exp()           # nothing was fitted yet: the middles of the bins
        tensor([[0.1000, 0.9000]])
    """

    name: ClassVar[str] = "histogram"
    piecewise_constant: ClassVar[bool] = True
    n_bins: ClassVar[int] = 15

    def position(self, log_probs: Tensor) -> Tensor:
        """By the probability."""
        return log_probs.exp() * self.n_bins

    def middles(self) -> Tensor:
        """1/30, 3/30, ..."""
        return (torch.arange(self.n_bins, dtype=torch.float64) + 0.5) / self.n_bins

    def levels_of(self, counts: Tensor, rates: Tensor) -> Tensor:
        """How often the class is the true one."""
        return rates

    def level_at(self, position: Tensor) -> Tensor:
        """That of the bin."""
        return self._looked_up(bin_of(position, self.n_bins)).to(position)
