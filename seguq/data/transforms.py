"""albumentations pipelines, for training and for evaluation. The one module that knows albumentations."""

from __future__ import annotations

import os
from typing import Any, Literal

from seguq.core.checks import require_choice
from seguq.data.normalization import Normalization

Augmentation = Literal["none", "flip", "d4"]
AUGMENTATIONS: tuple[str, ...] = ("none", "flip", "d4")


def _albumentations() -> Any:
    # albumentations asks the network for a newer version when it is imported, unless told not to
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    return albumentations


def evaluation_transform(normalization: Normalization, size: tuple[int, int] | None = None) -> Any:
    """Resize, where a size is given, and normalize.

    Args:
        normalization: mean and deviation of each channel.
        size: (height, width), or None for images as they are.

    Returns:
        An albumentations pipeline, called with ``image=`` (H, W, channels) and, if there is one, ``mask=`` (H, W).
    """
    A = _albumentations()
    return A.Compose([*_resize(A, size), *_normalize(A, normalization)])


def training_transform(
    normalization: Normalization,
    size: tuple[int, int] | None = None,
    crop: tuple[int, int] | None = None,
    augmentation: Augmentation = "flip",
    ignore_index: int = 255,
) -> Any:
    """Resize, crop at random, flip, and normalize.

    Args:
        normalization: mean and deviation of each channel.
        size: (height, width) to resize to first, or None.
        crop: (height, width) of the random crop, or None. Smaller images are padded; the padding of masks is ignored.
        augmentation: ``"flip"`` (left and right), ``"d4"`` (the eight symmetries of the square, for images without
            an up and down such as aerial and microscope images) or ``"none"``.
        ignore_index: the mask value of padding.
    """
    require_choice("augmentation", augmentation, AUGMENTATIONS)
    A = _albumentations()
    steps = _resize(A, size)
    if crop is not None:
        steps += [A.PadIfNeeded(*crop, border_mode=0, fill=0, fill_mask=ignore_index), A.RandomCrop(*crop)]
    if augmentation == "flip":
        steps.append(A.HorizontalFlip())
    elif augmentation == "d4":
        steps.append(A.D4())
    return A.Compose([*steps, *_normalize(A, normalization)])


def _resize(A: Any, size: tuple[int, int] | None) -> list[Any]:
    return [] if size is None else [A.Resize(*size, area_for_downscale="image")]


def _normalize(A: Any, normalization: Normalization) -> list[Any]:
    # ToFloat divides by what the type can hold: 255 for 8 bit, 1 for float
    return [A.ToFloat(), A.Normalize(mean=normalization.mean, std=normalization.std, max_pixel_value=1.0)]
