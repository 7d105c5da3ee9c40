"""Each script in examples/ is run as a newcomer would; they train, so that it takes minutes."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_the_examples_run(script, tmp_path):
    out = tmp_path / "pictures"
    done = subprocess.run([sys.executable, str(script), str(out)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(out.rglob("*.png"))


def test_heat_maps_of_gray_images_are_normalized_as_ones_own_training_was(tmp_path):
    spec = importlib.util.spec_from_file_location("export_heatmaps", ROOT / "examples" / "export_heatmaps.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    trainer = example.pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.strategy.connect(example.Module(channels=1))
    trainer.save_checkpoint(tmp_path / "gray.ckpt")
    (tmp_path / "images").mkdir()
    for i in range(2):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (64, 64), dtype=np.uint8)).save(
            tmp_path / "images" / f"{i}.png"
        )
    script = [sys.executable, str(ROOT / "examples" / "export_heatmaps.py"), "out", "gray.ckpt", "images"]
    refused = subprocess.run(script, capture_output=True, text=True, cwd=tmp_path)
    assert refused.returncode == 2
    assert "--trained_on FOLDER, or --mean and --std" in refused.stderr
    more = ["--trained_on", "images", "--channels", "1"]
    done = subprocess.run([*script, *more], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "maps and pictures of 2 images" in done.stdout
    assert list((tmp_path / "out").rglob("*.png"))
