"""Mean and deviation of one's own images, for a network that was trained with them or is to be."""

from __future__ import annotations

import os

import torch

from seguq.core.errors import SeguqError
from seguq.data.folder import SegmentationFolder
from seguq.data.normalization import Normalization
from seguq.data.transforms import evaluation_transform


def measured_normalization(images: str | os.PathLike[str], channels: int = 3) -> Normalization:
    """Mean and deviation of each channel over all pixels of the images in a folder, read one at a time.

    Give it the images that the network was trained with, not those to be predicted: a network knows only what its
    training was normalized with.

    Args:
        images: a folder of images, of any depth.
        channels: channels of an image; 1 for gray ones.

    Raises:
        SeguqError: for a file that cannot be read as such an image, or a channel that is the same everywhere.
    """
    untouched = Normalization((0.0,) * channels, (1.0,) * channels)
    folder = SegmentationFolder(images, transform=evaluation_transform(untouched), channels=channels)
    pixels, total, squares = 0, torch.zeros(channels).double(), torch.zeros(channels).double()
    for item in (folder[index] for index in range(len(folder))):
        values = item["image"].flatten(1).double()
        pixels += values.shape[1]
        total += values.sum(1)
        squares += values.square().sum(1)
    mean = total / pixels
    std = (squares / pixels - mean.square()).clamp_min(0).sqrt()
    if (std < 1e-6).any():
        raise SeguqError(
            f"a channel of the images in {images} is the same everywhere (deviations {std.tolist()}), so there is no "
            "deviation to divide by: give channels= without it, or the normalization yourself"
        )
    return Normalization.checked(mean.tolist(), std.tolist())
