"""Deep ensembles: several models, trained apart, asked one after another."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from seguq.calibration import load, weights_sha256
from seguq.core.errors import SeguqError
from seguq.inference.estimator import evaluation_mode
from seguq.inference.sampling import SamplingEstimator


class DeepEnsemble(SamplingEstimator):
    """The members of an ensemble as samples of the model.

    Args:
        members: modules, or checkpoint files (Lightning checkpoints or bare state dicts), or both mixed.
        model: the module that the weights of checkpoint files go into; a copy of it is made for each.
        **settings: ``task``, ``measures``, ``calibrator``, ``forward``, as in `Estimator`.

    Raises:
        SeguqError: with no member, a file that does not fit, a file without ``model=``, or, on a call, members whose
            logits differ in shape.

    References:
        Lakshminarayanan et al., Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles, 2017.

    Example:
        >>> est = DeepEnsemble([nn.Conv2d(3, 2, 1) for _ in range(3)], calibrator=None)
        >>> import torch
        >>> est(torch.zeros(1, 3, 4, 4)).names[-1]
        'variation_ratio'
    """

    def __init__(
        self,
        members: Sequence[nn.Module | str | os.PathLike[str]],
        model: nn.Module | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if isinstance(members, (str, os.PathLike, nn.Module)) or not members:
            raise SeguqError("members must be a list of at least one module or checkpoint file")
        self.members = [self._member(member, model) for member in members]

    @staticmethod
    def _member(member: nn.Module | str | os.PathLike[str], model: nn.Module | None) -> nn.Module:
        if isinstance(member, nn.Module):
            return member
        if model is None:
            raise SeguqError(f"{member}: pass model=, the module that the weights of a checkpoint go into")
        return load(member, copy.deepcopy(model))

    @property
    def tag(self) -> str:
        """``deep_ensemble(members=..., weights=...)``: a calibrator is for these members, not for as many others."""
        return f"deep_ensemble(members={len(self.members)}, weights={self._weights})"

    @cached_property
    def _weights(self) -> str:
        hashes = sorted(weights_sha256(member) for member in self.members)
        return hashlib.sha256("".join(hashes).encode()).hexdigest()[:8]

    def bind(self, model: nn.Module) -> DeepEnsemble:
        """Itself: the members are its models."""
        return self

    @property
    def models(self) -> Sequence[nn.Module]:
        """The members."""
        return self.members

    def _sample_logits(self, images: Tensor, ids: tuple[str, ...]) -> Iterator[Tensor]:
        shape = None
        for number, member in enumerate(self.members):
            with evaluation_mode(member):
                logits = self._logits(member, images)
            if shape is not None and logits.shape != shape:
                raise SeguqError(
                    f"the members of an ensemble must agree in shape: member 0 gives {tuple(shape)}, "
                    f"member {number} {tuple(logits.shape)}"
                )
            shape = logits.shape
            yield logits
