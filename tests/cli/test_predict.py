"""``seguq predict``: maps and pictures, resumed after a kill, refused where settings differ."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pytest
import torch

from seguq.calibration import TemperatureScaling
from seguq.cli import main
from seguq.core.files import TEMPORARY_PREFIX
from seguq.data import SegmentationData, read_image
from seguq.export import ScaleFinder
from seguq.inference import UncertaintyMaps
from seguq.task import SegmentationTask
from tests.cli.conftest import fit_words, write_split
from tests.core.test_locks import Holder


@pytest.fixture
def words(discs, trained, tmp_path):
    def build(*more, out=tmp_path / "out", images=discs / "images" / "pool"):
        given = ["predict", "--checkpoint", str(trained / "best.ckpt"), "--images", str(images), "--out", str(out)]
        return [*given, *([] if "deterministic" in more else ["--samples", "3"]), *more]

    return build


def _maps(folder):
    return {path.stem: UncertaintyMaps.load(path) for path in sorted((folder / "maps").glob("*.npz"))}


def test_every_image_has_its_maps_its_prediction_and_its_pictures(predicted):
    ids = [f"pool{i}" for i in range(5)]
    assert sorted(_maps(predicted)) == ids
    for kind in ("heatmaps", "overlays"):
        for measure in ("predictive_entropy", "mutual_information"):
            assert sorted(path.stem for path in (predicted / kind / measure).glob("*.png")) == ids


def test_the_prediction_is_a_png_of_class_indices(predicted):
    stored = cv2.imread(str(predicted / "predictions" / "pool0.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(stored, _maps(predicted)["pool0"].prediction[0].numpy())


def test_the_maps_are_float32_and_within_their_bounds(predicted):
    values = _maps(predicted)["pool0"]["mutual_information"].numpy()
    assert values.dtype == np.float32
    assert values.min() >= 0
    assert values.max() <= np.log(2) + 1e-6


def test_started_again_nothing_is_computed(predicted, discs, trained, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in predicted.rglob("*") if path.is_file()}
    monkeypatch.setattr("seguq.cli.predict._predict", None)
    words = ["predict", "--checkpoint", str(trained / "best.ckpt"), "--images", str(discs / "images" / "pool")]
    assert main([*words, "--out", str(predicted), "--samples", "3"]) == 0
    assert {path: path.stat().st_mtime_ns for path in predicted.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_maps(predicted, words, tmp_path):
    out = tmp_path / "killed"
    # slowed down at each file, so that the kill comes in the middle of a write
    slow = (
        "import sys, time, numpy as np; save = np.savez\n"
        "def slow(file, **arrays):\n    save(file, **arrays); time.sleep(1.0)\n"
        "np.savez = slow\n"
        "from seguq.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *words("--batch_size", "1", out=out)], stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while not (list(out.glob("maps/pool*.npz")) and list(out.glob(f"maps/{TEMPORARY_PREFIX}*"))):
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert list(out.glob(f"maps/{TEMPORARY_PREFIX}*"))
    done = {path.name for path in (out / "maps").glob("pool*.npz")}
    assert 0 < len(done) < 5
    assert main(words(out=out)) == 0
    assert not list(out.rglob(f"{TEMPORARY_PREFIX}*"))
    expected = _maps(predicted)
    for image_id, maps in _maps(out).items():
        for name in maps.names:
            assert np.allclose(maps[name], expected[image_id][name], atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")
def test_a_killed_run_whose_loading_processes_live_on_can_be_started_again_at_once(words, tmp_path):
    out = tmp_path / "killed"
    slow = (
        "import sys, time, numpy as np; save = np.savez\n"
        "def slow(file, **arrays):\n    save(file, **arrays); time.sleep(1.0)\n"
        "np.savez = slow\n"
        "from seguq.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    given = words("--batch_size", "1", "--num_workers", "2", out=out)
    process = subprocess.Popen([sys.executable, "-c", slow, *given], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list(out.glob(f"maps/{TEMPORARY_PREFIX}*")):
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert main(given) == 0  # at once: those that load data notice within 5 s that they are alone
    assert not list(out.rglob(f"{TEMPORARY_PREFIX}*"))


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--samples", "4"], "samples was 3, now 4"),
        (["--seed", "1"], "seed was 0, now 1"),
        (["--estimator", "deterministic"], "estimator was 'mc_dropout(layers=dropout)', now 'deterministic'"),
        (
            ["--measures", "[variance]"],
            "'mutual_information', 'smallest_margin'], now ['variance']",
        ),
        (["--features"], "features was None, now True"),
    ],
)
def test_a_folder_made_with_other_settings_is_refused(more, text, predicted, words, capsys):
    before = sorted(predicted.rglob("*"))
    assert main(words(*more, out=predicted)) == 2
    assert text in capsys.readouterr().err
    assert sorted(predicted.rglob("*")) == before


def test_a_folder_of_another_checkpoint_is_refused(predicted, discs, trained, tmp_path, capsys):
    other = shutil.copy(trained / "last.ckpt", tmp_path / "other.ckpt")
    with open(other, "ab") as file:
        file.write(b"\0")
    words = ["predict", "--checkpoint", str(other), "--images", str(discs / "images" / "pool"), "--out", str(predicted)]
    assert main([*words, "--samples", "3"]) == 2
    assert "another checkpoint" in capsys.readouterr().err


def test_a_folder_with_other_files_is_refused(words, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    assert main(words()) == 2
    assert "holds other files" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_images_of_any_size_depth_and_format_need_no_masks(words, tmp_path):
    images = tmp_path / "images"
    for name, size in (("a.jpg", (50, 70)), ("b/c.bmp", (64, 64)), ("b/d.webp", (33, 100))):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(images / name), np.random.default_rng(0).integers(0, 255, (*size, 3)).astype(np.uint8))
    assert main(words(images=images)) == 0
    sizes = {
        name: UncertaintyMaps.load(tmp_path / "out/maps" / f"{name}.npz").prediction.shape[1:]
        for name in ("a", "b/c", "b/d")
    }
    assert sizes == {"a": (50, 70), "b/c": (64, 64), "b/d": (33, 100)}


def test_an_image_has_the_same_maps_whatever_is_beside_it(predicted, words, discs, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(discs / "images" / "pool" / "pool3.png", alone)
    assert main(words(images=alone)) == 0
    found, expected = _maps(tmp_path / "out")["pool3"], _maps(predicted)["pool3"]
    assert np.allclose(found["mutual_information"], expected["mutual_information"], atol=1e-5)


def test_one_color_scale_serves_all_images_of_a_run(predicted):
    scale = json.loads((predicted / "scale.json").read_text())
    highest = max(float(maps["mutual_information"].max()) for maps in _maps(predicted).values())
    assert 0 < scale["mutual_information"]["high"] <= 1.1 * highest
    bars = [read_image(path)[:, -70:] for path in sorted((predicted / "heatmaps/mutual_information").glob("*.png"))]
    assert all(np.array_equal(bars[0], bar) for bar in bars)


def test_the_thread_that_writes_computes_nothing_that_takes_the_processors(words, monkeypatch):
    threads, add = [], ScaleFinder.add
    monkeypatch.setattr(ScaleFinder, "add", lambda *given: threads.append(threading.current_thread()) or add(*given))
    assert main(words()) == 0
    assert set(threads) == {threading.main_thread()}


def test_an_image_that_was_added_is_predicted_and_the_others_are_kept(words, discs, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(discs / "images" / "pool", images)
    assert main(words(images=images)) == 0
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out/maps").glob("*.npz")}
    write_split(tmp_path / "more", "new", 1, seed=9)
    shutil.copy(tmp_path / "more/images/new/new0.png", images)
    assert main(words(images=images)) == 0
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out/maps").glob("*.npz")}
    assert set(after) - set(before) == {"new0.npz"}
    assert all(after[name] == before[name] for name in before)


@pytest.mark.parametrize(
    ("more", "status", "text"),
    [
        (["--images", "missing"], 2, "missing is no folder"),
        (["--checkpoint", "missing.ckpt"], 2, "missing.ckpt does not exist"),
        (["--samples", "0"], 2, "samples must be a whole number of at least 1"),
        (["--measures", "[surprise]"], 1, "'surprise' is no measure"),
        (["--estimator", "deterministic", "--measures", "[variance]"], 1, "estimators with samples"),
        (["--samples", "1", "--measures", "[pairwise_dice]"], 2, "pass --samples 2 or more"),
        (["--estimator", "sliding_window", "--estimator.inner", "mc_dropout", "--features"], 1, "has no features"),
        (["--batch_size", "0"], 2, "--batch_size"),
        (["--num_workers", "-1"], 2, "--num_workers must be at least 0"),
    ],
)
def test_a_mistake_is_one_sentence(more, status, text, words, tmp_path, capsys):
    assert main(words(*more)) == status
    error = capsys.readouterr().err
    assert text in error
    assert "Traceback" not in error
    assert not (tmp_path / "out" / "maps").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")
def test_two_runs_at_once_in_one_folder_are_refused(words, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    begun = tmp_path / "out" / f"{TEMPORARY_PREFIX}1.png"
    begun.touch()
    with Holder(tmp_path / "out"):
        assert main(words()) == 2
    assert "another run writes into" in capsys.readouterr().err
    assert begun.exists()
    assert main(words()) == 0


def test_a_damaged_scale_is_found_anew(predicted, words, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(predicted, out)
    known = json.loads((out / "scale.json").read_text())
    (out / "scale.json").write_text("{")
    assert main(words(out=out)) == 0
    assert json.loads((out / "scale.json").read_text()) == known


def test_a_damaged_image_is_named_before_work_starts(words, tmp_path, capsys):
    images = tmp_path / "images"
    write_split(tmp_path, "pool", 2)
    images = tmp_path / "images" / "pool"
    (images / "broken.png").write_bytes(b"no image")
    assert main(words(images=images)) == 1
    assert "broken.png" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_results_within_the_folder_of_images_are_refused(words, tmp_path, capsys):
    images = tmp_path / "images"
    write_split(tmp_path, "images", 1)
    assert main(words(images=images / "images", out=images / "images" / "out")) == 2
    assert "lies within --images" in capsys.readouterr().err
    assert not (images / "images" / "out").exists()


def test_an_image_replaced_by_one_with_an_older_time_is_predicted_again(words, tmp_path, monkeypatch):
    write_split(tmp_path, "a", 2)
    assert main(words(images=tmp_path / "images" / "a")) == 0
    file = tmp_path / "out" / "maps" / "a0.npz"
    before = file.stat().st_mtime_ns
    other = tmp_path / "other.png"
    shutil.copy(tmp_path / "images" / "a" / "a1.png", other)
    os.utime(other, (1, 1))
    other.replace(tmp_path / "images" / "a" / "a0.png")
    assert main(words(images=tmp_path / "images" / "a")) == 0
    assert file.stat().st_mtime_ns > before


def test_an_image_with_a_time_in_the_future_is_predicted_once(words, tmp_path):
    write_split(tmp_path, "a", 1)
    os.utime(tmp_path / "images" / "a" / "a0.png", (4e9, 4e9))
    assert main(words(images=tmp_path / "images" / "a")) == 0
    file = tmp_path / "out" / "maps" / "a0.npz"
    before = file.stat().st_mtime_ns
    assert main(words(images=tmp_path / "images" / "a")) == 0
    assert file.stat().st_mtime_ns == before


def test_an_estimator_by_class_goes_around_another_with_the_options_of_both(words, tmp_path):
    out = tmp_path / "windows"
    build = words(out=out)
    del build[build.index("--samples") : build.index("--samples") + 2]
    around = ["--estimator", "SlidingWindow", "--estimator.window", "32", "--estimator.stride", "16"]
    assert main([*build, *around, "--estimator.inner", "MCDropout", "--estimator.inner.samples", "2"]) == 0
    settings = json.loads((out / "run.json").read_text())["settings"]
    assert settings["estimator"].startswith("sliding_window(window=32") and "mc_dropout" in settings["estimator"]


# --- scores of whole images and features lie beside the maps


@pytest.mark.parametrize(
    ("more", "drawn"),
    [
        (["--features", "--measures", "[mutual_information,pairwise_dice]"], ["mutual_information"]),
        (["--estimator", "MCDropout", "--estimator.features", "true", "--measures", "[pairwise_dice]"], []),
    ],
    ids=["beside a map", "alone"],
)
def test_scores_of_images_and_features_are_kept_and_not_drawn(more, drawn, words, tmp_path, monkeypatch):
    assert main(words(*more)) == 0
    for maps in _maps(tmp_path / "out").values():
        assert maps.names == tuple(drawn) and maps.image_scores["pairwise_dice"].shape == (1,)
        assert maps.features.dtype == torch.float16 and maps.features.shape == (1, 512, 2, 2)
    pictures = [path.relative_to(tmp_path / "out").parts[:2] for path in (tmp_path / "out").rglob("*.png")]
    assert {parts for parts in pictures if parts[0] == "heatmaps"} == {("heatmaps", name) for name in drawn}
    assert list(json.loads((tmp_path / "out" / "scale.json").read_text())) == drawn
    settings = json.loads((tmp_path / "out" / "run.json").read_text())["settings"]
    assert settings["measures"] == [*drawn, "pairwise_dice"] and settings["features"] is True
    monkeypatch.setattr("seguq.cli.predict._predict", None)
    assert main(words(*more)) == 0  # started again, nothing is computed


def test_the_help_says_what_a_score_of_images_is(capsys):
    main(["predict", "--help"])
    assert "pairwise_dice: how little the samples' masks overlap, one score for each whole" in capsys.readouterr().out


# --- the size of images goes along


@pytest.fixture(scope="module")
def trained_small(discs, tmp_path_factory):
    """A training on images that are resized to half their size."""
    out = tmp_path_factory.mktemp("small") / "run"
    assert main(fit_words(discs, out, "--data.size", "[32, 48]", "--trainer.max_epochs", "1")) == 0
    return out / "last.ckpt"


def test_a_network_is_given_images_of_the_size_that_it_was_trained_on_and_maps_have_that_of_the_images(
    discs, trained_small, tmp_path, monkeypatch
):
    seen = []
    forward = SegmentationTask.forward
    monkeypatch.setattr(SegmentationTask, "forward", lambda s, x: (seen.append(tuple(x.shape[2:])), forward(s, x))[1])
    words = ["predict", "--checkpoint", str(trained_small), "--images", str(discs / "images" / "pool")]
    assert main([*words, "--out", str(tmp_path / "out"), "--estimator", "deterministic"]) == 0
    maps = UncertaintyMaps.load(tmp_path / "out" / "maps" / "pool0.npz")
    assert set(seen) == {(32, 48)}
    assert maps.prediction.shape == maps["predictive_entropy"].shape == (1, 64, 64)


def test_a_calibrator_is_fitted_on_images_of_the_size_of_the_training(discs, trained_small, tmp_path, monkeypatch):
    checkpoint = shutil.copy(trained_small, tmp_path / "a.ckpt")
    words = ["calibrate", "--checkpoint", str(checkpoint), "--data", str(discs), "--num_workers", "0"]
    assert main([*words, "--estimator", "deterministic"]) == 0
    task = SegmentationTask.load(checkpoint)
    data = SegmentationData(discs, size=(32, 48), num_workers=0)
    with torch.no_grad():
        pairs = [(task(batch["image"]), batch["mask"]) for batch in data.dataloader("val")]
    expected = TemperatureScaling().fit(pairs).temperature
    assert task.calibrators["deterministic"].temperature == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("size", "told"), [("64", "resized to 64 x 64 pixels"), ("null", "as they are")])
def test_another_size_is_taken_with_a_word(size, told, discs, trained_small, tmp_path, capsys):
    words = ["predict", "--checkpoint", str(trained_small), "--images", str(discs / "images" / "pool")]
    words += ["--out", str(tmp_path / "out"), "--estimator", "deterministic", "--size", size, "--pictures", "false"]
    assert main(words) == 0
    said = capsys.readouterr().err
    assert f"by --size images are {told}, but in training they were resized to 32 x 48 pixels" in said


def test_a_folder_that_was_made_at_another_size_is_refused(discs, trained_small, tmp_path, capsys):
    words = ["predict", "--checkpoint", str(trained_small), "--images", str(discs / "images" / "pool")]
    words += ["--out", str(tmp_path / "out"), "--estimator", "deterministic", "--pictures", "false"]
    assert main(words) == 0
    assert main([*words, "--size", "null"]) == 2
    assert "size was [32, 48], now None" in capsys.readouterr().err


# --- what is not finite


def test_weights_of_nan_are_refused_and_nothing_is_written(discs, trained, tmp_path, capsys):
    content = torch.load(trained / "best.ckpt", weights_only=True)
    name = "model.segmentation_head.0.bias"
    content["state_dict"][name].fill_(float("nan"))
    torch.save(content, tmp_path / "a.ckpt")
    words = ["predict", "--checkpoint", str(tmp_path / "a.ckpt"), "--images", str(discs / "images" / "pool")]
    assert main([*words, "--out", str(tmp_path / "out"), "--pictures", "false"]) == 1
    assert f"a.ckpt cannot be used: its weights '{name}' hold NaN" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_logits_that_are_not_finite_are_refused_and_the_image_is_named(discs, trained, tmp_path, capsys):
    content = torch.load(trained / "best.ckpt", weights_only=True)
    content["state_dict"]["model.segmentation_head.0.weight"].fill_(3e38)
    torch.save(content, tmp_path / "a.ckpt")
    words = ["predict", "--checkpoint", str(tmp_path / "a.ckpt"), "--images", str(discs / "images" / "pool")]
    words += ["--estimator", "deterministic", "--pictures", "false"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 1
    assert "of image 'pool0' holds NaN or infinite values: the model's logits are not finite" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.npz"))


@pytest.mark.parametrize("device", ["meta", "cuda:99", "quantum"])
def test_a_device_that_computes_nothing_is_one_sentence(device, discs, trained, tmp_path, capsys):
    words = ["predict", "--checkpoint", str(trained / "best.ckpt"), "--images", str(discs / "images" / "pool")]
    assert main([*words, "--out", str(tmp_path / "out"), "--device", device]) == 2
    assert f"there is no device '{device}' here: use auto, cpu or cuda" in capsys.readouterr().err


def test_a_nul_in_an_option_is_named(discs, tmp_path, capsys):
    assert main(["predict", "--checkpoint", "a\0b", "--images", str(discs), "--out", str(tmp_path / "out")]) == 2
    assert "--checkpoint holds a NUL character" in capsys.readouterr().err
