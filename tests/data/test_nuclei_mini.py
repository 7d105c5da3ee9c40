"""nuclei-mini, the data set that ships inside the package, is what its README says."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from seguq.data import Classes, SegmentationFolder, check_files, list_images, nuclei_mini, read_image, read_mask

ROOT = nuclei_mini()
SPLITS = ["train", "val", "test", "pool", "ood"]
STAINED = frozenset(json.loads((ROOT / "pool_stained.json").read_text()))


def masks(split: str) -> np.ndarray:
    classes = Classes.read(ROOT / "classes.json")
    return np.stack([read_mask(path, classes) for path in sorted((ROOT / "masks" / split).iterdir())])


def coloring(path: Path) -> float:
    """How far the channels of an image are apart, on average."""
    image = read_image(path, 3).astype(int)
    return float((image.max(-1) - image.min(-1)).mean())


def test_it_takes_at_most_two_and_a_half_megabytes() -> None:
    assert sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file()) <= 2_500_000


def test_its_readme_names_license_and_source() -> None:
    text = (ROOT / "README.md").read_text()
    assert "CC0" in text
    assert "BBBC038" in text


def test_splits_and_counts_are_those_of_its_readme() -> None:
    table = re.findall(r"^\| (\w+) \| (\d+) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    counts = {split: int(count) for split, count in table}
    assert set(counts) == set(SPLITS)
    assert {path.name: len(list_images(path)) for path in (ROOT / "images").iterdir()} == counts


def test_every_mask_belongs_to_an_image() -> None:
    for split in SPLITS:
        ids = set(list_images(ROOT / "images" / split))
        assert {path.stem for path in (ROOT / "masks" / split).iterdir()} == ids


def test_its_classes_are_background_and_nucleus() -> None:
    classes = Classes.read(ROOT / "classes.json")
    assert (classes.names, classes.ignore_index) == (("background", "nucleus"), 255)


@pytest.mark.parametrize("split", SPLITS)
def test_each_split_passes_the_check_at_256_pixels(split: str) -> None:
    classes = Classes.read(ROOT / "classes.json")
    data = SegmentationFolder(ROOT / "images" / split, ROOT / "masks" / split, classes)
    sizes = check_files(data.images, data.masks, classes, channels=3, folder=ROOT)
    assert set(sizes.values()) == {(256, 256)}


@pytest.mark.parametrize("split", SPLITS)
def test_masks_hold_the_two_classes_and_nothing_else(split: str) -> None:
    assert np.unique(masks(split)).tolist() == [0, 1]


@pytest.mark.parametrize("split", SPLITS)
def test_nuclei_cover_a_part_of_each_split_that_can_be_learned(split: str) -> None:
    assert 0.05 < masks(split).mean() < 0.4


def test_no_image_is_in_two_splits() -> None:
    paths = [path for split in SPLITS for path in list_images(ROOT / "images" / split).values()]
    contents = {hashlib.sha256(read_image(path).tobytes()).hexdigest() for path in paths}
    assert len(contents) == len(paths)


def test_the_stained_images_of_the_pool_are_in_the_pool_and_are_a_part_of_it() -> None:
    pool = set(list_images(ROOT / "images" / "pool"))
    assert set() < STAINED < pool


def test_the_stained_images_are_as_many_as_the_readme_says() -> None:
    (count,) = re.findall(r"(\d+) of stained tissue", (ROOT / "README.md").read_text())
    assert len(STAINED) == int(count)


def test_the_images_listed_as_stained_are_the_colored_ones_of_the_pool() -> None:
    colored = {name for name, path in list_images(ROOT / "images" / "pool").items() if coloring(path) > 5}
    assert colored == STAINED


def test_every_ood_image_is_colored_and_no_other_split_has_one() -> None:
    colored = {
        split: {coloring(path) > 5 for path in list_images(ROOT / "images" / split).values()} for split in SPLITS
    }
    assert colored == {"train": {False}, "val": {False}, "test": {False}, "pool": {False, True}, "ood": {True}}
