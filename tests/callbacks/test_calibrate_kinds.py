"""Calibrate takes every calibrator, by name or as an object, and a checkpoint brings each back."""

import pytest
import pytorch_lightning
import torch

import seguq
from seguq.calibration import Calibrator
from seguq.calibration.by_name import AUTO, fit_calibrator
from seguq.callbacks import Calibrate
from tests.callbacks.modules import data_for, fit, loader, make, reference_batches, trainer_of

NAMES = [name for name in Calibrator.names() if Calibrator.named(name).__module__.startswith("seguq.")]


class OnlyFits(Calibrator):
    """Of another package: it knows no stream, looks at the images, and keeps how bright they are."""

    name = "only_fits"
    order_preserving = True

    def __init__(self):
        super().__init__()
        self.register_buffer("brightness", torch.zeros(()))

    def fit(self, batches):
        ((_, image, target),) = batches
        self.brightness = image[(target != 255).unsqueeze(1).expand_as(image)].mean()
        return self

    def forward(self, logits, image=None):
        return logits * self.brightness.exp()


@pytest.fixture(autouse=True)
def _same():
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", ["Plain", "Binary", "Multilabel"])
@pytest.mark.parametrize("name", [*NAMES, AUTO, "local"])
def test_every_name_is_fitted_as_by_fit_and_comes_back_from_a_checkpoint(name, kind, tmp_path):
    module = make(pytorch_lightning, kind)
    trainer = fit(pytorch_lightning, tmp_path, module, Calibrate(name), max_epochs=1)
    (found,) = module.calibrators.values()
    data = reference_batches(module, data_for(module))
    task = found.task
    expected = fit_calibrator(name, data, task=task)
    logits = torch.cat([batch[0] for batch in data])
    class_logits = seguq.functional.class_logits(logits, "binary" if logits.shape[1] == 1 else task)
    with torch.no_grad():
        one, other = (calibrator(class_logits).softmax(1) for calibrator in (found, expected))
    assert type(found) is type(expected)
    assert torch.allclose(one, other, atol=2e-2)
    figures = trainer.callback_metrics
    assert figures["val/nll_before"] == pytest.approx(found.summary().nll_before)
    assert figures["val/ece_after"] == pytest.approx(found.summary().ece_after)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = seguq.load(tmp_path / "last.ckpt", make(pytorch_lightning, kind)).calibrators["deterministic"]
    with torch.no_grad():
        assert torch.equal(again(class_logits), found(class_logits))


def test_one_that_only_fits_is_given_crops_of_logits_images_and_masks(tmp_path):
    module = make(pytorch_lightning)
    fit(pytorch_lightning, tmp_path, module, Calibrate(OnlyFits()))
    (found,) = module.calibrators.values()
    assert isinstance(found, OnlyFits)
    data = data_for(module)
    images, masks = zip(*(data[i][:2] for i in range(len(data))), strict=True)
    labeled = torch.stack(masks) != 255
    bright = torch.stack(images)[labeled.unsqueeze(1).expand(-1, images[0].shape[0], -1, -1)].mean()
    assert float(found.brightness) == pytest.approx(float(bright), rel=1e-4)
    assert found.summary().images == 5


def test_groups_are_told_to_what_is_chosen_by_them(tmp_path):
    module = make(pytorch_lightning)
    trainer = trainer_of(
        pytorch_lightning, tmp_path, Calibrate("structured", group=lambda image_id: int(image_id) // 3)
    )
    trainer.validate(module, loader(data_for(module)), verbose=False)
    assert module.calibrators["deterministic"].summary().groups == 2
