"""What a nest of lists, tuples and dicts holds."""

from collections import OrderedDict, namedtuple

import pytest

from seguq.core.trees import leaves

Pair = namedtuple("Pair", "first second")


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (5, [5]),
        (None, []),
        ([], []),
        ([1, (2, [3])], [1, 2, 3]),
        ({"b": 1, "a": {"c": 2}}, [1, 2]),
        (OrderedDict(z=1, a=[2, None]), [1, 2]),
        (Pair(1, Pair(2, None)), [1, 2]),
        ([0, False, ""], [0, False, ""]),
    ],
    ids=str,
)
def test_leaves_come_in_the_order_of_the_nest_without_none(tree, expected):
    assert leaves(tree) == expected


@pytest.mark.parametrize("leaf", ["text", range(3), {1, 2}, iter([1])], ids=["text", "range", "set", "iterator"])
def test_only_lists_tuples_and_dicts_are_opened(leaf):
    assert leaves([leaf]) == [leaf]
    assert leaves([leaf])[0] is leaf
