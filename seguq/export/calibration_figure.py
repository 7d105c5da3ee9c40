"""Pictures of a calibration: where the temperature of a pixel is high, beside the image, its entropy and its errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seguq.functional.borders import near_border

_DISTANCES = (1, 2, 3, 4, 6, 8, 12)
_BINS = 12
_WRONG = (0.84, 0.15, 0.16)


@dataclass
class Calibrated:
    """One image and what a calibrator with a temperature for every pixel makes of it.

    Attributes:
        image_id: its name.
        rgb: the image, ``(H, W, 3)`` uint8.
        temperature: T, ``(H, W)``.
        entropy: of the raw probabilities, ``(H, W)`` in nats.
        prediction: class indices ``(H, W)``.
        target: class indices ``(H, W)``, some of them ``ignore_index``.
        ignore_index: value of ``target`` that is left out.
    """

    image_id: str
    rgb: Any
    temperature: Tensor
    entropy: Tensor
    prediction: Tensor
    target: Tensor
    ignore_index: int


def temperature_figure(items: Sequence[Calibrated], title: str) -> Any:
    """The temperature of every pixel beside the image, the wrong pixels and the entropy, and what it grows with.

    Args:
        items: a few images, one a row.
        title: what was calibrated how.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure

    rows = len(items)
    height, width = items[0].temperature.shape
    figure = Figure(figsize=(13, 1.2 + rows * min(3.3, 3.1 * height / width) + 2.8), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(rows * min(3.3, 3.1 * height / width), 2.8))
    upper, lower = parts
    grid = upper.subplots(rows, 4, squeeze=False)
    logs = torch.cat([item.temperature.flatten() for item in items]).log()
    most = max(float(logs.abs().quantile(0.99) if logs.numel() < 1 << 24 else logs.abs().max()), 0.05)
    highest = max(float(item.entropy.max()) for item in items)
    for axes, item in zip(grid, items, strict=True):
        wrong = (item.prediction != item.target) & (item.target != item.ignore_index)
        faded = torch.from_numpy(item.rgb.copy()).float() / 255 * 0.6 + 0.4
        faded[wrong] = torch.tensor(_WRONG)
        axes[0].imshow(item.rgb)
        axes[1].imshow(faded.numpy())
        entropy = axes[2].imshow(item.entropy.numpy(), cmap="magma", vmin=0, vmax=highest)
        drawn = axes[3].imshow(item.temperature.log().numpy(), cmap="RdBu_r", vmin=-most, vmax=most)
        axes[0].set_ylabel(item.image_id[:24], fontsize=8)
        for place in axes:
            place.set_xticks([])
            place.set_yticks([])
    for place, name in zip(grid[0], ("image", "wrong pixels (red)", "entropy of the raw softmax", "T"), strict=True):
        place.set_title(name, fontsize=10)
    upper.colorbar(
        entropy, ax=list(grid[:, 2]), shrink=0.8, label="nats (each image its own scale)" if rows > 1 else "nats"
    )
    bar = upper.colorbar(drawn, ax=list(grid[:, 3]), shrink=0.8)
    ticks = torch.linspace(-most, most, 5)
    bar.set_ticks(ticks.tolist(), labels=[f"{value:.2f}" for value in ticks.exp().tolist()])
    bar.set_label("blue: sharpened, red: softened")
    by_entropy, by_border = lower.subplots(1, 2)
    _by_entropy(by_entropy, items)
    _by_border(by_border, items)
    figure.suptitle(title, fontsize=10)
    return figure


def _by_entropy(axes: Any, items: Sequence[Calibrated]) -> None:
    entropy = torch.cat([item.entropy.flatten() for item in items])
    temperature = torch.cat([item.temperature.flatten() for item in items])
    wrong = torch.cat([(item.prediction != item.target).flatten() for item in items])
    labeled = torch.cat([(item.target != item.ignore_index).flatten() for item in items])
    edges = torch.linspace(0, max(float(entropy.max()), 1e-3), _BINS + 1)
    bins = torch.bucketize(entropy, edges[1:-1])
    x, mean, share = [], [], []
    for number in range(_BINS):
        here = bins == number
        if not bool((here & labeled).any()):
            continue
        x.append(float(edges[number] + edges[number + 1]) / 2)
        mean.append(float(temperature[here].log().mean().exp()))
        share.append(float(wrong[here & labeled].double().mean()))
    axes.plot(x, mean, marker="o", color="C3")
    axes.set_xlabel("entropy of the raw softmax, nats")
    axes.set_ylabel("mean T", color="C3")
    other = axes.twinx()
    other.plot(x, share, marker=".", color="0.5", linestyle="--")
    other.set_ylabel("share of wrong pixels", color="0.4")
    other.set_ylim(0, None)
    axes.axhline(1, color="0.8", linewidth=1)


def _by_border(axes: Any, items: Sequence[Calibrated]) -> None:
    sums, counts = [0.0] * (len(_DISTANCES) + 1), [0] * (len(_DISTANCES) + 1)
    for item in items:
        before = torch.zeros_like(item.prediction, dtype=torch.bool)
        for number, distance in enumerate((*_DISTANCES, None)):
            near = near_border(item.prediction[None], distance)[0] if distance is not None else ~before
            here = near & ~before
            sums[number] += float(item.temperature[here].log().sum())
            counts[number] += int(here.sum())
            before |= near
    shown = [number for number, count in enumerate(counts) if count]
    labels = [*(f"{distance}" for distance in _DISTANCES), f"> {_DISTANCES[-1]}"]
    values = [float(torch.tensor(sums[number] / counts[number]).exp()) for number in shown]
    axes.plot(range(len(shown)), values, marker="o", color="C3")
    axes.set_xticks(range(len(shown)), [labels[number] for number in shown])
    axes.set_xlabel("distance to the predicted border, pixels (up to)")
    axes.set_ylabel("mean T", color="C3")
    axes.axhline(1, color="0.8", linewidth=1)


def reliability_figure(before: Any, after: Any, title: str) -> Any:
    """The reliability diagrams of two filled `seguq.metrics.CalibrationError`, before and after, in one.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.subplots()
    before.plot(ax=axes, label="before", color="0.55")
    after.plot(ax=axes, label="after (out of sample)", color="C0")
    figure.suptitle(title, fontsize=10)
    return figure
