"""``seguq fit`` through its real entry point."""

import os
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import torch

from seguq.cli import main
from tests.cli.conftest import fit_words
from tests.core.test_locks import Holder


def test_a_training_leaves_its_best_and_last_checkpoint_its_settings_and_its_figures(trained):
    names = {path.relative_to(trained).as_posix() for path in trained.rglob("*")}
    expected = {"best.ckpt", "last.ckpt", "logs/version_0/config.yaml", "logs/version_0/metrics.csv"}
    assert expected <= names


def test_the_checkpoint_holds_plain_values_only(trained):
    content = torch.load(trained / "best.ckpt", weights_only=True)
    assert content["seguq"]["class_names"] == ["ground", "disc"]


def test_another_training_in_the_same_folder_is_refused(discs, trained, capsys):
    before = (trained / "best.ckpt").read_bytes()
    assert main(fit_words(discs, trained)) == 2
    assert "holds a training already" in capsys.readouterr().err
    assert (trained / "best.ckpt").read_bytes() == before


CASES = [(missing, resume) for missing in ("last.ckpt", "best.ckpt", "fit.json") for resume in ("none", "elsewhere")]


@pytest.mark.parametrize(("missing", "resume"), [*CASES, ("fit.json", "here")])
def test_what_another_training_or_somebody_has_left_is_not_replaced(discs, trained, tmp_path, capsys, missing, resume):
    out = shutil.copytree(trained, tmp_path / "run")
    (out / missing).unlink()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    words = fit_words(discs, out)
    if resume == "elsewhere":
        words += ["--resume", str(trained / "last.ckpt")]
    elif resume == "here":
        (out / "mine.ckpt").write_bytes((trained / "last.ckpt").read_bytes())
        words += ["--resume", str(out / "mine.ckpt")]
    assert main(words) == 2
    assert "pass another --out" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.skipif(os.name != "posix", reason="there are no such locks")
def test_two_trainings_at_once_in_one_folder_are_refused(discs, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    with Holder(tmp_path / "run"):
        assert main(fit_words(discs, tmp_path / "run")) == 2
    assert "another run writes into" in capsys.readouterr().err
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.slow
def test_a_training_that_was_killed_goes_on_from_its_last_checkpoint(discs, tmp_path):
    out = tmp_path / "run"
    words = fit_words(discs, out, "--trainer.max_epochs", "4")
    process = subprocess.Popen(
        [sys.executable, "-m", "seguq", *words], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 200
    while not (out / "last.ckpt").exists():
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    reached = torch.load(out / "last.ckpt", weights_only=True)["global_step"]
    first = shutil.copytree(out, tmp_path / "first")
    assert main([*words, "--resume", str(out / "last.ckpt")]) == 0
    assert reached < torch.load(out / "last.ckpt", weights_only=True)["global_step"] == 8
    assert (out / "logs" / "version_0").is_dir()
    # and in another folder, where it leaves the first one as it is
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    words = fit_words(discs, tmp_path / "second", "--trainer.max_epochs", "4", "--resume", str(first / "last.ckpt"))
    assert main(words) == 0
    assert {"best.ckpt", "last.ckpt"} <= {path.name for path in (tmp_path / "second").iterdir()}
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before


def test_a_training_of_another_length_cannot_go_on(discs, trained, tmp_path, capsys):
    out = shutil.copytree(trained, tmp_path / "run")
    words = fit_words(discs, out, "--resume", str(out / "last.ckpt"), "--trainer.max_epochs", "3")
    assert main(words) == 1
    assert "planned for 4 steps" in capsys.readouterr().err


def test_options_may_be_written_with_hyphens(discs, tmp_path, capsys):
    assert main(fit_words(discs, tmp_path / "run", "--data.batch-size", "0")) == 1
    assert "batch_size must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["--data.root", "missing"], 2, "missing is no folder"),
        (["--model.classes", "3"], 1, "the data have 2 classes (ground, disc), but the network has 3"),
        (["--model.encoder", "resnet1"], 1, "did you mean"),
        (["--model.architecture", "Unit"], 1, "did you mean"),
        (["--model.loss", "nll"], 2, "nll"),
        (["--resume", "missing.ckpt"], 2, "missing.ckpt does not exist"),
        (["--data.augmentation", "spin"], 2, "spin"),
        (["--trainer.max_epochs", "many"], 2, "many"),
        (["--trainer.accelerator", "nope"], 2, "invalid accelerator"),
        (["--trainer.strategy", "nope"], 2, "nope"),
        (["--trainer.devices", "-3"], 2, "--trainer: `devices`"),
        (["--seed_everything", "-1"], 2, "--seed_everything: -1 is not in bounds"),
        (["--out", ""], 2, "--out is empty"),
    ],
)
def test_a_mistake_is_one_sentence(words, status, text, discs, tmp_path, capsys):
    assert main(fit_words(discs, tmp_path / "run", *words)) == status
    error = capsys.readouterr().err
    assert text in error
    assert "Traceback" not in error


def _break_size(root):
    cv2.imwrite(str(root / "masks" / "train" / "train3.png"), np.zeros((8, 8), np.uint8))


def _break_class(root):
    cv2.imwrite(str(root / "masks" / "train" / "train3.png"), np.full((64, 64), 7, np.uint8))


def _break_missing(root):
    (root / "masks" / "train" / "train3.png").unlink()


def _break_file(root):
    (root / "images" / "train" / "train3.png").write_bytes(b"no image")


def _break_twice(root):
    shutil.copy(root / "images" / "train" / "train3.png", root / "images" / "train" / "train3.bmp")


@pytest.mark.parametrize("damage", [_break_size, _break_class, _break_missing, _break_file, _break_twice])
def test_damaged_data_are_named_before_the_first_step(damage, discs, tmp_path, capsys):
    root = shutil.copytree(discs, tmp_path / "data")
    damage(root)
    assert main(fit_words(root, tmp_path / "run")) == 1
    assert "train3" in capsys.readouterr().err
    assert not (tmp_path / "run" / "best.ckpt").exists()


def test_an_empty_split_is_named(discs, tmp_path, capsys):
    root = shutil.copytree(discs, tmp_path / "data")
    shutil.rmtree(root / "images" / "val")
    (root / "images" / "val").mkdir()
    assert main(fit_words(root, tmp_path / "run")) == 1
    assert "val holds no image" in capsys.readouterr().err


def edited(trained, path, change):
    """A copy of the last checkpoint of a training, changed."""
    content = torch.load(trained / "last.ckpt", weights_only=True)
    change(content)
    torch.save(content, path)
    return str(path)


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("environment", [None, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
def test_nothing_in_a_checkpoint_is_run_when_a_training_goes_on(
    environment, discs, trained, tmp_path, capsys, monkeypatch
):
    if environment:
        monkeypatch.setenv(environment, "1")
    path = edited(trained, tmp_path / "a.ckpt", lambda content: content.update(x=Malicious(tmp_path / "harm")))
    assert main(fit_words(discs, tmp_path / "run", "--resume", path)) == 1
    error = capsys.readouterr().err
    assert "a.ckpt holds the type io.open" in error
    assert "weights_only" not in error
    assert not (tmp_path / "harm").exists()


def test_lightning_reads_a_checkpoint_as_we_do_whatever_the_environment_says(
    discs, trained, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    asked, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: (asked.append(k.get("weights_only")), load(*a, **k))[1])
    out = shutil.copytree(trained, tmp_path / "run")
    assert main(fit_words(discs, out, "--resume", str(out / "last.ckpt"))) == 0
    assert len(asked) >= 2
    assert set(asked) == {True}


RESUMED = {
    "a bare state dict": (lambda c: [c.pop(k) for k in [*c] if k != "state_dict"], 2, "holds no training to go on"),
    "optimizers of another kind": (lambda c: c.update(optimizer_states=5), 1, "a.ckpt is damaged"),
    "loops of another kind": (lambda c: c.update(loops={"fit_loop": 3}), 1, "a.ckpt is damaged"),
    "an epoch of another kind": (lambda c: c.update(lr_schedulers="x"), 1, "a.ckpt is damaged"),
    "a state dict of another kind": (lambda c: c.update(state_dict=[1]), 1, "a.ckpt is damaged"),
    "hyperparameters of another kind": (lambda c: c.update(hyper_parameters=[1]), 1, "a.ckpt is damaged"),
    "data of another size": (lambda c: c["SegmentationData"].update(size=[32, 32]), 1, "resized to 32 x 32 pixels"),
}


@pytest.mark.parametrize(("change", "status", "told"), RESUMED.values(), ids=RESUMED.keys())
def test_a_checkpoint_that_no_training_can_go_on_from_is_one_sentence(
    change, status, told, discs, trained, tmp_path, capsys
):
    path = edited(trained, tmp_path / "a.ckpt", change)
    assert main(fit_words(discs, tmp_path / "run", "--resume", path)) == status
    error = capsys.readouterr().err
    assert told in error
    assert "unexpected" not in error


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["--model.architecture", "Unet"], 2, "network with architecture='FPN', but now architecture is 'Unet'"),
        (["--model.dropout", "null", "--model.encoder", "resnet34"], 2, "encoder='resnet18'"),
        (["--trainer.max_epochs", "-5"], 2, "max_epochs"),
        (["--trainer.devices", "0"], 2, "devices"),
    ],
    ids=["architecture", "encoder", "epochs", "devices"],
)
def test_a_wrong_option_is_one_sentence_when_a_training_goes_on(words, status, told, discs, trained, tmp_path, capsys):
    words = fit_words(discs, tmp_path / "run", "--resume", str(trained / "last.ckpt"), *words)
    assert main(words) == status
    error = capsys.readouterr().err
    assert told in error
    assert "unexpected" not in error
    assert error.count("\n") == 1


def test_a_nul_in_an_option_is_named(discs, tmp_path, capsys):
    assert main(fit_words(discs, "a\0b")) == 2
    assert "--out holds a NUL character" in capsys.readouterr().err


OWN_PLUGIN = """
from pytorch_lightning.plugins.io import TorchCheckpointIO


class Mine(TorchCheckpointIO):
    asked = []

    def load_checkpoint(self, path, *settings, **more):
        self.asked.append(path)
        return super().load_checkpoint(path, *settings, **more)
"""


def test_a_plugin_of_ones_own_reads_the_checkpoint_that_a_training_goes_on_from(discs, trained, tmp_path, monkeypatch):
    (tmp_path / "own_plugin.py").write_text(OWN_PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_plugin", raising=False)
    last = str(trained / "last.ckpt")
    words = ["--trainer.plugins", "own_plugin.Mine", "--trainer.max_epochs", "2", "--resume", last]
    assert main(fit_words(discs, tmp_path / "run", *words)) == 0
    assert list(map(str, sys.modules["own_plugin"].Mine.asked)) == [last]
