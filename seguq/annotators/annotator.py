"""Who labels: what every annotator is, and what comes back from one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from seguq.acquisition import Selection
from seguq.core.named import Named
from seguq.data import Classes, ImageSource


@dataclass(frozen=True)
class Annotation:
    """An answer: the classes of regions of one image.

    Attributes:
        image_id: the image.
        rows: the rows of a selection that it answers, as they were sent.
        mask: class indices of the whole image, ``(H, W)`` int64; ``ignore_index`` where nobody could say, and outside
            of the regions.
        clicks: what it took; None where that is not known.
    """

    image_id: str
    rows: Sequence[Mapping[str, Any]]
    mask: npt.NDArray[Any]
    clicks: int | None = None


class Annotator(Named, ABC):
    """Takes selections, and gives masks for them: at once, late, in parts, or never.

    What each promises (`seguq.testing.check_annotator` looks):

    - `send` may be called again with the same selection, in this process or a later one: nothing is sent twice, and
      nothing that a person has done is lost. A selection of the same round with other regions is refused.
    - `collect` gives every answer that there is to what was sent to this object, in any order, and gives it again at
      the next call; nothing where nobody has answered.
    - An answer that is wrong (its size, a class index, the type of its file) is a `SeguqError` that names it and says
      what to do. Nothing is lost: once it is mended, `collect` goes on.

    Attributes:
        classes: what may be answered.
    """

    classes: Classes

    @abstractmethod
    def send(self, selection: Selection, images: ImageSource) -> None:
        """Ask for the classes of the selected regions.

        Args:
            selection: the regions; ``selection.why["round"]`` is the number of their round, from 0.
            images: where their images are.

        Raises:
            SeguqError: if it cannot be answered, before anything is asked.
        """

    @abstractmethod
    def collect(self) -> Iterator[Annotation]:
        """The answers that there are to what was sent to this object, one an image and round.

        Raises:
            SeguqError: for an answer that is wrong.
        """

    def truth(self, image_id: str) -> npt.NDArray[Any] | None:
        """The whole mask of an image, ``(H, W)``, where it is known beforehand; None where a person has to look."""
        return None
