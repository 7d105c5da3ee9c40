"""Items of a training on partial masks: which crops come how often, and that nothing but the seed decides."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from seguq.core.errors import SeguqError
from seguq.data import Classes, Labeled
from seguq.data.labeled_items import LabeledItems, RunningNumbers
from tests.data.builders import Array, write
from tests.data.labeled_builders import dotted, make_data, make_labeled, three

CROP = (4, 6)


def items_of(labeled: Labeled, **options: Any) -> LabeledItems:
    data: Any = make_data(labeled, **options).train_dataloader().dataset
    return data


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one["image_id"] == other["image_id"] and all(torch.equal(one[key], other[key]) for key in ("image", "mask"))


def chances(masks: dict[str, Array], crop: tuple[int, int]) -> Counter[tuple[str, int, int]]:
    """The exact probability of each crop, by id and first row and column, in plain loops over the labeled pixels."""
    labeled = [(one, y, x) for one, mask in masks.items() for y, x in np.argwhere(mask != 255).tolist()]
    out: Counter[tuple[str, int, int]] = Counter()
    for one, y, x in labeled:
        places = [range(max(1, size - wanted + 1)) for size, wanted in zip(masks[one].shape, crop, strict=True)]
        containing = [
            (top, left) for top, left in product(*places) if top <= y < top + crop[0] and left <= x < left + crop[1]
        ]
        for top, left in containing:
            out[one, top, left] += 1 / len(labeled) / len(containing)  # type: ignore[assignment]
    return out


def test_each_labeled_pixel_is_as_likely_as_any_other_and_so_is_each_crop_that_contains_it(tmp_path: Path) -> None:
    masks = {
        "corner": dotted((9, 10), {(0, 0): 1}),
        "border": dotted((9, 10), {(8, 4): 0, (7, 9): 1, (3, 3): 1, (3, 4): 1}),
        "low": dotted((3, 12), {(1, 1): 0, (2, 11): 1, (2, 5): 1}),  # less high than the crop
        "small": dotted((2, 3), {(1, 1): 0}),
        "none": dotted((9, 10), {}),
    }
    labeled = make_labeled(tmp_path, masks, seed=1)
    for one, mask in masks.items():  # every pixel says where it stands
        places = np.arange(1, mask.size + 1, dtype=np.uint8).reshape(mask.shape)
        write(labeled.images[one], np.repeat(places[..., None], 3, axis=2))
    items = items_of(labeled, crop=CROP, augmentation="none")
    draws, found = 2000, Counter[tuple[str, int, int]]()
    for number in range(draws):
        item = items[number]
        places = (item["image"][0] * 255).round().int()
        first = int(places[places > 0].min()) - 1
        top, left = divmod(first, masks[item["image_id"]].shape[1])
        found[item["image_id"], top, left] += 1
    expected = chances(masks, CROP)
    assert set(found) <= set(expected)
    assert sum(expected.values()) == pytest.approx(1)
    chi_square = sum((found[crop] - draws * p) ** 2 / (draws * p) for crop, p in expected.items())
    freedom = len(expected) - 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5


def test_a_crop_is_the_image_and_its_mask_at_one_place_with_ignored_padding_around(tmp_path: Path) -> None:
    mask = dotted((3, 5), {(0, 0): 1, (2, 4): 0})
    labeled = make_labeled(tmp_path, {"a": mask})
    item = items_of(labeled, crop=(8, 8), augmentation="none")[0]
    assert (item["image"].shape, item["mask"].shape) == ((3, 8, 8), (8, 8))
    assert torch.equal(item["mask"][2:5, 1:6], torch.from_numpy(mask))
    assert int((item["mask"] != 255).sum()) == 2
    assert not item["image"][:, :2].any()
    assert item["image"][:, 2:5, 1:6].all()


@pytest.mark.parametrize("augmentation", ["flip", "d4"])
def test_images_and_masks_are_turned_together(tmp_path: Path, augmentation: str) -> None:
    labeled = make_labeled(tmp_path, {"a": dotted((8, 8), {(1, 2): 1, (6, 6): 0})})
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[1, 2], pixels[6, 6] = 255, 128
    write(labeled.images["a"], pixels)
    items = items_of(labeled, crop=8, augmentation=augmentation)
    seen = set()
    for number in range(40):
        item = items[number]
        assert torch.equal(item["mask"] == 1, item["image"][0] == 1)
        seen.add(tuple(np.argwhere(item["mask"].numpy() == 1)[0]))
    assert len(seen) == {"flip": 2, "d4": 8}[augmentation]


@pytest.mark.parametrize("crop", [8, None], ids=["crops", "whole"])
def test_an_item_depends_on_the_seed_and_its_number_alone(tmp_path: Path, crop: int | None) -> None:
    labeled = three(tmp_path)
    items = items_of(labeled, crop=crop)
    forward = [items[number] for number in range(20)]
    torch.manual_seed(7)
    images, masks = (dict(reversed(files.items())) for files in (labeled.images, labeled.masks))
    turned = replace(labeled, images=images, masks=masks, round=3)
    others = items_of(turned, crop=crop, steps=99, batch_size=1)
    backward = [others[number] for number in reversed(range(20))][::-1]
    assert all(map(same, forward, backward))
    elsewise = items_of(replace(labeled, seed=1), crop=crop)
    assert not all(same(item, elsewise[number]) for number, item in enumerate(forward))


def test_drawing_items_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    items = items_of(three(tmp_path))
    before = torch.get_rng_state()
    assert items[0]["mask"].shape == (8, 8)
    assert torch.equal(torch.get_rng_state(), before)


def test_whole_images_come_in_turns_each_shuffled_anew(tmp_path: Path) -> None:
    masks = {name: dotted((6, 6), {(1, 1): 1}) for name in "abcdef"} | {"none": dotted((6, 6), {})}
    items = items_of(make_labeled(tmp_path, masks), crop=None)
    turns = ["".join(items[6 * turn + place]["image_id"] for place in range(6)) for turn in range(5)]
    assert {"".join(sorted(turn)) for turn in turns} == {"abcdef"}
    assert len(set(turns)) > 1


def test_masks_of_16_bits_are_trained_on(tmp_path: Path) -> None:
    classes = Classes.unnamed(400, 65535)
    labeled = make_labeled(tmp_path, {"a": dotted((9, 9), {(4, 4): 399}, 65535)}, classes)
    assert items_of(labeled)[0]["mask"].unique().tolist() == [399, 65535]


@pytest.mark.parametrize("name", ["a.tif", "a.png"], ids=["its own ending", "another ending"])
def test_pixels_without_data_are_not_drawn(tmp_path: Path, name: str) -> None:
    pixels = np.full((9, 9, 3), 9, np.uint8)
    pixels[:4] = 0
    labeled = make_labeled(tmp_path, {"a": dotted((9, 9), {(1, 1): 1, (2, 2): 1, (8, 8): 0})})
    path = tmp_path / name
    tifffile.imwrite(path, pixels, photometric="rgb", extratags=[(42113, "s", 0, "0", True)])
    items = items_of(replace(labeled, images={"a": path}), crop=9)
    assert items.ends == [1]
    assert items[0]["mask"].unique().tolist() == [0, 255]


@pytest.mark.parametrize("crop", [8, None], ids=["crops", "whole"])
@pytest.mark.parametrize(
    "now", [dotted((9, 9), {}), dotted((10, 9), {(4, 4): 1})], ids=["fewer labels", "another size"]
)
def test_a_file_that_changes_during_training_is_an_error_that_names_it(
    tmp_path: Path, now: Array, crop: int | None
) -> None:
    labeled = make_labeled(tmp_path, {"a": dotted((9, 9), {(4, 4): 1})})
    items = items_of(labeled, crop=crop)
    write(labeled.masks["a"], now.astype(np.uint8))
    with pytest.raises(SeguqError, match=r"a\.png or its image has changed since the training began"):
        items[0]


@pytest.mark.parametrize(("length", "processes"), [(12, 1), (12, 2), (7, 2), (1, 3), (5, 4)])
def test_processes_share_the_running_numbers_of_an_epoch(length: int, processes: int) -> None:
    for epoch in (0, 2):
        shares = []
        for rank in range(processes):
            numbers = RunningNumbers(range(length), processes, rank)
            numbers.set_epoch(epoch)
            shares.append(list(numbers))
            assert len(shares[-1]) == len(numbers)
        assert len({len(share) for share in shares}) == 1
        every = [number for step in zip(*shares, strict=True) for number in step]
        assert every[:length] == list(range(epoch * length, (epoch + 1) * length))
        assert set(every) == set(every[:length])
