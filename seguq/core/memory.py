"""Memory for what is computed again and again."""

from __future__ import annotations

import torch
from torch import Tensor


class Workspace:
    """Tensors by name that lie where the last ones of that name did.

    Asking for large tensors anew, piece after piece, takes as long as simple arithmetic on them does.

    Args:
        like: a tensor of the type, and on the device, of what it is for.
        pixels: the most columns that are asked for.
    """

    def __init__(self, like: Tensor, pixels: int) -> None:
        self._dtype, self._device, self._pixels = like.dtype, like.device, pixels
        self._held: dict[str, Tensor] = {}

    def __call__(self, name: str, rows: int, pixels: int, dtype: torch.dtype | None = None) -> Tensor:
        """An uninitialized tensor ``(rows, pixels)``, of one number of rows for each name."""
        if name not in self._held:
            size = rows * self._pixels
            self._held[name] = torch.empty(size, dtype=dtype or self._dtype, device=self._device)
        return self._held[name][: rows * pixels].view(rows, pixels)
