"""One pass through the model, in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from seguq.inference.estimator import Estimator, evaluation_mode
from seguq.inference.measures import LOGIT_MEASURES, PROB_MEASURES, of_logits


class Deterministic(Estimator):
    """One pass: the measures of the softmax map, and of the logits.

    It cannot tell noise in the data from ignorance of the model; estimators with samples can.

    Args:
        model: any module whose output holds logits ``(B, C, *spatial)``.
        **settings: ``task``, ``measures``, ``calibrator``, ``forward``, as in `Estimator`.

    Example:
        >>> est = Deterministic(torch.nn.Conv2d(3, 2, 1), calibrator=None)
        >>> est(torch.zeros(1, 3, 4, 4))["predictive_entropy"].shape
        torch.Size([1, 4, 4])
    """

    available: ClassVar[tuple[str, ...]] = (*PROB_MEASURES, *LOGIT_MEASURES)

    def __init__(self, model: nn.Module, **settings: Any) -> None:
        super().__init__(**settings)
        self.model = model

    @property
    def tag(self) -> str:
        """``deterministic``."""
        return "deterministic"

    @property
    def models(self) -> Sequence[nn.Module]:
        """The one model."""
        return (self.model,)

    def _pool(self, images: Tensor, ids: tuple[str, ...], names: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        with evaluation_mode(self.model):
            logits = self._logits(self.model, images)
        return logits, of_logits(logits, names)

    def samples(self, images: Tensor, image_ids: Sequence[str] | None = None) -> Iterator[Tensor]:
        """The probabilities of the one pass, ``(B, C, *spatial)``."""
        images, _ = self._take_in(images, image_ids)
        with torch.no_grad(), evaluation_mode(self.model):
            probs = torch.softmax(self._logits(self.model, images), dim=1)
        yield self._sample_view(probs)
