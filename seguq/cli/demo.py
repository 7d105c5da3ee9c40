"""``seguq demo``: the whole path on real images, from a folder of images to the list of what to label next."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from seguq.acquisition import Budget, Selection, TopK, select
from seguq.calibration import Calibrator, TemperatureScaling, cross_fit
from seguq.calibration.checkpoint import save_calibrator
from seguq.cli.common import make_estimator, pick_device, print_table, scalar
from seguq.cli.demo_report import Example, Figures, write_overview, write_report
from seguq.cli.parsing import run_function
from seguq.cli.predict import predict
from seguq.core.errors import UsageError
from seguq.core.files import write_json
from seguq.core.lightning import Callback, Trainer, quiet, seed_everything
from seguq.core.log import logger
from seguq.core.progress import ProgressLoader, progress
from seguq.data import SegmentationData, nuclei_mini, read_image, unpack_batch
from seguq.export import outline, to_rgb, write_png
from seguq.export.folder import mean_score, predicted_ids
from seguq.functional.ranking import area_under_roc
from seguq.inference import Estimator, UncertaintyMaps
from seguq.metrics import CalibrationError, ErrorDetection, MeanIoU, NegativeLogLikelihood
from seguq.regions import Grid, WholeImage, score
from seguq.task import SegmentationTask

_MARKER = "demo.json"
_ENCODER = "tu-tf_efficientnet_lite0"
_TOP = 10


def run(words: Sequence[str]) -> None:
    """Run the command."""
    run_function(demo, "demo", words)


def demo(
    out: str = "demo-out",
    steps: int = 160,
    samples: int = 8,
    regions: int = 40,
    seed: int = 0,
    images: int | None = None,
    device: str = "auto",
) -> None:
    """Train a small model on real images, and look at what it does not know.

    On nuclei-mini, which ships with seguq: a small network is trained with dropout, a temperature is fitted for one
    pass and for MC dropout, a pool of unlabeled images is searched for what the model knows least, and all of it is
    put into one page, OUT/report.html.

    Args:
        out: folder for the results; one of an earlier demo is replaced.
        steps: steps of training.
        samples: passes of MC dropout.
        regions: budget: regions to label next.
        seed: of training and sampling.
        images: use only so many images of each split, for a quick look.
        device: auto, cpu or cuda.
    """
    if steps < 1 or samples < 2 or regions < 1 or (images is not None and images < 2):
        raise UsageError("--steps and --regions must be at least 1, --samples and --images at least 2")
    folder = Path(out)
    if folder.exists() and not (folder / _MARKER).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{out} holds other files already: pass a new folder as --out")
    shutil.rmtree(folder, ignore_errors=True)
    write_json(folder / _MARKER, {"finished": False})
    times: dict[str, float] = {}
    place = pick_device(device)

    with _timed(times, "train"):
        task, data = _train(folder, steps, seed, images, place)
    with _timed(times, "calibrate"):
        # raw, so that before and after can be measured from the same passes
        deterministic = make_estimator("deterministic", task, calibrator=None)
        dropout = make_estimator("mc_dropout", task, samples=samples, seed=seed, calibrator=None)
        temperatures: dict[str, TemperatureScaling] = {}
        for est in (deterministic, dropout):
            loader = ProgressLoader(data.loader("val"), f"calibrate {est.tag}")
            temperatures[est.tag] = TemperatureScaling().fit(est.pooled(loader))
            save_calibrator(folder / "model.ckpt", temperatures[est.tag], est.tag)
    with _timed(times, "evaluate"):
        evaluations = {
            "one pass, test": _evaluate(deterministic, temperatures[deterministic.tag], data.loader("test"), "test"),
            "MC dropout, test": _evaluate(dropout, temperatures[dropout.tag], data.loader("test"), "test", keep=3),
            "one pass, stained": _evaluate(
                deterministic, temperatures[deterministic.tag], data.loader("ood"), "stained"
            ),
        }
        stained_sample = _evaluate(dropout, temperatures[dropout.tag], data.loader("ood", most=3), "stained", keep=3)
        own = _own_temperature(deterministic, data.loader("ood"), data.classes_count)
    with _timed(times, "search the pool"):
        pool = data.pool_folder(folder)
        predict(
            checkpoint=str(folder / "model.ckpt"),
            images=str(pool),
            out=str(folder / "pool"),
            samples=samples,
            seed=seed,
            device=device,
        )
        ids = predicted_ids(folder / "pool")
        stained = set(json.loads((data.root / "pool_stained.json").read_text())) & set(ids)
        selection, rankings, pool_maps = _search(folder, ids, regions, seed)
        found = {measure: _stained_found(values, ids, stained, seed) for measure, values in rankings.items()}
        _draw_selection(folder, pool, selection)

    with _timed(times, "report"):
        figures = Figures(
            evaluations={name: item.cells for name, item in evaluations.items()},
            diagrams={name: item.diagrams for name, item in evaluations.items()},
            own_temperature=own,
            auroc=evaluations["MC dropout, test"].auroc,
            found=found,
            temperatures={tag: item.temperature for tag, item in temperatures.items()},
            settings={"steps": steps, "samples": samples, "seed": seed, "encoder": _ENCODER, "architecture": "FPN"},
            times=times,
        )
        examples = evaluations["MC dropout, test"].examples + stained_sample.examples
        write_report(
            folder,
            figures,
            examples,
            data.class_colors,
            data.class_names,
            selection,
            rankings,
            ids,
            stained,
            pool_maps,
            pool,
        )
        write_overview(folder / "overview.png", examples, data.class_colors)
    write_json(folder / _MARKER, {"finished": True, **figures.as_dict()})
    _print(folder, figures, times)


@contextmanager
def _timed(times: dict[str, float], name: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    times[name] = time.perf_counter() - begin


class _StepBar(Callback):
    """A bar over the steps of a training whose epochs nobody counts."""

    def __init__(self, steps: int) -> None:
        self.bar = progress(range(steps), "train")

    def on_train_start(self, *_: object) -> None:
        """Show the bar."""
        next(self.bar, None)

    def on_train_batch_end(self, *_: object) -> None:
        """One step further; after the last one the bar ends."""
        next(self.bar, None)


class _Data:
    """The splits of nuclei-mini, all of each or the first few."""

    def __init__(self, task: SegmentationTask, images: int | None) -> None:
        self.root = nuclei_mini()
        self.images = images
        self.module = SegmentationData(
            self.root,
            batch_size=4,
            # crops of half the size would be quicker, but most of a small crop lies near its zero padding, and whole
            # images then look unlike what batch normalization has seen: mean IoU .82 instead of .85
            crop=192,
            augmentation="d4",
            num_workers=0,
            mean=task.normalization.mean,
            std=task.normalization.std,
        )
        self.class_names = self.module.classes.names
        self.class_colors = self.module.classes.colors
        self.classes_count = len(self.class_names)

    def loader(self, split: str, most: int | None = None) -> DataLoader[dict[str, object]]:
        """Batches of a split, in order."""
        data = self.module.folder(split)
        limits = [limit for limit in (most, self.images) if limit is not None]
        count = min([len(data), *limits])
        return DataLoader(Subset(data, range(count)), batch_size=4)

    def pool_folder(self, out: Path) -> Path:
        """The folder of pool images: the one of the data set, or a part of it copied for a quick look."""
        pool = self.root / "images" / "pool"
        if self.images is None:
            return pool
        part = out / "pool-images"
        part.mkdir()
        for path in sorted(pool.iterdir())[: self.images]:
            shutil.copy(path, part)
        return part


def _train(
    out: Path, steps: int, seed: int, images: int | None, device: torch.device
) -> tuple[SegmentationTask, _Data]:
    quiet()
    seed_everything(seed, workers=True, verbose=False)
    task = SegmentationTask("FPN", _ENCODER, classes=2, encoder_weights=None, dropout=0.2, lr=1e-3)
    task = task.to(memory_format=torch.channels_last)  # faster on the CPU; the results are the same
    data = _Data(task, images)
    trainer = Trainer(
        max_steps=steps,
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        callbacks=[_StepBar(steps)],
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    logger.info("training %s with %s from random weights, %d steps", "FPN", _ENCODER, steps)
    trainer.fit(task, datamodule=data.module)
    if trainer.interrupted:
        raise KeyboardInterrupt
    trainer.save_checkpoint(out / "model.ckpt")
    return SegmentationTask.load(out / "model.ckpt").to(device, memory_format=torch.channels_last), data


@dataclass
class _Evaluation:
    """What was measured on one split with one estimator."""

    cells: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    auroc: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    diagrams: dict[str, CalibrationError] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)


def _triple(value: Tensor, interval: tuple[Tensor, Tensor]) -> tuple[float, float, float]:
    return float(value), float(interval[0]), float(interval[1])


def _evaluate(
    est: Estimator, calibrator: Calibrator, loader: DataLoader[dict[str, object]], split: str, keep: int = 0
) -> _Evaluation:
    """Measure an estimator on labeled images that neither the network nor the calibrator has seen."""
    overlap = MeanIoU(2)
    error = {"before": CalibrationError(2), "after": CalibrationError(2)}
    loss = {"before": NegativeLogLikelihood(2), "after": NegativeLogLikelihood(2)}
    ranking = {measure: ErrorDetection() for measure in est.measures}
    out = _Evaluation()
    for batch in map(unpack_batch, progress(loader, f"{est.tag} on {split}")):
        assert batch.mask is not None
        maps = est(batch.image, batch.image_id).cpu()
        probs = {"before": maps.probs}
        # for a softmax the logarithm of the probabilities is as good as the logits
        logits = maps.probs.clamp_min(torch.finfo(maps.probs.dtype).tiny).log()
        probs["after"] = calibrator.cpu()(logits).softmax(1)
        overlap.update(maps.prediction, batch.mask, group=maps.image_ids)
        for when in ("before", "after"):
            error[when].update(probs[when], batch.mask, group=maps.image_ids)
            loss[when].update(probs[when], batch.mask, group=maps.image_ids)
        wrong = (maps.prediction != batch.mask).long().masked_fill(batch.mask == 255, 255)
        for measure, metric in ranking.items():
            metric.update(maps[measure], wrong, group=maps.image_ids)
        if keep:
            out.examples += [Example(one, mask, split) for one, mask in zip(maps.split(), batch.mask, strict=True)]
    out.cells["mean IoU"] = _figure(overlap)
    for when in ("before", "after"):
        out.cells[f"ECE {when}"] = _figure(error[when])
        out.cells[f"NLL {when}"] = _figure(loss[when])
    out.cells["ECE change"] = _triple(*error["after"].compute_difference(error["before"]))
    out.cells["NLL change"] = _triple(*loss["after"].compute_difference(loss["before"]))
    out.diagrams = error
    for measure, metric in ranking.items():
        value, interval = metric.compute(), metric.compute_interval()
        assert isinstance(value, dict) and isinstance(interval, dict)
        out.auroc[measure] = _triple(value["auroc"], interval["auroc"])
    # the most uncertain first: what a person should look at
    out.examples.sort(key=lambda item: -float(mean_score(item.maps, "predictive_entropy")[0]))
    out.examples = out.examples[:keep]
    return out


def _figure(metric: MeanIoU | CalibrationError | NegativeLogLikelihood) -> tuple[float, float, float]:
    interval = metric.compute_interval()
    assert isinstance(interval, tuple)
    return _triple(scalar(metric.compute()), interval)


def _own_temperature(
    est: Estimator, loader: DataLoader[dict[str, object]], classes: int
) -> dict[str, tuple[float, float, float]]:
    """What a temperature is worth that is fitted on images of the same kind: out of sample, in two folds."""
    before, after = CalibrationError(classes), CalibrationError(classes)
    for batch in cross_fit(TemperatureScaling, est.pooled(ProgressLoader(loader, "a temperature for stained images"))):
        ids = [str(number) for number in batch.numbers]
        before.update(batch.logits.softmax(1), batch.target, group=ids)
        after.update(batch.calibrated.softmax(1), batch.target, group=ids)
    return {"ECE after": _figure(after), "ECE change": _triple(*after.compute_difference(before))}


def _search(
    folder: Path, ids: list[str], regions: int, seed: int
) -> tuple[Selection, dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]], dict[str, UncertaintyMaps]]:
    """Score regions and whole images of the pool, and select within the budget."""
    maps = {image_id: UncertaintyMaps.load(folder / "pool" / "maps" / f"{image_id}.npz") for image_id in ids}
    table = score(maps.values(), Grid(32), by="mutual_information")
    table.save(folder / "regions.parquet")
    score(maps.values(), WholeImage(), by="predictive_entropy").save(folder / "images.parquet")
    selection = select(table, budget=Budget(regions=regions), strategy=TopK(), seed=seed)
    selection.save(folder / "selection.json")
    names = ("predictive_entropy", "mutual_information")
    rankings = {name: np.concatenate([mean_score(item, name) for item in maps.values()]) for name in names}
    return selection, rankings, maps


def _stained_found(
    scores: np.ndarray[tuple[int], np.dtype[np.float64]], ids: list[str], stained: set[str], seed: int
) -> dict[str, tuple[float, float, float]]:
    """How many of the most uncertain images are stained ones, and how well all are ranked; intervals over images."""
    truth = np.array([image_id in stained for image_id in ids])
    top = min(_TOP, len(ids))

    def figures(rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> tuple[float, float]:
        values, kind = scores[rows], truth[rows]
        count = float(kind[np.argsort(-values, kind="stable")[:top]].sum())
        order = np.unique(values, return_inverse=True)[1]
        bins = order.max() + 1
        negatives, positives = (np.bincount(order[kind == flag], minlength=bins) for flag in (False, True))
        return count, float(area_under_roc(torch.tensor(negatives).double(), torch.tensor(positives).double()))

    generator = np.random.default_rng(seed)
    draws = np.array([figures(generator.integers(0, len(ids), len(ids))) for _ in range(1000)])
    low, high = np.nanpercentile(draws, [2.5, 97.5], axis=0) if len(stained) else (np.full(2, np.nan),) * 2
    count, auroc = figures(np.arange(len(ids)))
    return {
        "stained among the top": (count, float(low[0]), float(high[0])),
        "AUROC for stained": (auroc, float(low[1]), float(high[1])),
        "top": (float(top), float(top), float(top)),
        "stained": (float(len(stained)),) * 3,
    }


def _draw_selection(folder: Path, pool: Path, selection: Selection) -> None:
    for image_id in selection.image_ids:
        mine = [row for row in selection.rows if row["image_id"] == image_id]
        boxes = [[row[name] for name in ("y0", "x0", "y1", "x1")] for row in mine]
        shown = to_rgb(read_image(pool / f"{image_id}.jpg"))
        write_png(
            folder / "selection" / f"{image_id}.png", outline(shown, boxes, labels=[str(r["rank"]) for r in mine])
        )


def _print(folder: Path, figures: Figures, times: dict[str, float]) -> None:
    rows = [[name, value] for name, value in figures.headline()]
    print()
    print_table(
        "seguq demo: what the model knows of itself",
        ["figure", "value [95 % interval over images]"],
        rows,
        "figures after calibration are of images that the temperature was not fitted on",
    )
    spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in times.items())
    print(f"time: {sum(times.values()):.0f} s ({spent})")
    for what, name in (
        ("open", "report.html"),
        ("heat maps", "pool/heatmaps"),
        ("regions", "regions.parquet"),
        ("to label next", "selection.json"),
        ("checkpoint", "model.ckpt"),
    ):
        print(f"{what + ':':<15}{folder / name}")
