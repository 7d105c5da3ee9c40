"""One pass through the model, in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from seguq.core.errors import SeguqError
from seguq.data.batches import output_logits, unpack_batch
from seguq.functional.logits import class_logits
from seguq.functional.uncertainty import standardized_max_logit
from seguq.inference.activated import is_first_batch, tell_of_probabilities
from seguq.inference.estimator import OneModelEstimator
from seguq.inference.evaluation import evaluation_mode
from seguq.inference.max_logits import MaxLogitStatistics
from seguq.inference.measures import Source, computed


class Deterministic(OneModelEstimator):
    """One pass: the measures of the softmax map, and of the logits.

    It cannot tell noise in the data from ignorance of the model; estimators with samples can.

    Args:
        model: any module whose output holds logits ``(B, C, *spatial)``; None: bound later, by a callback.
        max_logits: statistics of training data, for the measure ``standardized_max_logit``; `fit_max_logits` makes
            them.
        **settings: ``task``, ``measures``, ``calibrator``, ``forward``, ``features``, as in `Estimator`.

    Example:
        >>> est = Deterministic(torch.nn.Conv2d(3, 2, 1), calibrator=None)
        >>> est(torch.zeros(1, 3, 4, 4))["predictive_entropy"].shape
        torch.Size([1, 4, 4])
    """

    name: ClassVar[str] = "deterministic"
    gives: ClassVar[tuple[Source, ...]] = ("probs", "logits")

    def __init__(
        self, model: nn.Module | None = None, max_logits: MaxLogitStatistics | None = None, **settings: Any
    ) -> None:
        self.max_logits = max_logits
        super().__init__(model, **settings)

    @property
    def usual(self) -> tuple[str, ...]:
        """The measures of seguq that it has; with statistics ``standardized_max_logit`` too."""
        return (*super().usual, *(() if self.max_logits is None else ("standardized_max_logit",)))

    def fit_max_logits(self, batches: Iterable[Any]) -> MaxLogitStatistics:
        """Learn how large the largest logit is for each predicted class, and offer ``standardized_max_logit``.

        Args:
            batches: of training data, as `seguq.data.unpack_batch` takes them; masks are not looked at.

        Returns:
            The statistics, for other estimators of the same model (``Deterministic(model, max_logits=...)``).

        Raises:
            SeguqError: without a batch.
        """
        if self.task == "multilabel":
            raise SeguqError("standardized_max_logit is of one class a pixel, not of task='multilabel'")
        statistics: MaxLogitStatistics | None = None
        for batch in batches:
            images = unpack_batch(batch).image
            logits = self.pooled_logits(images, [""] * len(images))
            statistics = MaxLogitStatistics(logits.shape[1]).to(logits.device) if statistics is None else statistics
            statistics.update(logits)
        if statistics is None:
            raise SeguqError("there is no batch to learn from")
        self.max_logits = statistics
        if self._asked is None:
            self.measures = self.usual
        return statistics

    def _measures_of(self, logits: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
        maps = computed("logits", logits, names)
        if "standardized_max_logit" in names:
            assert self.max_logits is not None
            maps["standardized_max_logit"] = standardized_max_logit(logits, self.max_logits.mean, self.max_logits.std)
        return maps

    @property
    def tag(self) -> str:
        """``deterministic``."""
        return "deterministic"

    def pool(self, images: Tensor, ids: tuple[str, ...], names: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        with evaluation_mode(self.network):
            logits = self.logits_of(self.network, images)
        self._look_at(logits)
        return logits, self._measures_of(logits, names)

    def _look_at(self, logits: Tensor) -> None:
        if is_first_batch(self.network):
            tell_of_probabilities(self.network, logits)

    def of_output(self, output: Any, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Class logits, and the measures of them, of a pass that has run already.

        Args:
            output: what the model returned.
            images: what it was given, for the size.
        """
        logits = class_logits(output_logits(output, images.shape[2:]), self.task)
        self._look_at(logits)
        return logits, self._measures_of(logits, self.measures)

    def samples(self, images: Tensor, image_ids: Sequence[str] | None = None) -> Iterator[Tensor]:
        """The probabilities of the one pass, ``(B, C, *spatial)``."""
        images, _ = self.take_in(images, image_ids)
        with torch.no_grad(), evaluation_mode(self.network):
            probs = torch.softmax(self.logits_of(self.network, images), dim=1)
        yield self._sample_view(probs)
