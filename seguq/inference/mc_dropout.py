"""MC dropout: several passes with dropout switched on."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from seguq.core.checks import require_count, require_seed
from seguq.core.errors import SeguqError
from seguq.core.log import say_once
from seguq.core.seeds import derive_seed, generator_state, own_generators, same_state, seeded
from seguq.inference.dropout import is_dropout, is_normalization
from seguq.inference.estimator import OneModelEstimator
from seguq.inference.evaluation import evaluation_mode, untouched
from seguq.inference.replay import Replay
from seguq.inference.replay.recorder import OWN_GENERATOR
from seguq.inference.replay.samples import seen_at_once
from seguq.inference.sampling import SamplingEstimator

Layers = str | Callable[[str, nn.Module], bool]


class MCDropout(OneModelEstimator, SamplingEstimator):
    """Samples of the model by dropout at prediction time.

    What does not depend on a random draw is computed once a batch, and only the rest for each sample. This is found by
    watching the generators during the first pass, and the first batch of a model is compared with whole passes; where
    it cannot be done, a warning says why, and every sample is a whole pass.

    Without ``seed``, the samples are those of a plain loop over the model that draws from torch's global generator, to
    the bit. With ``seed``, the masks depend on (seed, image id, sample) alone: an image has the same maps whatever
    batch it comes in, and the global generator is left as it was. A seed costs passes of one image each, in place of
    passes of a whole batch.

    Args:
        model: any module whose output holds logits ``(B, C, *spatial)``; None: bound later, by a callback.
        samples: number of passes, S. From about 6 on they help, near 40 they saturate.
        seed: for masks that can be had again; None: from the global generator.
        layers: ``"dropout"``: torch's dropout modules of every kind, and modules without parameters whose class has
            Dropout, DropBlock, DropPath or StochasticDepth in its name; what else is random in training is named in a
            warning, and stays off; ``"all"``: every layer that behaves differently in training, but for those
            that keep running statistics or a spectral norm; or a predicate ``(name, module)`` that picks modules.
            Everything else stays in evaluation mode.
        verify: compare two samples of a model's first batch with whole passes, and with ``layers="dropout"`` look for
            what is random in training but stays off, by one more pass.
        **settings: ``task``, ``measures``, ``calibrator``, ``forward``, ``features``, as in `Estimator`.

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

    name: ClassVar[str] = "mc_dropout"

    def __init__(
        self,
        model: nn.Module | None = None,
        samples: int = 20,
        seed: int | None = None,
        layers: Layers = "dropout",
        verify: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(model, **settings)
        require_count("samples", samples)
        if not callable(layers) and layers not in ("dropout", "all"):
            raise SeguqError(f"layers must be 'dropout', 'all' or a predicate (name, module), but is {layers!r}")
        if seed is not None:
            require_seed(seed)
        self.number_of_samples = samples
        self.seed = seed
        self.layers = layers
        self.verify = verify
        self._replay = Replay(verify)

    @property
    def tag(self) -> str:
        """``mc_dropout(layers=...)``."""
        layers = self.layers if isinstance(self.layers, str) else getattr(self.layers, "__qualname__", "predicate")
        return f"mc_dropout(layers={layers})"

    @property
    def looks_around(self) -> bool:
        """Whether it runs image by image: with a seed."""
        return self.seed is not None

    def _switched_on(self, name: str, module: nn.Module) -> bool:
        if is_normalization(module):
            return False
        if callable(self.layers):
            return bool(self.layers(name, module))
        return is_dropout(module) if self.layers == "dropout" else True

    def details(self) -> dict[str, Any]:
        layers = tuple(name for name, module in self.network.named_modules() if self._switched_on(name, module))
        return {"layers": layers, "passes": self.number_of_samples, "seed": self.seed}

    def forwards(self, images: Tensor) -> int:
        with torch.no_grad(), seeded(0, images.device):
            can = self._replay.can(self.network, functools.partial(self._pass, images), images.device)
        return (1 if can else self.number_of_samples) * (1 if self.seed is None else len(images))

    def look(self, images: Tensor, ids: tuple[str, ...], names: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """What `pool` gives, and the features; they are not those of the passes that are only run to tell something."""
        self._tell_of_left_off(images)
        return super().look(images, ids, names)

    def _pass(self, images: Tensor) -> Tensor:
        with evaluation_mode(self.network, self._switched_on):
            return self.logits_of(self.network, images)

    def sample_logits(self, images: Tensor, ids: tuple[str, ...]) -> Iterator[Tensor]:
        self._tell_of_left_off(images)
        if self.seed is not None and len(images):
            yield from self._seeded_logits(images, ids, self.seed)
            return
        before: tuple[Tensor, ...] | None = generator_state(images.device)
        count = self.number_of_samples
        for logits in self._replay.samples(self.network, lambda: self._pass(images), count, images.device):
            if before is not None and len(images) and same_state(before, generator_state(images.device)):
                raise SeguqError(self._nothing_random())
            before = None
            yield logits

    def _pooling_seed(self) -> int:
        return int(torch.randint(2**62, ()).item()) if self.seed is None else 0

    def _seeded_logits(self, images: Tensor, ids: tuple[str, ...], seed: int) -> Iterator[Tensor]:
        count, device = self.number_of_samples, images.device
        streams = [
            self._replay.samples(self.network, functools.partial(self._pass, image[None]), count, device)
            for image in images
        ]
        drawn = False
        for sample in range(self.number_of_samples):
            rows = []
            for stream, image_id in zip(streams, ids, strict=True):
                with seeded(derive_seed(seed, image_id, sample), images.device):
                    before = None if drawn else generator_state(images.device)
                    rows.append(next(stream))
                    drawn = drawn or (before is not None and not same_state(before, generator_state(images.device)))
            if not drawn:
                raise SeguqError(self._nothing_random())
            if sample == 0 and self._replay.problem(self.network) == OWN_GENERATOR:
                say_once(f"{self.tag}: the seed does not reach the generator of the model itself, whose draws differ")
            yield torch.cat(rows)

    def _tell_of_left_off(self, images: Tensor) -> None:
        """Name the modules that draw random numbers in training, and are not switched on; once a model."""
        model = self.network
        if not self.verify or self.layers != "dropout" or not len(images) or not self._replay.is_new(model):
            return
        # a script, compiled, with hooks whose effects are not known, or a generator that a pass would move
        if seen_at_once(model) is not None or own_generators(model) or _holds_generator(model):
            return
        try:
            with untouched(model):
                random = self._seen_random(images, lambda _, module: not is_normalization(module))
        except Exception:  # a model that wants labels in training: what it does then cannot be seen
            return
        modules = dict(model.named_modules())
        left = {name: modules[name] for name in random if not self._switched_on(name, modules[name])}
        if left:
            with untouched(model):
                drawn = self.seen_random(images)  # whatever the mode
            left = {name: part for name, part in left.items() if name not in drawn}
        if left:
            named = ", ".join(f"{name or 'the model itself'} ({type(part).__name__})" for name, part in left.items())
            warnings.warn(
                f"layers='dropout' leaves off what is random in training, but no dropout by its name: {named}; pass "
                "layers='all' to switch it on, or a predicate (name, module)",
                stacklevel=3,
            )

    def _nothing_random(self) -> str:
        layers = self.details()["layers"]
        found = f"{len(layers)} such layers" if layers else "no such layer"
        return (
            f"MC dropout needs randomness, but the model drew no random number (layers={self.layers!r}: {found}). "
            "Train it with dropout, or add some: seguq.inject_dropout(model, p=0.2); where its dropout is a function "
            "inside a forward, or a layer of one's own, pass layers='all'"
        )

    def seen_random(self, images: Tensor) -> tuple[str, ...]:
        """Names of the innermost modules during whose forward a generator moved."""
        return self._seen_random(images, self._switched_on)

    def _seen_random(self, images: Tensor, training: Callable[[str, nn.Module], bool]) -> tuple[str, ...]:
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
            with torch.no_grad(), evaluation_mode(self.network, training), seeded(0, images.device):
                self.logits_of(self.network, images)
        finally:
            for handle in handles:
                handle.remove()
        return tuple(dict.fromkeys(seen))


def _holds_generator(model: nn.Module) -> bool:
    return any(isinstance(value, torch.Generator) for part in model.modules() for value in vars(part).values())
