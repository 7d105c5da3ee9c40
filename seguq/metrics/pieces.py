"""What metrics are given, checked and gone through piece by piece: memory does not grow with images or their size."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from seguq.core.checks import flat_images, require_target_range, require_target_shape
from seguq.core.errors import SeguqError
from seguq.functional.logits import full_precision

_PART_VALUES = 1 << 24  # sums of images held at once: 128 MiB
_CPU_PIECE, _GPU_PIECE = 1 << 19, 1 << 26  # numbers in work at once


def parts_of(images: int, values: int) -> Iterator[slice]:
    """Slices of images, of which each has so many values, that hold at most 2^24 values and at least one image."""
    step = max(1, _PART_VALUES // values)
    return (slice(start, start + step) for start in range(0, images, step))


def pieces_of(rows: Tensor, values: int = 4) -> Iterator[tuple[slice, slice]]:
    """Cut ``(B, n)`` into pieces that stay in a processor's cache, or suffice for a GPU.

    Args:
        rows: what is cut.
        values: how many numbers are in work at once for each of it; of indices there are always some.
    """
    most = max(1, (_GPU_PIECE if rows.is_cuda else _CPU_PIECE) // values)
    images = max(1, most // max(1, rows.shape[1]))
    for top in range(0, len(rows), images):
        for left in range(0, rows.shape[1], most):
            yield slice(top, top + images), slice(left, left + most)


def in_pieces(scores: Tensor, target: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """The images of each piece, their scores ``(b, C, p)``, at least float32, and their target ``(b, p)``, int64.

    Args:
        scores: ``(B, C, *spatial)``.
        target: ``(B, *spatial)``.
    """
    scores, target = scores.flatten(2), flat_images(target)
    for rows, columns in pieces_of(target, max(4, scores.shape[1])):
        # int64, since 156 of 8 bits compares as equal to an ignore_index of -100
        yield rows, full_precision(scores[rows, :, columns]), target[rows, columns].long()


def sums_in_pieces(scores: Tensor, target: Tensor, size: int, measure: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The sums of each image, ``(B, size)`` float64, as ``measure`` gives them for the scores and target of a piece."""
    sums = torch.zeros(len(target), size, dtype=torch.float64, device=target.device)
    for rows, some, labels in in_pieces(scores, target):
        sums[rows] += measure(some, labels)
    return sums


def checked_scores(
    scores: Tensor, target: Tensor, num_classes: int, ignore_index: int, name: str = "logits"
) -> tuple[Tensor, Tensor]:
    """Check the shapes of what a metric is given, and the target; the scores of ignored pixels may be anything.

    Returns:
        The scores ``(B, C, *spatial)`` and the target. Flat ones, ``(N, C)`` and ``(N,)``, come back as the one image
        that they are.

    Raises:
        SeguqError: for a wrong shape, number of classes, or a target out of range.
    """
    require_target_shape(scores, target, scores_name=name)
    if not scores.is_floating_point():
        raise SeguqError(f"{name} must be floating point, but have dtype {scores.dtype}")
    if scores.shape[1] != num_classes:
        raise SeguqError(
            f"{name} have {scores.shape[1]} classes in shape {tuple(scores.shape)}, but num_classes={num_classes}"
        )
    require_target_range(target, num_classes, ignore_index)
    return (scores.T.unsqueeze(0), target.unsqueeze(0)) if target.ndim == 1 else (scores, target)


def checked_probs(probs: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Check what a metric of probabilities is given: as `checked_scores`, and their values at labeled pixels."""
    probs, target = checked_scores(probs, target, num_classes, ignore_index, "probs")
    require_probs(probs, target, ignore_index)
    return probs, target


def require_probs(probs: Tensor, target: Tensor, ignore_index: int) -> None:
    """Raise unless ``(B, C, *spatial)`` holds probabilities wherever the target, ``(B, *spatial)``, is not ignored."""
    if not _are_probs(probs):
        # rasters have no value where there are no data, and such pixels are ignored
        for _, some, labels in in_pieces(probs, target):
            counted = some.masked_fill((labels == ignore_index).unsqueeze(1), 0)
            if not _are_probs(counted):
                nan = bool(counted.isnan().any())
                problem = "hold NaN" if nan else "are not between 0 and 1: apply softmax to logits first"
                raise SeguqError(f"probs {problem}")


def _are_probs(probs: Tensor) -> bool:
    if not probs.numel():
        return True
    low, high = probs.aminmax()  # NaN if there is one
    return bool((low >= -1e-3) & (high <= 1.001))


def of_true_class(scores: Tensor, target: Tensor) -> Tensor:
    """The score of each pixel's class: of ``(B, C, n)`` and ``(B, n)``, whose ignored pixels were set to any class."""
    return scores.gather(1, target.unsqueeze(1)).squeeze(1)
