"""Snapshot ensembles: the schedule against the paper's formula, and which files stay."""

import math
import os

import pytest
import torch

import seguq
from seguq import callbacks
from seguq.core.errors import UsageError
from tests.callbacks.tiny import Images, both_names, files, loader, make_module, make_trainer
from tests.core.test_locks import Holder

PACKAGE = seguq.core.lightning.pytorch_lightning


def with_figures(package, figures):
    """A module that logs ``val/figure``, one a validation, and notes the rate of each step."""

    class Told(type(make_module(package))):
        def on_validation_epoch_end(self):
            if not self.trainer.sanity_checking:
                self.log("val/figure", float(figures[self.current_epoch]))

        def on_train_batch_end(self, outputs, batch, batch_idx):
            vars(self).setdefault("rates", []).append(float(self.trainer.optimizers[0].param_groups[0]["lr"]))

    return Told()


def fitted(folder, snapshots, *others, package=PACKAGE, figures=range(100), module=None, **settings):
    module = module or with_figures(package, figures)
    trainer = make_trainer(package, folder, *others, snapshots, **{"max_epochs": 6, **settings})
    trainer.fit(module, loader(Images(9)), loader(Images(3, seed=1)))
    return trainer, module


def of_the_paper(t, iterations, cycles, initial):
    """Equation 2, with iterations t counted from 1."""
    length = math.ceil(iterations / cycles)
    return initial / 2 * (math.cos(math.pi * ((t - 1) % length) / length) + 1)


@both_names
def test_the_rate_follows_the_formula_of_the_paper(package, tmp_path):
    _, module = fitted(tmp_path, callbacks.Snapshots(tmp_path / "s", cycles=3, lr=0.2), package=package)
    expected = [of_the_paper(t, 18, 3, 0.2) for t in range(1, 19)]
    assert module.rates == pytest.approx(expected)


def test_without_lr_it_is_that_of_the_optimizer(tmp_path):
    _, module = fitted(tmp_path, callbacks.Snapshots(tmp_path / "s", cycles=2))
    assert module.rates == pytest.approx([of_the_paper(t, 18, 2, 0.1) for t in range(1, 19)])


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (lambda it: torch.optim.lr_scheduler.OneCycleLR(it, max_lr=0.3, total_steps=18), 0.3),
        (lambda it: torch.optim.lr_scheduler.LinearLR(it, start_factor=0.01), 0.1),
    ],
    ids=["one cycle", "warm-up"],
)
def test_without_lr_a_scheduler_that_warms_up_does_not_make_the_rate_small(scheduler, expected, tmp_path):
    class Scheduled(type(with_figures(PACKAGE, range(100)))):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            self.steps = []
            return [optimizer], [{"scheduler": scheduler(optimizer), "interval": "step"}]

        def on_before_optimizer_step(self, optimizer):
            self.steps.append(optimizer.param_groups[0]["lr"])

    with pytest.warns(UserWarning, match="the module's own schedulers"):
        _, module = fitted(tmp_path, callbacks.Snapshots(tmp_path / "s", cycles=2), module=Scheduled())
    assert module.steps == pytest.approx([of_the_paper(t, 18, 2, expected) for t in range(1, 19)])


def test_cycles_that_do_not_divide_the_epochs_each_begin_at_the_top(tmp_path):
    _, module = fitted(tmp_path, callbacks.Snapshots(tmp_path / "s", cycles=4, lr=0.2), max_epochs=6)
    tops = [step // 3 for step, rate in enumerate(module.rates) if rate == 0.2]
    assert tops == [0, 2, 3, 4]  # round half to even: cycles of 2, 1, 1 and 2 epochs


@both_names
def test_every_cycle_is_kept_as_it_ended_and_makes_a_member(package, tmp_path):
    class Ends(package.Callback):
        def __init__(self):
            self.weights = []

        def on_validation_epoch_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                self.weights.append(pl_module.head.weight.detach().clone())

    ends, snapshots = Ends(), callbacks.Snapshots(tmp_path / "s", cycles=3)
    _, module = fitted(tmp_path, snapshots, ends, package=package)
    assert files(tmp_path / "s") == ["snapshot-1.ckpt", "snapshot-2.ckpt", "snapshot-3.ckpt"]
    assert [path.name for path in snapshots.paths] == ["snapshot-3.ckpt", "snapshot-2.ckpt", "snapshot-1.ckpt"]
    ensemble = seguq.DeepEnsemble(snapshots.paths, model=module, calibrator=None)
    for member, epoch in zip(ensemble.members, (5, 3, 1), strict=True):
        assert torch.equal(member.head.weight, ends.weights[epoch])
    assert ensemble(Images(1)[0]["image"][None])["mutual_information"].max() > 0


@pytest.mark.parametrize(("mode", "expected"), [("min", [2, 4]), ("max", [1, 3])])
def test_the_best_of_distinct_cycles_are_kept_best_first(tmp_path, mode, expected):
    figures = [0.0, 9.0, 0.1, 1.0, 0.2, 5.0, 0.3, 2.0]  # those of epochs within a cycle do not count
    snapshots = callbacks.Snapshots(tmp_path / "s", cycles=4, keep=2, monitor="val/figure", mode=mode)
    fitted(tmp_path, snapshots, figures=figures, max_epochs=8)
    assert [path.name for path in snapshots.paths] == [f"snapshot-{cycle}.ckpt" for cycle in expected]
    assert files(tmp_path / "s") == sorted(path.name for path in snapshots.paths)


def test_a_figure_that_is_nan_is_the_worst(tmp_path):
    snapshots = callbacks.Snapshots(tmp_path / "s", cycles=3, keep=2, monitor="val/figure", mode="max")
    fitted(tmp_path, snapshots, figures=[math.nan, 1.0, 2.0], max_epochs=3)
    assert [path.name for path in snapshots.paths] == ["snapshot-3.ckpt", "snapshot-2.ckpt"]


def test_without_a_figure_the_last_ones_are_kept(tmp_path):
    snapshots = callbacks.Snapshots(tmp_path / "s", cycles=3, keep=1)
    fitted(tmp_path, snapshots)
    assert files(tmp_path / "s") == ["snapshot-3.ckpt"]


def test_files_of_an_earlier_training_stay(tmp_path):
    folder = tmp_path / "s"
    fitted(tmp_path, callbacks.Snapshots(folder, cycles=2))
    before = {name: (folder / name).read_bytes() for name in files(folder)}
    again = callbacks.Snapshots(folder, cycles=2, keep=1)
    fitted(tmp_path, again)
    assert files(folder) == ["snapshot-1.ckpt", "snapshot-2-v1.ckpt", "snapshot-2.ckpt"]
    assert [path.name for path in again.paths] == ["snapshot-2-v1.ckpt"]
    assert all((folder / name).read_bytes() == content for name, content in before.items())


@both_names
def test_a_training_that_was_cut_off_goes_on(package, tmp_path):
    figures = [0.0, 3.0, 0.0, 1.0, 0.0, 2.0]
    folder = tmp_path / "s"

    def ordered():
        return callbacks.Snapshots(folder, cycles=3, keep=2, monitor="val/figure")

    class Cut(package.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 3:
                raise KeyboardInterrupt

    keep = package.callbacks.ModelCheckpoint(tmp_path, filename="half", save_top_k=1, monitor=None)
    with pytest.raises(SystemExit):
        fitted(tmp_path, ordered(), keep, Cut(), package=package, figures=figures, enable_checkpointing=True)
    torch.load(tmp_path / "half.ckpt", weights_only=True)
    snapshots, module = ordered(), with_figures(package, figures)
    trainer = make_trainer(package, tmp_path, snapshots, max_epochs=6)
    trainer.fit(module, loader(Images(9)), loader(Images(3)), ckpt_path=tmp_path / "half.ckpt")
    assert module.rates == pytest.approx([of_the_paper(t, 18, 3, 0.1) for t in range(10, 19)])
    assert [path.name for path in snapshots.paths] == ["snapshot-2.ckpt", "snapshot-3.ckpt"]
    assert files(folder) == ["snapshot-2.ckpt", "snapshot-3.ckpt"]


def test_a_snapshot_that_is_gone_at_a_resume_is_said(tmp_path):
    snapshots = callbacks.Snapshots(tmp_path / "s", cycles=2)
    fitted(tmp_path, snapshots)
    (tmp_path / "s" / "snapshot-1.ckpt").unlink()
    with pytest.warns(UserWarning, match=r"snapshot-1\.ckpt is gone: it will not be in the ensemble"):
        snapshots.load_state_dict(snapshots.state_dict())
    assert [path.name for path in snapshots.paths] == ["snapshot-2.ckpt"]


def test_names_in_a_checkpoint_do_not_lead_out_of_the_folder(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "s").mkdir()
    snapshots = callbacks.Snapshots(tmp_path / "s", cycles=2, keep=1)
    with pytest.warns(UserWarning, match="is gone"):
        snapshots.load_state_dict({**snapshots.state_dict(), "kept": [["../precious", 1, 9.0]]})
    assert snapshots.paths == []


def test_a_file_of_another_training_under_the_name_of_a_snapshot_is_not_removed(tmp_path):
    first = callbacks.Snapshots(tmp_path / "s", cycles=2, keep=2)
    fitted(tmp_path, first)
    (tmp_path / "s" / "snapshot-1.ckpt").write_text("of another training")
    again = callbacks.Snapshots(tmp_path / "s", cycles=2, keep=1)
    with pytest.warns(UserWarning, match=r"snapshot-1\.ckpt is not the file that this training wrote"):
        again.load_state_dict(first.state_dict())
    assert [path.name for path in again.paths] == ["snapshot-2.ckpt"]
    assert files(tmp_path / "s") == ["snapshot-1.ckpt", "snapshot-2.ckpt"]


@pytest.mark.skipif(os.name != "posix", reason="there are no such locks")
def test_two_trainings_at_once_do_not_take_the_same_names(tmp_path):
    (tmp_path / "s").mkdir()
    with Holder(tmp_path / "s"), pytest.raises(UsageError, match="another run writes into"):
        fitted(tmp_path, callbacks.Snapshots(tmp_path / "s", cycles=2))
    fitted(tmp_path, callbacks.Snapshots(tmp_path / "s", cycles=2))


def test_a_snapshot_has_the_calibrator_of_its_weights(tmp_path):
    snapshots = callbacks.Snapshots(tmp_path / "s", cycles=2)
    fitted(tmp_path, snapshots, callbacks.Calibrate())
    for path in snapshots.paths:
        assert "deterministic" in seguq.load(path, make_module(PACKAGE)).calibrators


def test_schedulers_that_have_no_effect_are_said(tmp_path):
    class Scheduled(type(make_module(PACKAGE))):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]

    with pytest.warns(UserWarning, match="Snapshots sets the learning rate: the module's own schedulers"):
        fitted(tmp_path, callbacks.Snapshots(tmp_path / "s", cycles=2), module=Scheduled())


def test_a_figure_that_nobody_logs_is_told_after_the_first_epoch(tmp_path):
    module = with_figures(PACKAGE, range(10))
    with pytest.raises(UsageError, match=r"monitor='val/miou'\) is not among the logged values: val/figure"):
        fitted(tmp_path, callbacks.Snapshots(tmp_path / "s", cycles=2, monitor="val/miou"), module=module)
    assert module.current_epoch == 0


def test_a_cycle_that_ends_without_a_validation_is_said(tmp_path):
    snapshots = callbacks.Snapshots(tmp_path / "s", cycles=2, monitor="val/figure")
    with pytest.warns(UserWarning, match="as after 3 epochs: make the epochs of a cycle a multiple of .*=2"):
        fitted(tmp_path, snapshots, check_val_every_n_epoch=2)


@pytest.mark.parametrize(("settings", "found"), [({"max_epochs": 3}, "has 3"), ({"max_epochs": -1}, "has no end")])
def test_a_training_that_cannot_be_cut_into_cycles(tmp_path, settings, found):
    with pytest.raises(UsageError, match=f"but the training {found}: give the Trainer max_epochs=40"):
        fitted(tmp_path, callbacks.Snapshots(tmp_path / "s", cycles=4), **settings)


@both_names
def test_a_fast_dev_run_goes_through_and_leaves_nothing(package, tmp_path):
    snapshots = callbacks.Snapshots(tmp_path / "s", monitor="val/none")
    fitted(tmp_path, snapshots, package=package, fast_dev_run=2)
    assert snapshots.paths == [] and not (tmp_path / "s").exists()


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "s").write_text("mine")
    with pytest.raises(UsageError, match="s is a file: give Snapshots a folder"):
        fitted(tmp_path, callbacks.Snapshots(tmp_path / "s", cycles=2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cycles": 0}, "cycles must be a whole number"),
        ({"keep": 0}, "keep must be a whole number"),
        ({"mode": "best"}, "mode must be one of min, max"),
        ({"lr": -0.1}, "lr must be a number above 0"),
    ],
)
def test_wrong_arguments(settings, message):
    with pytest.raises(ValueError, match=message):
        callbacks.Snapshots("s", **settings)


# resumed, and ended early


def resumed(folder, snapshots, checkpoint, figures=range(100), package=PACKAGE, **settings):
    settings = {"max_epochs": 6, **settings}
    module = with_figures(package, figures)
    trainer = make_trainer(package, folder, snapshots, **settings)
    trainer.fit(module, loader(Images(9)), loader(Images(3)), ckpt_path=checkpoint)
    return module


def stopped(folder, snapshots, *others, at, figures=range(100), **settings):
    """A training that is cut off where an epoch begins."""

    class Cut(PACKAGE.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == at:
                raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        fitted(folder, snapshots, *others, Cut(), figures=figures, enable_checkpointing=True, **settings)


@pytest.mark.parametrize("at", [2, 3, 4, 5])
@pytest.mark.parametrize("on_train_epoch_end", [True, False])
def test_a_figure_of_a_validation_before_the_resume_is_enough(tmp_path, at, on_train_epoch_end):
    def ordered():
        return callbacks.Snapshots(tmp_path / "s", cycles=3, keep=2, monitor="val/figure")

    keep = PACKAGE.callbacks.ModelCheckpoint(
        tmp_path, filename="half", monitor=None, save_on_train_epoch_end=on_train_epoch_end
    )
    figures = [9, 3.0, 9, 1.0, 9, 2.0]
    stopped(tmp_path, ordered(), keep, at=at, figures=figures, check_val_every_n_epoch=2)
    again = ordered()
    resumed(tmp_path, again, tmp_path / "half.ckpt", figures, check_val_every_n_epoch=2)
    assert [path.name.partition("-v")[0].removesuffix(".ckpt") for path in again.paths] == ["snapshot-2", "snapshot-3"]
    assert sorted(figure for _, _, figure in again._kept) == [1.0, 2.0]


def test_a_cycle_that_ends_before_any_validation_counts_as_the_worst(tmp_path):
    snapshots = callbacks.Snapshots(tmp_path / "s", cycles=3, keep=2, monitor="val/figure", mode="max")
    with pytest.warns(UserWarning, match="was not logged before cycle 1 ended, as there was no validation yet"):
        fitted(tmp_path, snapshots, check_val_every_n_epoch=4)
    assert [path.name for path in snapshots.paths] == ["snapshot-3.ckpt", "snapshot-2.ckpt"]


def test_more_epochs_at_a_resume_would_move_the_cycles_and_are_refused(tmp_path):
    first = callbacks.Snapshots(tmp_path / "s", cycles=3)
    trainer, _ = fitted(tmp_path, first)
    trainer.save_checkpoint(tmp_path / "all.ckpt")
    with pytest.raises(UsageError, match="cut into 3 cycles of 6 epochs: resume with max_epochs=6"):
        resumed(tmp_path, callbacks.Snapshots(tmp_path / "s", cycles=3), tmp_path / "all.ckpt", max_epochs=12)
    assert files(tmp_path / "s") == ["snapshot-1.ckpt", "snapshot-2.ckpt", "snapshot-3.ckpt"]


def test_a_cycle_whose_end_the_checkpoint_does_not_know_is_said(tmp_path):
    keep = PACKAGE.callbacks.ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=6, save_top_k=-1)
    fitted(tmp_path, callbacks.Snapshots(tmp_path / "s", cycles=3), keep, enable_checkpointing=True)
    again = callbacks.Snapshots(tmp_path / "s", cycles=3)
    with pytest.warns(UserWarning, match="the snapshot of cycle 1 is not in the ensemble"):
        resumed(tmp_path, again, tmp_path / "step=6.ckpt")
    assert len(again.paths) == 2 and (tmp_path / "s" / "snapshot-1.ckpt").is_file()


def test_a_training_that_stops_early_says_how_many_models_there_are(tmp_path):
    class Stop(PACKAGE.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = trainer.current_epoch == 2

    snapshots = callbacks.Snapshots(tmp_path / "s", cycles=3)
    with pytest.warns(UserWarning, match="ended in cycle 2 of 3, whose model is not kept: the ensemble has 1 models"):
        fitted(tmp_path, snapshots, Stop())


def test_batches_without_number_are_refused_before_the_first(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return (Images(9)[i] for i in range(9))

    module = make_module(PACKAGE)
    trainer = make_trainer(PACKAGE, tmp_path, callbacks.Snapshots(tmp_path / "s", cycles=2), max_epochs=4)
    with pytest.raises(UsageError, match="the training loader has no length: give the Trainer limit_train_batches"):
        trainer.fit(module, loader(Stream()))
    assert module.forwards == 0


def test_groups_of_parameters_that_are_added_later_have_cycles_too(tmp_path):
    class Unfreezing(PACKAGE.callbacks.BaseFinetuning):
        def freeze_before_training(self, pl_module):
            self.freeze(pl_module.stem)

        def finetune_function(self, pl_module, epoch, optimizer):
            if epoch == 2:
                self.unfreeze_and_add_param_group(pl_module.stem, optimizer, lr=0.02)

    class Head(type(with_figures(PACKAGE, range(9)))):
        def configure_optimizers(self):
            return torch.optim.SGD(self.head.parameters(), lr=0.1)

    trainer, _ = fitted(tmp_path, callbacks.Snapshots(tmp_path / "s", cycles=3), Unfreezing(), module=Head())
    last = of_the_paper(18, 18, 3, 1.0)
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == pytest.approx([0.1 * last, 0.02 * last])


def test_fitting_again_with_nothing_left_to_train_keeps_the_paths(tmp_path):
    snapshots = callbacks.Snapshots(tmp_path / "s", cycles=2)
    trainer, module = fitted(tmp_path, snapshots)
    before = snapshots.paths
    trainer.fit(module, loader(Images(9)))
    assert snapshots.paths == before != []


def test_another_training_begins_anew(tmp_path):
    snapshots = callbacks.Snapshots(tmp_path / "s", cycles=2)
    fitted(tmp_path, snapshots)
    fitted(tmp_path, snapshots)
    assert [path.name for path in snapshots.paths] == ["snapshot-2-v1.ckpt", "snapshot-1-v1.ckpt"]
