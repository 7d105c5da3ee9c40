"""``seguq loop``: the commands of the active-learning loop, by their second word."""

from __future__ import annotations

COMMANDS = {
    "run": "train, score, choose, have it labeled, and again; started again, it goes on",
    "status": "how a loop stands: what it waits for, what is labeled, and what that was worth",
    "plot": "learning curves of one or several loops in a picture",
    "fork": "go on from a round of another loop, in another way",
}
"""What each does; the module of one is ``seguq.cli.loop_`` and its name."""
