"""Nested lists, tuples and dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def leaves(tree: Any) -> list[Any]:
    """What a nest of lists, tuples and dicts holds, in order; None counts as nothing.

    Example:
        >>> leaves({"a": [1, 2], "b": (3, None)})
        [1, 2, 3]
    """
    if tree is None:
        return []
    if isinstance(tree, Mapping):
        return [leaf for value in tree.values() for leaf in leaves(value)]
    if isinstance(tree, (list, tuple)):
        return [leaf for value in tree for leaf in leaves(value)]
    return [tree]
