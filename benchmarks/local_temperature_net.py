"""Local temperature scaling as published, rebuilt from its description: what a T for each pixel is up against.

Ding et al., Local Temperature Scaling for Probability Calibration, 2021. A tree of convolutions over raw logits and the
image gives T at each pixel; all weights start at 0, so T = 2 everywhere. Trained by Adam with a rate of 1e-4 in batches
of 4, and the epoch with the lowest negative log-likelihood on held-out images is kept. Nothing of it is mended here:
the relu lets T fall to 1e-8, with no gradient back, and z and z + c give different results.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LocalTemperatureNet(nn.Module):
    """Logits ``(B, C, H, W)`` and the image to logits divided by T.

    Args:
        num_classes: C.
        image_channels: of the image.
        epochs: of training.
        seed: of the order of batches.
    """

    def __init__(self, num_classes: int, image_channels: int = 3, epochs: int = 200, seed: int = 0) -> None:
        super().__init__()
        self.epochs, self.seed = epochs, seed
        # the seven convolutions of the logits and the two of the image, each to one channel, side by side
        self.of_logits, self.of_image = (
            nn.Conv2d(channels, maps, 5, padding=4, dilation=2, padding_mode="reflect")
            for channels, maps in ((num_classes, 7), (image_channels, 2))
        )
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        self.to(memory_format=torch.channels_last)  # in which its convolutions take half the time

    def temperature_map(self, logits: Tensor, image: Tensor) -> Tensor:
        """T, ``(B, 1, H, W)``."""
        logits, image = (item.contiguous(memory_format=torch.channels_last) for item in (logits, image))
        maps, (of_image, gate) = self.of_logits(logits), self.of_image(image).split(1, 1)
        leaves, gates = (maps[:, :4] + 1).split(1, 1), maps[:, 4:].sigmoid().split(1, 1)
        low = gates[0] * leaves[0] + (1 - gates[0]) * leaves[1]
        high = gates[1] * leaves[2] + (1 - gates[1]) * leaves[3]
        tree = gates[2] * low + (1 - gates[2]) * high
        gate = gate.sigmoid()
        return F.relu(gate * tree + (1 - gate) * (of_image + 1) + 1) + 1e-8

    def forward(self, logits: Tensor, image: Tensor) -> Tensor:
        return logits / self.temperature_map(logits, image)

    def fit(self, train: Any, held_out: Any) -> LocalTemperatureNet:
        """Train, and keep the best epoch.

        Args:
            train: what has tensors ``logits``, ``image`` and ``target`` of all images.
            held_out: batches of ``(logits, image, target)``, to choose the epoch by.
        """
        adam = torch.optim.Adam(self.parameters(), lr=1e-4)
        generator = torch.Generator().manual_seed(self.seed)
        best, kept = self._nll(held_out), copy.deepcopy(self.state_dict())
        for _ in range(self.epochs):
            for chosen in torch.randperm(len(train.logits), generator=generator).split(4):
                logits, image = train.logits[chosen].float(), train.image[chosen].float()
                loss = F.cross_entropy(self(logits, image), train.target[chosen].long(), ignore_index=255)
                adam.zero_grad()
                loss.backward()
                adam.step()
            found = self._nll(held_out)
            if found < best:
                best, kept = found, copy.deepcopy(self.state_dict())
        self.load_state_dict(kept)
        return self

    @torch.no_grad()
    def _nll(self, batches: Any) -> float:
        total, pixels = 0.0, 0
        for logits, image, target in batches:
            total += float(F.cross_entropy(self(logits, image), target, ignore_index=255, reduction="sum"))
            pixels += int((target != 255).sum())
        return total / pixels
