"""What an experiment shows: curves over labels, and how many labels it takes to come near what all of them give."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from seguq.active.experiment import FULL, Point
from seguq.core.checks import require_choice
from seguq.core.errors import SeguqError
from seguq.export.learning_curve import Curve

UNITS = ("regions", "pixels", "clicks", "images")

Floats = npt.NDArray[np.float64]
_Curves = dict[int, tuple[Floats, Floats]]

# Student's t, 95 % two-sided, by degrees of freedom from 1 on
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
_DRAWS = 2000


@dataclass(frozen=True)
class Needed:
    """Labels until a way of choosing reaches a value; infinite where it does not with what it was given.

    Attributes:
        value: by the mean curve.
        low: of the 95 % interval, bootstrapped over seeds; NaN for a single seed.
        high: of that interval.
    """

    value: float
    low: float
    high: float


class Comparison:
    """Ways of choosing beside each other, by the seeds that all of them have completed.

    Args:
        points: as `seguq.active.Experiment.points` gives them.
        by: what labels are counted in: ``"regions"``, ``"pixels"``, ``"clicks"`` or ``"images"``.
        seed: of the bootstrap.

    Raises:
        SeguqError: if there is no seed that every way of choosing has completed.
    """

    def __init__(self, points: Sequence[Point], by: str = "clicks", seed: int = 0) -> None:
        require_choice("by", by, UNITS)
        self.by, self.seed = by, seed
        self._curves: dict[str, _Curves] = {}
        for point in sorted(points, key=lambda point: point.round):
            if point.value is not None:
                self._curves.setdefault(point.arm, {}).setdefault(point.seed, (np.zeros(0), np.zeros(0)))
                labels, values = self._curves[point.arm][point.seed]
                grown = np.append(labels, float(point.labeled[by])), np.append(values, point.value)
                self._curves[point.arm][point.seed] = grown
        self.arms = [name for name in self._curves if name != FULL]
        rounds = {name: max((len(curve[0]) for curve in of.values()), default=0) for name, of in self._curves.items()}
        whole = [
            {seed for seed, curve in of.items() if len(curve[0]) == rounds[name]} for name, of in self._curves.items()
        ]
        self.seeds = sorted(set.intersection(*whole)) if whole else []
        if not self.arms or not self.seeds:
            raise SeguqError("there is nothing to compare yet: no seed was gone through by every way of choosing")

    def curves(self) -> list[Curve]:
        """The mean over seeds of each way of choosing, in the order in which they were given.

        The interval is 95 %, over seeds, by Student's t; NaN for a single seed.
        """
        return [self._curve(name) for name in self.arms]

    def full(self) -> Curve | None:
        """What all labels give: a curve of one round; None where that was not measured."""
        return self._curve(FULL) if FULL in self._curves else None

    def _curve(self, name: str) -> Curve:
        labels, values = self._of(name, self.seeds)
        mean, half = values.mean(0), _half(values)
        return Curve(name, labels.mean(0), mean, mean - half, mean + half)

    def _of(self, name: str, seeds: Sequence[int]) -> tuple[Floats, Floats]:
        """Labels and values ``(seeds, rounds)``."""
        found = [self._curves[name][seed] for seed in seeds]
        return np.stack([labels for labels, _ in found]), np.stack([values for _, values in found])

    def needed(self, name: str, share: float = 0.95) -> Needed:
        """Labels until the mean curve reaches a share of what all labels give.

        Between rounds the value is taken to rise in a straight line over the logarithm of the labels.
        """
        return self._summary(lambda seeds: self._needed(name, share, seeds))

    def ratio(self, name: str, other: str, share: float = 0.95) -> Needed:
        """Labels that one needs, over those that another needs; in each draw by the same seeds.

        Where the other does not reach the value, the labels that it was given count: the ratio is at most so much.
        """

        def of(seeds: Sequence[int]) -> float:
            most = float(self._of(other, seeds)[0].mean(0)[-1])
            return self._needed(name, share, seeds) / min(self._needed(other, share, seeds), most)

        return self._summary(of)

    def reached(self, name: str, share: float = 0.95) -> bool:
        """Whether its mean curve comes so far."""
        return math.isfinite(self._needed(name, share, self.seeds))

    def _needed(self, name: str, share: float, seeds: Sequence[int]) -> float:
        if FULL not in self._curves:
            raise SeguqError("what all labels give was not measured: run the experiment with full=True")
        target = share * float(self._of(FULL, seeds)[1].mean())
        labels, values = (rows.mean(0) for rows in self._of(name, seeds))
        above = np.flatnonzero(values >= target)
        if not len(above):
            return math.inf
        at = int(above[0])
        if at == 0:
            return float(labels[0])
        part = (target - values[at - 1]) / (values[at] - values[at - 1])
        return float(np.exp(np.log(labels[at - 1]) + part * (np.log(labels[at]) - np.log(labels[at - 1]))))

    def _summary(self, of: Callable[[Sequence[int]], float]) -> Needed:
        """A function of seeds, for those that there are, with its interval over draws of them."""
        value, n = of(self.seeds), len(self.seeds)
        if n < 2:
            return Needed(value, math.nan, math.nan)
        draws = np.random.default_rng(self.seed).integers(0, n, (_DRAWS, n)).tolist()
        ordered = np.sort([of([self.seeds[i] for i in row]) for row in draws])
        return Needed(value, float(ordered[int(0.025 * _DRAWS)]), float(ordered[int(0.975 * _DRAWS)]))


def _half(values: Floats) -> Floats:
    """Half of the interval of a mean over seeds, ``(rounds,)``."""
    n = len(values)
    if n < 2:
        return np.full(values.shape[1], math.nan)
    quantile = _T[min(n - 2, len(_T) - 1)]  # of more seeds a little too wide
    half: Floats = quantile * values.std(0, ddof=1) / math.sqrt(n)
    return half
