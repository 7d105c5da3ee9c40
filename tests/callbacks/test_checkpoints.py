"""Which calibrator is applied to which checkpoint: in test and predict, after a resumption, and in files of any kind."""

import warnings

import pytest
import pytorch_lightning
import torch

import seguq
from seguq.callbacks import Calibrate
from seguq.callbacks.base import EstimatorCallback
from seguq.core.errors import SeguqError
from tests.callbacks.modules import both_names, data_for, fit, kind, loader, make, trainer_of

MC = "mc_dropout(layers=dropout)"

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")


@pytest.fixture(autouse=True)
def _same_dropout():
    torch.manual_seed(0)


class Answers(EstimatorCallback):
    """Notes the probabilities of every image, calibrated as the callbacks are."""

    def __init__(self, *words, **settings):
        super().__init__(*words, **settings)
        self.probs, self.applied = [], []

    @property
    def state_key(self):
        return f"answers {self.estimator}"

    def _opened(self, trainer, module, stage, passes):
        passes.want(())

    def _batch(self, trainer, module, stage, step, dataloader):
        self.applied.append(self._calibrator_for(trainer, module))
        self.probs.append(step.maps_of(self.applied[-1]).probs.float())


class Twice(pytorch_lightning.Callback):
    """Changes the weights when a run has begun."""

    def on_predict_start(self, trainer, module):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(2)

    on_test_start = on_predict_start


def keep(package, folder, name="kept", **settings):
    return package.callbacks.ModelCheckpoint(folder, filename=name, enable_version_counter=False, **settings)


def trained(package, folder, *callbacks, module=None, **settings):
    """A training with checkpoints; gives the module."""
    module = make(package) if module is None else module
    fit(package, folder, module, *callbacks, **{"enable_checkpointing": True, "max_epochs": 2, **settings})
    return module


def refitted(path, package):
    """T by the slow way: the weights of a file, and several readings of the validation data."""
    model = seguq.load(path, make(package))
    batches = loader(data_for(model))
    return seguq.Deterministic(model, calibrator=None).calibrate(seguq.TemperatureScaling(), batches).temperature


def kept(path, package, tag="deterministic"):
    """T of the calibrator of a file; one that is not applied is an error here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not applied")
        return seguq.load(path, make(package)).calibrators[tag].temperature


def asked(package, folder, path, *callbacks, stage="predict", module=None, **settings):
    """Run test or predict on a file."""
    module = make(package, seed=9) if module is None else module
    trainer = trainer_of(package, folder, *callbacks, **settings)
    verbose = {"verbose": False} if stage == "test" else {}
    getattr(trainer, stage)(module, loader(data_for(module, seed=4)), ckpt_path=path, **verbose)
    return module


# what a run on a file applies


@both_names
@pytest.mark.parametrize("stage", ["test", "predict"])
@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true", "bf16-mixed"])
def test_a_run_on_a_file_is_calibrated_by_the_files_calibrator_in_any_precision(package, stage, precision, tmp_path):
    trained(package, tmp_path, Calibrate(), keep(package, tmp_path))
    answers = Answers()
    asked(package, tmp_path, tmp_path / "kept.ckpt", answers, stage=stage, precision=precision)
    expected = kept(tmp_path / "kept.ckpt", package)
    assert [one.temperature for one in answers.applied] == pytest.approx([expected] * 2, rel=1e-6)
    estimator = seguq.Deterministic(seguq.load(tmp_path / "kept.ckpt", make(package)))
    by_hand = torch.cat([estimator(image).probs for image, _ in loader(data_for(make(package), seed=4))])
    tolerance = 0.1 if "16" in precision else 1e-5
    assert torch.cat(answers.probs).sub(by_hand).abs().max() < tolerance


@both_names
@pytest.mark.parametrize("stage", ["test", "predict"])
@pytest.mark.parametrize(("ours", "asks"), [(None, "mc_dropout"), ("mc_dropout", None)], ids=str)
def test_a_calibrator_of_another_estimator_is_not_applied(package, stage, ours, asks, tmp_path):
    trained(package, tmp_path, Calibrate(estimator=ours), keep(package, tmp_path))
    answers, same = Answers(asks), Answers(ours)
    asked(package, tmp_path, tmp_path / "kept.ckpt", answers, same, stage=stage)
    assert answers.applied == [None, None]
    assert None not in same.applied


@both_names
@pytest.mark.parametrize("stage", ["test", "predict"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_a_calibrator_is_not_applied_to_weights_that_were_changed_since(package, stage, precision, tmp_path):
    trained(package, tmp_path, Calibrate(), keep(package, tmp_path))
    answers = Answers()
    changing = type("Changing", (package.Callback,), {f"on_{stage}_start": Twice.on_predict_start})()
    with pytest.warns(UserWarning, match="'deterministic' is not applied: it was fitted for other weights"):
        asked(package, tmp_path, tmp_path / "kept.ckpt", answers, changing, stage=stage, precision=precision)
    assert answers.applied == [None, None]


@both_names
def test_a_second_run_without_a_file_judges_by_the_weights_in_hand(package, tmp_path):
    module = trained(package, tmp_path, Calibrate())
    first, second = Answers(), Answers()
    asked(package, tmp_path, None, first, module=module)
    module.net.head.weight.data.mul_(2)
    with pytest.warns(UserWarning, match="not applied"):
        asked(package, tmp_path, None, second, module=module)
    assert [one.temperature for one in first.applied] == [module.calibrators["deterministic"].temperature] * 2
    assert second.applied == [None, None]
