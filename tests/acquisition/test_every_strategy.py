"""What every strategy promises, for each that there is."""

import random
import warnings

import numpy as np
import pytest

from seguq.acquisition import Budget, Ranked, Selection, Strategy, select
from tests.acquisition.tables import META, shuffled, table

ARGUMENTS = {}
"""Arguments where a constructor needs some."""

BUDGETS = [
    Budget(regions=7),
    Budget(regions=1000),
    Budget(pixels=333),
    Budget(images=3),
    Budget(regions=7, per_image=1),
    Budget(pixels=333, per_image=2),
    Budget(images=3, per_image=2),
]


def ours():
    return [name for name in Strategy.names() if Strategy.named(name).__module__.startswith("seguq.acquisition.")]


@pytest.fixture(params=ours())
def strategy(request):
    return Strategy.named(request.param)(**ARGUMENTS.get(request.param, {}))


def pool(seed=0):
    generator = random.Random(seed)
    rows = [(generator.choice("abcdefgh"), generator.choice([0.0, 0.25, 0.5, 1.0]), generator.randint(10, 90))]
    for _ in range(59):
        rows.append((generator.choice("abcdefgh"), generator.random(), generator.randint(10, 90)))
    return table(*rows)


def earlier(regions):
    """Some regions as rows of an earlier selection."""
    return [{"rank": rank, **row} for rank, row in enumerate(regions.rows()[::7], 1)]


def spent(rows):
    images = [row["image_id"] for row in rows]
    return {
        "regions": len(rows),
        "pixels": sum(row["area"] for row in rows),
        "images": len(set(images)),
        "per_image": max((images.count(image) for image in images), default=0),
    }


def test_the_shipped_ones_are_known():
    assert {"PowerTopK", "Random", "TopK"} <= set(ours())


@pytest.mark.parametrize("budget", BUDGETS, ids=repr)
def test_it_keeps_to_the_budget(strategy, budget):
    regions = pool()
    rows = strategy.choose(regions, budget, [], np.random.default_rng(0))
    assert 0 < len(rows) == len(set(rows.tolist()))
    found = spent(regions.take(rows).rows())
    assert all(found[name] <= most for name, most in budget.as_dict().items())


def test_it_takes_as_many_regions_as_the_budget_allows(strategy):
    assert len(strategy.choose(pool(), Budget(regions=50), [], np.random.default_rng(0))) == 50


@pytest.mark.parametrize("labeled", [False, True])
def test_the_same_generator_chooses_the_same(strategy, labeled):
    regions = pool()
    before = earlier(regions) if labeled else []
    one, other = (strategy.choose(regions, Budget(regions=9), before, np.random.default_rng(4)) for _ in range(2))
    assert one.tolist() == other.tolist()


def test_it_does_not_touch_the_global_generators(strategy):
    before = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    strategy.choose(pool(), Budget(regions=9), [], np.random.default_rng(4))
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_the_order_of_the_rows_does_not_matter(strategy):
    regions = pool()
    order = random.Random(1).sample(range(len(regions)), len(regions))
    labeled = Selection(earlier(regions), META)
    one, other = (
        select(given, budget=Budget(regions=9), strategy=strategy, labeled=labeled, seed=2).rows
        for given in (regions, shuffled(regions, order))
    )
    assert one == other


def test_the_pool_is_left_as_it_was(strategy):
    regions = pool()
    strategy.choose(regions, Budget(regions=9), earlier(regions), np.random.default_rng(0))
    assert regions.rows() == pool().rows()


def test_a_pool_of_one_region_is_chosen(strategy):
    assert strategy.choose(table(("a", 0.5)), Budget(regions=3), [], np.random.default_rng(0)).tolist() == [0]


def test_one_that_ranks_puts_every_row_in_order(strategy):
    if isinstance(strategy, Ranked):
        assert sorted(strategy.rank(pool(), np.random.default_rng(0)).tolist()) == list(range(60))


def test_rounds_end_with_every_region_labeled_once(strategy):
    rounds = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(4):
            rounds.append(select(pool(), budget=Budget(regions=20), strategy=strategy, labeled=rounds))
    keys = [(row["image_id"], row["region_id"]) for one in rounds for row in one.rows]
    assert len(keys) == len(set(keys)) == 60


def test_it_is_made_again_from_its_arguments(strategy):
    again = type(strategy)(**strategy.arguments())
    assert repr(again) == repr(strategy)


def test_its_repr_can_be_read_as_code(strategy):
    assert repr(eval(repr(strategy), {type(strategy).__name__: type(strategy)})) == repr(strategy)
