"""A whole loop in a second: a network of one layer, images of 16 x 16 pixels, a few steps a round."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytorch_lightning
import torch
from torch import nn
from torch.nn import functional

from seguq import LabeledData
from seguq.acquisition import Budget, Selection
from seguq.active import ActiveLearningLoop
from seguq.active.run_folder import RunFolder
from seguq.annotators import Oracle
from seguq.core.lightning import Trainer
from seguq.data import Classes, ImageSource, read_mask
from seguq.regions import Grid
from seguq.regions.rle import region_mask

CLASSES = 3
SIZE = 16
IGNORED = 255


def write_data(root: Path, pool: int = 6, judged: int = 3, size: int = SIZE) -> Path:
    """A data set of three classes, each of a color of its own: images and masks of pool, val and test."""
    entries = [{"index": i, "name": f"class {i}", "color": [80 * i, 0, 0]} for i in range(CLASSES)]
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.json").write_text(json.dumps({"ignore_index": IGNORED, "classes": entries}))
    for split, count in (("pool", pool), ("val", judged), ("test", judged)):
        for number in range(count):
            write_image(root, split, f"{split[0]}{number}", 100 * len(split) + number, size)
    return root


def write_image(root: Path, split: str, image_id: str, seed: int, size: int = SIZE) -> None:
    """An image and its mask: blobs of classes, colors with noise."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, CLASSES, (4, 4)).astype(np.uint8)
    mask = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_NEAREST)
    mask[generator.random(mask.shape) < 0.02] = IGNORED
    colors = np.array([[50, 90, 160], [140, 60, 90], [90, 170, 60], [0, 0, 0]])[np.minimum(mask, CLASSES)]
    image = np.clip(colors + generator.normal(0, 40, colors.shape), 0, 255).astype(np.uint8)
    for folder, content in (("images", image), ("masks", mask)):
        path = root / folder / split / f"{image_id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), content)


def make_module(package: Any = pytorch_lightning, form: str = "dict") -> Any:
    """A foreign LightningModule of either name of Lightning."""

    class Small(package.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
            self.head = nn.Sequential(nn.Dropout(0.2), nn.Conv2d(8, CLASSES, 1))

        def forward(self, images: Any) -> Any:
            return self.head(self.encoder(images))

        def _loss(self, batch: Any) -> Any:
            images, masks = (batch["image"], batch["mask"]) if form == "dict" else batch[:2]
            return functional.cross_entropy(self(images), masks.long(), ignore_index=IGNORED)

        def training_step(self, batch: Any, number: int) -> Any:
            return self._loss(batch)

        def validation_step(self, batch: Any, number: int) -> None:
            self.log("val_loss", self._loss(batch))

        def test_step(self, batch: Any, number: int) -> None:
            self.log("test_loss", self._loss(batch))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.5)

    return Small()


def make_trainer(**options: Any) -> Any:
    """A Trainer that shows and writes nothing."""
    plain = {
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "num_sanity_val_steps": 0,
        "accelerator": "cpu",
    }
    return Trainer(**{**plain, **options})


def make_data(root: Path, **options: Any) -> Callable[[Any], LabeledData]:
    """What a loop is given as ``data``."""
    plain: dict[str, Any] = {
        "root": root, "steps": 2, "batch_size": 4, "num_workers": 0, "mean": (0.4,) * 3, "std": (0.25,) * 3,
    }  # fmt: skip
    return lambda labeled: LabeledData(labeled, **{**plain, **options})


def make_loop(root: Path, run_dir: Path, **settings: Any) -> ActiveLearningLoop:
    """A loop over a folder of `write_data`: three rounds of six regions of 4 x 4 pixels, asked of an oracle."""
    plain: dict[str, Any] = {
        "make_task": make_module,
        "data": make_data(root),
        "pool": root / "images" / "pool",
        "partition": Grid(4),
        "budget": Budget(regions=6),
        "rounds": 3,
        "run_dir": run_dir,
        "calibrator": "global",
        "trainer": make_trainer,
    }
    if "annotator" not in settings:
        plain["annotator"] = Oracle(root / "masks" / "pool")
    return ActiveLearningLoop(**{**plain, **settings})


# ---- what a run has come to ----


def classes_of(root: Path) -> Classes:
    return Classes.read(root / "classes.json")


def rows_of(run_dir: Path, number: int) -> list[dict[str, Any]]:
    """What a round has chosen."""
    return [dict(row) for row in Selection.load(RunFolder(run_dir).selection(number)).rows]


def rounds_of(run_dir: Path) -> list[int]:
    return sorted(int(path.name[6:]) for path in run_dir.glob("round-*"))


def area_of(rows: Sequence[Any], size: tuple[int, int]) -> Any:
    """The pixels of regions, each of which may be there once."""
    area = np.zeros(size, int)
    for row in rows:
        area[row["y0"] : row["y1"], row["x0"] : row["x1"]] += region_mask(row)
    return area


def asked_once(run_dir: Path, pool: ImageSource) -> None:
    """Raise if a pixel was asked for twice, in all rounds."""
    rows = [row for number in rounds_of(run_dir) for row in rows_of(run_dir, number)]
    for image_id in {row["image_id"] for row in rows}:
        area = area_of([row for row in rows if row["image_id"] == image_id], pool.size(image_id))
        assert area.max() == 1, image_id


def truth_in(root: Path, image_id: str, rows: Sequence[Any]) -> Any:
    """The true mask where regions are, ignored elsewhere."""
    truth = read_mask(root / "masks" / "pool" / f"{image_id}.png", classes_of(root))
    return np.where(area_of(rows, truth.shape) > 0, truth, IGNORED)


def labels_are_the_truth(root: Path, run_dir: Path, folder: Path | None = None, rows: Any = None) -> None:
    """Raise unless the masks of a run are the truth in all regions of these rows, and ignored elsewhere."""
    rows = [row for n in rounds_of(run_dir) for row in rows_of(run_dir, n)] if rows is None else rows
    folder = RunFolder(run_dir).masks if folder is None else folder
    found = {str(path.relative_to(folder).with_suffix("")): path for path in folder.rglob("*.png")}
    assert set(found) == {row["image_id"] for row in rows}
    for image_id, path in found.items():
        expected = truth_in(root, image_id, [row for row in rows if row["image_id"] == image_id])
        np.testing.assert_array_equal(read_mask(path, classes_of(root)), expected, err_msg=image_id)


def figures(run_dir: Path, number: int) -> dict[str, Any]:
    """What a round has measured, save the time that it took."""
    content: dict[str, Any] = json.loads(RunFolder(run_dir).metrics(number).read_text())
    content.pop("seconds")
    return content


def weights(run_dir: Path, number: int) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(RunFolder(run_dir).model(number), weights_only=True)["state_dict"]
    return content


def outcome(run_dir: Path) -> dict[str, Any]:
    """All that two undisturbed runs of one seed have in common."""
    folder, out = RunFolder(run_dir), dict[str, Any]()
    for number in rounds_of(run_dir):
        out[f"rows {number}"] = rows_of(run_dir, number)
        out[f"figures {number}"] = figures(run_dir, number)
        out[f"weights {number}"] = {name: value.tolist() for name, value in weights(run_dir, number).items()}
        content = torch.load(folder.model(number), weights_only=True).get("seguq")
        out[f"calibrator {number}"] = repr(content)
        for path in sorted(folder.answers(number).rglob("*.png")):
            out[f"answer {number} {path.relative_to(folder.answers(number))}"] = path.read_bytes()
    for path in sorted(folder.masks.rglob("*.png")):
        out[f"mask {path.relative_to(folder.masks)}"] = path.read_bytes()
    return out


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [name for name in {**one, **other} if one.get(name) != other.get(name)]
