"""Masks in which some pixels are labeled, and what a loop hands to a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from seguq.core.errors import SeguqError
from seguq.data import Classes, ImageSource, Labeled, read_mask
from seguq.data.partial_masks import paste, unlabeled, write_mask
from tests.data.builders import random_mask, random_pixels, write


def test_a_new_mask_has_no_label() -> None:
    mask = unlabeled((2, 3), 255)
    assert mask.shape == (2, 3)
    assert (mask == 255).all()


@pytest.mark.parametrize("types", [(np.uint8, np.int64), (np.int64, np.uint8), (np.uint16, np.uint8)], ids=str)
def test_an_answer_counts_where_it_was_asked_for_and_nowhere_else(types: Any) -> None:
    mask, answer = np.full((4, 5), 7, types[0]), np.full((4, 5), 9, types[1])
    answer[0, 0] = 200
    where = np.zeros((4, 5), np.bool_)
    where[0, 0] = where[2, 1:3] = True
    found = paste(mask, answer, where)
    assert [found[0, 0], found[2, 1], found[2, 2]] == [200, 9, 9]
    assert (found[~where] == 7).all()
    assert (mask == 7).all()


def test_an_index_that_the_old_mask_could_not_hold_is_not_wrapped() -> None:
    found = paste(np.zeros((1, 1), np.uint8), np.full((1, 1), 65535), np.ones((1, 1), np.bool_))
    assert found[0, 0] == 65535


@pytest.mark.parametrize(
    ("answer", "where"),
    [
        (np.zeros((3, 2), int), np.ones((2, 3), bool)),
        (np.zeros((2, 3), int), np.ones((3, 2), bool)),
        (np.zeros((2, 3), int), np.ones((2, 3), int)),
    ],
)
def test_shapes_that_differ_are_an_error(answer: Any, where: Any) -> None:
    with pytest.raises(SeguqError, match="one size"):
        paste(unlabeled((2, 3), 255), answer, where)


@pytest.mark.parametrize(("count", "ignored", "mode"), [(3, 255, "L"), (300, 65535, "I;16"), (3, 65535, "I;16")])
def test_a_mask_is_read_as_it_was_written(tmp_path: Path, count: int, ignored: int, mode: str) -> None:
    classes = Classes.unnamed(count, ignored)
    mask = np.arange(12).reshape(3, 4) * 25 % count
    mask[0, 0] = ignored
    write_mask(tmp_path / "masks" / "a.png", mask, classes)
    assert Image.open(tmp_path / "masks" / "a.png").mode == mode
    np.testing.assert_array_equal(read_mask(tmp_path / "masks" / "a.png", classes), mask)


@pytest.mark.parametrize(
    ("mask", "classes", "says"),
    [
        (np.zeros((2, 2), int), Classes.unnamed(2, -1), "-1 is ignored: set an ignore_index"),
        (np.zeros((2, 2), int), Classes.unnamed(2, 70000), "set an ignore_index"),
        (np.full((2, 2), 2), Classes.unnamed(2), "holds 2, but the classes are 0..1"),
        (np.full((2, 2), -1), Classes.unnamed(2), "holds -1"),
        (np.full((2, 2), 300), Classes.unnamed(2), "holds 300"),
        (np.zeros((2, 2)), Classes.unnamed(2), "whole numbers"),
        (np.zeros((2, 2, 3), int), Classes.unnamed(2), r"\(H, W\)"),
        (np.zeros((0, 2), int), Classes.unnamed(2), r"\(H, W\)"),
    ],
)
def test_what_no_mask_file_can_hold_is_an_error_and_leaves_the_old_one(
    tmp_path: Path, mask: Any, classes: Classes, says: str
) -> None:
    old = write(tmp_path / "a.png", random_mask(2, 2)).read_bytes()
    with pytest.raises(SeguqError, match=says):
        write_mask(tmp_path / "a.png", mask, classes)
    assert (tmp_path / "a.png").read_bytes() == old


def test_a_mask_goes_into_a_png(tmp_path: Path) -> None:
    with pytest.raises(SeguqError, match=r"must end in \.png"):
        write_mask(tmp_path / "a.jpg", unlabeled((2, 2), 255), Classes.unnamed(2))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"masks": {}}, "'a' has an image, but no mask"),
        ({"images": {}}, "'a' has a mask, but no image"),
        ({"seed": 0.5}, "seed"),
        ({"round": -1}, "round"),
    ],
)
def test_what_is_labeled_is_checked_when_it_is_said(tmp_path: Path, change: Any, says: str) -> None:
    image = write(tmp_path / "a.png", random_pixels(4, 4, 3))
    told = {"images": {"a": image}, "masks": {"a": tmp_path / "m.png"}, "pool": ImageSource(tmp_path)}
    with pytest.raises(SeguqError, match=says):
        Labeled(**{"classes": Classes.unnamed(2), **told, **change})
