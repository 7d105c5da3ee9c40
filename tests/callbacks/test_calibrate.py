"""Calibrate in the trainings that people run: their modules, their loaders, and the ways to start and stop."""

import warnings
from contextlib import nullcontext

import pytest
import pytorch_lightning
import torch
from torch import nn
from torch.utils.data import DataLoader

import seguq
from seguq.calibration import TemperatureScaling
from seguq.callbacks import Calibrate, UncertaintyMetrics
from seguq.callbacks import calibrate as calibrate_module
from seguq.core.errors import SeguqError
from seguq.weights import weights_sha256
from tests.callbacks.modules import (
    KINDS,
    Forwards,
    Stream,
    both_names,
    data_for,
    fit,
    fitted_by_hand,
    kind,
    loader,
    make,
    state_of,
    trainer_of,
)
from tests.callbacks.tiny import runs_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:the module's own step changes the images"),
    pytest.mark.filterwarnings("ignore:Trying to infer the `batch_size`"),
]


@pytest.fixture(autouse=True)
def _same_dropout():
    torch.manual_seed(0)


def attributes_without_parts(attributes):
    return [{name: value for name, value in attributes.items() if not callable(value)}]


def temperature(module, tag="deterministic"):
    return module.calibrators[tag].temperature


# what people train


@both_names
@pytest.mark.parametrize("name", KINDS)
def test_the_temperature_is_that_of_a_fit_on_the_logits_of_the_modules_author(package, name, tmp_path):
    module = make(package, name)
    fit(package, tmp_path, module, Calibrate())
    assert temperature(module) == pytest.approx(fitted_by_hand(module, data_for(module)), abs=1e-3)
    assert 1.1 < temperature(module) < 15


@both_names
@pytest.mark.parametrize("name", KINDS)
def test_a_deterministic_pass_costs_no_forward_that_was_seen(package, name, tmp_path):
    counts = []
    for callbacks in ([], [Calibrate()]):
        module = make(package, name)
        forwards = Forwards(module.net)
        fit(package, tmp_path, module, *callbacks)
        counts.append(forwards.count)
    assert counts[1] - counts[0] == 2 * kind(package, name).extra  # two batches


@both_names
@pytest.mark.parametrize("name", KINDS)
def test_samples_are_of_what_the_modules_network_is_given(package, name, tmp_path):
    module = make(package, name)
    module.net.dropout.p = 1e-12  # draws random numbers, and drops nothing
    fit(package, tmp_path, module, Calibrate(), Calibrate(estimator=seguq.MCDropout(samples=2)))
    assert temperature(module, "mc_dropout(layers=dropout)") == pytest.approx(temperature(module), abs=2e-3)


@both_names
@pytest.mark.parametrize("name", KINDS)
def test_samples_cost_one_forward_each_and_no_more(package, name, tmp_path):
    counts = []
    for callbacks in ([], [Calibrate(estimator=seguq.MCDropout(samples=3))]):
        module = make(package, name)
        forwards = Forwards(module.net)
        fit(package, tmp_path, module, *callbacks)
        counts.append(forwards.count)
    assert counts[1] - counts[0] == 2 * 3


def test_the_temperature_of_another_model_is_that_of_its_own_logits(tmp_path):
    student, teacher = make(pytorch_lightning), make(pytorch_lightning, seed=5)
    fit(pytorch_lightning, tmp_path, student, Calibrate(estimator=seguq.Deterministic(teacher.net)))
    assert temperature(student) == pytest.approx(fitted_by_hand(teacher, data_for(teacher)), abs=1e-3)


def test_a_module_of_several_parts_may_have_an_estimator_that_brings_its_model(tmp_path):
    class Parts(kind(pytorch_lightning, "WithoutForward")):
        def __init__(self):
            super().__init__()
            self.other = nn.Conv2d(1, 1, 1)

    module, teacher = Parts(), make(pytorch_lightning, seed=5)
    fit(pytorch_lightning, tmp_path, module, Calibrate(estimator=seguq.Deterministic(teacher.net)))
    assert temperature(module) == pytest.approx(fitted_by_hand(teacher, data_for(teacher)), abs=1e-3)


def test_a_part_that_the_step_left_in_training_mode_is_not_calibrated_on(tmp_path):
    class Sampling(kind(pytorch_lightning)):
        def validation_step(self, batch, batch_idx):
            self.net.dropout.train()
            self(batch[0])

    module = Sampling()
    fit(pytorch_lightning, tmp_path, module, Calibrate())
    assert temperature(module) == pytest.approx(fitted_by_hand(module, data_for(module)), abs=1e-3)


@pytest.mark.parametrize("how", ["in place", "in training mode"])
def test_where_an_output_is_of_no_use_the_pass_is_of_the_images_that_the_step_normalized(how, tmp_path):
    class Using(kind(pytorch_lightning, "Normalizing")):
        def validation_step(self, batch, batch_idx):
            self.net.dropout.train(how == "in training mode")
            logits = self(self.normalized(batch[0]))
            if how == "in place":
                logits.sigmoid_()

    module = Using()
    fit(pytorch_lightning, tmp_path, module, Calibrate())
    assert temperature(module) == pytest.approx(fitted_by_hand(module, data_for(module)), abs=1e-3)


def test_forward_is_called_in_evaluation_mode(tmp_path):
    class Sampling(kind(pytorch_lightning)):
        def validation_step(self, batch, batch_idx):
            self.net.dropout.train()

    module = Sampling()
    fit(pytorch_lightning, tmp_path, module, Calibrate(batch_forward=lambda module, batch: module(batch[0])))
    assert temperature(module) == pytest.approx(fitted_by_hand(module, data_for(module)), abs=1e-3)


def test_a_segmentation_task_keeps_its_temperature(tmp_path):
    package = pytorch_lightning
    net = make(package).net
    task = seguq.SegmentationTask(model=net, classes=3, mean=[0, 0, 0], std=[1, 1, 1], lr=0.05)
    task.form = kind(package).form
    keep = package.callbacks.ModelCheckpoint(tmp_path, filename="last")
    fit(package, tmp_path, task, Calibrate(), keep, enable_checkpointing=True, max_epochs=2)
    loaded = seguq.SegmentationTask.load(tmp_path / "last.ckpt", model=make(package, seed=9).net)
    with torch.no_grad():
        batches = [(task.eval()(image), mask) for image, mask in loader(data_for(task))]
    assert temperature(loaded) == pytest.approx(TemperatureScaling().fit(batches).temperature, abs=1e-3)


# how people run it


class Watch(pytorch_lightning.Callback):
    """Notes the temperature at the end of each validation."""

    def __init__(self):
        self.seen = []

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            self.seen.append(round(temperature(module), 5) if getattr(module, "calibrators", None) else None)


@pytest.mark.parametrize(
    ("settings", "validations"),
    [
        ({"limit_val_batches": 1.0}, 1),
        ({"accumulate_grad_batches": 2, "max_epochs": 2}, 2),
        ({"val_check_interval": 1}, 3),
        ({"val_check_interval": 2, "check_val_every_n_epoch": None, "max_epochs": 2}, 3),
        ({"check_val_every_n_epoch": 2, "max_epochs": 4}, 2),
        ({"max_epochs": -1, "max_steps": 4, "val_check_interval": 1}, 4),
        ({"num_sanity_val_steps": 2}, 1),
        ({"gradient_clip_val": 0.1, "deterministic": True}, 1),
        ({"reload_dataloaders_every_n_epochs": 1, "max_epochs": 2}, 2),
        ({"inference_mode": False}, 1),
    ],
    ids=str,
)
def test_every_validation_fits_and_the_last_is_of_the_last_weights(settings, validations, tmp_path):
    module, watch = make(pytorch_lightning), Watch()
    fit(pytorch_lightning, tmp_path, module, Calibrate(), watch, **settings)
    assert len(watch.seen) == len(set(watch.seen)) == validations
    assert None not in watch.seen
    if "val_check_interval" not in settings or settings["val_check_interval"] == 1:
        assert temperature(module) == pytest.approx(fitted_by_hand(module, data_for(module)), abs=1e-3)


@both_names
@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true", "bf16-mixed", "16-mixed"])
def test_the_temperature_is_that_of_the_logits_in_the_trainers_precision(package, precision, tmp_path):
    module = make(package)
    trainer = fit(package, tmp_path, module, Calibrate(), precision=precision)
    mixed = "mixed" in precision  # else the weights have the precision already
    with trainer.precision_plugin.forward_context() if mixed else nullcontext():
        by_hand = fitted_by_hand(module, data_for(module))
    assert temperature(module) == pytest.approx(by_hand, rel=1e-2 if "16" in precision else 1e-3)


def test_limited_validation_is_fitted_on_what_it_saw(tmp_path):
    module = make(pytorch_lightning)
    fit(pytorch_lightning, tmp_path, module, Calibrate(), limit_val_batches=1)
    assert temperature(module) == pytest.approx(fitted_by_hand(module, data_for(module, 3)), abs=1e-3)
    assert temperature(module) != pytest.approx(fitted_by_hand(module, data_for(module)), abs=1e-2)


def test_a_fast_run_of_development_fits_too(tmp_path):
    module = make(pytorch_lightning)
    trainer = fit(pytorch_lightning, tmp_path, module, Calibrate(every_n_epochs=7), fast_dev_run=True)
    assert float(trainer.callback_metrics["val/temperature"]) == pytest.approx(temperature(module))


@pytest.mark.parametrize(
    "loaders",
    [
        lambda data: loader(data, shuffle=True),
        lambda data: loader(Stream(data)),
        lambda data: DataLoader(data, batch_sampler=[[3, 0, 1], [4], [2]]),
        lambda data: {"a": loader(data)},
        lambda data: [loader(data)],
    ],
    ids=["shuffled", "a stream", "batches by index", "a dict", "a list"],
)
def test_the_temperature_does_not_depend_on_how_the_images_come(loaders, tmp_path):
    module = make(pytorch_lightning)
    trainer = fit(pytorch_lightning, tmp_path, module, Calibrate(), val=loaders(data_for(module)))
    assert temperature(module) == pytest.approx(fitted_by_hand(module, data_for(module)), abs=1e-3)
    assert {"val/ece_after", "val/nll_after"} < trainer.callback_metrics.keys()


def test_shuffling_changes_no_figure_of_a_list_of_batches(tmp_path):
    found = []
    for batches in ([[0, 1, 2], [3, 4]], [[4], [1, 3], [2, 0]]):
        torch.manual_seed(0)
        module = make(pytorch_lightning)
        val = DataLoader(data_for(module), batch_sampler=batches)
        trainer = fit(pytorch_lightning, tmp_path, module, Calibrate(), val=val)
        found.append({name: float(value) for name, value in trainer.callback_metrics.items() if name != "val/loss"})
    assert found[0] == pytest.approx(found[1], abs=1e-5)


@both_names
@pytest.mark.parametrize("dataloader", [0, 1])
def test_of_several_loaders_the_one_that_was_asked_for_is_fitted_on_in_training(package, dataloader, tmp_path):
    module = make(package)
    data = [data_for(module, seed=2), data_for(module, 4, seed=3)]
    val = [loader(part) for part in data]
    fit(package, tmp_path, module, Calibrate(dataloader=dataloader), val=val)
    found = [fitted_by_hand(module, part) for part in data]
    assert abs(found[0] - found[1]) > 0.01
    assert temperature(module) == pytest.approx(found[dataloader], abs=1e-3)


@pytest.mark.parametrize("ignore_index", [-100, -1, 0])
def test_pixels_of_another_ignore_index_are_left_out(ignore_index, tmp_path):
    class Other(kind(pytorch_lightning)):
        def evaluate(self, batch):
            return nn.functional.cross_entropy(self(batch[0]), batch[1], ignore_index=ignore_index)

    module = Other()
    train, val = (data_for(module, 4, seed=seed, ignore_index=ignore_index) for seed in (1, 0))
    fit(pytorch_lightning, tmp_path, module, Calibrate(ignore_index=ignore_index), train=loader(train), val=loader(val))
    assert temperature(module) == pytest.approx(fitted_by_hand(module, val, ignore_index=ignore_index), abs=1e-3)


def test_a_calibrator_of_ones_own_is_left_unfitted_for_the_next_validation(tmp_path):
    settings, module = TemperatureScaling(), make(pytorch_lightning)
    fit(pytorch_lightning, tmp_path, module, Calibrate(settings), max_epochs=2)
    assert settings.temperature == 1
    assert temperature(module) == pytest.approx(fitted_by_hand(module, data_for(module)), abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "every", "fits"),
    [
        ({"max_epochs": 7, "check_val_every_n_epoch": 2}, 2, [True, False, True]),
        ({"max_epochs": 7, "check_val_every_n_epoch": 2}, 9, [True, False, True]),
        ({"max_epochs": 4}, 3, [True, False, False, True]),
        ({"max_epochs": -1, "max_steps": 9}, 2, [True, False, True]),
        ({"max_epochs": 9, "max_steps": 9}, 9, [True, False, True]),
    ],
    ids=str,
)
def test_the_first_validation_is_fitted_every_n_th_after_it_and_the_last(settings, every, fits, tmp_path, monkeypatch):
    found = []

    class Note(pytorch_lightning.Callback):
        def on_validation_start(self, trainer, module):
            found.append(False)

    log = calibrate_module.log_values
    monkeypatch.setattr(calibrate_module, "log_values", lambda *words: (found.append(found.pop() or True), log(*words)))
    module = make(pytorch_lightning)
    fit(pytorch_lightning, tmp_path, module, Note(), Calibrate(every_n_epochs=every), **settings)
    assert found == fits


# starting, stopping, starting again


def test_a_callback_that_is_used_for_a_second_training_forgets_the_first(tmp_path):
    callback = Calibrate()
    fit(pytorch_lightning, tmp_path, make(pytorch_lightning), callback)
    module = make(pytorch_lightning, seed=1)
    trainer = trainer_of(pytorch_lightning, tmp_path, callback)
    trainer.fit(module, loader(data_for(module)))  # without validation
    trainer.save_checkpoint(tmp_path / "second.ckpt")
    assert "calibrators" not in torch.load(tmp_path / "second.ckpt", weights_only=True).get("seguq", {})


def keeping(package, folder, **settings):
    return package.callbacks.ModelCheckpoint(folder, monitor="val/nll_before", mode="max", filename="best", **settings)


@both_names
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@pytest.mark.parametrize("stage", ["test", "validate"])
def test_best_is_tested_with_the_calibrator_of_its_weights(package, precision, stage, tmp_path):
    module, metrics = make(package), UncertaintyMetrics(measures=("predictive_entropy",))
    keep = keeping(package, tmp_path)
    settings = {"max_epochs": 3, "precision": precision, "enable_checkpointing": True}
    trainer = fit(package, tmp_path, module, Calibrate(), metrics, keep, **settings)
    best = torch.load(keep.best_model_path, weights_only=True)
    assert best["global_step"] < 9  # not the last
    runs = runs_of(metrics)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message="The '.*_dataloader' does not have many workers")
        warnings.filterwarnings("ignore", message=".*weights_only")
        warnings.filterwarnings("ignore", message="It is recommended to use .self.log.*")
        trainer.test(module, loader(data_for(module, seed=4)), ckpt_path="best", verbose=False)
    packed = best["seguq"]["calibrators"]["deterministic"]
    assert [float(run.calibrator.log_temperature) for run in runs] == [float(packed["tensors"]["log_temperature"])]


def test_resuming_brings_the_calibrator_back_before_the_first_validation(tmp_path):
    module, keep = make(pytorch_lightning), pytorch_lightning.callbacks.ModelCheckpoint(tmp_path, filename="last")
    fit(pytorch_lightning, tmp_path, module, Calibrate(), keep, enable_checkpointing=True)
    expected, seen = temperature(module), []

    class Look(pytorch_lightning.Callback):
        def on_train_start(self, trainer, module):
            seen.append(temperature(module))
            trainer.save_checkpoint(tmp_path / "again.ckpt")

    settings = {"ckpt_path": tmp_path / "last.ckpt", "max_epochs": 2}
    fit(pytorch_lightning, tmp_path, make(pytorch_lightning, seed=9), Calibrate(), Look(), **settings)
    assert seen == [pytest.approx(expected, abs=1e-6)]
    again = seguq.load(tmp_path / "again.ckpt", make(pytorch_lightning))
    assert temperature(again) == pytest.approx(expected, abs=1e-6)


@both_names
@pytest.mark.parametrize("where", ["validation_step", "a later callback", "training_step", "on_validation_epoch_end"])
@pytest.mark.parametrize("error", [FloatingPointError, KeyboardInterrupt])
def test_an_exception_leaves_the_module_as_it_would_without(package, where, error, tmp_path):
    class Failing(kind(package)):
        def fail(self, here, batch_idx=1):
            if here == where and batch_idx == 1:
                raise error("stop here")

        def training_step(self, batch, batch_idx):
            self.fail("training_step", batch_idx)
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            loss = self.evaluate(batch)
            self.fail("validation_step", batch_idx)
            return loss

        def on_validation_epoch_end(self):
            self.fail("on_validation_epoch_end")

    class Later(package.Callback):
        def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
            module.fail("a later callback", batch_idx)

    states = []  # Lightning itself leaves a module in the mode in which it failed
    for ours in ([], [Calibrate(), Calibrate(estimator=seguq.MCDropout(samples=2))]):
        torch.manual_seed(0)
        module = Failing()
        with pytest.raises(SystemExit if error is KeyboardInterrupt else error):
            fit(package, tmp_path, module, *ours, Later())
        states.append([attributes_without_parts(attributes) + rest for attributes, *rest in state_of(module).values()])
    assert states[0] == states[1]


@pytest.mark.parametrize("name", ["Plain", "WithoutForward", "PastForward"])
def test_an_error_of_its_own_leaves_no_hooks_and_modes_as_they_were(name, tmp_path):
    class Silent(kind(pytorch_lightning, name)):
        def validation_step(self, batch, batch_idx):
            (self.net if name == "WithoutForward" else self)(batch[0])

    module = Silent()
    data = [(image, mask.where(mask != 1, torch.tensor(7))) for image, mask in (data_for(module)[i] for i in range(4))]
    before = state_of(module)
    with pytest.raises(SeguqError, match=r"target holds the value 7, which is no class index in 0\.\.2"):
        fit(pytorch_lightning, tmp_path, module, Calibrate(), Calibrate(estimator="mc_dropout"), val=loader(data))
    for part, (_, hooks, _) in state_of(module).items():
        assert hooks == before[part][1]
    assert not {"on_save_checkpoint", "on_load_checkpoint"} & vars(module).keys()
    assert not any(part.training for part in module.modules())  # as Lightning's validation had it


@both_names
def test_a_search_for_a_learning_rate_before_training_changes_nothing(package, tmp_path):
    module = make(package)
    module.lr = 0.1
    finder = package.callbacks.LearningRateFinder(num_training_steps=4, min_lr=1e-4)
    trainer = fit(package, tmp_path, module, finder, Calibrate(), max_epochs=3)
    assert module.calibrators["deterministic"].global_step == trainer.global_step == 9
    assert temperature(module) == pytest.approx(fitted_by_hand(module, data_for(module)), abs=1e-3)


@both_names
def test_weights_that_are_averaged_before_the_last_validation_are_calibrated(package, tmp_path):
    module = make(package)  # with batch normalization there is one more epoch for its statistics
    fit(package, tmp_path, module, package.callbacks.StochasticWeightAveraging(0.1, swa_epoch_start=1), Calibrate(),
        max_epochs=3)  # fmt: skip
    assert module.calibrators["deterministic"].weights_sha256 == weights_sha256(module)
    assert temperature(module) == pytest.approx(fitted_by_hand(module, data_for(module)), abs=1e-3)


@pytest.mark.skipif(
    torch.__version__.startswith("2.6."), reason="torch 2.6 keeps a function in SWALR's state, which is not read"
)
@both_names
def test_weights_that_are_averaged_after_the_last_validation_are_not_calibrated(package, tmp_path):
    average = package.callbacks.StochasticWeightAveraging(0.1, swa_epoch_start=1)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout(0.3), nn.Conv2d(4, 3, 1))
    module = make(package, net=net)
    fit(package, tmp_path, module, average, Calibrate(), max_epochs=3).save_checkpoint(tmp_path / "averaged.ckpt")
    with pytest.warns(UserWarning, match="'deterministic' is not applied: it was fitted for other weights"):
        assert seguq.load(tmp_path / "averaged.ckpt", module).calibrators == {}


def test_a_trainer_can_be_used_again_and_again(tmp_path):
    module = make(pytorch_lightning)
    trainer, train, val = fit(pytorch_lightning, tmp_path, module, Calibrate()), data_for(module, 6), data_for(module)
    first = temperature(module)
    trainer.validate(module, loader(val), verbose=False)
    assert temperature(module) == pytest.approx(first, abs=1e-5)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, loader(train), loader(val))
    assert temperature(module) == pytest.approx(fitted_by_hand(module, val), abs=1e-3)
    assert temperature(module) != pytest.approx(first, abs=1e-3)


@both_names
def test_modes_hooks_gradients_and_random_state_are_as_found_after_every_hook(package, tmp_path):
    """What a callback before ours and one after ours see in the same hook is the same, but for the noted calls."""
    seen = {}

    class Probe(package.Callback):
        def __init__(self, name):
            self.name = name

        @property
        def state_key(self):
            return self.name

        def look(self, hook, module):
            state = [(a, g) for a, _, g in state_of(module).values()]
            modes = [part.training for part in module.modules()]
            mine = {key for key in vars(module) if not key.startswith("_") and key != "calibrators"}
            now = (state, modes, mine, torch.get_rng_state().tolist())
            seen.setdefault(hook, []).append((self.name, now))

        def on_validation_start(self, trainer, module):
            self.look("start", module)

        def on_validation_batch_start(self, trainer, module, *_):
            self.look("batch start", module)

        def on_validation_batch_end(self, trainer, module, *_):
            self.look("batch end", module)

        def on_validation_epoch_end(self, trainer, module):
            self.look("epoch end", module)

    ours = [Calibrate(), Calibrate(estimator=seguq.MCDropout(samples=2))]
    fit(package, tmp_path, make(package), Probe("before"), *ours, Probe("after"))
    assert set(seen) == {"start", "batch start", "batch end", "epoch end"}
    for hook, looks in seen.items():
        for (_, before), (_, after) in zip(looks[::2], looks[1::2], strict=True):
            assert before == after, hook


@both_names
def test_python_and_numpy_draw_the_same_with_and_without(package, tmp_path):
    import random

    import numpy as np

    drawn = []
    for callbacks in ([], [Calibrate(), Calibrate(estimator="mc_dropout")]):
        package.seed_everything(3)
        fit(package, tmp_path, make(package), *callbacks)
        drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))  # noqa: NPY002
    assert drawn[0] == drawn[1]


# errors before work


class Odd(Stream):
    """Batches of keys that nobody knows."""

    def __iter__(self):
        return ({"picture": image, "truth": mask} for image, mask in super().__iter__())


def test_a_batch_that_is_not_understood_is_an_error_in_the_sanity_check(tmp_path):
    class Silent(kind(pytorch_lightning)):
        def validation_step(self, batch, batch_idx):
            return None

        def on_train_start(self):
            raise AssertionError("training has begun")

    module = Silent()
    message = r"'picture': a tensor \(3, 3, 8, 12\), 'truth': a tensor \(3, 8, 12\).*batch_forward=lambda module, batch"
    with pytest.raises(SeguqError, match=message):
        fit(pytorch_lightning, tmp_path, module, Calibrate(), val=loader(Odd(data_for(module))), num_sanity_val_steps=1)


@both_names
def test_without_a_network_to_call_the_error_comes_before_the_first_step(package, tmp_path):
    class Parts(kind(package, "WithoutForward")):
        def __init__(self):
            super().__init__()
            self.other = nn.Conv2d(1, 1, 1)

        def training_step(self, batch, batch_idx):
            raise AssertionError("a step was run")

    message = r"Parts defines no forward, and has 2 parts with weights \(net, other\)"
    with pytest.raises(SeguqError, match=message):
        fit(package, tmp_path, Parts(), Calibrate())


@both_names
def test_a_forward_that_takes_the_whole_batch_is_explained(package, tmp_path):
    class Whole(kind(package, "Torchvision")):
        def forward(self, batch):
            return self.net(batch["image"])

        def evaluate(self, batch):
            return nn.functional.cross_entropy(self(batch), batch["mask"], ignore_index=255)

        def class_logits(self, batch):
            return self(batch)

    module = Whole()
    message = r"Whole was called with the images .* alone, and failed .*batch_forward=lambda module.*'image': a tensor"
    with pytest.raises(SeguqError, match=message):
        fit(package, tmp_path, module, Calibrate())
    module = Whole()
    fit(package, tmp_path, module, Calibrate(batch_forward=lambda module, batch: module(batch)))
    assert temperature(module) == pytest.approx(fitted_by_hand(module, data_for(module)), abs=1e-3)


def test_batches_without_masks_are_explained(tmp_path):
    class Silent(kind(pytorch_lightning)):
        def validation_step(self, batch, batch_idx):
            return None

    module = Silent()
    val = loader([image for image, _ in (data_for(module)[i] for i in range(4))])
    with pytest.raises(SeguqError, match=r"Calibrate needs labels.*\(image, mask\).*\(logits, mask\)"):
        fit(pytorch_lightning, tmp_path, module, Calibrate(), val=val)


@pytest.mark.parametrize("output", [lambda x: {"scores": x}, lambda x: x.mean()], ids=["dict", "number"])
def test_an_output_without_logits_is_explained(output, tmp_path):
    class Other(kind(pytorch_lightning)):
        def forward(self, x):
            return output(self.net(x))

        def evaluate(self, batch):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1], ignore_index=255)

    message = r"a model must return logits .* but returned .*batch_forward=lambda module, batch"
    with pytest.raises(SeguqError, match=message):
        fit(pytorch_lightning, tmp_path, Other(), Calibrate())


def test_masks_of_another_size_are_an_error_with_both_shapes(tmp_path):
    class Silent(kind(pytorch_lightning)):
        def validation_step(self, batch, batch_idx):
            return None

    module = Silent()
    val = loader([(image, mask[:4]) for image, mask in (data_for(module)[i] for i in range(4))])
    with pytest.raises(SeguqError, match=r"(?s)8, 12.*4, 12|4, 12.*8, 12"):
        fit(pytorch_lightning, tmp_path, module, Calibrate(), val=val)


# what the files hold


@both_names
def test_the_hash_is_of_the_weights_that_the_validation_ran_with(package, tmp_path):
    hashes = []

    class Hash(kind(package)):
        def validation_step(self, batch, batch_idx):
            self(batch[0])
            hashes.append(weights_sha256(self))

    module = Hash()
    average = package.callbacks.WeightAveraging()
    fit(package, tmp_path, module, average, Calibrate(), max_epochs=2)
    assert module.calibrators["deterministic"].weights_sha256 == hashes[-1] != hashes[0]
    assert module.calibrators["deterministic"].global_step == 6


@both_names
def test_the_file_can_be_read_without_running_code_and_without_seguq(package, tmp_path):
    keep = package.callbacks.ModelCheckpoint(tmp_path, filename="last", save_weights_only=True)
    fit(package, tmp_path, make(package), Calibrate(), Calibrate(estimator="mc_dropout"), keep,
        enable_checkpointing=True)  # fmt: skip
    found = torch.load(tmp_path / "last.ckpt", weights_only=True)["seguq"]
    assert found["version"] == 1
    assert set(found["calibrators"]) == {"deterministic", "mc_dropout(layers=dropout)"}
    for packed in found["calibrators"].values():
        assert set(packed) == {
            "class",
            "defined_in",
            "arguments",
            "tensors",
            "global_step",
            "weights_sha256",
            "fitted_for",
        }
