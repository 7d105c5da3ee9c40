"""The pictures that ``seguq calibrate`` leaves: reliability before and after, and T of every pixel of some images."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from seguq.calibration import Calibrator
from seguq.core.errors import UsageError
from seguq.export import to_rgb
from seguq.export.calibration_figure import Calibrated, reliability_figure, temperature_figure
from seguq.functional import predictive_entropy
from seguq.inference import Estimator
from seguq.metrics import CalibrationError
from seguq.store.listing import OwnFiles

_IMAGES = 4
_RELIABILITY, _TEMPERATURE = "reliability.png", "temperature.png"


class CalibrationPictures:
    """Writes the pictures of one run into a folder; what others have put there is left alone.

    Args:
        folder: made with the first picture; None: no pictures.

    Attributes:
        reliability: filled metrics before and after, out of sample; None where nothing can be shown.
        written: the files.
    """

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        if folder is not None and Path(folder).exists() and not Path(folder).is_dir():
            raise UsageError(f"--pictures {folder} is a file, not a folder")
        self.files = None if folder is None else OwnFiles(folder)
        self.reliability: tuple[CalibrationError, CalibrationError] | None = None
        self.written: list[Path] = []

    def require_free(self, est: Estimator) -> None:
        """Raise where somebody else has put a file in the place of a picture of an estimator."""
        if self.files is not None:
            for name in (_RELIABILITY, _TEMPERATURE):
                self.files.require_free(_named(est, name))

    def save(self, fitted: Calibrator, est: Estimator, loader: Iterable[Any], normalization: Any) -> None:
        """Draw and write them.

        Args:
            fitted: the calibrator.
            est: the estimator that it was fitted for.
            loader: of the images that it was fitted on.
            normalization: mean and deviation of each channel that they are normalized with.
        """
        if self.files is None:
            return
        title = f"{est.tag}: {fitted.name}"
        if self.reliability is not None:
            self._write(_named(est, _RELIABILITY), reliability_figure(*self.reliability, title))
        if hasattr(fitted, "temperature_map") and fitted.name != "global":
            self._write(
                _named(est, _TEMPERATURE), temperature_figure(_shown(fitted, est, loader, normalization), title)
            )
        if self.written:
            print(f"pictures: {', '.join(map(str, self.written))}")

    def _write(self, name: str, figure: Any) -> None:
        assert self.files is not None
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=110)
        self.files.write(name, content.getvalue())
        self.written.append(self.files.folder / name)


def _named(est: Estimator, name: str) -> str:
    """A picture's name, which is another one for each estimator."""
    return f"{re.sub('[^A-Za-z0-9]+', '_', est.tag).strip('_')[:100]}-{name}"


def _shown(fitted: Any, est: Estimator, loader: Iterable[Any], normalization: Any) -> list[Calibrated]:
    """The first images of a few batches, evenly over the data where it tells its length."""
    batches = est.pooled(_Some(loader))
    mean, deviation = (torch.tensor(part).view(-1, 1, 1) for part in normalization)
    found = []
    for batch in batches:
        logits, image, target = batch
        with torch.no_grad():
            temperature = fitted.temperature_map(logits, image)[0, 0]
        scaled = (image[0].float().cpu() * deviation + mean).clamp(0, 1)
        found.append(
            Calibrated(
                image_id=batch.image_ids[0],
                rgb=to_rgb((scaled * 255).round().byte().permute(1, 2, 0).numpy()),
                temperature=temperature.float().cpu(),
                entropy=predictive_entropy(logits[:1].softmax(1))[0].float().cpu(),
                prediction=logits[0].argmax(0).cpu(),
                target=target[0].cpu(),
                ignore_index=fitted.ignore_index,
            )
        )
    return found


class _Some:
    """A few batches of a loader, evenly over it, of one image each."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Any:
        count = len(self.loader)  # type: ignore[arg-type]
        wanted = {round(i * (count - 1) / max(1, min(_IMAGES, count) - 1)) for i in range(min(_IMAGES, count))}
        for number, batch in enumerate(self.loader):
            if number in wanted:
                yield {key: value[:1] for key, value in batch.items()}
