"""The edge where other people's batches and model outputs are taken in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from seguq.core.errors import SeguqError

_IMAGE_KEYS = ("image", "images", "pixel_values", "input", "inputs", "x")
_MASK_KEYS = ("mask", "masks", "labels", "label", "target", "targets", "y")
_ID_KEYS = ("image_id", "image_ids", "id", "ids", "name", "filename")
_LOGIT_KEYS = ("logits", "out")

_FORWARD_HELP = "or pass forward=, a function of the model and the images that returns logits (B, C, *spatial)"


@dataclass(frozen=True)
class Batch:
    """One batch inside seguq.

    Attributes:
        image: ``(B, channels, *spatial)``.
        mask: class indices ``(B, *spatial)``, or None for images without labels.
        image_id: one name an image, or None where the batch gave none.
    """

    image: Tensor
    mask: Tensor | None = None
    image_id: tuple[str, ...] | None = None


def _first(batch: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((batch[key] for key in keys if key in batch), None)


def plain(tensor: Tensor) -> Tensor:
    """A tensor as torch's own: the same memory, without what a class derived from `Tensor` adds to its operations.

    MONAI's and torchvision's classes carry metadata along with each operation, and may refuse one that these do not
    fit; a parameter comes out as a tensor.
    """
    if type(tensor) is Tensor:
        return tensor
    with torch._C.DisableTorchFunctionSubclass():  # the class might make one of its own again
        return tensor.as_subclass(Tensor)


def is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are one: the same object, or the same values in the same memory."""
    if one is other:
        return True
    lying = [(each.shape, each.dtype, each.device, each.layout) for each in (one, other)]
    if lying[0] != lying[1] or one.layout != torch.strided or not one.numel():
        return False
    return one.data_ptr() == other.data_ptr() and one.stride() == other.stride()


def describe(value: Any) -> str:
    """What a batch or an output looks like, for an error message: types, keys and shapes."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return "a dict of " + ", ".join(f"{key!r}: {describe(item)}" for key, item in value.items())
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of ({', '.join(describe(item) for item in value)})"
    return f"a {type(value).__name__}"


def unpack_batch(batch: Any) -> Batch:
    """Take in a batch as data loaders give it.

    Args:
        batch: a dict with an image and possibly a mask and ids (``image``, ``pixel_values``, ... ``mask``, ``labels``,
            ...), a tuple ``(image,)``, ``(image, mask)``, ``(image, mask, ids)``
            or, where the second are texts, ``(image, ids)``, a bare image tensor, or a `Batch`.

    Raises:
        SeguqError: when none of that fits, with the keys and shapes that were met.

    Example:
        >>> unpack_batch((torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8))).image.shape
        torch.Size([2, 3, 8, 8])
    """
    if isinstance(batch, Batch):
        mask = None if batch.mask is None else plain(batch.mask)
        return replace(batch, image=plain(batch.image), mask=mask)
    image = mask = ids = None
    if isinstance(batch, Tensor):
        image = batch
    elif isinstance(batch, Mapping):
        image, mask, ids = (_first(batch, keys) for keys in (_IMAGE_KEYS, _MASK_KEYS, _ID_KEYS))
    elif isinstance(batch, (tuple, list)) and 1 <= len(batch) <= 3:
        image, mask, ids = (*batch, None, None)[:3]
        if len(batch) == 2 and isinstance(mask, (tuple, list)) and all(isinstance(item, str) for item in mask):
            mask, ids = None, mask  # texts are ids: images without labels
    if not isinstance(image, Tensor) or image.ndim < 3 or not (mask is None or isinstance(mask, Tensor)):
        raise SeguqError(
            f"a batch must be (image, mask) or a dict with 'image' and 'mask', but is {describe(batch)}: "
            "make the loader give one of these"
        )
    if isinstance(ids, Tensor):
        ids = ids.flatten().tolist()
    elif isinstance(ids, str):
        ids = [ids]
    mask = None if mask is None else plain(mask)
    return Batch(plain(image), mask, None if ids is None else tuple(str(i) for i in ids))


def output_logits(output: Any, spatial: Sequence[int] | None = None) -> Tensor:
    """Take the logits out of what a model returned.

    Args:
        output: a tensor, a dict with ``"logits"`` or ``"out"`` (torchvision), an object with ``.logits``
            (Hugging Face), or a tuple whose first item is one of these.
        spatial: the size to resize the logits to, bilinearly, where they have another one.

    Returns:
        ``(B, C, *spatial)``.

    Raises:
        SeguqError: when no logits are found, with the keys and shapes that were met.

    Example:
        >>> output_logits({"out": torch.zeros(1, 2, 4, 4)}, (8, 8)).shape
        torch.Size([1, 2, 8, 8])
    """
    logits = output
    if isinstance(logits, (tuple, list)) and logits:
        logits = logits[0]
    if isinstance(logits, Mapping):
        logits = _first(logits, _LOGIT_KEYS)
    elif not isinstance(logits, Tensor):
        logits = getattr(logits, "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim < 2:
        raise SeguqError(
            "a model must return logits (B, C, *spatial), a dict with 'out' or 'logits', or an object with .logits, "
            f"but returned {describe(output)}: change it, {_FORWARD_HELP}"
        )
    logits = plain(logits)
    if spatial is not None and tuple(logits.shape[2:]) != tuple(spatial):
        if logits.ndim not in (4, 5):
            raise SeguqError(f"logits of shape {tuple(logits.shape)} do not go with images of size {tuple(spatial)}")
        mode = "bilinear" if logits.ndim == 4 else "trilinear"
        logits = torch.nn.functional.interpolate(logits, size=tuple(spatial), mode=mode, align_corners=False)
    return logits
