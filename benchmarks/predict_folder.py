"""What reading, decoding and writing add to an estimator: a folder of images against the same tensors in memory.

python benchmarks/predict_folder.py               # 200 images of 256 x 256, FPN/resnet18, MC dropout with T = 20

The estimator over preloaded tensors, and `seguq predict` over the folder (maps as npz, with and without pictures, with
and without a process that reads ahead), in turn; given are medians, and ratios to the preloaded tensors.
"""

import argparse
import logging
import shutil
import statistics
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from in_turn import in_turn
from PIL import Image

import seguq
from seguq.cli.predict import predict
from seguq.data import nuclei_mini


def make_folder(folder, count, size):
    """PNG images cut from the project's own."""
    folder.mkdir()
    sources = [np.array(Image.open(path).convert("RGB")) for path in sorted((nuclei_mini() / "images").rglob("*.*"))]
    generator = np.random.default_rng(0)
    for number in range(count):
        source = sources[number % len(sources)]
        source = np.pad(source, [(0, max(0, size - side)) for side in source.shape[:2]] + [(0, 0)], mode="reflect")
        top, left = (generator.integers(side - size + 1) for side in source.shape[:2])
        Image.fromarray(source[top : top + size, left : left + size]).save(folder / f"{number:03d}.png")


def save_task(path):
    """A checkpoint of a task that was not trained."""
    import pytorch_lightning as pl

    task = seguq.SegmentationTask("FPN", "resnet18", classes=2, encoder_weights=None)
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    trainer.strategy.connect(task)
    trainer.save_checkpoint(path)


def main():
    warnings.filterwarnings("ignore")
    logging.getLogger("seguq").setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        make_folder(place / "images", options.images, options.size)
        save_task(place / "model.ckpt")
        task = seguq.SegmentationTask.load(place / "model.ckpt")
        est = seguq.MCDropout(task, samples=options.samples, seed=0, calibrator=None,
                              measures=["predictive_entropy", "mutual_information"])  # fmt: skip
        tensors = torch.rand(options.images, 3, options.size, options.size).split(options.batch)

        def preloaded():
            for number, images in enumerate(tensors):
                est(images, [f"{number}-{i}" for i in range(len(images))])

        def folder(**settings):
            shutil.rmtree(place / "out", ignore_errors=True)
            predict(str(place / "model.ckpt"), str(place / "images"), str(place / "out"), samples=options.samples,
                    seed=0, batch_size=options.batch, **settings)  # fmt: skip

        ways = {
            "preloaded": preloaded,
            "folder, maps": lambda: folder(pictures=False),
            "folder, maps, one reader": lambda: folder(pictures=False, num_workers=1),
            "folder, maps and pictures": lambda: folder(pictures=True),
        }
        times = in_turn(ways, options.rounds)
        for name, spent in times.items():
            ratio = statistics.median(a / b for a, b in zip(spent, times["preloaded"], strict=True))
            print(f"{name:30s} {statistics.median(spent):6.1f} s   {ratio:.3f}")


if __name__ == "__main__":
    main()
