"""The label maps of samples, all that is kept of them for scores of whole images."""

from __future__ import annotations

import torch
from torch import Tensor

from seguq.core.errors import SeguqError
from seguq.functional.dice import multilabel_pairwise_dice, pairwise_dice


class LabelMaps:
    """The predicted classes of each sample, a byte a pixel (two bytes of more than 256 classes).

    Args:
        multilabel: whether logits are of independent labels, ``(B, 2, L, *spatial)``; a byte a label and pixel then.
    """

    def __init__(self, multilabel: bool) -> None:
        self._multilabel = multilabel
        self._maps: list[Tensor] = []
        self._classes, self._dtype = 0, torch.float32

    def add(self, logits: Tensor) -> None:
        """Take in one sample: class logits ``(B, C, *spatial)``, raw, which are not kept."""
        self._classes, self._dtype = logits.shape[1], logits.dtype
        small = torch.uint8 if self._classes <= 256 else torch.int16
        self._maps.append((logits[:, 1] > logits[:, 0] if self._multilabel else logits.max(1).indices).to(small))

    def pairwise_dice(self) -> Tensor:
        """How little they overlap, ``(B,)``, of the type of the logits.

        Raises:
            SeguqError: of one sample alone.
        """
        if len(self._maps) < 2:
            raise SeguqError(
                "pairwise_dice compares samples, but the estimator draws one alone: two are needed (samples=2)"
            )
        labels = torch.stack(self._maps)
        found = multilabel_pairwise_dice(labels) if self._multilabel else pairwise_dice(labels, self._classes)
        return found.to(self._dtype)
