"""Callbacks side by side: whoever comes first, each sees the module's own step, and one estimator is asked once."""

import copy
import warnings

import pytest
import pytorch_lightning
import torch
from torch import nn

import seguq
from seguq.callbacks import Calibrate, HeatmapWriter, UncertaintyMetrics
from seguq.inference import Deterministic, MCDropout
from tests.callbacks.modules import both_names, data_for, loader, make, trainer_of
from tests.callbacks.tiny import Images, make_module, make_trainer


def validated(folder, *callbacks, name="Normalizing", package=pytorch_lightning):
    """The figures of one validation; every pixel is labeled, and all batches are of one size."""
    module = make(package, name)
    trainer = trainer_of(package, folder, *callbacks)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*step changes the images")
        trainer.validate(module, loader(data_for(module, 6, ignored=0)), verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def samples(**settings):
    return MCDropout(samples=3, **settings)


@both_names
@pytest.mark.parametrize("order", ["the samples first", "the one pass first"])
def test_the_loss_before_calibration_is_that_of_the_step_whichever_callback_comes_first(package, order, tmp_path):
    callbacks = [Calibrate(estimator=samples()), Calibrate()]
    if order == "the one pass first":
        callbacks.reverse()
    found = validated(tmp_path, *callbacks, package=package)
    assert found["val/nll_before"] == pytest.approx(found["val/loss"], abs=1e-5)


def test_the_order_of_callbacks_changes_no_figure(tmp_path):
    made = [lambda: Calibrate(estimator=samples()), lambda: Calibrate(), lambda: UncertaintyMetrics(measures=[])]
    made.append(lambda: UncertaintyMetrics(estimator=samples(seed=0), measures=["mutual_information"]))
    first = validated(tmp_path, *(make() for make in made))
    second = validated(tmp_path, *(make() for make in reversed(made)))
    assert first == second


def forwards(folder, *callbacks):
    """How often the module's forward ran in a validation of two batches; every sample must be replayed."""
    module = make_module(pytorch_lightning)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="every sample of")
        trainer = make_trainer(pytorch_lightning, folder, *callbacks)
        trainer.validate(module, loader(Images(6)), verbose=False)
    return module.forwards


EQUAL = {
    "samples": lambda: MCDropout(samples=5),
    "a seed": lambda: MCDropout(samples=2, seed=3),
    "by name": lambda: "mc_dropout",
    "around another": lambda: seguq.TestTimeAugmentation(MCDropout(samples=2), "flips"),
}


@pytest.mark.parametrize("make_one", EQUAL.values(), ids=EQUAL)
def test_two_equal_estimators_make_the_forwards_of_one(make_one, tmp_path):
    alone = forwards(tmp_path, Calibrate(estimator=make_one()))
    assert forwards(tmp_path, Calibrate(estimator=make_one()), UncertaintyMetrics(estimator=make_one())) == alone


def test_one_pass_is_the_same_by_name_as_an_object_and_by_default(tmp_path):
    class Silent(type(make_module(pytorch_lightning))):
        def validation_step(self, batch, batch_idx):
            return None

    module = Silent()
    callbacks = [Calibrate(), UncertaintyMetrics("deterministic"), HeatmapWriter(tmp_path, estimator=Deterministic())]
    make_trainer(pytorch_lightning, tmp_path, *callbacks).validate(module, loader(Images(6)), verbose=False)
    assert module.forwards == 2


@pytest.mark.parametrize("other", [{"samples": 4}, {"samples": 5, "layers": "all"}, {"samples": 5, "seed": 1}], ids=str)
def test_estimators_that_differ_run_each_by_itself_and_keep_their_replay(other, tmp_path):
    step = 2
    first = forwards(tmp_path, Calibrate(estimator=MCDropout(samples=5))) - step
    second = forwards(tmp_path, UncertaintyMetrics(estimator=MCDropout(**other))) - step
    both = forwards(
        tmp_path, Calibrate(estimator=MCDropout(samples=5)), UncertaintyMetrics(estimator=MCDropout(**other))
    )
    assert both == first + second + step


def of(model, **settings):
    return Deterministic(model, **settings)


MODEL, OTHER = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)
CALIBRATOR = seguq.TemperatureScaling()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (of(MODEL), of(MODEL), True),
        (of(MODEL), of(copy.deepcopy(MODEL)), False),
        (of(MODEL, calibrator=CALIBRATOR), of(MODEL, calibrator=CALIBRATOR), True),
        (of(MODEL, calibrator=CALIBRATOR), of(MODEL), False),
        (of(None, forward=torch.relu), of(None, forward=torch.relu), True),
        (of(None), MCDropout(), False),
        (of(None, measures=["energy"]), of(None, measures=("energy",)), True),
        (seguq.DeepEnsemble([MODEL, OTHER]), seguq.DeepEnsemble([MODEL, OTHER]), True),
        (seguq.DeepEnsemble([MODEL, OTHER]), seguq.DeepEnsemble([OTHER, MODEL]), False),
        (seguq.DeepEnsemble([of(MODEL)]), seguq.DeepEnsemble([of(MODEL)]), True),
        (seguq.SlidingWindow(window=8), seguq.SlidingWindow(window=8), True),
        (seguq.SlidingWindow(window=8), seguq.SlidingWindow(window=9), False),
        (seguq.SlidingWindow(of(MODEL)), seguq.SlidingWindow(of(OTHER)), False),
    ],
)
def test_estimators_are_the_same_by_class_and_arguments_and_models_by_identity(one, other, same):
    assert one.same_as(other) is other.same_as(one) is same
