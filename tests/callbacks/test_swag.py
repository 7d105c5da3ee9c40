"""Collecting weights along a training: when, at which rate, and what ends in the files."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch

import seguq
from seguq import callbacks
from seguq.core.errors import UsageError
from tests.callbacks.tiny import Images, both_names, loader, make_module, make_trainer, traces

PACKAGE = seguq.core.lightning.pytorch_lightning


class Watch:
    """A callback class of either name that notes the rates in force, and the weights after each epoch."""

    def __new__(cls, package):
        class Watching(package.Callback):
            def __init__(self):
                self.rates, self.weights, self.every_step = [], [], []

            def on_before_optimizer_step(self, trainer, pl_module, optimizer):
                self.rates.append([group["lr"] for group in optimizer.param_groups])

            def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
                self.every_step.append(pl_module.head.weight.detach().clone())

            def on_validation_epoch_start(self, trainer, pl_module):
                if not trainer.sanity_checking:
                    self.weights.append(pl_module.head.weight.detach().clone())

        return Watching()


def fitted(package, folder, swag, *others, module=None, data=12, **settings):
    module = module or make_module(package)
    trainer = make_trainer(package, folder, *others, swag, **{"max_epochs": 8, **settings})
    trainer.fit(module, loader(Images(data)), loader(Images(3, seed=1)))
    return trainer, module


@both_names
def test_the_weights_after_each_epoch_of_the_last_quarter_are_collected(package, tmp_path):
    swag, watch = callbacks.SWAG(lr=0.05), Watch(package)
    fitted(package, tmp_path, swag, watch)
    assert swag.moments.count == 2
    expected = torch.stack(watch.weights[6:]).double()
    np.testing.assert_allclose(swag.moments.mean["head.weight"], expected.mean(0), rtol=1e-5)
    spread = expected.std(0, correction=0)
    assert spread.max() > 2e-5
    np.testing.assert_allclose(swag.moments.variance("head.weight").sqrt(), spread, atol=1e-6)


def test_from_the_first_step_on_the_rate_is_not_that_of_a_warm_up(tmp_path):
    class Scheduled(type(make_module(PACKAGE))):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.3, total_steps=100)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    watch = Watch(PACKAGE)
    with pytest.warns(UserWarning, match="the module's own schedulers"):
        fitted(PACKAGE, tmp_path, callbacks.SWAG(start=0), watch, module=Scheduled(), max_epochs=2)
    assert watch.rates == [[0.3]] * len(watch.rates) != []


@both_names
def test_the_rate_is_held_from_the_start_of_collecting_on_against_a_scheduler(package, tmp_path):
    class Scheduled(type(make_module(package))):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]

    watch = Watch(package)
    with pytest.warns(UserWarning, match="SWAG sets the learning rate from here on: the module's own schedulers"):
        fitted(package, tmp_path, callbacks.SWAG(start=2, lr=0.03), watch, module=Scheduled(), max_epochs=5)
    rates = [rate for (rate,) in watch.rates]
    assert rates == [0.1] * 4 + [0.05] * 4 + [0.03] * 12
    watch = Watch(package)
    with pytest.warns(UserWarning, match="schedulers change nothing"):
        fitted(package, tmp_path, callbacks.SWAG(start=2), watch, module=Scheduled(), max_epochs=5)
    assert [rate for (rate,) in watch.rates] == [0.1] * 4 + [0.05] * 4 + [0.025] * 12


def test_one_rate_for_each_group(tmp_path):
    class Groups(type(make_module(seguq.core.lightning.pytorch_lightning))):
        def configure_optimizers(self):
            groups = [{"params": self.stem.parameters()}, {"params": self.head.parameters(), "lr": torch.tensor(0.2)}]
            return torch.optim.Adam(groups, lr=1e-3)

    package = seguq.core.lightning.pytorch_lightning
    watch = Watch(package)
    fitted(package, tmp_path, callbacks.SWAG(start=1, lr=(1e-4, 0.02)), watch, module=Groups(), max_epochs=3)
    assert [float(rate) for rate in watch.rates[-1]] == [pytest.approx(1e-4), pytest.approx(0.02)]
    with pytest.raises(UsageError, match="lr has 3 rates, but the optimizers have 2 groups"):
        fitted(package, tmp_path, callbacks.SWAG(lr=(1, 2, 3)), module=Groups())


def test_a_part_of_a_training_that_ends_by_steps(tmp_path):
    package = seguq.core.lightning.pytorch_lightning
    swag, watch = callbacks.SWAG(start=0.5, every_n_steps=2, lr=0.05), Watch(package)
    fitted(package, tmp_path, swag, watch, max_epochs=-1, max_steps=20)
    assert swag.moments.count == 5
    expected = torch.stack(watch.every_step[11::2]).double()
    np.testing.assert_allclose(swag.moments.mean["head.weight"], expected.mean(0), rtol=1e-5)


def test_accumulated_batches_are_one_step(tmp_path):
    package = seguq.core.lightning.pytorch_lightning
    swag = callbacks.SWAG(start=0.0, every_n_steps=1, lr=0.05)
    fitted(package, tmp_path, swag, accumulate_grad_batches=2, max_epochs=3)
    assert swag.moments.count == 6


@both_names
def test_a_checkpoint_of_weights_alone_has_it_and_runs_nothing(package, tmp_path):
    keep = package.callbacks.ModelCheckpoint(tmp_path, save_weights_only=True, save_last=True, every_n_epochs=1)
    swag = callbacks.SWAG(start=0.5, lr=0.05)
    _, module = fitted(package, tmp_path, swag, keep, enable_checkpointing=True)
    held = torch.load(keep.last_model_path, weights_only=True)["seguq"]["swag"]
    assert held["count"] == swag.moments.count == 4
    images = Images(2)[0]["image"][None]
    maps = seguq.SWAG(make_module(package, seed=5), keep.last_model_path, samples=4, calibrator=None)(images)
    assert maps["mutual_information"].max() > 0
    in_memory = tmp_path / "last.ckpt"
    torch.save({"state_dict": module.state_dict(), "seguq": {"version": 1, "swag": swag.moments.state()}}, in_memory)
    again = seguq.SWAG(make_module(package), in_memory, samples=4, calibrator=None)(images)
    assert torch.equal(maps.probs, again.probs)


def test_a_checkpoint_before_the_start_has_nothing_and_the_last_epoch_is_in_that_of_its_validation(tmp_path):
    package = seguq.core.lightning.pytorch_lightning
    keep = package.callbacks.ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}", monitor=None)
    fitted(package, tmp_path, callbacks.SWAG(start=2, lr=0.05), keep, enable_checkpointing=True, max_epochs=5)
    found = [
        torch.load(tmp_path / f"epoch={epoch}.ckpt", weights_only=True).get("seguq", {}).get("swag", {"count": None})
        for epoch in range(5)
    ]
    assert [held["count"] for held in found] == [None, None, 1, 2, 3]


@both_names
def test_a_training_that_was_cut_off_goes_on_to_the_same_end(package, tmp_path):
    def ordered():
        return callbacks.SWAG(start=2, lr=0.05)

    whole = ordered()
    fitted(package, tmp_path, whole, module=make_module(package), max_epochs=7)
    first = ordered()
    trainer, _ = fitted(package, tmp_path, first, module=make_module(package), max_epochs=5)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    rest, watch = ordered(), Watch(package)
    trainer = make_trainer(package, tmp_path, watch, rest, max_epochs=7)
    trainer.fit(make_module(package, seed=9), loader(Images(12)), loader(Images(3)), ckpt_path=tmp_path / "half.ckpt")
    assert (first.moments.count, rest.moments.count) == (3, 5)
    assert watch.rates[0] == [0.05]
    # dropout draws other masks in the second half, so the ends differ, but what came before does not
    held = torch.load(tmp_path / "half.ckpt", weights_only=True)["seguq"]["swag"]
    np.testing.assert_allclose(held["mean"]["head.weight"], first.moments.mean["head.weight"])
    five = (held["mean"]["head.weight"] * 3 + watch.weights[0] + watch.weights[1]) / 5
    np.testing.assert_allclose(rest.moments.mean["head.weight"], five, rtol=1e-5)


def test_resuming_with_another_rank_is_refused(tmp_path):
    package = seguq.core.lightning.pytorch_lightning
    trainer, _ = fitted(package, tmp_path, callbacks.SWAG(start=0, rank=3), max_epochs=2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    again = make_trainer(package, tmp_path, callbacks.SWAG(start=0, rank=5), max_epochs=3)
    with pytest.raises(UsageError, match=r"written by SWAG\(rank=3\): resume with that rank, not 5"):
        again.fit(make_module(package), loader(Images(3)), ckpt_path=tmp_path / "half.ckpt")


def test_a_second_training_begins_anew(tmp_path):
    package = seguq.core.lightning.pytorch_lightning
    swag = callbacks.SWAG(start=0, lr=0.05)
    fitted(package, tmp_path, swag, max_epochs=3)
    fitted(package, tmp_path, swag, max_epochs=2)
    assert swag.moments.count == 2


def test_it_goes_with_calibrate_in_one_file(tmp_path):
    package = seguq.core.lightning.pytorch_lightning
    trainer, _ = fitted(package, tmp_path, callbacks.SWAG(start=0), callbacks.Calibrate(), max_epochs=2)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    held = torch.load(tmp_path / "a.ckpt", weights_only=True)["seguq"]
    assert set(held) == {"version", "swag", "calibrators"}
    assert seguq.load(tmp_path / "a.ckpt", make_module(package)).calibrators["deterministic"] is not None


def test_the_module_is_left_as_it_was(tmp_path):
    package = seguq.core.lightning.pytorch_lightning
    module = make_module(package)
    before = traces(module)
    fitted(package, tmp_path, callbacks.SWAG(start=0), module=module, max_epochs=2)
    after = traces(module)
    assert (before[1], before[3]) == (after[1], after[3])
    assert "on_save_checkpoint" not in vars(module)


def test_too_short_a_training_says_so(tmp_path):
    package = seguq.core.lightning.pytorch_lightning
    with pytest.warns(UserWarning, match="SWAG collected the weights of 1 moments of this training, but needs 2"):
        fitted(package, tmp_path, callbacks.SWAG(), max_epochs=2)


def test_weights_that_have_diverged_are_left_out(tmp_path):
    package = seguq.core.lightning.pytorch_lightning

    class Diverging(type(make_module(package))):
        def on_train_epoch_start(self):
            if self.current_epoch == 2:
                self.head.bias.data[0] = math.nan

    swag = callbacks.SWAG(start=0)
    with pytest.warns(UserWarning, match="SWAG leaves out the weights of step 12: .*the training has diverged"):
        fitted(package, tmp_path, swag, module=Diverging(), max_epochs=3)
    assert swag.moments.count == 2


def test_an_unknown_end_is_told_before_the_first_step(tmp_path):
    package = seguq.core.lightning.pytorch_lightning
    module = make_module(package)
    with pytest.raises(UsageError, match=r"SWAG\(start=0.75\) is a part of a training whose end is not known"):
        fitted(package, tmp_path, callbacks.SWAG(), module=module, max_epochs=-1, max_time="00:00:01:00")
    assert module.forwards <= 1


def test_two_that_set_the_rate_are_refused(tmp_path):
    package = seguq.core.lightning.pytorch_lightning
    with pytest.raises(UsageError, match="Snapshots and SWAG each set the learning rate"):
        fitted(package, tmp_path, callbacks.SWAG(), callbacks.Snapshots(tmp_path, cycles=2))


def test_sharded_parameters_are_refused(tmp_path):
    package = seguq.core.lightning.pytorch_lightning
    swag, module = callbacks.SWAG(), make_module(package)
    trainer = make_trainer(package, tmp_path, swag)
    trainer.strategy.__class__ = type("FSDPStrategy", (type(trainer.strategy),), {})
    with pytest.raises(UsageError, match="FSDPStrategy shards them: train with strategy='ddp'"):
        trainer.fit(module, loader(Images(3)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": 1.0}, "start must be a part of the training"),
        ({"start": -1}, "start must be a part"),
        ({"start": "late"}, "start must be a part"),
        ({"rank": 1}, "rank must be 0"),
        ({"lr": 0}, "lr must be a number above 0"),
        ({"lr": []}, "lr must be a number above 0"),
        ({"lr": "fast"}, "lr must be a number above 0"),
        ({"lr": math.nan}, "lr must be a number above 0"),
        ({"every_n_steps": 0}, "every_n_steps must be a whole number"),
    ],
)
def test_wrong_arguments(settings, message):
    with pytest.raises(UsageError, match=message):
        callbacks.SWAG(**settings)


def test_a_copy_takes_part_in_no_run():
    swag = callbacks.SWAG()
    swag._undo = lambda: None
    assert copy.deepcopy(swag)._undo is None
    assert pickle.loads(pickle.dumps(swag))._undo is None


def test_it_says_at_the_end_what_it_has(tmp_path, caplog):
    package = seguq.core.lightning.pytorch_lightning
    fitted(package, tmp_path, callbacks.SWAG(start=0), max_epochs=3)
    assert "SWAG: the weights of 3 moments of this training were collected" in caplog.text


def test_fitting_again_with_nothing_left_to_train_keeps_what_was_collected(tmp_path):
    package = seguq.core.lightning.pytorch_lightning
    swag = callbacks.SWAG(start=0)
    trainer, module = fitted(package, tmp_path, swag, max_epochs=3)
    trainer.fit(module, loader(Images(12)))
    assert swag.moments.count == 3


def test_lightnings_own_averaging_beside_it_is_refused(tmp_path):
    package = seguq.core.lightning.pytorch_lightning
    with pytest.raises(UsageError, match="StochasticWeightAveraging and SWAG each set the learning rate"):
        fitted(package, tmp_path, callbacks.SWAG(), package.callbacks.StochasticWeightAveraging(0.1))


def test_statistics_of_a_frozen_part_stay_those_of_the_training(tmp_path):
    package = seguq.core.lightning.pytorch_lightning

    class Frozen(type(make_module(package))):
        def __init__(self):
            super().__init__()
            self.stem = torch.nn.Sequential(self.stem, torch.nn.BatchNorm2d(8)).requires_grad_(False)
            self.stem[1].running_mean.fill_(0.7)
            self.head = torch.nn.Sequential(torch.nn.BatchNorm2d(8), self.head)

        def on_train_epoch_start(self):
            self.stem.eval()

    trainer, module = fitted(package, tmp_path, callbacks.SWAG(start=0, lr=0.05), module=Frozen(), max_epochs=3)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    batches = list(loader(Images(6)))
    est = seguq.SWAG(module, tmp_path / "a.ckpt", samples=3, bn_batches=batches, calibrator=None)
    assert (est.mean_model.stem[1].running_mean == 0.7).all()
    seen = torch.relu(module.stem.eval()(torch.cat([batch["image"] for batch in batches])))
    torch.testing.assert_close(est.mean_model.head[0].running_mean, seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert {name for statistics in est._statistics for name in statistics} == {
        "head.0.running_mean",
        "head.0.running_var",
    }
