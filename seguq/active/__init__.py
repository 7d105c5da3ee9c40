"""The active-learning loop: what it keeps on disk, how it stands, and what came of it."""

from seguq.active.curve import curve_csv, curve_table, plot_runs
from seguq.active.events import Event, read_events
from seguq.active.page import round_page
from seguq.active.records import Counts, Interval, Record, read_records
from seguq.active.status import Status, status
from seguq.active.stopping import Stop

__all__ = [
    "Counts",
    "Event",
    "Interval",
    "Record",
    "Status",
    "Stop",
    "curve_csv",
    "curve_table",
    "plot_runs",
    "read_events",
    "read_records",
    "round_page",
    "status",
]
