"""A tiny data set, and a model trained on it through the command line, for the tests of the commands."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from seguq.cli import main


def write_split(root: Path, split: str, count: int, size: int = 64, seed: int = 0) -> None:
    """Bright discs on a dark ground, and masks of them."""
    generator = np.random.default_rng(seed)
    for kind in ("images", "masks"):
        (root / kind / split).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        mask = np.zeros((size, size), np.uint8)
        for _ in range(3):
            center = [int(v) for v in generator.integers(8, size - 8, 2)]
            cv2.circle(mask, center, int(generator.integers(5, 12)), 1, -1)
        image = (mask * 150 + generator.integers(0, 80, (size, size))).astype(np.uint8)
        cv2.imwrite(str(root / "images" / split / f"{split}{number}.png"), cv2.cvtColor(image, cv2.COLOR_GRAY2BGR))
        cv2.imwrite(str(root / "masks" / split / f"{split}{number}.png"), mask)


@pytest.fixture(scope="session")
def discs(tmp_path_factory) -> Path:
    """A data set of discs with the splits train, val and pool."""
    root = tmp_path_factory.mktemp("discs and spaces")
    for number, (split, count) in enumerate((("train", 8), ("val", 4), ("pool", 5))):
        write_split(root, split, count, seed=number)
    classes = [{"index": 0, "name": "ground"}, {"index": 1, "name": "disc"}]
    (root / "classes.json").write_text(json.dumps({"ignore_index": 255, "classes": classes}))
    return root


def fit_words(discs: Path, out: Path, *more: str) -> list[str]:
    """The words of a short training."""
    return [
        "fit", "--data.root", str(discs), "--data.batch_size", "4", "--data.num_workers", "0", "--model.classes", "2",
        "--model.encoder", "resnet18", "--model.encoder_weights", "null", "--trainer.max_epochs", "2",
        "--trainer.accelerator", "cpu", "--out", str(out), *more,
    ]  # fmt: skip


@pytest.fixture(scope="session")
def trained(discs, tmp_path_factory) -> Path:
    """The folder of a training, through the real entry point in a process of its own."""
    out = tmp_path_factory.mktemp("training") / "run"
    done = run_process(*fit_words(discs, out))
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="session")
def predicted(discs, trained, tmp_path_factory) -> Path:
    """The folder of a prediction of the pool."""
    out = tmp_path_factory.mktemp("prediction") / "pool"
    words = ["predict", "--checkpoint", str(trained / "best.ckpt"), "--images", str(discs / "images" / "pool")]
    assert main([*words, "--out", str(out), "--samples", "3"]) == 0
    return out


def run_process(*words: str, **settings) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own."""
    return subprocess.run([sys.executable, "-m", "seguq", *words], capture_output=True, text=True, **settings)
