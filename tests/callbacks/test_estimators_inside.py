"""Estimators within one another in callbacks, by name and in YAML; and those that a callback cannot complete."""

import pytest
import pytorch_lightning
import torch
import yaml
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.demos.boring_classes import BoringModel

import seguq
from seguq.callbacks import SWAG, Calibrate
from seguq.core.errors import UsageError
from tests.callbacks.modules import both_names, data_for, fit, loader, make
from tests.callbacks.test_passes import Look, validated

MIRRORED = "test_time_augmentation(views=hflip, of=mc_dropout(layers=dropout))"
WINDOWS = "sliding_window(window=8, overlap=0.5, blend=gaussian, margin=0, stride=4, of={})"


@both_names
def test_calibrate_fits_on_the_pooled_output_of_all_of_it(package, tmp_path):
    est = seguq.SlidingWindow(seguq.TestTimeAugmentation("mc_dropout", "hflip"), window=8, stride=4)
    module = make(package)
    fit(package, tmp_path, module, Calibrate(estimator=est))
    assert set(module.calibrators) == {WINDOWS.format(MIRRORED)}


IN_YAML = {
    MIRRORED: {"class_path": "seguq.TestTimeAugmentation", "init_args": {"views": "hflip", "inner": "mc_dropout"}},
    WINDOWS.format(MIRRORED): {
        "class_path": "seguq.SlidingWindow",
        "init_args": {
            "window": 8,
            "stride": 4,
            "inner": {
                "class_path": "seguq.TestTimeAugmentation",
                "init_args": {
                    "views": "hflip",
                    "inner": {"class_path": "seguq.MCDropout", "init_args": {"samples": 3, "seed": 1}},
                },
            },
        },
    },
}


@pytest.mark.parametrize(("tag", "estimator"), IN_YAML.items(), ids=["by name", "by class"])
def test_in_yaml_they_stand_within_one_another(tag, estimator, tmp_path):
    callback = {"class_path": "seguq.callbacks.Calibrate", "init_args": {"estimator": estimator}}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [callback]}}))
    made = LightningCLI(BoringModel, run=False, args=["--config", str(tmp_path / "a.yaml")], save_config_callback=None)
    (calibrate,) = [item for item in made.trainer.callbacks if isinstance(item, Calibrate)]
    assert calibrate.estimator.tag == tag and calibrate.estimator.unbound


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: "swag", "SWAG needs checkpoint, which is not known where"),
        (lambda: seguq.TestTimeAugmentation("swag"), "SWAG needs checkpoint"),
        (lambda: seguq.SlidingWindow(seguq.TestTimeAugmentation("deep_ensemble")), "DeepEnsemble needs members"),
        (seguq.DeepEnsemble, "DeepEnsemble needs members"),
        (lambda: seguq.SlidingWindow("nix"), "SlidingWindow asks a module, but was given a name that no estimator has"),
    ],
)
def test_what_only_a_command_can_complete_is_refused_at_once(make, told):
    with pytest.raises(UsageError, match=told):
        Calibrate(estimator=make())


def test_swag_of_a_checkpoint_is_bound_to_the_module_in_hand(tmp_path):
    module = make(pytorch_lightning)
    trainer = fit(pytorch_lightning, tmp_path, module, SWAG(start=0, lr=0.05), max_epochs=3)
    trainer.save_checkpoint(tmp_path / "swag.ckpt")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    readings = []

    class Batches:
        def __iter__(self):
            readings.append(self)
            return iter(loader(data_for(module)))

    of = {"checkpoint": tmp_path / "swag.ckpt", "samples": 3, "bn_batches": Batches()}
    look = Look(seguq.SWAG(**of))
    validated(tmp_path, look, module=module)
    assert len(look.steps) > 1 and len(readings) == 2  # for the mean and for the samples: it was made once
    by_hand = seguq.SWAG(module, **of)
    for batch, step in zip(loader(data_for(module)), look.steps, strict=True):
        torch.testing.assert_close(step.pooled, by_hand.pooled_logits(batch[0]))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
