"""The active-learning loop: what it does, what it keeps on disk, how it stands, and what came of it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from seguq.active.events import Event, read_events
from seguq.active.fork import fork
from seguq.active.reports.curve import curve_csv, curve_table, plot_runs
from seguq.active.reports.page import round_page
from seguq.active.reports.records import Counts, Interval, Record, read_records
from seguq.active.reports.status import Status, status
from seguq.active.stopping import Stop

if TYPE_CHECKING:
    from seguq.active.comparison import Comparison as Comparison
    from seguq.active.experiment import Arm as Arm
    from seguq.active.experiment import Experiment as Experiment
    from seguq.active.loop import ActiveLearningLoop as ActiveLearningLoop

# handed on lazily: how a loop stands is asked for without Lightning
_HOMES = {
    "ActiveLearningLoop": "loop",
    "Arm": "experiment",
    "Comparison": "comparison",
    "Experiment": "experiment",
}
__all__ = [
    "ActiveLearningLoop",
    "Arm",
    "Comparison",
    "Counts",
    "Event",
    "Experiment",
    "Interval",
    "Record",
    "Status",
    "Stop",
    "curve_csv",
    "curve_table",
    "fork",
    "plot_runs",
    "read_events",
    "read_records",
    "round_page",
    "status",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"seguq.active.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'seguq.active' has no attribute {name!r}")
