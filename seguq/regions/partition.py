"""How an image is cut into regions: what every partition is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from seguq.core.errors import SeguqError
from seguq.core.named import Named
from seguq.inference import UncertaintyMaps
from seguq.regions.scored_by import Score


class Partition(Named, ABC):
    """Cuts an image into regions. A subclass in a file of this folder is known by its name.

    A class says each of these, or sets it in its constructor where it depends on the arguments.

    Attributes:
        needs: names of the maps that it reads.
        needs_image: whether it looks at the image; where it does not, it may be called without one.
        of_image_alone: whether its regions follow from the arguments of its constructor and the pixels of the image
            alone: then they may be kept on disk (see `seguq.regions.cached`).
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

    needs: tuple[str, ...] = ()
    needs_image: bool = False
    of_image_alone: bool = False
    fills_boxes: bool = False
    takes_volumes: bool = False

    @abstractmethod
    def __call__(self, image: Any, maps: UncertaintyMaps | None = None) -> Tensor:
        """The region of each pixel.

        Args:
            image: the image as stored, not normalized: a tensor ``(channels, H, W)``, an array ``(H, W, channels)``,
                or None.
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


def stored_pixels(image: Any) -> npt.NDArray[Any]:
    """The pixels of an image as a partition is called with it, ``(H, W, channels)``; nothing is copied.

    Raises:
        SeguqError: if there is none, or if it is a volume.

    Example:
        >>> stored_pixels(torch.zeros(3, 4, 5)).shape, stored_pixels(np.zeros((4, 5))).shape
        ((4, 5, 3), (4, 5, 1))
    """
    if image is None:
        raise SeguqError("this partition looks at the image, but was called without one")
    image_size(image, None)
    if not isinstance(image, Tensor):
        array = np.asarray(image)
        return array if array.ndim == 3 else array[..., None]
    on_cpu = image.detach().cpu()
    array = (on_cpu.float() if on_cpu.dtype == torch.bfloat16 else on_cpu).numpy()
    return np.moveaxis(array, 0, -1) if array.ndim == 3 else array[..., None]


def map_of(maps: UncertaintyMaps | None, by: Score, asked_by: Partition) -> npt.NDArray[Any]:
    """One map of the one image that a partition is called with, ``(H, W)``: there already, or made from others (ripu).

    Raises:
        SeguqError: if there are no maps, those of several images or of a volume, or values that are not finite.
        KeyError: if the map is not among them.
    """
    found = maps_of_one(maps, asked_by)
    values: npt.NDArray[Any] = by.of(found).detach().float().cpu().numpy()
    if not np.isfinite(values).all():
        raise SeguqError(
            f"{asked_by!r} looks for the largest values of {by.name!r}, but that map of image {found.image_ids[0]!r} "
            "holds NaN or infinite values"
        )
    return values


def maps_of_one(maps: UncertaintyMaps | None, asked_by: Partition) -> UncertaintyMaps:
    """The maps that a partition is called with, which have to be of one 2-D image.

    Raises:
        SeguqError: if they are not.
    """
    if maps is None:
        raise SeguqError(f"{asked_by!r} reads the maps of an image, but was called without any: pass maps")
    image_size(None, maps)
    if len(maps) != 1:
        raise SeguqError(f"{asked_by!r} cuts one image at a time, but was called with the maps of {len(maps)}")
    return maps


def without(labels: Tensor, mask: Any) -> Tensor:
    """Regions without the pixels that are not to be labeled: no data there, or a label already.

    The numbers of the regions stay what they were, so that they mean the same from round to round. One that loses all
    of its pixels gets no row in a table.

    Args:
        labels: region of each pixel, ``(H, W)`` integers, -1 for none.
        mask: ``(H, W)`` bool, true where a pixel is left out; a tensor or an array.

    Returns:
        A copy with -1 in all pixels of the mask.

    Raises:
        SeguqError: if the mask is not bool, or of another size.

    Example:
        >>> without(torch.tensor([[0, 0, 1]]), torch.tensor([[True, False, True]])).tolist()
        [[-1, 0, -1]]
    """
    left_out = torch.as_tensor(mask, device=labels.device)
    if left_out.dtype != torch.bool or left_out.shape != labels.shape:
        raise SeguqError(
            f"the mask of what is left out must be bool of shape {tuple(labels.shape)} as the regions are, but is "
            f"{left_out.dtype} of shape {tuple(left_out.shape)}"
        )
    return labels.masked_fill(left_out, -1)
