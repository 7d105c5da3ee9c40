"""``seguq loop run``: the active-learning loop over folders of images."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from seguq.acquisition import Budget, Strategy
from seguq.active import ActiveLearningLoop
from seguq.active.stopping import Stop
from seguq.active.training import default_trainer
from seguq.annotators import Annotator
from seguq.cli.common import require_folder
from seguq.cli.parsing import run_function
from seguq.core.errors import UsageError
from seguq.core.lightning import Trainer, quiet
from seguq.data import LabeledData
from seguq.inference import Estimator
from seguq.regions import Partition
from seguq.task import SegmentationTask

GROUPS: dict[str, tuple[type, set[str]]] = {
    "model": (SegmentationTask, {"model"}),
    "data": (LabeledData, {"labeled"}),
    "trainer": (Trainer, set()),
}
_DEFAULTS = {
    "strategy": {"class_path": "BestOfEachImage"},
    "first_strategy": {"class_path": "Random"},
    "partition": {"class_path": "Grid", "init_args": {"size": 32}},
}


def run(words: Sequence[str]) -> None:
    """Run the command."""
    quiet()
    run_function(loop_run, "loop run", words, _DEFAULTS, groups=GROUPS)


def loop_run(
    run_dir: str,
    pool: str,
    annotator: Annotator,
    budget: Budget,
    model: Mapping[str, Any],
    data: Mapping[str, Any],
    trainer: Mapping[str, Any],
    rounds: int = 5,
    first: Budget | None = None,
    first_strategy: Strategy | None = None,
    strategy: Strategy | None = None,
    partition: Partition | None = None,
    estimator: Estimator | None = None,
    by: str | list[str] | None = None,
    aggregate: str = "mean",
    calibrator: str | None = "auto",
    group: str | None = None,
    seed: int = 0,
    fine_tune: bool = False,
    stop: Stop | None = None,
    until: int | None = None,
    enough: float = 1.0,
) -> None:
    """Train, score the pool, choose what to label, have it labeled, and train again; started again, it goes on.

    Args:
        run_dir: folder of the loop: a folder a round, the journal, all labels so far.
        pool: folder of the images to label.
        annotator: who labels: Folder (a folder of tasks and a page for people), Oracle (masks that are known, for
            experiments), or the import path of one of your own; with its options after a dot (--annotator Folder
            --annotator.dir TASKS --annotator.classes classes.json).
        budget: how much may be labeled in a round (one limit; per_image may stand beside it).
        model: of seguq.SegmentationTask, as of seguq fit.
        data: of seguq.LabeledData; --data.root is a data set with labeled images to judge on.
        trainer: of Lightning's Trainer.
        rounds: how many rounds there are; the first labels are one of them.
        first: how much is labeled in the first round; by default as in each.
        first_strategy: takes the first labels, before there is a model.
        strategy: which regions are taken, the name of a class with its options after a dot.
        partition: how images are cut.
        estimator: asked for the uncertainty; by default one deterministic pass.
        by: measure to score by; by default the margin.
        aggregate: how a region's pixels become its score.
        calibrator: fitted in each round on validation images, the name of a method; null for none.
        group: regular expression that finds the group (video, patient) in an image's id, for intervals.
        seed: of everything that is drawn.
        fine_tune: begin each training with the weights of the round before.
        stop: when to end before the last round: --stop.clicks 5000, --stop.metric 0.8, --stop.gain_over 2.
        until: pause when so many rounds are complete.
        enough: the share of a round's regions that has to be back before it goes on.
    """
    require_folder(pool, "--pool")
    loop = ActiveLearningLoop(
        task_maker(model),
        data_maker(data),
        pool=pool,
        annotator=annotator,
        estimator=estimator,
        partition=partition,
        strategy=strategy,
        budget=[budget if first is None else first, *[budget] * (rounds - 1)],
        rounds=rounds,
        run_dir=run_dir,
        calibrator=calibrator,
        trainer=trainer_maker(trainer, Path(run_dir)),
        group=group,
        seed=seed,
        by=by,
        aggregate=aggregate,
        start=first_strategy,
        fine_tune=fine_tune,
        stop=stop,
        settings=flat({"model": model, "data": result_of(data)}),
    )
    for line in loop.run(until, enough=enough).lines():
        print(line)


def result_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the data that change what comes out: not how many processes load it."""
    return {name: value for name, value in data.items() if name != "num_workers"}


def task_maker(options: Mapping[str, Any]) -> Callable[[], SegmentationTask]:
    """What makes the task of each round."""

    def make() -> SegmentationTask:
        # faster on most processors, and the results are the same
        return SegmentationTask(**options).to(memory_format=torch.channels_last)

    return make


def data_maker(options: Mapping[str, Any]) -> Callable[[Any], LabeledData]:
    """What makes the data of each round."""
    if options.get("root") is not None:
        require_folder(options["root"], "--data.root")
    return lambda labeled: LabeledData(labeled, **options)


def trainer_maker(options: Mapping[str, Any], folder: Path | None) -> Callable[[], Any]:
    """What makes the Trainer of each step, its callbacks and loggers anew each time.

    Args:
        options: of the Trainer.
        folder: for its log; None: no log unless the options say so.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Trainer, "trainer", fail_untyped=False, instantiate=False)
    usual = {name: item.default for name, item in inspect.signature(Trainer.__init__).parameters.items()}
    given = {name: value for name, value in options.items() if value != usual.get(name)}

    def make() -> Any:
        made = parser.instantiate_classes(parser.parse_object({"trainer": given})).as_dict()["trainer"]
        try:
            return default_trainer(folder, **{name: made[name] for name in given})
        except (ValueError, TypeError) as error:  # Lightning's, for an accelerator or devices that there are not
            raise UsageError(f"--trainer: {' '.join(str(error).split())}") from error

    make()  # what is wrong with it is said before work starts
    return make


def flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by their names as they are typed.

    Example:
        >>> flat({"model": {"classes": 2, "mean": (0.5,)}})
        {'model.classes': 2, 'model.mean': [0.5]}
    """
    found: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            plain = list(value) if isinstance(value, (list, tuple)) else value
            found[f"{prefix}{name}"] = plain if isinstance(plain, (str, int, float, list, type(None))) else str(plain)
    return found
