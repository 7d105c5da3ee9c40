"""Loaders that give tensors of a class of their own, which carry metadata along and refuse what these do not fit."""

import pytest
import pytorch_lightning
import torch
from torch.utils._pytree import tree_map

import seguq
from seguq.callbacks import Calibrate, HeatmapWriter, RegionScorer, UncertaintyMetrics
from seguq.inference import MCDropout
from tests.callbacks.tiny import Images, files, loader, make_module, make_trainer


class Carrying(torch.Tensor):
    """One dict of metadata an image; whatever is made of it is of this class, and no part of a batch may be taken."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.__getitem__, torch.Tensor.unbind, torch.Tensor.split):
            raise ValueError("inconsistent metadata of a batch")
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*args, **(kwargs or {}))
        return tree_map(lambda value: value.as_subclass(cls) if isinstance(value, torch.Tensor) else value, out)


def carrying(batch):
    with torch._C.DisableTorchFunctionSubclass():
        return tree_map(lambda value: value.as_subclass(Carrying) if isinstance(value, torch.Tensor) else value, batch)


def collated(items):
    return carrying(torch.utils.data.default_collate(items))


def callbacks(folder):
    return (
        Calibrate(),
        UncertaintyMetrics(MCDropout(samples=2), measures=["mutual_information"]),
        UncertaintyMetrics(measures=["predictive_entropy"]),
        HeatmapWriter(folder / "heat", images=2),
        RegionScorer(folder / "regions"),
    )


def figures(folder, **settings):
    torch.manual_seed(0)
    module = make_module(pytorch_lightning)
    val, train = loader(Images(4, ids="abcd"), 2, **settings), loader(Images(4, seed=9), 2)
    trainer = make_trainer(pytorch_lightning, folder, *callbacks(folder), num_sanity_val_steps=1)
    trainer.fit(module, train, val)
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    trainer.predict(module, val, return_predictions=False)
    return found, module.forwards


def test_they_are_taken_as_the_tensors_that_they_are(tmp_path):
    """The same figures and files, and no more forwards than of plain tensors."""
    expected, found = figures(tmp_path / "plain"), figures(tmp_path / "own", collate_fn=collated)
    assert found[1] == expected[1]
    assert found[0] == pytest.approx(expected[0], nan_ok=True)
    assert files(tmp_path / "own" / "heat") == files(tmp_path / "plain" / "heat")
    assert files(tmp_path / "own" / "regions") == files(tmp_path / "plain" / "regions")


def test_estimators_are_called_with_them_and_fitted_on_them():
    module = make_module(pytorch_lightning).eval()
    plain = [{name: batch[name] for name in ("image", "mask")} for batch in loader(Images(4), 2)]
    est = seguq.Deterministic(module, calibrator=None)
    maps = est(carrying(plain[0]["image"]))
    assert type(maps.probs) is torch.Tensor
    torch.testing.assert_close(maps.probs, est(plain[0]["image"]).probs)
    made = [est.calibrate(seguq.TemperatureScaling(), list(map(of, plain))).temperature for of in (dict, carrying)]
    pairs = [(module(batch["image"]).detach(), batch["mask"]) for batch in plain]
    made += [seguq.TemperatureScaling().fit(list(map(of, pairs))).temperature for of in (tuple, carrying)]
    assert made == pytest.approx(made[:1] * 4)


def test_a_model_may_return_them_as_it_trains_on_them(tmp_path):
    module = make_module(pytorch_lightning)
    metrics = UncertaintyMetrics(
        batch_forward=lambda module, batch: (module(batch["image"]), batch["mask"]), measures=["predictive_entropy"]
    )
    val = loader(Images(4), 2, collate_fn=collated)
    make_trainer(pytorch_lightning, tmp_path, metrics).validate(module, val, verbose=False)
