"""Which images belong together: neighboring frames, tiles and slices are not independent of each other."""

from __future__ import annotations

import re
from collections.abc import Callable

from seguq.core.errors import SeguqError, UsageError

GroupOf = str | Callable[[str], str] | None  # text first: a parser of YAML takes, and writes, the first that fits
"""From an image's id to its group: a function; a regular expression, whose first bracket (or whole match) is the group;
or None for contiguous blocks."""

_BLOCKS = 64


class Groups:
    """Tells the group of each image: what its id says, or the contiguous block of images that it lies in.

    Whole groups go to a fold, and are drawn by a bootstrap. Blocks: the images in their order, cut into 64 stretches
    of equal length; where there are fewer images, or it is not known how many, each is a block.

    Args:
        group: a function of the image id; a regular expression, whose first bracket (or whole match) is the group; None
            for blocks.

    Raises:
        UsageError: for what is none of these.

    Example:
        >>> Groups("^[^_]+")("0016E5_00390", 7, 1000), Groups(None)("0016E5_00390", 7, 640)
        ('0016E5', 'block 0')
    """

    def __init__(self, group: GroupOf = None) -> None:
        if not (group is None or isinstance(group, str) or callable(group)):
            raise UsageError(
                f"group must be a function of the image id, a regular expression or None, but is {group!r}"
            )
        if group == "":
            raise UsageError("group is an empty expression, which puts all images into one group: leave it out")
        self.group = group
        try:
            self._pattern = re.compile(group) if isinstance(group, str) else None
        except re.error as error:
            raise UsageError(f"group={group!r} is no regular expression ({error})") from error

    @property
    def named(self) -> bool:
        """Whether groups were told, in place of blocks."""
        return self.group is not None

    def require_ids(self, numbered: bool) -> None:
        """Raise where a regular expression tells groups by ids, and the images have none of their own.

        Every running number would be a group of its own. A function of these may be what somebody wants.

        Args:
            numbered: whether the ids are only running numbers.
        """
        if self._pattern is not None and numbered:
            raise SeguqError(
                f"group={self.group!r} tells the group of an image by its id, but the batches have no ids: make the "
                "loader give an image_id, or leave group out"
            )

    def __call__(self, image_id: str, number: int, total: int | None = None) -> str:
        """The group of an image.

        Args:
            image_id: its id.
            number: its place in the data, from 0.
            total: how many images there are; None where that is not known.

        Raises:
            SeguqError: for an id that the regular expression does not find anything in.
        """
        if self._pattern is not None:
            found = self._pattern.search(image_id)
            if found is None:
                raise SeguqError(f"group={self.group!r} finds nothing in the image id {image_id!r}")
            return next((part for part in found.groups() if part is not None), found[0])
        if callable(self.group):
            return str(self.group(image_id))
        length = 1 if total is None else max(1, -(-total // _BLOCKS))
        return f"block {number // length}"
