"""What is gained by leaving the uncertain pixels to somebody else."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from seguq.functional.ranking import selective_risk
from seguq.functional.working_points import risk_coverage_points
from seguq.metrics.bootstrap import axes_for, band, split_last
from seguq.metrics.error_ranking import ErrorRanking
from seguq.metrics.working_point import WorkingPoint, bin_of, draw_risk_coverage, with_intervals


class RiskCoverage(ErrorRanking):
    """Error rate among the pixels that are accepted, the most certain first, over the share that is accepted.

    ``aurc`` is the area under that curve, ``augrc`` the area under the share of all pixels that are wrong and
    accepted, and ``ause`` the area between the curve and the best one of this error rate. Lower is better. ``aurc``
    and ``augrc`` fall with the error rate as well as with a better ranking; ``ause`` is 0 for a perfect ranking.

    The bins are those of `ErrorRanking`. Measured against the raw scores, with error rates from 3 to 40 %: where scores
    spread over a factor of two or more (probabilities, entropies, energies), a value is within 1e-5, and the bounds of
    an interval within 3 % of its width. Scores packed just below 1 share a few bins: within some hundredths of 1 one
    may be .002 too high, and the interval says nothing. `compute_bounds` gives the bounds that hold for any scores.

    `plot` draws that curve from a coverage of 1 % on (before that, a few pixels decide), the best one of the same error
    rate (dashed), and the interval of the risk.

    Args:
        ignore_index: value of ``error`` that is left out.
        **kwargs: ``n_boot``, ``seed``, and those of `torchmetrics.Metric`.

    References:
        Geifman, Uziel and El-Yaniv, Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers, 2019 (AURC);
        Traub et al., Overcoming Common Flaws in the Evaluation of Selective Classification Systems, 2024 (AUGRC);
        Ilg et al., Uncertainty Estimates and Multi-Hypotheses Networks for Optical Flow, 2018 (AUSE).

    Example:
        >>> metric = RiskCoverage()
        >>> metric.update(torch.tensor([[0.1, 0.2, 0.8, 0.9]]), torch.tensor([[0, 0, 1, 0]]))
        >>> metric.compute()["aurc"]                       # the mean of 0, 0, 1/3 and 1/4
        tensor(0.1458)
    """

    higher_is_better = False
    statistics = MappingProxyType({name: ErrorRanking.statistics[name] for name in ("aurc", "augrc", "ause")})
    area: ClassVar[str] = "AURC"
    """What the legend of a plot calls the area under the curve."""

    def _picture(self, val: Any, ax: Any, label: str | None, color: str | None) -> tuple[Any, Any]:
        figure, ax = axes_for(ax)
        coverage = torch.linspace(0.01, 1, 199, dtype=torch.float64, device=self.sums.device)
        right, wrong = self._right_and_wrong(self.sums).sum(1, keepdim=True)
        none = torch.zeros_like(right)
        best = selective_risk(torch.cat((right, none)), torch.cat((none, wrong)), coverage)
        value = self._value(self.sums)
        text = f"{self.area} {float(value['aurc']):.3f}, best {float(value['aurc'] - value['ause']):.3f}"
        risk, label = self._risk(self.sums, coverage), f"{label}: {text}" if label else text
        draw_risk_coverage(ax, coverage, risk, best, self._risk_interval(coverage), label, color)
        return figure, ax

    def working_point(
        self, *, coverage: float | None = None, risk: float | None = None, threshold: float | None = None
    ) -> WorkingPoint:
        """The threshold for a coverage or a risk, and what it comes to; or what a threshold comes to.

        It lies between two bins of `ErrorRanking`, so a coverage is met to the share of the pixels in one of them.

        Args:
            coverage: the least threshold at which at least this share is accepted.
            risk: the greatest threshold at which the error rate of what is accepted is at most this.
            threshold: accept what scores at most this.

        Returns:
            The threshold, coverage and risk; with 95 % intervals where all images came with ids.

        Raises:
            SeguqError: unless exactly one of the three is given.

        Example:
            >>> metric = RiskCoverage()
            >>> metric.update(torch.tensor([[0.125, 0.25, 0.5, 1.0]]), torch.tensor([[0, 0, 1, 1]]))
            >>> metric.working_point(risk=0.4)[:3]
            (0.5, 0.75, 0.3333333333333333)
            >>> metric.working_point(threshold=0.3).coverage
            0.5
        """
        with self._synced():
            right, wrong = self._right_and_wrong(self.sums)
            place = bin_of(right, wrong, self.highest, coverage, risk, threshold)
            if place is None:
                return WorkingPoint(-float("inf"), 0.0, float("nan"))
            shares, risks = risk_coverage_points(right, wrong)
            point = WorkingPoint(float(self.highest[place]), float(shares[place]), float(risks[place]))
            if not self._has_replicates:
                return point
            # of the replicates' coarser bin as much is accepted as of its scores
            factor = 1 << (self.bits - self.boot_bits)
            coarse, rest = divmod(place, factor)
            inside = split_last(self.sums, self.histograms, -1)[:, coarse * factor :][:, :factor].cumsum(1)
            share = (inside[:, rest] / inside[:, -1]).nan_to_num(0)
            drawn = split_last(self.replicates, self.histograms, -1)
            accepted = drawn[..., :coarse].sum(-1) + share * drawn[..., coarse]
            parts = torch.stack((accepted, drawn.sum(-1) - accepted), -1)
            right, wrong = self._right_and_wrong(parts.flatten(1)).unbind(1)
            shares, risks = risk_coverage_points(right, wrong)
            return with_intervals(point, shares[:, 0], risks[:, 0])

    def _risk(self, sums: Tensor, coverage: Tensor) -> Tensor:
        right, wrong, _ = self._counts(sums)
        return selective_risk(right, wrong, coverage)

    def _risk_interval(self, coverage: Tensor) -> tuple[Any, Any]:
        """2.5 and 97.5 percentiles of the risk at each coverage, over the replicates, where there are ids."""
        if not self._has_replicates:
            return None, None
        shift = self._risk(self.sums, coverage) - self._risk(self._boot_sums(self.sums), coverage)
        return band((self._risk(self.replicates, coverage) + shift).clamp(0, 1))
