"""``seguq calibrate``: a temperature goes into the checkpoint, with its figures out of sample."""

import os
import shutil
import stat
import sys

import pytest
import torch
from PIL import Image

from seguq.calibration import Calibrator, TemperatureScaling
from seguq.calibration.checkpoint import save_calibrator
from seguq.cli import main
from seguq.data import SegmentationData
from seguq.inference import Deterministic, UncertaintyMaps
from seguq.task import SegmentationTask
from tests.core.test_locks import Holder


@pytest.fixture
def checkpoint(trained, tmp_path):
    return shutil.copy(trained / "best.ckpt", tmp_path / "model.ckpt")


def _words(checkpoint, discs, *more):
    base = ["calibrate", "--checkpoint", str(checkpoint), "--data", str(discs), "--num_workers", "0"]
    return [*base, "--estimator", "deterministic", *more]


def test_the_temperature_is_the_one_of_a_plain_fit(checkpoint, discs):
    assert main(_words(checkpoint, discs)) == 0
    task = SegmentationTask.load(checkpoint)
    data = SegmentationData(discs, mean=task.normalization.mean, std=task.normalization.std, num_workers=0)
    with torch.no_grad():
        pairs = [(task(batch["image"]), batch["mask"]) for batch in data.dataloader("val")]
    expected = TemperatureScaling().fit(pairs).temperature
    assert task.calibrators["deterministic"].temperature == pytest.approx(expected, rel=1e-4)


def test_temperatures_of_two_estimators_stand_beside_each_other(checkpoint, discs):
    assert main(_words(checkpoint, discs)) == 0
    assert main(_words(checkpoint, discs, "--estimator", "mc_dropout", "--samples", "2")) == 0
    assert set(SegmentationTask.load(checkpoint).calibrators) == {"deterministic", "mc_dropout(layers=dropout)"}


def test_the_calibrated_estimator_uses_it(checkpoint, discs):
    assert main(_words(checkpoint, discs)) == 0
    task = SegmentationTask.load(checkpoint)
    image = torch.randn(1, 3, 32, 32)
    expected = task.calibrators["deterministic"](task(image)).softmax(1)
    assert torch.allclose(Deterministic(task)(image).probs, expected, atol=1e-6)


def test_another_file_can_be_written_and_the_checkpoint_stays(checkpoint, discs, tmp_path):
    before = (tmp_path / "model.ckpt").read_bytes()
    assert main(_words(checkpoint, discs, "--out", str(tmp_path / "other.ckpt"))) == 0
    assert (tmp_path / "model.ckpt").read_bytes() == before
    assert "deterministic" in SegmentationTask.load(tmp_path / "other.ckpt").calibrators


def test_the_table_shows_before_and_after_with_intervals(checkpoint, discs, capsys):
    assert main(_words(checkpoint, discs)) == 0
    printed = capsys.readouterr().out
    assert "after (out of sample)" in printed
    assert printed.count("[") == 6 + 1  # intervals, and what was fitted
    assert "TemperatureScaling() [temperature=" in printed
    images = len(SegmentationData(discs, num_workers=0).folder("val"))
    assert f"over {images} blocks of images" in printed


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of somebody's own on the path: a calibrator that reads the image and needs the number of classes."""
    (tmp_path / "own_calibrators.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_calibrators", raising=False)
    return "own_calibrators.Halved"


OWN = """
import torch
from seguq.calibration import Calibrator


class Halved(Calibrator):
    name = "halved"
    order_preserving = True

    def __init__(self, num_classes):
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("factor", torch.ones(()))

    def fit(self, batches):
        for logits, image, target in batches:
            assert image.shape[0] == logits.shape[0] and logits.shape[1] == self.num_classes
        self.factor.fill_(0.5)
        return self

    def forward(self, logits, image=None):
        assert image is not None
        return logits * self.factor
"""


def test_a_calibrator_of_ones_own_is_fitted_shown_and_kept(own, checkpoint, discs, capsys):
    assert main(_words(checkpoint, discs, "--method", own)) == 0
    assert "Halved" in capsys.readouterr().out
    calibrator = SegmentationTask.load(checkpoint).calibrators["deterministic"]
    assert (calibrator.name, float(calibrator.factor)) == ("halved", 0.5)


def test_pictures_lie_beside_the_checkpoint_for_each_estimator(checkpoint, discs, tmp_path, capsys):
    assert main(_words(checkpoint, discs, "--method", "local")) == 0
    assert main(_words(checkpoint, discs, "--estimator", "mc_dropout", "--samples", "2")) == 0
    folder = tmp_path / "model-calibration"
    found = {path.name: Image.open(path).size for path in folder.glob("*.png")}
    assert set(found) == {
        "deterministic-reliability.png",
        "deterministic-temperature.png",
        "mc_dropout_layers_dropout-reliability.png",
    }
    assert all(min(size) > 300 for size in found.values())
    assert str(folder / "deterministic-temperature.png") in capsys.readouterr().out.replace("\n", "")
    before = (folder / "deterministic-reliability.png").read_bytes()
    assert main(_words(checkpoint, discs, "--method", "local", "--split", "train")) == 0
    assert (folder / "deterministic-reliability.png").read_bytes() != before


def test_a_picture_of_somebody_else_is_left_and_said_before_work_starts(checkpoint, discs, tmp_path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "deterministic-reliability.png").write_bytes(b"mine")
    before = (tmp_path / "model.ckpt").read_bytes()
    assert main(_words(checkpoint, discs, "--pictures", str(folder))) == 1
    assert "was written, or changed, by somebody else" in capsys.readouterr().err
    assert (folder / "deterministic-reliability.png").read_bytes() == b"mine"
    assert (tmp_path / "model.ckpt").read_bytes() == before


def test_auto_shows_what_it_compared_and_keeps_the_one_with_a_star(checkpoint, discs, capsys):
    assert main(_words(checkpoint, discs, "--method", "auto", "--pictures", "null")) == 0
    printed = capsys.readouterr().out
    assert "change from one temperature" in printed
    (kept,) = [line for line in printed.splitlines() if "* " in line and "│" in line]
    calibrator = SegmentationTask.load(checkpoint).calibrators["deterministic"]
    assert kept.split("*")[1].split()[0] == calibrator.name
    assert "out of sample" in printed


@pytest.mark.parametrize("name", Calibrator.names())
def test_every_method_is_kept_and_applied_by_predict(name, checkpoint, discs, tmp_path):
    if not Calibrator.named(name).__module__.startswith("seguq."):
        pytest.skip("of a test")
    assert main(_words(checkpoint, discs, "--method", name, "--pictures", "null")) == 0
    words = ["predict", "--checkpoint", str(checkpoint), "--images", str(discs / "images" / "pool"), "--out"]
    more = ["--estimator", "deterministic", "--pictures", "false", "--save_probs", "true"]
    assert main([*words, str(tmp_path / "out"), *more]) == 0
    assert main([*words, str(tmp_path / "raw"), *more, "--calibrated", "false"]) == 0
    one, raw = (next((tmp_path / folder / "maps").glob("*.npz")) for folder in ("out", "raw"))
    own, plain = (UncertaintyMaps.load(path) for path in (one, raw))
    assert not torch.allclose(own.probs, plain.probs, atol=1e-4)
    assert torch.allclose(own.probs.sum(1), torch.ones(()), atol=1e-4)


def test_groups_are_told_by_a_pattern(checkpoint, discs, capsys):
    ids = SegmentationData(discs, num_workers=0).folder("val").ids
    last = sorted({name[-1] for name in ids})
    assert main(_words(checkpoint, discs, "--group", ".$")) == 0
    assert f"over {len(last)} groups of images" in capsys.readouterr().out


def test_images_of_one_group_are_fitted_on_with_a_warning_and_nothing_is_shown(checkpoint, discs, capsys):
    assert main(_words(checkpoint, discs, "--group", "^")) == 0
    printed, said = capsys.readouterr()
    assert "at least 2 groups, as many as folds, but they are in 1" in said
    assert "out of sample" not in printed
    assert "kept in" in printed
    assert "deterministic" in SegmentationTask.load(checkpoint).calibrators


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["--data", "missing"], 2, "missing is no folder"),
        (["--checkpoint", "missing.ckpt"], 2, "missing.ckpt does not exist"),
        (["--split", "tests"], 1, "tests is no folder"),
        (["--estimator", "laplace"], 2, "laplace"),
        (["--estimator", "deep_ensemble"], 2, "--members"),
        (["--device", "quantum"], 2, "quantum"),
        (["--method", "globl"], 2, "there is no Calibrator 'globl': there are"),
        (["--method", "no_such.Module"], 2, "no_such.Module cannot be imported"),
        (["--group", "("], 2, "is no regular expression"),
        (["--group", "video"], 1, "finds nothing in the image id"),
    ],
)
def test_a_mistake_is_one_sentence(words, status, text, checkpoint, discs, capsys):
    assert main(_words(checkpoint, discs, *words)) == status
    error = capsys.readouterr().err
    assert text in error
    assert "Traceback" not in error


def test_the_split_of_the_training_is_fitted_on_with_a_warning(checkpoint, discs, capsys):
    assert main(_words(checkpoint, discs, "--split", "train")) == 0
    assert "the model was trained on the split 'train', where it is surer than elsewhere" in capsys.readouterr().err


def test_another_split_is_fitted_on_without_a_warning(checkpoint, discs, capsys):
    assert main(_words(checkpoint, discs)) == 0
    assert "was trained on the split" not in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="permissions and links are those of POSIX")
def test_a_checkpoint_keeps_its_permissions_and_a_link_stays_one(checkpoint, discs, tmp_path):
    model, link = tmp_path / "model.ckpt", tmp_path / "folder" / "link.ckpt"
    model.chmod(0o600)
    link.parent.mkdir()
    link.symlink_to(model)
    assert main(_words(link, discs)) == 0
    assert link.is_symlink()
    assert stat.S_IMODE(model.stat().st_mode) == 0o600
    assert "deterministic" in SegmentationTask.load(model).calibrators


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
def test_a_write_protected_checkpoint_is_refused_before_work_starts(checkpoint, discs, tmp_path, monkeypatch, capsys):
    before = (tmp_path / "model.ckpt").read_bytes()
    (tmp_path / "model.ckpt").chmod(0o444)
    monkeypatch.setattr("seguq.cli.calibrate._fit_and_show", None)
    assert main(_words(checkpoint, discs)) == 1
    assert "model.ckpt is write-protected" in capsys.readouterr().err
    assert (tmp_path / "model.ckpt").read_bytes() == before


def test_only_a_checkpoint_is_replaced_by_one(checkpoint, discs, tmp_path):
    (tmp_path / "notes.ckpt").write_text("mine")
    assert main(_words(checkpoint, discs, "--out", str(tmp_path / "notes.ckpt"), "--overwrite")) == 1
    assert (tmp_path / "notes.ckpt").read_text() == "mine"


def test_a_checkpoint_that_was_replaced_in_the_meantime_gets_no_calibrator(
    checkpoint, discs, tmp_path, monkeypatch, capsys
):
    def replaced(*arguments):
        content = torch.load(checkpoint, weights_only=True)
        first = next(name for name, value in content["state_dict"].items() if value.is_floating_point())
        content["state_dict"][first] += 1
        torch.save(content, checkpoint)
        save_calibrator(*arguments)

    monkeypatch.setattr("seguq.cli.calibrate.save_calibrator", replaced)
    assert main(_words(checkpoint, discs)) == 1
    assert "was replaced while the calibrator was fitted" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="there are no such locks")
@pytest.mark.parametrize("shared", [True, False])
def test_it_runs_beside_another_but_not_beside_a_training(checkpoint, discs, tmp_path, capsys, shared):
    with Holder(tmp_path, *["shared"] * shared):
        assert main(_words(checkpoint, discs)) == (0 if shared else 2)
    assert ("another run writes into" in capsys.readouterr().err) != shared


def test_what_a_killed_run_has_left_is_removed(checkpoint, discs, tmp_path):
    (tmp_path / ".seguq-tmp-1.ckpt").write_text("half")
    assert main(_words(checkpoint, discs, "--pictures", "null")) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model.ckpt"]


def test_the_checkpoint_is_read_once_to_fit_and_once_to_add_to(checkpoint, discs, monkeypatch):
    load, read = torch.load, []
    monkeypatch.setattr(torch, "load", lambda path, **settings: [read.append(path), load(path, **settings)][1])
    assert main(_words(checkpoint, discs)) == 0
    assert len(read) == 2  # others may have added calibrators while this one was fitted


@pytest.mark.parametrize(
    "words",
    [
        ["--checkpoint", "new/missing.ckpt"],
        ["--out", "new/a.ckpt", "--checkpoint", "missing.ckpt"],
        ["--out", "new/a.ckpt", "--split", "tests"],
        ["--out", "new/a.ckpt", "--estimator", "deep_ensemble", "--members", "missing.ckpt"],
    ],
)
def test_what_is_missing_is_said_before_a_folder_is_made(words, checkpoint, discs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(_words(checkpoint, discs, *words)) in (1, 2)
    assert "missing.ckpt does not exist" in (error := capsys.readouterr().err) or "tests is no folder" in error
    assert not (tmp_path / "new").exists()
