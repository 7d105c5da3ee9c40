"""The estimator that a command was asked for, completed with what the command knows: the model, its files, samples."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch.utils.data import DataLoader

from seguq.calibration import Calibrator
from seguq.cli.common import require_folder
from seguq.core.errors import UsageError
from seguq.core.log import logger
from seguq.data import SegmentationFolder, check_files
from seguq.data.transforms import evaluation_transform
from seguq.inference import Deterministic, Estimator, SlidingWindow
from seguq.inference.measures import checked_measures, named_measures
from seguq.inference.wrapping import WrappingEstimator

if TYPE_CHECKING:
    from seguq.cli.model import Model  # which imports Lightning

EXAMPLES = """\
estimators (--members, --samples, --seed and --bn_images go to the innermost one that takes them):
  --estimator deterministic                                       one pass
  --estimator mc_dropout --samples 10                             passes with dropout switched on
  --estimator deep_ensemble --members [b.ckpt,c.ckpt]             this checkpoint and others
  --estimator swag --bn_images DATA/images/train                  of a training with callbacks.SWAG
  --estimator test_time_augmentation --estimator.views hflip      the image and its mirror image; flips, d4
  --estimator sliding_window --estimator.window 512               windows of large images
one stands in another by its option inner:
  --estimator test_time_augmentation --estimator.inner mc_dropout --samples 5
  --estimator sliding_window --estimator.window 512 --estimator.inner deep_ensemble --members [b.ckpt]
in a --config file:
  estimator: {class_path: seguq.SlidingWindow, init_args: {window: 512, inner: mc_dropout}}"""

_GIVEN_BY = {"model": "--checkpoint", "checkpoint": "--checkpoint", "members": "--members", "bn_batches": "--bn_images"}
"""Arguments of estimators that only the command knows, and the option that says them."""
_MOST_IMAGES = 256  # for batch statistics: some hundred will do
_BATCH = 8  # always: statistics, and with them the weights that a calibrator is for, depend on it


def make_estimator(
    estimator: Estimator | str,
    model: Model,
    checkpoint: str,
    *,
    samples: int | None = None,
    seed: int | None = None,
    members: Sequence[str] | None = None,
    bn_batches: Iterable[Any] | None = None,
    measures: Sequence[str] | None = None,
    calibrator: Calibrator | Literal["auto"] | None = "auto",
    features: bool = False,
) -> Estimator:
    """The estimator that a command was asked for, of a trained model.

    Args:
        estimator: its name, or one without a model that was made with options of its own.
        model: the trained model.
        checkpoint: its file.
        samples: for the innermost estimator, if it takes them and was not made with others; None: its own default.
        seed: the same; None: 0.
        members: further checkpoints, of an ensemble.
        bn_batches: training images, for an estimator that renews batch statistics.
        measures: names of the measures; None: all that it has.
        calibrator: as in `Estimator`.
        features: as in `Estimator`; False: as the estimator was made.

    Raises:
        UsageError: for an unknown name, or options that do not go with the estimator.
    """
    takes = innermost(estimator).constructor_arguments()
    if "members" in takes and not members:
        raise UsageError("an ensemble needs --members: the checkpoints beside --checkpoint, as [b.ckpt,c.ckpt]")
    for name, given in (("members", members), ("bn_batches", bn_batches)):
        if given is not None and name not in takes:
            raise UsageError(f"{_GIVEN_BY[name]} does not go with {_in_words(estimator)}")
    offered: dict[str, Any] = {
        "model": model.network,
        "task": model.task,
        "checkpoint": checkpoint,
        "samples": samples,
        "seed": 0 if seed is None else seed,
        "members": None if not members else [model.network, *map(model.member, members)],
        "bn_batches": bn_batches,
    }
    if "members" in takes:
        del offered["model"]  # it is the first member
    offered = {name: value for name, value in offered.items() if value is not None}
    if isinstance(estimator, str):
        inner = {} if "inner" not in Estimator.named(estimator).constructor_arguments() else {"inner": model.network}
        settings = {"measures": measures, "calibrator": calibrator, "features": features}
        return Estimator.make(estimator, **offered, **inner, **settings)
    made = _completed(estimator, offered)
    made.calibrator = made.calibrator if calibrator == "auto" else calibrator
    if features and not made.features:
        made.require_features(features)
        made.features = features
    if measures:
        made.measures = checked_measures(named_measures(measures) or (), made.available, type(made).__name__)
    return made


def _completed(est: Estimator, offered: Mapping[str, Any]) -> Estimator:
    """An estimator with what it was made without, as far as it is on offer; what stands inside of it likewise."""
    if isinstance(est, SlidingWindow):
        est.windows.sides((1, 1))  # commands look at 2-D images
    if isinstance(est, WrappingEstimator):
        return est.around(_completed(est.inner, offered))
    given, takes = est.arguments(), est.constructor_arguments()
    if not (est.unbound or est.lacking or given.get("model")):  # of one's own, with models from elsewhere
        return est.adapted(offered["task"], lambda own: own)
    for name in offered.keys() & given.keys():
        if name in est.lacking or given[name] == takes[name].default:
            given[name] = offered[name]
        elif name in _GIVEN_BY:
            raise UsageError(f"{type(est).__name__} has its {name} by {_GIVEN_BY[name]}: leave it out of its options")
        elif name == "task" and given[name] != offered[name]:
            raise UsageError(f"the task of {type(est).__name__} is that of the model, {offered[name]}: leave it out")
    return type(est)(**given)


def innermost(estimator: Estimator | str) -> type[Estimator]:
    """The class of the estimator that stands inside of all others, which asks the model."""
    if isinstance(estimator, str):
        kind = Estimator.named(estimator)
        return Deterministic if issubclass(kind, WrappingEstimator) else kind
    return type(asked(estimator))


def asked(est: Estimator) -> Estimator:
    """The estimator that stands inside of all others, which asks the model."""
    while isinstance(est, WrappingEstimator):
        est = est.inner
    return est


def require_samples_used(options: Mapping[str, Any], typed: Collection[str]) -> None:
    """What was typed has to be of use; what a file of options says is taken where it is of use.

    Args:
        options: those of a command.
        typed: the names of those that were typed.

    Raises:
        UsageError: for ``--samples`` with an estimator that takes none, or was made with others.
    """
    estimator, samples = options["estimator"], options["samples"]
    if "samples" not in typed or samples is None:
        return
    takes = innermost(estimator).constructor_arguments()
    if "samples" not in takes:
        raise UsageError(f"--samples {samples} does not go with {_in_words(estimator)}, which takes none: leave it out")
    own = takes["samples"].default if isinstance(estimator, str) else asked(estimator).arguments()["samples"]
    if own not in (takes["samples"].default, samples):
        raise UsageError(f"--samples {samples}, but {_in_words(estimator)} has samples={own}: give it once")


def _in_words(estimator: Estimator | str) -> str:
    return estimator if isinstance(estimator, str) else repr(estimator)


def images_for_statistics(
    folder: str | Path, model: Model, size: tuple[int, int] | None, scale: float | None
) -> list[dict[str, Any]] | DataLoader[dict[str, Any]]:
    """Batches of training images, from which batch statistics are renewed: at most 256 of a folder, evenly spaced.

    Args:
        folder: of images.
        model: which says how they are normalized.
        size: what they are resized to; None: nothing.
        scale: value of 16-bit and float files that stands for 1.
    """
    place = require_folder(str(folder), "--bn_images")
    transform = evaluation_transform(model.normalization, size)
    data = SegmentationFolder(place, transform=transform, channels=model.channels, scale=scale)
    sizes = check_files(data.images, channels=model.channels, scale=scale, folder=place)
    count = min(len(data), _MOST_IMAGES)
    rows = [number * len(data) // count for number in range(count)]
    by_size: dict[tuple[int, int], list[int]] = {}
    for row in rows:
        by_size.setdefault(size or sizes[data.ids[row]], []).append(row)
    batches = [alike[i : i + _BATCH] for alike in by_size.values() for i in range(0, len(alike), _BATCH)]
    logger.info("batch statistics are renewed on %d images of %s", count, place)
    return DataLoader(data, batch_sampler=batches)
