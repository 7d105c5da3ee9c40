"""``seguq calibrate``: fit a temperature on held-out images, show what it is worth, keep it in the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from seguq.calibration import cross_fit
from seguq.calibration.checkpoint import save_calibrator
from seguq.calibration.temperature import TemperatureScaling
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
from seguq.core.progress import ProgressLoader
from seguq.data import SegmentationData
from seguq.inference import Estimator
from seguq.metrics import CalibrationError, NegativeLogLikelihood
from seguq.task import SegmentationTask


def run(words: Sequence[str]) -> None:
    """Run the command."""
    run_function(calibrate, "calibrate", words)


def calibrate(
    checkpoint: str,
    data: str,
    split: str = "val",
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
    """Fit one temperature on held-out images, and keep it in the checkpoint.

    A temperature belongs to the estimator whose output it was fitted on: fit one for each that you predict with. The
    figures shown are out of sample: each half of the images is calibrated by a temperature fitted on the other half.

    Args:
        checkpoint: checkpoint of `seguq fit`; the temperature is written into it.
        data: folder of the data set (images/SPLIT, masks/SPLIT, classes.json).
        split: split to fit on; one that the model was not trained on.
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
    if out is not None:
        refuse_to_overwrite(Path(out), overwrite)
    task = SegmentationTask.load(checkpoint).to(pick_device(device))
    if task.task == "multilabel":
        raise SeguqError("seguq calibrate shows figures for one class a pixel; calibrate multilabel models in Python")
    module = SegmentationData(
        root, batch_size, size=size, num_workers=num_workers, mean=task.normalization.mean, std=task.normalization.std
    )
    loader = module.dataloader(split)
    if len(module.classes) != task.num_classes:
        raise SeguqError(f"{root} has {len(module.classes)} classes, but the model has {task.num_classes}")
    est = make_estimator(estimator, task, samples=samples, seed=seed, members=members, calibrator=None)
    pooled = est.pooled(ProgressLoader(loader, f"{est.tag} on {split}"))
    ignore_index = module.classes.ignore_index
    calibrator = TemperatureScaling(ignore_index=ignore_index).fit(pooled)

    metrics = {
        (name, when): kind(task.num_classes, ignore_index=ignore_index)
        for name, kind in (("ECE", CalibrationError), ("NLL (nats)", NegativeLogLikelihood))
        for when in ("before", "after")
    }
    for batch in cross_fit(lambda: TemperatureScaling(ignore_index=ignore_index), pooled):
        ids = [str(number) for number in batch.numbers]
        for (_, when), metric in metrics.items():
            logits = batch.logits if when == "before" else batch.calibrated
            metric.update(logits.softmax(1), batch.target, group=ids)
    save_calibrator(checkpoint, calibrator, est.tag, out)

    cells = {key: with_interval(scalar(m.compute()), m.compute_interval(), 4) for key, m in metrics.items()}  # type: ignore[arg-type]
    rows = []
    for name in ("ECE", "NLL (nats)"):
        change = with_interval(*metrics[name, "after"].compute_difference(metrics[name, "before"]), 4)
        rows.append([name, cells[name, "before"], cells[name, "after"], change])
    print_table(
        f"{est.tag}: T = {calibrator.temperature:.3f}",
        [f"{split}, {len(module.folder(split))} images", "before", "after (out of sample)", "change"],
        rows,
        "95 % intervals, bootstrapped over images",
    )
    print(f"kept in {out or checkpoint}")
