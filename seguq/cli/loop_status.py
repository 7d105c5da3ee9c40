"""``seguq loop status``: how a loop stands."""

from __future__ import annotations

from collections.abc import Sequence

from seguq.active import status
from seguq.cli.common import print_table
from seguq.cli.parsing import run_function
from seguq.core.errors import printable


def run(words: Sequence[str]) -> None:
    """Run the command."""
    run_function(show, "loop status", words)


def show(run_dir: str) -> None:
    """Show how a loop stands: what it does or waits for, what is labeled, and what that was worth.

    It may be asked at any time, also while another process runs the loop; nothing is changed.

    Args:
        run_dir: folder of the loop.
    """
    found = status(run_dir)
    for line in found.lines():
        print(printable(line))
    if found.records:
        print_table("rounds", *found.rows())
