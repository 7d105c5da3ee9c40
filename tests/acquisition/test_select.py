import warnings
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seguq import acquisition
from seguq.acquisition import Budget, PowerTopK, Random, Ranked, Selection, Strategy, TopK, select
from seguq.core.errors import SeguqError
from seguq.regions import RegionTable
from seguq.regions.rle import encode, region_mask
from seguq.regions.table import SCHEMA
from tests.acquisition.tables import META, names, shuffled, table

strategies = pytest.mark.parametrize("strategy", [TopK(), Random(), PowerTopK()], ids=repr)

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
    reason = "among the highest scores: variance 0.9, predicted class 0"
    assert row == {"rank": 1, **SOME.rows()[1], "reason": reason}


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
    counts = {"spent": 100, "regions": 6, "labeled": 0, "considered": 6}
    assert chosen.why == {"strategy": "Random()", "budget": {"pixels": 100}, "seed": 7, **counts, **META}


# strategies of one's own


class Alphabetical(Ranked):
    """Regions by the name of their image, and a record of what it was handed."""

    def rank(self, pool, generator):
        self.drawn = generator.random()
        return np.argsort(pool.column("image_id").astype(str), kind="stable")


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


class Told(Strategy):
    """Chooses what it was told to, and keeps what it was handed."""

    def __init__(self, rows=(0,)):
        self.rows = rows

    def choose(self, pool, budget, labeled, generator):
        self.seen = pool, budget, labeled
        return self.rows


def test_a_strategy_chooses_among_what_is_not_labeled_and_knows_what_is():
    first = select(SOME, budget=Budget(regions=2), strategy=TopK())
    second = select(SOME, budget=Budget(regions=1), strategy=TopK(), labeled=first)
    strategy = Told([1, 0])
    chosen = quietly(SOME, budget=Budget(regions=3), strategy=strategy, labeled=[first, second])
    pool, budget, labeled = strategy.seen
    assert [(row["image_id"], row["region_id"]) for row in pool.rows()] == [("a", 1), ("b", 0), ("c", 1)]
    assert budget == Budget(regions=3)
    assert labeled == first.rows + second.rows
    assert names(chosen) == [("b", 0), ("a", 1)]


def test_a_strategy_is_not_asked_where_nothing_is_left():
    strategy = Told()
    everything = select(SOME, budget=Budget(regions=6), strategy=TopK())
    assert len(quietly(SOME, budget=Budget(regions=1), strategy=strategy, labeled=everything)) == 0
    assert not hasattr(strategy, "seen")


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([0, 0], "chose a region more than once"),
        ([0, 6], "chose row 6 of a pool of 6"),
        ([-1], "of a pool of 6"),
        ([0, 1, 2, 3], r"chose 4 regions, which is more than Budget\(regions=3\) allows"),
        ([0.5], "must choose row numbers"),
        ([[0]], "must choose row numbers"),
        ([True], "must choose row numbers"),
    ],
    ids=repr,
)
def test_a_strategy_that_does_not_keep_to_the_rules_is_an_error_that_names_it(rows, text):
    with pytest.raises(SeguqError, match=rf"Told.*{text}"):
        select(SOME, budget=Budget(regions=3), strategy=Told(rows))


@pytest.mark.parametrize("strategy", ["TopK", TopK], ids=repr)
def test_what_is_no_strategy_is_an_error_that_shows_one(strategy):
    with pytest.raises(SeguqError, match=r"strategy must be one such as seguq.acquisition.TopK\(\), but is"):
        select(SOME, budget=Budget(regions=3), strategy=strategy)


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


# shapes


def square(image_id, number, y0, x0, y1, x1, mask=None, **more):
    """A row of a table or a selection; ``mask`` within the box where it is not all of it."""
    area = (y1 - y0) * (x1 - x0) if mask is None else int(np.sum(mask))
    row = {"image_id": image_id, "region_id": number, "y0": y0, "x0": x0, "y1": y1, "x1": x1, "area": area}
    return row | {"score": 1.0, "predicted_class": 0, "rle": None if mask is None else encode(mask), **more}


def table_of(*rows):
    return RegionTable(pa.Table.from_pylist(list(rows), SCHEMA), META)


def left(rows, labeled):
    """The numbers of the regions that are not labeled yet."""
    earlier = Selection([{"rank": 1, **row} for row in labeled], {"partition": "Anything()"})
    chosen = quietly(table_of(*rows), budget=Budget(regions=len(rows)), strategy=TopK(), labeled=earlier)
    return sorted(row["region_id"] for row in chosen.rows)


RAGGED = np.array([[True, True], [True, False]])


def test_what_lies_within_a_larger_labeled_box_is_labeled():
    pool = [square("a", 0, 0, 0, 2, 2), square("a", 1, 9, 9, 11, 11), square("b", 2, 0, 0, 2, 2)]
    assert left(pool, [square("a", 7, 0, 0, 10, 10)]) == [1, 2]


def test_what_is_covered_by_several_labeled_regions_together_is_labeled():
    cells = [square("a", i, 0, 2 * i, 2, 2 * i + 2) for i in range(3)]
    assert left([square("a", 9, 0, 0, 2, 6)], cells) == []
    assert left([square("a", 9, 0, 0, 2, 6)], cells[::2]) == [9]


def test_a_region_that_is_no_box_leaves_the_rest_of_its_box():
    pool = [square("a", 0, 0, 0, 2, 2), square("a", 1, 1, 1, 2, 2), square("a", 2, 0, 0, 2, 1)]
    assert left(pool, [square("a", 7, 0, 0, 2, 2, RAGGED)]) == [0, 1]


def test_a_region_that_is_no_box_lies_within_what_covers_its_pixels():
    assert left([square("a", 0, 0, 0, 2, 2, RAGGED)], [square("a", 7, 0, 0, 1, 2), square("a", 8, 1, 0, 2, 1)]) == []
    assert left([square("a", 0, 0, 0, 2, 2, ~RAGGED | True)], [square("a", 7, 0, 0, 2, 2, RAGGED)]) == [0]
    assert left([square("a", 0, 0, 0, 2, 2, RAGGED)], [square("a", 7, 0, 0, 2, 2, RAGGED[::-1])]) == [0]


def test_the_same_region_that_is_no_box_is_labeled():
    assert left([square("a", 0, 3, 3, 5, 5, RAGGED)], [square("a", 0, 3, 3, 5, 5, RAGGED)]) == []


def test_a_region_of_unknown_shape_covers_itself_and_nothing_else():
    unknown = square("a", 0, 0, 0, 2, 2) | {"area": 3}
    assert left([square("a", 0, 0, 0, 2, 2, RAGGED), square("a", 1, 0, 0, 1, 1)], [unknown]) == [1]


def test_a_pool_without_shapes_is_one_of_boxes():
    pool = table_of(square("a", 0, 0, 0, 2, 2), square("a", 1, 2, 2, 4, 4))
    plain = RegionTable(pool.table.drop_columns(["rle"]), META)
    earlier = Selection([{"rank": 1, **square("a", 7, 0, 0, 3, 3)}])
    assert names(select(plain, budget=Budget(regions=1), strategy=TopK(), labeled=earlier)) == [("a", 1)]


@given(seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=100)
def test_what_is_left_out_is_what_a_mask_of_the_image_says(seed):
    generator = np.random.default_rng(seed)

    def some(count):
        for number in range(count):
            (y0, y1), (x0, x1) = (sorted(generator.choice(8, 2, replace=False).tolist()) for _ in range(2))
            mask = generator.random((y1 - y0, x1 - x0)) < 0.8
            mask[0, :] = mask[:, 0] = mask[-1, :] = mask[:, -1] = True  # the box is the smallest around it
            image_id = str(generator.choice(["a", "b"]))
            yield square(image_id, number, y0, x0, y1, x1, None if mask.all() or number % 2 else mask)

    pool, labeled = list(some(12)), list(some(4))
    done = {image_id: np.zeros((8, 8), dtype=bool) for image_id in "ab"}
    for row in labeled:
        done[row["image_id"]][row["y0"] : row["y1"], row["x0"] : row["x1"]] |= region_mask(row)
    expected = [
        row["region_id"]
        for row in pool
        if not done[row["image_id"]][row["y0"] : row["y1"], row["x0"] : row["x1"]][region_mask(row)].all()
    ]
    assert left(pool, labeled) == expected


def test_regions_of_a_large_image_are_compared_without_a_mask_of_it():
    side = 10**6
    pool = [square("a", i, 0, i * 1000, 1000, (i + 1) * 1000) for i in range(5)]
    assert left(pool, [square("a", 9, 0, 0, side, 3500)]) == [3, 4]


def test_a_name_that_begins_like_a_grids_loses_no_region():
    earlier = Selection([{"rank": 1, **square("a", 7, 0, 0, 2, 2, RAGGED)}], {"partition": "GridOfTriangles(2)"})
    pool = table_of(square("a", 0, 1, 1, 2, 2))
    assert len(select(pool, budget=Budget(regions=1), strategy=TopK(), labeled=earlier)) == 1


# columns and budgets


def test_further_columns_of_the_table_arrive_in_the_rows():
    wide = SOME.table.append_column("slide", pa.array(list("uvwxyz")))
    wide = wide.append_column("feature", pa.FixedSizeListArray.from_arrays(pa.array(np.arange(12.0)), 2))
    row = select(RegionTable(wide, META), budget=Budget(regions=1), strategy=TopK()).rows[0]
    assert (row["slide"], row["feature"]) == ("v", [2.0, 3.0])


@pytest.mark.parametrize("name", ["rank", "reason", "polygon", "polygons"])
def test_a_column_of_a_name_of_the_selections_own_is_an_error(name):
    wide = RegionTable(SOME.table.append_column(name, pa.array(range(6))), META)
    with pytest.raises(SeguqError, match=f"has a column '{name}', a name of the selection's own: rename it"):
        select(wide, budget=Budget(regions=1), strategy=TopK())


@pytest.mark.parametrize("name", ["image_id", "y0", "area"])
def test_a_value_that_is_missing_is_an_error_that_names_it(name):
    rows = SOME.rows()
    rows[3][name] = None
    broken = RegionTable(pa.Table.from_pylist(rows, SOME.table.schema), META)
    with pytest.raises(SeguqError, match=f"has no {name}"):
        select(broken, budget=Budget(regions=1), strategy=TopK())


def test_regions_of_one_number_and_other_boxes_are_two():
    pool = [square("a", 0, 0, 0, 4, 4), square("a", 0, 0, 0, 2, 2, score=0.5), square("a", 0, 2, 2, 4, 4, score=0.25)]
    chosen = [select(table_of(*rows), budget=Budget(regions=3), strategy=TopK()).rows for rows in (pool, pool[::-1])]
    assert chosen[0] == chosen[1]
    with pytest.raises(SeguqError, match="region 0 of image 'a' more than once"):
        select(table_of(*pool, pool[1]), budget=Budget(regions=3), strategy=TopK())


def test_a_budget_takes_no_more_of_an_image_than_per_image():
    chosen = select(SOME, budget=Budget(regions=3, per_image=1), strategy=TopK())
    assert names(chosen) == [("a", 0), ("b", 1), ("c", 0)]


def test_too_few_images_for_per_image_is_a_warning_that_says_so():
    with pytest.warns(UserWarning, match="only 3 are left to select with at most 1 of an image"):
        select(SOME, budget=Budget(regions=4, per_image=1), strategy=TopK())
