"""HeatmapWriter through real Trainers of both names."""

import errno
import functools
import itertools
import json
import os
import shutil
import time

import numpy as np
import pytest
import pytorch_lightning
import torch

import seguq
from seguq.acquisition import Selection
from seguq.callbacks import Calibrate, HeatmapWriter, RegionScorer
from seguq.cli import main
from seguq.core.errors import SeguqError, UsageError
from seguq.data.reading import read_image
from seguq.export import Scale, colorize
from seguq.export.images import to_rgb
from seguq.inference import UncertaintyMaps
from seguq.regions import RegionTable
from seguq.store import PredictionFolder
from seguq.store.writer import BackgroundWriter
from tests.callbacks.tiny import (
    Images,
    both_names,
    files,
    loader,
    make_module,
    make_trainer,
    traces,
    with_predict_step,
)

IDS = ["a", "street/0001", "street/0002", "b", "street/north/1"]
KINDS = ("heatmaps/predictive_entropy", "images", "maps", "overlays/predictive_entropy", "predictions")


def predict(folder, data=None, module=None, package=pytorch_lightning, batch_size=2, **settings):
    """Predict five images (or the data set given) with a HeatmapWriter into ``folder/heat``."""
    module = make_module(package) if module is None else module
    data = Images(5, ids=IDS) if data is None else data
    writer = HeatmapWriter(folder / "heat", **settings)
    batches = data if isinstance(data, list) else loader(data, batch_size)
    return make_trainer(package, folder, writer).predict(module, batches)


def images_of(data):
    return torch.stack([data[i]["image"] for i in range(len(data))])


def written(folder):
    """The ids of the images that have all their files, and no other file, sorted."""
    found = set(files(folder)) - {"run.json", "scale.json"}
    maps = sorted(name[len("maps/") : -len(".npz")] for name in found if name.startswith("maps/"))
    expected = {f"{kind}/{one}.{'npz' if kind == 'maps' else 'png'}" for kind in KINDS for one in maps}
    assert found == expected
    return maps


def content(folder):
    return {name: (folder / name).read_bytes() for name in files(folder)}


# predict


@pytest.fixture(scope="module", params=["pytorch_lightning", "lightning"])
def predicted(request, tmp_path_factory):
    """The folder of a prediction, the module, and what trainer.predict gave."""
    package = {"pytorch_lightning": pytorch_lightning}.get(request.param) or pytest.importorskip("lightning.pytorch")
    folder, module = tmp_path_factory.mktemp("predicted"), make_module(package)
    returned = predict(folder, module=module, package=package)
    return folder / "heat" / "predict", module, returned


def test_every_image_is_written_once_with_all_its_files(predicted):
    assert written(predicted[0]) == sorted(IDS)


def test_predict_gives_the_ids_where_the_module_has_no_predict_step(predicted):
    assert predicted[2] == [IDS[:2], IDS[2:4], IDS[4:]]


def test_the_maps_are_those_of_the_estimator_in_float32(predicted):
    folder, module, _ = predicted
    expected = seguq.Deterministic(module, calibrator=None)(images_of(Images(5)))
    for i, image_id in enumerate(IDS):
        found = UncertaintyMaps.load(folder / "maps" / f"{image_id}.npz")
        assert found.names == ("predictive_entropy",) and found.image_ids == (image_id,)
        torch.testing.assert_close(found["predictive_entropy"][0], expected["predictive_entropy"][i])


def test_the_prediction_is_the_argmax_as_class_indices(predicted):
    folder, module, _ = predicted
    expected = seguq.Deterministic(module, calibrator=None)(images_of(Images(5))).probs.argmax(1)
    found = [read_image(folder / "predictions" / f"{image_id}.png")[..., 0] for image_id in IDS]
    assert np.array_equal(np.stack(found), expected.numpy())
    assert len(np.unique(found)) > 1


def test_the_image_is_kept_as_it_is_seen(predicted):
    for i, image_id in enumerate(IDS):
        found = read_image(predicted[0] / "images" / f"{image_id}.png")
        assert np.array_equal(found, to_rgb(Images(5)[i]["image"].movedim(0, -1).numpy()))


def test_the_heat_map_shows_the_map_on_the_scale_of_the_run(predicted):
    folder = predicted[0]
    scale = Scale(**json.loads((folder / "scale.json").read_text())["predictive_entropy"])
    for image_id in IDS:
        values = UncertaintyMaps.load(folder / "maps" / f"{image_id}.npz")["predictive_entropy"][0].numpy()
        picture = read_image(folder / "heatmaps" / "predictive_entropy" / f"{image_id}.png")
        times = picture.shape[0] // values.shape[0]
        colors = picture[times // 2 :: times, times // 2 : times * values.shape[1] : times]
        assert np.array_equal(colors, colorize(values, scale))


def test_the_overlay_shows_image_and_map_together(predicted):
    folder = predicted[0]
    one = read_image(folder / "overlays" / "predictive_entropy" / "a.png")
    other = read_image(folder / "heatmaps" / "predictive_entropy" / "a.png")
    assert one.shape == other.shape
    assert not np.array_equal(one, other)


def test_the_module_is_left_as_it_was_found(tmp_path):
    module = make_module(pytorch_lightning)
    before = traces(module)
    predict(tmp_path, module=module, estimator=seguq.MCDropout(samples=2))
    assert traces(module) == before


def test_nothing_is_run_beyond_the_one_pass_of_a_batch(predicted, tmp_path):
    module = make_module(pytorch_lightning)
    predict(tmp_path, module=module)
    assert module.forwards == 3


@both_names
def test_without_ids_the_index_in_the_data_set_is_the_id(tmp_path, package):
    returned = predict(tmp_path, Images(5, form="tuple"), package=package)
    assert returned == [["0", "1"], ["2", "3"], ["4"]]
    assert written(tmp_path / "heat" / "predict") == ["0", "1", "2", "3", "4"]


def test_without_ids_several_loaders_are_told_apart(tmp_path):
    predict(tmp_path, [loader(Images(2, form="tuple")), loader(Images(1, form="tuple"))])
    assert written(tmp_path / "heat" / "predict") == ["0-0", "0-1", "1-0"]


def test_images_of_unequal_size_are_written(tmp_path):
    sizes = [(8, 12), (16, 8), (9, 9)]
    predict(tmp_path, Images(3, sizes), batch_size=1)
    found = [read_image(tmp_path / "heat" / "predict" / "predictions" / f"{i}.png").shape[:2] for i in range(3)]
    assert found == sizes


def test_the_measures_that_were_asked_for_are_written_and_no_others(tmp_path):
    predict(tmp_path, measures=["energy", "smallest_margin"], estimator="deterministic")
    folder = tmp_path / "heat" / "predict"
    assert UncertaintyMaps.load(folder / "maps" / "a.npz").names == ("smallest_margin", "energy")
    assert sorted(path.name for path in (folder / "heatmaps").iterdir()) == ["energy", "smallest_margin"]
    assert set(json.loads((folder / "scale.json").read_text())) == {"energy", "smallest_margin"}


def test_with_samples_mutual_information_is_written_as_well(tmp_path):
    predict(tmp_path, estimator="mc_dropout")
    maps = UncertaintyMaps.load(tmp_path / "heat" / "predict" / "maps" / "a.npz")
    assert maps.names == ("predictive_entropy", "mutual_information")
    assert maps["mutual_information"].max() > 0


def test_seeded_mc_dropout_writes_what_a_direct_call_gives(tmp_path):
    module = make_module(pytorch_lightning)
    predict(tmp_path, module=module, estimator=seguq.MCDropout(samples=3, seed=7), batch_size=3)
    expected = seguq.MCDropout(module, samples=3, seed=7, calibrator=None)(images_of(Images(5)), IDS)
    for i, image_id in enumerate(IDS):
        found = UncertaintyMaps.load(tmp_path / "heat" / "predict" / "maps" / f"{image_id}.npz")
        torch.testing.assert_close(found["mutual_information"][0], expected["mutual_information"][i])


def test_a_deep_ensemble_writes_what_a_direct_call_gives(tmp_path):
    members = [make_module(pytorch_lightning, seed=i) for i in range(2)]
    predict(tmp_path, module=members[0], estimator=seguq.DeepEnsemble(members))
    expected = seguq.DeepEnsemble([m.eval() for m in members], calibrator=None)(images_of(Images(5)))
    for i, image_id in enumerate(IDS):
        found = UncertaintyMaps.load(tmp_path / "heat" / "predict" / "maps" / f"{image_id}.npz")
        torch.testing.assert_close(found["mutual_information"][0], expected["mutual_information"][i])


def test_one_logit_is_the_sigmoid_of_two_classes(tmp_path):
    module = make_module(pytorch_lightning, classes=1)
    predict(tmp_path, Images(2, classes=1), module)
    with torch.no_grad():
        expected = module.eval()(Images(2)[0]["image"][None])[0, 0] > 0
    found = read_image(tmp_path / "heat" / "predict" / "predictions" / "0.png")[..., 0]
    assert np.array_equal(found, expected.numpy()) and len(np.unique(found)) == 2


def test_multilabel_maps_have_no_mask_of_class_indices(tmp_path):
    module = make_module(pytorch_lightning, classes=2)
    predict(tmp_path, Images(1, labels=2), module, task="multilabel")
    found = files(tmp_path / "heat" / "predict")
    assert "maps/0.npz" in found and not [name for name in found if name.startswith("predictions")]


def test_an_image_of_bytes_is_kept_byte_for_byte(tmp_path):
    image = torch.randint(50, 180, (1, 3, 8, 8), dtype=torch.uint8)

    def forward(module, batch):
        return module(batch.float() / 255)

    predict(tmp_path, [loader([image], None)], batch_forward=forward)
    found = read_image(tmp_path / "heat" / "predict" / "images" / "0.png")
    assert np.array_equal(found, image[0].movedim(0, -1).numpy())


@both_names
def test_after_a_training_the_maps_are_calibrated_as_calibrate_fitted(tmp_path, package):
    module = make_module(package)
    trainer = make_trainer(package, tmp_path, Calibrate(), HeatmapWriter(tmp_path / "heat"), max_epochs=1)
    trainer.fit(module, loader(Images(4, seed=9)), loader(Images(6)))
    trainer.predict(module, loader(Images(5, ids=IDS)))
    calibrator = module.calibrators["deterministic"]
    assert calibrator.temperature != pytest.approx(1, abs=1e-2)
    expected = seguq.Deterministic(module, calibrator=calibrator)(images_of(Images(5)))["predictive_entropy"]
    for i, image_id in enumerate(IDS):
        found = UncertaintyMaps.load(tmp_path / "heat" / "predict" / "maps" / f"{image_id}.npz")
        torch.testing.assert_close(found["predictive_entropy"][0], expected[i])
    with pytest.raises(UsageError, match="calibrated was True, now False"):
        predict(tmp_path, module=module, package=package, calibrator=None)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_other_precisions_are_written_as_float32(tmp_path, precision):
    writer = HeatmapWriter(tmp_path / "heat")
    trainer = make_trainer(pytorch_lightning, tmp_path, writer, precision=precision)
    trainer.predict(make_module(pytorch_lightning), loader(Images(2)))
    assert written(tmp_path / "heat" / "predict") == ["0", "1"]
    maps = UncertaintyMaps.load(tmp_path / "heat" / "predict" / "maps" / "0.npz")
    assert maps["predictive_entropy"].dtype == torch.float32


# ids


@pytest.mark.parametrize("bad", ["../x", "/x", "a/../../x", "", "C:\\x", "a//b", "a\0b"])
def test_an_id_that_leads_out_of_the_folder_is_refused_before_an_image_is_written(tmp_path, bad):
    inner = tmp_path / "inner"
    with pytest.raises(SeguqError, match="cannot be the name of a file in a folder"):
        predict(inner, Images(2, ids=["fine", bad]))
    assert files(tmp_path) == ["inner/heat/predict/run.json"]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_two_images_of_one_id_are_one_clear_error(tmp_path, batch_size):
    with pytest.raises(SeguqError) as caught:
        predict(tmp_path, Images(2, ids=["same", "same"]), batch_size=batch_size)
    assert str(caught.value) == "HeatmapWriter: two images have the id 'same': give each one of its own"


def test_two_loaders_with_images_of_one_id_are_one_clear_error(tmp_path):
    with pytest.raises(SeguqError, match="two images have the id 'a'"):
        predict(tmp_path, [loader(Images(1, ids=["a"])), loader(Images(1, ids=["a"]))])


def test_another_number_of_ids_than_images_is_an_error(tmp_path):
    batch = {"image": torch.rand(2, 3, 8, 8), "image_id": ["a"]}
    with pytest.raises(SeguqError, match="a batch has 2 images, but 1 image ids"):
        predict(tmp_path, [loader([batch], None)])


# a folder that is there already


def test_a_folder_of_other_files_is_refused_and_not_harmed(tmp_path):
    (tmp_path / "heat" / "predict").mkdir(parents=True)
    (tmp_path / "heat" / "predict" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds other files already: choose a new folder$"):
        predict(tmp_path, overwrite=True)
    assert content(tmp_path / "heat") == {"predict/thesis.txt": b"mine"}


def test_predictions_of_other_weights_are_refused_and_not_harmed(tmp_path):
    predict(tmp_path)
    before = content(tmp_path / "heat")
    module = make_module(pytorch_lightning, seed=1)
    found = traces(module)
    with pytest.raises(UsageError, match=r"was made with other settings \(other weights\)"):
        predict(tmp_path, module=module)
    assert content(tmp_path / "heat") == before
    assert untouched(traces(module), found) and module.forwards == 0


def test_the_weights_are_those_of_the_estimator_not_of_the_module_beside_it(tmp_path):
    other = make_module(pytorch_lightning, seed=1)
    predict(tmp_path, estimator=seguq.Deterministic(make_module(pytorch_lightning)))
    predict(tmp_path, module=other, estimator=seguq.Deterministic(make_module(pytorch_lightning)))
    with pytest.raises(UsageError, match="other weights"):
        predict(tmp_path, estimator=seguq.Deterministic(other))


def test_overwrite_replaces_predictions_of_other_weights(tmp_path):
    predict(tmp_path)
    module = make_module(pytorch_lightning, seed=1)
    predict(tmp_path, Images(2, ids=["a", "new"]), module, overwrite=True)
    folder = tmp_path / "heat" / "predict"
    assert written(folder) == ["a", "new"]
    expected = seguq.Deterministic(module, calibrator=None)(images_of(Images(2)))["predictive_entropy"][0]
    torch.testing.assert_close(UncertaintyMaps.load(folder / "maps" / "a.npz")["predictive_entropy"][0], expected)


def test_the_same_weights_may_predict_again(tmp_path):
    predict(tmp_path)
    before = content(tmp_path / "heat")
    predict(tmp_path)
    assert {name: data for name, data in content(tmp_path / "heat").items() if "maps" not in name} == {
        name: data for name, data in before.items() if "maps" not in name
    }


def test_more_images_of_the_same_weights_join_those_that_are_there_on_one_scale(tmp_path):
    predict(tmp_path, Images(1, ids=["first"], brightness=0.02), measures=["energy"])
    folder = tmp_path / "heat" / "predict"
    scale = (folder / "scale.json").read_text()
    predict(tmp_path, Images(2, ids=["x", "y"]), measures=["energy"])
    assert (folder / "scale.json").read_text() != scale
    for kind in ("heatmaps/energy", "overlays/energy", "maps"):
        assert sorted(path.stem for path in (folder / kind).iterdir()) == ["first", "x", "y"]


# validation and test


def shown(folder, stage="val"):
    """By the name of each validation's folder, the ids that it shows."""
    return {path.name: written(path) for path in sorted((folder / "heat" / stage).iterdir()) if path.is_dir()}


def fit(folder, data=None, val=None, module=None, package=pytorch_lightning, callbacks=(), fit_settings=None, **own):
    settings = {"images": 3, **own}
    writer = HeatmapWriter(folder / "heat", **settings)
    trainer = make_trainer(package, folder, writer, *callbacks, **{"max_epochs": 2, **(fit_settings or {})})
    module = make_module(package) if module is None else module
    val = loader(Images(10)) if val is None else val
    trainer.fit(module, loader(Images(4, seed=9)), val)
    return trainer


@both_names
def test_validations_show_the_same_images_spread_over_the_data_set(tmp_path, package):
    fit(tmp_path, package=package)
    assert shown(tmp_path) == {"epoch=0-step=2": ["0", "3", "6"], "epoch=1-step=4": ["0", "3", "6"]}


def test_all_validations_have_the_color_scale_of_the_first(tmp_path):
    fit(tmp_path)
    scales = [path.read_text() for path in sorted((tmp_path / "heat").rglob("scale.json"))]
    assert len(scales) == 3 and len(set(scales)) == 1


def test_the_maps_of_two_validations_differ_as_the_weights_do(tmp_path):
    fit(tmp_path)
    one, other = (
        UncertaintyMaps.load(path / "maps" / "3.npz")["predictive_entropy"]
        for path in sorted((tmp_path / "heat" / "val").glob("epoch*"))
    )
    assert not torch.allclose(one, other)


def test_a_new_training_finds_a_scale_of_its_own(tmp_path):
    scale = tmp_path / "heat" / "val" / "scale.json"
    fit(tmp_path, measures=["energy"])
    before = scale.read_text()
    module = make_module(pytorch_lightning)
    module.head.weight.data.mul_(4)
    fit(tmp_path, module=module, measures=["energy"])
    assert scale.read_text() != before


def test_a_resumed_training_keeps_its_scale(tmp_path):
    scale = tmp_path / "heat" / "val" / "scale.json"
    trainer = fit(tmp_path)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    scale.write_text(json.dumps({"predictive_entropy": {"low": 0.0, "high": 0.25}}))
    again = make_trainer(pytorch_lightning, tmp_path, HeatmapWriter(tmp_path / "heat", images=3), max_epochs=3)
    again.fit(
        make_module(pytorch_lightning), loader(Images(4, seed=9)), loader(Images(10)), ckpt_path=tmp_path / "last.ckpt"
    )
    found = tmp_path / "heat" / "val" / "epoch=2-step=6" / "scale.json"
    assert json.loads(found.read_text())["predictive_entropy"]["high"] == 0.25


def test_another_training_leaves_no_image_of_the_earlier_one(tmp_path):
    fit(tmp_path)
    fit(tmp_path, images=1)
    assert shown(tmp_path) == {"epoch=0-step=2": ["0"], "epoch=1-step=4": ["0"]}


def test_the_sanity_check_writes_nothing(tmp_path):
    seen = []

    class Look(pytorch_lightning.Callback):
        def on_sanity_check_end(self, trainer, module):
            seen.append(files(tmp_path / "heat"))

    fit(tmp_path, callbacks=[Look()], fit_settings={"num_sanity_val_steps": 2})
    assert seen == [[]]


def test_images_are_spread_over_the_batches_that_are_validated(tmp_path):
    fit(tmp_path, fit_settings={"limit_val_batches": 2})
    assert shown(tmp_path) == {"epoch=0-step=2": ["0", "2", "4"], "epoch=1-step=4": ["0", "2", "4"]}


def test_images_are_spread_over_the_limited_batches_of_a_batch_sampler_too(tmp_path):
    sampler = torch.utils.data.BatchSampler(torch.utils.data.SequentialSampler(range(10)), 3, False)
    val = torch.utils.data.DataLoader(Images(10), batch_sampler=sampler)
    fit(tmp_path, val=val, fit_settings={"limit_val_batches": 2, "max_epochs": 1})
    assert shown(tmp_path) == {"epoch=0-step=2": ["0", "2", "4"]}


def test_fewer_images_than_wanted_are_all_shown(tmp_path):
    fit(tmp_path, val=loader(Images(2)), fit_settings={"max_epochs": 1})
    assert shown(tmp_path) == {"epoch=0-step=2": ["0", "1"]}


def test_a_loader_of_unknown_length_shows_its_first_images(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return (Images(10)[i] for i in range(10))

    fit(tmp_path, val=loader(Stream()), fit_settings={"max_epochs": 1})
    assert shown(tmp_path) == {"epoch=0-step=2": ["0", "1", "2"]}


@both_names
def test_several_loaders_may_show_the_same_images(tmp_path, package):
    ids = [f"street/{i}" for i in range(4)]
    val = [loader(Images(4, ids=ids)), loader(Images(4, ids=ids, seed=1))]
    fit(tmp_path, val=val, package=package, images=2, fit_settings={"max_epochs": 1})
    expected = [f"dataloader_idx_{n}/street/{i}" for n in (0, 1) for i in (0, 2)]
    assert shown(tmp_path) == {"epoch=0-step=2": expected}
    maps = UncertaintyMaps.load(tmp_path / "heat/val/epoch=0-step=2/maps/dataloader_idx_1/street/2.npz")
    assert maps.image_ids == ("dataloader_idx_1/street/2",)


@pytest.mark.parametrize(("epochs", "expected"), [(4, [0, 2, 3]), (3, [0, 2])])
def test_every_n_epochs_and_the_last_are_written(tmp_path, epochs, expected):
    fit(tmp_path, every_n_epochs=2, images=1, fit_settings={"max_epochs": epochs})
    assert [name.partition("-")[0] for name in shown(tmp_path)] == [f"epoch={n}" for n in expected]


def test_no_pass_is_spent_on_batches_that_show_nothing(tmp_path):
    module = make_module(pytorch_lightning)
    estimator = seguq.MCDropout(samples=2)
    writer = HeatmapWriter(tmp_path / "heat", images=1, estimator=estimator)
    make_trainer(pytorch_lightning, tmp_path, writer).validate(module, loader(Images(9)), verbose=False)
    assert module.forwards == 3 + 2


@both_names
def test_in_test_a_few_images_are_written_and_a_second_time_takes_their_place(tmp_path, package):
    for images in (3, 2):
        writer = HeatmapWriter(tmp_path / "heat", images=images)
        make_trainer(package, tmp_path, writer).test(make_module(package), loader(Images(10)), verbose=False)
    assert shown(tmp_path, "test") == {"epoch=0-step=0": ["0", "5"]}


def test_a_fast_dev_run_writes(tmp_path):
    fit(tmp_path, fit_settings={"fast_dev_run": True}, every_n_epochs=5)
    assert list(shown(tmp_path).values()) == [["0", "1", "2"]]


# what goes wrong


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def untouched(found, before):
    """Whether nothing was left, but for the modes, which a Trainer leaves as they were when an error came."""
    return found[:2] + found[3:] == before[:2] + before[3:]


def test_a_full_disk_is_one_clear_error_and_nothing_half_is_left(tmp_path, monkeypatch):
    module = make_module(pytorch_lightning)
    before = traces(module)
    calls, fsync = itertools.count(), os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: full() if next(calls) == 8 else fsync(handle))
    with pytest.raises(SeguqError, match=r"^HeatmapWriter cannot write .*heat/predict/.*: the disk is full$"):
        predict(tmp_path, module=module, batch_size=1)
    assert untouched(traces(module), before)
    assert not [name for name in files(tmp_path) if ".seguq-tmp" in name]
    for path in (tmp_path / "heat" / "predict" / "maps").rglob("*.npz"):
        UncertaintyMaps.load(path)


def test_a_full_disk_while_pictures_are_drawn_is_the_same_error(tmp_path, monkeypatch):
    monkeypatch.setattr("seguq.store.folder.with_color_bar", full)
    with pytest.raises(SeguqError, match="the disk is full"):
        predict(tmp_path)


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "heat").write_text("a file")
    with pytest.raises(SeguqError, match=r"^HeatmapWriter cannot write .*heat/predict: Not a directory$"):
        predict(tmp_path)


def test_after_an_error_the_same_callback_works_again(tmp_path, monkeypatch):
    trainer = make_trainer(pytorch_lightning, tmp_path, HeatmapWriter(tmp_path / "heat"))
    with monkeypatch.context() as patch, pytest.raises(SeguqError, match="the disk is full"):
        patch.setattr(PredictionFolder, "save", full)
        trainer.predict(make_module(pytorch_lightning), loader(Images(2)))
    trainer.predict(make_module(pytorch_lightning), loader(Images(2)))
    assert written(tmp_path / "heat" / "predict") == ["0", "1"]


@both_names
@pytest.mark.parametrize("estimator", [None, "mc_dropout"])
@pytest.mark.parametrize("stage", ["fit", "predict"])
def test_an_error_in_the_modules_step_leaves_no_trace(tmp_path, package, stage, estimator):
    module = make_module(package)

    def fail(*_):
        raise ZeroDivisionError

    part = module.head.register_forward_hook(lambda *_: fail() if module.forwards > 4 else None)
    before = traces(module)
    writer = HeatmapWriter(tmp_path / "heat", estimator=estimator)
    trainer = make_trainer(package, tmp_path, writer, num_sanity_val_steps=0)
    with pytest.raises(ZeroDivisionError):
        if stage == "fit":
            trainer.fit(module, loader(Images(4)), loader(Images(12), 1))
        else:
            trainer.predict(module, loader(Images(12), 1))
    assert untouched(traces(module), before)
    assert not [name for name in files(tmp_path) if ".seguq-tmp" in name]
    part.remove()


def test_what_waits_to_be_written_is_bounded(tmp_path, monkeypatch):
    writer = HeatmapWriter(tmp_path / "heat")
    size = 8 * 12 * (4 + 8 + 3)  # float32 map, int64 prediction, and the picture
    bounded = functools.partial(BackgroundWriter, limit=2 * size)
    monkeypatch.setattr("seguq.callbacks.heatmaps.BackgroundWriter", bounded)
    held, save = [], PredictionFolder.save

    def slow(self, maps):
        time.sleep(0.02)  # the network is faster, so that images have to wait
        held.append(writer.run.writer._held)
        save(self, maps)

    monkeypatch.setattr(PredictionFolder, "save", slow)
    make_trainer(pytorch_lightning, tmp_path, writer).predict(make_module(pytorch_lightning), loader(Images(12), 4))
    assert len(held) == 12 and max(held) == 2 * size


def test_an_image_that_waits_holds_no_memory_of_its_batch(tmp_path, monkeypatch):
    bytes_held = []
    submit = BackgroundWriter.submit

    def look(self, job, size):
        if len(job.args) == 3 and isinstance(job.args[1], UncertaintyMaps):
            _, maps, picture = job.args
            tensors = [*(maps[name] for name in maps.names), maps.prediction]
            bytes_held.append((sum(t.untyped_storage().nbytes() for t in tensors) + picture.nbytes, size))
        submit(self, job, size)

    monkeypatch.setattr("seguq.store.writer.BackgroundWriter.submit", look)
    predict(tmp_path, batch_size=4)
    assert len(bytes_held) == 5 and all(held == size for held, size in bytes_held)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"images": 0}, "images must be a whole number of at least 1"),
        ({"every_n_epochs": 1.5}, "every_n_epochs must be a whole number"),
        ({"estimator": "ensemble"}, "there is no Estimator 'ensemble': there are .*deterministic"),
        ({"task": "regression"}, "task must be one of"),
    ],
)
def test_a_wrong_argument_is_an_error_at_once(tmp_path, settings, told):
    with pytest.raises(SeguqError, match=told):
        HeatmapWriter(tmp_path, **settings)


def test_a_measure_that_the_estimator_has_not_is_an_error_before_the_first_batch(tmp_path):
    module = make_module(pytorch_lightning)
    with pytest.raises(SeguqError, match="'mutual_information' is not among the measures of deterministic"):
        predict(tmp_path, module=module, measures=["mutual_information"])
    assert module.forwards == 0 and files(tmp_path) == []


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_volumes_have_maps_alone(tmp_path, task):
    volumes = torch.rand(2, 3, 2, 4, 5)
    data = [{"image": one, "image_id": image_id} for one, image_id in zip(volumes, "ab", strict=True)]
    predict(tmp_path, [loader(data)], batch_forward=lambda module, batch: batch["image"], task=task)
    folder = tmp_path / "heat" / "predict"
    assert set(files(folder)) == {"run.json", "scale.json", "maps/a.npz", "maps/b.npz"}
    for image_id, one in zip("ab", volumes, strict=True):
        maps = UncertaintyMaps.load(folder / "maps" / f"{image_id}.npz")
        expected = seguq.Deterministic(torch.nn.Identity(), task=task)(one[None])
        torch.testing.assert_close(maps["predictive_entropy"], expected["predictive_entropy"])
        assert torch.equal(maps.prediction, expected.prediction)
    assert main(["score", "--predictions", str(folder), "--partition", "WholeImage"]) == 0
    assert RegionTable.load(folder / "regions.parquet").column("area").tolist() == [40, 40]


@pytest.mark.parametrize("stage", ["predict", "validate"])
def test_no_picture_shows_an_image_where_none_is_to_be_copied(tmp_path, stage):
    writer = HeatmapWriter(tmp_path / "heat", copy_images=False)
    trainer, data = make_trainer(pytorch_lightning, tmp_path, writer), loader(Images(2, ids=["a", "b"]))
    trainer.predict(make_module(pytorch_lightning), data) if stage == "predict" else trainer.validate(
        make_module(pytorch_lightning), data, verbose=False
    )
    (run,) = (tmp_path / "heat").rglob("run.json")
    kinds = {name.rpartition("/")[0] for name in files(run.parent)} - {""}
    assert kinds == {"maps", "predictions", "heatmaps/predictive_entropy"}


def test_a_prefix_stands_in_the_place_of_ids_everywhere(tmp_path):
    predict(tmp_path, prefix="case-")
    folder = tmp_path / "heat" / "predict"
    assert written(folder) == [f"case-00000{i}" for i in range(5)]
    content = b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())
    assert b"street" not in content
    expected = seguq.Deterministic(make_module(pytorch_lightning))(images_of(Images(5, ids=IDS)))
    for i in range(5):
        maps = UncertaintyMaps.load(folder / "maps" / f"case-00000{i}.npz")
        torch.testing.assert_close(maps["predictive_entropy"][0], expected["predictive_entropy"][i])
    with pytest.raises(UsageError, match="other settings"):
        predict(tmp_path)  # names and numbers in one folder
    with pytest.raises(UsageError, match="holds predictions already, and the images have no ids"):
        predict(tmp_path, prefix="case-")


def test_a_prefix_tells_the_loaders_apart(tmp_path):
    predict(tmp_path, [loader(Images(1, ids=["a"])), loader(Images(1, ids=["b"]))], prefix="case-")
    assert written(tmp_path / "heat" / "predict") == [f"dataloader_idx_{i}/case-000000" for i in range(2)]


@pytest.mark.parametrize(
    ("prefix", "shuffle", "told"), [("../", False, "prefix '../0' cannot"), ("p", True, "shuffles")]
)
def test_a_prefix_that_is_no_name_or_says_nothing_is_an_error(tmp_path, prefix, shuffle, told):
    with pytest.raises(SeguqError, match=told):
        predict(tmp_path, [loader(Images(3, ids=["a", "b", "c"]), shuffle=shuffle)], prefix=prefix)
    assert not list(tmp_path.rglob("*.npz"))


# the commands


@pytest.mark.parametrize("estimator", ["deterministic", "mc_dropout"])
def test_seguq_score_and_select_work_on_what_it_writes(tmp_path, estimator):
    predict(tmp_path, estimator=estimator)
    folder, out = tmp_path / "heat" / "predict", tmp_path / "selection.json"
    assert main(["score", "--predictions", str(folder), "--partition", "Grid", "--partition.size", "4"]) == 0
    table = RegionTable.load(folder / "regions.parquet")
    assert len(table) == 5 * 6 and set(table.column("image_id")) == set(IDS)
    words = [
        "select",
        "--scores",
        str(folder / "regions.parquet"),
        "--budget.regions",
        "9",
        "--predictions",
        str(folder),
    ]
    assert main([*words, "--out", str(out)]) == 0
    drawn = [name[: -len(".png")] for name in files(tmp_path / "selection") if name.endswith(".png")]
    assert drawn == sorted(Selection.load(out).image_ids)


def test_seguq_score_of_a_validation_finds_its_images(tmp_path):
    fit(tmp_path, fit_settings={"max_epochs": 1})
    folder = tmp_path / "heat" / "val" / "epoch=0-step=2"
    assert main(["score", "--predictions", str(folder), "--partition", "WholeImage"]) == 0
    assert list(RegionTable.load(folder / "regions.parquet").column("image_id")) == ["0", "3", "6"]


# a predict_step of the module's own


@both_names
@pytest.mark.parametrize("estimator", [None, "deterministic"])
def test_a_modules_own_predict_step_runs_as_written_and_its_pass_is_used(tmp_path, package, estimator):
    alone = with_predict_step(package)
    expected = make_trainer(package, tmp_path).predict(alone, loader(Images(5, ids=IDS), 2))
    module = with_predict_step(package)
    returned = predict(tmp_path, module=module, package=package, estimator=estimator)
    assert returned == expected
    assert (module.steps, module.forwards) == ([0, 1, 2], 3)
    assert written(tmp_path / "heat" / "predict") == sorted(IDS)


# several callbacks


@pytest.mark.parametrize(
    ("estimator", "passes", "measure"),
    [
        (seguq.MCDropout(samples=3), 3 + 2, "mutual_information"),  # one pass a batch, and two that are verified
        ("mc_dropout", 3 + 2, "mutual_information"),
        (None, 3, "predictive_entropy"),
    ],
)
def test_callbacks_that_ask_for_the_same_share_one_run_of_it(tmp_path, estimator, passes, measure):
    module = make_module(pytorch_lightning)
    scorer = RegionScorer(tmp_path, by=measure, estimator=estimator)
    callbacks = [HeatmapWriter(tmp_path / "heat", estimator=estimator), scorer]
    make_trainer(pytorch_lightning, tmp_path, *callbacks).predict(module, loader(Images(5, ids=IDS), 2))
    assert module.forwards == passes
    maps = UncertaintyMaps.load(tmp_path / "heat/predict/maps/a.npz")
    row = RegionTable.load(tmp_path / "regions.parquet").rows()[0]
    assert row["score"] == pytest.approx(float(maps[measure].double().mean()), rel=1e-5)


def test_predictions_can_be_copied_and_scored_elsewhere(tmp_path):
    predict(tmp_path)
    shutil.copytree(tmp_path / "heat" / "predict", tmp_path / "copy")
    assert main(["score", "--predictions", str(tmp_path / "copy")]) == 0
