"""MC dropout: several passes with dropout switched on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from seguq.core.errors import SeguqError, UsageError
from seguq.core.seeds import derive_seed, generator_state, same_state, seeded
from seguq.inference.dropout import is_dropout, is_normalization
from seguq.inference.estimator import OneModelEstimator, evaluation_mode
from seguq.inference.sampling import SamplingEstimator

Layers = str | Callable[[str, nn.Module], bool]


class MCDropout(OneModelEstimator, SamplingEstimator):
    """Samples of the model by dropout at prediction time.

    Without ``seed``, the samples are those of a plain loop over the model that draws from torch's global generator.
    With ``seed``, the masks depend on (seed, image id, sample) alone: an image has the same maps whatever batch it
    comes in, and the global generator is left as it was. A seed costs passes of one image each, in place of passes
    of a whole batch.

    Args:
        model: any module whose output holds logits ``(B, C, *spatial)``; None: bound later, by a callback.
        samples: number of passes, S. From about 6 on they help, near 40 they saturate.
        seed: for masks that can be had again; None: from the global generator.
        layers: ``"dropout"``: torch's dropout modules of every kind, timm's DropPath and torchvision's
            StochasticDepth; ``"all"``: every layer that behaves differently in training, but for those that
            keep running statistics; or a predicate ``(name, module)`` that picks modules. Everything else stays in
            evaluation mode.
        **settings: ``task``, ``measures``, ``calibrator``, ``forward``, as in `Estimator`.

    Raises:
        SeguqError: for wrong arguments; on a call, if the model drew no random number.

    References:
        Gal and Ghahramani, Dropout as a Bayesian Approximation, 2016; Kendall et al., Bayesian SegNet, 2015.

    Example:
        >>> model = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(3, 2, 1))
        >>> maps = MCDropout(model, samples=4, seed=0, calibrator=None)(torch.ones(1, 3, 4, 4))
        >>> bool(maps["mutual_information"].max() > 0)
        True
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        samples: int = 20,
        seed: int | None = None,
        layers: Layers = "dropout",
        **settings: Any,
    ) -> None:
        super().__init__(model, **settings)
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
            raise UsageError(f"samples must be a whole number of at least 1, but is {samples!r}")
        if not callable(layers) and layers not in ("dropout", "all"):
            raise SeguqError(f"layers must be 'dropout', 'all' or a predicate (name, module), but is {layers!r}")
        self.number_of_samples = samples
        self.seed = seed
        self.layers = layers

    @property
    def tag(self) -> str:
        """``mc_dropout(layers=...)``."""
        layers = self.layers if isinstance(self.layers, str) else getattr(self.layers, "__qualname__", "predicate")
        return f"mc_dropout(layers={layers})"

    def _switched_on(self, name: str, module: nn.Module) -> bool:
        if is_normalization(module):
            return False
        if callable(self.layers):
            return bool(self.layers(name, module))
        return is_dropout(module) if self.layers == "dropout" else True

    def _details(self) -> dict[str, Any]:
        layers = tuple(name for name, module in self.network.named_modules() if self._switched_on(name, module))
        return {"layers": layers, "passes": self.number_of_samples}

    def _forwards(self, images: int) -> int:
        return self.number_of_samples * (1 if self.seed is None else images)

    def _sample_logits(self, images: Tensor, ids: tuple[str, ...]) -> Iterator[Tensor]:
        for sample in range(self.number_of_samples):
            with evaluation_mode(self.network, self._switched_on):
                if self.seed is None:
                    before = generator_state(images.device) if sample == 0 else None
                    logits = self._logits(self.network, images)
                    drawn = before is None or not same_state(before, generator_state(images.device))
                else:
                    logits, drawn = self._seeded_logits(images, ids, sample)
            if sample == 0 and len(images) and not drawn:
                raise SeguqError(self._nothing_random())
            yield logits

    def _pooling_seed(self) -> int:
        return int(torch.randint(2**62, ()).item()) if self.seed is None else 0

    def _seeded_logits(self, images: Tensor, ids: tuple[str, ...], sample: int) -> tuple[Tensor, bool]:
        assert self.seed is not None
        if not len(images):
            return self._logits(self.network, images), True
        rows, drawn = [], sample > 0
        for number, image_id in enumerate(ids):
            with seeded(derive_seed(self.seed, image_id, sample), images.device):
                before = generator_state(images.device) if sample == 0 else None
                rows.append(self._logits(self.network, images[number : number + 1]))
                drawn = drawn or (before is not None and not same_state(before, generator_state(images.device)))
        return torch.cat(rows), drawn

    def _nothing_random(self) -> str:
        layers = self._details()["layers"]
        found = f"{len(layers)} such layers" if layers else "no such layer"
        return (
            f"MC dropout needs randomness, but the model drew no random number (layers={self.layers!r}: {found}). "
            "Train it with dropout, or add some: seguq.inject_dropout(model, p=0.2); where its dropout is a function "
            "inside a forward, pass layers='all'"
        )

    def _seen_random(self, images: Tensor) -> tuple[str, ...]:
        """Names of the innermost modules during whose forward a generator moved."""
        seen: list[str] = []
        states: list[tuple[tuple[Tensor, ...], int]] = []
        handles = []

        def enter(*_: Any) -> None:
            states.append((generator_state(images.device), len(seen)))

        def leave(name: str) -> Callable[..., None]:
            def hook(*_: Any) -> None:
                before, count = states.pop()
                if len(seen) == count and not same_state(before, generator_state(images.device)):
                    seen.append(name)

            return hook

        try:
            for name, module in self.network.named_modules():
                handles.append(module.register_forward_pre_hook(enter, prepend=True))
                handles.append(module.register_forward_hook(leave(name)))
            with torch.no_grad(), evaluation_mode(self.network, self._switched_on), seeded(0, images.device):
                self._logits(self.network, images)
        finally:
            for handle in handles:
                handle.remove()
        return tuple(dict.fromkeys(seen))
