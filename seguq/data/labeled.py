"""What an active-learning loop has labeled so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from seguq.core.checks import require_count, require_seed
from seguq.core.errors import SeguqError
from seguq.data.classes import Classes
from seguq.data.image_source import ImageSource


@dataclass(frozen=True)
class Labeled:
    """What is labeled so far: what an active-learning loop hands to ``data(labeled)``.

    Attributes:
        images: files of the images with labels, by id.
        masks: their partial masks by the same ids: class indices where somebody has labeled, elsewhere the ignored
            index (see `seguq.data.partial_masks`).
        classes: the classes of the masks.
        pool: all images, those with labels too.
        round: number of the round, from 0.
        seed: the seed of this round's training.

    Raises:
        SeguqError: if the ids of images and masks differ, or a number is none.
    """

    images: Mapping[str, Path]
    masks: Mapping[str, Path]
    classes: Classes
    pool: ImageSource
    round: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        require_count("round", self.round, 0)
        require_seed(self.seed)
        if set(self.images) != set(self.masks):
            one = min(set(self.images) ^ set(self.masks))
            has, lacks = ("an image", "mask") if one in self.images else ("a mask", "image")
            raise SeguqError(f"{one!r} has {has}, but no {lacks}: images and masks go by the same ids")
