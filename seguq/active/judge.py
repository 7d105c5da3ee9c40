"""How good the model of a round is, on labeled images that it was not trained on."""

from __future__ import annotations

import math
import os
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from seguq.active.reports.records import MAIN_METRIC, Interval
from seguq.calibration import Calibrator
from seguq.callbacks.agreement import together
from seguq.callbacks.base import EstimatorCallback
from seguq.callbacks.batches import BatchForward, images_in
from seguq.callbacks.passes import Passes, Step
from seguq.callbacks.run import Run
from seguq.core.errors import SeguqError
from seguq.core.files import write_torch
from seguq.core.groups import GroupOf, Groups
from seguq.core.reading import mapping, reading, text, whole
from seguq.inference import Estimator
from seguq.metrics import CalibrationError, MeanIoU, NegativeLogLikelihood
from seguq.metrics.bootstrap import BootstrapMetric
from seguq.weights import read_checkpoint


def _metrics(num_classes: int, ignore_index: int) -> dict[str, BootstrapMetric]:
    return {
        MAIN_METRIC: MeanIoU(num_classes, ignore_index),
        "ece": CalibrationError(num_classes, ignore_index=ignore_index),
        "nll": NegativeLogLikelihood(num_classes, ignore_index, from_logits=True),
    }


class Judge(EstimatorCallback):
    """Measures in test or validation, and writes the states of the metrics into a file.

    Args:
        out: the file.
        estimator: as in `EstimatorCallback`.
        calibrator: as in `EstimatorCallback`.
        batch_forward: as in `EstimatorCallback`.
        ignore_index: value of masks that is left out.
        group: from an image's id to its group, as in `seguq.core.groups.Groups`.
    """

    stages: ClassVar[tuple[str, ...]] = ("validate", "test")

    def __init__(
        self,
        out: str | os.PathLike[str],
        estimator: Estimator | None = None,
        calibrator: Calibrator | Literal["auto"] | None = "auto",
        batch_forward: BatchForward | None = None,
        ignore_index: int = 255,
        group: GroupOf = None,
    ) -> None:
        super().__init__(estimator, calibrator, batch_forward)
        self.out, self.ignore_index, self.group = Path(out), ignore_index, Groups(group)

    def start(self, trainer: Any, module: Any, stage: str, passes: Passes) -> Run:
        """The images begin."""
        return _Judging(self, trainer, module, stage, passes)

    def looks_at(self, dataloader: int) -> bool:
        """Only what the first loader gives counts."""
        return dataloader == 0


class _Judging(Run):
    callback: Judge

    def __init__(self, *run: Any) -> None:
        super().__init__(*run)
        self.classes = 0
        self.metrics: dict[str, BootstrapMetric] = {}
        self.groups: set[str] = set()
        self.names: set[str] = set()
        self.images = 0

    def look(self, step: Step, dataloader: int) -> None:
        settings = self.callback
        if step.mask is None:
            raise SeguqError(
                "a round is judged on labeled images, but a batch has no mask that is understood: make the test (or "
                "validation) loader of data(labeled) give (image, mask)"
            )
        if not len(step.ids):
            return
        maps = step.maps_of(self.calibrator)
        if maps.multilabel:
            raise SeguqError("a loop labels one class a pixel, but the module's labels are independent (multilabel)")
        self._begin(maps.num_classes, step.mask.device)
        settings.group.require_ids(self.passes.watch.numbered)
        total = images_in(self.trainer, self.stage, dataloader)
        groups = [settings.group(name, number, total) for name, number in zip(step.ids, step.numbers, strict=True)]
        self.metrics[MAIN_METRIC].update(maps.prediction, step.mask, group=groups)
        self.metrics["ece"].update(maps.probs, step.mask, group=groups)
        self.metrics["nll"].update(step.logits_of(self.calibrator), step.mask, group=groups)
        self.groups.update(groups)
        self.names.update(step.ids)
        self.images += len(step.ids)

    def _begin(self, classes: int, device: Any) -> None:
        if not self.metrics:
            self.classes = classes
            made = _metrics(classes, self.callback.ignore_index)
            self.metrics = {name: metric.to(device) for name, metric in made.items()}

    def close(self) -> None:
        trainer, device, groups, names = self.trainer, self.module.device, self.groups, self.names
        if trainer.world_size > 1:
            told = torch.tensor([self.classes, self.images], device=device)
            everywhere = self.module.all_gather(told).reshape(-1, 2)
            self.images = int(everywhere[:, 1].sum())
            if self.images:
                self._begin(int(everywhere[:, 0].max()), device)
            found: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(found, (self.groups, self.names))
            groups, names = (set().union(*parts) for parts in zip(*found, strict=True))
        states: dict[str, Any] = {}
        for name, metric in self.metrics.items():
            metric.persistent(True)
            with metric.sync_context(dist_sync_fn=metric.dist_sync_fn, should_sync=trainer.world_size > 1):
                states[name] = {key: value.detach().cpu() for key, value in metric.state_dict().items()}
        content = {
            "version": 1,
            "split": {"validate": "val", "test": "test"}[self.stage],
            "images": self.images,
            "groups": len(groups),
            "names": sha256("\n".join(sorted(names)).encode(errors="surrogatepass")).hexdigest(),
            "num_classes": self.classes,
            "ignore_index": self.callback.ignore_index,
            "states": states,
        }
        together(trainer, self.module, lambda: write_torch(self.callback.out, content), first_only=True)


class Judged:
    """What a `Judge` has written.

    Attributes:
        split: ``"test"`` or ``"val"``.
        images: how many images were looked at.
        groups: how many groups they are of.
        names: a hash of their ids.
        metrics: by name.

    Args:
        path: the file.

    Raises:
        SeguqError: if it is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        content = read_checkpoint(path)
        with reading(path):
            self.split = text(content["split"], "'split'")
            self.images, self.groups = whole(content["images"], "'images'", 0), whole(content["groups"], "'groups'", 0)
            self.names = content.get("names")
            states = mapping(content["states"], "'states'")
            self.metrics: dict[str, BootstrapMetric] = {}
            if states:
                made = _metrics(whole(content["num_classes"], "'num_classes'", 1), content["ignore_index"])
                for name, metric in made.items():
                    metric.persistent(True)
                    metric.load_state_dict(states[name])
                    metric._update_count = 1  # torchmetrics warns of a metric that was never updated
                self.metrics = made

    def values(self) -> dict[str, Interval]:
        """Value, and low and high of its interval (95 %, over groups of images; NaN of one group), of each metric."""
        return {name: self._numbers(item.compute(), item.compute_interval()) for name, item in self.metrics.items()}

    def gain(self, before: Judged, name: str = MAIN_METRIC) -> Interval | None:
        """A metric minus that of an earlier round, with the interval of the pair; None if on other images."""
        if name not in self.metrics or name not in before.metrics or self.names != before.names:
            return None
        return self._numbers(*self.metrics[name].compute_difference(before.metrics[name]))

    def _numbers(self, value: Any, interval: Any) -> Interval:
        # all draws of a single group are alike, and say nothing of other images
        low, high = interval if self.groups > 1 else (math.nan, math.nan)
        return Interval(float(value), float(low), float(high))
