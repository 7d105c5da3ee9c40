"""`classes.json`, well and badly written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from seguq.core.errors import SeguqError
from seguq.data import Classes

BACKGROUND = {"index": 0, "name": "background", "color": [0, 0, 0]}


def write(tmp_path: Path, *entries: Any, **more: Any) -> Path:
    path = tmp_path / "classes.json"
    path.write_text(json.dumps({"classes": list(entries), **more}))
    return path


@pytest.mark.parametrize("spelling", ["color", "colour"])
def test_both_spellings_of_color_are_read(tmp_path: Path, spelling: str) -> None:
    path = write(tmp_path, {"index": 0, "name": "sky", spelling: [1, 2, 3]})
    assert Classes.read(path).colors == ((1, 2, 3),)


def test_names_and_colors_stand_in_the_order_of_their_indices(tmp_path: Path) -> None:
    path = write(tmp_path, {"index": 1, "name": "tree", "color": [4, 5, 6]}, BACKGROUND)
    classes = Classes.read(path)
    assert (classes.names, classes.colors) == (("background", "tree"), ((0, 0, 0), (4, 5, 6)))


def test_the_length_is_the_number_of_classes(tmp_path: Path) -> None:
    assert len(Classes.read(write(tmp_path, BACKGROUND, {"index": 1, "name": "tree"}))) == 2


@pytest.mark.parametrize(("more", "expected"), [({}, 255), ({"ignore_index": 7}, 7)])
def test_the_ignore_index_is_read_and_is_255_where_none_is_given(
    tmp_path: Path, more: dict[str, int], expected: int
) -> None:
    assert Classes.read(write(tmp_path, BACKGROUND, **more)).ignore_index == expected


def test_classes_without_colors_get_colors_that_differ(tmp_path: Path) -> None:
    colors = Classes.read(write(tmp_path, *({"index": i, "name": str(i)} for i in range(30)))).colors
    assert len(set(colors)) == 30
    assert all(0 <= value <= 255 for color in colors for value in color)


def test_an_entry_with_the_ignore_index_is_no_class_and_lends_its_color(tmp_path: Path) -> None:
    classes = Classes.read(write(tmp_path, BACKGROUND, {"index": 255, "name": "void", "color": [9, 9, 9]}))
    assert (classes.names, classes.ignore_colors) == (("background",), ((9, 9, 9),))


def test_unnamed_classes_are_as_many_as_asked_for() -> None:
    classes = Classes.unnamed(5, ignore_index=9)
    assert (len(classes), len(set(classes.names)), len(set(classes.colors)), classes.ignore_index) == (5, 5, 5, 9)


def test_a_missing_file_is_an_error_that_shows_what_it_should_hold(tmp_path: Path) -> None:
    with pytest.raises(SeguqError, match=r'classes\.json is missing.*"index": 0'):
        Classes.read(tmp_path / "classes.json")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"classes": 3}',
        b'{"classes": ["sky"]}',
        b'{"classes": [{"index": 0}]}',
        b'{"classes": [{"name": "sky"}]}',
        b'{"classes": [{"index": "first", "name": "sky"}]}',
        b'{"ignore_index": null, "classes": []}',
        b'{"classes": [{"index": 0, "name": "\xff"}]}',
    ],
)
def test_a_file_that_cannot_be_understood_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "classes.json").write_bytes(content)
    with pytest.raises(SeguqError) as error:
        Classes.read(tmp_path / "classes.json")
    assert str(tmp_path / "classes.json") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "color", [[0, 0, 256], [-1, 0, 0], [0, 0], [0, 0, 0, 0], "red", 7], ids=lambda color: str(color)
)
def test_a_color_that_is_not_three_numbers_of_0_to_255_is_an_error_that_names_the_file(
    tmp_path: Path, color: Any
) -> None:
    with pytest.raises(SeguqError, match=r"classes\.json"):
        Classes.read(write(tmp_path, {"index": 0, "name": "sky", "color": color}))


@pytest.mark.parametrize("indices", [[], [1], [0, 2], [1, 2, 3], [0, 0], [-1, 0]], ids=str)
def test_indices_with_a_gap_or_twice_are_an_error_that_lists_them(tmp_path: Path, indices: list[int]) -> None:
    path = write(tmp_path, *({"index": i, "name": f"class {n}"} for n, i in enumerate(indices)))
    with pytest.raises(SeguqError) as error:
        Classes.read(path)
    assert str(path) in str(error.value)
    assert str(indices) in str(error.value)


def test_a_class_given_twice_once_without_its_color_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, BACKGROUND, {"index": 0, "name": "background"})
    with pytest.raises(SeguqError, match=r"classes\.json"):
        Classes.read(path)


def test_more_classes_than_the_ignore_index_are_an_error_that_says_so(tmp_path: Path) -> None:
    path = write(tmp_path, *({"index": i, "name": str(i)} for i in range(300)))
    with pytest.raises(SeguqError, match="ignore_index=255 lies among the indices") as caught:
        Classes.read(path)
    assert len(str(caught.value)) < 400
