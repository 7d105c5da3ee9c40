"""The mean and deviation that an encoder was trained with, found without the network."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from seguq.core.errors import SeguqError
from seguq.core.reading import mapping, read_json, reading

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class Normalization(NamedTuple):
    """Mean and deviation of each channel, of pixels scaled to 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def checked(cls, mean: tuple[float, ...] | list[float], std: tuple[float, ...] | list[float]) -> Normalization:
        """Make one from a user's numbers.

        Raises:
            SeguqError: if the two differ in length or a deviation is not above 0.
        """
        finite = all(math.isfinite(value) for value in (*mean, *std))
        if len(mean) != len(std) or not mean or not finite or not all(value > 0 for value in std):
            raise SeguqError(f"mean={mean} and std={std} must have one number a channel, all finite and std above 0")
        return cls(tuple(float(m) for m in mean), tuple(float(s) for s in std))


def imagenet_normalization(channels: int = 3) -> Normalization:
    """ImageNet's mean and deviation for RGB; for another number of channels their averages, for each channel."""
    if channels == 3:
        return Normalization(_IMAGENET_MEAN, _IMAGENET_STD)
    return Normalization((sum(_IMAGENET_MEAN) / 3,) * channels, (sum(_IMAGENET_STD) / 3,) * channels)


def encoder_normalization(encoder: str, channels: int = 3, weights: str | None = "imagenet") -> Normalization:
    """The normalization that goes with an encoder of segmentation-models-pytorch.

    timm's encoders (``tu-...``) carry theirs in the package; the others' lie in the hub's cache where their weights
    were downloaded before. Where neither is there, or for other than 3 channels, ImageNet's are taken.

    Args:
        encoder: the encoder's name.
        channels: channels of an image.
        weights: name of the pretrained weights.

    Example:
        >>> encoder_normalization("tu-tf_efficientnet_lite0").mean
        (0.5, 0.5, 0.5)
    """
    settings: dict[str, Any] | None = None
    if channels == 3:
        settings = _timm_settings(encoder[3:]) if encoder.startswith("tu-") else _cached_settings(encoder, weights)
    if settings is None:
        return imagenet_normalization(channels)
    return Normalization.checked(settings["mean"], settings["std"])


def _timm_settings(name: str) -> dict[str, Any] | None:
    import timm

    config = timm.models.get_pretrained_cfg(name, allow_unregistered=True)
    return None if config is None else {"mean": config.mean, "std": config.std}


def _cached_settings(encoder: str, weights: str | None) -> dict[str, Any] | None:
    # smp's own get_preprocessing_params would ask the hub, and fails without the network
    from huggingface_hub import try_to_load_from_cache
    from segmentation_models_pytorch.encoders import encoders

    known = encoders.get(encoder, {}).get("pretrained_settings", {}).get(weights)
    if not known or "repo_id" not in known:
        return None
    path = try_to_load_from_cache(known["repo_id"], "config.json", revision=known.get("revision"))
    if not isinstance(path, str):
        return None
    with reading(path, advice="remove it from the cache of the hub"):
        settings = mapping(read_json(path), "its content")
        if "mean" not in settings or "std" not in settings:
            return None
        Normalization.checked(settings["mean"], settings["std"])
        return settings
