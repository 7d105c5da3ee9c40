"""Heat maps on disk, for a whole folder of predictions or for the same few images in every validation."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from seguq.calibration import Calibrator
from seguq.callbacks.agreement import together
from seguq.callbacks.base import PREFIX, EstimatorCallback, require_own_folder
from seguq.callbacks.batches import BatchForward, images_in, loaders_of
from seguq.callbacks.passes import Passes, Step
from seguq.callbacks.run import Run
from seguq.core.checks import require_count, require_plain_name
from seguq.core.errors import SeguqError, UsageError
from seguq.core.files import write_json
from seguq.core.log import logger, say_once
from seguq.data.normalization import Normalization
from seguq.export.images import to_rgb, write_png
from seguq.export.scale import Scale, ScaleFinder, read_scales
from seguq.functional.logits import Task
from seguq.inference import Estimator, UncertaintyMaps
from seguq.inference.measures import Measure, is_map, named_measures, shown_by_default
from seguq.store import PredictionFolder
from seguq.store.folder import predicted_ids
from seguq.store.writer import BackgroundWriter, writing
from seguq.weights import weights_sha256

_TWICE = "HeatmapWriter: two images have the id {!r}: give each one of its own"


class HeatmapWriter(EstimatorCallback):
    """Writes uncertainty maps and pictures of them.

    In ``predict`` of every image, into ``DIR/predict``; in validation and test of a few images, spread over the data
    set and the same every time, into ``DIR/val/epoch=3-step=120`` (``DIR/test/...``), so that a person can watch them
    change: the colors mean what they meant in the first validation. Each of these folders holds ``maps/ID.npz``
    (float32), ``predictions/ID.png`` (class indices), ``images/ID.png``, ``heatmaps/MEASURE/ID.png``,
    ``overlays/MEASURE/ID.png`` and ``scale.json``, and is one that `seguq score` reads. Maps are written in the
    background while the network runs; pictures are drawn at the end of the run, when the scale of their colors is
    known. Volumes have maps alone: pictures are of 2-D images only. Where validation or test has several loaders,
    their number is put before the ids: ``maps/dataloader_idx_1/ID.npz``.

    A module without a ``predict_step`` of its own gets one for the time of a ``predict``, which returns the ids of a
    batch's images. Pass ``return_predictions=False`` where a module's own returns something large.

    Args:
        dir: the folder.
        measures: names of the measures; None: ``predictive_entropy`` and, where there are samples,
            ``mutual_information``, and the scores of whole images that the estimator was made for. These, and features
            of an estimator that has some, are in ``maps/ID.npz``, and not drawn.
        every_n_epochs: in a training, write in the first validation epoch, in every n-th after it, and in the last.
        images: number of images of each loader in validation and test.
        estimator: as in `EstimatorCallback`.
        calibrator: as in `EstimatorCallback`; in the validations of a training none is applied.
        batch_forward: as in `EstimatorCallback`.
        task: as in `EstimatorCallback`.
        copy_images: whether to keep pictures of the images, and the overlays that show them, too.
        prefix: where given, images are called ``PREFIX000000``, ``PREFIX000001``, ... by their place in the data, in
            place of the ids that the batches bring, which may say whose images they are; ``"case-"``, for example.
        overwrite: replace predictions in ``DIR/predict`` that are of other weights or settings, or of images that
            cannot be told from these because neither go by ids of their own, instead of refusing to.

    Raises:
        SeguqError: for wrong arguments, image ids that cannot be file names or come twice, or files that cannot be
            written.
        UsageError: if ``DIR/predict`` holds something else, or predictions that are not to be replaced.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[HeatmapWriter("heat")], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        dir: str | os.PathLike[str],
        measures: Sequence[str | Measure] | None = None,
        every_n_epochs: int = 1,
        images: int = 8,
        estimator: Estimator | str | None = None,
        calibrator: Calibrator | Literal["auto"] | None = "auto",
        batch_forward: BatchForward | None = None,
        task: Task | None = None,
        copy_images: bool = True,
        prefix: str | None = None,
        overwrite: bool = False,
    ) -> None:
        super().__init__(estimator, calibrator, batch_forward, task, every_n_epochs)
        require_count("images", images)
        if prefix is not None:
            require_plain_name("prefix", f"{prefix}0")
        self.dir = Path(dir)
        self.measures = named_measures(measures)
        self.images = images
        self.copy_images = copy_images
        self.prefix = prefix
        self.overwrite = overwrite

    def start(self, trainer: Any, module: Any, stage: str, passes: Passes) -> Run:
        """An epoch begins."""
        require_own_folder(self, trainer)
        folder = self.dir / PREFIX[stage]
        first = self.hold(trainer, module, folder)
        if stage != "predict" and first:
            together(trainer, module, lambda: _require_own_scales(trainer, folder / "scale.json"), first_only=True)
        return _Writing(self, trainer, module, stage, passes)


class _Writing(Run):
    """One epoch: maps of its images in a folder, and when the scale of their colors is known, their pictures."""

    callback: HeatmapWriter

    def __init__(self, *run: Any) -> None:
        super().__init__(*run)
        measures = self.passes.estimator.measures
        scores = tuple(name for name in measures if not is_map(name))
        self.measures = self.passes.want(self.callback.measures or (*shown_by_default(measures), *scores))
        self.names = tuple(filter(is_map, self.measures))  # what is drawn
        known = getattr(self.module, "normalization", None)
        self.normalization = known if isinstance(known, Normalization) else None
        self.writer = BackgroundWriter("HeatmapWriter")
        self.chosen: dict[int, set[int]] = {}  # positions of the images that are shown, by loader
        self.finders = {name: ScaleFinder() for name in self.names}
        self.written: dict[str, None] = {}  # in order
        self.earlier: list[str] = []  # ids that a prediction has to draw again if the scale changes
        self.numbered = False
        self.folder = self._make_folder()
        earlier = torch.tensor(float(len(self.earlier)), device=self.module.device)
        self.any_earlier = bool(self.trainer.strategy.reduce(earlier, reduce_op="sum"))  # on whatever process

    def _make_folder(self) -> PredictionFolder:
        trainer, est = self.trainer, self.passes.estimator
        settings: dict[str, Any] = {
            "estimator": est.tag,
            "samples": getattr(est, "number_of_samples", None),
            "seed": getattr(est, "seed", None),
            "measures": list(self.measures),
            **({} if not est.features else {"features": True}),
            "calibrated": self.calibrator is not None,
            **({} if self.callback.copy_images else {"copy_images": False}),
            **({} if self.callback.prefix is None else {"prefix": self.callback.prefix}),
        }
        folder, overwrite = self.callback.dir / PREFIX[self.stage], self.callback.overwrite
        if self.stage == "predict":
            settings["weights"] = "+".join(map(weights_sha256, est.models))
        else:  # the time is in its name
            folder = folder / f"epoch={trainer.current_epoch}-step={trainer.global_step}"
            overwrite = True
        # the first before the others: it may have to clean up what a killed run has left
        together(trainer, self.module, lambda: self._prepare(folder, settings, overwrite), first_only=True)
        return PredictionFolder(folder, settings, clean=False, process=trainer.global_rank)

    def _prepare(self, path: Path, settings: dict[str, Any], overwrite: bool) -> None:
        with writing("HeatmapWriter"):
            folder = PredictionFolder(path, settings, overwrite=overwrite)
        if self.stage != "predict":  # what an earlier training has left may show other images
            folder.clear()
            return
        self.earlier = [image_id for image_id in predicted_ids(path) if image_id in folder.images]
        for maps in folder.stream(self.earlier):
            self._find_scale(maps)

    def wants(self, dataloader: int) -> bool:
        places = self.passes.watch.positions
        return self.stage == "predict" or not places or bool(self._of(dataloader) & set(places))

    def _of(self, dataloader: int) -> set[int]:
        """The positions of the images of a loader that are shown: spread evenly, if its length is known."""
        if dataloader not in self.chosen:
            total, most = images_in(self.trainer, self.stage, dataloader), self.callback.images
            count = most if total is None else min(most, total)
            self.chosen[dataloader] = {i if total is None else i * total // count for i in range(count)}
        return self.chosen[dataloader]

    def look(self, step: Step, dataloader: int) -> None:
        predicts, watch = self.stage == "predict", self.passes.watch
        maps = step.maps_of(self.calibrator).cpu()
        flat = len(maps.spatial) == 2
        if not predicts and not watch.in_order:
            say_once("HeatmapWriter: the loader is shuffled, so that each validation shows other images")
        if not flat:
            say_once("HeatmapWriter: pictures are of 2-D images only; volumes have maps alone")
        elif step.image is not None and not step.fits:
            say_once("HeatmapWriter: the maps are not of the images' size, so that no picture of an image is kept")
        if predicts and (watch.numbered or self.callback.prefix is not None):
            self._require_no_others()
        shown = [i for i, n in enumerate(step.positions) if predicts or n in self._of(dataloader)]
        parts = maps.split()
        for i in shown:
            if not all(bool(torch.isfinite(parts[i][name]).all()) for name in self.names):
                raise SeguqError(
                    f"the maps of image {step.ids[i]!r} hold NaN: the model has diverged, or its input has it"
                )
        named = self._named(step, shown, dataloader)
        for i, image_id in zip(shown, named, strict=True):
            one, picture = alone(parts[i], image_id, self.measures), None
            if self.callback.copy_images and flat and step.image is not None and step.fits:
                picture = self._picture(step.image[i])
            self._find_scale(one)
            size = one.nbytes + (0 if picture is None else picture.nbytes)
            self.writer.submit(functools.partial(_write, self.folder, one, picture), size)

    def _require_no_others(self) -> None:
        self.numbered = True
        if self.any_earlier and not self.callback.overwrite:
            raise UsageError(
                f"{self.folder.dir} holds predictions already, and the images have no ids by which those of other "
                "data could be told apart: make the loader give an image_id, choose another folder, or pass "
                "overwrite=True"
            )

    def _named(self, step: Step, shown: Sequence[int], dataloader: int) -> list[str]:
        """What the files of images are called; all are checked before the first is written."""
        own, several = self.callback.prefix, len(loaders_of(self.trainer, self.stage)) > 1
        folder = f"dataloader_idx_{dataloader}/" if several and (own is not None or self.stage != "predict") else ""
        if own is not None and self.passes.watch.shuffles:
            raise SeguqError(
                f"the loader shuffles its images, so that prefix={own!r} and a number cannot say which is which: pass "
                "shuffle=False"
            )
        names = []
        for i in shown:
            image_id = step.ids[i] if own is None else f"{own}{step.numbers[i]:06d}"
            require_plain_name("the image id", image_id)
            names.append(folder + image_id)  # several loaders may show the same images
            if names[-1] in self.written:
                raise SeguqError(_TWICE.format(image_id))
            self.written[names[-1]] = None
        return names

    def _find_scale(self, maps: UncertaintyMaps) -> None:
        for name, finder in self.finders.items():
            finder.add(maps[name])

    def _picture(self, image: Any) -> np.ndarray[Any, Any]:
        if image.dtype == torch.uint8:
            return to_rgb(image.cpu().movedim(0, -1).numpy())
        array = image.detach().float().cpu().movedim(0, -1).numpy()
        if self.normalization is not None and len(self.normalization.mean) == array.shape[2]:
            array = array * np.array(self.normalization.std) + np.array(self.normalization.mean)
            array = np.clip(array, 0, 1)
        return to_rgb(array)

    def close(self) -> None:
        trainer, module = self.trainer, self.module
        together(trainer, module, self.writer.close)
        written = self._require_different()
        scales: dict[str, Scale] = {}
        for finder in self.finders.values():
            finder.merge(lambda counts: trainer.strategy.reduce(counts.to(module.device), reduce_op="sum").cpu())
        together(trainer, module, lambda: scales.update(self._scales()))
        together(trainer, module, lambda: self._keep(scales, written), first_only=True)
        together(trainer, module, lambda: self._draw(scales))

    def _keep(self, scales: dict[str, Scale], written: set[int]) -> None:
        with writing("HeatmapWriter"):
            if self.stage != "predict":
                file = self._first_scales()
                known = read_scales(file) or {}
                write_json(file, {name: scale.as_dict() for name, scale in {**known, **scales}.items()})
            elif self.numbered:  # no image of these data, so one of other data
                stale = [image_id for image_id in self.earlier if _hash(image_id) not in written]
                self.folder.remove(stale)
                self.earlier = [image_id for image_id in self.earlier if image_id not in stale]
            self.folder.finish()
            self.folder.keep_scales(scales)
        if self.stage == "predict":
            logger.info("HeatmapWriter: maps are in %s; drawing the pictures", self.folder.dir)

    def _draw(self, scales: dict[str, Scale]) -> None:
        size = self.writer.limit // 8  # a few images at once
        for image_id in dict.fromkeys((*self.written, *self.earlier)):
            self.writer.submit(functools.partial(_draw, self.folder, image_id, scales), size)
        self.writer.close()

    def _require_different(self) -> set[int]:
        """Raise, on all processes, if two of them had images of one id; give hashes of the ids of all."""
        ids, module = list(self.written), self.module
        if self.trainer.world_size == 1:
            return {_hash(image_id) for image_id in ids}
        counts = module.all_gather(torch.tensor(len(ids), device=module.device)).reshape(-1).tolist()
        hashes = np.zeros(max(counts), np.int64)  # 64 bits of each id: names of unequal length cannot be gathered
        hashes[: len(ids)] = [_hash(image_id) for image_id in ids]
        gathered = module.all_gather(torch.from_numpy(hashes).to(module.device)).reshape(len(counts), -1).cpu()
        found: np.ndarray[Any, Any] = np.concatenate([row[:n] for row, n in zip(gathered, counts, strict=True)])
        values, times = np.unique(found, return_counts=True)
        twice = set(values[times > 1].tolist())
        if twice:
            mine = next((image_id for image_id in ids if _hash(image_id) in twice), None)
            raise SeguqError(_TWICE.format(mine) if mine is not None else "HeatmapWriter: two images have the same id")
        return set(values.tolist())

    def _scales(self) -> dict[str, Scale]:
        """One scale for all images of all processes; in the validations of a training that of the first."""
        found = {name: finder.scale() for name, finder in self.finders.items()}
        if self.trainer.state.fn == "fit":
            known = read_scales(self._first_scales()) or {}
            found = {name: known.get(name, scale) for name, scale in found.items()}
        return found

    def _first_scales(self) -> Path:
        return self.callback.dir / PREFIX[self.stage] / "scale.json"

    def abort(self) -> None:
        self.writer.cancel()


def alone(maps: UncertaintyMaps, image_id: str, names: Sequence[str]) -> UncertaintyMaps:
    """What is written of one image, without probabilities, and without memory shared with its batch."""
    return UncertaintyMaps(
        None,
        {name: maps[name].clone() for name in maps.names if name in names},
        (image_id,),
        maps.estimator,
        prediction=maps.prediction.clone(),
        num_classes=maps.num_classes,
        multilabel=maps.multilabel,
        image_scores={name: values.clone() for name, values in maps.image_scores.items() if name in names},
        features=None if maps.features is None else maps.features.clone(),
    )


def _require_own_scales(trainer: Any, file: Path) -> None:
    """A new training finds its own scale; one that is resumed keeps it; and one of somebody else stays."""
    if os.path.lexists(file) and read_scales(file) is None:
        raise UsageError(f"{file} was not written by HeatmapWriter: give it another folder")
    if trainer.state.fn == "fit" and not trainer.ckpt_path:
        file.unlink(missing_ok=True)


def _hash(image_id: str) -> int:
    digest = hashlib.sha256(image_id.encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _write(folder: PredictionFolder, maps: UncertaintyMaps, picture: Any) -> None:
    """Write what is known of one image."""
    folder.note(maps.image_ids)
    if picture is not None:
        write_png(folder.picture_file(maps.image_ids[0]), picture)
    folder.save(maps)


def _draw(folder: PredictionFolder, image_id: str, scales: dict[str, Scale]) -> None:
    """Draw the pictures of one image."""
    picture = folder.picture_file(image_id)
    folder.draw(image_id, picture if picture.is_file() else None, scales)
