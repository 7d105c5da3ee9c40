"""Who labels what was selected: a selection is sent, masks are collected."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seguq.annotators.annotator import Annotation, Annotator
from seguq.core.named import hand_on

if TYPE_CHECKING:
    from seguq.annotators.folder import Folder as Folder
    from seguq.annotators.oracle import Oracle as Oracle

__all__ = ["Annotation", "Annotator"]
__getattr__ = hand_on(Annotator)
