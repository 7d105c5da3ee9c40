"""Every command says in one sentence what its memory was wanted for, and which option takes less."""

import shutil

import pytest
import torch

from seguq.cli import main
from tests.cli.conftest import fit_words
from tests.core.test_out_of_memory import TOO_MUCH

# (where memory runs out, what is named, the option that helps)
PLACES = {
    "fit": ("seguq.task.SegmentationTask.training_step", "this run", "--data.batch_size"),
    "fit, an image": ("seguq.data.folder.SegmentationFiles.item", "(64 x 64)", "batch_size"),
    "calibrate": ("seguq.inference.Deterministic.pool", "this run", "--batch_size"),
    "calibrate, an image": ("seguq.data.folder.SegmentationFiles.item", "image 'val0' (64 x 64)", "batch_size"),
    "predict": (
        "seguq.inference.Deterministic.pool",
        "a batch of 4 images, such as 'pool0' (64 x 64)",
        "SlidingWindow",
    ),
    "predict, an image": ("seguq.data.folder.SegmentationFiles.item", "image 'pool0' (64 x 64)", "batch_size"),
    "predict, a file": ("seguq.data.reading.decode_image", "pool0.png", "tiles"),
    "score": ("seguq.regions.grid.Grid.__call__", "the maps of image 'pool0'", "--measures"),
}


@pytest.mark.parametrize("library", ["torch", "OpenCV"])
@pytest.mark.parametrize("name", PLACES)
def test_it_is_one_sentence(name, library, discs, trained, predicted, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # where nothing is known of the files yet
    place, what, option = PLACES[name]
    checkpoint = str(shutil.copy(trained / "best.ckpt", tmp_path / "model.ckpt"))
    command = name.partition(",")[0]
    words = {
        "fit": fit_words(discs, tmp_path / "run"),
        "calibrate": ["calibrate", "--checkpoint", checkpoint, "--data", str(discs), "--num_workers", "0"],
        "predict": ["predict", "--checkpoint", checkpoint, "--images", str(discs / "images" / "pool")],
        "score": ["score", "--predictions", str(predicted), "--out", str(tmp_path / "regions.parquet")],
    }[command]
    words += ["--estimator", "deterministic"] if command in ("calibrate", "predict") else []
    words += ["--out", str(tmp_path / "out")] if command == "predict" else []
    monkeypatch.setattr(place, lambda *_, **__: TOO_MUCH[library]())
    assert main(words) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"seguq {command}: not enough memory for ")
    assert what in error
    assert option in error
    assert torch.load(checkpoint, weights_only=True)["seguq"].get("calibrators", {}) == {}
