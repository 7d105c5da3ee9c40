"""The model that a command is asked about: a `SegmentationTask` from its checkpoint alone, or one of the user's own."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast

import torch
from torch import nn

from seguq.calibration.loading import load_content
from seguq.core.checks import require_choice
from seguq.core.errors import SeguqError, UsageError
from seguq.core.lightning import has_own
from seguq.core.reading import how, reading
from seguq.data.module import DataSettings, size_in_words, size_of
from seguq.data.normalization import Normalization
from seguq.functional.logits import TASKS, Task
from seguq.task import SegmentationTask
from seguq.weights import read_checkpoint, weights_sha256
from seguq.weights.checkpoint import weights_in


@dataclass(frozen=True)
class Model:
    """A trained model, and what has to be known of it to ask it.

    Attributes:
        network: the module, in evaluation mode, with its calibrators.
        task: what its logits are.
        normalization: mean and deviation of each channel of its images.
        num_classes: number of classes; None where only the data know it.
        trained_on: what its checkpoint knows of the data of its training.
        member: gives the module of another checkpoint of the same kind.
        weights_sha256: hash of all weights in its checkpoint, which may hold more than the network's.
    """

    network: nn.Module
    task: Task
    normalization: Normalization
    num_classes: int | None
    trained_on: DataSettings | None
    member: Callable[[str], nn.Module]
    weights_sha256: str

    @property
    def scale(self) -> float | None:
        """Value of 16-bit and float files that stands for 1, as in its training; None: by the type of the file."""
        return None if self.trained_on is None else self.trained_on.scale

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return len(self.normalization.mean)


def load_model(
    checkpoint: str,
    module: str | None,
    device: torch.device,
    *,
    task: Task | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Model:
    """Load the model of a checkpoint, whose file is read once.

    Args:
        checkpoint: its file.
        module: ``FILE.py:NAME`` of the LightningModule, ``nn.Module`` or function that makes one; None: a
            `SegmentationTask`.
        device: where it shall lie.
        task: what the logits of a module of one's own are; None: as its attribute ``task`` says, or multiclass.
        mean: mean of each channel of pixels from 0 to 1; None: as its attribute ``normalization`` says, or the
            checkpoint.
        std: deviation of each channel.

    Raises:
        UsageError: for a file or name that is not there, arguments that are not known, or options that do not go
            together.
        SeguqError: for a checkpoint that is damaged or does not fit.
    """
    if (mean is None) != (std is None):
        raise UsageError("--mean and --std go together: give both or neither")
    if module is None and (task is not None or mean is not None):
        raise UsageError(
            f"--{'task' if task is not None else 'mean'} goes with --module: a checkpoint of seguq fit knows it"
        )
    make = _named(module) if module is not None else SegmentationTask
    content = read_checkpoint(checkpoint)
    if module is None or _is_task(content):

        def own_task(content: dict[str, Any], path: str) -> SegmentationTask:
            network = None if module is None else _made(make, module, {})
            return SegmentationTask.load_content(content, path, network).to(device)

        own = own_task(content, checkpoint)
        return Model(
            own,
            own.task,
            own.normalization,
            own.num_classes,
            own.trained_on,
            member=lambda path: own_task(read_checkpoint(path), path),
            weights_sha256=_hash(content, checkpoint),
        )
    with reading(checkpoint):
        told = DataSettings.of(content)
    weights = _hash(content, checkpoint)  # before the module can change what it is loaded from
    network = _own(make, module, content, checkpoint).to(device)
    known = getattr(network, "task", None)
    task = task or (known if known in TASKS else "multiclass")
    require_choice("--task", task, TASKS)
    return Model(
        network,
        task,
        _normalization(network, told, mean, std, module),
        None,
        told,
        member=lambda path: _own(make, module, read_checkpoint(path), path).to(device),
        weights_sha256=weights,
    )


Size = int | tuple[int, int] | Literal["auto"] | None
"""The option ``--size``."""


def image_size(size: Size, told: DataSettings | None) -> tuple[int, int] | None:
    """The size that images are resized to: by default that of the training, as far as the checkpoint knows it.

    Args:
        size: what was asked for; ``auto``: as in training.
        told: what the checkpoint knows; None: nothing, so that images are left as they are.
    """
    trained = None if told is None else told.size
    if size == "auto":
        return trained
    found = size_of(size, "--size")
    if told is not None and found != trained:
        warnings.warn(
            f"by --size images are {size_in_words(found)}, but in training they were {size_in_words(trained)}: what "
            "the model and its calibrator have learned may not hold",
            stacklevel=2,
        )
    return found


def _hash(content: Mapping[str, Any], checkpoint: str) -> str:
    with reading(checkpoint):
        return weights_sha256(weights_in(content))


def _is_task(content: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is of a `SegmentationTask` with a network of somebody's own."""
    told = content.get("hyper_parameters")
    return isinstance(told, Mapping) and {"classes", "mean"} <= set(told) and told.get("architecture", "") is None


def _named(module: str) -> Callable[..., Any]:
    """What ``FILE.py:NAME`` names; the file is run, as it is the user's own."""
    file, _, name = module.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise UsageError(f"--module {module}: name a class in a file, as FILE.py:Class")
    path = Path(file)
    if not path.is_file():
        raise UsageError(f"--module {module}: there is no file {file}")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # for what stands beside it
    found = getattr(_run(path, module), name, None)
    if not callable(found):
        raise UsageError(f"--module {module}: {file} has no class {name!r}")
    return found  # type: ignore[no-any-return]


def _run(path: Path, module: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"_seguq_module_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made  # dataclasses look there for the module of a class
    try:
        spec.loader.exec_module(made)
    except (Exception, SystemExit) as error:  # a script that ends itself would end the command without a word
        raise UsageError(f"--module {module}: it cannot be loaded ({type(error).__name__}: {how(error)})") from error
    return made


def _arguments(make: Callable[..., Any], module: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters of a checkpoint that a class takes, as Lightning hands them on."""
    try:
        takes = inspect.signature(make).parameters
    except (TypeError, ValueError):  # some classes do not tell
        return {}
    told = content.get("hyper_parameters") or {}
    if not isinstance(told, Mapping):
        raise ValueError(f"'hyper_parameters' must be a mapping, but is a {type(told).__name__}")
    whole = content.get("hparams_name")
    if isinstance(whole, str) and whole in takes and whole not in told:
        return {whole: _Attributes(told)}
    everything = any(item.kind is item.VAR_KEYWORD for item in takes.values())
    given = {str(name): value for name, value in told.items() if everything or name in takes}
    named = [item for item in takes.values() if item.kind not in (item.VAR_KEYWORD, item.VAR_POSITIONAL)]
    missing = [item.name for item in named if item.default is item.empty and item.name not in given]
    if missing:
        there = ", ".join(map(str, told)) or "none"
        raise UsageError(
            f"--module {module} needs {', '.join(missing)}, which the hyperparameters of the checkpoint do not hold "
            f"(there are: {there}): name a function without arguments that makes the model"
        )
    return given


class _Attributes(dict[str, Any]):
    """Hyperparameters that were given as one argument: by key and by attribute, as Lightning has them."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(f"there is no hyperparameter {name!r}") from error


def _made(make: Callable[..., Any], module: str, content: Mapping[str, Any]) -> nn.Module:
    arguments = _arguments(make, module, content)
    try:
        network = make(**arguments)
    except SeguqError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"--module {module} cannot be made with the hyperparameters of the checkpoint "
            f"({type(error).__name__}: {how(error)})"
        ) from error
    if not isinstance(network, nn.Module):
        raise UsageError(f"--module {module} makes a {type(network).__name__}, which is no nn.Module")
    if has_own(network, "configure_model"):
        cast(Any, network).configure_model()  # a LightningModule may make its layers there
    return network


def _own(make: Callable[..., Any], module: str, content: dict[str, Any], checkpoint: str) -> nn.Module:
    """A module of the user's own with the weights and calibrators of a checkpoint."""
    with reading(checkpoint):
        network = _made(make, module, content)
        if has_own(network, "on_load_checkpoint"):
            cast(Any, network).on_load_checkpoint(content)
    return load_content(content, checkpoint, network).eval()


def _normalization(
    network: nn.Module,
    told: DataSettings | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    module: str,
) -> Normalization:
    """What was asked for, what the module says, or what the checkpoint knows, in this order."""
    attribute: Any = getattr(network, "normalization", None)
    pair = isinstance(attribute, (tuple, list)) and len(attribute) == 2
    known = Normalization.checked(*attribute) if pair else None if told is None else told.normalization
    if mean is not None and std is not None:
        found = Normalization.checked(list(mean), list(std))
        if known is not None and known != found:
            warnings.warn(
                f"by --mean and --std images are normalized with {tuple(found)}, but in training they were with "
                f"{tuple(known)}",
                stacklevel=2,
            )
        return found
    if known is None:
        raise UsageError(
            f"--module {module} does not say how its images are normalized, nor does the checkpoint: pass --mean and "
            "--std of each channel, of pixels from 0 to 1 (0 and 1 where there was none), or give the class an "
            "attribute normalization = (mean, std)"
        )
    return known
