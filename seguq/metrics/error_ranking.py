"""How uncertainty ranks wrong pixels and right ones: one histogram of both, and the values that it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from seguq.core.checks import flat_images
from seguq.core.errors import SeguqError
from seguq.functional.ranking import (
    area_under_generalized_risk_coverage,
    area_under_risk_coverage,
    area_under_roc,
    area_under_sparsification_error,
    average_precision,
    fpr_at_tpr,
    order_bins,
)
from seguq.metrics.bootstrap import BootstrapMetric, Interval, split_last
from seguq.metrics.pieces import parts_of, pieces_of

Statistic = Callable[..., Tensor]
"""From the counts of right and wrong pixels by score, and (``mixed=None``) which bins hold scores that differ."""


def _of_counts(statistic: Callable[[Tensor, Tensor], Tensor]) -> Statistic:
    """One for which it is the same whether the scores of a bin are equal or in an order that was not kept."""
    return lambda right, wrong, mixed=None: statistic(right, wrong)


class ErrorRanking(BootstrapMetric):
    """Every value of how uncertainty ranks pixels by error, from one histogram of the right and the wrong ones.

    It gives what `ErrorDetection` (``auroc``, ``aupr``, ``fpr95``) and `RiskCoverage` (``aurc``, ``augrc``, ``ause``)
    give, in half the memory and time of the two.

    Scores are binned by the order of float32 (`seguq.functional.order_bins`), 2^18 bins of which none spans more than
    1/512 of its value. Equal scores tie, as in scikit-learn. Scores that differ but share a bin are taken in a random
    order: the value is the expectation over those. Where scores spread over a factor of two or more (probabilities,
    entropies, energies) it is within 2e-4 of that of the raw scores (``fpr95``: 1e-3). Scores that are crowded, such as
    within a hundredth of 1, share few bins: `compute_bounds` gives the bounds that hold for any scores.

    The replicates of the bootstrap keep 2^12 bins (1/8 of the value); their interval is shifted by the difference that
    the coarser bins make to the value itself.

    Args:
        ignore_index: value of ``error`` that is left out.
        **kwargs: ``n_boot``, ``seed``, and those of `torchmetrics.Metric`.

    Example:
        >>> metric = ErrorRanking()
        >>> metric.update(torch.tensor([[0.1, 0.2, 0.8, 0.9]]), torch.tensor([[0, 0, 1, 0]]))
        >>> {name: round(float(value), 3) for name, value in metric.compute().items()}
        {'auroc': 0.667, 'aupr': 0.5, 'fpr95': 0.333, 'aurc': 0.146, 'augrc': 0.094, 'ause': 0.083}
    """

    higher_is_better: bool | None = None  # of some of the values more is better, of others less
    statistics: ClassVar[Mapping[str, Statistic]] = MappingProxyType(
        {
            "auroc": _of_counts(area_under_roc),
            "aupr": average_precision,
            "fpr95": lambda right, wrong, mixed=None: fpr_at_tpr(right, wrong, mixed=mixed),
            "aurc": _of_counts(area_under_risk_coverage),
            "augrc": _of_counts(area_under_generalized_risk_coverage),
            "ause": _of_counts(area_under_sparsification_error),
        }
    )
    target: ClassVar[tuple[str, str, str]] = ("error", "right", "wrong")
    """What is told apart, what 0 is, and what 1 is."""
    bits: ClassVar[int] = 18
    """Scores are told apart by so many leading bits."""
    boot_bits: ClassVar[int] = 12
    """Those of the replicates by so many."""
    histograms: int = 2
    """Of right pixels and of wrong ones; where classes are counted apart, of each class."""
    lowest: Tensor
    highest: Tensor

    def __init__(self, ignore_index: int = 255, **kwargs: Any) -> None:
        size, boot_size = self.histograms << self.bits, self.histograms << self.boot_bits
        super().__init__(size, ignore_index, boot_size=boot_size, **kwargs)
        # the least and the largest score in each bin tell whether its scores are equal
        self.add_state("lowest", torch.full((1 << self.bits,), torch.inf), dist_reduce_fx="min")
        self.add_state("highest", torch.full((1 << self.bits,), -torch.inf), dist_reduce_fx="max")

    def update(self, uncertainty: Tensor, error: Tensor, group: Sequence[str] | None = None) -> None:
        """Take in a batch.

        Args:
            uncertainty: ``(B, *spatial)``, larger is more uncertain; NaN is allowed where ``error`` is ignored. Flat
                ``(N,)`` is one image; ``(N, 1)`` are N images with a score each.
            error: ``(B, *spatial)`` of 0 (right), 1 (wrong) or ``ignore_index``.
            group: one image id an item, for `compute_interval`.

        Raises:
            SeguqError: for shapes that differ, other values in ``error``, or NaN in ``uncertainty`` where it counts.
        """
        self._require_shape(uncertainty, error)
        self._take_in(flat_images(uncertainty), flat_images(error), None, group)

    def _require_shape(self, uncertainty: Tensor, error: Tensor) -> None:
        if uncertainty.shape != error.shape:
            raise SeguqError(
                f"uncertainty of shape {tuple(uncertainty.shape)} does not go with {self.target[0]} of shape "
                f"{tuple(error.shape)}"
            )

    def _take_in(self, uncertainty: Tensor, error: Tensor, classes: Tensor | None, group: Sequence[str] | None) -> None:
        """Take in images ``(B, n)``, with the class of each pixel where classes are counted apart."""
        self._require_ids(len(error), group)
        self._check(uncertainty, error, classes)
        if group is None:
            self._count(uncertainty, error, classes)
            self.ungrouped = self.ungrouped + len(error)
            return
        boot_size = self.replicates.shape[1]
        for part in parts_of(len(error), boot_size):
            counts = self.sums.new_zeros(len(error[part]), boot_size)
            self._count(uncertainty[part], error[part], None if classes is None else classes[part], counts)
            self._draw(counts, group[part])

    def _check(self, uncertainty: Tensor, error: Tensor, classes: Tensor | None = None) -> None:
        """Raise for what cannot be ranked, before any of it is taken in."""
        for place in pieces_of(error):
            wrong, scores = self._errors(place, error, classes), uncertainty[place]
            if bool(((wrong != 0) & (wrong != 1) & (wrong != self.ignore_index)).any()):
                name, zero, one = self.target
                raise SeguqError(f"{name} must hold 0 ({zero}), 1 ({one}) or ignore_index={self.ignore_index}")
            # the largest of values with a NaN is NaN
            if bool(scores.amax().isnan()) and bool((scores.isnan() & (wrong != self.ignore_index)).any()):
                raise SeguqError("uncertainty holds NaN: a pixel without a value cannot be ranked")

    def _errors(self, place: tuple[slice, slice], error: Tensor, classes: Tensor | None) -> Tensor:
        """The errors of a piece; a pixel whose class is ignored is, too."""
        # of one type, since -1 of 8 bits compares as equal to an ignore_index of 255; floating ones stay
        wrong = error[place] if error.is_floating_point() else error[place].long()
        if classes is None:
            return wrong
        return wrong.masked_fill(classes[place].long() == self.ignore_index, self.ignore_index)

    def _count(
        self, uncertainty: Tensor, error: Tensor, classes: Tensor | None, of_images: Tensor | None = None
    ) -> None:
        """Take in scores ``(B, n)``, and count them in the replicates' bins of each image where these are given."""
        sums, lowest, highest = self._own("sums"), self._own("lowest"), self._own("highest")
        counted = sums[:0]
        for rows, columns in pieces_of(error):
            label, scores = self._errors((rows, columns), error, classes), uncertainty[rows, columns].float()
            ignored = label == self.ignore_index
            least = largest = scores
            if bool(ignored.any()):  # they count nothing, wherever they lie
                counted = (~ignored).flatten().double()
                scores = scores.masked_fill(ignored, 0)
                least, largest = scores.masked_fill(ignored, torch.inf), scores.masked_fill(ignored, -torch.inf)
            elif len(counted) != label.numel() or not bool(counted.all()):
                counted = torch.ones_like(scores, dtype=torch.float64).flatten()
            places = order_bins(scores, self.bits)
            lowest.scatter_reduce_(0, places.flatten(), least.flatten(), "amin")
            highest.scatter_reduce_(0, places.flatten(), largest.flatten(), "amax")
            index = (label == 1).long()
            if classes is not None:
                index.add_(classes[rows, columns].long().masked_fill(ignored, 0), alpha=2)
            index.bitwise_left_shift_(self.bits).add_(places)
            sums.scatter_add_(0, index.flatten(), counted)
            if of_images is not None:
                # the leading 12 bits of a pattern are the first of its leading 18
                coarse = index.bitwise_right_shift_(self.bits - self.boot_bits)
                if len(coarse) > 1:
                    coarse += torch.arange(len(coarse), device=coarse.device).unsqueeze(1) * of_images.shape[1]
                of_images[rows].view(-1).scatter_add_(0, coarse.flatten(), counted)

    def compute_bounds(self) -> dict[str, Interval]:
        """The least and the greatest value that any scores in these bins could have: that of the raw scores is between.

        They are met where in each bin of scores that differ all that is wrong scores above all that is right, and the
        other way around.
        """
        with self._synced():
            right, wrong, mixed = self._counts(self.sums)
        apart = mixed.repeat_interleave(2)
        best = self._split(right, wrong, mixed)
        worst = self._split(wrong, right, mixed)[::-1]
        out = {}
        for name, statistic in self.statistics.items():
            pair = torch.stack([statistic(*best, apart), statistic(*worst, apart)])
            out[name] = (pair.amin().float(), pair.amax().float())
        return out

    @staticmethod
    def _split(lower: Tensor, upper: Tensor, mixed: Tensor) -> tuple[Tensor, Tensor]:
        """Two counts in twice the bins: of each mixed one, ``upper`` scores above all of ``lower``."""
        nothing = torch.zeros_like(lower)
        apart = torch.stack((upper.where(~mixed, nothing), upper.where(mixed, nothing)), -1)
        return torch.stack((lower, nothing), -1).flatten(-2), apart.flatten(-2)

    def _boot_sums(self, sums: Tensor) -> Tensor:
        return split_last(sums, -1, 1 << (self.bits - self.boot_bits)).sum(-1)

    def _mixed(self, bins: int) -> Tensor:
        """Which of so many bins hold scores that differ."""
        lowest, highest = split_last(self.lowest, bins, -1).amin(-1), split_last(self.highest, bins, -1).amax(-1)
        return lowest < highest

    def _counts(self, sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Counts of the right and of the wrong pixels by score, each ``(..., n)``, and which bins are mixed.

        Bins that are empty in all are left out, which changes no value: scores from 1e-6 to 1 fill 4 % at most.
        """
        counts = self._right_and_wrong(sums)
        filled = counts.reshape(-1, counts.shape[-1]).sum(0) > 0
        filled[0] = True  # so that one bin is left where nothing was counted
        right, wrong = counts[..., filled].unbind(-2)
        return right, wrong, self._mixed(counts.shape[-1])[filled]

    def _right_and_wrong(self, sums: Tensor) -> Tensor:
        """Counts of the right and of the wrong pixels in each bin, ``(..., 2, n)``."""
        return split_last(sums, 2, -1)

    def _value(self, sums: Tensor) -> dict[str, Tensor]:
        counts = self._counts(sums)
        return {name: value(*counts) for name, value in self.statistics.items()}

    def _replicate_values(self) -> dict[str, Tensor]:
        fine, coarse = self._value(self.sums), self._value(self._boot_sums(self.sums))
        values = self._value(self.replicates)
        return {name: (values[name] + fine[name] - coarse[name]).clamp(0, 1) for name in values}
