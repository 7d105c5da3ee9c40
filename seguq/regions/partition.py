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
        takes_volumes: whether it cuts volumes, too, each into one region. All others are for 2-D images only.

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
    takes_volumes: ClassVar[bool] = False

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
        SeguqError: if that is neither an image nor maps, or a volume.
    """
    size = spatial_size(image, maps)
    if len(size) != 2:
        raise SeguqError(f"this partition is for 2-D images only, but was called with a volume {size}")
    return size[0], size[1]


def spatial_size(image: Any, maps: UncertaintyMaps | None) -> tuple[int, ...]:
    """Size of what a partition was called with, ``(H, W)``, or ``(D, H, W)`` of a volume.

    Raises:
        SeguqError: if that is neither an image nor maps.
    """
    if image is not None:
        # tensors have their channels first, arrays as OpenCV and scikit-image give them last
        channels_first = isinstance(image, Tensor)
        shape = image.shape if image.ndim == 2 else image.shape[1:] if channels_first else image.shape[:-1]
        return tuple(int(side) for side in shape)
    if maps is None:
        raise SeguqError("a partition needs an image or maps, to know the size")
    return maps.spatial
