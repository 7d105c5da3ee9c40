"""Checks for the public edge, of shapes, values and names; inside, they are trusted."""

from __future__ import annotations

import os
import re
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from seguq.core.errors import SeguqError, UsageError
from seguq.core.files import TEMPORARY_PREFIX

if TYPE_CHECKING:
    from typing_extensions import TypeIs

_AT_ONCE = 1 << 20  # pixels


def require_dims(name: str, tensor: Tensor, layout: str, *, at_least: int) -> None:
    """Raise unless ``tensor`` has at least ``at_least`` dimensions.

    Args:
        name: the argument's name, for the message.
        tensor: what was passed.
        layout: the expected shape as a person would write it, such as ``"(B, C, *spatial)"``.
        at_least: the smallest number of dimensions.

    Raises:
        SeguqError: with the expected layout and the shape that was met.
    """
    if tensor.ndim < at_least:
        raise SeguqError(
            f"{name} must be {layout}, at least {at_least} dimensions, but has shape {tuple(tensor.shape)}"
        )


def require_target_shape(scores: Tensor, target: Tensor, *, scores_name: str = "logits") -> None:
    """Raise unless ``target`` is ``(B, *spatial)`` where ``scores`` is ``(B, C, *spatial)``."""
    require_dims(scores_name, scores, "(B, C, *spatial)", at_least=2)
    expected = (scores.shape[0], *scores.shape[2:])
    if tuple(target.shape) != expected:
        raise SeguqError(
            f"target must be (B, *spatial) = {expected} to go with {scores_name} of shape {tuple(scores.shape)}, "
            f"but has shape {tuple(target.shape)}"
        )


def flat_images(values: Tensor) -> Tensor:
    """Values of each image side by side: ``(B, *spatial)`` to ``(B, n)``, also for B = 0; flat ``(n,)`` is one."""
    return values.flatten(1) if values.ndim > 1 else values.unsqueeze(0)


def require_target_range(target: Tensor, num_classes: int, ignore_index: int | None, *, name: str = "target") -> None:
    """Raise where a target is neither a class index in ``0 .. num_classes - 1`` nor ``ignore_index``."""
    if target.is_floating_point() or target.is_complex():
        raise SeguqError(f"{name} must hold class indices in an integer type, but has dtype {target.dtype}")
    # in parts, since what is made for the comparison is several times as large as a mask
    for part in torch.split(target.reshape(-1), _AT_ONCE):
        part = part.long()  # compared as they are, 255 of 8 bits would be -1
        if not len(part) or (int(part.min()) >= 0 and int(part.max()) < num_classes):
            continue
        wrong = (part < 0) | (part >= num_classes)
        if ignore_index is not None:
            wrong &= part != ignore_index
        if bool(wrong.any()):
            value = int(part[wrong][0])
            raise SeguqError(
                f"{name} holds the value {value}, which is no class index in 0..{num_classes - 1} "
                f"and not ignore_index={ignore_index}: correct the {name}, num_classes or ignore_index"
            )


class LabelWatch:
    """Notices labels that are 0 alone beside ignored pixels: masks of 0 and 255, where 255 means the foreground.

    Args:
        ignore_index: the value that is left out; nothing is noticed of another one than 255.

    Attributes:
        seen: ``(3,)`` int64: how many batches held class 0 or above, a class above 0, an ignored pixel. It adds up over
            processes.

    Example:
        >>> import torch
        >>> watch = LabelWatch(255)
        >>> watch.look(torch.tensor([0, 255]))
        >>> watch.suspicious
        True
        >>> watch.look(torch.tensor([0, 1]))
        >>> watch.suspicious
        False
    """

    def __init__(self, ignore_index: int | None) -> None:
        self.ignore_index = ignore_index
        self.seen = torch.zeros(3, dtype=torch.int64)

    @property
    def suspicious(self) -> bool:
        """Whether all labels were 0, and other pixels ignored."""
        labeled, foreground, ignored = (count > 0 for count in self.seen.tolist())
        return self.ignore_index == 255 and labeled and ignored and not foreground

    def look(self, target: Tensor) -> None:
        """Take in a batch of class indices of any shape; after the first with a class above 0, there is no doubt."""
        if self.ignore_index != 255 or int(self.seen[1]):
            return
        found = torch.zeros(3, dtype=torch.bool, device=target.device)
        for part in torch.split(target.reshape(-1), _AT_ONCE):
            ignored = part == self.ignore_index
            found |= torch.stack([(~ignored).any(), ((part > 0) & ~ignored).any(), ignored.any()])
        self.seen = self.seen.to(found.device) + found

    def report(self, whose: str) -> None:
        """Warn, where there is reason to.

        Args:
            whose: where the labels are, such as ``"the masks in data"``.
        """
        if self.suspicious:
            warnings.warn(
                f"{whose} hold 0 and 255, but no other class: pixels of 255 are left out as not labeled. If they are "
                "the foreground, divide the masks by 255",
                stacklevel=3,
            )


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise unless ``value`` is one of ``choices``, listing them."""
    if value not in choices:
        raise SeguqError(f"{name} must be one of {', '.join(choices)}, but is {value!r}")


def is_whole(value: Any, least: int | None = None) -> bool:
    """Whether a value is a whole number of at least so much, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)


def require_count(name: str, value: Any, least: int = 1) -> None:
    """Raise for what is no whole number of at least so much."""
    if not is_whole(value, least):
        raise UsageError(f"{name} must be a whole number of at least {least}, but is {value!r}")


def require_seed(value: Any) -> None:
    """Raise unless a seed is a whole number."""
    if not is_whole(value):
        raise SeguqError(f"seed must be a whole number, but is {value!r}")


def is_number(value: Any) -> TypeIs[int | float]:
    """Whether a value is a number, finite or not, and no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def require_plain_name(what: str, name: Any) -> None:
    """Raise for a name that, as a path, would lead out of the folder it is put into, or cannot be one.

    Wherever an id or a name that came from a file, a batch or a caller becomes part of a path, this is asked first.

    Args:
        what: what has the name, for the message.
        name: a text; it may contain ``/``, which makes folders.

    Raises:
        SeguqError: with the name.
    """
    parts = name.replace("\\", "/").split("/") if isinstance(name, str) else [""]
    bad = any(part in ("", ".", "..") or part.startswith(TEMPORARY_PREFIX) for part in parts)
    drive = isinstance(name, str) and (re.match(r"[A-Za-z]:[\\/]", name) or (os.name == "nt" and ":" in name))
    if bad or drive or "\0" in name:
        raise SeguqError(f"{what} {name!r} cannot be the name of a file in a folder: use names like 'street/0001'")


def require_text(what: str, name: str) -> None:
    """Raise for a name of a file that is no UTF-8, which tables and JSON of other programs cannot hold."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise SeguqError(f"{what} {name} is no UTF-8, so that no table can hold it: rename the file") from error
