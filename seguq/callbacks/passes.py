"""One estimator's passes over the batches of a run, shared by the callbacks that ask for the same."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from seguq.callbacks.batches import EXAMPLE, BatchForward, logits_and_mask, taken_in
from seguq.callbacks.observer import network_of
from seguq.callbacks.watch import Watch
from seguq.core.errors import SeguqError
from seguq.core.seeds import derive_seed, device_of, seeded
from seguq.data.batches import describe, output_logits
from seguq.functional.logits import TASKS, Task, class_target
from seguq.inference import Estimator, UncertaintyMaps
from seguq.inference.deterministic import Deterministic
from seguq.inference.evaluation import evaluation_mode
from seguq.inference.measures import checked_measures


@dataclass
class Step:
    """One batch as callbacks look at it. Images that a distributed sampler only repeats are left out.

    Attributes:
        image: ``(B, channels, *spatial)`` as the loader gave it, or None where only ``batch_forward=`` understands it.
        mask: class indices ``(B, *spatial)``, or None.
        ids: one id an image.
        numbers: number of each image: its index in the data set where that is known.
        positions: running number of each image, over all processes.
        pooled: pooled class logits ``(B, C, *spatial)`` of the estimator, raw.
        maps_of: the uncertainty maps, given the calibrator to apply.
        logits_of: the pooled class logits, given the calibrator to apply.
    """

    image: Tensor | None
    mask: Tensor | None
    ids: tuple[str, ...]
    numbers: tuple[int, ...]
    positions: tuple[int, ...]
    pooled: Tensor
    maps_of: Callable[[Any], UncertaintyMaps]
    logits_of: Callable[[Any], Tensor]

    @property
    def fits(self) -> bool:
        """Whether there are images, and the maps are of their size."""
        image = self.image
        return image is not None and image.shape[2:] == self.pooled.shape[2 - image.ndim :]


class Passes:
    """Runs an estimator over the batches of one run of a loop, once a batch, however many callbacks ask.

    A deterministic pass is not run at all where the module's forward was seen to give the logits in its own step. The
    module is left as it was found: the mode of each submodule, hooks, gradients and random state.

    Args:
        trainer: the Trainer.
        module: the LightningModule.
        stage: ``"validate"``, ``"test"`` or ``"predict"``.
        given: the estimator, with a model or without.
        batch_forward: see `BatchForward`.
        task: the task, or None for the module's own, or multiclass. One logit a pixel is taken as a sigmoid's.
        watch: what sees the module's own step, shared with the passes of other estimators.

    Attributes:
        estimator: the estimator, bound to the network in hand.
        network: its first model.
        measures: names of those that callbacks have asked for.
    """

    def __init__(
        self,
        trainer: Any,
        module: Any,
        stage: str,
        given: Estimator,
        batch_forward: BatchForward | None,
        task: Task | None,
        watch: Watch,
    ) -> None:
        self.trainer, self.stage, self.watch = trainer, stage, watch
        self.given, self.batch_forward, self.task = given, batch_forward, task
        unbound = given.unbound
        network = module if batch_forward is not None or not unbound else network_of(module)
        self._module = module if batch_forward is None and unbound else None
        own: Any = getattr(module, "task", None)
        self._task = cast(Task, own) if task is None and unbound and isinstance(own, str) and own in TASKS else task
        self._bound_to = network
        self.estimator = given.bind(network).adapted(self._task, self._calls)
        self.network = self.estimator.models[0]
        self.measures: set[str] = set()
        self._batch: Any = None
        self._key: tuple[int, int] | None = None
        self._step: Step | None = None
        # a network that was compiled together with its steps may have traced hooks into them
        compiled = getattr(module, "_compiler_ctx", None) is not None
        self._observable = self.network is network and batch_forward is None and not compiled

    @property
    def tag(self) -> str:
        """The estimator's tag."""
        return self.estimator.tag

    def serves(self, given: Estimator, batch_forward: BatchForward | None, task: Task | None) -> bool:
        """Whether these are the passes for an estimator: it is the same, and so is what it is asked of the module."""
        return self.batch_forward == batch_forward and self.task == task and self.given.same_as(given)

    def want(self, measures: Sequence[str] | None) -> tuple[str, ...]:
        """Ask for measures (None: all that the estimator was made for); gives their names.

        Raises:
            SeguqError: for one that it does not compute.
        """
        offered = self.estimator.offered
        names = self.estimator.measures if measures is None else checked_measures(tuple(measures), offered, self.tag)
        self.measures.update(names)
        return names

    @property
    def diverged(self) -> bool:
        """Whether the logits of the batch in hand hold NaN or infinite values."""
        return self._step is not None and not bool(torch.isfinite(self._step.pooled).all())

    # ---- one batch ----

    def begin(self, batch: Any, batch_idx: int, dataloader_idx: int) -> tuple[str, ...]:
        """Look at a batch before the module's own step; gives the ids of its images."""
        key = (batch_idx, dataloader_idx)
        if self._key != key:
            self._step, self._key, self._batch = None, None, batch
            self._rebind()
            self.watch.begin(batch, key, self.batch_forward)
            self._key = key
            if self._observable:
                self.watch.observe(self.network)
        return self.watch.ids

    def _rebind(self) -> None:
        """Another callback may have put another network into the module's place for this run."""
        network = self._bound_to if self._module is None else network_of(self._module)
        if network is not self._bound_to:
            self._bound_to = network
            self.estimator = self.given.bind(network).adapted(self._task, self._calls)
            self.network = self.estimator.models[0]

    def end(self, batch: Any, batch_idx: int, dataloader_idx: int) -> Step:
        """What the estimator says of the batch, after the module's own step."""
        if self._key != (batch_idx, dataloader_idx):
            self.begin(batch, batch_idx, dataloader_idx)
        self.watch.stop()
        if self._step is None:
            self._batch = batch
            device = device_of(self.network)
            seed = derive_seed("callback", self.stage, dataloader_idx, batch_idx)
            with torch.no_grad(), self._precision(), seeded(seed, device):
                self._step = self._asked(batch)
        return self._step

    def forget(self) -> None:
        """Let go of the batch."""
        self.watch.forget()
        self._batch = self._step = self._key = None

    def _precision(self) -> AbstractContextManager[Any]:
        plugin = getattr(self.trainer, "precision_plugin", None)
        return nullcontext() if plugin is None else plugin.forward_context()

    def _asked(self, batch: Any) -> Step:
        image, mask, given = taken_in(batch, self.batch_forward)
        output: Tensor | None = None
        if self.batch_forward is not None:  # it may know the mask, and where the images are
            with evaluation_mode(self.network):
                output, told = logits_and_mask(self.batch_forward(self.network, batch))
            mask = mask if told is None else told
            self.watch.number(len(output), given)
            image_size = output.shape[2:] if image is None else image.shape[2:]
            size = image_size if mask is None else mask.shape[2 - output.ndim :]  # logits fit the mask, or are made to
            network_image = image if image is not None and image.shape[2:] == size else _empty(output, size)
        else:
            assert image is not None
            network_image = image
        seen = self.watch.seen(self.network, image) if self._observable else None
        if seen is not None and seen.image.shape[2:] == network_image.shape[2:]:
            network_image = seen.image  # a step may normalize the batch first
        est = copy.copy(self.estimator)
        est.measures = tuple(name for name in est.offered if name in self.measures)
        plain = type(est).pool is Deterministic.pool and self.given.forward is None and not est.features
        found = output if seen is None else seen.output
        if isinstance(est, Deterministic) and plain and found is not None:
            logits, maps = est.of_output(self._two(output_logits(found)), network_image)
        else:
            network_image, ids = est.take_in(network_image, self.watch.ids)
            logits, maps = est.look(network_image, ids, est.measures)
        return self._step_of(est, image, mask, network_image, logits, maps)

    def _step_of(
        self,
        est: Estimator,
        image: Tensor | None,
        mask: Tensor | None,
        network_image: Tensor,
        logits: Tensor,
        maps: dict[str, Tensor],
    ) -> Step:
        place, ids = self.watch.place, self.watch.ids
        assert place is not None
        real = [i for i, counted in enumerate(place.real) if counted]
        if len(real) < len(ids):
            logits, network_image = logits[real], network_image[real]
            maps = {name: values[real] for name, values in maps.items()}
            image = None if image is None else image[real]
            mask = None if mask is None else mask[real]
            ids = tuple(ids[i] for i in real)
        numbers = place.numbers if place.indices is None else place.indices
        if mask is not None:
            reference = logits[:, 1] if est.task == "multilabel" else logits
            mask = class_target(mask.to(logits.device), reference, est.task)
            if mask.shape[1:] != logits.shape[2:]:
                raise SeguqError(
                    f"masks {tuple(mask.shape)} do not fit logits {tuple(logits.shape)}, which have the size of the "
                    "images: pass the callback batch_forward=lambda module, batch: (logits, mask), both of one size"
                )

        def answering(calibrator: Any) -> Estimator:
            made = copy.copy(est)
            made.calibrator = calibrator
            return made

        def maps_of(calibrator: Any) -> UncertaintyMaps:
            with torch.no_grad():
                return answering(calibrator).answer(logits, maps, network_image, ids)

        def logits_of(calibrator: Any) -> Tensor:
            return answering(calibrator).calibrated(logits, network_image)

        picked = tuple(numbers[i] for i in real)
        return Step(image, mask, ids, picked, tuple(place.numbers[i] for i in real), logits, maps_of, logits_of)

    def _calls(self, own: Callable[[nn.Module, Tensor], Any] | None) -> Callable[[nn.Module, Tensor], Tensor]:
        """How an estimator calls a model for the batch in hand, made of the ``forward`` that it was given."""
        return functools.partial(self._logits, own)

    def _logits(self, own: Callable[[nn.Module, Tensor], Any] | None, model: nn.Module, images: Tensor) -> Tensor:
        if self.batch_forward is not None:
            output, _ = logits_and_mask(self.batch_forward(model, self._batch))
        else:
            output = self._called(model, images) if own is None else own(model, images)
        try:
            logits = output_logits(output)
        except SeguqError as error:
            raise SeguqError(f"{error}, such as {EXAMPLE}; the batch is {describe(self._batch)}") from error
        return self._two(logits)

    def _called(self, model: nn.Module, images: Tensor) -> Any:
        try:
            return model(images)
        except (TypeError, AttributeError, LookupError) as error:
            raise SeguqError(
                f"{type(model).__name__} was called with the images of the batch alone, and failed ({error}): pass the "
                f"callback {EXAMPLE}; the batch is {describe(self._batch)}"
            ) from error

    def _two(self, logits: Tensor) -> Tensor:
        """One logit z a pixel as the two logits (0, z), where no task was told."""
        if self.estimator.task == "multiclass" and logits.ndim > 2 and logits.shape[1] == 1:
            return torch.cat((torch.zeros_like(logits), logits), 1)
        return logits


def _empty(output: Tensor, size: Sequence[int]) -> Tensor:
    """What stands for images where only their number and size are of use."""
    return output.new_empty(len(output), 0, *size)
