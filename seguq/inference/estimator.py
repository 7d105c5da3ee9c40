"""What every estimator shares: taking images in, leaving the model as it was, calibrating, and the answer."""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from hashlib import sha256
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from seguq.calibration import Calibrator
from seguq.calibration.batches import FittingBatch
from seguq.calibration.by_name import fit_calibrator
from seguq.calibration.checkpoint import carried, carry
from seguq.core.checks import require_choice, require_dims
from seguq.core.errors import SeguqError, UsageError
from seguq.core.groups import GroupOf
from seguq.core.log import say_once
from seguq.core.named import Named
from seguq.core.seeds import seeded
from seguq.data.batches import output_logits, plain, unpack_batch
from seguq.functional.logits import TASKS, Task, class_logits, class_target
from seguq.inference.evaluation import evaluation_mode, given, images_for
from seguq.inference.features import FEATURES, EncoderWatch, Features, checked_features, features_of
from seguq.inference.maps import UncertaintyMaps
from seguq.inference.measures import (
    Measure,
    Source,
    checked_measures,
    computed,
    image_measures_of,
    is_map,
    measures_of,
    named_measures,
    own_measures_of,
)
from seguq.inference.pooled import PooledBatches
from seguq.weights.hashes import WeightHashes

if TYPE_CHECKING:
    from typing_extensions import Self

Forward = Callable[[nn.Module, Tensor], Any]
"""How to get logits out of a model and a batch of images, where calling the model is not enough."""


class Estimator(Named, ABC):
    """A way of asking a model for its uncertainty.

    Args:
        task: ``"multiclass"``, ``"binary"`` (one or two logits) or ``"multilabel"`` (independent labels).
        measures: names of the measures to compute, or measures of one's own; None: all of seguq's that this estimator
            has.
        calibrator: a fitted calibrator for this estimator's pooled output; ``"auto"``: the one in
            ``model.calibrators`` under this estimator's tag, if any; None: none.
        forward: a function of the model and the images that returns the logits; None: the model is called.
        features: whether the answer has the last map of the model's encoder, ``maps.features`` ``(B, D, *spatial)``
            float16: of the outermost submodule named ``encoder`` or ``backbone`` that is called, the last map of its
            first call; as in evaluation mode, with nothing random in it, and of an image that the model pads also of
            the padding. Or a function of the model and the images that gives them. What it costs: two bytes a value,
            4 for each pixel of an image with the 2048 channels at 1/32 of a ResNet-50; no pass, unless the encoder
            draws random numbers, or runs where it is not seen (one more pass then). A function costs what it does.

    Raises:
        SeguqError: for wrong arguments; on a call with ``features=True``, where no encoder is found.
    """

    gives: ClassVar[tuple[Source, ...]] = ("probs",)
    """What measures can be computed from."""

    def __init__(
        self,
        *,
        task: Task = "multiclass",
        measures: Sequence[str | Measure] | None = None,
        calibrator: Calibrator | Literal["auto"] | None = "auto",
        forward: Forward | None = None,
        features: Features = False,
    ) -> None:
        require_choice("task", task, TASKS)
        if not (calibrator is None or calibrator == "auto" or isinstance(calibrator, Calibrator)):
            raise SeguqError(f"calibrator must be a calibrator, 'auto' or None, but is {calibrator!r}")
        if not (forward is None or callable(forward)):
            raise SeguqError(f"forward must be a function of the model and the images, but is {forward!r}")
        self.task: Task = task
        names = named_measures(measures)
        self.measures = self.usual if names is None else checked_measures(names, self.available, type(self).__name__)
        self._asked = names
        self.calibrator = calibrator
        self.forward = forward
        self.require_features(features)
        self.features = features
        self._images_seen = 0
        self._hash_of = WeightHashes()

    def arguments(self) -> dict[str, Any]:
        """What it was made with."""
        return {**super().arguments(), "measures": self._asked}

    @property
    def usual(self) -> tuple[str, ...]:
        """The measures of seguq that it has."""
        return measures_of(*self.gives)

    @property
    def available(self) -> tuple[str, ...]:
        """The measures that it can compute: the usual ones, scores of whole images, and those of one's own."""
        return (*self.usual, *image_measures_of(*self.gives), *own_measures_of(*self.gives))

    @property
    def offered(self) -> tuple[str, ...]:
        """The measures that may be asked of it: those that it was made for, or where none were named all."""
        return self.available if self._asked is None else self._asked

    def same_as(self, other: Estimator) -> bool:
        """Whether another estimator asks the same in the same way: one of its class with equal arguments.

        Models, calibrators and tensors are the same where they are one object; estimators inside as this one is.
        """
        return self is other or (type(self) is type(other) and _equal(self.arguments(), other.arguments()))

    @property
    @abstractmethod
    def tag(self) -> str:
        """Kind and settings of the estimator, without the number of samples: what a calibrator is fitted for."""

    @property
    @abstractmethod
    def models(self) -> Sequence[nn.Module]:
        """The networks that it asks."""

    @property
    def carrier(self) -> nn.Module:
        """The module whose ``calibrators`` are for this estimator."""
        return self.models[0]

    @abstractmethod
    def pool(self, images: Tensor, ids: tuple[str, ...], names: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """The pooled class logits ``(B, C, *spatial)``; the maps and scores of images that no calibrator changes."""

    def look(self, images: Tensor, ids: tuple[str, ...], names: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """What `pool` gives, and the features, where they were asked for, among the maps."""
        watch = EncoderWatch(self.models[0], images) if self.features is True and self.begins_with_first_model else None
        with watch or nullcontext():
            logits, maps = self.pool(images, ids, names)
        if not self.features:
            return logits, maps
        seen = None if watch is None else watch.features()
        return logits, {**maps, FEATURES: self._features_of_one_more_pass(images) if seen is None else seen}

    def _features_of_one_more_pass(self, images: Tensor) -> Tensor:
        with seeded(0, images.device):
            model = self.first_model()
            images = images_for(model, images)
            with evaluation_mode(model):
                if callable(self.features):
                    return checked_features(self.features(model, images), images)
                return features_of(model, images, lambda: self.logits_of(model, images))

    @property
    def begins_with_first_model(self) -> bool:
        """Whether the first passes that `pool` runs are of the first of `models`, over the images as they are.

        Features are seen in them then; an estimator of which this is not so says False, which costs one more pass.
        """
        return True

    def first_model(self) -> nn.Module:
        """The first of `models`, with its weights in it."""
        return self.models[0]

    def require_features(self, features: Features) -> None:
        """Raise for what ``features`` cannot be."""
        if not (isinstance(features, bool) or callable(features)):
            raise SeguqError(f"features must be True, False or a function (model, images), but is {features!r}")

    def sample_logits(self, images: Tensor, ids: tuple[str, ...]) -> Iterator[Tensor]:
        """Class logits of one sample at a time, as an ensemble takes them: without samples, the pooled ones."""
        yield self.pool(images, ids, ())[0]

    @abstractmethod
    def samples(self, images: Tensor, image_ids: Sequence[str] | None = None) -> Iterator[Tensor]:
        """The probabilities of one sample at a time, ``(B, C, *spatial)``, raw (never calibrated)."""

    def __call__(self, images: Tensor, image_ids: Sequence[str] | None = None) -> UncertaintyMaps:
        """Probabilities and uncertainty maps of a batch.

        Args:
            images: ``(B, channels, *spatial)``, normalized as in training; they are moved to the model's device, and
                floats brought to its precision. Whole numbers are passed on as they are, for networks that take them.
            image_ids: one id an image; by default running numbers since the estimator was made.

        Returns:
            Maps on the model's device, float32 (float64 for a float64 model).
        """
        images, ids = self.take_in(images, image_ids)
        with torch.no_grad():
            logits, maps = self.look(images, ids, self.measures)
        return self.answer(logits, maps, images, ids)

    def answer(
        self, logits: Tensor, maps: dict[str, Tensor], images: Tensor | None, ids: tuple[str, ...]
    ) -> UncertaintyMaps:
        """From what `look` gives, pooled class logits and what no calibrator changes, to the answer."""
        with torch.no_grad():
            tag = self.tag
            probs = torch.softmax(self.calibrated(logits, images, tag), dim=1)
            maps = {**computed("probs", probs, self.measures), **maps}
        ordered = {name: maps[name] for name in self.measures if is_map(name)}
        if self.task == "multilabel":
            probs = probs[:, 1]
            ordered = {name: values.sum(1) for name, values in ordered.items()}
        return UncertaintyMaps(
            probs,
            ordered,
            ids,
            tag,
            multilabel=self.task == "multilabel",
            image_scores={name: maps[name] for name in self.measures if not is_map(name)},
            features=maps.get(FEATURES),
        )

    def calibrated(self, logits: Tensor, images: Tensor | None, tag: str | None = None) -> Tensor:
        """Pooled class logits as the calibrator in force makes them; as they are, where there is none.

        Args:
            logits: ``(B, C, *spatial)``.
            images: those that they are of, or None where no one has them.
            tag: this estimator's, which need not be read again then.
        """
        calibrator = self.calibrator_in_force(self.tag if tag is None else tag)
        if calibrator is None:
            return logits
        with torch.inference_mode(False):  # buffers moved inside of it could never be filled again outside
            calibrator.to(logits.device)
        with torch.no_grad():
            calibrated: Tensor = calibrator(logits, images)
        return calibrated

    def pooled_logits(self, images: Tensor, image_ids: Sequence[str] | None = None) -> Tensor:
        """The pooled output that a calibrator is fitted on, raw: class logits ``(B, C, *spatial)``.

        Args:
            images: ``(B, channels, *spatial)``.
            image_ids: one id an image, as in a call.
        """
        images, ids = self.take_in(images, image_ids)
        with torch.no_grad():
            return self.pool(images, ids, ())[0]

    @abstractmethod
    def bind(self, model: nn.Module) -> Self:
        """The same estimator of another model; an estimator that holds its models already gives itself."""

    @property
    def unbound(self) -> bool:
        """Whether it waits for a model."""
        return False

    @property
    def lacking(self) -> tuple[str, ...]:
        """The arguments that it was made without, but cannot do without; a command fills them in."""
        return ()

    def require_complete(self) -> None:
        """Raise if it lacks what it cannot do without.

        Raises:
            UsageError: saying what.
        """
        if self.lacking:
            name, given = type(self).__name__, ", ".join(f"{item}=..." for item in self.lacking)
            raise UsageError(
                f"{name} needs {', '.join(self.lacking)}, which is not known where it is asked for by name: make one "
                f"as {name}({given}), and pass that"
            )

    @property
    def looks_around(self) -> bool:
        """Whether its models are given other images than those of a call: views or parts of them, or one at a time."""
        return False

    def adapted(self, task: Task | None, forward: Callable[[Forward | None], Forward | None]) -> Self:
        """A copy for another task (None: its own), which calls its models by a function made of its own ``forward``."""
        made = copy.copy(self)
        made.task, made.forward = task or self.task, forward(self.forward)
        return made

    def pooled(self, batches: Iterable[Any]) -> PooledBatches:
        """This estimator's pooled output over labeled batches: a re-iterable of ``(logits, image, class indices)``.

        A calibrator sees the images as it does when it is applied: normalized, in the precision of the model.

        Args:
            batches: a re-iterable of ``(image, mask)`` batches, as `seguq.data.unpack_batch` takes them.
        """
        return PooledBatches(self._pooled_batch, batches, self.models[0], self._pooling_seed())

    def _pooling_seed(self) -> int:
        """What the random numbers of `pooled` are keyed by, where the estimator has no seed of its own."""
        return 0

    def _pooled_batch(self, batch: Any, number: int) -> FittingBatch:
        batch = unpack_batch(batch)
        if batch.mask is None:
            raise SeguqError("calibration needs labels, but a batch has images without masks")
        images, ids = self.take_in(batch.image, batch.image_id or [str(number + i) for i in range(len(batch.image))])
        with torch.no_grad():
            logits, _ = self.pool(images, ids, ())
        reference = logits[:, 1] if self.task == "multilabel" else logits
        made = FittingBatch(logits, images, class_target(batch.mask.to(logits.device), reference, self.task))
        made.image_ids = ids
        return made

    def calibrate(self, calibrator: Calibrator | str, batches: Iterable[Any], group: GroupOf = None) -> Calibrator:
        """Fit a calibrator on this estimator's pooled output, tag it, and use it from now on.

        It is also put into ``model.calibrators`` under this estimator's tag, where that holds a module in memory.

        Args:
            calibrator: a new calibrator; or the name of one; or ``"auto"`` for what is best on groups that it was not
                fitted on.
            batches: a re-iterable of held-out ``(image, mask)`` batches. The network runs over them once where
                pooled logits, images and masks fit into 1 GiB of memory; what goes beyond is computed again in each
                pass.
            group: from an image's id to its group (a video, a patient): a function or a regular expression; None:
                contiguous blocks.

        Returns:
            The calibrator, fitted.
        """
        calibrator = fit_calibrator(calibrator, self.pooled(batches), self.task, group=group)
        calibrator.tag, calibrator.weights_sha256 = self.tag, self.weights_hash()
        self.calibrator = calibrator
        carry(self.carrier, {self.tag: calibrator})
        return calibrator

    def describe(self, images: Tensor | None = None) -> dict[str, Any]:
        """What the estimator does: its tag, layers switched on, measures, and passes through the network.

        ``passes`` is a number for each view or window; ``forwards`` counts all.

        Args:
            images: with a batch, also which modules were seen to draw random numbers in one pass over it, and how many
                forwards through the network it costs.
        """
        out: dict[str, Any] = {"estimator": self.tag, "measures": self.measures, **self.details()}
        if images is not None:
            images = self.take_in(images, [""] * len(images))[0]
            out["forwards"] = self.forwards(images)
            out["random"] = self.seen_random(images)
        return out

    def details(self) -> dict[str, Any]:
        return {"layers": (), "passes": len(self.models)}

    def identity(self) -> dict[str, Any]:
        """Plain values of all that its answers depend on, but for its calibrator."""
        settings = {name: value for name, value in self.details().items() if name != "layers"}
        models = [(self._hash_of(model), sha256(repr(model).encode()).hexdigest()) for model in self.models]
        forward = getattr(self.forward, "__qualname__", None if self.forward is None else repr(type(self.forward)))
        return {"tag": self.tag, "task": self.task, "forward": forward, "models": models, **settings}

    def forwards(self, images: Tensor) -> int:
        """Passes through the whole network for a batch like this one."""
        return len(self.models)

    def seen_random(self, images: Tensor) -> tuple[str, ...]:
        return ()

    def take_in(self, images: Tensor, image_ids: Sequence[str] | None) -> tuple[Tensor, tuple[str, ...]]:
        if not isinstance(images, Tensor):
            raise SeguqError(f"images must be a tensor, but are a {type(images).__name__}: torch.from_numpy makes one")
        # one image without its batch dimension goes through convolutions, too, with its rows taken for classes
        require_dims("images", images, "(B, channels, *spatial) of 2-D or 3-D images", at_least=4)
        images = self.images_in(plain(images))
        told = getattr(self.models[0], "task", None)
        if isinstance(told, str) and told in TASKS and told != self.task:
            raise SeguqError(
                f"the model says that its task is {told!r}, but the estimator was made with task={self.task!r}: "
                f"pass task={told!r}"
            )
        if image_ids is None:
            image_ids = [str(self._images_seen + i) for i in range(len(images))]
            self._images_seen += len(images)
        if len(image_ids) != len(images):
            raise SeguqError(f"{len(image_ids)} image ids were passed for {len(images)} images")
        return images, tuple(str(image_id) for image_id in image_ids)

    def images_in(self, images: Tensor) -> Tensor:
        """Images where the models are, in their precision; whole numbers as they are."""
        return images_for(self.models[0], images)

    def logits_of(self, model: nn.Module, images: Tensor) -> Tensor:
        """What a model says of images: class logits ``(B, C, *spatial)``, in the mode that it is in."""
        with given(images, model):
            output = model(images) if self.forward is None else self.forward(model, images)
        return class_logits(output_logits(output, images.shape[2:]), self.task)

    def _sample_view(self, probs: Tensor) -> Tensor:
        return probs[:, 1] if self.task == "multilabel" else probs

    def _is_for_these_weights(self, calibrator: Calibrator) -> bool:
        return calibrator.weights_sha256 is None or calibrator.weights_sha256 == self.weights_hash()

    def weights_hash(self) -> str:
        """The hash of the first model's weights."""
        return self._hash_of(self.models[0])

    def calibrator_in_force(self, tag: str) -> Calibrator | None:
        """The calibrator to apply, said once.

        Args:
            tag: this estimator's, which need not be read again then.

        Raises:
            SeguqError: if the one that it was given was fitted for another estimator.
        """
        if isinstance(self.calibrator, Calibrator) and self.calibrator.tag not in (None, tag):
            raise SeguqError(
                f"the calibrator was fitted for {self.calibrator.tag}, not for {tag}: fit another by est.calibrate(...)"
            )
        if self.calibrator is None:
            return None
        if isinstance(self.calibrator, Calibrator):
            if not self._is_for_these_weights(self.calibrator):
                warnings.warn(
                    f"the calibrator of {tag} was fitted for other weights than the model has now: "
                    "fit it again by est.calibrate(...)",
                    stacklevel=3,
                )
            return self.calibrator
        known = carried(self.carrier)
        found = known.get(tag)
        if found is not None and not self._is_for_these_weights(found):
            warnings.warn(
                f"the calibrator {tag!r} is not applied: it was fitted for other weights than the model has now; "
                "fit it again by est.calibrate(...)",
                stacklevel=3,
            )
            return None
        if found is not None:
            say_once(f"{tag}: calibrated by {type(found).__name__} from the model's calibrators")
        else:
            others = f" (there are some for {', '.join(known)})" if known else ""
            say_once(f"{tag}: not calibrated{others}; est.calibrate(...) or `seguq calibrate` fits a calibrator")
        return found


def _equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, (Tensor, nn.Module)) or type(one) is not type(other):
        return False
    if isinstance(one, Estimator):
        return one.same_as(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    try:
        return bool(one == other)
    except Exception:  # of arrays and tables there is no one answer
        return False


def warn_of_calibrator(inner: Estimator) -> None:
    """Say so where an estimator inside of another one has a calibrator, which is of its own pooled output alone."""
    if isinstance(inner.calibrator, Calibrator):
        warnings.warn(
            f"the calibrator of {inner.tag} is not applied inside of another estimator, whose answer it was not fitted "
            "on: fit one by the outer estimator's calibrate(...)",
            stacklevel=4,
        )


class OneModelEstimator(Estimator):
    """An estimator that asks one model.

    Args:
        model: the model, or None for an estimator that a callback binds to the module in training.
        **settings: as in `Estimator`.
    """

    def __init__(self, model: nn.Module | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        if not (model is None or isinstance(model, nn.Module)):
            raise SeguqError(
                f"{type(self).__name__} asks a module, but was given a {type(model).__name__}: seguq.load(checkpoint, "
                "model) gives a module with the weights of a file"
            )
        self.model = model

    @property
    def network(self) -> nn.Module:
        """The one model.

        Raises:
            SeguqError: if there is none yet.
        """
        if self.model is None:
            name = type(self).__name__
            raise SeguqError(
                f"{name} has no model: make it as {name}(model, ...), or hand it to a callback, which binds it to the "
                "module in training"
            )
        return self.model

    @property
    def unbound(self) -> bool:
        """Whether it waits for a model."""
        return self.model is None

    @property
    def models(self) -> Sequence[nn.Module]:
        """The one model."""
        return (self.network,)

    def bind(self, model: nn.Module) -> Self:
        """The same estimator of another model; one that has a model already gives itself."""
        if self.model is not None:
            return self
        bound = copy.copy(self)
        bound.model = model
        return bound
