"""A network that gives probabilities in place of logits is told of, once."""

import warnings

import pytest
import torch
from torch import nn

import seguq
from seguq.callbacks import UncertaintyMetrics
from seguq.core.errors import SeguqError
from tests.callbacks.tiny import Images, loader, make_module, make_trainer

IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ESTIMATORS = {
    "Deterministic": seguq.Deterministic,
    "MCDropout": lambda model, **settings: seguq.MCDropout(model, samples=2, **settings),
    "DeepEnsemble": lambda model, **settings: seguq.DeepEnsemble([model], **settings),
    "TestTimeAugmentation": seguq.TestTimeAugmentation,
}
ENDS = {"softmax": (nn.Softmax(1), 3, "multiclass"), "sigmoid": (nn.Sigmoid(), 1, "binary")}
ENDS |= {"labels": (nn.Sigmoid(), 3, "multilabel")}


def network(end, channels):
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout(0.5), nn.Conv2d(4, channels, 1), end).eval()


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
def test_it_is_told_once_at_the_first_batch(estimator, name):
    end, channels, task = ENDS[name]
    est = estimator(network(end, channels), task=task, calibrator=None)
    with pytest.warns(UserWarning, match=r"Sequential seems to end in a (softmax|sigmoid): .* forward="):
        est(IMAGES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        est(IMAGES)
        logits = network(nn.InstanceNorm2d(channels), channels)  # of both signs
        estimator(logits, task=task, calibrator=None)(IMAGES)


def test_callbacks_tell_of_it(tmp_path):
    import pytorch_lightning

    module = make_module(pytorch_lightning)
    module.head = nn.Sequential(module.head, nn.Softmax(1))
    with pytest.warns(UserWarning, match=r"Tiny seems to end in a softmax: .* batch_forward="):
        make_trainer(pytorch_lightning, tmp_path, UncertaintyMetrics()).validate(
            module, loader(Images(3)), verbose=False
        )


def test_masks_of_several_channels_are_told_to_be_of_labels():
    masks = torch.zeros(2, 3, 8, 8).long()
    with pytest.raises(SeguqError, match="task='multilabel'"):
        seguq.Deterministic(network(nn.Identity(), 3)).calibrate(seguq.TemperatureScaling(), [(IMAGES, masks)])
