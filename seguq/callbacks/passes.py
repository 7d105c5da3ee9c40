"""One estimator's passes over the batches of a run, shared by the callbacks that ask for the same."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from seguq.callbacks.batches import EXAMPLE, BatchForward, loaders_of, logits_and_mask, taken_in
from seguq.callbacks.observer import ForwardObserver, is_turned, network_of
from seguq.core.errors import SeguqError
from seguq.core.seeds import derive_seed, device_of, seeded
from seguq.data.batches import describe, output_logits
from seguq.data.positions import PositionCounter, Positions
from seguq.functional.logits import TASKS, Task, class_target
from seguq.inference import Estimator, UncertaintyMaps
from seguq.inference.deterministic import Deterministic
from seguq.inference.evaluation import evaluation_mode
from seguq.inference.mc_dropout import MCDropout
from seguq.inference.measures import checked_measures

_NAMES: dict[str, Callable[..., Estimator]] = {"deterministic": Deterministic, "mc_dropout": MCDropout}


def estimator_from(estimator: Estimator | str | None) -> Estimator:
    """Check what a callback was given; a name, or None for one deterministic pass, becomes an unbound estimator.

    Raises:
        SeguqError: for another type or an unknown name.
    """
    if estimator is None:
        return Deterministic()
    if isinstance(estimator, Estimator):
        return estimator
    if isinstance(estimator, str) and estimator in _NAMES:
        return _NAMES[estimator]()
    raise SeguqError(
        f"estimator must be one of {', '.join(_NAMES)}, an estimator such as seguq.MCDropout(samples=10), or None for "
        f"one deterministic pass, but is {estimator!r}"
    )


@dataclass
class Step:
    """One batch as callbacks look at it. Images that a distributed sampler only repeats are left out.

    Attributes:
        image: ``(B, channels, *spatial)`` as the loader gave it, or None where only ``forward=`` understands the batch.
        mask: class indices ``(B, *spatial)``, or None.
        ids: one id an image.
        numbers: number of each image: its index in the data set where that is known.
        positions: running number of each image, over all processes.
        pooled: pooled class logits ``(B, C, *spatial)`` of the estimator, raw.
        maps_of: the uncertainty maps, given the calibrator to apply.
    """

    image: Tensor | None
    mask: Tensor | None
    ids: tuple[str, ...]
    numbers: tuple[int, ...]
    positions: tuple[int, ...]
    pooled: Tensor
    maps_of: Callable[[Any], UncertaintyMaps]


class Passes:
    """Runs an estimator over the batches of one run of a loop, once a batch, however many callbacks ask.

    A deterministic pass is not run at all where the module's forward was seen to give the logits in its own step. The
    module is left as it was found: the mode of each submodule, hooks, gradients and random state.

    Args:
        trainer: the Trainer.
        module: the LightningModule.
        stage: ``"validate"``, ``"test"`` or ``"predict"``.
        estimator: the estimator, with a model or without.
        forward: see `BatchForward`.
        task: the task, or None for the module's own, or multiclass. One logit a pixel is taken as a sigmoid's.
    """

    def __init__(
        self,
        trainer: Any,
        module: Any,
        stage: str,
        estimator: Estimator,
        forward: BatchForward | None,
        task: Task | None,
    ) -> None:
        self.trainer, self.stage, self.forward = trainer, stage, forward
        unbound = estimator.unbound
        if forward is not None and estimator.looks_around:
            raise SeguqError(
                f"{type(estimator).__name__} shows its model other images than the batch, which forward= with a whole "
                "batch cannot: make the loader give (image, mask) and leave forward= out"
            )
        network = module if forward is not None or not unbound else network_of(module)
        self._module = module if forward is None and unbound else None
        self._given = estimator
        own: Any = getattr(module, "task", None)
        if task is None and unbound and isinstance(own, str) and own in TASKS:
            task = cast(Task, own)
        self._task = task
        self.estimator = estimator.bind(network).adapted(task, self._calls)
        self.network = self.estimator.models[0]
        self._own_forward = estimator.forward
        self.measures: set[str] = set()
        self._compared = self._mask_seen = False
        self._batch: Any = None
        self._key: tuple[int, int] | None = None
        self._observer: ForwardObserver | None = None
        self._step: Step | None = None
        self._counters: dict[int, PositionCounter] = {}
        self._place: Positions | None = None
        self._ids: tuple[str, ...] = ()
        self._numbered = False
        # a network that was compiled together with its steps may have traced hooks into them
        compiled = getattr(module, "_compiler_ctx", None) is not None
        self._observable = self.network is network and forward is None and not compiled

    @property
    def tag(self) -> str:
        """The estimator's tag."""
        return self.estimator.tag

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
    def positions(self) -> tuple[int, ...]:
        """Running numbers, over all processes, of the images of the batch in hand, where they are known yet."""
        return () if self._place is None else self._place.numbers

    @property
    def numbered(self) -> bool:
        """Whether the images of the batch in hand have no ids of their own."""
        return self._numbered

    @property
    def in_order(self) -> bool:
        """Whether the loader of the batch in hand goes through its data in an order that is known."""
        return self._place is None or self._place.indices is not None

    @property
    def diverged(self) -> bool:
        """Whether the logits of the batch in hand hold NaN or infinite values."""
        return self._step is not None and not bool(torch.isfinite(self._step.pooled).all())

    # ---- one batch ----

    def begin(self, batch: Any, batch_idx: int, dataloader_idx: int) -> tuple[str, ...]:
        """Look at a batch before the module's own step; gives the ids of its images."""
        if self._key == (batch_idx, dataloader_idx):
            return self._ids
        self.forget()
        self._rebind()
        self._key, self._batch = (batch_idx, dataloader_idx), batch
        self._place, self._ids = None, ()
        image, _, given = taken_in(batch, self.forward)
        if image is not None:
            self._number(len(image), given)
            if self._observable and not isinstance(self.network, torch.jit.ScriptModule):  # which takes no hooks
                self._observer = ForwardObserver(self.network, batch, image)
        return self._ids

    def _rebind(self) -> None:
        """Another callback may have put another network into the module's place for this run."""
        network = self.network if self._module is None else network_of(self._module)
        if network is not self.network:
            self.estimator = self._given.bind(network).adapted(self._task, self._calls)
            self.network = network

    def end(self, batch: Any, batch_idx: int, dataloader_idx: int) -> Step:
        """What the estimator says of the batch, after the module's own step."""
        if self._step is None:
            if self._key != (batch_idx, dataloader_idx):
                self.begin(batch, batch_idx, dataloader_idx)
            self._batch = batch
            device = device_of(self.network)
            seed = derive_seed("callback", self.stage, dataloader_idx, batch_idx)
            with torch.no_grad(), self._precision(), seeded(seed, device):
                self._step = self._asked(batch)
        return self._step

    def forget(self) -> None:
        """Let go of the batch, and take the hooks away."""
        self._close_observer()
        self._batch = self._step = self._key = None

    def _close_observer(self) -> None:
        if self._observer is not None:
            self._observer.close()
            self._observer = None

    def _precision(self) -> AbstractContextManager[Any]:
        plugin = getattr(self.trainer, "precision_plugin", None)
        return nullcontext() if plugin is None else plugin.forward_context()

    def _number(self, images: int, given: tuple[str, ...] | None) -> None:
        assert self._key is not None
        loader = self._key[1]
        loaders = loaders_of(self.trainer, self.stage)
        if loader not in self._counters:
            this = loaders[loader] if loader < len(loaders) else None
            self._counters[loader] = PositionCounter(this, self.trainer.global_rank, self.trainer.world_size)
        self._place = self._counters[loader].take(images)
        numbers = self._place.numbers if self._place.indices is None else self._place.indices
        if given is not None and len(given) != images:
            raise SeguqError(f"a batch has {images} images, but {len(given)} image ids")
        self._numbered = given is None
        self._ids = given or tuple(f"{loader}-{number}" if len(loaders) > 1 else str(number) for number in numbers)

    def _asked(self, batch: Any) -> Step:
        image, mask, given = taken_in(batch, self.forward)
        output = None
        if self.forward is not None:  # it may know the mask, and where the images are
            with evaluation_mode(self.network):
                output, told = logits_and_mask(self.forward(self.network, batch))
            mask = mask if told is None else told
            shape = output_logits(output).shape
            if self._place is None:
                self._number(shape[0], given)
        assert self._place is not None
        if image is None:
            assert output is not None
            size = mask.shape[-(output_logits(output).ndim - 2) :] if mask is not None else output.shape[2:]
            network_image = output_logits(output).new_empty(len(output), 0, *size)
        else:
            network_image = image
        seen = None if self._observer is None else self._observer.seen()
        self._close_observer()  # an estimator's passes are none of the step's
        if seen is not None and image is not None and self._changed(seen.image, image):
            seen = None
        if seen is not None and seen.image.shape[2:] == network_image.shape[2:]:
            network_image = seen.image  # a step may normalize the batch first
        est = copy.copy(self.estimator)
        est.measures = tuple(name for name in est.offered if name in self.measures)
        plain = type(est).pool is Deterministic.pool and self._own_forward is None
        found = output if seen is None else seen.output
        if isinstance(est, Deterministic) and plain and found is not None:
            logits, maps = est.of_output(self._two(output_logits(found)), network_image)
        else:
            network_image, _ = est.take_in(network_image, self._ids)
            logits, maps = est.pool(network_image, self._ids, est.measures)
        return self._step_of(est, image, mask, network_image, logits, maps)

    def _changed(self, given: Tensor, image: Tensor) -> bool:
        """Whether what a step fed its network does not lie as the images of the batch; says once if it differs."""
        if given is image or (given.shape == image.shape and torch.equal(given.float(), image.float())):
            return False
        turned = is_turned(given, image)
        if not self._compared:
            self._compared = True
            what, used = (
                ("flips or turns", "Its output is not used, and the network runs again on the images as they came")
                if turned
                else ("changes", "What the network was given is used as it is, but predict cannot know of it")
            )
            warnings.warn(
                f"the module's own step {what} the images before its forward. {used}: pass the callback "
                "forward=lambda module, batch: ..., a function that prepares the images and returns logits that lie "
                "as the masks do",
                stacklevel=2,
            )
        return turned

    def _step_of(
        self,
        est: Estimator,
        image: Tensor | None,
        mask: Tensor | None,
        network_image: Tensor,
        logits: Tensor,
        maps: dict[str, Tensor],
    ) -> Step:
        assert self._place is not None
        place, ids = self._place, self._ids
        real = [i for i, counted in enumerate(place.real) if counted]
        if len(real) < len(ids):
            logits, network_image = logits[real], network_image[real]
            maps = {name: values[real] for name, values in maps.items()}
            image = None if image is None else image[real]
            mask = None if mask is None else mask[real]
            ids = tuple(ids[i] for i in real)
        numbers = place.numbers if place.indices is None else place.indices
        if mask is not None:
            self._look_at(mask, logits)
            reference = logits[:, 1] if est.task == "multilabel" else logits
            mask = class_target(mask.to(logits.device), reference, est.task)

        def maps_of(calibrator: Any) -> UncertaintyMaps:
            answering = copy.copy(est)
            answering.calibrator = calibrator
            with torch.no_grad():
                return answering.answer(logits, maps, network_image, ids)

        picked = tuple(numbers[i] for i in real)
        return Step(image, mask, ids, picked, tuple(place.numbers[i] for i in real), logits, maps_of)

    def _look_at(self, mask: Tensor, logits: Tensor) -> None:
        """Say so if the masks of the first batch seem to mean foreground by 255."""
        if self._mask_seen or logits.shape[1] != 2:
            return
        self._mask_seen = True
        if bool((mask == 255).any()) and not bool((mask == 1).any()):
            warnings.warn(
                "the masks of a batch hold 0 and 255, but no 1: pixels of 255 are left out as not labeled. If they "
                "are the foreground, divide the masks by 255",
                stacklevel=2,
            )

    def _calls(self, own: Callable[[nn.Module, Tensor], Any] | None) -> Callable[[nn.Module, Tensor], Tensor]:
        """How an estimator calls a model for the batch in hand, made of the ``forward`` that it was given."""
        return functools.partial(self._logits, own)

    def _logits(self, own: Callable[[nn.Module, Tensor], Any] | None, model: nn.Module, images: Tensor) -> Tensor:
        if self.forward is not None:
            if len(images) != len(self._ids):
                raise SeguqError(
                    "an estimator with seed= runs image by image, which forward= with a whole batch cannot: leave "
                    "seed out, or make the loader give (image, mask)"
                )
            output, _ = logits_and_mask(self.forward(model, self._batch))
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
