"""Items for a training on partial masks, each a function of a seed and its running number alone."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from torch.utils.data import DistributedSampler

from seguq.core.errors import SeguqError
from seguq.core.out_of_memory import memory_for
from seguq.core.seeds import derive_seed
from seguq.data.classes import Classes
from seguq.data.decoding import is_tiff
from seguq.data.folder import SMALLER, SegmentationFiles
from seguq.data.labeled import Labeled
from seguq.data.reading import read_indices, read_picture

Array = npt.NDArray[Any]


def count_labeled(images: Mapping[str, Path], masks: Mapping[str, Path], classes: Classes) -> dict[str, int]:
    """Count the labeled pixels of each mask, without those where its image has no data.

    Args:
        images: files by image id.
        masks: mask files by the same ids.
        classes: the classes of the masks.

    Returns:
        The number of labeled pixels by image id, in the order of ``masks``.
    """

    def count(image_id: str) -> int:
        known = read_indices(masks[image_id], classes) != classes.ignore_index
        missing = read_picture(images[image_id]).missing if is_tiff(images[image_id]) else None
        return int(np.count_nonzero(known if missing is None else known & ~missing))

    with ThreadPoolExecutor(max_workers=min(8, (os.cpu_count() or 1) + 2)) as pool:
        return dict(zip(masks, pool.map(count, masks), strict=True))


class LabeledItems(SegmentationFiles):
    """Items that show the labeled pixels of partial masks: crops, or whole images.

    With ``crop``, an item is made by drawing one of all labeled pixels, each as likely as any other, and then one of
    the crops of its image that contain it. Smaller images are padded; the padding is ignored. Without, images come
    whole, in turns of which each is shuffled anew.

    There is an item for every whole number from 0 on; the length is that of an epoch. Images of whose pixels none is
    labeled never come.

    Args:
        labeled: what is labeled. Items depend on its seed, not on the order of its images.
        counts: labeled pixels by image id, as `count_labeled` gives them.
        length: items an epoch.
        crop: (height, width), or None.
        transform: an albumentations pipeline, of whose random steps each item has a seed of its own.
        channels: as in `SegmentationFiles`.
        scale: as in `SegmentationFiles`.
    """

    def __init__(
        self,
        labeled: Labeled,
        counts: Mapping[str, int],
        length: int,
        crop: tuple[int, int] | None,
        transform: Any,
        channels: int | None = None,
        scale: float | None = None,
    ) -> None:
        self.transform: Any  # a pipeline whose seed can be set
        self.masks: Any  # there always are some
        shown = sorted(image_id for image_id, count in counts.items() if count)
        images, masks = ({one: files[one] for one in shown} for files in (labeled.images, labeled.masks))
        super().__init__(images, masks, labeled.classes, transform, channels, scale)
        self.ignore_index = labeled.classes.ignore_index
        self.seed, self.length, self.crop = labeled.seed, length, crop
        self.ends = list(accumulate(counts[image_id] for image_id in shown))
        self._turn: tuple[int, Array] = (-1, np.empty(0, np.int64))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> dict[str, Any]:
        draw = np.random.default_rng(derive_seed(self.seed, "item", number))
        index, pixel = self._whole(number) if self.crop is None else self._pixel(draw)
        image_id = self.ids[index]
        picture = read_picture(self.images[image_id], self.channels, self.scale)
        height, width = picture.pixels.shape[:2]
        with memory_for(f"image {image_id!r} ({height} x {width})", SMALLER):
            pixels, mask = picture.pixels, cast(Array, self.mask(image_id, picture))
            known = np.flatnonzero(mask != self.ignore_index)
            if mask.shape != (height, width) or pixel >= len(known):
                raise SeguqError(
                    f"{self.masks[image_id]} or its image has changed since the training began: start it again"
                )
            if self.crop is not None:
                place = np.unravel_index(known[pixel], mask.shape)
                pixels, mask = self._crop(pixels, mask, place, self.crop, draw)
            self.transform.set_random_seed(int(draw.integers(2**32)))
            return self.item(image_id, pixels, mask)

    def _whole(self, number: int) -> tuple[int, int]:
        """The image that is whole item ``number``."""
        turn, place = divmod(number, len(self.ids))
        if self._turn[0] != turn:
            order = np.random.default_rng(derive_seed(self.seed, "turn", turn)).permutation(len(self.ids))
            self._turn = turn, order
        return int(self._turn[1][place]), 0

    def _pixel(self, draw: np.random.Generator) -> tuple[int, int]:
        """One of all labeled pixels: its image, and which of the labeled ones there it is."""
        number = int(draw.integers(self.ends[-1]))
        index = bisect_right(self.ends, number)
        return index, number - (self.ends[index - 1] if index else 0)

    def _crop(
        self, pixels: Array, mask: Array, place: Sequence[Any], crop: tuple[int, int], draw: np.random.Generator
    ) -> tuple[Array, Array]:
        """One of the crops that contain a pixel, padded to its size."""
        part, padding = [], []
        for at, size, wanted in zip(place, mask.shape, crop, strict=True):
            lowest, highest = max(0, int(at) - wanted + 1), max(0, min(int(at), size - wanted))
            start = int(draw.integers(lowest, highest + 1))
            part.append(slice(start, start + wanted))
            lacking = max(0, wanted - size)
            padding.append((lacking // 2, lacking - lacking // 2))
        rows, columns = part
        return (
            np.pad(pixels[rows, columns], [*padding, (0, 0)]),
            np.pad(mask[rows, columns], padding, constant_values=self.ignore_index),
        )


class RunningNumbers(DistributedSampler[int]):
    """The running numbers of the items of an epoch, in order; of several processes each takes every so many-th.

    A Trainer says which epoch it is, by ``set_epoch``. Where the processes do not divide the epoch, its first items
    come again at its end, so that all have equally many.

    Args:
        data: the data set; its length is that of an epoch.
        processes: number of processes.
        rank: number of this one.
        epoch: the epoch to begin with.
    """

    def __init__(self, data: Any, processes: int = 1, rank: int = 0, epoch: int = 0) -> None:
        super().__init__(data, processes, rank, shuffle=False)
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        length = len(self.dataset)  # type: ignore[arg-type]
        first = self.epoch * length
        # torch's own would make a list of all
        return (first + place % length for place in range(self.rank, self.total_size, self.num_replicas))
