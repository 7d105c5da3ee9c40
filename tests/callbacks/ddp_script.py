"""What each of two processes does in the tests of callbacks under DDP; one script for many claims, as starting is slow.

``python -m tests.callbacks.ddp_script FOLDER``; Lightning starts the second process. They leave ``FOLDER/RANK.json``,
and in ``FOLDER/CLAIM`` what the callbacks wrote. `run` does the same in one process.
"""

import errno
import json
import os
import sys
import warnings
from pathlib import Path

import torch

import seguq
from seguq.acquisition import Budget
from seguq.callbacks import SWAG, Calibrate, HeatmapWriter, RegionScorer, Snapshots, UncertaintyMetrics
from seguq.core.errors import SeguqError
from seguq.regions import Grid
from tests.callbacks.tiny import PACKAGES, Images, loader, make_module, make_trainer

MEASURES = ("predictive_entropy", "smallest_margin")
UNEQUAL = [(8, 12), (16, 8), (9, 9), (8, 8), (12, 12)]
CALIBRATORS = ["entropy", "structured", "local_network", "isotonic", "auto"]
IDS = ["c", "street/1", "a", "street/0", "b", "e", "d"]


def numbers(trainer):
    return {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}


def trainer_of(package, folder, devices, *callbacks, **settings):
    ddp = {"devices": devices, "strategy": "ddp"} if devices > 1 else {}
    return make_trainer(package, folder, *callbacks, **ddp, **settings)


def validated(
    folder, devices, loaders, package=PACKAGES["pytorch_lightning"], group=None, calibrator="global", **settings
):
    """The figures of Calibrate and UncertaintyMetrics in one validation."""
    callbacks = [Calibrate(calibrator, group=group), UncertaintyMetrics(measures=MEASURES, **settings)]
    logger = package.loggers.CSVLogger(folder, name="logs", version=package.__name__)
    trainer = trainer_of(package, folder, devices, *callbacks, logger=logger)
    trainer.validate(make_module(package), loaders, verbose=False)
    return numbers(trainer)


def predicted(folder, devices, data, batch_size=3, package=PACKAGES["pytorch_lightning"], estimator=None):
    """What ``predict`` gives, while HeatmapWriter and RegionScorer write."""
    writers = [
        HeatmapWriter(folder / "heat", estimator=estimator),
        RegionScorer(folder / "pool", partition=Grid(4), estimator=estimator, budget=Budget(regions=9)),
    ]
    return trainer_of(package, folder, devices, *writers).predict(make_module(package), loader(data, batch_size))


def fitted(folder, devices, images):
    """The figures after a training whose validation has so many images, and HeatmapWriter beside."""
    package = PACKAGES["pytorch_lightning"]
    callbacks = [
        Calibrate(),
        UncertaintyMetrics(measures=MEASURES, max_images=5),
        HeatmapWriter(folder / "heat", images=3),
    ]
    settings = {"max_epochs": 2, "use_distributed_sampler": True}
    trainer = trainer_of(package, folder, devices, *callbacks, **settings)
    trainer.fit(make_module(package), loader(Images(6, seed=9)), loader(Images(images), 3))
    return sorted(numbers(trainer))


def averaged(folder, devices):
    """What a checkpoint written by all processes has for SWAG."""
    package = PACKAGES["pytorch_lightning"]
    trainer = trainer_of(package, folder, devices, SWAG(start=1, rank=2), max_epochs=3)
    trainer.fit(make_module(package), loader(Images(6)))
    trainer.save_checkpoint(folder / "swag.ckpt")
    held = torch.load(folder / "swag.ckpt", weights_only=True)["seguq"]["swag"]
    return [held["count"], held["rank"], sorted(held["mean"])]


def in_cycles(folder, devices):
    """The snapshots that are kept by a figure that differs between processes, and the files there are."""
    package = PACKAGES["pytorch_lightning"]

    class Told(type(make_module(package))):
        def on_validation_epoch_end(self):
            best = 1 if self.global_rank == 0 else 3
            self.log("figure", float(self.current_epoch == best), sync_dist=False)

    snapshots = Snapshots(folder / "snapshots", cycles=2, keep=1, monitor="figure", mode="max")
    trainer = trainer_of(package, folder, devices, snapshots, max_epochs=4)
    trainer.fit(Told(), loader(Images(6)), loader(Images(2)))
    trainer.strategy.barrier()
    return [[path.name for path in snapshots.paths], sorted(path.name for path in (folder / "snapshots").iterdir())]


def refused(folder, devices, data, *callbacks):
    """The error of a prediction, or None."""
    package = PACKAGES["pytorch_lightning"]
    try:
        trainer_of(package, folder, devices, *callbacks).predict(make_module(package), loader(data, 1))
    except SeguqError as error:
        return str(error)
    return None


def claims(folder, devices):
    """Everything that is the same in one process and in two, by its name; the values are plain."""
    two = [loader(Images(5)), loader(Images(1, seed=1))]
    mc = seguq.MCDropout(samples=3, seed=1)
    return {
        "odd": lambda: validated(folder / "odd", devices, loader(Images(7), 3)),
        "odd of lightning": lambda: validated(folder / "odd", devices, loader(Images(7), 3), PACKAGES["lightning"]),
        "unequal": lambda: validated(folder, devices, loader(Images(5, UNEQUAL), 1)),
        "one image": lambda: validated(folder, devices, loader(Images(1), 3)),
        "groups": lambda: validated(folder, devices, loader(Images(7, ids=IDS), 3), group="^[a-c]|^"),
        **{
            name: lambda name=name: validated(
                folder, devices, loader(Images(7, ids=IDS), 3), group="^[a-e]|^", calibrator=name
            )
            for name in CALIBRATORS
        },
        "two loaders": lambda: validated(folder, devices, two),
        "max_images": lambda: validated(folder, devices, loader(Images(7), 3), max_images=1),
        "samples": lambda: validated(folder, devices, loader(Images(7, ids=IDS), 3), estimator=mc),
        "predict": lambda: predicted(folder / "predict", devices, Images(7, ids=IDS)),
        "predict of lightning": lambda: predicted(
            folder / "predict of lightning", devices, Images(5), package=PACKAGES["lightning"]
        ),
        "predict unequal": lambda: predicted(folder / "predict unequal", devices, Images(5, UNEQUAL), 1),
        "predict samples": lambda: predicted(folder / "predict samples", devices, Images(7, ids=IDS), 3, estimator=mc),
        "fit": lambda: fitted(folder / "fit", devices, 7),
        "fit on one image": lambda: fitted(folder / "fit on one image", devices, 1),
        "swag": lambda: averaged(folder / "swag", devices),
        "snapshots": lambda: in_cycles(folder / "snapshots", devices),
    }


def errors(folder, devices):
    """What goes wrong, by its name."""
    same = Images(2, ids=["same", "same"])
    (folder / "other").mkdir(parents=True, exist_ok=True)
    (folder / "no scale" / "val" / "scale.json").mkdir(parents=True, exist_ok=True)
    return {
        "same id in heat maps": lambda: refused(folder, devices, same, HeatmapWriter(folder / "same")),
        "same id in regions": lambda: refused(folder, devices, same, RegionScorer(folder / "same regions")),
        "other folder": lambda: refused(folder, devices, Images(4), HeatmapWriter(folder / "other")),
        "other table": lambda: refused(folder, devices, Images(4), RegionScorer(folder / "predict" / "pool")),
        "full disk of the second": lambda: with_full_disk(
            lambda: refused(folder, devices, Images(2), HeatmapWriter(folder / "full"))
        ),
        "no mask on the second": lambda: refused_validation(folder, devices, Calibrate()),
        "no mask for the metrics of the second": lambda: refused_validation(folder, devices, UncertaintyMetrics()),
        "no place for the scale": lambda: refused_validation(
            folder, devices, HeatmapWriter(folder / "no scale"), masks=True
        ),
        "numbers of other data": lambda: refused(
            folder, devices, Images(4), HeatmapWriter(folder / "predict of lightning" / "heat")
        ),
    }


class Partly(Images):
    """Every second image, those of the second process, has no mask."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        return item if index % 2 == 0 else {"image": item["image"]}


class Indifferent(type(make_module(PACKAGES["pytorch_lightning"]))):
    """Its validation needs no mask."""

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self(batch["image"])


def refused_validation(folder, devices, callback, masks=False):
    """The error of a validation whose masks the second process has not, or None."""
    data = Images(4) if masks else Partly(4)
    try:
        trainer = trainer_of(PACKAGES["pytorch_lightning"], folder, devices, callback)
        trainer.validate(Indifferent(), loader(data, 1), verbose=False)
    except SeguqError as error:
        return str(error)
    return None


def with_full_disk(function):
    """Call a function while the second process cannot write."""

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    fsync = os.fsync
    if os.environ["LOCAL_RANK"] == "1":
        os.fsync = full
    try:
        return function()
    finally:
        os.fsync = fsync


def run(folder, devices):
    """Run all claims."""
    warnings.simplefilter("ignore")
    return {name: claim() for name, claim in claims(folder, devices).items()}


def main(folder):
    """One of the two processes."""
    torch.set_num_threads(1)
    found = run(folder, 2)
    rank = int(os.environ["LOCAL_RANK"])
    if rank == 0:
        (folder / "other" / "predict").mkdir(parents=True)
        (folder / "other" / "predict" / "thesis.txt").write_text("mine")
    torch.distributed.barrier()
    found["errors"] = {name: claim() for name, claim in errors(folder, 2).items()}
    (folder / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
