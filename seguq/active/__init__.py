"""The active-learning loop: what it keeps on disk, how it stands, and what came of it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seguq.active.experiment import Arm as Arm
    from seguq.active.experiment import Experiment as Experiment
    from seguq.active.fork import fork as fork
    from seguq.active.loop import ActiveLearningLoop as ActiveLearningLoop
    from seguq.active.records import Record as Record
    from seguq.active.records import read_records as read_records

# handed on lazily: how a loop stands is asked for without what trains it
_HOMES = {
    "ActiveLearningLoop": "loop",
    "Arm": "experiment",
    "Experiment": "experiment",
    "fork": "fork",
    "Record": "records",
    "read_records": "records",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"seguq.active.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'seguq.active' has no attribute {name!r}")
