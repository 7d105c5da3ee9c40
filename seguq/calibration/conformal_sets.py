"""Sets of classes for each pixel, from one threshold on probabilities that is fitted to keep a risk."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from seguq.calibration.conformal import Conformal
from seguq.core.checks import require_choice, require_dims, require_target_range, require_target_shape
from seguq.core.errors import SeguqError
from seguq.functional.conformal import PROBABILITY_BINS, bin_edge, class_sets, probability_bins
from seguq.functional.logits import TASKS, Task, class_target
from seguq.metrics.pieces import of_true_class, require_probs, sums_in_pieces

LARGEST = PROBABILITY_BINS - 1


class ConformalSets(Conformal):
    """Every class with a probability of at least 1 - lambda, lambda being fitted.

    - ``task="multiclass"``: the most probable class (of equals each) is in the set whatever lambda is, where larger
      sets are the safer ones.
    - ``task="binary"``: the foreground alone, from ``(B, 1, *spatial)``, or ``(B, 2, *spatial)`` with the foreground
      in channel 1; the set is its mask, ``(B, 1, *spatial)``. For sets of background and foreground both, take two
      classes as "multiclass".
    - ``task="multilabel"``: the labels of a pixel, each by its own probability.

    Thresholds are those 4,065 numbers between 0 and 1 with at most five binary digits behind the leading one (next to
    each other within 1/32); of these the safe neighbor is taken. Probabilities are compared as float32.

    Attributes:
        threshold: 1 - lambda, a float32; this is what is kept, as next to 1 lambda has no digits left.
    """

    threshold: Tensor
    grows: bool = True
    """Whether larger sets are the safer ones."""

    def __init__(self, alpha: float, task: Task, ignore_index: int) -> None:
        super().__init__(alpha, ignore_index)
        require_choice("task", task, TASKS)
        self.task = task
        self.register_buffer("threshold", torch.tensor(float("nan")))

    @property
    def lambda_hat(self) -> float:
        """The lambda that was fitted, 1 - `threshold`; NaN before a fit."""
        return 1 - float(self.threshold)

    def learned(self) -> dict[str, float]:
        return {"lambda_hat": self.lambda_hat, "threshold": float(self.threshold)}

    def require_valid(self) -> None:
        super().require_valid()
        if not 0 <= float(self.threshold) <= bin_edge(PROBABILITY_BINS):
            raise ValueError(f"its 'threshold' is {float(self.threshold)}")

    # ---- what is given ----

    def _layers(self, probs: Tensor) -> Tensor:
        """Probabilities by which sets are made: ``(B, C, *spatial)``, C = 1 for binary."""
        require_dims("probs", probs, "(B, C, *spatial)", at_least=2)
        if not probs.is_floating_point():
            raise SeguqError(f"probs must be floating point, but have dtype {probs.dtype}")
        channels = probs.shape[1]
        if self.task == "binary":
            if channels not in (1, 2):
                raise SeguqError(f"task='binary' needs 1 or 2 channels, but probs have shape {tuple(probs.shape)}")
            return probs[:, -1:]
        if channels < (2 if self.task == "multiclass" else 1):
            raise SeguqError(
                f"probs of shape {tuple(probs.shape)} have {channels} channels: use task='binary' for a model of one"
            )
        return probs

    def checked(self, probs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities and targets to fit on, checked.

        Returns:
            For multiclass probabilities ``(B, C, *spatial)`` and class indices ``(B, *spatial)``. Otherwise those of
            the one question whether it is the foreground or label, ``(B, 1, *rest)`` and ``(B, *rest)`` of 0, 1 and
            ``ignore_index``, where for multilabel the labels come first in the rest.
        """
        layers = self._layers(probs)
        target = class_target(target, probs, self.task)
        layers = layers.unsqueeze(1) if self.task == "multilabel" else layers
        require_target_shape(layers, target, scores_name="probs")
        require_target_range(target, layers.shape[1] if self.task == "multiclass" else 2, self.ignore_index)
        if target.ndim == 1:  # whole images have a class: each is one pixel
            layers, target = layers[..., None], target[..., None]
        require_probs(layers, target, self.ignore_index)
        return layers, target

    def measure(self, prediction: Tensor, target: Tensor) -> Tensor:
        return self.measure_of(*self.checked(prediction, target))

    @abstractmethod
    def measure_of(self, probs: Tensor, target: Tensor) -> Tensor:
        """`measure` of what `checked` gives."""

    # ---- sets ----

    def forward(self, probs: Tensor) -> Tensor:
        """The set of each pixel.

        Args:
            probs: ``(B, C, *spatial)``, made as those it was fitted on: the same estimator, calibrator and precision.

        Returns:
            bool, the same shape (for binary ``(B, 1, *spatial)``): which classes are in it.

        Raises:
            SeguqError: before a fit, for NaN, for another number of classes.
        """
        self.require_fitted()
        layers = self._layers(probs)
        if probs.shape[1] != int(self.channels):
            raise SeguqError(f"probs have {probs.shape[1]} classes, but the sets were fitted for {int(self.channels)}")
        some = layers.flatten(1).unsqueeze(1)
        require_probs(some, torch.zeros_like(some[:, 0], dtype=torch.uint8), 255)
        return self.sets_at(layers, self.threshold)

    def sets_at(self, layers: Tensor, threshold: Tensor | float) -> Tensor:
        """The sets at any threshold."""
        return class_sets(layers, threshold, top=self.grows and self.task == "multiclass")

    def size(self, probs: Tensor) -> Tensor:
        """How many classes are in the set of each pixel: the map to show.

        Args:
            probs: as in `forward`.

        Returns:
            int64, ``(B, *spatial)``.

        Example:
            >>> import torch
            >>> from seguq import PredictionSets
            >>> from seguq.export import Scale, heatmap
            >>> probs = torch.tensor([[0.7, 0.5, 0.4], [0.2, 0.5, 0.3], [0.1, 0.0, 0.3]]).expand(20, 3, 3)
            >>> sets = PredictionSets(0.1).fit([(probs, torch.tensor([[0, 1, 2]]).expand(20, 3))])
            >>> sizes = sets.size(probs[:1].unsqueeze(2))
            >>> sizes
            tensor([[[1, 2, 3]]])
            >>> picture = heatmap(sizes[0].numpy(), Scale(1, 3), "classes in the set")  # (H', W', 3) uint8
        """
        return self.forward(probs).sum(1)


def miss_levels(probs: Tensor, target: Tensor, task: Task, ignore_index: int) -> Tensor:
    """From which level on the class of each labeled pixel (for labels: each label that is there) is in the set.

    Args:
        probs: ``(B, C, *spatial)``, checked.
        target: ``(B, *spatial)``, checked.
        task: for multiclass the largest probability is in the set at level 0.
        ignore_index: value of the target that is left out.

    Returns:
        ``(B, levels)`` float64: number of pixels by level; at level k sets are of a threshold of ``bin_edge(LARGEST -
        k)``, so that at the last all classes are in them.
    """

    def count(scores: Tensor, labels: Tensor) -> Tensor:
        counted = labels != ignore_index if task == "multiclass" else labels == 1
        right = labels.masked_fill(~counted, 0) if task == "multiclass" else torch.zeros_like(labels)
        scores = scores.float().clamp(0, 1)  # as the sets are made
        true = of_true_class(scores, right)
        levels = LARGEST - probability_bins(true.masked_fill(~counted, 0))
        if task == "multiclass":
            levels = levels.masked_fill(true >= scores.amax(1), 0)
        return _histogram(levels, counted, PROBABILITY_BINS)

    return sums_in_pieces(probs, target, PROBABILITY_BINS, count)


def false_positive_levels(probs: Tensor, target: Tensor, task: Task, ignore_index: int) -> Tensor:
    """From which level on each class that a labeled pixel is not (of labels: each that is not there) is out of its set.

    Args:
        probs: ``(B, C, *spatial)``, checked.
        target: ``(B, *spatial)``, checked.
        task: what the classes are.
        ignore_index: value of the target that is left out.

    Returns:
        ``(B, levels)`` float64: number of pairs of pixel and class by level; at level k sets are of a threshold of
        ``bin_edge(k)``, so that at the last nothing is in them.
    """

    def count(scores: Tensor, labels: Tensor) -> Tensor:
        if task == "multiclass":
            classes = torch.arange(scores.shape[1], device=labels.device)[:, None]
            counted = (labels != ignore_index)[:, None] & (labels[:, None] != classes)
        else:
            counted = (labels == 0)[:, None]
        levels = probability_bins(scores.float().masked_fill(~counted, 0)) + 1
        return _histogram(levels.flatten(1), counted.flatten(1), PROBABILITY_BINS + 1)

    return sums_in_pieces(probs, target, PROBABILITY_BINS + 1, count)


def _histogram(levels: Tensor, counted: Tensor, width: int) -> Tensor:
    """How often each level is met in each row of those that count, ``(b, width)``."""
    rows = torch.arange(len(levels), device=levels.device)[:, None] * width
    return torch.bincount((levels + rows)[counted], minlength=len(levels) * width).view(-1, width).double()


def share_wrong(counts: Tensor) -> Tensor:
    """The share that is wrong still at each level, of counts by the level from which on they are right.

    Args:
        counts: ``(units, levels)`` float64.

    Returns:
        The same shape; NaN where there is nothing.
    """
    total = counts.sum(1, keepdim=True)
    return (total - counts.cumsum(1)) / total


def too_few_right(counts: Tensor, coverage: float) -> Tensor:
    """1 where the share that is right is below ``coverage``, else 0, as `share_wrong`."""
    share = counts.cumsum(1) / counts.sum(1, keepdim=True)
    return (share < coverage).double().masked_fill(share.isnan(), float("nan"))
