"""``seguq predict``: uncertainty maps and pictures for any folder of images; started again, it goes on."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import DataLoader

from seguq.cli.common import pick_device, require_folder
from seguq.cli.estimators import EXAMPLES, asked, images_for_statistics, make_estimator, require_samples_used
from seguq.cli.model import Size, image_size, load_model
from seguq.cli.parsing import run_function
from seguq.core.errors import SeguqError, UsageError
from seguq.core.files import file_sha256
from seguq.core.locks import Lock
from seguq.core.log import logger
from seguq.core.out_of_memory import memory_for
from seguq.core.progress import progress
from seguq.data import SegmentationFolder, check_files, unpack_batch
from seguq.data.reading import require_scale
from seguq.data.transforms import evaluation_transform
from seguq.export import ScaleFinder
from seguq.inference import Estimator, UncertaintyMaps
from seguq.inference.measures import explained, is_map, measures_of, scored_by_default, shown_by_default
from seguq.store import PredictionFolder
from seguq.store.folder import predicted_ids
from seguq.store.writer import BackgroundWriter, writing


def run(words: Sequence[str]) -> None:
    """Run the command."""
    epilog = f"{EXAMPLES}\n\nmeasures:\n{explained()}"
    run_function(predict, "predict", words, epilog=epilog, check=require_samples_used)


def predict(
    checkpoint: str,
    images: str,
    out: str,
    estimator: Estimator | str = "mc_dropout",
    samples: int | None = None,
    members: list[str] | None = None,
    bn_images: str | None = None,
    seed: int | None = None,
    measures: list[str] | None = None,
    calibrated: bool = True,
    pictures: bool = True,
    save_probs: bool = False,
    features: bool = False,
    size: Size = "auto",
    batch_size: int = 4,
    num_workers: int = 0,
    module: str | None = None,
    task: Literal["multiclass", "binary", "multilabel"] | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    device: str = "auto",
    scale: float | None = None,
) -> None:
    """Write uncertainty maps and pictures for a folder of images.

    No masks and no training data are needed. Started again with the same settings, it goes on where it stopped; a
    folder that was made with another checkpoint or other settings is refused. In OUT: maps/ID.npz (float32 maps),
    predictions/ID.png (class indices), heatmaps/MEASURE/ID.png and overlays/MEASURE/ID.png, all on one color scale.

    Args:
        checkpoint: checkpoint of `seguq fit`.
        images: folder of images (jpg, png, tif, bmp, webp), of any depth and size.
        out: folder for the results.
        estimator: mc_dropout, deterministic (one pass), deep_ensemble, swag, test_time_augmentation, sliding_window, or
            one of your own by its import path; with its options after a dot (--estimator sliding_window
            --estimator.window 512), among them the estimator inside of it (--estimator.inner mc_dropout).
        samples: passes of an estimator, or of the one inside of it; by default 20, of swag 30.
        members: further checkpoints of a deep_ensemble.
        bn_images: for swag, folder of training images, by which batch statistics are renewed (256 are enough); the one
            that its calibrator was fitted with.
        seed: of what an estimator draws, by default 0; an image has the same maps whatever is predicted beside it.
        measures: maps to write, as [predictive_entropy, mutual_information]; by default predictive_entropy, where there
            are two samples or more mutual_information, and smallest_margin, by which seguq score ranks regions. Those
            of your own by their import paths. A score of whole images (pairwise_dice) is kept in maps/ID.npz, and not
            drawn.
        calibrated: apply the temperature that the checkpoint has for this estimator.
        pictures: draw heat maps and overlays.
        save_probs: keep the class probabilities in the maps, too.
        features: keep the last map of the network's encoder in the maps, too (float16, at its own size), by which
            regions that look alike are known.
        size: pixels, or [height, width], that images are resized to for the network, or null for images as they are;
            auto: as in training. Maps always have the size of their images.
        batch_size: images of one size that go through the network together.
        num_workers: processes that read images ahead; 0: none.
        module: FILE.py:NAME of a LightningModule, nn.Module, or a function that makes one, for a checkpoint of your own
            training; it is made with the hyperparameters in the checkpoint. The file is run.
        task: what the logits of a --module are, multiclass, binary or multilabel; by default as its attribute task
            says, or multiclass.
        mean: mean of each channel that the images of a --module are normalized with, of pixels from 0 to 1; by default
            as its attribute normalization = (mean, std) says, or the checkpoint of a training with SegmentationData.
        std: deviation of each channel.
        device: auto, cpu or cuda.
        scale: value of 16-bit and float files that stands for 1 (4095 for 12 bits in files of 16); by default as in
            training, or else by the type of the file.
    """
    require_scale(scale)
    folder = require_folder(images, "--images")
    target = Path(out).resolve()
    if target == folder.resolve() or folder.resolve() in target.parents:
        raise UsageError(
            f"--out {out} lies within --images {images}: its pictures would be taken for images to predict"
        )
    if target.exists() and not target.is_dir():
        raise UsageError(f"--out {out} is a file, not a folder")
    if batch_size < 1:
        raise UsageError(f"--batch_size must be at least 1, but is {batch_size}")
    if num_workers < 0:
        raise UsageError(f"--num_workers must be at least 0, but is {num_workers}")
    model = load_model(checkpoint, module, pick_device(device), task=task, mean=mean, std=std)
    resized = image_size(size, model.trained_on)
    scale = model.scale if scale is None else scale
    est = make_estimator(
        estimator,
        model,
        checkpoint,
        samples=samples,
        seed=seed,
        members=members,
        bn_batches=None if bn_images is None else images_for_statistics(bn_images, model, resized, scale),
        measures=measures,
        calibrator="auto" if calibrated else None,
        features=features,
    )
    drawing: Any = asked(est)
    samples, seed = getattr(drawing, "number_of_samples", None), getattr(drawing, "seed", None)
    est.measures = _measures(est.measures, bool(measures), samples)
    names = list(est.measures)
    transform = evaluation_transform(model.normalization, resized)
    data = SegmentationFolder(folder, transform=transform, channels=model.channels, scale=scale)
    sizes = check_files(data.images, channels=model.channels, scale=scale, folder=folder)
    settings = {
        "checkpoint": [file_sha256(path) for path in [checkpoint, *(members or [])]],
        "images": str(folder.resolve()),
        "estimator": est.tag,
        "samples": samples,
        "seed": seed,
        "measures": names,
        "calibrated": calibrated,
        "save_probs": save_probs,
        **({"features": True} if est.features else {}),
        "size": None if resized is None else list(resized),
        **({} if scale is None else {"scale": scale}),
        **({} if bn_images is None else {"bn_images": str(Path(bn_images).resolve())}),
    }
    if module is not None:
        settings |= {"task": model.task, "normalization": [list(part) for part in model.normalization]}
    with writing("seguq predict"):
        target.mkdir(parents=True, exist_ok=True)
    with Lock(target):  # another run would take the files that this one has begun for leftovers
        _fill(out, settings, est, data, sizes, batch_size, num_workers, pictures)


def _measures(names: tuple[str, ...], asked_for: bool, samples: int | None) -> tuple[str, ...]:
    """What is written: what was asked for, or what is worth a picture and what regions are scored by."""
    # one sample disagrees with none
    of_samples = set(measures_of("samples")) & set(names) if samples == 1 else set()
    if not asked_for:
        shown = shown_by_default([name for name in names if name not in of_samples])
        return tuple(dict.fromkeys((*shown, scored_by_default(names))))
    if samples == 1 and "pairwise_dice" in names:
        raise UsageError("pairwise_dice compares samples, but --samples is 1: pass --samples 2 or more")
    flat = [name for name in names if name in of_samples & {"mutual_information", "variance", "variation_ratio"}]
    if flat:
        warnings.warn(f"of one sample {', '.join(flat)} is 0 everywhere: pass --samples 2 or more", stacklevel=2)
    return names


def _fill(
    out: str,
    settings: dict[str, Any],
    est: Estimator,
    data: SegmentationFolder,
    sizes: Mapping[str, tuple[int, int]],
    batch_size: int,
    num_workers: int,
    pictures: bool,
) -> None:
    """Predict and draw what is missing; ``sizes`` are those of the images, whatever the network is given."""
    results = PredictionFolder(out, settings)
    names, save_probs = settings["measures"], settings["save_probs"]
    todo = [image_id for image_id, path in data.images.items() if not results.is_done(image_id, path)]
    gone = set(predicted_ids(results.dir)) - set(data.images)
    if gone:
        raise SeguqError(
            f"{out} holds maps of {len(gone)} images that are not in {settings['images']} any more, such as "
            f"{min(gone)!r}: remove them, or pass another --out"
        )
    finished = len(data) - len(todo)
    if finished:
        logger.info("%d of %d images were done before", finished, len(data))
    drawn = [name for name in names if is_map(name)]
    finders, seen = {measure: ScaleFinder() for measure in drawn}, set[str]()

    def look(maps: UncertaintyMaps) -> None:
        for measure, finder in finders.items() if pictures else ():
            finder.add(maps[measure])
        seen.update(maps.image_ids)

    if todo or not results.complete or not results.images >= set(data.ids):
        results.expect(data.ids)
    if todo:
        save = functools.partial(results.save, probs=save_probs)
        alike = dict.fromkeys(sizes, (0, 0)) if settings["size"] else sizes
        _predict(est, data, _batches(todo, data.ids, alike, batch_size), sizes, look, save, num_workers, finished)
    if not results.complete:
        results.finish()
    if pictures:
        scales = results.scales(data.ids, drawn, changed=bool(todo), finders=finders, seen=seen)
        for _ in progress(results.draw_all(data.images, scales), "drawing", total=len(data)):
            pass
    logger.info("%d images: maps%s in %s", len(data), " and pictures" if pictures else "", out)


def _predict(
    est: Estimator,
    data: SegmentationFolder,
    batches: list[list[int]],
    sizes: Mapping[str, tuple[int, int]],
    look: Callable[[UncertaintyMaps], None],
    save: Callable[[UncertaintyMaps], None],
    num_workers: int,
    finished: int,
) -> None:
    loader = DataLoader(data, batch_sampler=batches, num_workers=num_workers)
    smaller = (
        "pass a smaller --batch_size, a --size, or windows one after the other (--estimator SlidingWindow "
        "--estimator.window 512)"
    )

    def one_by_one() -> Iterator[str]:
        # the network does not wait for files; what was not written when a run is killed is predicted again.
        # Nothing but files on that thread: what torch computes there takes the processors from the network
        with (
            memory_for("the maps", smaller) as need,
            BackgroundWriter("seguq predict") as writer,
        ):
            loaded = iter(loader)
            for rows in batches:
                need.what = _in_words(data, rows, sizes)
                batch = unpack_batch(next(loaded))
                maps = est(batch.image, batch.image_id).cpu()
                maps.require_finite()
                for one in maps.split():
                    shown = one.resized(sizes[one.image_ids[0]])
                    look(shown)
                    writer.submit(functools.partial(save, shown), shown.nbytes)
                yield from batch.image_id or ()

    for _ in progress(one_by_one(), est.tag, total=len(data), done=finished):
        pass


def _in_words(data: SegmentationFolder, rows: Sequence[int], sizes: Mapping[str, tuple[int, int]]) -> str:
    """The images of a batch, such as ``"image 'a' (9000 x 9000)"`` or ``"4 images such as 'a' (9000 x 9000)"``."""
    first = data.ids[rows[0]]
    height, width = sizes[first]
    shown = f"{first!r} ({height} x {width})"
    return f"image {shown}" if len(rows) == 1 else f"a batch of {len(rows)} images, such as {shown}"


def _batches(
    todo: Sequence[str], ids: Sequence[str], sizes: Mapping[str, tuple[int, int]], batch_size: int
) -> list[list[int]]:
    """Batches of neighbors of the same size: images of other sizes cannot be stacked."""
    position = {image_id: i for i, image_id in enumerate(ids)}
    batches: list[list[int]] = []
    size = None
    for image_id in todo:
        if not batches or sizes[image_id] != size or len(batches[-1]) == batch_size:
            batches.append([])
            size = sizes[image_id]
        batches[-1].append(position[image_id])
    return batches
