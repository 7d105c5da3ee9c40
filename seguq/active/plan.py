"""How a loop goes, checked before work starts."""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from seguq.acquisition import Budget, Strategy
from seguq.acquisition.best_of_each_image import BestOfEachImage
from seguq.acquisition.random_ import Random
from seguq.active.stopping import Stop
from seguq.active.training import MakeTrainer
from seguq.annotators import Annotator
from seguq.calibration import Calibrator
from seguq.calibration.by_name import require_known
from seguq.callbacks.batches import BatchForward
from seguq.core.checks import is_whole, require_count
from seguq.core.errors import UsageError
from seguq.core.groups import GroupOf, Groups
from seguq.data import ImageSource, Labeled
from seguq.functional.aggregates import aggregate_named
from seguq.inference import Estimator
from seguq.inference.deterministic import Deterministic
from seguq.regions import Grid, Partition
from seguq.regions.scored_by import By, scores_named


class Plan:
    """The arguments of `seguq.ActiveLearningLoop`, which describes them; what is None is the default.

    Raises:
        UsageError: for one that is wrong.
    """

    def __init__(
        self,
        make_task: Callable[[], Any],
        data: Callable[[Labeled], Any],
        *,
        pool: ImageSource | str | os.PathLike[str] | Mapping[str, Any],
        annotator: Annotator,
        estimator: Estimator | None,
        partition: Partition | None,
        strategy: Strategy | None,
        budget: Budget | Sequence[Budget],
        rounds: int,
        calibrator: str | Calibrator | None,
        trainer: MakeTrainer | None,
        group: GroupOf,
        seed: int,
        batch_forward: BatchForward | None,
        by: By | Sequence[By] | None,
        aggregate: str,
        start: Strategy | None,
        fine_tune: bool,
        stop: Stop | None,
    ) -> None:
        for name, value in (("make_task", make_task), ("data", data), *([("trainer", trainer)] if trainer else [])):
            if not callable(value):
                raise UsageError(f"{name} must be a function, but is {value!r}")
        require_count("rounds", rounds)
        budgets: list[Any] = list(budget) if isinstance(budget, (list, tuple)) else [budget] * rounds
        if len(budgets) != rounds or not all(isinstance(item, Budget) for item in budgets):
            raise UsageError(
                f"budget must be a seguq.acquisition.Budget, or a list of one for each of the {rounds} rounds, but is "
                f"{budget!r}"
            )
        if not is_whole(seed):
            raise UsageError(f"seed must be a whole number, but is {seed!r}")
        aggregate_named(aggregate)
        if by is not None:
            scores_named(by)
        kinds: tuple[tuple[str, Any, type[Any]], ...] = (
            ("annotator", annotator, Annotator),
            ("estimator", estimator, Estimator),
            ("partition", partition, Partition),
            ("strategy", strategy, Strategy),
            ("start", start, Strategy),
            ("stop", stop, Stop),
        )
        for name, item, kind in kinds:
            if not (isinstance(item, kind) or (item is None and name != "annotator")):
                raise UsageError(f"{name} must be {_article(kind.__name__)} (seguq.{_HOMES[name]}), but is {item!r}")
        if estimator is not None and not estimator.unbound:
            raise UsageError(f"{estimator!r} has a model, but each round trains its own: make it without one")
        if calibrator is not None:
            require_known(calibrator)
        Groups(group)
        self.make_task, self.data, self.make_trainer = make_task, data, trainer
        self.pool, self.annotator = ImageSource.of(pool), annotator
        self.estimator: Estimator = Deterministic() if estimator is None else estimator
        self.partition: Partition = Grid(32) if partition is None else partition
        self.strategy: Strategy = BestOfEachImage() if strategy is None else strategy
        self.start: Strategy = Random() if start is None else start
        self.budgets, self.rounds = budgets, rounds
        self.by, self.aggregate, self.batch_forward = by, aggregate, batch_forward
        self.calibrator, self.group, self.seed, self.fine_tune = calibrator, group, seed, fine_tune
        self.stop = stop
        if stop is not None:
            for one in budgets:
                stop.require_reachable(one, judged=True)
        self.classes = annotator.classes

    def truth(self, image_id: str) -> Any:
        """The mask of an image, where the annotator knows it beforehand."""
        return self.annotator.truth(image_id)

    def settings(self, more: Mapping[str, Any]) -> dict[str, Any]:
        """What a run is only gone on with where it is the same, as JSON gives it back."""
        found: dict[str, Any] = {
            "budget": [item.as_dict() for item in self.budgets],
            "classes": list(self.classes.names),
            "ignore_index": self.classes.ignore_index,
            "group": self.group if self.group is None or isinstance(self.group, str) else _name_of(self.group),
            "by": None if self.by is None else _words(self.by),
        }
        for name in ("partition", "strategy", "start", "estimator", "calibrator"):
            found[name] = _words(getattr(self, name))
        for name in ("aggregate", "seed", "fine_tune"):
            found[name] = getattr(self, name)
        taken = sorted(found.keys() & more)
        if taken:
            raise UsageError(f"settings has {taken[0]!r}, which the loop has of its own: call it otherwise")
        try:
            plain: dict[str, Any] = json.loads(json.dumps({**found, **more}, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise UsageError(f"settings must be numbers, texts, lists and mappings of them: {error}") from error
        return plain


_HOMES = {
    "annotator": "annotators",
    "estimator": "inference",
    "partition": "regions",
    "strategy": "acquisition",
    "start": "acquisition",
    "stop": "active",
}


def _article(name: str) -> str:
    return f"an {name}" if name[0] in "AEIO" else f"a {name}"


def _name_of(function: Any) -> str:
    return f"a function {getattr(inspect.unwrap(function), '__qualname__', type(function).__name__)}"


def _words(value: Any) -> str:
    """What settings are told apart by: without addresses, which differ between processes."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
