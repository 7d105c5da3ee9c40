"""``seguq demo``: the whole path on real images, from a folder of images to the list of what to label next."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset

from seguq.acquisition import Budget, TopK, select
from seguq.calibration.checkpoint import save_calibrator
from seguq.calibration.temperature import TemperatureScaling
from seguq.cli.common import pick_device, print_table
from seguq.cli.parsing import run_function
from seguq.cli.predict import predict
from seguq.cli.sheets import draw_selection
from seguq.core.errors import UsageError
from seguq.core.files import TEMPORARY_PREFIX, write_json
from seguq.core.lightning import Callback, Trainer, WholeCheckpointIO, quiet, seed_everything
from seguq.core.locks import Lock
from seguq.core.log import logger
from seguq.core.progress import ProgressLoader, progress
from seguq.core.reading import listing, read_json, reading
from seguq.data import SegmentationData, list_images, nuclei_mini
from seguq.demo.gallery import write_overview
from seguq.demo.measure import evaluate, own_temperature, stained_found
from seguq.demo.report import Findings, Pool, write_report
from seguq.inference import Deterministic, MCDropout, UncertaintyMaps
from seguq.regions import Grid, WholeImage, score
from seguq.store import PredictionFolder
from seguq.store.folder import mean_score, predicted_ids, read_run
from seguq.store.listing import OwnFiles
from seguq.task import SegmentationTask

_MARKER = "demo.json"
_OURS = {"written_by": "seguq demo"}
_FILES = (_MARKER, "model.ckpt", "regions.parquet", "images.parquet", "selection.json", "report.html", "overview.png")
_ENCODER = "tu-tf_efficientnet_lite0"


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
    if not 0 <= seed < 2**32:
        raise UsageError(f"--seed must be from 0 to {2**32 - 1}, but is {seed}")
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{out} is a file: pass a new folder as --out")
    place = pick_device(device)  # before anything is removed
    earlier = _earlier(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with Lock(folder):
        _remove(folder, earlier)
        _run(folder, steps, samples, regions, seed, images, device, place)


def _run(
    folder: Path,
    steps: int,
    samples: int,
    regions: int,
    seed: int,
    images: int | None,
    device: str,
    place: torch.device,
) -> None:
    """Do all of it, in a folder that is empty."""
    write_json(folder / _MARKER, {**_OURS, "finished": False})
    times: dict[str, float] = {}

    with _timed(times, "train"):
        task, data = _train(folder, steps, seed, images, place)
    with _timed(times, "calibrate"):
        # raw, so that before and after can be measured from the same passes
        deterministic = Deterministic(task, task=task.task, calibrator=None)
        dropout = MCDropout(task, samples=samples, seed=seed, task=task.task, calibrator=None)
        temperatures: dict[str, TemperatureScaling] = {}
        for est in (deterministic, dropout):
            loader = ProgressLoader(data.loader("val"), f"calibrate {est.tag}")
            temperatures[est.tag] = TemperatureScaling().fit(est.pooled(loader))
            save_calibrator(folder / "model.ckpt", temperatures[est.tag], est.tag)
    with _timed(times, "evaluate"):
        evaluations = {
            "one pass, test": evaluate(deterministic, temperatures[deterministic.tag], data.loader("test"), "test"),
            "MC dropout, test": evaluate(dropout, temperatures[dropout.tag], data.loader("test"), "test", keep=3),
            "one pass, stained": evaluate(
                deterministic, temperatures[deterministic.tag], data.loader("ood"), "stained"
            ),
        }
        stained_sample = evaluate(dropout, temperatures[dropout.tag], data.loader("ood", most=3), "stained", keep=3)
        own = own_temperature(deterministic, data.loader("ood"), len(data.classes))
    with _timed(times, "search the pool"):
        images_folder = data.pool_folder(folder)
        predict(
            checkpoint=str(folder / "model.ckpt"),
            images=str(images_folder),
            out=str(folder / "pool"),
            samples=samples,
            seed=seed,
            device=device,
        )
        pool = _search(folder, images_folder, data.root, regions, seed, data.classes.names)
        draw_selection(pool.selection, list_images(images_folder), folder / "selection")

    with _timed(times, "report"):
        findings = Findings(
            evaluations={name: item.cells for name, item in evaluations.items()},
            diagrams={name: item.diagrams for name, item in evaluations.items()},
            own_temperature=own,
            auroc=evaluations["MC dropout, test"].auroc,
            found={name: stained_found(values, pool.ids, pool.stained, seed) for name, values in pool.scores.items()},
            temperatures={tag: item.temperature for tag, item in temperatures.items()},
            settings={"steps": steps, "samples": samples, "seed": seed, "encoder": _ENCODER, "architecture": "FPN"},
            times=times,
            examples=evaluations["MC dropout, test"].examples + stained_sample.examples,
            classes=data.classes,
            pool=pool,
        )
        write_report(folder, findings)
        write_overview(folder / "overview.png", findings.examples, data.classes.colors)
    write_json(folder / _MARKER, {**_OURS, "finished": True, **findings.as_dict()})
    _print(folder, findings)


def _earlier(folder: Path) -> list[Path]:
    """The files of an earlier demo, all that the folder holds; the marker of it comes last.

    Raises:
        UsageError: if the folder holds anything else, naming it.
    """
    found = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()] if folder.is_dir() else []
    if not found:
        return []
    marker = folder / _MARKER
    try:
        content = read_json(marker) if marker.is_file() else {}
    except (ValueError, RecursionError):
        content = {}
    own = (
        {folder / name for name in _FILES} if isinstance(content, dict) and content.items() >= _OURS.items() else set()
    )
    if own:
        pool, pictures = folder / "pool", OwnFiles(folder / "selection")
        if (pool / "run.json").is_file():
            own.update(PredictionFolder(pool, read_run(pool)["settings"], clean=False).own_files())
        own.update(pictures.folder / name for name in pictures.listed() if pictures.is_own(name))
        own.add(pictures.list)
        own.update(folder / "pool-images" / path.name for path in (nuclei_mini() / "images" / "pool").iterdir())
    others = [path for path in found if path not in own and not path.name.startswith(TEMPORARY_PREFIX)]
    if others:
        raise UsageError(
            f"{folder} holds files that no demo has written, such as {min(others)}: move them away, or pass a new "
            "folder as --out"
        )
    return sorted(found, key=lambda path: path == marker)


def _remove(folder: Path, files: list[Path]) -> None:
    """Remove files, and the folders that are empty then."""
    for file in files:
        file.unlink(missing_ok=True)
        for parent in file.parents[: len(file.relative_to(folder).parts) - 1]:
            if any(parent.iterdir()):
                break
            parent.rmdir()


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
        self.classes = self.module.classes

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
        plugins=[WholeCheckpointIO()],
    )
    logger.info("training %s with %s from random weights, %d steps", "FPN", _ENCODER, steps)
    trainer.fit(task, datamodule=data.module)
    if trainer.interrupted:
        raise KeyboardInterrupt
    trainer.save_checkpoint(out / "model.ckpt")
    return SegmentationTask.load(out / "model.ckpt").to(device, memory_format=torch.channels_last), data


def _search(folder: Path, images: Path, root: Path, regions: int, seed: int, classes: Sequence[str]) -> Pool:
    """Score regions and whole images of the pool, and select within the budget."""
    ids = predicted_ids(folder / "pool")
    maps = {image_id: UncertaintyMaps.load(folder / "pool" / "maps" / f"{image_id}.npz") for image_id in ids}
    table = score(maps.values(), Grid(32), by="smallest_margin")
    table.save(folder / "regions.parquet")
    score(maps.values(), WholeImage(), by="predictive_entropy").save(folder / "images.parquet")
    selection = select(table, budget=Budget(regions=regions), seed=seed, classes=classes)
    highest = select(table, budget=Budget(regions=regions), strategy=TopK(), seed=seed, classes=classes)
    selection.save(folder / "selection.json")
    names = ("predictive_entropy", "mutual_information")
    scores = {name: np.concatenate([mean_score(item, name) for item in maps.values()]) for name in names}
    with reading(root / "pool_stained.json"):
        stained = set(listing(read_json(root / "pool_stained.json"), "its content")) & set(ids)
    return Pool(images, ids, maps, scores, selection, highest, stained)


def _print(folder: Path, findings: Findings) -> None:
    rows, times = [[name, value] for name, value in findings.headline()], findings.times
    print()
    print_table(
        "seguq demo: what the model knows of itself",
        ["what", "value [95 % interval over images]"],
        rows,
        "values after calibration are of images that the temperature was not fitted on",
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
