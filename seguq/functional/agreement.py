"""How far a model's uncertainty is that of people: several masks of one image, by several annotators."""

from __future__ import annotations

import torch
from torch import Tensor

from seguq.core.checks import require_target_range
from seguq.core.errors import SeguqError

_PIECE = 1 << 20  # pixels at once


def annotator_disagreement(masks: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    r"""Variance of the masks of several annotators at each pixel, summed over the classes.

    .. math:: \sum_c s_c (1 - s_c), \qquad s_c \text{ the share of annotators that say } c

    Args:
        masks: class indices of M annotators, ``(B, M, *spatial)``.
        num_classes: C.
        ignore_index: value of a pixel that an annotator left out; the others count.

    Returns:
        ``(B, *spatial)`` float32 from 0 (all say the same) to ``1 - 1/C``; NaN where fewer than two annotators say
        anything.

    Example:
        >>> annotator_disagreement(torch.tensor([[[0, 1], [0, 0]]]), num_classes=2)
        tensor([[0.0000, 0.5000]])
    """
    require_masks("masks", masks, num_classes, ignore_index)
    masks = masks.long()  # 156 of 8 bits compares as equal to an ignore_index of -100
    votes = (masks != ignore_index).sum(1)
    squares = torch.zeros(votes.shape, device=masks.device)
    for each in range(num_classes):
        if each != ignore_index:
            squares += ((masks == each).sum(1) / votes).square()
    return (1 - squares).masked_fill(votes < 2, torch.nan)


def normalized_cross_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation of two maps over the pixels of each image.

    Args:
        first: ``(B, *spatial)``; pixels where either map holds NaN are left out.
        second: the same shape.

    Returns:
        ``(B,)`` float64 from -1 to 1; NaN for an image in which either map is constant.

    References:
        Hu et al., Supervised Uncertainty Quantification for Segmentation with Multiple Annotators, 2019 (between
        uncertainty and the variance of the annotators).

    Example:
        >>> normalized_cross_correlation(torch.tensor([[0.1, 0.2, 0.4]]), torch.tensor([[0.0, 0.1, 0.3]]))
        tensor([1.], dtype=torch.float64)
    """
    if first.shape != second.shape:
        raise SeguqError(f"maps of shape {tuple(first.shape)} and {tuple(second.shape)} do not go together")
    maps = torch.stack((first.flatten(1), second.flatten(1))).double()
    counted = ~maps.isnan().any(0)
    number = counted.sum(1)
    maps = maps.masked_fill(~counted, 0)
    largest = maps.abs().amax(-1)
    # two passes: the mean first, so that a large one does not swallow the variance
    maps = (maps - (maps.sum(-1) / number).unsqueeze(-1)).masked_fill(~counted, 0)
    scatter = maps.square().sum(-1).sqrt()
    constant = (scatter <= 1e-12 * largest * number.sqrt()).any(0)
    correlation = (maps[0] * maps[1]).sum(-1) / scatter.prod(0)
    return correlation.clamp(-1, 1).masked_fill(constant, torch.nan)


def generalized_energy_distance(
    samples: Tensor, masks: Tensor, num_classes: int, ignore_index: int = 255, background: int | None = 0
) -> Tensor:
    r"""Squared generalized energy distance between segmentations that a model samples and masks by several annotators.

    .. math:: D^2 = 2 E[d(S, Y)] - E[d(S, S')] - E[d(Y, Y')], \qquad d = 1 - IoU

    Means are over all pairs, each sample and mask with itself among them, so that it is 0 where samples and masks are
    the same set. ``IoU`` is the mean over the classes that either of the two has; two that have none agree. All pairs
    are of the same pixels, those that every annotator labeled; a mask without a label is not one of an annotator.

    Args:
        samples: class indices of S samples, ``(B, S, *spatial)``.
        masks: class indices of M annotators, ``(B, M, *spatial)``.
        num_classes: C.
        ignore_index: value of pixels that an annotator left out.
        background: class that is left out, as it is in the papers; None: all count.

    Returns:
        ``(B,)`` float64 from 0 to 2, lower is better; NaN for an image without a pixel that every annotator labeled.

    References:
        Kohl et al., A Probabilistic U-Net for Segmentation of Ambiguous Images, 2018, eq. 6.

    Example:
        >>> masks = torch.tensor([[[0, 1], [1, 1]]])
        >>> generalized_energy_distance(masks, masks, num_classes=2), generalized_energy_distance(1 - masks, masks, 2)
        (tensor([0.], dtype=torch.float64), tensor([1.], dtype=torch.float64))
    """
    require_masks("samples", samples, num_classes, None)
    require_masks("masks", masks, num_classes, ignore_index)
    if samples.shape[2:] != masks.shape[2:] or len(samples) != len(masks):
        raise SeguqError(f"samples of shape {tuple(samples.shape)} do not go with masks of {tuple(masks.shape)}")
    count, number = samples.shape[1], samples.shape[1] + masks.shape[1]
    zeros = torch.zeros(len(samples), number, number, dtype=torch.float64, device=samples.device)
    counted = [each for each in range(num_classes) if each not in (background, ignore_index)]
    both = {each: zeros.clone() for each in counted}
    says = torch.stack([(one.long() != ignore_index).any(1) for one in masks.flatten(2).unbind(1)], 1)
    pixels = zeros.new_zeros(len(samples))
    flat = torch.cat((samples.flatten(2), masks.flatten(2)), 1)
    for part in torch.split(flat, _PIECE, -1):
        part = part.long()  # 156 of 8 bits compares as equal to an ignore_index of -100
        common = ((part[:, count:] != ignore_index) | ~says.unsqueeze(-1)).all(1, keepdim=True)
        pixels += common.sum((1, 2))
        for each in both:
            inside = ((part == each) & common).float()  # whose products are exact up to 2^24 pixels
            both[each] += inside @ inside.mT
    overlap, classes = zeros.clone(), zeros.clone()
    for shared in both.values():
        sizes = shared.diagonal(dim1=1, dim2=2)
        union = sizes.unsqueeze(1) + sizes.unsqueeze(2) - shared
        overlap += (shared / union).nan_to_num(0)
        classes += union > 0
    distance = 1 - (overlap / classes).nan_to_num(1)
    # samples count the same, and so do the annotators that say anything
    people = says.double() / says.sum(1, keepdim=True)
    share = torch.cat((people.new_full((len(says), count), 1 / count), -people), 1)
    squared = 0 - torch.einsum("bi,bij,bj->b", share, distance, share)
    return squared.masked_fill((pixels == 0) | ~says.any(1), torch.nan)


def require_masks(name: str, masks: Tensor, num_classes: int, ignore_index: int | None) -> None:
    """Raise for what is no stack of class indices, ``(B, M, *spatial)``."""
    if masks.ndim < 3 or masks.shape[1] < 1:
        raise SeguqError(
            f"{name} must have shape (B, M, *spatial), several of each image, but have {tuple(masks.shape)}"
        )
    require_target_range(masks, num_classes, ignore_index, name=name)
