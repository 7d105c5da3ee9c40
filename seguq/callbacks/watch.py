"""The batch in hand, as all callbacks see it: its images, and what networks were given in the module's own step."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from seguq.callbacks.batches import BatchForward, loaders_of, taken_in
from seguq.callbacks.observer import ForwardObserver, Seen, is_turned
from seguq.core.errors import SeguqError
from seguq.data.batches import is_same
from seguq.data.positions import PositionCounter, Positions, require_order


class Watch:
    """Watches the module's own step, once for all callbacks of a run of a loop.

    Networks are watched from `begin` on until `stop`, which comes before any callback's own pass: such a pass is none
    of the step's.

    Args:
        trainer: the Trainer.
        stage: ``"validate"``, ``"test"`` or ``"predict"``.

    Attributes:
        ids: one an image of the batch in hand, where they are known yet.
        place: where its images stand in the data.
        numbered: whether they have no ids of their own.
    """

    def __init__(self, trainer: Any, stage: str) -> None:
        self.trainer, self.stage = trainer, stage
        self.ids: tuple[str, ...] = ()
        self.place: Positions | None = None
        self.numbered = False
        self._key: tuple[int, int] | None = None
        self._batch: Any = None
        self._image: Tensor | None = None
        self._counters: dict[int, PositionCounter] = {}
        self._observers: dict[nn.Module, ForwardObserver] = {}
        self._seen: dict[nn.Module, Seen | None] = {}
        self._compared = False

    @property
    def positions(self) -> tuple[int, ...]:
        """Running numbers, over all processes, of the images of the batch in hand, where they are known yet."""
        return () if self.place is None else self.place.numbers

    @property
    def in_order(self) -> bool:
        """Whether the loader of the batch in hand goes through its data in an order that is known."""
        return self.place is None or self.place.indices is not None

    @property
    def shuffles(self) -> bool:
        """Whether the images of the batch in hand come in another order than that of the data."""
        return self._key is not None and self._counters[self._key[1]].shuffles

    def begin(self, batch: Any, key: tuple[int, int], batch_forward: BatchForward | None) -> None:
        """Take a batch in hand; a second time it is known already.

        Args:
            batch: as the loader gave it.
            key: its number, and that of its loader.
            batch_forward: who may understand it where nobody else does.
        """
        if self._key == key:
            return
        self.forget()
        image, _, given = taken_in(batch, batch_forward)
        self._key, self._batch, self._image = key, batch, image
        if image is not None:
            self.number(len(image), given)

    def number(self, images: int, given: tuple[str, ...] | None) -> None:
        """Say which images the batch in hand has: so many, with these ids or None."""
        assert self._key is not None
        if self.place is not None:
            return
        if given is not None and len(given) != images:
            raise SeguqError(f"a batch has {images} images, but {len(given)} image ids")
        loader = self._key[1]
        loaders = loaders_of(self.trainer, self.stage)
        if loader not in self._counters:
            this = dict(enumerate(loaders)).get(loader)
            self._counters[loader] = PositionCounter(this, self.trainer.global_rank, self.trainer.world_size)
        if given is None and self.stage == "predict":
            require_order(self._counters[loader])
        self.place = self._counters[loader].take(images)
        numbers = self.place.numbers if self.place.indices is None else self.place.indices
        self.numbered = given is None
        self.ids = given or tuple(f"{loader}-{number}" if len(loaders) > 1 else str(number) for number in numbers)

    def observe(self, network: nn.Module) -> None:
        """Note what a network is given in the step."""
        hooked = not isinstance(network, torch.jit.ScriptModule)  # which takes no hooks
        if hooked and self._image is not None and network not in self._observers:
            self._observers[network] = ForwardObserver(network, self._batch, self._image)

    def stop(self) -> None:
        """The step has ended: take all hooks away."""
        for observer in self._observers.values():
            observer.stop()

    def forget(self) -> None:
        """Let go of the batch."""
        for observer in self._observers.values():
            observer.close()
        self._observers, self._seen = {}, {}
        self._key = self._batch = self._image = self.place = None
        self.ids = ()

    def seen(self, network: nn.Module, image: Tensor | None) -> Seen | None:
        """What a network was given in the step, and gave; None where no pass of an estimator could begin with it.

        Args:
            network: one that was observed, or not.
            image: the images of the batch as the loader gave them. Says once if the step has changed them.
        """
        if network not in self._seen:
            found = self._observers[network].seen() if network in self._observers else None
            turned = found is not None and image is not None and self._turned(found.image, image)
            self._seen[network] = None if turned else found
        return self._seen[network]

    def _turned(self, given: Tensor, image: Tensor) -> bool:
        """Whether what a step fed its network does not lie as the images of the batch; says once if it differs."""
        if is_same(given, image) or (given.shape == image.shape and torch.equal(given.float(), image.float())):
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
                "batch_forward=lambda module, batch: ..., a function that prepares the images and returns logits that "
                "lie as the masks do",
                stacklevel=2,
            )
        return turned
