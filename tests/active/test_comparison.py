"""What an experiment shows, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from seguq.active import Comparison
from seguq.active.experiment import Point
from seguq.core.errors import SeguqError


def points(arm, seed, values, labels=(10, 100, 1000)):
    return [
        Point(arm, seed, number, {"clicks": clicks, "regions": clicks // 10}, {"regions": 500}, value)
        for number, (clicks, value) in enumerate(zip(labels, values, strict=False))
    ]


def full(seed, value=0.8):
    return Point("all", seed, 0, {"clicks": 9000, "regions": 500}, {"regions": 500}, value)


TWO = [
    *points("a", 0, (0.4, 0.7, 0.80)),
    *points("a", 1, (0.4, 0.8, 0.80)),
    *points("b", 0, (0.4, 0.5, 0.76)),
    *points("b", 1, (0.4, 0.6, 0.76)),
    full(0),
    full(1),
]


def test_curves_are_means_over_seeds_with_students_interval():
    a, b = Comparison(TWO).curves()
    assert (a.name, b.name) == ("a", "b")
    np.testing.assert_allclose(a.x, [10, 100, 1000])
    np.testing.assert_allclose(a.value, [0.4, 0.75, 0.8])
    # two values 0.1 apart: standard deviation 0.1 / sqrt 2, of the mean 0.05; t of one degree of freedom is 12.706
    np.testing.assert_allclose(a.high - a.value, [0, 12.706 * 0.05, 0], atol=1e-12)
    np.testing.assert_allclose(a.value - a.low, [0, 12.706 * 0.05, 0], atol=1e-12)
    assert Comparison(TWO).full().value.tolist() == [0.8]


def test_labels_until_a_share_of_all_on_a_line_over_their_logarithm():
    found = Comparison(TWO)
    # 95 % of 0.8 is 0.76; a goes from 0.75 at 100 to 0.80 at 1000: a fifth of the way, by the logarithm
    assert found.needed("a").value == pytest.approx(100 * 10**0.2)
    assert found.needed("b").value == pytest.approx(1000)
    assert found.needed("a", share=0.5).value == 10  # from the first on
    assert found.ratio("a", "b").value == pytest.approx(10**0.2 / 10)
    assert found.reached("a")


def test_the_interval_draws_seeds_for_both():
    found = Comparison(TWO)
    # of seed 0 alone: from 0.7 at 100 to 0.8 at 1000, 0.6 of the way; of seed 1: from 0.4 at 10 to 0.8 at 100, 0.9
    low, high = 10 * 10**0.9, 100 * 10**0.6
    needed, ratio = found.needed("a"), found.ratio("a", "b")
    assert (needed.low, needed.high) == (pytest.approx(low), pytest.approx(high))
    assert (ratio.low, ratio.high) == (pytest.approx(low / 1000), pytest.approx(high / 1000))
    again = Comparison(TWO, seed=0).ratio("a", "b")
    assert again == ratio


def test_what_is_not_reached_needs_infinitely_many_and_a_ratio_to_it_is_at_most_so_much():
    few = [point for point in TWO if point.arm != "b"]
    few += [*points("b", 0, (0.4, 0.5, 0.6)), *points("b", 1, (0.4, 0.5, 0.6))]
    found = Comparison(few)
    assert not found.reached("b")
    assert found.needed("b").value == math.inf
    assert found.ratio("a", "b").value == pytest.approx(100 * 10**0.2 / 1000)
    assert found.ratio("b", "a").value == math.inf


def test_only_seeds_that_all_have_completed_count():
    more = [*TWO, *points("a", 2, (0.1, 0.1, 0.1)), *points("b", 2, (0.1, 0.1)), full(2)]
    assert Comparison(more).seeds == [0, 1]
    assert Comparison(more).curves()[0].value.tolist() == Comparison(TWO).curves()[0].value.tolist()
    without = [*TWO, *points("a", 2, (0.1, 0.1, 0.1)), *points("b", 2, (0.1, 0.1, 0.1))]
    assert Comparison(without).seeds == [0, 1]  # what all labels give was not measured there


def test_labels_may_be_counted_in_other_units():
    assert Comparison(TWO, by="regions").needed("b").value == pytest.approx(100)
    for wrong in ("hours", None):
        with pytest.raises(SeguqError, match="by must be one of"):
            Comparison(TWO, by=wrong)


def test_of_many_seeds_the_interval_is_not_too_narrow():
    generator = np.random.default_rng(0)
    many = [point for seed in range(30) for point in points("a", seed, generator.normal(0.5, 0.1, 3))]
    (curve,) = Comparison(many).curves()
    values = np.array([point.value for point in many]).reshape(30, 3)
    half = 2.045 * values.std(0, ddof=1) / math.sqrt(30)  # of 29 degrees of freedom
    assert (curve.high - curve.value >= half).all()
    assert (curve.high - curve.value <= 1.1 * half).all()


def test_a_single_seed_has_no_interval():
    one = [point for point in TWO if point.seed == 0]
    (a, _) = Comparison(one).curves()
    assert np.isnan(a.low).all()
    for found in (Comparison(one).needed("a"), Comparison(one).ratio("a", "b")):
        assert math.isfinite(found.value)
        assert math.isnan(found.low) and math.isnan(found.high)


@pytest.mark.parametrize(
    "wrong",
    [[], [full(0)], [*points("a", 0, (0.4, 0.5)), *points("b", 1, (0.4, 0.5))], points("a", 0, (None, None))],
    ids=["nothing", "all alone", "no seed in common", "no value"],
)
def test_where_there_is_nothing_to_compare_it_says_so(wrong):
    with pytest.raises(SeguqError, match="nothing to compare yet"):
        Comparison(wrong)


def test_without_all_labels_nothing_can_be_said_of_a_share():
    alone = [point for point in TWO if point.arm != "all"]
    assert Comparison(alone).full() is None
    with pytest.raises(SeguqError, match="full=True"):
        Comparison(alone).needed("a")
