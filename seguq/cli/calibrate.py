"""``seguq calibrate``: fit a calibrator on held-out images, show what it is worth, keep it in the checkpoint."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path

from seguq.calibration import Calibrator, cross_fit
from seguq.calibration.checkpoint import save_calibrator
from seguq.calibration.folds import TooFewGroups
from seguq.cli.common import (
    make_estimator,
    pick_device,
    print_table,
    refuse_to_overwrite,
    require_folder,
    scalar,
    with_interval,
)
from seguq.cli.parsing import run_function
from seguq.core.errors import SeguqError
from seguq.core.files import remove_leftovers, require_replaceable
from seguq.core.groups import Groups
from seguq.core.locks import Lock
from seguq.core.progress import ProgressLoader
from seguq.data import SegmentationData
from seguq.inference import Estimator
from seguq.metrics import CalibrationError, NegativeLogLikelihood
from seguq.task import SegmentationTask
from seguq.weights import read_checkpoint, weights_sha256


def run(words: Sequence[str]) -> None:
    """Run the command."""
    run_function(calibrate, "calibrate", words)


def calibrate(
    checkpoint: str,
    data: str,
    split: str = "val",
    calibrator: Calibrator | str = "global",
    group: str | None = None,
    estimator: Estimator | str = "mc_dropout",
    samples: int | None = None,
    members: list[str] | None = None,
    seed: int | None = None,
    size: int | tuple[int, int] | None = None,
    batch_size: int = 8,
    num_workers: int | None = None,
    device: str = "auto",
    out: str | None = None,
    overwrite: bool = False,
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
        calibrator: global (one temperature) or another name; or a class, with its options after a dot, also one of your
            own by its import path (--calibrator my_module.Mine --calibrator.share 0.3).
        group: regular expression that finds the group in an image's id (its file name without the ending), in its first
            bracket or as a whole: "^[^_]+" for what stands before the first underscore. Without it contiguous blocks of
            images are groups.
        estimator: mc_dropout, deterministic (one pass) or deep_ensemble, as you will predict with.
        samples: passes of mc_dropout.
        members: further checkpoints of a deep_ensemble.
        seed: seed of mc_dropout.
        size: pixels, or [height, width], that images are resized to; as in training.
        batch_size: images a batch.
        num_workers: processes that load data.
        device: auto, cpu or cuda.
        out: file to write instead of changing the checkpoint.
        overwrite: replace the file of --out if it exists.
    """
    root = require_folder(data, "--data")
    Groups(group)
    if isinstance(calibrator, Calibrator):
        calibrator.arguments()  # what cannot be kept in a checkpoint is said before work starts
    else:
        Calibrator.named(calibrator)
    if out is not None:
        refuse_to_overwrite(Path(out), overwrite)
    target = Path(checkpoint if out is None else out)
    require_replaceable(target)
    if target.exists():
        read_checkpoint(target)  # nothing but a checkpoint is replaced
    target.parent.mkdir(parents=True, exist_ok=True)
    with Lock(target.parent, shared=True):  # beside others that calibrate, but not beside a training that goes on
        remove_leftovers(target.parent)
        _calibrate(
            checkpoint, root, split, calibrator, group, estimator, samples, members, seed, size, batch_size,
            num_workers, device, out,
        )  # fmt: skip
    print(f"kept in {target}")


def _calibrate(
    checkpoint: str,
    root: Path,
    split: str,
    calibrator: Calibrator | str,
    group: str | None,
    estimator: Estimator | str,
    samples: int | None,
    members: list[str] | None,
    seed: int | None,
    size: int | tuple[int, int] | None,
    batch_size: int,
    num_workers: int | None,
    device: str,
    out: str | None,
) -> None:
    """Fit it, keep it, and show what it is worth."""
    weights = weights_sha256(read_checkpoint(checkpoint).get("state_dict", {}))
    task = SegmentationTask.load(checkpoint).to(pick_device(device))
    if task.task == "multilabel":
        raise SeguqError("seguq calibrate shows values for one class a pixel; calibrate multilabel models in Python")
    module = SegmentationData(
        root, batch_size, size=size, num_workers=num_workers, mean=task.normalization.mean, std=task.normalization.std
    )
    loader = module.dataloader(split)
    if len(module.classes) != task.num_classes:
        raise SeguqError(f"{root} has {len(module.classes)} classes, but the model has {task.num_classes}")
    est = make_estimator(estimator, task, samples=samples, seed=seed, members=members, calibrator=None)
    pooled = est.pooled(ProgressLoader(loader, f"{est.tag} on {split}"))
    ignore_index = module.classes.ignore_index

    def make() -> Calibrator:
        if isinstance(calibrator, Calibrator):
            return copy.deepcopy(calibrator)
        return Calibrator.make(calibrator, task=task.task, num_classes=task.num_classes, ignore_index=ignore_index)

    fitted = make()
    fitted.arguments()
    fitted.fit(pooled)
    metrics = {
        (name, when): kind(task.num_classes, ignore_index=ignore_index)
        for name, kind in (("ECE", CalibrationError), ("NLL (nats)", NegativeLogLikelihood))
        for when in ("before", "after")
    }
    groups: set[str] = set()
    try:
        for batch in cross_fit(make, pooled, group=group):
            for (_, when), metric in metrics.items():
                logits = batch.logits if when == "before" else batch.calibrated
                metric.update(logits.softmax(1), batch.target, group=batch.groups)
            groups.update(batch.groups)
    except TooFewGroups as error:
        warnings.warn(f"nothing can be shown: {error}", stacklevel=1)
    save_calibrator(checkpoint, fitted, est.tag, out, weights)
    if groups:
        images = f"{split}, {len(module.folder(split))} images"
        together = f"{len(groups)} {'blocks' if group is None else 'groups'}"
        _print(f"{est.tag}: {fitted!r}", images, together, metrics)


def _print(
    title: str, images: str, together: str, metrics: dict[tuple[str, str], CalibrationError | NegativeLogLikelihood]
) -> None:
    rows = []
    for name in ("ECE", "NLL (nats)"):
        before, after = metrics[name, "before"], metrics[name, "after"]
        cells = [with_interval(scalar(m.compute()), m.compute_interval(), 4) for m in (before, after)]  # type: ignore[arg-type]
        rows.append([name, *cells, with_interval(*after.compute_difference(before), 4)])
    columns = [images, "before", "after (out of sample)", "change"]
    print_table(title, columns, rows, f"95 % intervals, bootstrapped over {together} of images")
