"""Each rule can hold and can fail, and what is said is why."""

import math

import pytest

from seguq.acquisition import Budget
from seguq.active import Interval, Record, Stop
from seguq.active.reports.records import Counts
from seguq.core.errors import UsageError


def record(number=3, low=0.4, unit="regions", metrics=True):
    return Record(
        round=number, split="test", images=12, groups=12,
        metrics={"miou": Interval(0.45, low, 0.5)} if metrics else {}, gain={}, since=None,
        labeled=Counts(regions=100, pixels=5000, images=40, clicks=300), pool=Counts(1000, 50000, 60),
        chosen=25, answered=25, spent=25.5, budget={unit: 30}, seconds={},
    )  # fmt: skip


def gains(value, low, high):
    return lambda now, since: (value, low, high)


def no_gain(now, since):
    return None


@pytest.mark.parametrize("rule", ["regions", "pixels", "clicks", "images"])
def test_a_total_budget_stops_once_it_is_reached(rule):
    have = getattr(record().labeled, rule)
    assert f"{have:,} " in Stop(**{rule: have}).reason([record()], no_gain)
    assert Stop(**{rule: have + 1}).reason([record()], no_gain) is None


def test_a_cost_is_the_sum_over_all_rounds():
    rounds = [record(number, unit="cost") for number in range(4)]
    assert Stop(cost=102).reason(rounds, no_gain) == "102 is spent, of 102"
    assert Stop(cost=102.5).reason(rounds, no_gain) is None


def test_what_rounds_of_another_budget_spent_is_no_cost():
    assert Stop(cost=1).reason([record()], no_gain) is None


def test_a_target_is_reached_by_the_lower_end_of_the_interval():
    said = Stop(metric=0.4).reason([record(low=0.4)], no_gain)
    assert said == "the mean IoU is 0.450 [0.400, 0.500], and the lower end of its interval reaches 0.4"
    assert Stop(metric=0.41).reason([record(low=0.4)], no_gain) is None


@pytest.mark.parametrize("last", [record(low=math.nan), record(metrics=False)], ids=["nan", "none"])
def test_a_metric_that_is_not_known_reaches_no_target(last):
    assert Stop(metric=0.01).reason([last], no_gain) is None


@pytest.mark.parametrize(
    ("gain", "told"),
    [
        (gains(0.01, -0.01, 0.03), "the interval holds 0"),
        (gains(-0.02, -0.03, -0.01), "the interval lies below 0"),
        (gains(0.01, 0.0, 0.02), "the interval holds 0"),
        (gains(0.02, 0.001, 0.03), None),
        (gains(math.nan, math.nan, math.nan), None),
        (no_gain, None),
    ],
)
def test_rounds_that_gain_nothing_stop_it(gain, told):
    said = Stop(gain_over=2).reason([record()], gain)
    assert said is None if told is None else told in said and said.startswith("the last 2 rounds have gained ")


def test_the_gain_is_asked_of_the_last_round_since_so_many_before():
    asked = []
    Stop(gain_over=3).reason([record(number) for number in range(6)], lambda *pair: asked.append(pair))
    assert asked == [(5, 2)]


def test_no_gain_is_asked_for_before_there_are_so_many_rounds():
    flat = gains(0, -1, 1)
    assert Stop(gain_over=3).reason([record(number) for number in range(3)], flat) is None
    assert Stop(gain_over=3).reason([record(number) for number in range(4)], flat) is not None


def test_before_the_first_round_nothing_stops_it():
    assert Stop(regions=1, gain_over=1).reason([], gains(0, -1, 1)) is None


def test_of_several_rules_one_is_enough():
    assert "clicks are done" in Stop(regions=10**6, clicks=300, metric=0.99).reason([record()], no_gain)


def test_a_stop_shows_what_it_was_given():
    assert repr(Stop(regions=5, metric=0.7)) == "Stop(regions=5, metric=0.7)"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "needs one of regions="),
        ({"regions": 0}, "regions="),
        ({"pixels": 1.5}, "pixels="),
        ({"clicks": True}, "clicks="),
        ({"images": "5"}, "images="),
        ({"gain_over": 0}, "gain_over="),
        ({"cost": math.inf}, "cost="),
        ({"cost": -1}, "cost="),
        ({"metric": 1.0}, "metric="),
        ({"metric": 70}, "metric="),
        ({"metric": math.nan}, "metric="),
    ],
)
def test_what_can_never_be_reached_is_wrong_use(arguments, told):
    with pytest.raises(UsageError, match=told):
        Stop(**arguments)


@pytest.mark.parametrize(
    ("stop", "judged", "told"),
    [
        (Stop(cost=5), True, "counts what Budget"),
        (Stop(metric=0.5), False, "needs labeled images"),
        (Stop(gain_over=2), False, "needs labeled images"),
        (Stop(regions=5), False, None),
        (Stop(metric=0.5, gain_over=1), True, None),
    ],
)
def test_a_rule_that_cannot_hold_in_this_loop_is_told_before_it_begins(stop, judged, told):
    if told is None:
        stop.require_reachable(Budget(regions=5), judged)
        return
    with pytest.raises(UsageError, match=told):
        stop.require_reachable(Budget(regions=5), judged)


def test_a_cost_can_be_reached_where_the_budget_is_one():
    Stop(cost=5).require_reachable(Budget(cost=len, limit=2), True)
