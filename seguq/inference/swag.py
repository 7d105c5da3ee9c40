"""SWAG: samples of the weights from the Gaussian that the last part of a training describes."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from seguq.calibration import Calibrator
from seguq.calibration.batches import require_reiterable
from seguq.calibration.checkpoint import carry, section, unpack
from seguq.core.checks import require_count, require_seed
from seguq.core.errors import SeguqError, UsageError
from seguq.core.progress import progress
from seguq.core.reading import listing, mapping, reading, text
from seguq.core.seeds import GENERATOR_LOCK, derive_seed
from seguq.data.batches import unpack_batch
from seguq.inference.evaluation import evaluation_mode
from seguq.inference.moments import WeightMoments, with_statistics
from seguq.inference.sampling import SamplingEstimator
from seguq.weights import weights_sha256
from seguq.weights.checkpoint import load_all_weights, matching_names, read_checkpoint

_KEPT_BYTES = 2**30  # of drawn weights; what goes beyond is drawn again in each call

Weights = dict[str, Tensor]


class SWAG(SamplingEstimator):
    """Samples of a model whose weights are drawn from what `callbacks.SWAG` collected along its training.

    Sample s has the same weights in every call: they are keyed by (seed, s). Layers that keep running statistics
    (BatchNorm), and did so in training, have theirs renewed for each sample, and for the mean of the weights, when the
    estimator is made: one pass a sample over ``bn_batches``. Everything else is in evaluation mode in these passes,
    dropout too (the authors' code leaves it on).

    Args:
        model: the module that the weights go into, or a part of the one that was trained. It is copied, and stays as
            it is. None: bound later.
        checkpoint: a Lightning checkpoint of a training with `callbacks.SWAG`. None: a command gives it
            (``--checkpoint``).
        samples: number of draws, S. The authors take 30.
        bn_batches: a re-iterable of batches of training images (masks are not looked at), as
            `seguq.data.unpack_batch` takes them; some hundred images will do. Needed where there are such layers
            (on the command line: ``--bn_images``, a folder).
        seed: of the draws.
        **settings: ``task``, ``measures``, ``calibrator``, ``forward``, as in `Estimator`; ``features`` are of the
            mean of the weights, by one more pass.

    Attributes:
        mean_model: a copy of the model with the mean of the weights (stochastic weight averaging).
        moments: what was collected; `WeightMoments`.

    Raises:
        UsageError: for wrong arguments, or without ``bn_batches`` where they are needed.
        SeguqError: for a checkpoint that does not fit, or holds nothing or too little for SWAG.

    References:
        Maddox et al., A Simple Baseline for Bayesian Uncertainty in Deep Learning, 2019, algorithm 1; the authors'
        code for statistics weighted by the size of a batch.

    Example:
        >>> model, moments = nn.Conv2d(3, 2, 1), WeightMoments(rank=2)
        >>> for _ in range(4):
        ...     model.reset_parameters()
        ...     moments.add(model)
        >>> file = getfixture("tmp_path") / "swag.ckpt"
        >>> torch.save({"state_dict": model.state_dict(), "seguq": {"version": 1, "swag": moments.state()}}, file)
        >>> maps = SWAG(model, file, samples=5, calibrator=None)(torch.ones(1, 3, 4, 4))
        >>> bool(maps["mutual_information"].min() > 0)
        True
    """

    name: ClassVar[str] = "swag"

    @torch.inference_mode(False)  # the copies of the model are filled later, outside of it
    def __init__(
        self,
        model: nn.Module | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        samples: int = 30,
        bn_batches: Iterable[Any] | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if not (model is None or isinstance(model, nn.Module)):
            raise UsageError(f"model must be a module that the weights go into, but is {model!r}")
        require_count("samples", samples)
        require_seed(seed)
        if bn_batches is not None:
            require_reiterable(bn_batches)
        self.model = model
        self.checkpoint = checkpoint
        self.number_of_samples = samples
        self.bn_batches = bn_batches
        self.seed = seed
        if model is not None:
            self._read(model)

    def _read(self, model: nn.Module) -> None:
        """Take up what the checkpoint holds, draw, and renew statistics."""
        self.require_complete()
        assert self.checkpoint is not None
        checkpoint, samples = self.checkpoint, self.number_of_samples
        content = read_checkpoint(checkpoint)
        with reading(checkpoint):
            held = section(content).get("swag")
        if held is None:
            raise SeguqError(
                f"{checkpoint} holds nothing for SWAG: train with seguq.callbacks.SWAG(), and take a checkpoint that "
                "was written after it had begun to collect"
            )
        with reading(checkpoint):
            held = mapping(held, "what it holds for SWAG")
            self.moments = WeightMoments.from_state(held)
            statistics = {text(name, "a layer") for name in listing(held.get("statistics", []), "'statistics'")}
        self.moments.require_enough()
        self.mean_model = copy.deepcopy(model)
        with reading(checkpoint):
            load_all_weights(self.mean_model, content, str(checkpoint))
            in_file = matching_names(self.mean_model, content, str(checkpoint))
        self._parameters = self._names(in_file, str(checkpoint))
        self._renewed_layers = {
            full
            for full, _ in with_statistics(self.mean_model)
            if "statistics" not in held or in_file[_buffer(full)].removesuffix(".running_mean") in statistics
        }
        _set(self.mean_model, {own: self.moments.mean[name] for own, name in self._parameters.items()})
        self._slot = copy.deepcopy(self.mean_model)
        self._kept: list[Weights] = []
        self._statistics: list[Weights] = [{}] * samples
        self._most_kept = max(1, _KEPT_BYTES // max(1, self._bytes_of_a_draw()))
        if self._renewed_layers:
            self._renew(self.bn_batches)
        else:
            self._kept = [self._draw(sample) for sample in range(min(samples, self._most_kept))]
        self._carry_calibrators(content)

    def _names(self, in_file: dict[str, str], checkpoint: str) -> dict[str, str]:
        """The names of the model's parameters, and those of what was collected."""
        found = {}
        for full, parameter in self.mean_model.named_parameters():
            own = full.replace("_orig_mod.", "")
            name = self.moments.aliases.get(in_file[own], in_file[own])
            if parameter.is_floating_point():
                if name not in self.moments.mean or self.moments.mean[name].shape != parameter.shape:
                    raise SeguqError(f"{checkpoint} does not fit the model: SWAG collected nothing like its {own!r}")
                found[full] = name
        return found

    def _bytes_of_a_draw(self) -> int:
        drawn = set(self.moments.moved) & set(self._parameters.values())
        return sum(self.moments.mean[name].nbytes for name in drawn)

    def _draw(self, sample: int) -> Weights:
        """The weights of a sample, by the model's names, on its device."""
        drawn = self.moments.sample(torch.Generator().manual_seed(derive_seed(self.seed, sample)))
        parameters = dict(self._slot.named_parameters())
        return {own: drawn[name].to(parameters[own]) for own, name in self._parameters.items() if name in drawn}

    def _renew(self, batches: Iterable[Any] | None) -> None:
        if batches is None:
            name = min(self._renewed_layers)
            raise UsageError(
                f"the model has layers with running statistics, such as {name!r}, which are those of other weights "
                "than SWAG draws: pass bn_batches=, batches of training images, to renew them (on the command line "
                "--bn_images, a folder of them)"
            )
        _set(self.mean_model, self._renewed([{}], batches, "the mean")[0])
        for first in range(0, self.number_of_samples, self._most_kept):
            last = min(self.number_of_samples, first + self._most_kept)
            drawn = [self._draw(sample) for sample in range(first, last)]
            self._kept = self._kept or drawn
            self._statistics[first:last] = self._renewed(drawn, batches, f"samples {first + 1} to {last}")

    def _renewed(self, drawn: Sequence[Weights], batches: Iterable[Any], whose: str) -> list[Weights]:
        """The running statistics of several draws of the weights, in one reading of the batches."""
        layers = {name: layer for name, layer in with_statistics(self._slot) if name in self._renewed_layers}
        fresh = {name: value for layer in layers for name, value in _fresh(layer, layers[layer]).items()}
        found = [{name: value.clone() for name, value in fresh.items()} for _ in drawn]
        momenta = {name: layer.momentum for name, layer in layers.items()}
        seen = 0
        try:
            for batch in progress(batches, f"SWAG: batch statistics of {whose}"):
                images = unpack_batch(batch).image
                images = self.take_in(images, [""] * len(images))[0]
                if not len(images):
                    continue
                seen += len(images)
                for weights, statistics in zip(drawn, found, strict=True):
                    with GENERATOR_LOCK, torch.no_grad():
                        _set(self._slot, {**weights, **statistics})
                        for layer in layers.values():
                            layer.momentum = len(images) / seen
                        self._pass_for_statistics(images, set(layers))
                        now = dict(self._slot.named_buffers())
                        statistics.update({name: now[name].clone() for name in statistics})
        finally:
            for name, layer in layers.items():
                layer.momentum = momenta[name]
        if not seen:
            raise UsageError("bn_batches has no images: pass batches of training images")
        return found

    def _pass_for_statistics(self, images: Tensor, layers: set[str]) -> None:
        try:
            with evaluation_mode(self._slot, lambda name, module: name in layers):
                self.logits_of(self._slot, images)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UsageError(
                f"bn_batches has a batch of {len(images)}, which is too small for a layer that sees one value of each "
                "image: make batches of at least 2 (drop_last=True leaves out a rest)"
            ) from error

    def _carry_calibrators(self, content: dict[str, Any]) -> None:
        """Take along the calibrators of the checkpoint that were fitted for this estimator, or for one around it."""
        for tag, packed in section(content).get("calibrators", {}).items():
            if tag == self.tag or f"of={self.tag})" in tag:
                found: Calibrator = unpack(tag, packed)
                # the file's own weights are not those that it was fitted for, but the mean, with its statistics
                found.weights_sha256 = str(packed.get("fitted_for") or "unknown")
                carry(self.mean_model, {tag: found})

    @property
    def lacking(self) -> tuple[str, ...]:
        """The checkpoint, where there is none yet."""
        return () if self.checkpoint is not None else ("checkpoint",)

    @property
    def unbound(self) -> bool:
        """Whether it waits for a model."""
        return self.model is None

    def _require_model(self) -> None:
        self.require_complete()
        if self.unbound:
            raise SeguqError("SWAG has no model: make it as SWAG(model, checkpoint, ...)")

    @property
    def tag(self) -> str:
        """``swag(collected=..., rank=...)``; before it has a model, and reads the checkpoint, ``swag``."""
        if self.unbound:
            return self.name
        return f"swag(collected={self.moments.count}, rank={self.moments.rank})"

    @property
    def models(self) -> Sequence[nn.Module]:
        """The model with the mean of the weights."""
        self._require_model()
        return (self.mean_model,)

    def bind(self, model: nn.Module) -> SWAG:
        """The same of another module that the weights go into; one that has its model already gives itself."""
        return type(self)(**{**self.arguments(), "model": model}) if self.unbound else self

    def details(self) -> dict[str, Any]:
        return {"layers": (), "passes": self.number_of_samples, "seed": self.seed}

    def identity(self) -> dict[str, Any]:
        drawn = {**self._kept[0], **self._statistics[0]}
        return {**super().identity(), "first": weights_sha256(drawn)}

    @property
    def begins_with_first_model(self) -> bool:
        """Never: samples have other weights than their mean, of which features are."""
        return False

    def forwards(self, images: Tensor) -> int:
        return self.number_of_samples

    def sample_logits(self, images: Tensor, ids: tuple[str, ...]) -> Iterator[Tensor]:
        for sample in range(self.number_of_samples):
            weights = self._kept[sample] if sample < len(self._kept) else self._draw(sample)
            with GENERATOR_LOCK:  # two threads share the module that the weights go into
                for name, parameter in self._slot.named_parameters():
                    if name in weights:
                        parameter.data = weights[name]  # put there, not copied: nothing in a pass writes to it
                _set(self._slot, self._statistics[sample])
                with evaluation_mode(self._slot):
                    logits = self.logits_of(self._slot, images)
            yield logits


def _set(model: nn.Module, values: Weights) -> None:
    """Put values into a model's parameters and buffers, by name."""
    places: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, value in values.items():
            places[name].copy_(value)


def _buffer(layer: str) -> str:
    """The name of a layer's running mean, without what torch.compile puts into names."""
    return f"{layer}.running_mean".removeprefix(".").replace("_orig_mod.", "")


def _fresh(name: str, layer: Any) -> Weights:
    """The running statistics of a layer that has seen nothing."""
    prefix = f"{name}." if name else ""
    return {
        f"{prefix}running_mean": torch.zeros_like(layer.running_mean),
        f"{prefix}running_var": torch.ones_like(layer.running_var),
    }
