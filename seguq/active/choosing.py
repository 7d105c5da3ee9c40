"""What of a round is chosen from the scores of the pool."""

from __future__ import annotations

from typing import Any

from seguq.acquisition import Selection, Strategy, select
from seguq.active.history import History
from seguq.active.journal import Journal
from seguq.active.plan import Plan
from seguq.active.run_folder import RunFolder
from seguq.active.start import _EveryClassTwice
from seguq.core.errors import SeguqError, UsageError
from seguq.core.files import write_json
from seguq.core.log import logger
from seguq.core.reading import mapping, read_json, reading
from seguq.core.seeds import derive_seed
from seguq.regions import RegionTable


class Choosing:
    """Chooses the regions of a round, and watches the images of the pool.

    Args:
        plan: how.
        folder: of the run.
        history: what was asked for before.
        journal: of the run.
    """

    def __init__(self, plan: Plan, folder: RunFolder, history: History, journal: Journal) -> None:
        self._plan, self._folder, self._history, self._journal = plan, folder, history, journal

    def strategy(self, number: int) -> Strategy:
        """What chooses in a round: in the first the start set."""
        if number == 0:
            first = next(iter(self._plan.pool))
            if self._plan.annotator.truth(first) is None:
                return self._plan.start
            return _EveryClassTwice(self._plan.start, self._plan.truth, len(self._plan.classes))
        arguments = self._plan.strategy.arguments()
        if {"round", "rounds"} <= set(arguments):  # the first round is the start set
            arguments |= {"round": number - 1, "rounds": max(1, self._plan.rounds - 1)}
            return type(self._plan.strategy)(**arguments)
        return self._plan.strategy

    def select(self, number: int) -> dict[str, Any]:
        """Choose from the scores, within the budget of the round."""
        table = self._folder.table(number)
        left = RegionTable.load(table)
        chosen = Selection([])
        if len(left):
            chosen = select(
                left,
                budget=self._plan.budgets[number],
                strategy=self.strategy(number),
                labeled=self._history.earlier(number),
                seed=derive_seed("select", self._plan.seed, number),
                classes=self._plan.classes.names,
            )
        if not chosen.rows and number == 0:
            raise UsageError(
                f"the first round asks for nothing: none of the {len(left)} regions fits into {self._plan.budgets[0]!r}"
                "; give a larger budget, and another run_dir"
            )
        chosen.why["round"] = number
        chosen.save(self._folder.selection(number))
        if not chosen.rows:
            self._journal.add(number - 1, "stop", "end", why="nothing is left to label within the budget")
        return {"regions": len(chosen), "images": len(chosen.image_ids), "spent": chosen.why.get("spent", 0)}

    def note_pool(self, number: int) -> int:
        """Write down the images of the pool and their sizes, and say which have come and gone; the number of pixels."""
        sizes = {image_id: list(self._plan.pool.size(image_id)) for image_id in self._plan.pool}
        if number:
            known = self._pool_of(number - 1)
            new, gone = len(sizes.keys() - known.keys()), len(known.keys() - sizes.keys())
            if new or gone:
                logger.info("since the last round %d images were added to the pool, and %d removed", new, gone)
        write_json(self._folder.pool(number), sizes)
        return sum(height * width for height, width in sizes.values())

    def _pool_of(self, number: int) -> dict[str, list[int] | None]:
        """The images that a round has chosen from, with their sizes where these are known."""
        with reading(self._folder.pool(number)):
            content = read_json(self._folder.pool(number))
            return dict.fromkeys(content) if isinstance(content, list) else mapping(content, "its content")

    def require_images(self, number: int) -> None:
        """Raise where an image of a round is gone that labels are for, or another one."""
        wanted = self._history.sent_in(number).image_ids
        gone = [image_id for image_id in wanted if image_id not in self._plan.pool]
        if gone:
            raise SeguqError(
                f"{len(gone)} images that regions were chosen of in round {number} are not in the pool any more, such "
                f"as {gone[0]!r}: put them back (images without labels may come and go between rounds)"
            )
        sizes = self._pool_of(number)
        for image_id in wanted:
            then, now = sizes.get(image_id), list(self._plan.pool.size(image_id))
            if then is not None and then != now:
                raise SeguqError(
                    f"{self._plan.pool.path(image_id)} has {now[0]} x {now[1]} pixels (height x width), but had "
                    f"{then[0]} x {then[1]} when regions of it were chosen in round {number}: put back the image "
                    "that was there"
                )
