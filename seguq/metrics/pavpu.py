"""Whether inaccurate patches are the uncertain ones, at every threshold."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from seguq.core.checks import flat_images, require_count
from seguq.functional.patches import patch_errors, patches_right, patches_right_area, patches_right_best
from seguq.metrics.bootstrap import axes_for, band
from seguq.metrics.error_ranking import ErrorRanking


class PAvPU(ErrorRanking):
    r"""Patch accuracy versus patch uncertainty: the share of patches that are accurate and certain, or neither.

    .. math:: PAvPU(t) = \frac{n_{ac} + n_{iu}}{n}

    A patch is inaccurate (i) where half of its labeled pixels or more are wrong, else accurate (a); uncertain (u) where
    its mean uncertainty is above the threshold t, else certain (c). ``pavpu_max`` is the value at the best threshold,
    ``pavpu_mean`` the mean over thresholds that call equally many more patches certain each. At the lowest threshold
    the value is the share of inaccurate patches, at the highest that of accurate ones. `plot` draws it over the
    share of patches that is called certain, with its interval.

    The bins are those of `ErrorRanking`, with patches in the place of pixels. Of few patches the best threshold is too
    good: simulated with 640 of them, 95 % intervals of ``pavpu_max`` held that of all images in 90 of 100 experiments.

    Args:
        window: side of a patch in pixels.
        ignore_index: value of ``error`` that is left out; patches of these alone are, too.
        **kwargs: ``n_boot``, ``seed``, and those of `torchmetrics.Metric`.

    References:
        Mukhoti and Gal, Evaluating Bayesian Deep Learning Methods for Semantic Segmentation, 2018, section 3.

    Example:
        >>> metric = PAvPU(window=2)
        >>> metric.update(torch.tensor([[0.1, 0.1, 0.2, 0.2, 0.8, 0.9]]), torch.tensor([[0, 0, 0, 0, 1, 0]]))
        >>> metric.compute()
        {'pavpu_max': tensor(1.), 'pavpu_mean': tensor(0.7222)}
    """

    higher_is_better = True
    statistics = MappingProxyType(
        {
            "pavpu_max": lambda right, wrong, mixed=None: patches_right_best(right, wrong),
            "pavpu_mean": lambda right, wrong, mixed=None: patches_right_area(right, wrong),
        }
    )

    def __init__(self, window: int = 8, ignore_index: int = 255, **kwargs: Any) -> None:
        require_count("window", window)
        super().__init__(ignore_index, settings={"window": window}, **kwargs)
        self.window = window

    def update(self, uncertainty: Tensor, error: Tensor, group: Sequence[str] | None = None) -> None:
        """Take in a batch.

        Args:
            uncertainty: ``(B, *spatial)`` of one to three dimensions, larger is more uncertain; NaN is allowed where
                ``error`` is ignored. Flat ``(N,)`` is one image of one dimension.
            error: ``(B, *spatial)`` of 0 (right), 1 (wrong) or ``ignore_index``.
            group: one image id an item, for `compute_interval`.

        Raises:
            SeguqError: for shapes that differ, other values in ``error``, or NaN in ``uncertainty`` where it counts.
        """
        if uncertainty.shape == error.shape and uncertainty.ndim:  # of others the next step tells
            uncertainty, error = (each.unsqueeze(0) if each.ndim == 1 else each for each in (uncertainty, error))
            self._check(flat_images(uncertainty), flat_images(error))
        super().update(*patch_errors(uncertainty, error, self.window, self.ignore_index), group)

    def _picture(self, val: Any, ax: Any, label: str | None, color: str | None) -> tuple[Any, Any]:
        figure, ax = axes_for(ax)
        share = torch.linspace(0, 1, 201, dtype=torch.float64, device=self.sums.device)
        x = share.cpu().numpy()
        text = f"best {float(self._value(self.sums)['pavpu_max']):.3f}"
        name = f"{label}: {text}" if label else text
        (line,) = ax.plot(x, self._curve(self.sums, share).cpu().numpy(), label=name, color=color, zorder=3)
        if self._has_replicates:
            shift = self._curve(self.sums, share) - self._curve(self._boot_sums(self.sums), share)
            low, high = band((self._curve(self.replicates, share) + shift).clamp(0, 1))
            ax.fill_between(x, low, high, color=line.get_color(), alpha=0.18, linewidth=0)
        ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="share of patches called certain", ylabel="PAvPU")
        ax.legend(loc="lower right", frameon=False)
        return figure, ax

    def _curve(self, sums: Tensor, share: Tensor) -> Tensor:
        right, wrong, _ = self._counts(sums)
        return patches_right(right, wrong, share)
