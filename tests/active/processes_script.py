"""A loop whose Trainers are of two processes: ``python -m tests.active.processes_script DATA RUN_DIR WAY ROUNDS``."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from seguq import LabeledData
from tests.active.small_loop import make_loop, make_trainer

STEPS = {"steps": 4, "batch_size": 4, "num_workers": 0, "mean": (0.4,) * 3, "std": (0.25,) * 3}


def main(root: Path, run_dir: Path, strategy: str, rounds: int) -> None:
    options = {} if strategy == "one" else {"devices": 2, "strategy": strategy}
    data = functools.partial(LabeledData, root=root, **STEPS)
    trainer = functools.partial(make_trainer, **options)
    make_loop(root, run_dir, rounds=rounds, data=data, trainer=trainer).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
