"""Images without ids go by their numbers, so that in predict their order has to be known."""

import pytest
import pytorch_lightning
import torch
from torch.utils.data import RandomSampler, WeightedRandomSampler

import seguq
from seguq.callbacks import HeatmapWriter, RegionScorer
from seguq.core.errors import SeguqError
from tests.callbacks.modules import Stream
from tests.callbacks.tiny import Images, both_names, files, loader, make_module, make_trainer

SHUFFLED = {
    "shuffle": lambda data: loader(data, shuffle=True),
    "a random sampler": lambda data: loader(data, sampler=RandomSampler(data)),
    "weights": lambda data: loader(data, sampler=WeightedRandomSampler([1.0] * len(data), 4)),
}


def predictors(folder):
    return {
        "HeatmapWriter": lambda: [HeatmapWriter(folder / "out")],
        "RegionScorer": lambda: [RegionScorer(folder / "out")],
        "SegmentationTask": list,
    }


def predict(package, folder, name, data):
    module = make_module(package)
    if name == "SegmentationTask":
        module = seguq.SegmentationTask(classes=3, model=torch.nn.Conv2d(3, 3, 1))
    make_trainer(package, folder, *predictors(folder)[name]()).predict(module, data)


@both_names
@pytest.mark.parametrize("shuffled", SHUFFLED.values(), ids=SHUFFLED)
@pytest.mark.parametrize("name", ["HeatmapWriter", "RegionScorer", "SegmentationTask"])
def test_shuffled_images_without_ids_are_refused_in_predict(name, shuffled, package, tmp_path):
    if name == "SegmentationTask" and package is not pytorch_lightning:
        pytest.skip("it is a module of pytorch_lightning")
    with pytest.raises(SeguqError, match=r"the loader shuffles its images.*make the loader give an image_id"):
        predict(package, tmp_path, name, shuffled(Images(4)))
    assert not [file for file in files(tmp_path) if "maps" in file or "regions" in file]


@pytest.mark.parametrize("data", [loader(Images(4, ids="abcd"), shuffle=True), loader(Stream(Images(4)))])
@pytest.mark.parametrize("name", ["HeatmapWriter", "RegionScorer", "SegmentationTask"])
def test_ids_or_an_order_of_its_own_are_enough(name, data, tmp_path):
    predict(pytorch_lightning, tmp_path, name, data)
