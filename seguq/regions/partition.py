"""How an image is cut into regions: what every partition is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from seguq.core.errors import SeguqError
from seguq.core.named import Named
from seguq.inference import UncertaintyMaps


class Partition(Named, ABC):
    """Cuts an image into regions. A subclass in a file of this folder is known by its name.

    Attributes:
        needs: names of the maps that it reads.
        needs_image: whether it looks at the image; where it does not, it may be called without one.
        fills_boxes: whether each region is all of its bounding box.

    Example:
        >>> import torch
        >>> class Dark(Partition):
        ...     needs_image = True
        ...     def __call__(self, image, maps=None):
        ...         return (image.mean(0) < 0.5).int() - 1
        >>> Dark()(torch.tensor([[[0.2, 0.9]]])).tolist()
        [[0, -1]]
    """

    needs: ClassVar[tuple[str, ...]] = ()
    needs_image: ClassVar[bool] = False
    fills_boxes: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, image: Any, maps: UncertaintyMaps | None = None) -> Tensor:
        """The region of each pixel.

        Args:
            image: a tensor ``(channels, H, W)``, an array as stored ``(H, W, channels)``, or None.
            maps: the maps of that one image.

        Returns:
            ``(H, W)`` int32 in ``0 .. R - 1``, or -1 for a pixel in no region.
        """


def image_size(image: Any, maps: UncertaintyMaps | None) -> tuple[int, int]:
    """Height and width of what a partition was called with.

    Raises:
        SeguqError: if that is neither an image nor maps.
    """
    if image is not None:
        # tensors have their channels first, arrays as OpenCV and scikit-image give them last
        shape = image.shape[-2:] if isinstance(image, Tensor) else image.shape[:2]
    elif maps is not None:
        shape = maps.prediction.shape[-2:]
    else:
        raise SeguqError("a partition needs an image or maps, to know the size")
    return int(shape[0]), int(shape[1])
