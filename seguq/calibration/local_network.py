"""One temperature a pixel by a small network, where that is worth something on groups that it has not seen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as nn_functional

from seguq.calibration.crops import CropStream
from seguq.calibration.entropy import EntropyTemperatureScaling, relative_entropy
from seguq.calibration.few_parameters import LOG_BOUND, one_log_temperature
from seguq.calibration.sample import Sample
from seguq.calibration.sampled import SampledCalibrator, SampleStream, judge
from seguq.core.checks import require_count
from seguq.core.errors import SeguqError
from seguq.core.groups import GroupOf
from seguq.core.progress import progress
from seguq.core.seeds import derive_seed
from seguq.functional.borders import nearness_to_borders
from seguq.functional.logits import Task

_LOWEST = -10.0  # of a log-probability that is looked at
_DOUBLINGS = 3  # of the distance to the predicted border that is looked at: 1, 2, 4 and 8 pixels
_HIDDEN = 8
_BATCH, _RATE = 8, 1e-2
_CONV = {1: nn_functional.conv1d, 2: nn_functional.conv2d, 3: nn_functional.conv3d}
_KINDS = ("global", "entropy", "network")
_LARGEST_FACTOR = math.log(4.0)


class LocalTemperatureScaling(SampledCalibrator):
    r"""Divide the logits of each pixel by a temperature T that a small network gives, if that holds on unseen groups.

    .. math:: \log T = a + f(x), \quad |f| \le \log 4, \qquad \text{or} \quad \log T = a + b \, H(p) / \log C

    f is a network of some 1,000 numbers with one layer of 3 x 3. It reads the log-probabilities, the predicted class,
    the margin, the entropy, the distance to the predicted border, and with ``image_channels`` the image. It starts at
    the one best temperature (a, with f 0) and is trained over crops for the least negative log-likelihood. How
    long, is what was best on the half of the groups that it was not trained on. Where its likelihood there is not
    better than that of the entropy form and of one temperature, it becomes the better of these two, and a warning
    says so: a network that lowers the likelihood on other stretches of a video raises it on other videos.

    The predicted class of a pixel never changes. Kept for the fit are at most 256 crops of 32 x 32 pixels (10 x 10 x 10
    of volumes), drawn evenly.

    Args:
        num_classes: C.
        image_channels: channels of images, to read them too; None: the logits alone.
        spatial_dims: 2 for images, 3 for volumes.
        task: as in `seguq.functional.class_logits`.
        ignore_index: value of the target that is left out.
        epochs: passes over the crops at most.
        seed: of the first weights, and the order of crops.

    Attributes:
        line: a and b, a buffer.
        kind: 0 for one temperature, 1 for the entropy form, 2 for the network; a buffer.

    References:
        Ding et al., Local Temperature Scaling for Probability Calibration, 2021 (another network, over raw logits).

    Example:
        >>> cal = LocalTemperatureScaling(num_classes=3)
        >>> cal.temperature_map(torch.randn(1, 3, 4, 4)).unique()           # nothing was fitted yet
        tensor([1.])
    """

    name: ClassVar[str] = "local_network"
    order_preserving: ClassVar[bool] = True
    line: Tensor
    kind: Tensor
    embedding: Tensor
    weight_0: Tensor
    weight_1: Tensor
    bias_1: Tensor
    weight_2: Tensor

    def __init__(
        self,
        num_classes: int,
        image_channels: int | None = None,
        spatial_dims: int = 2,
        task: Task = "multiclass",
        ignore_index: int = 255,
        epochs: int = 20,
        seed: int = 0,
    ) -> None:
        super().__init__(task, ignore_index)
        require_count("num_classes", num_classes, least=2)
        require_count("epochs", epochs)
        if image_channels is not None:
            require_count("image_channels", image_channels)
        if spatial_dims not in _CONV:
            raise SeguqError(f"spatial_dims must be 1, 2 or 3, but is {spatial_dims!r}")
        self.num_classes, self.image_channels, self.spatial_dims = num_classes, image_channels, spatial_dims
        self.epochs, self.seed = epochs, seed
        inputs = num_classes + 3 + (image_channels or 0)
        window = [3] * spatial_dims
        with torch.inference_mode(False):
            self.register_buffer("line", torch.zeros(2))
            self.register_buffer("kind", torch.zeros((), dtype=torch.int64))
            self.register_buffer("embedding", torch.zeros(num_classes, _HIDDEN))
            self.register_buffer("weight_0", torch.zeros(_HIDDEN, inputs))
            self.register_buffer("weight_1", torch.zeros(_HIDDEN, _HIDDEN, *window))
            self.register_buffer("bias_1", torch.zeros(_HIDDEN))
            self.register_buffer("weight_2", torch.zeros(_HIDDEN))

    def fitted(self) -> dict[str, Any]:
        """What it has become, and the line that it starts from."""
        a, b = self.line.tolist()
        return {"kind": _KINDS[int(self.kind)], "a": a, "b": b}

    def require_valid(self) -> None:
        """Raise for what no fit gives."""
        super().require_valid()
        if not 0 <= int(self.kind) < len(_KINDS):
            raise ValueError(f"its kind is {int(self.kind)}")
        if float(self.line.abs().max()) > 2 * LOG_BOUND + 1e-4:
            raise ValueError(f"its line is {self.line.tolist()}, not within +-{2 * LOG_BOUND:.4g}")

    def features(self, logits: Tensor, image: Tensor | None) -> Tensor | None:
        """Nearness to the predicted border, and the image, ``(B, K, *spatial)``."""
        labels = logits.shape[2 : -self.spatial_dims]
        if logits.ndim != 2 + (self.task == "multilabel") + self.spatial_dims:
            raise SeguqError(
                f"LocalTemperatureScaling(spatial_dims={self.spatial_dims}) takes class logits of {self.spatial_dims} "
                f"spatial dimensions, but they have shape {tuple(logits.shape)}"
            )
        spatial = logits.shape[-self.spatial_dims :]
        near = nearness_to_borders(_first_zero(logits).reshape(-1, *spatial), _DOUBLINGS)
        found = near.to(logits).view(len(logits), 1, *labels, *spatial)
        if self.image_channels is None:
            return found
        if image is None or image.shape[:2] != (len(logits), self.image_channels) or image.shape[2:] != spatial:
            raise SeguqError(
                f"LocalTemperatureScaling(image_channels={self.image_channels}) reads images of shape "
                f"{(len(logits), self.image_channels, *spatial)}, but was given "
                f"{'none' if image is None else tuple(image.shape)}"
            )
        image = image.to(logits).view(len(logits), self.image_channels, *[1] * len(labels), *spatial)
        return torch.cat((found, image.expand(-1, -1, *labels, *spatial)), 1)

    def temperature_map(self, logits: Tensor, image: Tensor | None = None) -> Tensor:
        """T at every pixel, ``(B, 1, *spatial)`` from 1/20 to 20; logits as in `forward`."""
        below, _ = self.taken_in(logits)
        return self._log_temperature(below, self.read(below, image), self._weights).exp().unsqueeze(1)

    def calibrate(self, logits: Tensor, features: Tensor) -> Tensor:
        """Logits divided by T."""
        return self._divided(logits, features, self._weights)

    @property
    def _weights(self) -> list[Tensor]:
        return [self.embedding, self.weight_0, self.weight_1, self.bias_1, self.weight_2]

    def _divided(self, logits: Tensor, features: Tensor, weights: Sequence[Tensor]) -> Tensor:
        return logits * torch.exp(-self._log_temperature(logits, features, weights)).unsqueeze(1)

    def _log_temperature(self, logits: Tensor, features: Tensor, weights: Sequence[Tensor]) -> Tensor:
        a, b = self.line.to(logits)
        if int(self.kind) != _KINDS.index("network"):
            log_temperature: Tensor = a + b * relative_entropy(logits.movedim(1, 0))
        else:
            log_temperature = a + self._network(logits, features, weights)
        return log_temperature.clamp(-LOG_BOUND, LOG_BOUND)

    def _network(self, logits: Tensor, features: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """f ``(B, *spatial)``, from -log 4 to log 4."""
        embedding, first, second, bias, last = (tensor.to(logits) for tensor in weights)
        spatial = logits.shape[-self.spatial_dims :]
        classes = _first_zero(logits)
        others = logits.scatter(1, classes.unsqueeze(1), -torch.inf).amax(1, keepdim=True)
        powers = logits.exp()
        total = powers.sum(1, keepdim=True)
        log_total = total.log()
        expected = (powers * logits.clamp_min(-1e4)).sum(1, keepdim=True) / total
        entropy = (log_total - expected) / math.log(logits.shape[1])
        margin = (1 - others.exp()) / total
        log_probs = (logits - log_total).clamp_min(_LOWEST) / -_LOWEST
        inputs = torch.cat((log_probs, entropy, margin, features), 1)
        # independent labels are images of their own
        inputs = inputs.movedim(1, -1 - self.spatial_dims).reshape(-1, inputs.shape[1], *spatial)
        classes = classes.reshape(-1, *spatial)
        ones = [1] * self.spatial_dims
        conv = _CONV[self.spatial_dims]
        hidden = conv(inputs, first.view(*first.shape, *ones))
        hidden = (hidden + nn_functional.embedding(classes, embedding).movedim(-1, 1)).relu()
        hidden = conv(hidden, second, bias, padding=1).relu()
        out = conv(hidden, last.view(1, -1, *ones))
        factor: Tensor = _LARGEST_FACTOR * torch.tanh(out).view(logits[:, 0].shape)
        return factor

    # ---- how it is fitted ----

    def stream(self, group: GroupOf = None) -> SampleStream:
        """Crops of images."""
        return CropStream(self, group)

    def learn(self, sample: Sample) -> None:
        """Be trained, as long as was best on halves of the groups; or become the entropy form, or one temperature."""
        for _ in progress(self._learned(sample), "training a local network", total=3 * self.epochs, transient=True):
            pass

    def _learned(self, sample: Sample) -> Iterator[None]:
        """As `learn`, after every epoch."""
        self.doubt = None
        halves = sample.halves()
        pixels = sample.pixels(self.ignore_index)
        entropy = EntropyTemperatureScaling(self.task, self.ignore_index)
        entropy.learn(pixels)
        simple = {"global": (one_log_temperature(pixels), 0.0), "entropy": tuple(entropy.weights.tolist())}
        if halves is None:
            self._become("entropy", simple["entropy"])
            self.doubt = (
                "LocalTemperatureScaling saw one group only, on which nothing can tell how long to train a network: it "
                "has become the entropy form"
            )
            return
        losses: dict[str, float] = dict.fromkeys(simple, 0.0)
        curve = [0.0] * self.epochs
        for one, other in (halves, halves[::-1]):
            part = one.pixels(self.ignore_index)
            entropy.learn(part)
            for name, line in (("global", (one_log_temperature(part), 0.0)), ("entropy", entropy.weights.tolist())):
                self._become(name, line)
                losses[name] += self._loss(other)
            for epoch, loss in enumerate(self._trained(one, losses_on=other)):
                curve[epoch] += loss
                yield
        best = min(range(self.epochs), key=curve.__getitem__)
        found = min(losses, key=losses.__getitem__)
        if curve[best] < losses[found]:
            for _ in self._trained(sample, epochs=best + 1):
                yield
            return
        self._become(found, simple[found])
        said = "one temperature" if found == "global" else "the entropy form"
        count = max(1, len(pixels.target))
        self.doubt = (
            f"LocalTemperatureScaling has become {said}: on groups that it was not trained on its network has a "
            f"negative log-likelihood of {curve[best] / count:.4f}, and {said} one of {losses[found] / count:.4f}"
        )

    def _become(self, kind: str, line: Sequence[float], weights: Sequence[Tensor] | None = None) -> None:
        device = self.line.device
        self.line = torch.tensor(line, device=device)
        self.kind = torch.tensor(_KINDS.index(kind), device=device)
        names = ("embedding", "weight_0", "weight_1", "bias_1", "weight_2")
        weights = [torch.zeros_like(tensor) for tensor in self._weights] if weights is None else weights
        for name, tensor in zip(names, weights, strict=True):
            setattr(self, name, tensor.detach().to(device))

    def _loss(self, sample: Sample) -> float:
        return float(judge(sample, self, self.ignore_index).nll.sum())

    def _trained(
        self, sample: Sample, *, losses_on: Sample | None = None, epochs: int | None = None
    ) -> Iterator[float]:
        """Train from one temperature on, and give the loss on another sample after every epoch."""
        generator = torch.Generator().manual_seed(derive_seed("local network", self.seed))
        device = sample.logits.device
        self._become("network", (one_log_temperature(sample.pixels(self.ignore_index)), 0.0))
        weights = []
        for tensor in self._weights:
            inputs = tensor[0].numel()
            drawn = torch.randn(tensor.shape, generator=generator) * math.sqrt(2 / inputs)
            weights.append((drawn if tensor.ndim > 1 else torch.zeros_like(drawn)).to(device).requires_grad_())
        optimizer = torch.optim.AdamW(weights, _RATE, weight_decay=1e-3)
        batches = math.ceil(len(sample.target) / _BATCH)
        rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs * batches)
        for _ in range(self.epochs if epochs is None else epochs):
            order = torch.randperm(len(sample.target), generator=generator).to(device)
            for rows in torch.split(order, _BATCH):
                target = sample.target[rows]
                with torch.enable_grad():
                    out = self._divided(sample.logits[rows], sample.features[rows], weights)
                    losses = nn_functional.cross_entropy(out, target, ignore_index=self.ignore_index, reduction="sum")
                    loss = losses / (target != self.ignore_index).sum().clamp_min(1)
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                rates.step()
            self._become("network", self.line.tolist(), weights)
            yield math.nan if losses_on is None else self._loss(losses_on)


def _first_zero(logits: Tensor) -> Tensor:
    """The predicted classes ``(B, *spatial)`` of logits of which the largest is 0: argmax, which is slow on a CPU."""
    if logits.device.type != "cpu":
        return logits.argmax(1)
    found = torch.zeros_like(logits[:, 0], dtype=torch.int64)
    for number in range(logits.shape[1] - 1, 0, -1):
        found.masked_fill_(logits[:, number] == 0, number)
    return found.masked_fill_(logits[:, 0] == 0, 0)
