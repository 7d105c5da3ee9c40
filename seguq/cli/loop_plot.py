"""``seguq loop plot``: learning curves of loops."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from seguq.active import curve_csv, plot_runs
from seguq.cli.common import require_free
from seguq.cli.parsing import run_function
from seguq.core.files import write_bytes
from seguq.core.log import logger

_PICTURES = (".png", ".svg", ".pdf")
_DPI = 150


def run(words: Sequence[str]) -> None:
    """Run the command."""
    run_function(plot, "loop plot", words)


def plot(
    run_dir: list[str],
    out: str = "curve.png",
    by: str = "pixels",
    metric: str = "miou",
    csv: str | None = None,
    overwrite: bool = False,
) -> None:
    """Draw learning curves: a metric with its interval against how much was labeled, of one or several loops.

    Args:
        run_dir: folders of loops, as runs/entropy runs/random.
        out: the picture, a .png, .svg or .pdf file.
        by: what it is drawn against: pixels, regions, clicks, images (visited), or share of the pool's pixels.
        metric: which metric: miou, ece, ...
        csv: all rounds of the runs as a table, a .csv file.
        overwrite: replace the files if they exist.
    """
    target = Path(out)
    require_free(target, "a picture", "--out", _PICTURES, overwrite)
    if csv is not None:
        require_free(Path(csv), "a table for spreadsheets", "--csv", (".csv",), overwrite)
    figure = plot_runs(run_dir, by=by, metric=metric)
    picture = io.BytesIO()
    figure.savefig(picture, format=target.suffix[1:], dpi=_DPI)
    write_bytes(target, picture.getvalue())
    logger.info("learning curve: %s", target)
    if csv is not None:
        write_bytes(csv, curve_csv(run_dir))
        logger.info("for spreadsheets: %s", csv)
