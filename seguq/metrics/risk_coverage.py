"""What is gained by leaving the uncertain pixels to somebody else."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from seguq.functional.ranking import selective_risk
from seguq.metrics.bootstrap import axes_for, is_history
from seguq.metrics.error_ranking import ErrorRanking


class RiskCoverage(ErrorRanking):
    """Error rate among the pixels that are accepted, the most certain first, over the share that is accepted.

    ``aurc`` is the area under that curve, ``augrc`` the area under the share of all pixels that are wrong and
    accepted, and ``ause`` the area between the curve and the best one of this error rate. Lower is better. ``aurc``
    and ``augrc`` fall with the error rate as well as with a better ranking; ``ause`` is 0 for a perfect ranking.

    The bins are those of `ErrorRanking`. Measured against the raw scores, with error rates from 3 to 40 %: where scores
    spread over a factor of two or more (probabilities, entropies, energies), a value is within 1e-5, and the bounds of
    an interval within 3 % of its width. Scores packed just below 1 share a few bins: within some hundredths of 1 one
    may be .002 too high, and the interval says nothing. `compute_bounds` gives the bounds that hold for any scores.

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

    def plot(
        self, val: Any = None, ax: Any = None, label: str | None = None, color: str | None = None
    ) -> tuple[Any, Any]:
        """Draw the risk-coverage curve, the best one of the same error rate (dashed), and the interval of the risk.

        It starts at a coverage of 1 %: before that, a few pixels decide. Drawn is what this process has seen.

        Args:
            val: a sequence of values is drawn over its steps instead; one value, as a collection passes it, is not
                looked at.
            ax: matplotlib's axes to draw into; None: new ones.
            label: what is measured, for the legend.
            color: of curves and band.

        Returns:
            The matplotlib figure and axes.
        """
        if is_history(val):
            return super().plot(val, ax)
        figure, ax = axes_for(ax)
        coverage = torch.linspace(0.01, 1, 199, dtype=torch.float64, device=self.sums.device)
        x, risk = coverage.cpu().numpy(), self._risk(self.sums, coverage)
        right, wrong = self.sums.view(2, -1).sum(1, keepdim=True)
        none = torch.zeros_like(right)
        best = selective_risk(torch.cat((right, none)), torch.cat((none, wrong)), coverage).cpu().numpy()
        value = self._value(self.sums)
        text = f"AURC {float(value['aurc']):.3f}, best {float(value['aurc'] - value['ause']):.3f}"
        (line,) = ax.plot(x, risk.cpu().numpy(), label=f"{label}: {text}" if label else text, color=color, zorder=3)
        ax.plot(x, best, color=line.get_color(), linewidth=1, linestyle="--", zorder=1)
        low, high = self._risk_interval(coverage)
        if low is not None and high is not None:
            ax.fill_between(x, low, high, color=line.get_color(), alpha=0.18, linewidth=0)
        ax.autoscale(axis="y")  # over what was in the axes before, too; and room for the legend
        ax.set_ylim(0, 1.15 * ax.get_ylim()[1])
        ax.set(xlim=(0, 1), xlabel="coverage", ylabel="risk (error rate among the accepted)")
        ax.legend(loc="upper left", frameon=False)
        return figure, ax

    def _risk(self, sums: Tensor, coverage: Tensor) -> Tensor:
        right, wrong, _ = self._counts(sums)
        return selective_risk(right, wrong, coverage)

    def _risk_interval(self, coverage: Tensor) -> tuple[Any, Any]:
        """2.5 and 97.5 percentiles of the risk at each coverage, over the replicates, where there are ids."""
        if int(self.ungrouped) or not bool(self.replicates.any()):
            return None, None
        shift = self._risk(self.sums, coverage) - self._risk(self._boot_sums(self.sums), coverage)
        risk = (self._risk(self.replicates, coverage) + shift).clamp(0, 1)
        tails = torch.tensor([0.025, 0.975], dtype=torch.float64, device=risk.device)
        low, high = torch.nanquantile(risk, tails, dim=0).cpu().numpy()
        return low, high
