"""Mean, variance and last deviations of a network's weights along a training, by running sums."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from seguq.core.checks import is_whole
from seguq.core.errors import SeguqError, UsageError
from seguq.core.reading import listing, mapping, reading, text, whole


class WeightMoments:
    r"""The Gaussian that SWAG draws weights from, streamed: one call of `add` for each set of weights collected.

    .. math:: \theta = \bar\theta + \tfrac{1}{\sqrt 2} \operatorname{diag}(\Sigma)^{1/2} z_1
              + \tfrac{1}{\sqrt{2 (K - 1)}} D z_2, \qquad z_1, z_2 \sim N(0, I)

    The columns of D are the last K deviations from the running mean, each taken when its weights came in. What is held
    is (2 + K) times the weights, on the CPU, in float32 (float64 for float64 weights); parameters that never moved,
    as those of a frozen encoder, are held once.

    Args:
        rank: K, the most columns of D; at least 2, or 0 for a diagonal covariance
            alone, then with its full variance.

    Attributes:
        count: sets of weights that were collected.
        mean: of each floating-point parameter, by name.

    References:
        Maddox et al., A Simple Baseline for Bayesian Uncertainty in Deep Learning, 2019, algorithm 1 and eq. 1; code of
        the authors for the diagonal alone. The running update: Welford, Technometrics 4, 1962.

    Example:
        >>> moments = WeightMoments(rank=2)
        >>> model = nn.Linear(1, 1, bias=False)
        >>> for value in (1.0, 2.0, 6.0):
        ...     _ = nn.init.constant_(model.weight, value)
        ...     moments.add(model)
        >>> moments.mean["weight"].item(), round(moments.variance("weight").item(), 4)
        (3.0, 4.6667)
    """

    def __init__(self, rank: int = 20) -> None:
        if not is_whole(rank, 0) or rank == 1:
            raise UsageError(f"rank must be 0 (a diagonal covariance) or a whole number of at least 2, but is {rank!r}")
        self.rank = rank
        self.count = 0
        self.mean: dict[str, Tensor] = {}
        self.aliases: dict[str, str] = {}
        """Further names of parameters that are used in several places."""
        self._squares: dict[str, Tensor] = {}  # sums of squared deviations, of the parameters that have moved
        self._deviations: dict[str, list[Tensor]] = {}

    @torch.no_grad()
    def add(self, model: nn.Module) -> None:
        """Take in the weights that a model has now.

        Raises:
            SeguqError: if they hold NaN or infinity, or are not those of the same model; nothing is taken in then.
        """
        values, aliases = _weights(model)
        if self.count and {name: value.shape for name, value in values.items()} != {
            name: value.shape for name, value in self.mean.items()
        }:
            raise SeguqError("the weights are those of another model than the ones collected before")
        bad = next((name for name, value in values.items() if not bool(torch.isfinite(value).all())), None)
        if bad is not None:
            raise SeguqError(f"the weights hold NaN or infinite values, such as {bad!r}: the training has diverged")
        self.aliases = aliases
        self.count += 1
        # nothing is changed in place: a checkpoint may be on its way to the disk in another thread
        for name, value in values.items():
            if self.count == 1:
                self.mean[name] = value.clone()
            elif name in self._squares or not torch.equal(value, self.mean[name]):
                self._moved(name, value)

    def _moved(self, name: str, value: Tensor) -> None:
        before = value - self.mean[name]
        self.mean[name] = self.mean[name] + before / self.count
        after = value - self.mean[name]
        if name not in self._squares:
            self._squares[name] = torch.zeros_like(value)
            self._deviations[name] = [torch.zeros_like(value)] * min(self.count - 1, self.rank)
        self._squares[name] = self._squares[name].addcmul(before, after)
        self._deviations[name] = [*self._deviations[name], after][-self.rank :] if self.rank else []

    @property
    def moved(self) -> tuple[str, ...]:
        """Names of the parameters that have ever moved; `sample` draws these."""
        return tuple(self._squares)

    @property
    def columns(self) -> int:
        """Columns of D: the rank, or fewer where fewer sets of weights were collected."""
        return min(self.count, self.rank)

    def variance(self, name: str) -> Tensor:
        """The variance of a parameter over the weights collected (with 1/n)."""
        squares = self._squares.get(name)
        return torch.zeros_like(self.mean[name]) if squares is None else squares.clamp_min(0) / self.count

    def require_enough(self) -> None:
        """Raise where fewer than two sets of weights were collected, which have no covariance."""
        if self.count < 2:
            raise SeguqError(
                f"SWAG needs the weights of at least 2 moments of a training, but {self.count} were collected: train "
                "for longer, or let callbacks.SWAG begin earlier (start=) or collect more often (every_n_steps=)"
            )

    def sample(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw weights, by name; those of the parameters that have moved, as the others are their mean.

        Args:
            generator: of the CPU.
        """
        self.require_enough()
        columns = self.columns
        diagonal = math.sqrt(0.5) if self.rank else 1.0
        shared = torch.randn(columns, generator=generator, dtype=torch.float64).tolist()
        drawn = {}
        for name in self._squares:
            mean = self.mean[name]
            noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
            value = noise.mul_(self.variance(name).sqrt_()).mul_(diagonal).add_(mean)
            for weight, deviation in zip(shared, self._deviations[name], strict=True):
                value.add_(deviation, alpha=weight / math.sqrt(2 * (columns - 1)))
            drawn[name] = value
        return drawn

    def state(self) -> dict[str, Any]:
        """All of it as tensors and plain values, that a checkpoint can hold."""
        return {
            "rank": self.rank,
            "count": self.count,
            "aliases": dict(self.aliases),
            "mean": dict(self.mean),
            "squares": dict(self._squares),
            "deviations": {name: list(columns) for name, columns in self._deviations.items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> WeightMoments:
        """What `state` gave.

        Raises:
            SeguqError: if it is damaged.
        """
        with reading("what was collected for SWAG"):
            moments = cls(whole(state["rank"], "'rank'"))
            moments.count = whole(state["count"], "'count'", 0)
            aliases = mapping(state["aliases"], "'aliases'")
            moments.aliases = {name: text(first, f"the alias {name!r}") for name, first in aliases.items()}
            moments.mean = dict(mapping(state["mean"], "'mean'"))
            moments._squares = dict(mapping(state["squares"], "'squares'"))
            deviations = mapping(state["deviations"], "'deviations'")
            moments._deviations = {name: list(listing(columns, name)) for name, columns in deviations.items()}
            moments._require_consistent()
        return moments

    def _require_consistent(self) -> None:
        if set(self._squares) != set(self._deviations) or not set(self._squares) <= set(self.mean):
            raise ValueError("its parts name different parameters")
        if not set(self.aliases.values()) <= set(self.mean):
            raise ValueError("its aliases name unknown parameters")
        for name, mean in self.mean.items():
            parts = [self._squares[name], *self._deviations[name]] if name in self._squares else []
            if any(part.shape != mean.shape for part in parts) or (parts and len(parts) != 1 + self.columns):
                raise ValueError(f"the parts of {name!r} differ in shape")
            if not all(part.is_floating_point() and bool(torch.isfinite(part).all()) for part in (mean, *parts)):
                raise ValueError(f"the parts of {name!r} are no finite numbers")


def with_statistics(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers that keep running statistics, by name: BatchNorm of every kind, InstanceNorm that tracks them."""
    for name, module in model.named_modules():
        held = [getattr(module, part, None) for part in ("running_mean", "running_var")]
        if all(isinstance(part, Tensor) for part in held) and hasattr(module, "momentum"):
            yield name, module


def _weights(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The floating-point parameters by their first name, on the CPU; and further names, with the first ones."""
    values: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[int, str] = {}
    for full, parameter in model.named_parameters(remove_duplicate=False):
        name = full.replace("_orig_mod.", "")
        if not parameter.is_floating_point():
            continue
        if id(parameter) in first:
            aliases[name] = first[id(parameter)]
            continue
        first[id(parameter)] = name
        values[name] = parameter.detach().to("cpu", torch.promote_types(parameter.dtype, torch.float32))
    return values, aliases
