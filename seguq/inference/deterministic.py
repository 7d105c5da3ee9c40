"""One pass through the model, in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from seguq.data.batches import output_logits
from seguq.functional.logits import class_logits
from seguq.inference.estimator import OneModelEstimator, evaluation_mode
from seguq.inference.measures import LOGIT_MEASURES, PROB_MEASURES, of_logits


class Deterministic(OneModelEstimator):
    """One pass: the measures of the softmax map, and of the logits.

    It cannot tell noise in the data from ignorance of the model; estimators with samples can.

    Args:
        model: any module whose output holds logits ``(B, C, *spatial)``; None: bound later, by a callback.
        **settings: ``task``, ``measures``, ``calibrator``, ``forward``, as in `Estimator`.

    Example:
        >>> est = Deterministic(torch.nn.Conv2d(3, 2, 1), calibrator=None)
        >>> est(torch.zeros(1, 3, 4, 4))["predictive_entropy"].shape
        torch.Size([1, 4, 4])
    """

    available: tuple[str, ...] = (*PROB_MEASURES, *LOGIT_MEASURES)

    def __init__(self, model: nn.Module | None = None, **settings: Any) -> None:
        super().__init__(model, **settings)

    @property
    def tag(self) -> str:
        """``deterministic``."""
        return "deterministic"

    def _pool(self, images: Tensor, ids: tuple[str, ...], names: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        with evaluation_mode(self.network):
            logits = self._logits(self.network, images)
        return logits, of_logits(logits, names)

    def of_output(self, output: Any, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Class logits, and the measures of them, of a pass that has run already.

        Args:
            output: what the model returned.
            images: what it was given, for the size.
        """
        logits = class_logits(output_logits(output, images.shape[2:]), self.task)
        return logits, of_logits(logits, self.measures)

    def samples(self, images: Tensor, image_ids: Sequence[str] | None = None) -> Iterator[Tensor]:
        """The probabilities of the one pass, ``(B, C, *spatial)``."""
        images, _ = self._take_in(images, image_ids)
        with torch.no_grad(), evaluation_mode(self.network):
            probs = torch.softmax(self._logits(self.network, images), dim=1)
        yield self._sample_view(probs)
