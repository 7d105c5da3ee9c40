"""The LightningModule for those who have none: a network, a loss, an optimizer that trains well, and metrics."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassJaccardIndex

from seguq.calibration import Calibrator
from seguq.calibration.checkpoint import KEY, SCHEMA_VERSION, add_calibrators, calibrators_of, section
from seguq.calibration.conformal import Conformal
from seguq.calibration.conformal_checkpoint import add_conformal, conformal_of
from seguq.core.checks import is_number, require_choice
from seguq.core.errors import SeguqError
from seguq.core.lightning import LightningModule
from seguq.core.reading import listing, reading, text
from seguq.core.trees import leaves
from seguq.data.batches import output_logits, unpack_batch
from seguq.data.module import DataSettings
from seguq.data.normalization import Normalization, encoder_normalization
from seguq.data.positions import PositionCounter, require_order
from seguq.functional.logits import TASKS, Task, class_logits, class_target
from seguq.inference import UncertaintyMaps
from seguq.inference.deterministic import Deterministic
from seguq.losses import LossName, SegmentationLoss
from seguq.networks import build_network
from seguq.weights import read_checkpoint, weights_sha256
from seguq.weights.checkpoint import load_weights


class SegmentationTask(LightningModule):
    """Trains a segmentation network, and predicts with its uncertainty.

    Trained by AdamW with a one-cycle learning rate over the whole training. Logged: ``train/loss``, ``val/loss``,
    ``val/miou`` (mean intersection over union; ``test/...`` in test). ``predict_step`` gives `UncertaintyMaps` of one
    deterministic pass. Images of any size are taken: they are padded to what the network divides by, and the output
    is cropped.

    Args:
        architecture: architecture of segmentation-models-pytorch: ``FPN``, ``Unet``, ``DeepLabV3Plus``, ...
        encoder: its encoder: ``resnet34``, ``efficientnet-b0``, ``mit_b0``, ``tu-...`` (timm), ...
        classes: number of classes; 1 for a binary task; number of labels for a multilabel task.
        encoder_weights: name of pretrained weights, None (random), or a file with a state dict of the encoder.
        in_channels: channels of an image.
        loss: ``ce``, ``dice`` or ``ce+dice``.
        class_weights: one weight a class for the cross-entropy.
        dropout: rate of the decoder's dropout, added before the head where it has none; None: as the architecture
            has it. Without dropout there is no MC dropout. A ``model`` of your own is left as it is.
        lr: highest learning rate of the cycle.
        weight_decay: of AdamW.
        task: ``multiclass``, ``binary`` or ``multilabel``.
        ignore_index: value of masks that is left out.
        mean: mean of each channel, of pixels scaled to 0..1; None: what the encoder was trained with.
        std: deviation of each channel.
        model: any module in place of ``architecture`` and ``encoder``, that gives logits (B, classes, H, W).

    Raises:
        SeguqError: for wrong arguments, unknown names, or weights that cannot be had.
    """

    def __init__(
        self,
        architecture: str = "FPN",
        encoder: str = "resnet34",
        *,
        classes: int,
        encoder_weights: str | None = "imagenet",
        in_channels: int = 3,
        loss: LossName = "ce",
        class_weights: Sequence[float] | None = None,
        dropout: float | None = 0.2,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        task: Task = "multiclass",
        ignore_index: int = 255,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        model: nn.Module | None = None,
    ) -> None:
        super().__init__()
        require_choice("task", task, TASKS)
        if classes < 1 or (task == "multiclass" and classes < 2):
            raise SeguqError(f"classes={classes} does not go with task={task!r}: a model of one logit is task='binary'")
        if task == "binary" and classes > 2:
            raise SeguqError(f"task='binary' has one logit (or two), but classes={classes}")
        if (mean is None) != (std is None):
            raise SeguqError("mean and std go together: give both or neither")
        if mean is not None and std is not None:
            self.normalization = Normalization.checked(list(mean), list(std))
        else:
            self.normalization = encoder_normalization(
                "" if model is not None else encoder, in_channels, encoder_weights
            )
        if len(self.normalization.mean) != in_channels:
            raise SeguqError(f"mean has {len(self.normalization.mean)} channels, but in_channels={in_channels}")
        self.task: Task = task
        self.num_classes = classes if task == "multiclass" else 2
        self.loss = SegmentationLoss(loss, task, ignore_index, class_weights)
        self.ignore_index = ignore_index
        weights = None if class_weights is None else len(class_weights)
        if weights is not None and weights != self.num_classes:
            raise SeguqError(f"class_weights has {weights} weights, but there are {self.num_classes} classes")
        for name, value, least in (("lr", lr, "above 0"), ("weight_decay", weight_decay, "at least 0")):
            if not is_number(value) or not 0 <= value < math.inf or (name == "lr" and not value):
                raise SeguqError(f"{name} must be a number {least}, but is {value!r}")
        self.lr, self.weight_decay = lr, weight_decay
        self._images_seen = 0
        self.class_names: tuple[str, ...] = ()
        self.trained_on: DataSettings | None = None
        self.calibrators: dict[str, Calibrator] = {}
        self.conformal: dict[str, dict[str, Conformal]] = {}
        self.model = (
            model
            if model is not None
            else build_network(
                architecture,
                encoder,
                classes=classes,
                encoder_weights=encoder_weights,
                in_channels=in_channels,
                dropout=dropout,
            )
        )
        self.settings: dict[str, Any] = {
            "architecture": None if model is not None else architecture,
            "encoder": None if model is not None else encoder,
            "classes": classes,
            "in_channels": in_channels,
            "loss": loss,
            "class_weights": None if class_weights is None else [float(weight) for weight in class_weights],
            "dropout": dropout,
            "lr": lr,
            "weight_decay": weight_decay,
            "task": task,
            "ignore_index": ignore_index,
            "mean": list(self.normalization.mean),
            "std": list(self.normalization.std),
        }
        self.save_hyperparameters(self.settings, logger=True)
        for stage in ("val", "test"):
            # nn.Module attributes: Lightning moves them to the device and resets them after each epoch
            setattr(self, f"{stage}_miou", MulticlassJaccardIndex(self.num_classes, ignore_index=ignore_index))

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return len(self.normalization.mean)

    @property
    def scale(self) -> float | None:
        """Value of 16-bit and float files that stood for 1 in training, see `seguq.data.read_image`; None: by type."""
        return None if self.trained_on is None else self.trained_on.scale

    @property
    def _divisor(self) -> int:
        """What height and width have to be divisible by."""
        if getattr(self.model, "requires_divisible_input_shape", False):
            return int(getattr(self.model.encoder, "output_stride", 32))
        return 1

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, classes, H, W)`` of images ``(B, in_channels, H, W)`` of any size."""
        height, width = images.shape[-2:]
        down, right = -height % self._divisor, -width % self._divisor
        if not (down or right):
            return output_logits(self.model(images), (height, width))
        padded = nn.functional.pad(images, (0, right, 0, down), mode="replicate")
        return output_logits(self.model(padded), padded.shape[-2:])[..., :height, :width]

    def setup(self, stage: str) -> None:
        """Check that the data have as many classes as the network."""
        if stage == "predict":  # a folder of images to predict has no classes.json
            return
        classes = getattr(getattr(self.trainer, "datamodule", None), "classes", None)
        if classes is None:
            return
        expected = self.num_classes
        if self.task != "multilabel" and len(classes) != expected:
            raise SeguqError(
                f"the data have {len(classes)} classes ({', '.join(classes.names)}), but the network has {expected}: "
                f"set classes={len(classes)}"
            )
        if classes.ignore_index != self.ignore_index:
            raise SeguqError(
                f"the data ignore the mask value {classes.ignore_index}, but the task ignores {self.ignore_index}: "
                f"set ignore_index={classes.ignore_index}"
            )
        self.class_names = tuple(classes.names)

    def _step(self, batch: Any, stage: str) -> tuple[Tensor, Tensor, Tensor]:
        batch = unpack_batch(batch)
        if batch.mask is None:
            raise SeguqError(f"{stage} needs masks, but a batch has none")
        logits = self(batch.image)
        loss = self.loss(logits, batch.mask)
        self.log(
            f"{stage}/loss",
            loss,
            prog_bar=stage == "train",
            on_step=stage == "train",
            on_epoch=True,
            batch_size=len(batch.image),
            sync_dist=stage != "train",
        )
        return loss, logits, batch.mask

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a batch."""
        return self._step(batch, "train")[0]

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loss and overlap of a validation batch."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loss and overlap of a test batch."""
        self._evaluate(batch, "test")

    def _evaluate(self, batch: Any, stage: str) -> None:
        _, logits, mask = self._step(batch, stage)
        metric = getattr(self, f"{stage}_miou")
        metric.update(class_logits(logits, self.task).argmax(1), class_target(mask, logits, self.task))
        self.log(f"{stage}/miou", metric, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(mask))

    def on_predict_start(self) -> None:
        """Images without ids are numbered from 0 in each run."""
        self._images_seen = 0

    def predict_step(self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0) -> UncertaintyMaps:
        """Probabilities and uncertainty of one deterministic pass."""
        batch = unpack_batch(batch)
        if batch.image_id is None and self._trainer is not None:
            loader = dict(enumerate(leaves(self.trainer.predict_dataloaders))).get(dataloader_idx)
            require_order(PositionCounter(loader))
        ids = batch.image_id or [str(self._images_seen + i) for i in range(len(batch.image))]
        self._images_seen += len(batch.image)
        return Deterministic(self, task=self.task)(batch.image, ids)

    def configure_optimizers(self) -> Any:
        """AdamW; a one-cycle learning rate where the length of the training is known."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps) or steps < 2:
            return optimizer
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=self.lr, total_steps=int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Check that a training that is resumed was planned as it is now."""
        planned = getattr(self.lr_schedulers(), "total_steps", None)
        steps = self.trainer.estimated_stepping_batches
        if planned is not None and math.isfinite(steps) and planned != steps:
            raise SeguqError(
                f"the training that is resumed was planned for {planned} steps, over which its learning rate falls to "
                f"0, but now for {int(steps)}: set max_epochs (or max_steps), batch_size and data as they were"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put what prediction needs into the checkpoint, under the key ``seguq``."""
        # the encoder's weights are in the checkpoint: Lightning's load_from_checkpoint need not download any
        checkpoint.setdefault("hyper_parameters", {})["encoder_weights"] = None
        found = section(checkpoint)
        found["normalization"] = {"mean": list(self.normalization.mean), "std": list(self.normalization.std)}
        found["class_names"] = list(self.class_names)
        checkpoint[KEY] = {**found, "version": SCHEMA_VERSION}
        if self.calibrators or self.conformal:  # training went on since some were fitted: they are of no use any more
            weights = weights_sha256(checkpoint["state_dict"])
            fitting = {tag: item for tag, item in self.calibrators.items() if item.weights_sha256 in (None, weights)}
            for item in fitting.values():
                item.weights_sha256 = weights
            add_calibrators(checkpoint, fitting)
            add_conformal(checkpoint, self.conformal, weights)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the calibrators and conformal objects that were fitted for the checkpoint's weights."""
        weights = weights_sha256(checkpoint["state_dict"])
        self.calibrators, self.conformal = calibrators_of(checkpoint, weights), conformal_of(checkpoint, weights)
        names = section(checkpoint).get("class_names", [])
        self.class_names = tuple(text(name, "a class name") for name in listing(names, "'class_names'"))
        self.trained_on = DataSettings.of(checkpoint)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: nn.Module | None = None) -> SegmentationTask:
        """Rebuild a trained task from its checkpoint alone, in evaluation mode, with its calibrators.

        Args:
            path: a Lightning checkpoint of a `SegmentationTask`.
            model: the network, where the task was made with ``model=``.

        Raises:
            SeguqError: if the checkpoint is of something else, or needs ``model=``.
        """
        return cls.load_content(read_checkpoint(path), path, model)

    @classmethod
    def load_content(
        cls, content: dict[str, Any], path: str | os.PathLike[str], model: nn.Module | None = None
    ) -> SegmentationTask:
        """`load` of what was read of a checkpoint already, as `seguq.weights.read_checkpoint` gives it."""
        with reading(path):
            return cls._from(content, path, model)

    @classmethod
    def _from(
        cls, checkpoint: dict[str, Any], path: str | os.PathLike[str], model: nn.Module | None
    ) -> SegmentationTask:
        settings = checkpoint.get("hyper_parameters")
        settings = settings if isinstance(settings, dict) else {}
        if "state_dict" not in checkpoint or not {"architecture", "classes", "mean"} <= set(settings):
            raise SeguqError(
                f"{path} is no checkpoint of a seguq.SegmentationTask: load it into your own module with "
                "seguq.load(checkpoint, model), or name its class on the command line: --module FILE.py:Class"
            )
        if settings["architecture"] is None and model is None:
            raise SeguqError(
                f"{path} was trained with a network of its own (model=): pass the same module as model= (on "
                "the command line: --module FILE.py:NAME)"
            )
        known = {name: value for name, value in settings.items() if name in _SETTINGS}
        if model is not None:
            known = {name: value for name, value in known.items() if name not in ("architecture", "encoder")}
        task = cls(**known, encoder_weights=None, model=model)
        load_weights(task, checkpoint, str(path))
        task.on_load_checkpoint(checkpoint)
        return task.eval()


_SETTINGS = {
    "architecture", "encoder", "classes", "in_channels", "loss", "class_weights", "dropout", "lr", "weight_decay",
    "task", "ignore_index", "mean", "std",
}  # fmt: skip
