"""``seguq loop``: the commands of the active-learning loop, by their second word."""

from __future__ import annotations

COMMANDS = {
    "status": "how a loop stands: what it waits for, what is labeled, and what that was worth",
    "plot": "learning curves of one or several loops in a picture",
}
"""What each does; the module of one is ``seguq.cli.loop_`` and its name."""
