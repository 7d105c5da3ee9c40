"""What estimators that stand around another one share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from seguq.core.errors import SeguqError, UsageError
from seguq.functional.logits import Task
from seguq.inference.deterministic import Deterministic
from seguq.inference.estimator import Estimator, Forward, warn_of_calibrator
from seguq.inference.features import Features
from seguq.inference.measures import is_map

if TYPE_CHECKING:
    from typing_extensions import Self

_OF_THE_INNER = {"task": "multiclass", "forward": None}  # with what they are where nothing is said


class WrappingEstimator(Estimator):
    """An estimator that asks another one several times.

    Args:
        inner: an estimator, or the name of one; or a model, which is asked by one pass; or None for one pass of the
            model that a callback or a command binds.
        **settings: ``measures`` and ``calibrator`` as in `Estimator`; ``task`` and ``forward`` are those of ``inner``,
            and can be given only where that is a model. It gives no ``features``: those of several views or windows are
            not of one image.

    Raises:
        SeguqError: if it, or the estimator inside, is asked for ``features``.
    """

    def __init__(self, inner: Estimator | nn.Module | str | None, **settings: Any) -> None:
        given = {name: settings.pop(name) for name in _OF_THE_INNER if name in settings}
        own = {name: value for name, value in given.items() if value != _OF_THE_INNER[name]}
        if isinstance(inner, str):
            inner = self._named(inner)
        if not isinstance(inner, Estimator):
            inner = Deterministic(inner, calibrator=None, **own)
        elif own:
            name = next(iter(own))
            raise SeguqError(f"{name}= belongs to the estimator inside: pass it to {type(inner).__name__}")
        warn_of_calibrator(inner)
        self.inner: Estimator = inner
        super().__init__(task=inner.task, **settings)
        self.require_features(inner.features)

    def _named(self, name: str) -> Estimator:
        try:
            return Estimator.make(name)
        except UsageError as error:
            raise UsageError(
                f"{type(self).__name__} asks a module, but was given a name that no estimator has ({error}): "
                "seguq.load(checkpoint, model) gives a module with the weights of a file"
            ) from error

    def arguments(self) -> dict[str, Any]:
        """What it was made with; the task and the ``forward`` are those of the inner estimator."""
        return {name: value for name, value in super().arguments().items() if name not in _OF_THE_INNER}

    @property
    def models(self) -> Sequence[nn.Module]:
        """The models of the inner estimator."""
        return self.inner.models

    @property
    def carrier(self) -> nn.Module:
        return self.inner.carrier

    def weights_hash(self) -> str:
        return self.inner.weights_hash()

    def images_in(self, images: Tensor) -> Tensor:
        return self.inner.images_in(images)

    def bind(self, model: nn.Module) -> Self:
        """The same estimator around the inner one bound to another model."""
        inner = self.inner.bind(model)
        return self if inner is self.inner else self.around(inner)

    def around(self, inner: Estimator) -> Self:
        """The same estimator around another one of the same kind, and of its task."""
        made = copy.copy(self)
        made.inner, made.task = inner, inner.task
        return made

    def require_complete(self) -> None:
        """Raise if the inner estimator lacks what it cannot do without."""
        self.inner.require_complete()

    @property
    def unbound(self) -> bool:
        """Whether the inner estimator waits for a model."""
        return self.inner.unbound

    @property
    def looks_around(self) -> bool:
        """That it does."""
        return True

    def adapted(self, task: Task | None, forward: Callable[[Forward | None], Forward | None]) -> Self:
        """The same around the inner estimator, adapted."""
        return self.around(self.inner.adapted(task, forward))

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "inner": self.inner.identity()}

    @property
    def usual(self) -> tuple[str, ...]:
        """The measures of seguq that the inner estimator has, and its own."""
        return (*self.inner.usual, *(name for name in super().usual if name not in self.inner.usual))

    @property
    def available(self) -> tuple[str, ...]:
        """The measures that it can compute."""
        inside = (name for name in self.inner.available if is_map(name))  # a score of a view is none of the image
        return tuple(dict.fromkeys((*self.usual, *inside, *super().available)))

    def names_inside(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in names if name in self.inner.available and is_map(name))

    def require_features(self, features: Features) -> None:
        """Raise where features are asked for."""
        if features:
            raise SeguqError(
                f"{type(self).__name__} has no features, as it shows a network several views or parts of an image: ask "
                "the estimator inside by itself, as MCDropout(model, features=True)"
            )

    def seen_random(self, images: Tensor) -> tuple[str, ...]:
        return self.inner.seen_random(images)
