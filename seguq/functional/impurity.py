"""How mixed the predicted classes around a pixel are: borders of objects, and what is not sure of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as nn_functional

from seguq.core.checks import require_count
from seguq.core.errors import SeguqError

_POOL = {2: nn_functional.avg_pool2d, 3: nn_functional.avg_pool3d}


def region_impurity(classes: Tensor, num_classes: int, radius: int = 1) -> Tensor:
    r"""Entropy of the shares of the predicted classes in the window around each pixel, relative to the largest.

    .. math:: P = - \sum_c \frac{n_c}{n} \log \frac{n_c}{n} \Big/ \log C

    with :math:`n_c` of the n pixels of a window of side 2 k + 1 predicted as class c; at the border of the image the
    window is cut off.

    Args:
        classes: predicted class of each pixel, ``(B, *spatial)`` in ``0 .. num_classes - 1``, of 2 or 3 dimensions.
        num_classes: C, at least 2.
        radius: k.

    Returns:
        ``(B, *spatial)`` float32 from 0, where all of the window is of one class, to 1.

    Raises:
        SeguqError: for another number of dimensions.

    References:
        Xie et al., Towards Fewer Annotations: Active Learning via Region Impurity and Prediction Uncertainty for Domain
        Adaptive Semantic Segmentation, 2022, eq. 3.

    Example:
        >>> region_impurity(torch.tensor([[[0, 0, 0, 1]]]), 2)
        tensor([[[0.0000, 0.0000, 0.9183, 1.0000]]])
    """
    require_count("num_classes", num_classes, least=2)
    impurity = torch.zeros(classes.shape, device=classes.device)
    for number in range(num_classes):
        impurity += torch.special.entr(_window_mean((classes == number).float(), radius))
    return impurity / math.log(num_classes)


def ripu(entropy: Tensor, classes: Tensor, num_classes: int, radius: int = 1) -> Tensor:
    r"""Region impurity times the mean uncertainty of the window around each pixel (RIPU).

    .. math:: P \, U, \quad U = \frac1n \sum_i H(p_i) / \log C

    Args:
        entropy: predictive entropy ``(B, *spatial)``, in nats.
        classes: predicted class of each pixel, of the same shape.
        num_classes: C.
        radius: k, of a window of side 2 k + 1.

    Returns:
        ``(B, *spatial)`` from 0 to 1.

    References:
        Xie et al., 2022, eq. 5.

    Example:
        >>> ripu(torch.full((1, 1, 3), math.log(2)), torch.tensor([[[0, 0, 1]]]), 2)
        tensor([[[0.0000, 0.9183, 1.0000]]])
    """
    if entropy.shape != classes.shape:
        raise SeguqError(f"entropy of shape {tuple(entropy.shape)} does not go with classes {tuple(classes.shape)}")
    impurity = region_impurity(classes, num_classes, radius)
    return impurity * _window_mean(entropy.float(), radius) / math.log(num_classes)


def _window_mean(values: Tensor, radius: int) -> Tensor:
    """The mean over the part of a window that lies in the image, ``(B, *spatial)``."""
    require_count("the radius of a window", radius)
    dims = values.ndim - 1
    if dims not in _POOL:
        raise SeguqError(f"windows are of maps (B, *spatial) of 2 or 3 dimensions, not of shape {tuple(values.shape)}")
    if not values.numel():
        return values
    pool = _POOL[dims]
    return pool(values.unsqueeze(1), 2 * radius + 1, 1, radius, count_include_pad=False).squeeze(1)
