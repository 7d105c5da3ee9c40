"""The image as one region."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seguq.inference import UncertaintyMaps
from seguq.regions.partition import Partition, spatial_size


class WholeImage(Partition):
    """One region: the image, or the volume.

    Example:
        >>> WholeImage()(torch.zeros(3, 1, 2)).tolist()
        [[0, 0]]
    """

    fills_boxes = True
    takes_volumes = True

    def __call__(self, image: Any, maps: UncertaintyMaps | None = None) -> Tensor:
        """Zeros, ``(H, W)`` or ``(D, H, W)`` int32."""
        return torch.zeros(spatial_size(image, maps), dtype=torch.int32)
