"""What goes wrong around callbacks in real trainings: diverged batches, callbacks used twice, names that clash."""

import copy
import csv
import math
import os
import pickle
import warnings

import pytest
import pytorch_lightning
import torch
from torch import nn

import seguq
from seguq.calibration import TemperatureScaling
from seguq.callbacks import Calibrate, HeatmapWriter, RegionScorer, UncertaintyMetrics
from seguq.callbacks.observer import is_turned
from seguq.cli import main
from seguq.core.errors import SeguqError, UsageError
from seguq.store.folder import read_run
from seguq.weights import weights_sha256
from tests.callbacks.tiny import (
    Images,
    both_names,
    files,
    loader,
    make_module,
    make_trainer,
    runs_of,
    with_predict_step,
)
from tests.core.test_locks import Holder

MEASURES = ("predictive_entropy",)


class Damaged(Images):
    """Some images hold NaN."""

    bad = (1,)

    def __getitem__(self, index):
        item = super().__getitem__(index)
        return {**item, "image": item["image"] * math.nan} if index in self.bad else item


class AllDamaged(Damaged):
    bad = range(99)


def fit(package, folder, val, *callbacks, module=None, **settings):
    trainer = make_trainer(package, folder, *callbacks, **{"num_sanity_val_steps": 0, **settings})
    trainer.fit(make_module(package) if module is None else module, loader(Images(4, seed=9)), val)
    return trainer


# logits that hold NaN


@both_names
def test_a_diverged_validation_batch_is_left_out_of_a_training_with_a_warning(package, tmp_path):
    """The figures are those of the other batches."""
    callbacks = [
        Calibrate(),
        UncertaintyMetrics(measures=MEASURES),
        HeatmapWriter(tmp_path / "heat", images=9, measures=MEASURES),
    ]
    with pytest.warns(UserWarning) as told:
        trainer = fit(package, tmp_path, loader(Damaged(4), 1), *callbacks)
    for name in ("Calibrate", "UncertaintyMetrics", "HeatmapWriter"):
        assert any(str(one.message).startswith(f"{name} leaves a validation batch out: ") for one in told), name
    module = trainer.lightning_module.eval()
    whole = [item for i, item in enumerate(Images(4)) if i not in Damaged.bad]
    batches = [{"image": item["image"][None], "mask": item["mask"][None]} for item in whole]
    with torch.no_grad():
        expected = TemperatureScaling().fit([(module(batch["image"]), batch["mask"]) for batch in batches])
    assert float(trainer.callback_metrics["val/temperature"]) == pytest.approx(expected.temperature, abs=1e-3)
    assert float(trainer.callback_metrics["val/nll"]) == pytest.approx(expected.nll_before, rel=1e-5)
    maps = [name for name in files(tmp_path / "heat") if "/maps/" in name]
    assert [name.rpartition("/")[2] for name in maps] == ["0.npz", "2.npz", "3.npz"]


@both_names
@pytest.mark.filterwarnings("ignore:.*(leaves a validation batch out|saw no)")
@pytest.mark.parametrize("figure", ["val/ece_after", "val/nll_before", "val/temperature", "val/ece",
                                    "val/aurc/predictive_entropy"])  # fmt: skip
def test_a_file_kept_by_a_figure_survives_a_validation_that_gave_none(package, figure, tmp_path):
    keep = package.callbacks.ModelCheckpoint(tmp_path, monitor=figure)
    callbacks = [Calibrate(), UncertaintyMetrics(measures=MEASURES), keep]
    trainer = fit(package, tmp_path, loader(AllDamaged(3)), *callbacks, max_epochs=2, enable_checkpointing=True)
    assert trainer.current_epoch == 2 and math.isnan(trainer.callback_metrics[figure])


@pytest.mark.filterwarnings("ignore:.*(leaves a validation batch out|saw no)")
def test_with_several_loaders_the_figures_that_are_missing_have_the_names_of_each(tmp_path):
    val = [loader(AllDamaged(2)), loader(AllDamaged(2))]
    trainer = fit(pytorch_lightning, tmp_path, val, UncertaintyMetrics(measures=MEASURES))
    names = ("ece", "brier", "nll", "auroc_error/predictive_entropy", "aurc/predictive_entropy")
    assert set(trainer.callback_metrics) == {f"val/{name}/dataloader_idx_{n}" for name in names for n in (0, 1)}


@pytest.mark.parametrize("callback", [Calibrate, UncertaintyMetrics])
def test_outside_of_a_training_a_diverged_batch_is_an_error(callback, tmp_path):
    with pytest.raises(SeguqError, match="NaN"):
        make_trainer(pytorch_lightning, tmp_path, callback()).validate(
            make_module(pytorch_lightning), loader(Damaged(3)), verbose=False
        )


def test_in_predict_maps_with_nan_are_an_error_that_names_the_image(tmp_path):
    with pytest.raises(SeguqError, match="the maps of image 'b' hold NaN"):
        trainer = make_trainer(pytorch_lightning, tmp_path, HeatmapWriter(tmp_path / "heat"))
        trainer.predict(make_module(pytorch_lightning), loader(Damaged(3, ids=["a", "b", "c"]), 1))


def test_an_error_that_is_none_of_diverged_logits_ends_a_training(tmp_path):
    class WithoutMask(Images):
        def __getitem__(self, index):
            item = super().__getitem__(index)
            return item if index < 3 else (item["image"],)

    class Indifferent(type(make_module(pytorch_lightning))):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            self(batch["image"] if isinstance(batch, dict) else batch[0])

    with pytest.raises(SeguqError, match="Calibrate needs labels"):
        fit(pytorch_lightning, tmp_path, loader(WithoutMask(6), 3), Calibrate(), module=Indifferent())


# figures that are not there every time


@both_names
@pytest.mark.parametrize("settings", [{"max_epochs": 5}, {"max_epochs": 4, "check_val_every_n_epoch": 2}], ids=str)
def test_a_file_can_be_kept_by_a_figure_of_every_third_epoch(package, settings, tmp_path):
    keep = package.callbacks.ModelCheckpoint(tmp_path, monitor="val/ece_after", filename="kept", save_last=True)
    callbacks = [Calibrate(every_n_epochs=3), keep]
    trainer = fit(package, tmp_path, loader(Images(4)), *callbacks, **settings, enable_checkpointing=True)
    assert trainer.current_epoch == settings["max_epochs"] and (tmp_path / "kept.ckpt").is_file()


def test_a_training_that_is_resumed_has_the_figure_at_once(tmp_path):
    def trained(epochs, path=None):
        keep = pytorch_lightning.callbacks.ModelCheckpoint(tmp_path, monitor="val/ece_after", filename="kept")
        trainer = make_trainer(pytorch_lightning, tmp_path, Calibrate(every_n_epochs=9), keep, max_epochs=epochs,
                               enable_checkpointing=True)  # fmt: skip
        trainer.fit(make_module(pytorch_lightning), loader(Images(4, seed=9)), loader(Images(4)), ckpt_path=path)
        return trainer

    trained(2).save_checkpoint(tmp_path / "second.ckpt")
    assert trained(5, tmp_path / "second.ckpt").current_epoch == 5


# one callback, two modules


@both_names
def test_a_file_of_another_module_gets_no_calibrator_of_the_first(package, tmp_path):
    callback = Calibrate()
    fit(package, tmp_path, loader(Images(4)), callback)
    other = with_predict_step(package)
    trainer = make_trainer(package, tmp_path, callback)
    trainer.predict(other, loader(Images(2)))
    trainer.save_checkpoint(tmp_path / "other.ckpt")
    assert "seguq" not in torch.load(tmp_path / "other.ckpt", weights_only=True)


@both_names
@pytest.mark.parametrize("own", [nn.ModuleDict({"a": nn.Linear(2, 2)}), {"depth": 3}, nn.Linear(2, 2), [1]], ids=repr)
def test_a_module_may_have_calibrators_of_its_own(package, own, tmp_path):
    module = make_module(package, calibrators=copy.deepcopy(own))
    before = repr(module.calibrators)
    trainer = fit(package, tmp_path, loader(Images(4)), Calibrate(), module=module)
    trainer.save_checkpoint(tmp_path / "kept.ckpt")
    metrics = UncertaintyMetrics(measures=MEASURES)
    runs = runs_of(metrics)
    again = make_module(package, seed=3, calibrators=copy.deepcopy(own))
    tested = make_trainer(package, tmp_path, metrics, logger=package.loggers.CSVLogger(tmp_path))
    tested.test(again, loader(Images(4)), ckpt_path=tmp_path / "kept.ckpt", verbose=False)
    assert runs[0].calibrator is not None and repr(again.calibrators) == repr(module.calibrators) == before
    loaded = seguq.load(tmp_path / "kept.ckpt", make_module(package, seed=4, calibrators=copy.deepcopy(own)))
    estimator = seguq.Deterministic(loaded)
    (image,) = (batch["image"] for batch in loader(Images(2)))
    raw = seguq.Deterministic(loaded, calibrator=None)
    assert not torch.allclose(estimator(image).probs, raw(image).probs)


# weights that are swapped late


def swapping(package):
    """A callback of the kind that people write: averaged weights for the time of each evaluation."""

    class Swap(package.Callback):
        def start(self, trainer, module):
            self.kept = copy.deepcopy(module.head.state_dict())
            with torch.no_grad():
                module.head.weight.mul_(0.5)

        def end(self, trainer, module):
            module.head.load_state_dict(self.kept)

        on_validation_epoch_start = on_test_epoch_start = on_predict_epoch_start = start
        on_validation_epoch_end = on_test_epoch_end = on_predict_epoch_end = end

    return Swap()


@both_names
@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_predictions_are_said_to_be_of_the_weights_that_gave_them(package, first, tmp_path):
    module = make_module(package)
    writer = HeatmapWriter(tmp_path / "heat", measures=MEASURES)
    callbacks = [swapping(package), writer] if first else [writer, swapping(package)]
    make_trainer(package, tmp_path, *callbacks).predict(module, loader(Images(2)))
    raw = weights_sha256(module)
    with torch.no_grad():
        module.head.weight.mul_(0.5)
    settings = read_run(tmp_path / "heat" / "predict")["settings"]
    assert settings["weights"] == weights_sha256(module) != raw


@both_names
@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_heat_maps_of_swapped_weights_have_the_calibrator_of_these(package, first, tmp_path):
    module = make_module(package)
    calibrate = [swapping(package), Calibrate()] if first else [Calibrate(), swapping(package)]
    make_trainer(package, tmp_path, *calibrate).validate(module, loader(Images(4)), verbose=False)
    assert module.calibrators["deterministic"].weights_sha256 != weights_sha256(module)
    writer = HeatmapWriter(tmp_path / "heat", measures=MEASURES)
    callbacks = [swapping(package), writer] if first else [writer, swapping(package)]
    make_trainer(package, tmp_path, *callbacks).predict(module, loader(Images(2)))
    assert read_run(tmp_path / "heat" / "predict")["settings"]["calibrated"] is True


# two data sets, one folder


def predicted(folder, data, **settings):
    writer = HeatmapWriter(folder / "heat", measures=MEASURES, **settings)
    make_trainer(pytorch_lightning, folder, writer).predict(make_module(pytorch_lightning), loader(data))
    maps = [name for name in files(folder / "heat") if "/maps/" in name]
    return [name.rpartition("/")[2].removesuffix(".npz") for name in maps]


def test_images_without_ids_do_not_join_those_of_other_data(tmp_path):
    predicted(tmp_path, Images(4))
    before = {name: (tmp_path / "heat" / name).read_bytes() for name in files(tmp_path / "heat")}
    with pytest.raises(UsageError, match="no ids by which those of other data could be told apart"):
        predicted(tmp_path, Images(3, seed=1))
    assert {name: (tmp_path / "heat" / name).read_bytes() for name in files(tmp_path / "heat")} == before


def test_images_without_ids_replace_all_others_where_that_was_asked_for(tmp_path):
    predicted(tmp_path, Images(5))
    assert predicted(tmp_path, Images(3, seed=1), overwrite=True) == ["0", "1", "2"]
    left = {name.rpartition("/")[2].partition(".")[0] for name in files(tmp_path / "heat")}
    assert left == {"0", "1", "2", "run", "scale"}
    assert predicted(tmp_path, Images(4, ids=["a", "b", "c", "d"])) == ["0", "1", "2", "a", "b", "c", "d"]


def test_two_region_scorers_in_one_folder_are_an_error(tmp_path):
    with pytest.raises(SeguqError, match="two RegionScorers write into"):
        make_trainer(pytorch_lightning, tmp_path, RegionScorer(tmp_path), RegionScorer(tmp_path)).predict(
            make_module(pytorch_lightning), loader(Images(2))
        )


# copies in the middle of a run


@both_names
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["copy", "pickle"])
def test_a_callback_that_is_copied_in_the_middle_of_a_run_takes_no_part_in_it(package, copied, tmp_path):
    ours = [
        Calibrate(),
        UncertaintyMetrics(measures=MEASURES),
        HeatmapWriter(tmp_path / "heat"),
        RegionScorer(tmp_path / "regions"),
    ]
    copies = {}

    class Copying(package.Callback):
        def look(self, trainer, *_):
            copies.setdefault(str(trainer.state.fn), copied(ours))

        on_validation_batch_end = on_predict_batch_end = look

    trainer = fit(package, tmp_path, loader(Images(4)), *ours, Copying())
    trainer.predict(trainer.lightning_module, loader(Images(4)))
    assert len(copies) == 2  # of the fit and of the prediction
    assert {"regions/regions.parquet", "heat/predict/maps/3.npz"} <= set(files(tmp_path))
    for number, found in enumerate(copies.values()):
        for callback in found[2:]:
            callback.dir = tmp_path / str(number) / type(callback).__name__
        again = fit(package, tmp_path, loader(Images(4)), *found)
        assert {"val/temperature", "val/ece"} <= set(again.callback_metrics)
        again.predict(again.lightning_module, loader(Images(4)))
        assert {"RegionScorer/regions.parquet", "HeatmapWriter/predict/maps/3.npz"} <= set(
            files(tmp_path / str(number))
        )


# steps and masks that mean something else


def views(image):
    return [torch.rot90(side, turns, (2, 3)) for side in (image, image.mT) for turns in range(4)]


def smooth(count, size, seed=0):
    coarse = torch.rand(count, 3, 4, 6, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size, mode="bilinear")


@pytest.mark.parametrize("size", [(40, 64), (48, 48), (17, 9)], ids=str)
def test_images_that_were_flipped_or_turned_are_told_from_those_that_were_changed_in_place(size):
    image = smooth(3, size)
    noise = 0.05 * torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
    for same in (image, (image - 0.5) / 0.2, 1 - image, image**2, image + noise, nn.functional.avg_pool2d(image, 2)):
        assert not is_turned(same, image)
    for view in views(image)[1:]:
        assert is_turned(view, image) and is_turned((view - 0.5) / 0.2, image)
    assert is_turned(torch.cat([image[:2], image[2:].flip(3)]), image)


def test_what_looks_the_same_in_every_way_or_like_nothing_is_not_called_turned():
    image = smooth(2, (32, 32))
    assert not is_turned(image.mean((2, 3), keepdim=True).expand_as(image), image)
    assert not is_turned(smooth(2, (32, 32), seed=5), image) and not is_turned(image[:1], image)
    symmetric = image + image.flip(3)
    assert not is_turned(symmetric.flip(3), symmetric)
    assert not is_turned(image[..., None], image[..., None])


class Shapes(Images):
    """Smooth images, whose masks follow them."""

    def __getitem__(self, index):
        image = smooth(1, (16, 24), seed=1000 * self.seed + index)[0]
        return {"image": image, "mask": (image.mean(0) * 3).long().clamp(0, 2)}


@both_names
def test_a_step_that_flips_its_images_is_not_taken_at_its_output(package, tmp_path):
    class Flipping(type(make_module(package))):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            self(batch["image"].flip(3)).flip(3)

    found = []
    for module in (Flipping(), make_module(package)):
        callbacks = [Calibrate(), UncertaintyMetrics(measures=MEASURES)]
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            trainer = make_trainer(package, tmp_path, *callbacks)
            trainer.validate(module, loader(Shapes(4)), verbose=False)
        found.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        ours = [str(one.message) for one in told if "flips or turns the images before its forward" in str(one.message)]
        assert len(ours) == (1 if isinstance(module, Flipping) else 0)
    assert found[0] == found[1]


@pytest.mark.parametrize(("value", "expected"), [(255.0, True), (1.0, False)])
def test_masks_that_seem_to_mean_foreground_by_255_are_said(value, expected, tmp_path):
    class Foreground(Images):
        def __getitem__(self, index):
            item = super().__getitem__(index)
            return item["image"], item["mask"] * value

    class Lenient(type(make_module(pytorch_lightning, classes=1))):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            self(batch[0])

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        make_trainer(pytorch_lightning, tmp_path, Calibrate()).validate(
            Lenient(), loader(Foreground(4, classes=1)), verbose=False
        )
    assert any("If they are the foreground, divide the masks by 255" in str(one.message) for one in told) is expected


def test_the_csv_of_a_training_with_a_diverged_validation_can_be_read(tmp_path):
    logger = pytorch_lightning.loggers.CSVLogger(tmp_path)
    with pytest.warns(UserWarning, match="saw no labeled pixel"):
        fit(pytorch_lightning, tmp_path, loader(AllDamaged(3)), Calibrate(), logger=logger)
    logger.save()
    with open(logger.experiment.metrics_file_path) as content:
        rows = list(csv.DictReader(content))
    assert [row["val/ece_after"] for row in rows if "val/ece_after" in row] == ["nan"]


def test_a_predict_step_of_ones_own_is_judged_by_the_swapped_weights_too(tmp_path):
    module = with_predict_step(pytorch_lightning)
    writer = HeatmapWriter(tmp_path / "heat", measures=MEASURES)
    make_trainer(pytorch_lightning, tmp_path, writer, swapping(pytorch_lightning)).predict(module, loader(Images(2)))
    assert read_run(tmp_path / "heat" / "predict")["settings"]["weights"] != weights_sha256(module)


# other runs in the same folders

HOLD_SHARD = """
import sys, time
import torch
from seguq import UncertaintyMaps, regions
from seguq.store.shards import ShardWriter
maps = UncertaintyMaps(torch.full((1, 2, 4, 4), 0.5), {"variance": torch.ones(1, 4, 4)}, ["a"])
writer = ShardWriter(sys.argv[1], 0)
writer.add(regions.score(maps, regions.Grid(2), by="variance"))
print("held", flush=True)
time.sleep(600)
"""


def other_run(kind, folder):
    """A callback, and the folder that it writes into in a prediction."""
    return (HeatmapWriter(folder), folder / "predict") if kind == "maps" else (RegionScorer(folder), folder)


@pytest.mark.skipif(os.name != "posix", reason="there are no such locks")
@pytest.mark.parametrize("kind", ["maps", "regions"])
def test_another_run_in_the_same_folder_is_refused_and_finds_it_free_when_the_first_is_gone(tmp_path, kind):
    callback, folder = other_run(kind, tmp_path / "out")
    folder.mkdir(parents=True)
    module = make_module(pytorch_lightning)
    with Holder(folder), pytest.raises(UsageError, match="another run writes into"):
        make_trainer(pytorch_lightning, tmp_path, callback).predict(module, loader(Images(2)))
    assert files(tmp_path / "out") == []
    make_trainer(pytorch_lightning, tmp_path, callback).predict(module, loader(Images(2)))
    with Holder(folder):  # nothing is held any more
        pass


@pytest.mark.skipif(os.name != "posix", reason="there are no such locks")
def test_a_run_in_a_folder_above_leaves_the_shard_of_one_below(tmp_path):
    (tmp_path / "runs" / "mc").mkdir(parents=True)
    with Holder(tmp_path / "runs" / "mc", code=HOLD_SHARD):
        before = files(tmp_path / "runs" / "mc")
        scorer = RegionScorer(tmp_path / "runs")
        make_trainer(pytorch_lightning, tmp_path, scorer).predict(make_module(pytorch_lightning), loader(Images(2)))
        assert len(before) == 1 and files(tmp_path / "runs" / "mc") == before


@pytest.mark.skipif(os.name != "posix", reason="there are no such locks")
def test_a_training_beside_another_takes_no_scale_away(tmp_path):
    fit(pytorch_lightning, tmp_path, loader(Images(2)), HeatmapWriter(tmp_path / "heat"))
    scale = tmp_path / "heat" / "val" / "scale.json"
    before = scale.read_text()
    with Holder(scale.parent), pytest.raises(UsageError, match="another run writes into"):
        fit(pytorch_lightning, tmp_path, loader(Images(2)), HeatmapWriter(tmp_path / "heat"))
    assert scale.read_text() == before


def test_a_scale_json_of_somebody_else_is_not_replaced(tmp_path):
    (tmp_path / "data" / "val").mkdir(parents=True)
    (tmp_path / "data" / "val" / "scale.json").write_text('{"pixels": 3}')
    with pytest.raises(UsageError, match=r"scale\.json was not written by HeatmapWriter"):
        fit(pytorch_lightning, tmp_path, loader(Images(2)), HeatmapWriter(tmp_path / "data"))
    assert (tmp_path / "data" / "val" / "scale.json").read_text() == '{"pixels": 3}'


def test_heat_maps_of_a_prediction_that_failed_are_not_scored(tmp_path, capsys):
    class Fails(Images):
        def __getitem__(self, index):
            if index == 3:
                raise ZeroDivisionError
            return super().__getitem__(index)

    trainer = make_trainer(pytorch_lightning, tmp_path, HeatmapWriter(tmp_path / "heat"))
    with pytest.raises(ZeroDivisionError):
        trainer.predict(make_module(pytorch_lightning), loader(Fails(5), 1))
    assert main(["score", "--predictions", str(tmp_path / "heat" / "predict")]) == 2
    assert "is not finished" in capsys.readouterr().err
