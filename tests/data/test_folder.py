"""Folders of images and masks as a data set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import seguq
from seguq.core.errors import SeguqError
from seguq.data import Classes, Normalization, SegmentationFolder, list_images
from seguq.data.transforms import evaluation_transform
from tests.data.builders import HEIGHT, WIDTH, random_mask, random_pixels, write

TWO = Classes.unnamed(2)


def labeled(dataset: Path, split: str = "train") -> SegmentationFolder:
    return SegmentationFolder(dataset / "images" / split, dataset / "masks" / split, TWO)


def test_ids_are_the_names_without_extension_in_order(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.png", "c.tif", "d.bmp", "e.webp", "f.jpeg", "g.tiff", "h.PNG"):
        (tmp_path / name).touch()
    assert list(list_images(tmp_path)) == list("abcdefgh")


def test_ids_of_nested_images_are_relative_paths_with_slashes(tmp_path: Path) -> None:
    for name in ("x.png", "north/x.png", "north/deep/y.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert sorted(list_images(tmp_path)) == ["north/deep/y", "north/x", "x"]


def test_only_the_last_suffix_is_taken_off(tmp_path: Path) -> None:
    (tmp_path / "tile.3.v2.png").touch()
    assert list(list_images(tmp_path)) == ["tile.3.v2"]


def test_hidden_files_and_folders_and_other_files_are_left_out(tmp_path: Path) -> None:
    for name in ("a.png", ".b.png", ".thumbnails/c.png", "notes.txt", "d.png.txt", "e"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert list(list_images(tmp_path)) == ["a"]


def test_two_files_of_one_id_are_an_error_that_names_both(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "a.png").touch()
    with pytest.raises(SeguqError, match=r"a\.jpg and .*a\.png have the same id 'a'"):
        list_images(tmp_path)


def test_equal_names_in_different_folders_are_two_ids(tmp_path: Path) -> None:
    for folder in ("north", "south"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").touch()
    assert list(list_images(tmp_path)) == ["north/a", "south/a"]


@pytest.mark.parametrize("content", [(), ("notes.txt",), (".hidden.png",)])
def test_a_folder_without_images_is_an_error_that_names_it(tmp_path: Path, content: tuple[str, ...]) -> None:
    for name in content:
        (tmp_path / name).touch()
    with pytest.raises(SeguqError) as error:
        list_images(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_missing_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(SeguqError, match="nowhere"):
        list_images(tmp_path / "nowhere")


def test_a_file_in_place_of_the_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(SeguqError, match=r"a\.png"):
        list_images(tmp_path / "a.png")


def test_an_image_without_its_mask_is_an_error_that_names_it(dataset: Path) -> None:
    (dataset / "masks" / "train" / "2.png").unlink()
    with pytest.raises(SeguqError) as error:
        labeled(dataset)
    assert str(dataset / "images" / "train" / "2.png") in str(error.value)


def test_masks_without_classes_are_an_error(dataset: Path) -> None:
    with pytest.raises(SeguqError, match="classes="):
        SegmentationFolder(dataset / "images" / "train", dataset / "masks" / "train")


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".bmp"])
def test_a_mask_may_have_another_suffix_than_its_image(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / "images" / "deep" / "a.jpg", random_pixels(HEIGHT, WIDTH, 3))
    mask = random_mask(HEIGHT, WIDTH)
    write(tmp_path / "masks" / "deep" / f"a{suffix}", mask)
    item = SegmentationFolder(tmp_path / "images", tmp_path / "masks", TWO)[0]
    assert (item["image_id"], item["mask"].tolist()) == ("deep/a", mask.tolist())


def test_the_suffix_of_a_mask_may_be_in_capitals_as_that_of_an_image_may(dataset: Path) -> None:
    path = dataset / "masks" / "train" / "0.png"
    path.rename(path.with_suffix(".PNG"))
    assert len(labeled(dataset)) == 4


def test_masks_without_an_image_are_not_items(dataset: Path) -> None:
    write(dataset / "masks" / "train" / "more.png", random_mask(HEIGHT, WIDTH))
    assert labeled(dataset).ids == ["0", "1", "2", "3"]


def test_an_item_is_a_float_image_with_channels_first_an_integer_mask_and_an_id(dataset: Path) -> None:
    item = labeled(dataset)[1]
    assert set(item) == {"image", "mask", "image_id"}
    assert (item["image"].shape, item["image"].dtype) == ((3, HEIGHT, WIDTH), torch.float32)
    assert (item["mask"].shape, item["mask"].dtype) == ((HEIGHT, WIDTH), torch.int64)
    assert item["image_id"] == "1"


def test_an_item_without_transform_holds_the_values_of_its_files(dataset: Path) -> None:
    item = labeled(dataset)[1]
    image = np.array(Image.open(dataset / "images" / "train" / "1.png"))
    mask = np.array(Image.open(dataset / "masks" / "train" / "1.png"))
    assert_close(item["image"], torch.from_numpy(image).permute(2, 0, 1).float(), rtol=0, atol=0)
    assert_close(item["mask"], torch.from_numpy(mask).long(), rtol=0, atol=0)


def test_an_item_with_transform_has_the_same_dtypes(dataset: Path) -> None:
    transform = evaluation_transform(Normalization((0.5,) * 3, (0.5,) * 3), (20, 24))
    item = SegmentationFolder(dataset / "images" / "train", dataset / "masks" / "train", TWO, transform)[0]
    assert (item["image"].shape, item["image"].dtype) == ((3, 20, 24), torch.float32)
    assert (item["mask"].shape, item["mask"].dtype) == ((20, 24), torch.int64)


def test_large_class_indices_survive_the_transform(dataset: Path) -> None:
    mask = np.full((HEIGHT, WIDTH), 40_000, np.uint16)
    write(dataset / "masks" / "train" / "0.png", mask)
    transform = evaluation_transform(Normalization((0.5,) * 3, (0.5,) * 3), (20, 24))
    item = SegmentationFolder(dataset / "images" / "train", dataset / "masks" / "train", TWO, transform)[0]
    assert item["mask"].unique().tolist() == [40_000]


def test_a_pool_without_masks_has_items_of_image_and_id_alone(dataset: Path) -> None:
    pool = SegmentationFolder(dataset / "images" / "pool")
    assert [set(item) for item in (pool[i] for i in range(len(pool)))] == [{"image", "image_id"}] * 3


def test_gray_and_color_images_get_the_channels_that_are_asked_for(dataset: Path) -> None:
    write(dataset / "images" / "pool" / "gray.png", random_pixels(HEIGHT, WIDTH))
    pool = SegmentationFolder(dataset / "images" / "pool", channels=3)
    assert {tuple(pool[i]["image"].shape) for i in range(len(pool))} == {(3, HEIGHT, WIDTH)}


def test_items_can_be_changed_without_changing_the_next_reading(dataset: Path) -> None:
    data = labeled(dataset)
    before = data[0]["image"].clone()
    data[0]["image"].zero_()
    assert_close(data[0]["image"], before, rtol=0, atol=0)


LOCKED = """
import os, pathlib, sys
from seguq.cli.common import require_folder
from seguq.core.errors import SeguqError
from seguq.data import Classes, list_images
from seguq.data.folder import find_masks
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
here = pathlib.Path(".")
for ask in (
    lambda: list_images("locked"),
    lambda: list_images("locked/below"),
    lambda: list_images("listed"),
    lambda: list_images("above"),
    lambda: find_masks(here / "locked", {"a": here / "a.png"}),
    lambda: find_masks(here / "listed", {"a": here / "a.png"}),
    lambda: Classes.read("locked/classes.json"),
    lambda: require_folder("locked/below", "--images"),
):
    try:
        ask()
    except SeguqError as error:
        print(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
def test_of_a_folder_that_may_not_be_read_nothing_else_is_said(tmp_path):
    for name in ("locked/below", "listed", "above/locked"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a.png").touch()
    (tmp_path / "above" / "a.png").touch()
    for name, mode in (("locked", 0), ("listed", 0o444), ("above/locked", 0), (".", 0o755)):
        (tmp_path / name).chmod(mode)
    try:
        command = [sys.executable, "-c", LOCKED]
        environment = {**os.environ, "PYTHONPATH": str(Path(seguq.__file__).parents[1])}
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    finally:
        for name in ("locked", "listed", "above/locked"):
            (tmp_path / name).chmod(0o755)
    told = done.stdout.splitlines()
    assert len(told) == 8, done.stderr
    assert all("cannot be read" in line and "Permission denied" in line for line in told), told
