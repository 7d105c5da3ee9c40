"""What every partition promises, for each that there is."""

import numpy as np
import pytest
import torch

from seguq.core.errors import SeguqError
from seguq.inference import UncertaintyMaps
from seguq.regions import Partition, cached, score

ARGUMENTS = {
    "Boxes": {"size": 4, "count": 3},
    "Grid": {"size": 3},
    "Pixels": {"count": 5, "min_distance": 3},
    "Superpixels": {"count": 12},
}
"""Arguments where a constructor needs some."""


def ours():
    return [name for name in Partition.names() if Partition.named(name).__module__.startswith("seguq.regions.")]


@pytest.fixture(params=ours())
def partition(request):
    return Partition.named(request.param)(**ARGUMENTS.get(request.param, {}))


def case(height=11, width=14):
    generator = torch.Generator().manual_seed(0)
    probs = torch.softmax(2 * torch.randn(1, 3, height, width, generator=generator), 1)
    names = ("predictive_entropy", "mutual_information", "variance")
    maps = {name: torch.rand(1, height, width, generator=generator) for name in names}
    return torch.rand(3, height, width, generator=generator), UncertaintyMaps(probs, maps, ["a"])


def test_the_shipped_ones_are_known():
    assert {"Boxes", "Components", "Grid", "Pixels", "Superpixels", "WholeImage"} <= set(ours())


def test_labels_are_int32_of_the_images_size_from_minus_1(partition):
    labels = partition(*case())
    assert (labels.dtype, tuple(labels.shape)) == (torch.int32, (11, 14))
    assert labels.min() >= -1
    assert labels.max() >= 0


def test_regions_are_numbered_without_a_gap(partition):
    found = set(partition(*case()).unique().tolist()) - {-1}
    assert found == set(range(len(found)))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3), (0, 5), (30, 2)])
def test_images_of_any_size_are_cut(partition, size):
    labels = partition(*case(*size))
    assert (labels.dtype, tuple(labels.shape)) == (torch.int32, size)
    assert labels.numel() == 0 or labels.max() >= 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int64, torch.float16, torch.float64])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_images_of_any_type_and_any_number_of_channels_are_cut(partition, dtype, channels):
    _, maps = case()
    image = (torch.rand(channels, 11, 14, generator=torch.Generator().manual_seed(1)) * 200).to(dtype)
    labels = partition(image, maps)
    assert tuple(labels.shape) == (11, 14)
    assert torch.equal(partition(np.moveaxis(image.numpy(), 0, -1), maps), labels)


def test_an_image_of_one_color_and_maps_of_one_value_are_cut(partition):
    maps = UncertaintyMaps(torch.full((1, 3, 8, 9), 1 / 3), {"predictive_entropy": torch.zeros(1, 8, 9)}, ["a"])
    assert partition(torch.full((3, 8, 9), 7, dtype=torch.uint8), maps).max() >= 0


def test_neither_image_nor_maps_are_changed(partition):
    image, maps = case()
    partition(image, maps)
    again, same = case()
    assert torch.equal(image, again)
    assert torch.equal(maps.probs, same.probs) and all(torch.equal(maps[name], same[name]) for name in same.names)


def test_a_volume_is_one_region_or_an_error_that_says_2d_only(partition):
    maps = {name: torch.rand(1, 2, 4, 7) for name in ("predictive_entropy", *partition.needs)}
    volume = UncertaintyMaps(torch.full((1, 2, 2, 4, 7), 0.5), maps, ["a"])
    if partition.takes_volumes:
        assert partition(torch.zeros(3, 2, 4, 7), volume).unique().tolist() == [0]
    else:
        with pytest.raises(SeguqError, match=r"2-D images only, but was called with a volume \(2, 4, 7\)"):
            partition(torch.zeros(3, 2, 4, 7), volume)


def test_neither_image_nor_maps_is_an_error_that_says_what_is_lacking(partition):
    with pytest.raises(SeguqError, match=r"needs an image or maps|was called without"):
        partition(None)


def test_where_its_regions_follow_from_the_image_alone_it_looks_at_no_map(partition):
    image, maps = case()
    if partition.of_image_alone:
        assert partition.needs_image and partition.needs == ()
        assert torch.equal(partition(image), partition(image, maps))


def test_kept_on_disk_or_not_its_regions_are_the_same(partition, tmp_path):
    image, maps = case()
    kept = cached(partition, tmp_path / "kept")
    for _ in range(2):
        assert torch.equal(kept(image, maps), partition(image, maps))
    assert repr(kept) == repr(partition) and kept.arguments() == partition.arguments()
    told = ("needs", "needs_image", "of_image_alone", "fills_boxes", "takes_volumes")
    assert [getattr(kept, name) for name in told] == [getattr(partition, name) for name in told]
    assert (tmp_path / "kept").exists() == partition.of_image_alone


def test_labels_are_the_same_twice(partition):
    assert torch.equal(partition(*case()), partition(*case()))


def test_labels_do_not_touch_the_global_generators(partition):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    partition(*case())
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_an_image_as_stored_is_cut_like_a_tensor(partition):
    image, maps = case()
    stored = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    assert torch.equal(partition(stored, maps), partition(image, maps))


def test_where_it_does_not_look_at_the_image_it_needs_none(partition):
    image, maps = case()
    if not partition.needs_image:
        assert torch.equal(partition(None, maps), partition(image, maps))


def test_it_reads_no_map_that_it_does_not_name(partition):
    image, maps = case()
    named = UncertaintyMaps(maps.probs, {name: maps[name] for name in partition.needs}, ["a"])
    assert torch.equal(partition(image, named), partition(image, maps))


def test_its_regions_fill_their_boxes_where_it_says_so(partition):
    image, maps = case()
    for row in score([(maps, image)], partition, by="variance").rows():
        filled = row["area"] == (row["y1"] - row["y0"]) * (row["x1"] - row["x0"])
        assert filled == (row["rle"] is None)
        assert filled or not partition.fills_boxes


def test_it_is_made_again_from_its_arguments(partition):
    again = type(partition)(**partition.arguments())
    assert repr(again) == repr(partition)
    assert torch.equal(again(*case()), partition(*case()))


def test_its_repr_can_be_read_as_code(partition):
    assert repr(eval(repr(partition), {type(partition).__name__: type(partition)})) == repr(partition)
