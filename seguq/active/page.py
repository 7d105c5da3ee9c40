"""The page of a round."""

from __future__ import annotations

import os

from seguq.data import Classes, ImageSource
from seguq.export.page import page


def round_page(run_dir: str | os.PathLike[str], round: int, images: ImageSource, classes: Classes) -> str:
    """A page for people."""
    return page(f"round {round}", "")
