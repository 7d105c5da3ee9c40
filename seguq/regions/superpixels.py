"""Superpixels: regions of like color."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from seguq.core.checks import require_choice, require_count
from seguq.core.errors import SeguqError
from seguq.inference import UncertaintyMaps
from seguq.regions.partition import Partition, stored_pixels

_METHODS = ("slic", "slic_zero")
# without smoothing, noise breaks superpixels into scattered pixels, of which few regions are left; and with twice the
# usual weight of distance they hold fewer pixels of other classes, on photographs as on micrographs
_SIGMA = 0.7
_COMPACTNESS = 20.0


class Superpixels(Partition):
    """About ``count`` connected regions of like color and size, by scikit-image, of the image as stored.

    They follow from the pixels alone, so that they are the same in every round, whatever the model has learned. Give
    images as they are stored: of normalized pixels the regions are others, and nothing in the pixels tells.

    RGB is compared in CIELAB; one channel as a gray of RGB; any other number of channels by the root of the mean square
    over them. The smallest and the largest value of the image are taken as black and white, whatever its type, and
    it is smoothed a little (a Gaussian of 0.7 pixels) against noise.

    Args:
        count: how many to aim for; an image of fewer pixels has one region a pixel at most.
        method: ``"slic"``; or ``"slic_zero"``, which weighs color against distance for each superpixel by itself, and
            so makes regions as compact in busy places as in smooth ones.

    Raises:
        UsageError: unless ``count`` is a whole number of at least 1.

    References:
        Achanta et al., SLIC Superpixels Compared to State-of-the-art Superpixel Methods, 2012.

    Example:
        >>> Superpixels(2)(np.array([[0, 0, 255, 255]] * 2, np.uint8)).tolist()
        [[0, 0, 1, 1], [0, 0, 1, 1]]
    """

    needs_image = True
    of_image_alone = True

    def __init__(self, count: int, method: Literal["slic", "slic_zero"] = "slic") -> None:
        require_count("count of Superpixels", count)
        require_choice("method of Superpixels", method, _METHODS)
        self.count = count
        self.method = method

    def __call__(self, image: Any, maps: UncertaintyMaps | None = None) -> Tensor:
        """The superpixel of each pixel, ``(H, W)`` int32 in ``0 .. R - 1``.

        Raises:
            SeguqError: if there is no image, or it is a volume or holds NaN or infinite values.
        """
        from skimage.segmentation import slic

        pixels = _scaled(stored_pixels(image))
        height, width, channels = pixels.shape
        if not pixels.size:
            return torch.full((height, width), -1, dtype=torch.int32)
        if channels == 1:
            pixels, channels = np.repeat(pixels, 3, axis=2), 3
        found = slic(
            pixels,
            n_segments=min(self.count, height * width),
            # lightness in CIELAB goes to 100, other channels to 1
            compactness=_COMPACTNESS if channels == 3 else _COMPACTNESS / 100 * math.sqrt(channels),
            convert2lab=channels == 3,
            sigma=_SIGMA,
            slic_zero=self.method == "slic_zero",
            enforce_connectivity=True,
            start_label=0,
            channel_axis=-1,
        )
        return torch.from_numpy(found.astype(np.int32))


def _scaled(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """8 and 16 bit as they are, anything else from 0 to 1: scikit-image spreads the range of all."""
    if pixels.dtype in (np.uint8, np.uint16) or not pixels.size:
        return pixels
    values = pixels.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if not math.isfinite(high - low):
        raise SeguqError(
            "Superpixels cannot cut an image that holds NaN, infinite or huge values: fill them before use"
        )
    scaled: npt.NDArray[Any] = (values - low) / (high - low or 1.0)
    return scaled
