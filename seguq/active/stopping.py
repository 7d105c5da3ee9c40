"""When a loop has done enough: a total budget, a target, or rounds that gain nothing any more."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from seguq.acquisition import Budget
from seguq.active.reports.records import MAIN_METRIC, METRIC_NAMES, Interval, Record
from seguq.core.checks import is_number, is_whole
from seguq.core.errors import UsageError

Gain = Callable[[int, int], tuple[float, float, float] | None]
"""What a round has gained over an earlier one: value and interval, paired; None where that cannot be said."""

_TOTALS = ("regions", "pixels", "clicks", "images")


@dataclass(frozen=True)
class Stop:
    """When a loop stops, of whatever is given first come first.

    A budget stops the loop once a closed round has reached it; no round is cut short by it. A target is reached when
    the lower end of the metric's interval is: by then it is no luck of the images that it was judged on.

    Args:
        regions: labeled regions, of all rounds.
        pixels: labeled pixels.
        clicks: clicks.
        images: images visited.
        cost: what all rounds have spent, where their budget is a cost of one's own.
        metric: the mean IoU, as the lower end of its interval.
        gain_over: so many rounds together that do not gain: the paired interval of what the mean IoU has grown since
            the round before them holds 0, or lies below it.

    Raises:
        UsageError: for nothing at all, a number that cannot be reached, or one of the wrong kind.

    Example:
        >>> Stop(clicks=5000, gain_over=3)
        Stop(clicks=5000, gain_over=3)
    """

    regions: int | None = None
    pixels: int | None = None
    clicks: int | None = None
    images: int | None = None
    cost: float | None = None
    metric: float | None = None
    gain_over: int | None = None

    def __post_init__(self) -> None:
        if not self._given():
            raise UsageError(f"Stop() needs one of {', '.join(f'{name}=' for name in self.__dataclass_fields__)}")
        for name in (*_TOTALS, "gain_over"):
            value = getattr(self, name)
            if value is not None and not is_whole(value, 1):
                raise UsageError(f"Stop({name}=) must be a whole number of at least 1, but is {value!r}")
        if self.cost is not None and not (is_number(self.cost) and math.isfinite(self.cost) and self.cost > 0):
            raise UsageError(f"Stop(cost=) must be a number above 0, but is {self.cost!r}")
        if self.metric is not None and not (is_number(self.metric) and 0 < self.metric < 1):
            raise UsageError(f"Stop(metric=) must be a mean IoU between 0 and 1, but is {self.metric!r}")

    def __repr__(self) -> str:
        return f"Stop({', '.join(f'{name}={value}' for name, value in self._given().items())})"

    def _given(self) -> dict[str, float]:
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value for name, value in values.items() if value is not None}

    def require_reachable(self, budget: Budget, judged: bool) -> None:
        """Raise for a rule that could never hold.

        Args:
            budget: of the rounds.
            judged: whether there are labeled images to judge on.

        Raises:
            UsageError: with the rule.
        """
        if self.cost is not None and budget.cost is None:
            raise UsageError(f"Stop(cost=) counts what Budget(cost=, limit=) spends, but the budget is {budget!r}")
        for name in ("metric", "gain_over"):
            if getattr(self, name) is not None and not judged:
                raise UsageError(
                    f"Stop({name}=) needs labeled images to judge on, but the data has neither test nor val"
                )

    def reason(self, records: Sequence[Record], gain: Gain) -> str | None:
        """Why the loop stops after the last of these rounds.

        Args:
            records: of all rounds so far, in order.
            gain: called as ``gain(round, since)``; what the mean IoU has gained in between, with its paired interval.

        Returns:
            One sentence, or None where it goes on.
        """
        if not records:
            return None
        return self._spent(records) or self._reached(records[-1]) or self._flat(records[-1].round, gain)

    def _spent(self, records: Sequence[Record]) -> str | None:
        for name in _TOTALS:
            most, have = getattr(self, name), getattr(records[-1].labeled, name)
            if most is not None and have >= most:
                what = "images are visited" if name == "images" else f"{name} are labeled"
                what = "clicks are done" if name == "clicks" else what
                return f"{have:,} {what}, and {most:,} were to be"
        cost = sum(record.spent for record in records if record.unit == "cost")
        if self.cost is not None and cost >= self.cost:
            return f"{cost:,g} is spent, of {self.cost:,g}"
        return None

    def _reached(self, last: Record) -> str | None:
        found = last.metrics.get(MAIN_METRIC)
        if self.metric is None or found is None or not found.low >= self.metric:
            return None
        return f"the {METRIC_NAMES[MAIN_METRIC]} is {found}, and the lower end of its interval reaches {self.metric:g}"

    def _flat(self, last: int, gain: Gain) -> str | None:
        if self.gain_over is None or last < self.gain_over:
            return None
        found = gain(last, last - self.gain_over)
        if found is None or not found[1] <= 0:
            return None
        gained = Interval(*found)
        rounds = "the last round has" if self.gain_over == 1 else f"the last {self.gain_over} rounds have"
        where = "lies below 0" if gained.high < 0 else "holds 0"
        return (
            f"{rounds} gained {gained.in_words('+')} in {METRIC_NAMES[MAIN_METRIC]}: the interval "
            f"{where}, so more of the same labels are not seen to help"
        )
