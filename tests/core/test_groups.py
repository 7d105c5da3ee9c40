import itertools

import pytest

from seguq.core.errors import SeguqError, UsageError
from seguq.core.groups import Groups


@pytest.mark.parametrize(
    ("group", "expected"),
    [("^[^_]+", "0016E5"), (r"_(\d{3})", "003"), (lambda name: name[-1], "0"), ("(nothing)|(E5)", "E5")],
)
def test_a_group_is_what_the_id_says(group, expected):
    assert Groups(group)("0016E5_00390", 3, 10) == expected
    assert Groups(group).named


def test_without_a_group_images_are_cut_into_at_most_64_contiguous_blocks():
    for total in (1, 5, 64, 65, 1000, 12345):
        found = [Groups()("id", number, total) for number in range(total)]
        assert 1 <= len(set(found)) <= 64
        assert len(set(found)) == 1 + sum(a != b for a, b in itertools.pairwise(found))  # contiguous
        assert len(set(found)) == total or total > 64


def test_where_nobody_knows_how_many_images_there_are_each_is_a_block():
    assert len({Groups()("id", number) for number in range(500)}) == 500


def test_an_id_that_the_expression_finds_nothing_in_is_an_error_that_names_both():
    with pytest.raises(SeguqError, match=r"group='\^video' finds nothing in the image id 'a'"):
        Groups("^video")("a", 0)


def test_an_expression_needs_ids_a_function_may_take_running_numbers():
    with pytest.raises(SeguqError, match="the batches have no ids: make the loader give an image_id"):
        Groups("^[^_]+").require_ids(numbered=True)
    for groups, numbered in ((Groups("^[^_]+"), False), (Groups(lambda name: name), True), (Groups(), True)):
        groups.require_ids(numbered)


@pytest.mark.parametrize("group", ["(", 3, ""])
def test_what_is_no_group_is_an_error_at_once(group):
    with pytest.raises(UsageError, match="group"):
        Groups(group)
