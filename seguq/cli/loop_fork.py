"""``seguq loop fork``: go on from a round of another loop, in another way."""

from __future__ import annotations

from collections.abc import Sequence

from seguq.active.fork import fork
from seguq.cli.parsing import run_function
from seguq.core.log import logger


def run(words: Sequence[str]) -> None:
    """Run the command."""
    run_function(loop_fork, "loop fork", words)


def loop_fork(run_dir: str, round: int, out: str) -> None:
    """Copy a loop up to and with a round; seguq loop run --run_dir OUT goes on from there, with any other options.

    Args:
        run_dir: folder of the loop.
        round: the last round to keep, which has to be complete; the first is 0.
        out: folder of the fork, a new one.
    """
    fork(run_dir, round, out)
    logger.info(
        "round 0 to %d of %s are in %s: seguq loop run --run_dir %s goes on from there", round, run_dir, out, out
    )
