"""What ``batch_forward=`` gives is taken as it is: it decides the size, and says what the mask is."""

import pytest
import pytorch_lightning
import torch
from torch import nn
from torch.nn import functional

import seguq
from seguq.callbacks import Calibrate, HeatmapWriter, RegionScorer, UncertaintyMetrics
from seguq.callbacks.batches import logits_and_mask
from seguq.core.errors import SeguqError
from tests.callbacks.tiny import files, loader, make_trainer


class Scaled(pytorch_lightning.LightningModule):
    """Images of 32 pixels, logits of some size, masks of another; its author resizes the logits to the masks."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)

    def pair(self, batch):
        logits, mask = self(batch[0]), batch[1]
        size = mask.shape[-2:]
        return functional.interpolate(logits, size, mode="bilinear") if logits.shape[-2:] != size else logits, mask

    def validation_step(self, batch, batch_idx):
        return None


def padded(*more):
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *more, nn.Conv2d(8, 2, 1))


KINDS = {
    "a quarter": (lambda: padded(nn.AvgPool2d(4)), 8),
    "the center": (lambda: nn.Sequential(nn.Conv2d(3, 8, 5), nn.Conv2d(8, 2, 3)), 26),
    "twice the size": (lambda: padded(), 64),
}
RETURNED = {
    "logits and mask of one size": lambda module, batch: module.pair(batch),
    "logits, to be resized to the mask": lambda module, batch: (module(batch[0]), batch[1]),
    "logits, to be resized to the loader's mask": lambda module, batch: module(batch[0]),
    "a float mask with a channel": lambda module, batch: (module(batch[0]), batch[1].float()[:, None]),
}


def data_of(size):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 32, 32, generator=generator)
    return [(image, (torch.rand(size, size, generator=generator) > 0.5).long()) for image in images]


@pytest.mark.parametrize("returned", RETURNED.values(), ids=RETURNED)
@pytest.mark.parametrize("name", KINDS)
def test_logits_fit_the_mask_whatever_the_size_of_the_images(name, returned, tmp_path):
    net, size = KINDS[name]
    module, val = Scaled(net()), loader(data_of(size), 2)
    settings = {"batch_forward": returned}
    trainer = make_trainer(
        pytorch_lightning,
        tmp_path,
        UncertaintyMetrics(measures=["predictive_entropy"], **settings),
        UncertaintyMetrics(seguq.DeepEnsemble([module]), measures=["mutual_information"], **settings),
        Calibrate(**settings),
        HeatmapWriter(tmp_path / "heat", images=1, **settings),
    )
    trainer.validate(module, val, verbose=False)
    with torch.no_grad():
        pairs = [module.eval().pair(batch) for batch in val]
    expected = functional.cross_entropy(*map(torch.cat, zip(*pairs, strict=True)))
    for found in ("val/nll", "val/nll/deep_ensemble", "val/nll_before"):
        assert float(trainer.callback_metrics[found]) == pytest.approx(float(expected), abs=1e-4), found
    written = files(tmp_path / "heat")
    assert any(name.endswith("maps/0.npz") for name in written)
    assert not any("/images/" in name or "/overlays/" in name for name in written)  # another size than the maps'


def test_regions_of_another_size_than_the_images_are_refused(tmp_path):
    net, size = KINDS["a quarter"]
    scorer = RegionScorer(tmp_path / "regions", batch_forward=lambda module, batch: module.pair(batch))
    with pytest.raises(SeguqError, match=r"regions are boxes of pixels of the images .* let batch_forward= return"):
        make_trainer(pytorch_lightning, tmp_path, scorer).predict(Scaled(net()), loader(data_of(size), 2))


def test_masks_of_another_size_without_it_are_an_error_that_names_it(tmp_path):
    net, size = KINDS["a quarter"]
    with pytest.raises(SeguqError, match=r"masks \(2, 8, 8\) do not fit logits .* batch_forward=lambda module, batch:"):
        trainer = make_trainer(pytorch_lightning, tmp_path, UncertaintyMetrics())
        trainer.validate(Scaled(net()), loader(data_of(size), 2), verbose=False)


LOGITS = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("second", "is_mask"),
    [
        (torch.zeros(2, 4, 4).long(), True),
        (torch.zeros(2, 4, 4), True),
        (torch.ones(2, 1, 4, 4), True),
        (torch.ones(2, 2, 4, 4), True),
        (LOGITS / 2, False),
        (LOGITS[:, :1], False),
        (LOGITS[:, :1] * torch.nan, False),
    ],
)
def test_the_second_of_two_is_the_mask_where_it_has_no_channels_or_whole_numbers_alone(second, is_mask):
    logits, mask = logits_and_mask((LOGITS, second))
    assert logits is LOGITS
    assert (mask is second) == is_mask
