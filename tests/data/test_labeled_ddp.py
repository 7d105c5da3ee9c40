"""Trainings on partial masks on two processes: together they see what one process sees."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data.labeled_builders import three
from tests.data.labeled_ddp_script import STEPS, run

ROOT = Path(__file__).parents[2]

Items = list[tuple[str, bytes]]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder that two processes have trained in, and the batches of each; a hang is an error after two minutes."""
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("this torch has no gloo, with which two processes on a CPU talk")
    folder = tmp_path_factory.mktemp("two")
    three(folder)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(  # Lightning starts the second
            [sys.executable, "-m", "tests.data.labeled_ddp_script", str(folder)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | str = process.wait(120)
        except subprocess.TimeoutExpired:
            code = "it hangs"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # both: they are a group of their own
            process.wait()
    assert code == 0, (code, (folder / "log").read_text()[-5000:])
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def items(batches: list[dict[str, Any]]) -> Items:
    """What items a process saw, in order."""
    return [
        (image_id, image.numpy().tobytes())
        for batch in batches
        for image_id, image in zip(batch["image_id"], batch["image"], strict=True)
    ]


def test_together_the_processes_see_what_one_sees(two: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, seen = two
    _, alone = run(folder, 1)
    shares = [items(share["train"]) for share in seen]
    assert [len(share) for share in shares] == [2 * STEPS] * 2
    together = [item for pair in zip(*shares, strict=True) for item in pair]
    assert together == items(alone["train"])
    assert together[: 2 * STEPS] != together[2 * STEPS :]  # of the second epoch


def test_together_the_processes_predict_the_pool_once(two: tuple[Path, list[dict[str, Any]]]) -> None:
    shares = [[image_id for image_id, _ in items(share["predict"])] for share in two[1]]
    assert sorted(shares[0] + shares[1]) == list("abcde")
