"""The base of all metrics here: sums over images, and the same sums under the weights of a Poisson bootstrap."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from seguq.core.checks import LabelWatch, is_number, is_whole, require_count, require_seed
from seguq.core.errors import SeguqError
from seguq.core.seeds import derive_seed
from seguq.metrics.pieces import parts_of

Interval = tuple[Tensor, Tensor]


@lru_cache(maxsize=65536)
def poisson_weights(seed: int, image_id: str, n_boot: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """How often an image is drawn in each replicate: Poisson(1) variates that depend on (seed, image id) alone.

    Keyed like this, an image that comes in pieces, or on another process, has the same weights everywhere.

    References:
        Chamandy et al., Estimating Uncertainty for Massive Data Streams, 2012.
    """
    return weights_of(image_seed(seed, image_id), n_boot)


def image_seed(seed: int, image_id: str) -> int:
    """The seed of an image's weights, from 0 to 2^63 - 1."""
    return derive_seed("bootstrap", seed, image_id)


def weights_of(seed: int, n_boot: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """The weights of the image with this seed, ``(n_boot,)``."""
    generator = np.random.Generator(np.random.Philox(seed))
    return generator.poisson(1.0, n_boot).astype(np.uint8)  # above 255 once in 10^500 draws


class BootstrapMetric(Metric):
    """A metric that is a function of sums over images.

    Args:
        size: number of sums.
        ignore_index: value of the target that is left out.
        n_boot: number of replicates of the bootstrap.
        seed: seed of the bootstrap.
        boot_size: number of sums kept for each replicate; by default as many as ``size``.
        settings: by name, what else the sums depend on, such as the side of a window.
        **kwargs: of `torchmetrics.Metric`.

    Raises:
        SeguqError: for an argument that is no whole number, or too small a one.
    """

    is_differentiable = False
    full_state_update = False
    sums: Tensor
    replicates: Tensor
    labels: Tensor
    ungrouped: Tensor

    def __init__(
        self,
        size: int,
        ignore_index: int = 255,
        *,
        n_boot: int = 200,
        seed: int = 0,
        boot_size: int | None = None,
        settings: Mapping[str, Any] = MappingProxyType({}),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_count("n_boot", n_boot, 2)
        require_seed(seed)
        if not is_whole(ignore_index):
            raise SeguqError(
                f"ignore_index must be a whole number, such as -1 where nothing is left out, but is {ignore_index!r}"
            )
        self.ignore_index = ignore_index
        self.n_boot = n_boot
        self.seed = seed
        self.settings = dict(settings)
        self.add_state("sums", torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")
        replicates = torch.zeros(n_boot, boot_size or size, dtype=torch.float64)
        self.add_state("replicates", replicates, dist_reduce_fx="sum")
        # torchmetrics' collections take metrics for one whose states are equal after the first batch, which may not
        # have had a pixel to ignore, or be smaller than any window: the name of a state tells them apart
        words = [type(self).__name__, ignore_index, seed, *(f"{name}_{value}" for name, value in settings.items())]
        kind = re.sub(r"\W", "_", "_".join(("is", *map(str, words))))
        self.add_state(kind, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("labels", torch.zeros(3, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("ungrouped", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @abstractmethod
    def _value(self, sums: Tensor) -> Tensor | dict[str, Tensor]:
        """The metric of sums ``(..., size)``, for one or for all replicates at once."""

    def _add(self, target: Tensor, group: Sequence[str] | None, sums_of: Callable[[slice], Tensor]) -> None:
        """Take in images, so many at a time that their sums stay within 128 MiB.

        Args:
            target: checked class indices ``(B, *spatial)``.
            group: one id an image, or None.
            sums_of: the sums of some of the images, ``(n, size)`` float64.
        """
        self._require_ids(len(target), group)
        self._look(target)
        for part in parts_of(len(target), self.sums.numel()):
            sums = sums_of(part)
            self._own("sums").add_(sums.sum(0))
            self._draw(sums, None if group is None else group[part])

    def _draw(self, boot_sums: Tensor, group: Sequence[str] | None) -> None:
        """Take the sums of images, ``(B, boot_size)``, into the replicates, each as often as it is drawn."""
        if group is None:
            self.ungrouped = self.ungrouped + len(boot_sums)
            return
        weights = np.stack([poisson_weights(self.seed, str(image_id), self.n_boot) for image_id in group])
        filled = boot_sums.any(0).nonzero().squeeze(1)  # of many bins, few hold a pixel
        drawn = torch.from_numpy(weights).to(boot_sums).T @ boot_sums[:, filled]
        self._own("replicates").index_add_(1, filled, drawn)

    def _own(self, name: str) -> Tensor:
        """A state that may be changed in place: one that Lightning reset under inference mode may not outside of it."""
        state: Tensor = getattr(self, name)
        if state.is_inference() and not torch.is_inference_mode_enabled():
            state = state.clone()
            setattr(self, name, state)
        return state

    @staticmethod
    def _require_ids(images: int, group: Sequence[str] | None) -> None:
        if group is not None and (isinstance(group, str) or len(group) != images):
            raise SeguqError(
                f"group must hold one image id for each of the {images} images (flat values (N,) are one image; N "
                "images of one value each are (N, 1))"
            )

    def _look(self, target: Tensor) -> None:
        """Note which labels a batch of targets holds, for a word where they seem to be masks of 0 and 255."""
        watch = LabelWatch(self.ignore_index)
        watch.seen = self.labels
        watch.look(target)
        self.labels = watch.seen.to(self.labels.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any) -> Any:
        """Move the sums as ``fn`` does, but keep their type.

        ``Trainer(precision="bf16-true")`` casts a module and all in it, and sums of pixels do not survive that.
        """

        def moved(tensor: Tensor) -> Tensor:
            out = fn(tensor)
            return out if out.dtype == tensor.dtype else tensor.to(out.device)

        return super()._apply(moved, *args)

    def _load_from_state_dict(self, *args: Any) -> None:
        """Take in states as copies: torchmetrics would share them with the dict, and updates change them in place."""
        super()._load_from_state_dict(*args)
        for name in self.metric_state:
            setattr(self, name, getattr(self, name).clone())

    def compute(self) -> Tensor | dict[str, Tensor]:
        """The value over everything seen; NaN where it is not defined."""
        watch = LabelWatch(self.ignore_index)
        watch.seen = self.labels
        watch.report(f"the targets of {type(self).__name__}")
        value: Tensor | dict[str, Tensor] = _map(Tensor.float, self._value(self.sums))
        return value

    def compute_difference(self, other: BootstrapMetric, level: float = 0.95) -> tuple[Any, Any]:
        """This metric minus another of the same images, with the interval of the difference.

        Both draw the same images in each replicate, so the interval is that of the pair: far narrower than what the
        two intervals by themselves suggest. It never leaves out the difference itself.

        Args:
            other: a metric of the same class, seed and number of replicates, over the same images.
            level: share of the replicates inside.

        Returns:
            The difference, and (low, high); of a metric of several values a dict of each.

        Raises:
            SeguqError: if the two do not go together, or were updated without ``group=``.
        """
        if type(other) is not type(self) or (other.seed, other.n_boot) != (self.seed, self.n_boot):
            raise SeguqError("a difference needs two metrics of one class, with the same seed and n_boot")
        for name, value in self.settings.items():
            if other.settings[name] != value:
                raise SeguqError(
                    f"a difference needs the same settings, but {name} is {value!r} here and "
                    f"{other.settings[name]!r} there"
                )
        _require_level(level)
        with (
            self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync, should_unsync=True),
            other.sync_context(dist_sync_fn=other.dist_sync_fn, should_sync=other._to_sync, should_unsync=True),
        ):
            for metric in (self, other):
                metric._require_groups()
            value, reference = self._value(self.sums), other._value(other.sums)
            interval = self._difference_interval(other, level)
            if isinstance(value, dict):
                assert isinstance(reference, dict) and isinstance(interval, dict)
                differences = {name: value[name] - reference[name] for name in value}
                bounds = {name: _holding(interval[name], difference) for name, difference in differences.items()}
                return {name: difference.float() for name, difference in differences.items()}, bounds
            assert not isinstance(reference, dict) and not isinstance(interval, dict)
            return (value - reference).float(), _holding(interval, value - reference)

    def _difference_interval(self, other: BootstrapMetric, level: float) -> Interval | dict[str, Interval]:
        mine, theirs = self._replicate_values(), other._replicate_values()
        if isinstance(mine, dict):
            assert isinstance(theirs, dict)
            return {name: percentiles(mine[name] - theirs[name], level) for name in mine}
        assert not isinstance(theirs, dict)
        return percentiles(mine - theirs, level)

    def _require_groups(self) -> None:
        if int(self.ungrouped):
            raise SeguqError("an interval needs the image ids: pass group=image_ids to each update")

    def compute_interval(self, level: float = 0.95) -> Interval | dict[str, Interval]:
        """The percentile interval of the bootstrap over images, made to hold the value where it would leave it out.

        It is meaningful from about ten images on.

        Args:
            level: share of the replicates inside.

        Returns:
            (low, high) of the value, or a dict of such pairs.

        Raises:
            SeguqError: if images were passed without ``group=``, or ``level`` is out of range.
        """
        _require_level(level)
        with self._all_images():
            interval, value = self._interval(level), self._value(self.sums)
            if isinstance(interval, dict):
                assert isinstance(value, dict)
                return {name: _holding(pair, value[name]) for name, pair in interval.items()}
            assert isinstance(value, Tensor)
            return _holding(interval, value)

    @contextmanager
    def _all_images(self) -> Iterator[None]:
        """The sums over the images of all processes, as torchmetrics has them around compute; all with an id."""
        with self._synced():
            self._require_groups()
            yield

    def _synced(self) -> Any:
        """A context in which the states are those of all processes."""
        return self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync, should_unsync=self._should_unsync
        )

    def plot(
        self, val: Any = None, ax: Any = None, label: str | None = None, color: str | None = None
    ) -> tuple[Any, Any]:
        """Draw the picture of what this process has seen, as the class says; or values over their steps.

        Where the class says nothing, it is the value as a dot with its interval (95 %) as a bar, where ids are known.

        Args:
            val: what `compute` gave; a sequence of that is drawn over its steps; None: the value of what was seen. A
                picture of more than the value does not look at one value.
            ax: matplotlib's axes to draw into; None: new ones.
            label: what is measured, for the legend.
            color: of what is drawn.

        Returns:
            The matplotlib figure and axes.
        """
        if is_history(val):
            figure, ax = axes_for(ax)
            self._plot(val, ax)
            return figure, ax
        return self._picture(val, ax, label, color)

    def _picture(self, val: Any, ax: Any, label: str | None, color: str | None) -> tuple[Any, Any]:
        """Draw one value, or more than that: arguments and result as of `plot`."""
        value = self.compute() if val is None else val
        figure, ax = axes_for(ax, len(value) if isinstance(value, dict) else 1)
        # the interval belongs to what was seen, not to a value brought along from elsewhere
        interval = self.compute_interval() if val is None and self._has_replicates else None
        values = value if isinstance(value, dict) else {type(self).__name__: value}
        intervals = interval if isinstance(interval, dict) else dict.fromkeys(values, interval)
        for place, (name, item) in enumerate(values.items()):
            bounds = intervals[name]
            if bounds is not None:
                ends = [float(bound) for bound in bounds]
                ax.plot([place, place], ends, color="0.6", linewidth=3, solid_capstyle="round", zorder=1)
            named = label if place == 0 else None
            ax.plot([place], [float(item)], label=named, marker="o", linestyle="none", color=color or "C0", zorder=2)
            ax.annotate(
                f"{float(item):.3f}", (place, float(item)), xytext=(8, 0), textcoords="offset points", va="center"
            )
        ax.set_xticks(range(len(values)), list(values))
        ax.set_xlim(-0.6, len(values) - 0.2)  # room for the last number
        if label is not None:
            ax.legend(frameon=False)
        ax.margins(y=0.15)
        ax.grid(axis="y", color="0.9")
        ax.set_axisbelow(True)
        return figure, ax

    @property
    def _has_replicates(self) -> bool:
        """Whether all images came with ids, so that there is an interval to draw."""
        return not int(self.ungrouped) and bool(self.replicates.any())

    def _interval(self, level: float) -> Interval | dict[str, Interval]:
        out: Interval | dict[str, Interval] = _map(lambda item: percentiles(item, level), self._replicate_values())
        return out

    def _replicate_values(self) -> Tensor | dict[str, Tensor]:
        return self._value(self.replicates)


def _require_level(level: float) -> None:
    if not is_number(level) or not 0 < level < 1:
        raise SeguqError(f"level must be above 0 and below 1, but is {level!r}")


def percentiles(values: Tensor, level: float) -> Interval:
    values = values[~values.isnan()]
    if not len(values):
        nan = values.new_full((), torch.nan)
        return nan, nan
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=values.dtype, device=values.device)
    low, high = torch.quantile(values, tails)
    return low, high


def _holding(interval: Interval, value: Tensor) -> Interval:
    low, high = interval
    return low.minimum(value).float(), high.maximum(value).float()


def _map(function: Callable[[Tensor], Any], value: Tensor | dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        return {name: function(item) for name, item in value.items()}
    return function(value)


def band(replicates: Tensor) -> tuple[Any, Any]:
    """The 2.5 and 97.5 percentiles of replicates ``(R, n)`` of a curve, ``(n,)`` each, as numpy arrays."""
    tails = torch.tensor([0.025, 0.975], dtype=replicates.dtype, device=replicates.device)
    low, high = torch.nanquantile(replicates, tails, dim=0).cpu().numpy()
    return low, high


def is_history(val: Any) -> bool:
    """Whether what is to be drawn are the values of several steps."""
    return isinstance(val, (list, tuple))


def axes_for(ax: Any, values: int = 1) -> tuple[Any, Any]:
    """Matplotlib's figure and axes to draw into: those given, or new ones that no window manager knows.

    Args:
        ax: the axes, or None.
        values: how many stand side by side.
    """
    from matplotlib.figure import Figure

    if ax is not None:
        return ax.figure, ax
    figure = Figure(figsize=(max(4, 1.2 * values), 4), layout="constrained")
    return figure, figure.add_subplot()


def split_last(sums: Tensor, *shape: int) -> Tensor:
    """``(..., n)`` as ``(..., *shape)``."""
    return sums.reshape(*sums.shape[:-1], *shape)
