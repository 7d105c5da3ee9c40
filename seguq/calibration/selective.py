"""Two temperatures, mixed for each pixel by how likely it is that the prediction is wrong."""

from __future__ import annotations

import itertools
import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as nn_functional

from seguq.calibration.base import Calibrator
from seguq.calibration.crops import CropStream
from seguq.calibration.few_parameters import LOG_BOUND
from seguq.calibration.newton import Ridge, newton
from seguq.calibration.sample import Sample
from seguq.calibration.sampled import SampledCalibrator
from seguq.core.checks import require_count
from seguq.core.errors import UsageError
from seguq.core.seeds import derive_seed
from seguq.functional.likelihood import temperature_field_nll
from seguq.functional.logits import Task

_LOWEST = -20.0  # of a log-probability that is looked at
_EPOCHS, _BATCH, _RATE = 8, 4096, 2e-3
_MOST_WEIGHT = 10.0
_RIDGE = 1e-6


class SelectiveScaling(SampledCalibrator):
    r"""Divide the logits of a pixel by one temperature where it is right, by another where wrong, softly between.

    .. math:: \log T = (1 - q) \log T_c + q \log T_w, \quad q = P(\text{wrong} \mid p)

    q comes from a small network over the log-probabilities of a pixel (C, 2 C and C wide), which learns to tell wrong
    pixels from right ones; then both temperatures are fitted by Newton's method for the least negative log-likelihood.
    With a q that tells nothing it is one temperature. The predicted class of a pixel never changes.

    Args:
        num_classes: C.
        base: name of a calibrator that is fitted and applied first, such as ``"entropy"``; None: none.
        task: as in `seguq.functional.class_logits`.
        ignore_index: value of the target that is left out.
        seed: of the network's first weights, and the order that it sees pixels in.

    Attributes:
        log_temperatures: of right and of wrong pixels, ``(2,)``, a buffer.
        network: the network.
        inner: the fitted base, or None.

    References:
        Wang et al., On Calibrating Semantic Segmentation Models: Analyses and An Algorithm, 2023 (there T = 1 where
        right, and one temperature where q is above one half).

    Example:
        >>> cal = SelectiveScaling(num_classes=2, base="entropy")
        >>> cal.temperature_map(torch.randn(1, 2, 2, 2)).unique()           # nothing was fitted yet
        tensor([1.])
    """

    name: ClassVar[str] = "selective"
    order_preserving: ClassVar[bool] = True
    log_temperatures: Tensor

    def __init__(
        self,
        num_classes: int,
        base: str | None = None,
        task: Task = "multiclass",
        ignore_index: int = 255,
        seed: int = 0,
    ) -> None:
        super().__init__(task, ignore_index)
        require_count("num_classes", num_classes, least=2)
        self.num_classes, self.base, self.seed = num_classes, base, seed
        self.inner = None if base is None else _base(base, num_classes, task, ignore_index)
        with torch.inference_mode(False):
            self.register_buffer("log_temperatures", torch.zeros(2))
            self.network = _Network(num_classes)

    def fitted(self) -> dict[str, Any]:
        """Both temperatures, and what the base has learned."""
        right, wrong = self.log_temperatures.exp().tolist()
        inner = {} if self.inner is None else self.inner.fitted()
        return {"temperature_where_right": right, "temperature_where_wrong": wrong, **inner}

    def require_valid(self) -> None:
        """Raise for temperatures that no fit gives."""
        super().require_valid()
        if float(self.log_temperatures.abs().max()) > LOG_BOUND + 1e-4:
            raise ValueError(f"its log_temperatures are {self.log_temperatures.tolist()}, not within +-{LOG_BOUND:.4g}")
        if float(self.network.deviation.min()) <= 0:
            raise ValueError("its 'network.deviation' is not above 0")
        if self.inner is not None:
            self.inner.require_valid()

    def features(self, logits: Tensor, image: Tensor | None) -> Tensor | None:
        """What the base reads."""
        return None if self.inner is None else self.inner.features(logits, image)

    def temperature_map(self, logits: Tensor, image: Tensor | None = None) -> Tensor:
        """What logits are divided by at every pixel, ``(B, 1, *spatial)``: T, times that of the base."""
        below, _ = self.taken_in(logits)
        features = self.read(below, image)
        inner = self._inner(below, features)
        first = 1.0
        if self.inner is not None:
            first = self.inner.temperature_map(below, image)
        return self._log_temperature(inner).exp().unsqueeze(1) * first

    def wrong(self, logits: Tensor) -> Tensor:
        """q of logits ``(B, C, *spatial)`` as the base leaves them: ``(B, *spatial)`` from 0 to 1."""
        said: Tensor = self.network(logits - logits.logsumexp(1, keepdim=True))
        return said.sigmoid()

    def calibrate(self, logits: Tensor, features: Tensor) -> Tensor:
        """Logits as the base leaves them, divided by T."""
        logits = self._inner(logits, features)
        return logits * torch.exp(-self._log_temperature(logits)).unsqueeze(1)

    def _inner(self, logits: Tensor, features: Tensor) -> Tensor:
        return logits if self.inner is None else self.inner.calibrate(logits, features)

    def _log_temperature(self, logits: Tensor) -> Tensor:
        right, wrong = self.log_temperatures.to(logits)
        return torch.lerp(right, wrong, self.wrong(logits)).clamp(-LOG_BOUND, LOG_BOUND)

    def learn(self, sample: Sample) -> None:
        """The base, the network over what it leaves, and the two temperatures."""
        if self.inner is not None:
            self.inner.learn(sample)
        with torch.no_grad():
            logits = self._inner(sample.logits, sample.features)
            wrong = (logits.argmax(1) != sample.target).float()
            log_probs = logits - logits.logsumexp(1, keepdim=True)
        generator = torch.Generator().manual_seed(derive_seed("selective", self.seed))
        share = float(wrong.mean())
        self.network = _Network(self.num_classes).to(logits.device)
        if 0 < share < 1:
            self.network.learn(log_probs, wrong, min(_MOST_WEIGHT, (1 - share) / share), generator)
        with torch.no_grad():
            q = self.wrong(logits)
        design = torch.stack((1 - q, q))
        flat, pixels = logits.T.contiguous(), len(sample.target)
        zero = torch.zeros(1, 2, dtype=torch.float64, device=logits.device)
        found = newton(
            lambda values: temperature_field_nll(flat, sample.target, design, values[0], LOG_BOUND),
            zero,
            ridge=Ridge(torch.full_like(zero, _RIDGE * pixels), zero),  # where q is 0 at all pixels, say
            bound=LOG_BOUND,
            enough=1e-7 * pixels,
        )
        self.log_temperatures = found[0].float().to(self.log_temperatures.device)


class _Network(nn.Module):
    """Log-probabilities ``(B, C, ...)`` to a logit ``(B, ...)`` of being wrong; its inputs are brought to one scale.

    Its weights are buffers, always new ones: tensors made in inference mode could not be changed outside of it.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(classes))
        self.register_buffer("deviation", torch.ones(classes))
        self.sizes = (classes, classes, 2 * classes, classes, 1)
        for layer, (taken, given) in enumerate(itertools.pairwise(self.sizes)):
            self.register_buffer(f"weight_{layer}", torch.zeros(given, taken))
            self.register_buffer(f"bias_{layer}", torch.zeros(given))

    @property
    def weights(self) -> list[Tensor]:
        """Weight and bias of each layer, one after the other."""
        return [getattr(self, f"{kind}_{layer}") for layer in range(len(self.sizes) - 1) for kind in ("weight", "bias")]

    @weights.setter
    def weights(self, weights: list[Tensor]) -> None:
        for (layer, kind), tensor in zip(
            itertools.product(range(len(self.sizes) - 1), ("weight", "bias")), weights, strict=True
        ):
            setattr(self, f"{kind}_{layer}", tensor)

    def forward(self, log_probs: Tensor) -> Tensor:
        """The logit of being wrong."""
        return self.computed(log_probs, self.weights)

    def computed(self, log_probs: Tensor, weights: list[Tensor]) -> Tensor:
        """The same with other weights."""
        shape = log_probs.shape
        flat = log_probs.movedim(1, -1).reshape(-1, shape[1]).clamp_min(_LOWEST)
        hidden = (flat - self.mean.to(flat)) / self.deviation.to(flat)
        for layer in range(len(self.sizes) - 1):
            weight, bias = (tensor.to(flat) for tensor in weights[2 * layer : 2 * layer + 2])
            hidden = nn_functional.linear(hidden.relu() if layer else hidden, weight, bias)
        return hidden.view(shape[0], *shape[2:])

    def learn(self, log_probs: Tensor, wrong: Tensor, weight: float, generator: torch.Generator) -> None:
        """Be trained on pixels ``(N, C)`` and whether each is wrong ``(N,)``, wrong ones weighted up."""
        clipped = log_probs.clamp_min(_LOWEST)
        self.mean, self.deviation = clipped.mean(0), clipped.std(0, correction=0).clamp_min(1e-2)
        weights = []
        for layer, (taken, given) in enumerate(itertools.pairwise(self.sizes)):
            bound = (layer < len(self.sizes) - 2) / math.sqrt(taken)  # the last begins at 0: q is one half everywhere
            for shape in ((given, taken), (given,)):
                drawn = (2 * torch.rand(shape, generator=generator) - 1) * bound
                weights.append(drawn.to(wrong.device).requires_grad_())
        optimizer = torch.optim.AdamW(weights, _RATE)
        steps = _EPOCHS * math.ceil(len(wrong) / _BATCH)
        rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5 * _RATE, total_steps=steps)
        factor = torch.tensor(weight, device=wrong.device)
        with torch.enable_grad():
            for _ in range(_EPOCHS):
                order = torch.randperm(len(wrong), generator=generator).to(wrong.device)
                for rows in torch.split(order, _BATCH):
                    said = self.computed(clipped[rows], weights)
                    loss = nn_functional.binary_cross_entropy_with_logits(said, wrong[rows], pos_weight=factor)
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    rates.step()
        self.weights = [tensor.detach() for tensor in weights]


def _base(name: str, num_classes: int, task: Task, ignore_index: int) -> Any:
    """A calibrator to be applied first.

    Raises:
        UsageError: for one that is not fitted on pixels, or changes their class.
    """
    made = Calibrator.make(name, num_classes=num_classes, task=task, ignore_index=ignore_index)
    of_pixels = isinstance(made, SampledCalibrator) and not isinstance(made.stream(), CropStream)
    if not (of_pixels and made.order_preserving and hasattr(made, "temperature_map")):
        raise UsageError(
            f"SelectiveScaling(base={name!r}) cannot stand on {type(made).__name__}: its base is one that has a "
            "temperature for every pixel and is fitted on single ones, such as 'entropy'"
        )
    return made
