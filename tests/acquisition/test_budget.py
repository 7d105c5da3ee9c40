import pytest

from seguq.acquisition import Budget
from seguq.core.errors import SeguqError

kinds = pytest.mark.parametrize("kind", ["regions", "pixels", "images"])


def row(name, area=1, image_id="a"):
    return {"name": name, "area": area, "image_id": image_id}


def spent(budget, rows):
    return [row["name"] for row in budget.spend(rows)]


@kinds
def test_a_budget_holds_the_one_limit_that_was_given(kind):
    assert Budget(**{kind: 5}).as_dict() == {kind: 5}


@kinds
def test_repr_can_be_read_as_code(kind):
    assert eval(repr(Budget(**{kind: 5}))) == Budget(**{kind: 5})


@pytest.mark.parametrize(
    "limits", [{}, {"regions": 1, "pixels": 1}, {"pixels": 2, "images": 2}, {"regions": 1, "pixels": 1, "images": 1}]
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


def test_a_budget_of_regions_does_not_read_further_than_it_takes():
    def rows():
        yield row("x")
        yield row("y")
        yield row("seen, not taken")
        raise AssertionError("read too far")

    assert spent(Budget(regions=2), rows()) == ["x", "y"]


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
