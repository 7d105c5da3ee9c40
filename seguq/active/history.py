"""What was asked for in the rounds of a loop, and what came back."""

from __future__ import annotations

from seguq.acquisition import Selection
from seguq.acquisition.selection import region_key
from seguq.active.journal import Journal
from seguq.active.labels import Key, Row, answered
from seguq.active.run_folder import RunFolder


class History:
    """The selections and answers of a run folder, up to now.

    Args:
        folder: of the run.
        journal: its journal.
    """

    def __init__(self, folder: RunFolder, journal: Journal) -> None:
        self._folder, self._journal = folder, journal
        self._sent: dict[int, Selection] = {}

    def sent_in(self, number: int) -> Selection:
        """What was chosen in a round."""
        if number not in self._sent or not self._sent[number].rows:  # where nothing was left, it is chosen anew
            self._sent[number] = Selection.load(self._folder.selection(number))
        return self._sent[number]

    def earlier(self, number: int) -> list[Selection]:
        """What was chosen in the rounds before."""
        return [self.sent_in(earlier) for earlier in range(number)]

    def regions(self, most: int) -> dict[Key, Row]:
        """All regions that were asked for up to and with a round."""
        return {(n, region_key(row)): row for n in range(most + 1) for row in self.sent_in(n).rows}

    def answered(self, most: int) -> dict[int, list[Key]]:
        """The regions that were answered up to and with a round, by the round in which they were."""
        return answered(event for event in self._journal.events() if (event.round or 0) <= most)
