import itertools
from collections import Counter

import numpy as np
import pytest

from seguq.acquisition import Budget, PowerTopK, select
from seguq.core.errors import UsageError
from tests.acquisition.tables import names, table

SCORES = (0.1, 0.2, 0.3, 0.4)
POOL = table(*[(name, score) for name, score in zip("abcd", SCORES, strict=True)])
DRAWS = 5_000


def ranks(strategy, pool=POOL, draws=DRAWS):
    generator = np.random.default_rng(0)
    return [tuple(strategy.rank(pool, generator).tolist()) for _ in range(draws)]


def within_chance(counts, probabilities):
    """No count is further from its expectation than four and a half standard deviations."""
    return all(
        abs(counts[key] - DRAWS * p) < 4.5 * np.sqrt(DRAWS * p * (1 - p)) + 1 for key, p in probabilities.items()
    )


@pytest.mark.parametrize("beta", [0.5, 1, 2.0, 4.0])
def test_the_first_is_drawn_with_a_probability_of_its_score_to_the_power_of_beta(beta):
    weights = np.power(SCORES, beta)
    counts = Counter(rank[0] for rank in ranks(PowerTopK(beta)))
    assert within_chance(counts, dict(enumerate(weights / weights.sum())))


def test_all_orders_have_the_probability_of_drawing_without_replacement():
    weights = np.power(SCORES, 2.0)
    expected = {}
    for order in itertools.permutations(range(4)):
        left, probability = weights.sum(), 1.0
        for place in order:
            probability *= weights[place] / left
            left -= weights[place]
        expected[order] = probability
    assert sum(expected.values()) == pytest.approx(1)
    assert within_chance(Counter(ranks(PowerTopK(beta=2.0))), expected)


def test_scores_of_0_come_last_in_any_order():
    pool = table(("a", 0), ("b", 1e-300), ("c", 0), ("d", 3))
    found = Counter(ranks(PowerTopK(), pool, 400))
    assert {rank[2:] for rank in found} == {(0, 2), (2, 0)}
    assert {frozenset(rank[:2]) for rank in found} == {frozenset({1, 3})}


def test_scores_that_are_all_0_are_drawn_alike():
    counts = Counter(rank[0] for rank in ranks(PowerTopK(), table(*[(name, 0) for name in "abcd"])))
    assert within_chance(counts, dict.fromkeys(range(4), 0.25))


def test_a_large_beta_takes_the_highest():
    assert set(ranks(PowerTopK(1e9), draws=100)) == {(3, 2, 1, 0)}


def test_a_negative_score_is_an_error_that_says_what_to_do():
    with pytest.raises(UsageError, match=r"one of -0\.5: score by a measure that is never negative"):
        select(table(("a", 1), ("b", -0.5)), budget=Budget(regions=1), strategy=PowerTopK())


@pytest.mark.parametrize("beta", [0, -1.0, float("nan"), float("inf"), "1", None, True])
def test_a_beta_that_is_no_number_above_0_is_an_error_with_what_it_is(beta):
    with pytest.raises(UsageError, match=f"beta of PowerTopK must be a number above 0, but is {beta!r}"):
        PowerTopK(beta)


def test_the_seed_is_that_of_select():
    chosen = [
        names(select(POOL, budget=Budget(regions=2), strategy=PowerTopK(), seed=seed)) for seed in (0, 0, *range(20))
    ]
    assert chosen[0] == chosen[1]
    assert len({tuple(one) for one in chosen}) > 1


def test_the_reason_says_beta():
    assert select(POOL, budget=Budget(regions=1), strategy=PowerTopK(8.0)).why["strategy"] == "PowerTopK(beta=8.0)"
