"""Deep ensembles: several models, trained apart, asked one after another."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from seguq.calibration import load
from seguq.calibration.checkpoint import carried, carry
from seguq.core.errors import SeguqError, UsageError
from seguq.core.seeds import GENERATOR_LOCK
from seguq.functional.logits import Task
from seguq.inference.estimator import Estimator, Forward, warn_of_calibrator
from seguq.inference.evaluation import evaluation_mode, images_for
from seguq.inference.sampling import SamplingEstimator
from seguq.weights import weights_sha256

if TYPE_CHECKING:
    from typing_extensions import Self


class DeepEnsemble(SamplingEstimator):
    """The members of an ensemble as samples of the model.

    Args:
        members: modules, checkpoint files (Lightning checkpoints or bare state dicts), or estimators, also mixed. Of a
            member that has samples of its own (`MCDropout`) each is a sample of the ensemble, so that the mutual
            information is that over all samples of all members. None: a command gives them (``--members``).
        model: the module that the weights of checkpoint files go into; a copy of it is made for each.
        lazy: read the files one after another in each call (inside of a `SlidingWindow` for each batch of windows),
            into one copy: ten members need one member's memory.
        **settings: ``task``, ``measures``, ``calibrator``, ``forward``, as in `Estimator`; ``features`` are of the
            first member.

    Raises:
        SeguqError: with no member, a file that does not fit, a file without ``model=``, or, on a call, members whose
            logits differ in shape.

    References:
        Lakshminarayanan et al., Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles, 2017.

    Example:
        >>> est = DeepEnsemble([nn.Conv2d(3, 2, 1) for _ in range(3)], calibrator=None)
        >>> import torch
        >>> est(torch.zeros(1, 3, 4, 4)).names[-1]
        'variation_ratio'
    """

    name: ClassVar[str] = "deep_ensemble"

    @torch.inference_mode(False)  # the copies of the model are filled later, outside of it
    def __init__(
        self,
        members: Sequence[Estimator | nn.Module | str | os.PathLike[str]] | None = None,
        model: nn.Module | None = None,
        lazy: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if members is not None and (
            isinstance(members, (str, os.PathLike, nn.Module)) or not isinstance(members, Iterable) or not members
        ):
            raise SeguqError("members must be a list of at least one module, checkpoint file or estimator")
        self.model = model
        self.lazy = lazy
        self._slot = copy.deepcopy(model) if lazy and model is not None else None
        self._hashes_of_files: dict[tuple[Path, int, int], str] = {}
        self._held = nn.Module()  # holds the calibrators of the first file, which the module it is read into loses
        self.members = [self._member(member, model) for member in members or ()]

    def _member(
        self, member: Estimator | nn.Module | str | os.PathLike[str], model: nn.Module | None
    ) -> Estimator | nn.Module | Path:
        if isinstance(member, Estimator):
            if member.task != self.task:
                raise SeguqError(f"a member has task={member.task!r}, but the ensemble task={self.task!r}")
            warn_of_calibrator(member)
            return member
        if isinstance(member, nn.Module):
            return member
        if not isinstance(member, (str, os.PathLike)):
            raise SeguqError(f"a member must be a module, checkpoint file or estimator, but is {member!r}")
        if model is None:
            raise SeguqError(
                f"{member}: pass model=, the module that the weights of a checkpoint go into (on the command line the "
                "members beside --checkpoint are given by --members)"
            )
        loaded = load(member, copy.deepcopy(model) if self._slot is None else self._slot)
        if self._slot is None:
            return loaded
        if not self._hashes_of_files:
            carry(self._held, carried(loaded))
        file = Path(member).absolute()
        self._hashes_of_files[_state_of(file)] = weights_sha256(loaded)
        return file

    def _hash_of_file(self, path: Path) -> str:
        """The hash of the weights in a file; it is read again only where it has changed."""
        state = _state_of(path)
        if state not in self._hashes_of_files:
            assert self._slot is not None
            with GENERATOR_LOCK:
                self._hashes_of_files[state] = weights_sha256(load(path, self._slot))
        return self._hashes_of_files[state]

    @property
    def tag(self) -> str:
        """``deep_ensemble(members=..., weights=...)``: a calibrator is for these members, not for as many others."""
        self.require_complete()
        return f"deep_ensemble(members={len(self.members)}, weights={self._weights})"

    @property
    def _weights(self) -> str:
        hashes = []
        for member in self.members:
            if isinstance(member, Estimator):
                hashes += [member.tag, *map(self._hash_of, member.models)]
            elif isinstance(member, nn.Module):
                hashes.append(self._hash_of(member))
            else:
                hashes.append(self._hash_of_file(member))
        return hashlib.sha256("".join(sorted(hashes)).encode()).hexdigest()[:8]

    @property
    def carrier(self) -> nn.Module:
        first = self.members[0]
        return self._held if isinstance(first, Path) else first.carrier if isinstance(first, Estimator) else first

    def weights_hash(self) -> str:
        first = self.members[0]
        if isinstance(first, Path):
            return self._hash_of_file(first)
        return first.weights_hash() if isinstance(first, Estimator) else self._hash_of(first)

    def images_in(self, images: Tensor) -> Tensor:
        # in their own precision: each member is given them in its own
        return images_for(self.models[0], images, cast=False)

    def bind(self, model: nn.Module) -> DeepEnsemble:
        """Itself: the members are its models."""
        self.require_complete()
        return self

    @property
    def lacking(self) -> tuple[str, ...]:
        """The members, where there are none yet."""
        return () if self.members else ("members",)

    @property
    def looks_around(self) -> bool:
        """Whether a member does."""
        return any(isinstance(member, Estimator) and member.looks_around for member in self.members)

    def adapted(self, task: Task | None, forward: Callable[[Forward | None], Forward | None]) -> Self:
        """The same of adapted members."""
        made = super().adapted(task, forward)
        made.members = [
            member.adapted(task, forward) if isinstance(member, Estimator) else member for member in self.members
        ]
        return made

    @property
    def models(self) -> Sequence[nn.Module]:
        """The models of the members; of files that are read one after another, the module that they are read into."""
        self.require_complete()
        found: list[nn.Module] = []
        for member in self.members:
            if isinstance(member, Estimator):
                found += member.models
            elif isinstance(member, nn.Module):
                found.append(member)
            elif self._slot is not None and self._slot not in found:
                found.append(self._slot)
        return found

    @property
    def begins_with_first_model(self) -> bool:
        """Whether the first member is a network; an estimator may show its own other images, or run it otherwise."""
        return not isinstance(self.members[0], Estimator)

    def first_model(self) -> nn.Module:
        """The model of the first member, of which features are; its file is read where members are read in turn."""
        first = self.members[0]
        if isinstance(first, Estimator):
            return first.first_model()
        if isinstance(first, Path):
            assert self._slot is not None
            return load(first, self._slot)
        return first

    def details(self) -> dict[str, Any]:
        inner = [member.details() for member in self.members if isinstance(member, Estimator)]
        layers = [layer for details in inner for layer in details["layers"]]
        plain = len(self.members) - len(inner)
        seeds = tuple(details["seed"] for details in inner if "seed" in details)
        passes = plain + sum(details["passes"] for details in inner)
        return {"layers": tuple(layers), "passes": passes, **({"seed": seeds} if seeds else {})}

    def identity(self) -> dict[str, Any]:
        # the module that files are read into may hold any of them
        inner = [member.identity() for member in self.members if isinstance(member, Estimator)]
        return {**super().identity(), "models": [], "members": inner}

    def forwards(self, images: Tensor) -> int:
        return sum(member.forwards(images) if isinstance(member, Estimator) else 1 for member in self.members)

    def seen_random(self, images: Tensor) -> tuple[str, ...]:
        estimators = [member for member in self.members if isinstance(member, Estimator)]
        return tuple(dict.fromkeys(name for member in estimators for name in member.seen_random(images)))

    def sample_logits(self, images: Tensor, ids: tuple[str, ...]) -> Iterator[Tensor]:
        shape = None
        for number, member in enumerate(self.members):
            for logits in self._of_member(member, images, ids):
                if shape is not None and logits.shape != shape:
                    raise SeguqError(
                        f"the members of an ensemble must agree in shape: member 0 gives {tuple(shape)}, "
                        f"member {number} {tuple(logits.shape)}"
                    )
                shape = logits.shape
                yield logits

    def _of_member(
        self, member: Estimator | nn.Module | Path, images: Tensor, ids: tuple[str, ...]
    ) -> Iterator[Tensor]:
        if isinstance(member, Estimator):
            yield from member.sample_logits(member.take_in(images, ids)[0], ids)
            return
        with GENERATOR_LOCK:  # threads share the module that files are read into
            if isinstance(member, Path):
                assert self._slot is not None
                member = load(member, self._slot)
            with evaluation_mode(member):
                logits = self.logits_of(member, images_for(member, images))
        yield logits


def _state_of(path: Path) -> tuple[Path, int, int]:
    try:
        stat = path.stat()
    except FileNotFoundError as error:
        raise UsageError(f"checkpoint {path} does not exist") from error
    return path, stat.st_mtime_ns, stat.st_size
