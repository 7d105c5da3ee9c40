import random
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seguq.acquisition import Budget
from seguq.acquisition import budget as budget_module
from seguq.core.errors import SeguqError
from seguq.regions import RegionTable
from seguq.regions.table import SCHEMA

kinds = pytest.mark.parametrize("kind", ["regions", "pixels", "images", "clicks"])


def hours(row):
    """What a region costs."""
    return 0.25 * row["area"]


def row(name, area=1, image_id="a"):
    return {"name": name, "area": area, "image_id": image_id}


def pool(rows):
    """A table of these regions, in this order."""
    content = [dict.fromkeys(SCHEMA.names, 0) | {"rle": None, "score": 0.0} | row for row in rows]
    further = [("name", pa.string()), *([("clicks", pa.int32())] if rows and "clicks" in rows[0] else [])]
    return RegionTable(pa.Table.from_pylist(content, pa.schema([*SCHEMA, *further])))


def spent(budget, rows):
    table = pool(rows)
    return [rows[i]["name"] for i in budget.spend(table, np.arange(len(rows)))]


def by_loop(budget, rows):
    """The same, one region after the other."""
    taken = []
    for row in rows:
        images = [other["image_id"] for other in taken]
        if budget.per_image is not None and images.count(row["image_id"]) >= budget.per_image:
            continue
        after = [*taken, row]
        fits = (
            (budget.regions is None or len(after) <= budget.regions)
            and (budget.pixels is None or sum(other["area"] for other in after) <= budget.pixels)
            and (budget.images is None or len({other["image_id"] for other in after}) <= budget.images)
            and (budget.clicks is None or sum(other["clicks"] for other in after) <= budget.clicks)
            and (budget.cost is None or sum(hours(other) for other in after) <= budget.limit)
        )
        if fits:
            taken.append(row)
        elif not budget.fill:
            break
    return [row["name"] for row in taken]


@kinds
def test_a_budget_holds_the_one_limit_that_was_given(kind):
    assert Budget(**{kind: 5}).as_dict() == {kind: 5}


@kinds
def test_repr_can_be_read_as_code(kind):
    assert eval(repr(Budget(**{kind: 5}))) == Budget(**{kind: 5})


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"per_image": 2},
        {"regions": 1, "pixels": 1},
        {"pixels": 2, "images": 2},
        {"regions": 1, "pixels": 1, "images": 1},
    ],
)
def test_anything_but_one_limit_is_an_error_that_lists_the_choice(limits):
    with pytest.raises(SeguqError, match=r"exactly one of regions=, pixels=, images="):
        Budget(**limits)


@kinds
@pytest.mark.parametrize("value", [0, -1, 2.5, 3.0, True, "7", float("nan")])
def test_a_limit_that_is_no_number_of_things_is_an_error_with_what_it_is(kind, value):
    with pytest.raises(SeguqError, match=f"{kind}= must be a whole number of at least 1, but is {value!r}"):
        Budget(**{kind: value})


@pytest.mark.parametrize("number", [np.int64(5), np.uint8(5), np.int32(5)], ids=repr)
@pytest.mark.parametrize("name", ["regions", "pixels", "images", "clicks", "per_image"])
def test_a_whole_number_of_numpy_is_taken_as_such(name, number):
    budget = Budget(**({"regions": 9} | {name: number} if name == "per_image" else {name: number}))
    assert type(getattr(budget, name)) is int and f"{name}=5" in repr(budget)


@pytest.mark.parametrize("limit", [np.float32(2.5), np.float64(2.5)], ids=repr)
def test_a_limit_of_numpy_is_taken_as_such(limit):
    assert "limit=2.5" in repr(Budget(cost=hours, limit=limit))


def test_a_budget_cannot_be_changed():
    with pytest.raises(AttributeError):
        Budget(regions=1).regions = 2


def test_regions_are_taken_from_the_front():
    assert spent(Budget(regions=2), [row(name, 4) for name in "xyz"]) == ["x", "y"]


def test_a_region_that_no_longer_fits_is_passed_over():
    assert spent(Budget(pixels=10), [row("x", 6), row("y", 5), row("z", 4)]) == ["x", "z"]


def test_a_budget_of_pixels_may_be_spent_to_the_last():
    assert spent(Budget(pixels=10), [row("x", 6), row("y", 4), row("z", 1)]) == ["x", "y"]


def test_a_budget_of_pixels_smaller_than_any_region_takes_none():
    assert spent(Budget(pixels=3), [row("x", 6), row("y", 4)]) == []


def test_regions_of_further_images_are_passed_over():
    rows = [row("x"), row("y", image_id="b"), row("z", image_id="c"), row("u"), row("v", image_id="b")]
    assert spent(Budget(images=2), rows) == ["x", "y", "u", "v"]


@kinds
def test_nothing_is_spent_where_there_is_nothing(kind):
    assert spent(Budget(**{kind: 5}), []) == []


# any budget, over many regions


@st.composite
def cases(draw):
    areas = draw(st.sampled_from([(1, 1), (1, 9), (1, 200), (90, 110)]))
    generator = random.Random(draw(st.integers(0, 2**32)))
    images = "abcdefghij"[: draw(st.integers(1, 10))]
    rows = [
        row(str(i), generator.randint(*areas), generator.choice(images)) | {"clicks": generator.randint(1, 9)}
        for i in range(draw(st.integers(0, 60)))
    ]
    limit = draw(st.sampled_from(["regions", "pixels", "images", "clicks", "limit"]))
    most = {"regions": 70, "pixels": 70 * areas[1], "images": 12, "clicks": 300, "limit": 20 * areas[1]}[limit]
    more = {"per_image": draw(st.none() | st.integers(1, 5)), "fill": draw(st.booleans())}
    more |= {"cost": hours} if limit == "limit" else {}
    return Budget(**{limit: draw(st.integers(1, most))}, **more), rows


@pytest.mark.parametrize("chunk", [3, 2**16])
@given(case=cases())
@settings(deadline=None, max_examples=150)
def test_what_is_taken_is_that_of_a_loop(chunk, case):
    before = budget_module._CHUNK
    budget_module._CHUNK = chunk
    try:
        assert spent(*case) == by_loop(*case)
    finally:
        budget_module._CHUNK = before


@given(case=cases())
@settings(deadline=None, max_examples=150)
def test_regions_that_are_taken_one_by_one_are_the_same(case):
    budget, rows = case
    table = pool(rows)
    taken = budget.account(table).take_all(np.arange(len(rows)))
    assert [rows[i]["name"] for i in taken] == by_loop(budget, rows)


@given(case=cases(), cut=st.integers(0, 60))
@settings(deadline=None, max_examples=150)
def test_what_is_left_of_a_budget_goes_on_where_the_first_part_ended(case, cut):
    budget, rows = case
    table, cut = pool(rows), min(cut, len(rows))
    first = budget.spend(table, np.arange(cut))
    then = budget.after(table, first).spend(table, np.arange(cut, len(rows)))
    together = [rows[i]["name"] for i in (*first, *then)]
    assert budget.allows(table, np.concatenate([first, then]).astype(int))
    if budget.fill:  # otherwise the first that did not fit is forgotten
        assert together == by_loop(budget, rows)


@given(case=cases(), share=st.floats(0, 1))
@settings(deadline=None, max_examples=60)
def test_a_part_of_a_budget_costs_no_more_than_that_part(case, share):
    budget, rows = case
    table = pool(rows)
    part = budget.part(share * budget.room)
    assert budget.spent(table, part.spend(table, np.arange(len(rows)))) <= share * budget.room


def test_the_order_is_that_of_the_ranks():
    table = pool([row("x", 3), row("y", 4), row("z", 5)])
    assert Budget(pixels=9).spend(table, np.array([2, 0, 1])).tolist() == [2, 0]


# how many of one image


def test_no_more_regions_of_an_image_are_taken_than_per_image():
    rows = [row("x"), row("y"), row("z"), row("u", image_id="b")]
    assert spent(Budget(regions=3, per_image=2), rows) == ["x", "y", "u"]


def test_a_region_that_does_not_fit_is_none_of_its_image():
    assert spent(Budget(pixels=5, per_image=1), [row("x", 6), row("y", 5)]) == ["y"]


def test_per_image_stands_beside_the_limit():
    budget = Budget(images=3, per_image=2)
    assert (budget.as_dict(), repr(budget)) == ({"images": 3, "per_image": 2}, "Budget(images=3, per_image=2)")


@pytest.mark.parametrize("value", [0, -1, 2.5, True])
def test_per_image_is_a_whole_number_of_at_least_1(value):
    with pytest.raises(SeguqError, match=f"per_image= must be a whole number of at least 1, but is {value!r}"):
        Budget(regions=5, per_image=value)


# clicks and costs


def test_a_box_is_five_clicks():
    assert spent(Budget(clicks=14), [row(name, 4) for name in "xyz"]) == ["x", "y"]


def test_a_region_that_is_no_box_costs_the_corners_of_its_outline_and_one_click_more():
    from seguq.regions.rle import encode

    mask = np.ones((40, 40), bool)
    mask[:20, :20] = False  # an L of six corners
    shaped = row("l") | {"y1": 40, "x1": 40, "area": int(mask.sum()), "rle": encode(mask)}
    assert spent(Budget(clicks=6), [shaped, row("y", 4)]) == ["y"]
    assert spent(Budget(clicks=7), [shaped, row("y", 4)]) == ["l"]
    assert Budget(clicks=12).spent(pool([shaped, row("y", 4)]), [0, 1]) == 12


def test_a_cost_is_asked_for_only_of_regions_that_are_considered():
    asked = []

    def cost(row):
        asked.append(row["name"])
        return 1.0

    assert spent(Budget(cost=cost, limit=2), [row(name) for name in "xyzuv"]) == ["x", "y"]
    assert asked == ["x", "y"]


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "1", None, True])
def test_a_cost_that_is_no_number_above_0_is_an_error_with_the_region(value):
    with pytest.raises(SeguqError, match=r"cost= must give a number above 0, but gave .* for region 0 of image 'a'"):
        spent(Budget(cost=lambda row: value, limit=2), [row("x")])


def test_a_cost_that_fails_is_an_error_with_the_region():
    with pytest.raises(SeguqError, match=r"cost= failed for region 0 of image 'a' \(KeyError: 'hours'\)"):
        spent(Budget(cost=lambda row: row["hours"], limit=2), [row("x")])


@pytest.mark.parametrize("limit", [None, 0, -1.0, float("nan"), float("inf"), "3", True])
def test_a_cost_needs_a_limit(limit):
    with pytest.raises(SeguqError, match=r"cost= needs limit=, a number above 0"):
        Budget(cost=hours, limit=limit)


def test_a_limit_needs_a_cost():
    with pytest.raises(SeguqError, match=r"limit= is that of cost="):
        Budget(regions=3, limit=2.0)


@pytest.mark.parametrize("clicks", [0, None, 1.5])
def test_clicks_of_the_table_are_whole_numbers_of_at_least_1(clicks):
    table = RegionTable(pool([row("x")]).table.append_column("clicks", pa.array([clicks])))
    with pytest.raises(SeguqError, match=r"column 'clicks' .* must hold whole numbers of at least 1"):
        Budget(clicks=3).spend(table, [0])


def test_a_single_pixel_is_one_click_whatever_its_box():
    rows = [
        {"area": 1, "rle": None},
        {"area": 1, "rle": [3, 1]},
        {"area": 4, "rle": None},
        {"area": 1, "rle": [0, 1, 3]},
    ]
    rows = [{"y1": 2, "x1": 2, **row(str(i)), **more} for i, more in enumerate(rows)]
    assert spent(Budget(clicks=3), rows) == ["0", "1", "3"]
    assert spent(Budget(clicks=7), rows) == ["0", "1", "2"]


# without filling up


def test_without_filling_up_nothing_is_taken_after_what_does_not_fit():
    rows = [row("x", 6), row("y", 5), row("z", 4)]
    assert spent(Budget(pixels=10, fill=False), rows) == ["x"]


def test_per_image_passes_over_without_filling_up_too():
    rows = [row("x"), row("y"), row("z", image_id="b")]
    assert spent(Budget(regions=2, per_image=1, fill=False), rows) == ["x", "z"]


@given(case=cases(), more=st.integers(0, 500))
@settings(deadline=None, max_examples=100)
def test_without_filling_up_more_budget_extends_what_is_taken(case, more):
    budget, rows = case
    less = replace(budget, fill=False)
    name = "limit" if budget.cost is not None else budget.kind
    larger = replace(less, **{name: getattr(less, name) + more})
    small, large = spent(less, rows), spent(larger, rows)
    assert large[: len(small)] == small
