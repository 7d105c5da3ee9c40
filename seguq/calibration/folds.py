"""Which images a calibrator is judged on: whole groups go to a fold, never some frames of a video."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from seguq.core.errors import SeguqError
from seguq.core.groups import GroupOf, Groups

Key = TypeVar("Key", bound=Any)  # ordered

BUCKETS = 240
"""Sums are kept apart for so many buckets of images, however many images and groups there are."""

_DIGITS = 4  # binary ones


class TooFewGroups(SeguqError):
    """There are fewer groups than folds, so nothing can be out of sample."""


class Buckets:
    """Tells the bucket of each image, which goes to a fold as a whole.

    Named groups are spread over the buckets by a hash of their names. Two groups may share a bucket (1 in 240 pairs
    does): they then go to the same fold, which takes nothing from the honesty of what is measured. Without names a
    bucket is a contiguous block: the images of which the running numbers agree in their first four binary digits. So
    each of the first 16 images is a block, and any later block is a sixteenth to an eighth of what came before.
    Buckets depend on neither the batches nor the processes that images come in.

    Args:
        group: as in `Groups`.

    Example:
        >>> blocks = Buckets()
        >>> [blocks("", number) for number in (0, 15, 16, 17, 18)]
        [0, 15, 16, 16, 17]
    """

    def __init__(self, group: GroupOf = None) -> None:
        self.groups = Groups(group)

    def __call__(self, image_id: str, number: int) -> int:
        """The bucket of an image, given its id and its place in the data, from 0."""
        if not self.groups.named:
            return block_of(int(number))
        return bucket_of(self.groups(image_id, number))

    def of(self, image_ids: Sequence[str], numbers: Sequence[int]) -> list[int]:
        """The bucket of each image."""
        return [self(image_id, number) for image_id, number in zip(image_ids, numbers, strict=True)]


def block_of(number: int) -> int:
    """The block that the image with a running number lies in."""
    cut = max(number.bit_length() - _DIGITS, 0)
    first = number >> cut
    return min(first + (cut << (_DIGITS - 1)), BUCKETS - 1)


def bucket_of(group: str) -> int:
    """The bucket of a group by its name."""
    return int.from_bytes(hashlib.sha256(group.encode(errors="surrogatepass")).digest()[:8], "big") % BUCKETS


def assign(pixels: Mapping[Key, float], folds: int, contiguous: bool) -> dict[Key, int]:
    """The fold of each group: whole groups, so that the folds have as many labeled pixels as they can.

    Args:
        pixels: labeled pixels of each group; groups without any are left out.
        folds: number of folds.
        contiguous: groups are blocks, which follow each other: a fold is a stretch of them, the first half and the
            second half for two. Otherwise the largest group comes first, each goes to the fold with fewest pixels so
            far, and of groups of one size the first.

    Raises:
        TooFewGroups: if there are fewer groups than folds.

    Example:
        >>> assign({"a": 5, "b": 3, "c": 3, "d": 1}, folds=2, contiguous=False)
        {'a': 0, 'b': 1, 'c': 1, 'd': 0}
    """
    found = {key: count for key, count in sorted(pixels.items()) if count > 0}
    if len(found) < folds:
        raise TooFewGroups(
            f"what is out of sample needs labeled pixels in at least {folds} {'images' if contiguous else 'groups'}, "
            f"as many as folds, but they are in {len(found)}"
        )
    out: dict[Key, int] = {}
    if contiguous:
        total, before, last = sum(found.values()), 0.0, -1
        for place, (key, count) in enumerate(found.items()):
            wanted = int(folds * (before + count / 2) / total)
            # none is left empty: not the next one, and none of those that the groups still to come must fill
            last = max(min(wanted, last + 1), last, folds - len(found) + place, 0)
            out[key] = last
            before += count
        return out
    sizes = [0.0] * folds
    for key, count in sorted(found.items(), key=lambda item: (-item[1], item[0])):
        out[key] = sizes.index(min(sizes))
        sizes[out[key]] += count
    return out
