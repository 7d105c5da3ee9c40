"""``seguq calibrate``: fit a calibrator on held-out images, show what it is worth, keep it in the checkpoint."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

from torch.utils.data import DataLoader

from seguq.calibration import Calibrator, cross_fit
from seguq.calibration.by_name import fit_calibrator, require_known
from seguq.calibration.checkpoint import save_calibrator
from seguq.calibration.folds import TooFewGroups
from seguq.cli.calibration_pictures import CalibrationPictures
from seguq.cli.common import (
    pick_device,
    print_table,
    refuse_to_overwrite,
    require_folder,
    scalar,
    with_interval,
)
from seguq.cli.estimators import (
    EXAMPLES,
    images_for_statistics,
    innermost,
    make_estimator,
    require_samples_used,
)
from seguq.cli.model import Model, Size, image_size, load_model
from seguq.cli.parsing import run_function
from seguq.core.errors import SeguqError
from seguq.core.files import remove_leftovers, require_replaceable
from seguq.core.groups import Groups
from seguq.core.locks import Lock
from seguq.core.progress import ProgressLoader
from seguq.data import Classes, SegmentationData, SegmentationFolder
from seguq.data.reading import require_scale
from seguq.inference import Estimator
from seguq.metrics import CalibrationError, NegativeLogLikelihood
from seguq.weights import read_checkpoint


def run(words: Sequence[str]) -> None:
    """Run the command."""
    run_function(calibrate, "calibrate", words, epilog=EXAMPLES, check=require_samples_used)


def calibrate(
    checkpoint: str,
    data: str,
    split: str = "val",
    method: Calibrator | str = "global",
    group: str | None = None,
    estimator: Estimator | str = "mc_dropout",
    samples: int | None = None,
    members: list[str] | None = None,
    bn_images: str | None = None,
    seed: int | None = None,
    size: Size = "auto",
    batch_size: int = 8,
    num_workers: int | None = None,
    module: str | None = None,
    task: Literal["multiclass", "binary", "multilabel"] | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    device: str = "auto",
    out: str | None = None,
    overwrite: bool = False,
    pictures: str | None = "auto",
    scale: float | None = None,
) -> None:
    """Fit a calibrator on held-out images, and keep it in the checkpoint.

    A calibrator belongs to the estimator whose output it was fitted on: fit one for each that you predict with. What is
    shown is out of sample: each half of the images is calibrated by one that was fitted on the other half. Frames of a
    video, tiles or slices are not independent of each other: tell by --group which belong together, and each group is
    on one side as a whole.

    Args:
        checkpoint: checkpoint of `seguq fit`; the calibrator is written into it.
        data: folder of the data set (images/SPLIT, masks/SPLIT, classes.json).
        split: split to fit on; one that the model was not trained on.
        method: global (one temperature), local (one a pixel), auto (the best of several on groups that they were not
            fitted on) or another name; or a class, with its options after a dot, also one of your own by its import
            path (--method my_module.Mine --method.share 0.3).
        group: regular expression that finds the group in an image's id (its file name without the ending), in its first
            bracket or as a whole: "^[^_]+" for what stands before the first underscore. Without it contiguous blocks of
            images are groups.
        estimator: as you will predict with: mc_dropout, deterministic (one pass), deep_ensemble, swag,
            test_time_augmentation, sliding_window, or one of your own by its import path; with its options after a dot
            (--estimator test_time_augmentation --estimator.views hflip --estimator.inner mc_dropout).
        samples: passes of an estimator, or of the one inside of it; by default 20, of swag 30.
        members: further checkpoints of a deep_ensemble.
        bn_images: for swag, folder of training images, by which batch statistics are renewed (256 are enough); by
            default those of the training split in --data.
        seed: of what an estimator draws, by default 0.
        size: pixels, or [height, width], that images are resized to, or null for images as they are; auto: as in
            training.
        batch_size: images a batch.
        num_workers: processes that load data.
        module: FILE.py:NAME of a LightningModule, nn.Module, or a function that makes one, for a checkpoint of your own
            training; it is made with the hyperparameters in the checkpoint. The file is run.
        task: what the logits of a --module are, multiclass, binary or multilabel; by default as its attribute task
            says, or multiclass.
        mean: mean of each channel that the images of a --module are normalized with, of pixels from 0 to 1; by default
            as its attribute normalization = (mean, std) says, or the checkpoint of a training with SegmentationData.
        std: deviation of each channel.
        device: auto, cpu or cuda.
        out: file to write instead of changing the checkpoint.
        overwrite: replace the file of --out if it exists.
        pictures: folder for pictures of the calibration; auto: NAME-calibration beside the checkpoint that is written;
            null: none.
        scale: value of 16-bit and float files that stands for 1; by default as in training, or else by the type of the
            file.
    """
    require_scale(scale)
    root = require_folder(data, "--data")
    Groups(group)
    require_known(method)
    if isinstance(method, Calibrator):
        method.arguments()  # what cannot be kept in a checkpoint is said before work starts
    if out is not None:
        refuse_to_overwrite(Path(out), overwrite)
    target = Path(checkpoint if out is None else out)
    require_replaceable(target)
    shown = CalibrationPictures(target.with_name(f"{target.stem}-calibration") if pictures == "auto" else pictures)
    if out is not None and target.exists():
        read_checkpoint(target)  # nothing but a checkpoint is replaced
    model = load_model(checkpoint, module, pick_device(device), task=task, mean=mean, std=std)
    held_out = _held_out(model, root, size, batch_size, num_workers, scale)
    loader = held_out.dataloader(split)
    _warn_of_training(model, split)
    if bn_images is None and "bn_batches" in innermost(estimator).constructor_arguments():
        bn_images = str(root / "images" / (model.trained_on.train_split if model.trained_on else "train"))
    est = make_estimator(
        estimator,
        model,
        checkpoint,
        samples=samples,
        seed=seed,
        members=members,
        bn_batches=None
        if bn_images is None
        else images_for_statistics(bn_images, model, image_size(size, model.trained_on), held_out.scale),
        calibrator=None,
    )
    shown.require_free(est)
    target.parent.mkdir(parents=True, exist_ok=True)
    with Lock(target.parent, shared=True):  # beside others that calibrate, but not beside a training that goes on
        remove_leftovers(target.parent)
        fitted = _fit_and_show(est, loader, held_out.classes, split, method, group, shown)
        save_calibrator(checkpoint, fitted, est.tag, out, model.weights_sha256)
        print(f"kept in {target}")
        shown.save(fitted, est, loader, model.normalization)


def _held_out(
    model: Model,
    root: Path,
    size: Size,
    batch_size: int,
    num_workers: int | None,
    scale: float | None,
) -> SegmentationData:
    """The data to fit on, treated as in the training of the model."""
    if model.task == "multilabel":
        raise SeguqError("seguq calibrate shows values for one class a pixel; calibrate multilabel models in Python")
    own_mean, own_std = model.normalization
    held_out = SegmentationData(
        root,
        batch_size,
        size=image_size(size, model.trained_on),
        num_workers=num_workers,
        mean=own_mean,
        std=own_std,
        scale=model.scale if scale is None else scale,
    )
    classes = len(held_out.classes)
    if model.num_classes not in (None, classes):
        raise SeguqError(f"{root} has {classes} classes, but the model has {model.num_classes}")
    return held_out


def _warn_of_training(model: Model, split: str) -> None:
    """Warn where a calibrator would be fitted on what the model was trained on."""
    told = model.trained_on
    if split == (told.train_split if told is not None else "train"):
        warnings.warn(
            f"the model was trained on the split {split!r}, where it is surer than elsewhere: what is fitted and shown "
            "here does not hold for other images; pass a split that was held out",
            stacklevel=1,
        )


def _fit_and_show(
    est: Estimator,
    loader: DataLoader[dict[str, Any]],
    classes: Classes,
    split: str,
    method: Calibrator | str,
    group: str | None,
    pictures: CalibrationPictures,
) -> Calibrator:
    """Fit a calibrator, and print what it is worth out of sample."""
    num_classes, ignore_index = len(classes), classes.ignore_index
    pooled = est.pooled(ProgressLoader(loader, f"{est.tag} on {split}"))
    if isinstance(method, Calibrator):
        method.ignore_index = ignore_index  # the masks say which pixels are left out
    unfitted = copy.deepcopy(method)
    fitted = fit_calibrator(unfitted, pooled, est.task, ignore_index, group)
    fitted.weights_sha256 = est.weights_hash()
    if fitted.compared:
        _print_compared(fitted, group)

    def make() -> Calibrator:
        if isinstance(method, Calibrator):
            return copy.deepcopy(method)
        return type(fitted)(**fitted.arguments())

    metrics: dict[tuple[str, str], CalibrationError | NegativeLogLikelihood] = {}
    for when in ("before", "after"):
        metrics["ECE", when] = CalibrationError(num_classes, ignore_index=ignore_index)
        metrics["ECE near borders", when] = CalibrationError(num_classes, ignore_index=ignore_index, near_border=2)
        metrics["NLL (nats)", when] = NegativeLogLikelihood(num_classes, ignore_index, from_logits=True)
    groups: set[str] = set()
    try:
        for batch in cross_fit(make, pooled, group=group):
            for when, logits in (("before", batch.logits), ("after", batch.calibrated)):
                probs = logits.softmax(1)
                for (name, of), metric in metrics.items():
                    if of == when:
                        metric.update(logits if name.startswith("NLL") else probs, batch.target, group=batch.groups)
            groups.update(batch.groups)
    except TooFewGroups as error:
        warnings.warn(f"nothing can be shown: {error}", stacklevel=1)
    if groups:
        images = f"{split}, {len(cast(SegmentationFolder, loader.dataset))} images"
        together = f"{len(groups)} {'blocks' if group is None else 'groups'}"
        _print(f"{est.tag}: {fitted!r}", images, together, metrics)
        before, after = metrics["ECE", "before"], metrics["ECE", "after"]
        assert isinstance(before, CalibrationError) and isinstance(after, CalibrationError)
        pictures.reliability = (before, after)
    return fitted


def _print_compared(fitted: Calibrator, group: str | None) -> None:
    """The table that shows why one was chosen."""
    rows = []
    for item in fitted.compared:
        known = math.isfinite(item.interval[0])
        change = with_interval(item.change, item.interval, 4) if known else f"{item.change:.4f}"
        rows.append(["* " * item.chosen + item.name, str(item.parameters), f"{item.nll:.4f}", change])
    columns = ["method", "numbers", "NLL on other groups", "change from one temperature"]
    kind = "blocks of images" if group is None else "groups"
    caption = (
        f"95 % intervals, bootstrapped over {kind}; * is kept: of those that are as good as the best, the one with the "
        "fewest numbers"
    )
    print_table("compared", columns, rows, caption)


def _print(
    title: str, images: str, together: str, metrics: dict[tuple[str, str], CalibrationError | NegativeLogLikelihood]
) -> None:
    rows = []
    for name in dict.fromkeys(name for name, _ in metrics):
        before, after = metrics[name, "before"], metrics[name, "after"]
        if not bool(scalar(before.compute()).isfinite()):
            continue  # no pixel near a border
        cells = [with_interval(scalar(m.compute()), m.compute_interval(), 4) for m in (before, after)]  # type: ignore[arg-type]
        rows.append([name, *cells, with_interval(*after.compute_difference(before), 4)])
    columns = [images, "before", "after (out of sample)", "change"]
    caption = (
        f"95 % intervals, bootstrapped over {together} of images; near borders: within 2 pixels of a predicted one"
    )
    print_table(title, columns, rows, caption)
