"""How far samples of a model differ in what they segment: one score for each whole image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from seguq.core.checks import require_dims, require_target_range
from seguq.core.errors import SeguqError

_VALUES = 1 << 22  # zeros and ones at once: their products are exact in float32, as counts stay below 2^24


def pairwise_dice(labels: Tensor, num_classes: int, background: int | None = 0) -> Tensor:
    r"""How little the label maps of samples overlap, one score an image: 1 - mean Dice over all pairs of samples.

    .. math:: 1 - \frac{2}{S (S - 1)} \sum_{s < t} \frac1{|K|} \sum_{c \in K} \frac{2 |P_{sc} \cap P_{tc}|}
              {|P_{sc}| + |P_{tc}|}

    with the pixels :math:`P_{sc}` that sample s gives to class c, and the classes K but for the background. A class
    that neither of two samples has counts as one on which they agree, 1.

    Args:
        labels: class indices of S samples, ``(S, B, *spatial)``, whole numbers of any type; S at least 2.
        num_classes: C.
        background: class that is left out; None: all count.

    Returns:
        ``(B,)`` float32 from 0 (all samples are the same) to 1 (no two have a pixel of a class in common).

    Raises:
        SeguqError: for fewer than two samples, another shape, values that are no class, or no class but background.

    References:
        Zenk et al., Comparative Benchmarking of Failure Detection Methods in Medical Image Segmentation: Unveiling the
        Role of Confidence Aggregation, 2024; Roy et al., Bayesian QuickNAT, 2019.

    Example:
        >>> labels = torch.tensor([[[0, 1, 1, 0]], [[0, 1, 1, 0]], [[0, 1, 0, 0]]])    # 3 samples of one image
        >>> pairwise_dice(labels, num_classes=2)                                       # Dice of the pairs: 1, 2/3, 2/3
        tensor([0.2222])
    """
    labels = _checked("labels", labels, "(S, B, *spatial)", 3, num_classes)
    counted = [each for each in range(num_classes) if each != background]
    if not counted:
        raise SeguqError(f"num_classes={num_classes} without background={background} leaves no class to compare")
    fits = counted[-1] <= torch.iinfo(labels.dtype).max
    classes = torch.tensor(counted, device=labels.device, dtype=labels.dtype if fits else torch.long)[:, None, None]
    flat = labels.flatten(2).transpose(0, 1)  # (B, S, pixels)
    return _one_minus_mean_dice(flat, lambda part: part == classes, len(counted))


def multilabel_pairwise_dice(masks: Tensor) -> Tensor:
    r"""`pairwise_dice` of independent labels: each label is a class, and its mask is given as it is.

    Args:
        masks: 0 or 1 for each label, of S samples, ``(S, B, L, *spatial)``, whole numbers or bools; S at least 2.

    Returns:
        ``(B,)`` float32 from 0 to 1.

    Raises:
        SeguqError: for fewer than two samples, another shape, or other values than 0 and 1.

    Example:
        >>> masks = torch.tensor([[[[1, 1], [0, 0]]], [[[1, 0], [0, 0]]]])       # 2 samples, 1 image, 2 labels
        >>> multilabel_pairwise_dice(masks)                                      # Dice 2/3; empty against empty: 1
        tensor([0.1667])
    """
    masks = _checked("masks", masks, "(S, B, L, *spatial)", 4, 2)
    if not masks.shape[2]:
        raise SeguqError(f"masks of shape {tuple(masks.shape)} have no label to compare")
    flat = masks.flatten(3).permute(1, 2, 0, 3)  # (B, L, S, pixels)
    return _one_minus_mean_dice(flat, lambda part: part, masks.shape[2])


def _checked(name: str, labels: Tensor, layout: str, dims: int, num_classes: int) -> Tensor:
    require_dims(name, labels, layout, at_least=dims)
    if len(labels) < 2:
        raise SeguqError(f"{name} of {len(labels)} sample: pairwise Dice compares samples, so that two are needed")
    require_target_range(labels, num_classes, None, name=name)
    return labels.byte() if labels.dtype == torch.bool else labels


def _one_minus_mean_dice(images: Tensor, inside: Callable[[Tensor], Tensor], classes: int) -> Tensor:
    """The score of each image.

    Args:
        images: a row an image, ``(B, ..., S, pixels)``.
        inside: from some pixels of an image to the masks of the classes there, ``(classes, S, pixels)``.
        classes: how many.
    """
    samples, device = images.shape[-2], images.device
    above = torch.triu(torch.ones(samples, samples, dtype=torch.bool, device=device), diagonal=1)
    scores = torch.zeros(len(images), device=device)
    for number, image in enumerate(images):
        common = torch.zeros(classes, samples, samples, dtype=torch.float64, device=device)
        for part in image.split(max(1, _VALUES // (classes * samples)), -1):
            with torch.autocast(device.type, enabled=False):  # in half precision counts are rounded
                masks = inside(part).float()
                common += masks @ masks.mT
        sizes = common.diagonal(dim1=1, dim2=2)
        dice = 2 * common / (sizes.unsqueeze(1) + sizes.unsqueeze(2))
        scores[number] = 1 - dice.nan_to_num(1).mean(0)[above].mean()  # 0 / 0: neither has the class
    return scores
