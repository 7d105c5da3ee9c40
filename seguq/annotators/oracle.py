"""An annotator that knows all masks: for experiments."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from seguq.acquisition import Selection
from seguq.acquisition.selection import region_key
from seguq.annotators.annotator import Annotation, Annotator
from seguq.annotators.asked import Row, Sent, classes_of, regions_of, require_inside, require_mask
from seguq.core.checks import is_number, require_seed
from seguq.core.errors import UsageError
from seguq.core.seeds import derive_seed
from seguq.data import Classes, ImageSource, read_mask
from seguq.data.folder import find_masks
from seguq.regions.polygons import PIXEL_CLICKS, border_clicks


class Oracle(Annotator):
    """Answers at once, from a folder of masks: what an experiment asks in place of people.

    The clicks of an answer are those that outline the borders between the true classes within each region, and one for
    the class (`seguq.regions.polygons.border_clicks`); a region of one pixel takes one.

    Args:
        masks: folder of masks, by the ids of the images.
        classes: the classes of the masks, or their ``classes.json``; None: the one in that folder, or up to two folders
            above it.
        noise: share of wrong answers, in [0, 1]: with this probability all pixels of one class within one region are
            named as another class, each as likely as any. A region is answered alike whenever it is asked.
        seed: of the noise.

    Raises:
        SeguqError: if there are no classes; from `send`, for an image of the pool whose mask is missing, of another
            size, or holds what is no class index.

    Example:
        >>> from seguq.data import nuclei_mini
        >>> oracle = Oracle(nuclei_mini() / "masks" / "pool")
        >>> oracle.classes.names, oracle.truth("00ae65c1c663").shape
        (('background', 'nucleus'), (256, 256))
    """

    stored_as: ClassVar[Mapping[str, str]] = MappingProxyType({"classes": "given_classes"})

    def __init__(
        self,
        masks: str | os.PathLike[str],
        classes: Classes | str | os.PathLike[str] | None = None,
        noise: float = 0.0,
        seed: int = 0,
    ) -> None:
        if not isinstance(masks, (str, os.PathLike)):
            raise UsageError(f"masks must be a folder of masks, but is {masks!r}")
        folder = Path(masks)
        if not folder.is_dir():
            raise UsageError(f"{folder} is no folder: an oracle needs one of masks, named by the ids of the images")
        if not (is_number(noise) and 0 <= noise <= 1):
            raise UsageError(f"noise must be a number in [0, 1], the share of wrong answers, but is {noise!r}")
        require_seed(seed)
        self.masks, self.given_classes, self.noise, self.seed = masks, classes, noise, seed
        self.classes = classes_of(classes, folder)
        if noise and len(self.classes) < 2:
            raise UsageError("noise names one class as another, but there is one class only: leave it 0")
        self._folder = folder
        self._of: dict[str, Path] = {}
        self._sent = Sent()

    def send(self, selection: Selection, images: ImageSource) -> None:
        """Take in what is asked; all masks of the pool are looked at before the first answer."""
        images = ImageSource.of(images)
        require_inside(selection, images)
        self._look_at(images)
        self._sent.add(selection)

    def _look_at(self, images: ImageSource) -> None:
        """Read the masks of all images that were not looked at before."""
        new = {image_id: path for image_id, path in images.paths.items() if image_id not in self._of}
        files = find_masks(self._folder, new)
        for image_id, file in files.items():
            advice = "an oracle needs masks of the images as they are stored"
            require_mask(read_mask(file, self.classes), images.size(image_id), self.classes, str(file), advice)
        self._of.update(files)

    def collect(self) -> Iterator[Annotation]:
        """The masks of all regions that were asked for, those of the latest selection first."""
        for (_, image_id), rows in reversed(list(self._sent.tasks.items())):
            truth = read_mask(self._of[image_id], self.classes)
            numbers = regions_of(rows, truth.shape)
            mask = np.where(numbers < 0, self.classes.ignore_index, self._named(truth, numbers, rows))
            yield Annotation(image_id, tuple(rows), mask, _clicks(truth, numbers, rows))

    def _named(self, truth: npt.NDArray[Any], numbers: npt.NDArray[Any], rows: Sequence[Row]) -> npt.NDArray[Any]:
        """The classes as they are answered."""
        if not self.noise:
            return truth
        named: npt.NDArray[Any] = truth.copy()
        for number, row in enumerate(rows):
            asked = numbers == number
            for index in np.unique(truth[asked]).tolist():
                if index != self.classes.ignore_index:
                    named[asked & (truth == index)] = self._answer(row, index)
        return named

    def _answer(self, row: Row, index: int) -> int:
        """What one class within one region is named as: a function of the seed, the region and the class."""
        generator = np.random.default_rng(derive_seed("oracle", self.seed, *region_key(row), index))
        if generator.random() >= self.noise:
            return index
        return int((index + generator.integers(1, len(self.classes))) % len(self.classes))

    def truth(self, image_id: str) -> npt.NDArray[Any]:
        """The whole mask, ``(H, W)`` int64, without noise.

        Raises:
            SeguqError: if there is none.
        """
        file = self._of.get(image_id) or find_masks(self._folder, {image_id: Path(image_id)})[image_id]
        mask: npt.NDArray[Any] = read_mask(file, self.classes)
        return mask


def _clicks(truth: npt.NDArray[Any], numbers: npt.NDArray[Any], rows: Sequence[Row]) -> int:
    clicks = border_clicks(truth, numbers, len(rows))
    single = np.bincount(numbers[numbers >= 0], minlength=len(rows)) == 1
    return int(np.where(single, PIXEL_CLICKS, clicks).sum())
