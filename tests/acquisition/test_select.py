import contextlib
import warnings
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seguq import acquisition
from seguq.acquisition import Budget, Random, Selection, Strategy, TopK, select
from seguq.core.errors import SeguqError
from tests.acquisition.tables import META, names, shuffled, table

strategies = pytest.mark.parametrize("strategy", [TopK(), Random()], ids=repr)

SOME = table(("b", 0.3), ("a", 0.9), ("a", 0.1), ("c", 0.5), ("b", 0.7), ("c", 0.2))
EQUAL = table(*[(f"image {i}", 0.5) for i in range(4)])


@st.composite
def tables(draw):
    """Tables of a few images with regions of different area; equal scores are frequent."""
    rows = st.tuples(st.sampled_from("abcd"), st.sampled_from([0.0, 0.25, 0.5, 1.0, 7.5]), st.integers(1, 9))
    return table(*draw(st.lists(rows, min_size=1, max_size=12)))


def quietly(*arguments, **settings):
    """`select` where a budget that is too large is no surprise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return select(*arguments, **settings)


property_test = settings(deadline=None, max_examples=60)


# the order


def test_the_highest_scores_come_first():
    chosen = select(SOME, budget=Budget(regions=4), strategy=TopK())
    assert names(chosen) == [("a", 0), ("b", 1), ("c", 0), ("b", 0)]


@given(regions=tables(), seed=st.integers(0, 9))
@property_test
def test_scores_fall_along_the_ranks(regions, seed):
    chosen = quietly(regions, budget=Budget(regions=len(regions)), strategy=TopK(), seed=seed)
    scores = [row["score"] for row in chosen.rows]
    assert scores == sorted(regions.column("score").tolist(), reverse=True)


@strategies
def test_ranks_count_from_1(strategy):
    chosen = select(SOME, budget=Budget(regions=4), strategy=strategy)
    assert [row["rank"] for row in chosen.rows] == [1, 2, 3, 4]


@strategies
def test_no_region_is_selected_twice(strategy):
    assert len(set(names(select(SOME, budget=Budget(regions=6), strategy=strategy)))) == 6


def test_a_selected_row_holds_what_the_table_held():
    (row,) = select(SOME, budget=Budget(regions=1), strategy=TopK()).rows
    assert row == {"rank": 1, **SOME.rows()[1]}


@strategies
def test_the_same_seed_selects_the_same(strategy):
    one, other = (select(EQUAL, budget=Budget(regions=3), strategy=strategy, seed=5) for _ in range(2))
    assert one.rows == other.rows


@strategies
def test_another_seed_selects_other_regions_of_equal_score(strategy):
    chosen = {tuple(names(select(EQUAL, budget=Budget(regions=2), strategy=strategy, seed=s))) for s in range(20)}
    assert len(chosen) > 1


def test_the_seed_does_not_matter_where_no_two_scores_are_equal():
    chosen = {tuple(names(select(SOME, budget=Budget(regions=3), strategy=TopK(), seed=s))) for s in range(20)}
    assert len(chosen) == 1


@strategies
def test_the_global_generators_do_not_matter(strategy):
    chosen = set()
    for seed in (1, 2):
        np.random.seed(seed)  # noqa: NPY002
        chosen.add(tuple(names(select(EQUAL, budget=Budget(regions=2), strategy=strategy))))
    assert len(chosen) == 1


@strategies
@given(regions=tables(), seed=st.integers(0, 9), data=st.data())
@property_test
def test_the_order_of_the_rows_does_not_matter(strategy, regions, seed, data):
    other = shuffled(regions, data.draw(st.permutations(range(len(regions)))))
    budget = Budget(regions=data.draw(st.integers(1, len(regions))))
    one, two = (quietly(t, budget=budget, strategy=strategy, seed=seed) for t in (regions, other))
    assert one.rows == two.rows


def how_often_first(regions, strategy, seeds=400):
    chosen = (select(regions, budget=Budget(regions=1), strategy=strategy, seed=seed) for seed in range(seeds))
    return Counter(names(one)[0] for one in chosen)


@strategies
def test_equal_scores_are_equally_often_first(strategy):
    # 100 times in 400 each, with a standard deviation of 8.7
    counts = how_often_first(EQUAL, strategy)
    assert len(counts) == 4
    assert all(60 < count < 140 for count in counts.values())


def test_a_tie_at_the_border_of_the_budget_is_broken_fairly():
    regions = table(("top", 0.9), *[(f"image {i}", 0.5) for i in range(4)], ("last", 0.1))
    chosen = (select(regions, budget=Budget(regions=2), strategy=TopK(), seed=seed) for seed in range(400))
    counts = Counter(row["image_id"] for one in chosen for row in one.rows)
    assert counts.pop("top") == 400
    assert set(counts) == {f"image {i}" for i in range(4)}
    assert all(60 < count < 140 for count in counts.values())


def test_random_takes_no_notice_of_scores():
    regions = table(*[(f"image {i}", 10.0**i) for i in range(4)])
    assert all(60 < count < 140 for count in how_often_first(regions, Random()).values())
    assert len(how_often_first(regions, Random())) == 4


# the budget


@strategies
@given(regions=tables(), limit=st.integers(1, 14), seed=st.integers(0, 9))
@property_test
def test_a_budget_of_regions_is_spent_and_never_exceeded(strategy, regions, limit, seed):
    chosen = quietly(regions, budget=Budget(regions=limit), strategy=strategy, seed=seed)
    assert len(chosen) == min(limit, len(regions))


@strategies
@given(regions=tables(), limit=st.integers(1, 60), seed=st.integers(0, 9))
@property_test
def test_a_budget_of_pixels_is_never_exceeded(strategy, regions, limit, seed):
    chosen = quietly(regions, budget=Budget(pixels=limit), strategy=strategy, seed=seed)
    assert sum(row["area"] for row in chosen.rows) <= limit


@strategies
@given(regions=tables(), limit=st.integers(1, 60), seed=st.integers(0, 9))
@property_test
def test_no_region_is_left_that_would_fit_into_a_budget_of_pixels(strategy, regions, limit, seed):
    chosen = quietly(regions, budget=Budget(pixels=limit), strategy=strategy, seed=seed)
    room = limit - sum(row["area"] for row in chosen.rows)
    taken = set(names(chosen))
    assert all(row["area"] > room for row in regions.rows() if (row["image_id"], row["region_id"]) not in taken)


@strategies
@given(regions=tables(), limit=st.integers(1, 5), seed=st.integers(0, 9))
@property_test
def test_a_budget_of_images_is_spent_and_never_exceeded(strategy, regions, limit, seed):
    chosen = quietly(regions, budget=Budget(images=limit), strategy=strategy, seed=seed)
    assert len(chosen.image_ids) == min(limit, len(set(regions.column("image_id"))))


@strategies
@given(regions=tables(), limit=st.integers(1, 5), seed=st.integers(0, 9))
@property_test
def test_a_budget_of_images_takes_every_region_of_the_images_that_are_opened(strategy, regions, limit, seed):
    chosen = quietly(regions, budget=Budget(images=limit), strategy=strategy, seed=seed)
    opened = [row for row in regions.rows() if row["image_id"] in chosen.image_ids]
    assert len(chosen) == len(opened)


def test_a_budget_of_pixels_passes_over_what_does_not_fit():
    regions = table(("a", 0.9, 60), ("b", 0.8, 50), ("c", 0.7, 40), ("d", 0.6, 30))
    assert names(select(regions, budget=Budget(pixels=100), strategy=TopK())) == [("a", 0), ("c", 0)]


def test_a_budget_of_images_opens_those_of_the_best_regions():
    chosen = select(SOME, budget=Budget(images=2), strategy=TopK())
    assert names(chosen) == [("a", 0), ("b", 1), ("b", 0), ("a", 1)]


too_large = pytest.mark.parametrize(
    "budget", [Budget(regions=7), Budget(pixels=301), Budget(images=4)], ids=lambda budget: repr(budget)
)


@strategies
@too_large
def test_a_budget_that_is_too_large_takes_all(strategy, budget):
    assert len(quietly(SOME, budget=budget, strategy=strategy)) == 6


@strategies
@too_large
def test_a_budget_that_is_too_large_is_a_warning_with_what_it_allows(strategy, budget):
    (limit,) = budget.as_dict().values()
    with pytest.warns(UserWarning, match=str(limit)):
        select(SOME, budget=budget, strategy=strategy)


@strategies
@pytest.mark.parametrize(
    "budget", [Budget(regions=6), Budget(pixels=300), Budget(images=3), Budget(pixels=299)], ids=repr
)
def test_a_budget_that_can_be_spent_is_no_warning(strategy, budget):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        select(SOME, budget=budget, strategy=strategy)


# what was labeled before


@strategies
def test_regions_that_were_labeled_are_left_out(strategy):
    first = select(SOME, budget=Budget(regions=4), strategy=strategy)
    second = select(SOME, budget=Budget(regions=2), strategy=strategy, labeled=first)
    assert set(names(first)) | set(names(second)) == {(row["image_id"], row["region_id"]) for row in SOME.rows()}


@pytest.mark.parametrize("kind", [list, tuple])
def test_regions_of_several_selections_are_left_out(kind):
    rounds = []
    for _ in range(3):
        rounds.append(select(SOME, budget=Budget(regions=2), strategy=TopK(), labeled=kind(rounds)))
    assert [name for chosen in rounds for name in names(chosen)] == names(
        select(SOME, budget=Budget(regions=6), strategy=TopK())
    )


def test_regions_of_a_selection_that_was_saved_are_left_out(tmp_path):
    select(SOME, budget=Budget(regions=2), strategy=TopK()).save(tmp_path / "selection.json")
    labeled = Selection.load(tmp_path / "selection.json")
    assert names(select(SOME, budget=Budget(regions=1), strategy=TopK(), labeled=labeled)) == [("c", 0)]


@pytest.mark.parametrize("nothing", [None, [], Selection([])], ids=["None", "no selections", "an empty selection"])
def test_nothing_is_left_out_where_nothing_was_labeled(nothing):
    assert len(select(SOME, budget=Budget(regions=6), strategy=TopK(), labeled=nothing)) == 6


def test_other_regions_of_an_image_that_was_labeled_in_part_are_selected():
    first = select(SOME, budget=Budget(regions=1), strategy=TopK())
    second = select(SOME, budget=Budget(regions=5), strategy=TopK(), labeled=first)
    assert ("a", 1) in names(second)


def test_regions_that_were_labeled_spend_nothing():
    first = select(SOME, budget=Budget(regions=2), strategy=TopK())
    second = select(SOME, budget=Budget(pixels=100), strategy=TopK(), labeled=first)
    assert names(second) == [("c", 0), ("b", 0)]


@pytest.mark.parametrize("budget", [Budget(regions=1), Budget(pixels=50), Budget(images=1)], ids=repr)
def test_nothing_left_to_select_is_a_warning_and_an_empty_selection(budget):
    everything = select(SOME, budget=Budget(regions=6), strategy=TopK())
    with pytest.warns(UserWarning):
        assert len(select(SOME, budget=budget, strategy=TopK(), labeled=everything)) == 0


# why


def test_a_selection_says_how_it_was_made():
    chosen = select(SOME, budget=Budget(pixels=100), strategy=Random(), seed=7)
    assert chosen.why == {"strategy": "Random()", "budget": {"pixels": 100}, "seed": 7, **META}


# strategies of one's own


class Alphabetical:
    """Regions by the name of their image, and a record of what it was handed."""

    def rank(self, regions, generator):
        self.drawn = generator.random()
        return np.argsort(regions.column("image_id").astype(str), kind="stable")


def test_a_strategy_of_ones_own_ranks_the_regions():
    chosen = select(SOME, budget=Budget(regions=3), strategy=Alphabetical())
    assert names(chosen) == [("a", 0), ("a", 1), ("b", 0)]


def test_a_strategy_is_handed_a_generator_of_the_seed():
    drawn = []
    for seed in (1, 1, 2):
        strategy = Alphabetical()
        select(SOME, budget=Budget(regions=3), strategy=strategy, seed=seed)
        drawn.append(strategy.drawn)
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("strategy", [TopK(), Random(), Alphabetical()], ids=lambda s: type(s).__name__)
def test_whatever_ranks_follows_the_protocol(strategy):
    assert isinstance(strategy, Strategy)


@strategies
@given(regions=tables(), seed=st.integers(0, 9))
@property_test
def test_a_strategy_ranks_every_row_once(strategy, regions, seed):
    ranked = strategy.rank(regions, np.random.default_rng(seed))
    assert sorted(ranked.tolist()) == list(range(len(regions)))


# wrong use


def test_an_empty_table_is_an_error():
    empty = shuffled(SOME, [])
    with pytest.raises(SeguqError, match="the table of regions is empty"):
        select(empty, budget=Budget(regions=1), strategy=TopK())


@strategies
@pytest.mark.parametrize("score", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_an_error_with_row_and_score(strategy, score):
    with pytest.raises(SeguqError, match=f"row 2 .* has the score {score}"):
        select(table(("a", 0.1), ("b", 0.2), ("c", score), ("d", np.nan)), budget=Budget(regions=1), strategy=strategy)


def test_the_package_hands_on_the_function():
    assert acquisition.select is select


def test_a_region_that_is_in_the_table_twice_is_an_error_that_names_it():
    one = table(("a", 1), ("a", 2))
    twice = type(one).concatenate([one, one])
    with pytest.raises(SeguqError, match="region 0 of image 'a' more than once"):
        select(twice, budget=Budget(regions=1), strategy=TopK())


def test_a_seed_of_numpy_is_saved_as_a_number(tmp_path):
    selection = select(table(("a", 1)), budget=Budget(regions=1), strategy=TopK(), seed=np.int64(3))
    selection.save(tmp_path / "s.json")
    assert Selection.load(tmp_path / "s.json").why["seed"] == 3


@pytest.mark.parametrize(("partition", "left"), [("Grid(64)", 0), ("WholeImage()", 0), ("Superpixels(9)", 1)])
def test_what_lies_within_a_labeled_cell_of_another_size_is_labeled(partition, left):
    one = table(("a", 1))
    row = {**one.rows()[0], "rank": 1, "region_id": 99, "y0": 0, "x0": 0, "y1": 1000, "x1": 1000}
    earlier = Selection([row], {"partition": partition})
    with pytest.warns(UserWarning, match="only") if not left else contextlib.nullcontext():
        assert len(select(one, budget=Budget(regions=1), strategy=TopK(), labeled=earlier)) == left
