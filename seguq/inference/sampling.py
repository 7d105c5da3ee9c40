"""What estimators with samples share: from a stream of samples to pooled logits and the samples' measures."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from seguq.core.log import say_once
from seguq.inference.activated import is_first_batch, tell_of_probabilities
from seguq.inference.estimator import Estimator
from seguq.inference.label_maps import LabelMaps
from seguq.inference.measures import Source, computed, measure
from seguq.inference.running import RunningMeasures


class SamplingEstimator(Estimator):
    """An estimator whose answer is pooled from several samples of the model, by running sums."""

    gives: ClassVar[tuple[Source, ...]] = ("probs", "samples")
    stored_as: ClassVar[Mapping[str, str]] = MappingProxyType({"samples": "number_of_samples"})

    @abstractmethod
    def sample_logits(self, images: Tensor, ids: tuple[str, ...]) -> Iterator[Tensor]:
        """Class logits of one sample at a time; between two of them the model is as it was found."""

    def pool(self, images: Tensor, ids: tuple[str, ...], names: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        running, kept = RunningMeasures(names), list[Tensor]()
        others = [name for name in names if _needs_all_samples(name)]
        labels = LabelMaps(self.task == "multilabel") if "pairwise_dice" in names else None
        if others:
            say_once(f"{', '.join(others)}: all samples of a batch are kept in memory, which takes longer")
        first = is_first_batch(self.models[0])
        for logits in self.sample_logits(images, ids):
            if first:
                tell_of_probabilities(self.models[0], logits)
            running.add(logits)
            if others:
                kept.append(torch.softmax(logits, dim=1))
            if labels is not None:
                labels.add(logits)
        maps = running.maps()
        if others:
            maps |= computed("samples", torch.stack(kept), others)
        if labels is not None:
            maps["pairwise_dice"] = labels.pairwise_dice()
        return running.pooled_logits, maps

    def samples(self, images: Tensor, image_ids: Sequence[str] | None = None) -> Iterator[Tensor]:
        """The probabilities of one sample at a time, ``(B, C, *spatial)``, raw (never calibrated)."""
        images, ids = self.take_in(images, image_ids)
        stream = self.sample_logits(images, ids)
        while True:
            # entered anew for each sample: a generator must not leave its caller without gradients in between
            with torch.no_grad():
                logits = next(stream, None)
                if logits is None:
                    return
                probs = torch.softmax(logits, dim=1)
            yield self._sample_view(probs)


def _needs_all_samples(name: str) -> bool:
    found = measure(name)
    return (
        found is not None and found.of == "samples" and found.compute is not None and name not in RunningMeasures.known
    )
