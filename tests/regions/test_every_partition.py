"""What every partition promises, for each that there is."""

import numpy as np
import pytest
import torch

from seguq.inference import UncertaintyMaps
from seguq.regions import Partition, score

ARGUMENTS = {"Grid": {"size": 3}}
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
    assert {"Grid", "WholeImage"} <= set(ours())


def test_labels_are_int32_of_the_images_size_from_minus_1(partition):
    labels = partition(*case())
    assert (labels.dtype, tuple(labels.shape)) == (torch.int32, (11, 14))
    assert labels.min() >= -1
    assert labels.max() >= 0


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
