"""What every strategy promises, for each that there is."""

import random
import warnings
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from seguq.acquisition import Budget, Keyed, Random, Ranked, Selection, Strategy, TopK, select
from seguq.core.errors import UsageError
from seguq.regions import RegionTable
from tests.acquisition.tables import META, shuffled, table, with_columns

ARGUMENTS = {
    "ClaSP": {"round": 1, "rounds": 3},
    "Mixed": {"share": 0.4, "a": TopK(), "b": Random()},
    "SpatialSpread": {"min_distance": 10},  # what the centers of the regions of these tables are apart
}
"""Arguments where a constructor needs some."""

BUDGETS = [
    Budget(regions=7),
    Budget(regions=1000),
    Budget(pixels=333),
    Budget(images=3),
    Budget(regions=7, per_image=1),
    Budget(pixels=333, per_image=2),
    Budget(images=3, per_image=2),
    Budget(clicks=52),
    Budget(clicks=52, per_image=2),
    Budget(cost=lambda row: 0.1 * row["area"], limit=33.0),
    Budget(cost=lambda row: 0.1 * row["area"], limit=33.0, per_image=2),
]
BUDGETS += [replace(budget, fill=False) for budget in BUDGETS]


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
    return with_columns(table(*rows))


def earlier(regions):
    """Some regions as rows of an earlier selection."""
    return [{"rank": rank, **row} for rank, row in enumerate(regions.rows()[::7], 1)]


def spent(rows):
    images = [row["image_id"] for row in rows]
    return {
        "regions": len(rows),
        "pixels": sum(row["area"] for row in rows),
        "images": len(set(images)),
        "clicks": 5 * len(rows),
        "limit": 0.1 * sum(row["area"] for row in rows),
        "per_image": max((images.count(image) for image in images), default=0),
    }


def test_the_shipped_ones_are_known():
    assert set(ours()) >= {
        *("BestOfEachImage", "ClaSP", "ClassAwareRandom", "ClassBalanced", "ClassWeighted", "CoreSet"),
        *("HerdThenUncertain", "KMeansPlusPlus", "Mixed", "PowerTopK", "Random", "SpatialSpread", "TopK"),
        "TopThenRandom",
    }


@pytest.mark.parametrize("budget", BUDGETS, ids=repr)
def test_it_keeps_to_the_budget(strategy, budget):
    regions = pool()
    rows = strategy.choose(regions, budget, [], np.random.default_rng(0))
    assert 0 < len(rows) == len(set(rows.tolist()))
    found = spent(regions.take(rows).rows())
    limits = {name: most for name, most in budget.as_dict().items() if name not in ("cost", "fill")}
    assert all(found[name] <= most for name, most in limits.items())
    assert budget.allows(regions, rows)


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
    assert strategy.choose(
        with_columns(table(("a", 0.5))), Budget(regions=3), [], np.random.default_rng(0)
    ).tolist() == [0]


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
    names = {name: Strategy.named(name) for name in ours()}
    assert repr(eval(repr(strategy), names)) == repr(strategy)


def test_it_says_why_each_region_was_chosen_with_its_score_and_class(strategy):
    for row in select(pool(), budget=Budget(regions=9), strategy=strategy).rows:
        words, _, rest = row["reason"].partition(": ")
        assert words and rest == f"variance {row['score']:.3g}, predicted class {row['predicted_class']}"


def test_a_column_that_it_reads_and_that_is_not_there_is_one_error_that_says_how_to_get_it(strategy):
    for name in strategy.needs:
        lacking = RegionTable(pool().table.drop_columns([name]), META)
        with pytest.raises(UsageError, match=rf"reads the column '{name}', which .* does not have: .*--"):
            select(lacking, budget=Budget(regions=9), strategy=strategy)


def test_the_names_of_images_are_only_names(strategy):
    hostile = ["=1+1", "a\nb", "ä/ö", "'; DROP", "\u202e", " ", "100%", "nan"]
    renamed = dict(zip("abcdefgh", hostile, strict=True))
    rows = [{**row, "image_id": renamed[row["image_id"]]} for row in pool().rows()]
    regions = RegionTable(pa.Table.from_pylist(rows, pool().table.schema), META)
    assert len(select(regions, budget=Budget(regions=50), strategy=strategy)) == 50


def test_a_whole_selection_goes_to_disk_and_back_and_is_what_is_labeled_next_time(strategy, tmp_path):
    first = select(pool(), budget=Budget(regions=9), strategy=strategy)
    first.save(tmp_path / "a.json")
    again = Selection.load(tmp_path / "a.json")
    assert again.rows == first.rows
    one, other = (select(pool(), budget=Budget(regions=9), strategy=strategy, labeled=kept) for kept in (first, again))
    assert one.rows == other.rows and not one.keys() & first.keys()


@pytest.mark.parametrize("per_image", [None, 3])
@pytest.mark.parametrize("limits", [{"regions": 5}, {"pixels": 200}, {"images": 2}, {"clicks": 30}], ids=repr)
def test_more_budget_extends_what_one_with_an_order_of_its_own_takes(strategy, limits, per_image):
    if strategy.name in ("ClaSP", "HerdThenUncertain", "Mixed"):
        pytest.skip("it may choose otherwise for a larger budget, as the budget says")
    ((kind, less),) = limits.items()
    budgets = (Budget(**{kind: most}, fill=False, per_image=per_image) for most in (less, 2 * less))
    small, large = (select(pool(), budget=budget, strategy=strategy).rows for budget in budgets)
    assert small == large[: len(small)] and len(small) < len(large)


def test_a_region_more_in_the_pool_changes_no_order_of_the_others(strategy):
    if not isinstance(strategy, Keyed) or strategy.each_image:
        pytest.skip("what it takes depends on the others")
    regions = pool()
    fewer = regions.take(np.arange(1, len(regions)))
    long, short = (strategy.rank(one, np.random.default_rng(3)) for one in (regions, fewer))
    assert [row - 1 for row in long.tolist() if row] == short.tolist()
