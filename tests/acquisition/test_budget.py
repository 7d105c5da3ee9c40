import random

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

kinds = pytest.mark.parametrize("kind", ["regions", "pixels", "images"])


def row(name, area=1, image_id="a"):
    return {"name": name, "area": area, "image_id": image_id}


def pool(rows):
    """A table of these regions, in this order."""
    content = [dict.fromkeys(SCHEMA.names, 0) | {"rle": None, "score": 0.0} | row for row in rows]
    return RegionTable(pa.Table.from_pylist(content, pa.schema([*SCHEMA, ("name", pa.string())])))


def spent(budget, rows):
    table = pool(rows)
    return [rows[i]["name"] for i in budget.spend(table, np.arange(len(rows)))]


def by_loop(budget, rows):
    """The same, one region after the other."""
    taken = []
    for row in rows:
        images = [other["image_id"] for other in taken]
        if budget.regions is not None and len(taken) >= budget.regions:
            continue
        if budget.pixels is not None and sum(other["area"] for other in taken) + row["area"] > budget.pixels:
            continue
        if budget.images is not None and row["image_id"] not in images and len(set(images)) >= budget.images:
            continue
        if budget.per_image is not None and images.count(row["image_id"]) >= budget.per_image:
            continue
        taken.append(row)
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


def test_a_budget_cannot_be_changed():
    with pytest.raises(AttributeError):
        Budget(regions=1).regions = 2


def test_regions_are_taken_from_the_front():
    assert spent(Budget(regions=2), [row("x"), row("y"), row("z")]) == ["x", "y"]


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
    rows = [row(i, generator.randint(*areas), generator.choice(images)) for i in range(draw(st.integers(0, 60)))]
    limit = draw(st.sampled_from(["regions", "pixels", "images"]))
    most = {"regions": 70, "pixels": 70 * areas[1], "images": 12}[limit]
    return Budget(**{limit: draw(st.integers(1, most))}, per_image=draw(st.none() | st.integers(1, 5))), rows


@pytest.mark.parametrize("chunk", [3, 2**16])
@given(case=cases())
@settings(deadline=None, max_examples=150)
def test_what_is_taken_is_that_of_a_loop(chunk, case):
    before = budget_module._CHUNK
    budget_module._CHUNK = chunk
    try:
        named = [{**row, "name": str(row["name"])} for row in case[1]]
        assert spent(case[0], named) == by_loop(case[0], named)
    finally:
        budget_module._CHUNK = before


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
