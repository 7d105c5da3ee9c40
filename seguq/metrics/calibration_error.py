"""How far probabilities are from the frequencies that they announce."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from seguq.core.checks import require_choice, require_count, require_target_range
from seguq.core.errors import SeguqError
from seguq.functional.borders import near_border
from seguq.functional.calibration import predicted_rightly, top1_calibration_bins
from seguq.functional.calibration_interval import (
    Weighting,
    calibration_error_difference_interval,
    calibration_error_interval,
    debiased_calibration_error,
)
from seguq.functional.calibration_kinds import (
    FINE_BINS,
    NORMS,
    Norm,
    bin_weights,
    calibration_error,
    classwise_calibration_bins,
    equal_mass,
    fine_bin_numbers,
    scatter_bins,
)
from seguq.functional.logits import TASKS, Task
from seguq.metrics.bootstrap import BootstrapMetric, Interval, axes_for, band, split_last
from seguq.metrics.pieces import checked_probs, parts_of, require_probs, sums_in_pieces

Kind = Literal["top1", "classwise", "adaptive"]
Average = Literal["pooled", "image", "nonempty"]
Border = Literal["predicted", "true"]

_NO_CLASS = -1
_ORDERS = {"l1": 1.0, "l2": 2.0, "max": torch.inf}


class CalibrationError(BootstrapMetric):
    r"""Gaps between confidence and accuracy, in bins of the confidence.

    .. math:: \sum_b \frac{n_b}{n} |acc_b - conf_b|

    As it stands it is the expected calibration error (ECE) of the predicted class. Names of the others differ between
    papers, so they are spelled out here:

    - ``kind="top1"``: the confidence of the predicted class, in bins of equal width. ``"classwise"``: of each class the
      probability against whether it is that class, the mean over the classes (static calibration error; of a binary
      task the foreground's alone, as torchmetrics has it). ``"adaptive"``: as ``"top1"``, in bins of equally many
      pixels (adaptive calibration error of the predicted class), made of 3,074 finer ones, of which none spans more
      than 1/128 of what a confidence lacks to 1.
    - ``norm="l1"``: the mean gap; ``"l2"``: the root of the mean square, less the bias that a finite number of pixels
      brings; ``"max"``: the largest gap (maximum calibration error).
    - ``average="pooled"``: over the pixels of all images; ``"image"``: of each image by itself, then the mean over
      images; ``"nonempty"``: over all images, each bin with a pixel counting the same (average calibration error): this
      one sees rare classes and bins, to which pooled values of large volumes are blind.
    - ``near_border``: of pixels within that many of a border between *predicted* classes alone; with ``border="true"``
      of a border between true ones, as published. Pixels near a true border are chosen by knowing the truth: even a
      perfectly calibrated model is over-confident there, so that this figure cannot fall to 0. Ignored pixels make no
      border.

    Over few images the value is biased upward: absolute gaps of a calibrated model do not average out. Where images
    scatter by .07 in accuracy, twenty show an error of .02 when there is none, and two hundred still one of .007. The
    interval is free of that bias, and `compute_debiased` of most of it; both need ``group``. With ``average="image"``
    the bias of one image is part of what is measured, and the interval is that of the mean.

    `plot` draws the reliability diagram: accuracy against confidence, with the interval of the accuracy in each bin,
    and below it the share of the pixels in each. Bins with fewer than one pixel in 10,000 are left out, classes are
    taken together. With ``average="image"`` it draws the value alone.

    Args:
        num_classes: C; of a multilabel task the number of labels; not looked at in a binary one.
        n_bins: number of bins.
        kind: what is binned, and how.
        ignore_index: value of the target that is left out.
        norm: what is made of the gaps.
        average: what counts the same.
        near_border: number of pixels, or None for all.
        border: between which classes.
        task: ``"multiclass"``, ``"binary"`` or ``"multilabel"``.
        **kwargs: ``n_boot``, ``seed``, and those of `torchmetrics.Metric`.

    References:
        Guo et al., On Calibration of Modern Neural Networks, 2017, eq. 3; Nixon et al., Measuring Calibration in Deep
        Learning, 2019 (classwise, adaptive); Kumar et al., Verified Uncertainty Calibration, 2019 (l2); Barfoot et al.,
        Average Calibration Error, 2024 (nonempty).

    Example:
        >>> metric = CalibrationError(num_classes=2)
        >>> metric.update(torch.tensor([[0.9, 0.1]] * 4), torch.tensor([0, 0, 0, 1]))      # 90 % sure, right 3 in 4
        >>> metric.compute()
        tensor(0.1500)
    """

    higher_is_better = False

    def __init__(
        self,
        num_classes: int,
        n_bins: int = 15,
        kind: Kind = "top1",
        ignore_index: int = 255,
        *,
        norm: Norm = "l1",
        average: Average = "pooled",
        near_border: int | None = None,
        border: Border = "predicted",
        task: Task = "multiclass",
        **kwargs: Any,
    ) -> None:
        require_choice("kind", kind, ("top1", "classwise", "adaptive"))
        require_choice("norm", norm, NORMS)
        require_choice("average", average, ("pooled", "image", "nonempty"))
        require_choice("border", border, ("predicted", "true"))
        require_choice("task", task, TASKS)
        require_count("n_bins", n_bins)
        if near_border is not None:
            require_count("near_border", near_border)
        require_count("num_classes", num_classes)
        if near_border is None and border != "predicted":
            raise SeguqError(f"border={border!r} needs near_border, the number of pixels from a border")
        self._rows = (1 if task == "binary" else num_classes) if kind == "classwise" else 1
        self._width = FINE_BINS if kind == "adaptive" else n_bins
        settings: dict[str, Any] = {"kind": kind, "near_border": near_border, "border": border, "task": task}
        if average == "image":  # of others the sums are bins, of which any norm can be made
            settings |= {"average": average, "norm": norm, "n_bins": n_bins}
        super().__init__(2 if average == "image" else self._size, ignore_index, settings=settings, **kwargs)
        self.num_classes, self.n_bins, self.kind, self.norm, self.average = num_classes, n_bins, kind, norm, average
        self.near_border, self.border, self.task = near_border, border, task

    @property
    def _size(self) -> int:
        return self._rows * 3 * self._width

    def update(self, probs: Tensor, target: Tensor, group: Sequence[str] | None = None) -> None:
        """Take in a batch.

        Args:
            probs: ``(B, C, *spatial)``; of a binary task the probability of the foreground, ``(B, *spatial)`` or
                ``(B, 1, *spatial)``; of a multilabel one that of each label, ``(B, L, *spatial)``.
            target: class indices ``(B, *spatial)``; of a multilabel task 0 and 1, ``(B, L, *spatial)``.
            group: one image id an item, for `compute_interval`.

        Raises:
            SeguqError: for shapes that do not go together, a target out of range, or what are no probabilities.
        """
        if self.task == "multiclass":
            probs, target = checked_probs(probs, target, self.num_classes, self.ignore_index)
        else:
            probs, target = self._foreground(probs, target)
        if self.near_border is not None:
            target = self._near_border(probs, target, self.near_border)

        def sums_of(part: slice) -> Tensor:
            if self.average != "image":
                return self._bins_of_images(probs[part], target[part])
            values = self._errors_of_images(probs[part], target[part])
            counted = ~values.isnan()
            return torch.stack((counted.double(), values.where(counted, 0)), 1)

        self._add(target, group, sums_of)

    def _foreground(self, probs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Check what a task of foreground and background is given; probabilities as ``(B, 1, *spatial)``.

        Several labels come first in ``spatial``.
        """
        if self.task == "binary" and probs.ndim == target.ndim + 1 and probs.shape[1] == 1:
            probs = probs.squeeze(1)
        if probs.shape != target.shape or not probs.is_floating_point():
            raise SeguqError(
                f"probs of shape {tuple(probs.shape)} ({probs.dtype}) do not go with target of shape "
                f"{tuple(target.shape)}: a {self.task} task has one probability for each value of the target"
            )
        if self.task == "multilabel" and (target.ndim < 2 or target.shape[1] != self.num_classes):
            raise SeguqError(
                f"probs must be (B, L, *spatial) with {self.num_classes} labels, but have shape {tuple(probs.shape)}"
            )
        require_target_range(target, 2, self.ignore_index)
        if target.ndim == 1:  # one image
            probs, target = probs.unsqueeze(0), target.unsqueeze(0)
        probs = probs.unsqueeze(1)
        require_probs(probs, target, self.ignore_index)
        return probs, target

    def _near_border(self, probs: Tensor, target: Tensor, distance: int) -> Tensor:
        """The target, in which pixels that are not near a border are ignored."""
        target = target.long()
        classes = target
        if self.border == "predicted":
            classes = probs.max(1).indices if self.task == "multiclass" else (probs.squeeze(1) > 0.5).long()
            classes = classes.masked_fill(target == self.ignore_index, _NO_CLASS)
        ignored = _NO_CLASS if self.border == "predicted" else self.ignore_index
        images = classes.flatten(0, 1) if self.task == "multilabel" else classes  # each label has borders of its own
        return target.where(near_border(images, distance, ignored).view_as(classes), self.ignore_index)

    def _errors_of_images(self, probs: Tensor, target: Tensor) -> Tensor:
        """The error of each image by itself, ``(B,)``; NaN where none of its pixels counts."""
        width = self._size * (self.n_bins if self.kind == "adaptive" else 1)
        parts = [self._bins_of_images(probs[part], target[part]) for part in parts_of(len(target), width)]
        return torch.cat([self._error(split_last(bins, self._rows, 3, self._width)) for bins in parts])

    def _bins_of_images(self, probs: Tensor, target: Tensor) -> Tensor:
        """The bins of each image, ``(B, rows * 3 * width)``."""
        if self.kind == "classwise" and self.task == "multilabel":
            size = 3 * self._width
            labels = range(self.num_classes)
            return torch.cat([sums_in_pieces(probs[:, :, i], target[:, i], size, self._bins_of) for i in labels], 1)
        return sums_in_pieces(probs, target, self._size, self._bins_of)

    def _bins_of(self, probs: Tensor, target: Tensor) -> Tensor:
        """The bins of each image of a piece, of all classes or of one label."""
        if self.task != "multiclass" and self.kind != "classwise":
            probs = torch.cat((1 - probs, probs), 1)
        if self.kind == "top1":
            return top1_calibration_bins(probs, target, self.n_bins, self.ignore_index).flatten(1)
        labeled = target != self.ignore_index
        if self.kind == "adaptive":
            confidence = probs.amax(1).masked_fill(~labeled, 0)
            right = predicted_rightly(probs, target, labeled, confidence)
            rows = [part.unsqueeze(1) for part in (fine_bin_numbers(confidence), labeled, confidence, right)]
            return scatter_bins(rows[0], rows[1], rows[2], rows[3], FINE_BINS).flatten(1)
        classes = torch.ones(1, dtype=torch.int64) if self.task != "multiclass" else torch.arange(self.num_classes)
        right = target.unsqueeze(1) == classes.to(target.device).view(1, -1, 1)
        return classwise_calibration_bins(probs, right, labeled.unsqueeze(1).expand_as(right), self.n_bins).flatten(1)

    def _coarse(self, bins: Tensor) -> Tensor:
        """Bins ``(..., K, 3, width)`` as ``(..., K, 3, n_bins)``."""
        if self.kind != "adaptive":
            return bins
        # an image that is judged by itself has edges of its own
        reference = bins[..., 0, :] if self.average == "image" else self.sums[:FINE_BINS]
        return equal_mass(bins, reference, self.n_bins)

    def _error(self, bins: Tensor) -> Tensor:
        return calibration_error(self._coarse(bins), self.norm, self.average == "nonempty")

    def compute_interval(self, level: float = 0.95) -> Interval:
        """The interval of the calibration error over images, free of the value's upward bias.

        It is that of `seguq.functional.calibration_error_interval`: of errors that explain the value, with noise as
        the bootstrap over images shows it. It begins at 0 where a calibrated model may well show that value, and never
        leaves the value out. 95 % intervals hold the true error (in these bins, over all images there might be) in 92
        to 98 % of simulated experiments with 20 to 200 images whose accuracy scatters as a whole, and in more where
        the error is too small to tell from none. They say nothing of what the bins hide.

        Args:
            level: share of experiments in which the interval holds the true error.

        Returns:
            (low, high) of the value, from 0 to 1.

        Raises:
            SeguqError: if images were passed without ``group=``, or ``level`` is out of range.
        """
        out = super().compute_interval(level)
        assert isinstance(out, tuple)
        return out

    def compute_debiased(self) -> Tensor:
        """The true error at which the value would be the median of what is seen: never above it, often 0.

        Half of the bias and more is gone; what is left comes of a calibration error having no negative values. Give
        it beside the value, not in its place, where others compare with the plain one.

        Raises:
            SeguqError: if images were passed without ``group=``, or with ``average="image"``.
        """
        if self.average == "image":
            raise SeguqError('with average="image" the bias of one image is part of the value, and is not taken out')
        with self._all_images():
            return debiased_calibration_error(*self._side_by_side(), self._weighting()).float()

    def _value(self, sums: Tensor) -> Tensor:
        if self.average == "image":
            return sums[..., 1] / sums[..., 0]
        return self._error(split_last(sums, self._rows, 3, self._width))

    def _interval(self, level: float) -> Interval | dict[str, Interval]:
        if self.average == "image":
            return super()._interval(level)
        return calibration_error_interval(*self._side_by_side(), level, self._weighting())

    def _difference_interval(self, other: BootstrapMetric, level: float) -> Interval | dict[str, Interval]:
        assert isinstance(other, CalibrationError)
        names = ("n_bins", "norm", "num_classes", "average")
        differing = [name for name in names if getattr(self, name) != getattr(other, name)]
        if differing:
            name = differing[0]
            raise SeguqError(
                f"a difference needs the same bins, but {name} is {getattr(self, name)!r} here and "
                f"{getattr(other, name)!r} there"
            )
        if self.average == "image":
            return super()._difference_interval(other, level)
        weightings = (self._weighting(), other._weighting())
        return calibration_error_difference_interval(self._side_by_side(), other._side_by_side(), level, weightings)

    def _side_by_side(self) -> tuple[Tensor, Tensor]:
        """The bins of all classes, ``(3, K * n_bins)``, and those of the replicates, ``(R, 3, K * n_bins)``."""
        drawn = self._coarse(split_last(self.replicates, self._rows, 3, self._width))
        return self._class_bins().transpose(0, 1).flatten(1), drawn.transpose(1, 2).flatten(2)

    def _weighting(self) -> Weighting:
        """What gaps count, so that their norm is the value (for l2 but for what is taken off it)."""
        bins, order = self._class_bins(), _ORDERS[self.norm]
        share = bins[:, 0] / bins[:, 0].sum()
        weights = bin_weights(bins, self.average == "nonempty") ** (1 / order)
        return Weighting(torch.where(share > 0, weights / share, 0).flatten(), order)

    def _class_bins(self) -> Tensor:
        return self._coarse(split_last(self.sums, self._rows, 3, self._width))

    @property
    def bins(self) -> Tensor:
        """``(3, n_bins)`` float64: pixels, sum of confidences, and number right, in each bin, over all classes.

        Raises:
            SeguqError: with ``average="image"``, where none are kept.
        """
        if self.average == "image":
            raise SeguqError('with average="image" no bins are kept: give average="pooled" for a diagram')
        return self._class_bins().sum(0)

    def _picture(self, val: Any, ax: Any, label: str | None, color: str | None) -> tuple[Any, Any]:
        if self.average == "image":
            return super()._picture(val, ax, label, color)
        figure, ax = axes_for(ax)
        count, confidence, correct = self.bins.cpu().numpy()
        shown = count > 1e-4 * count.sum()
        ax.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", zorder=1)
        low, high = self._accuracy_interval()
        x, y = confidence[shown] / count[shown], correct[shown] / count[shown]
        text = f"{self._short_name} {float(self.compute()):.3f}"  # type: ignore[arg-type]
        name = f"{label}: {text}" if label else text
        (line,) = ax.plot(x, y, marker="o", markersize=4, label=name, color=color, zorder=3)
        if low is not None and high is not None:
            ax.fill_between(x, low[shown], high[shown], color=line.get_color(), alpha=0.18, linewidth=0)
        heights = _HISTOGRAM * count[shown] / count.max()
        ax.vlines(x, 0, heights, color=line.get_color(), alpha=0.35, linewidth=4, zorder=0)
        ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy", aspect="equal")
        ax.legend(loc="upper left", frameon=False)
        return figure, ax

    @property
    def _short_name(self) -> str:
        name = {"l1": "ECE", "l2": "l2 calibration error", "max": "MCE"}[self.norm]
        return name if self.kind == "top1" else f"{self.kind} {name}"

    def _accuracy_interval(self) -> tuple[Any, Any]:
        """2.5 and 97.5 percentiles of the accuracy in each bin, over the replicates, where there are ids."""
        if not self._has_replicates:
            return None, None
        count, _, correct = self._coarse(split_last(self.replicates, self._rows, 3, self._width)).sum(1).unbind(1)
        return band(correct / count)


_HISTOGRAM = 0.2  # share of the height of a diagram
