"""Every reader of files, and what can be wrong with a file: for the test of damage, and for campaigns by hand."""

from __future__ import annotations

import copy
import io
import itertools
import json
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from seguq.acquisition import Selection
from seguq.active import Record, read_events, status
from seguq.calibration import ConformalMargin, PredictionSets, TemperatureScaling, load, save_conformal
from seguq.calibration.checkpoint import save_calibrator
from seguq.cli.fit import _training_in
from seguq.core.errors import SeguqError
from seguq.data import Classes
from seguq.data.check import check_files
from seguq.export.scale import read_scales
from seguq.inference import UncertaintyMaps
from seguq.inference.moments import WeightMoments
from seguq.inference.swag import SWAG
from seguq.networks import build_network
from seguq.regions import Grid, RegionTable, score
from seguq.store import PredictionFolder
from seguq.store.folder import read_run
from seguq.store.large import MapFiles
from seguq.task import SegmentationTask
from seguq.weights import read_checkpoint
from tests.active.runs import Run


class Reader(NamedTuple):
    """A reader of one kind of file.

    Attributes:
        name: what its file is called.
        write: makes a whole file, in a folder that holds nothing else.
        read: reads it.
        shown: what an error must name; None: damage is no error, but as if there were no file.
    """

    name: str
    write: Callable[[Path], object]
    read: Callable[[Path], object]
    shown: str | None


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def some_maps() -> UncertaintyMaps:
    torch.manual_seed(0)
    probs = torch.rand(1, 3, 6, 8).softmax(1)
    return UncertaintyMaps(probs, {"variance": torch.rand(1, 6, 8)}, ["a"])


def _table() -> RegionTable:
    return score(some_maps(), Grid(4), by="variance")


def _selection(path: Path) -> None:
    rows = [{"rank": rank + 1, **row} for rank, row in enumerate(_table().rows())]
    rows[0] |= {"rle": [1, 15], "area": 15}
    Selection(rows, {"strategy": "TopK", "seed": 0}).save(path)


def _calibrated(path: Path) -> None:
    torch.save({"state_dict": network().state_dict(), "global_step": 3, "hyper_parameters": {"lr": 0.1}}, path)
    save_calibrator(path, TemperatureScaling(), "deterministic")
    masks = torch.eye(8, dtype=torch.bool).expand(20, 8, 8)
    save_conformal(path, ConformalMargin().fit([(masks, masks)]), "deterministic")
    probs = torch.tensor([[0.7, 0.5], [0.2, 0.5]]).expand(20, 2, 2)
    save_conformal(path, PredictionSets().fit([(probs, torch.zeros(20, 2, dtype=torch.long))]), "deterministic")


def _collected(path: Path) -> None:
    model, moments = network(), WeightMoments(rank=2)
    for seed in range(3):
        model.load_state_dict(network(seed).state_dict())
        moments.add(model)
    section = {"version": 1, "swag": {**moments.state(), "lr": [0.1], "step": 3, "statistics": []}}
    torch.save({"state_dict": model.state_dict(), "seguq": section}, path)


def _task() -> SegmentationTask:
    torch.manual_seed(0)
    return SegmentationTask(classes=2, model=nn.Conv2d(3, 2, 1))


def _saved_task(path: Path) -> None:
    task = _task()
    checkpoint: dict[str, Any] = {"state_dict": task.state_dict(), "hyper_parameters": dict(task.hparams)}
    task.on_save_checkpoint(checkpoint)
    checkpoint["SegmentationData"] = {"size": [8, 8], "mean": [0.5] * 3, "std": [0.2] * 3, "train_split": "train"}
    checkpoint |= {"optimizer_states": [], "lr_schedulers": [], "loops": {}, "epoch": 1, "global_step": 2}
    torch.save(checkpoint, path)


def _encoder(path: Path) -> None:
    made = build_network("Unet", "mobileone_s0", classes=2, encoder_weights=None)
    save_file({name: tensor.contiguous() for name, tensor in made.encoder.state_dict().items()}, path)


def _stream(path: Path) -> None:
    files = MapFiles(path.parent, overview=0)
    files.begin({"size": [6, 8]})
    files.write(0, some_maps())
    files.close()


def _streamed(path: Path) -> None:
    files = MapFiles(path.parent, overview=0)
    try:
        files.begin({"size": [6, 8]})
    finally:
        files.close()


def _run(path: Path) -> None:
    PredictionFolder(path.parent, {"measures": ["variance"], "images": "pool", "estimator": "deterministic"})


def _classes(path: Path) -> None:
    classes = [{"index": 0, "name": "ground", "color": [0, 0, 0]}, {"index": 1, "name": "disc"}]
    path.write_text(json.dumps({"ignore_index": 255, "classes": classes}))


def _begun(path: Path) -> Run:
    """The files of a loop, put beside the file that is asked for."""
    run = Run(path.parent / "run", per_round=3)
    run.step(0, "score")
    for made in list(run.folder.iterdir()):
        made.rename(path.parent / made.name)
    return run


def _judged(path: Path) -> None:
    path.write_text(json.dumps(_begun(path).metrics(1)))


def _cache(path: Path) -> None:
    import cv2

    folder = path.parent / "data"
    folder.mkdir(exist_ok=True)
    cv2.imwrite(str(folder / "a.png"), np.zeros((4, 5, 3), np.uint8))
    _checked(path)


def _checked(path: Path) -> None:
    folder = path.parent / "data"
    with _cache_in(path):
        (size,) = check_files({"a": folder / "a.png"}, folder=folder).values()
        assert len(size) == 2
        assert min(size) > 0


def _cache_in(path: Path) -> Any:
    from unittest import mock

    return mock.patch("seguq.data.check._cache_file", lambda folder: path)


READERS = {
    "selection": Reader("selection.json", _selection, Selection.load, "selection.json"),
    "regions": Reader("regions.parquet", lambda path: _table().save(path), RegionTable.load, "regions.parquet"),
    "maps": Reader("maps.npz", lambda path: some_maps().save(path), UncertaintyMaps.load, "maps.npz"),
    "run": Reader("run.json", _run, lambda path: read_run(path.parent), "run.json"),
    "stream": Reader("maps.json", _stream, _streamed, ""),
    "classes": Reader("classes.json", _classes, Classes.read, "classes.json"),
    "scale": Reader("scale.json", lambda path: path.write_text('{"a": {"low": 0, "high": 1}}'), read_scales, None),
    "cache": Reader("cache.json", _cache, _checked, None),
    "loop": Reader("loop.json", _begun, lambda path: status(path.parent), "loop.json"),
    "journal": Reader("journal.sqlite", _begun, lambda path: read_events(path.parent), "journal.sqlite"),
    "metrics": Reader("metrics.json", _judged, Record.read, "metrics.json"),
    "checkpoint": Reader("a.ckpt", _calibrated, read_checkpoint, "a.ckpt"),
    "weights": Reader("a.ckpt", _calibrated, lambda path: load(path, network(1)), "a.ckpt"),
    "swag": Reader("a.ckpt", _collected, lambda path: SWAG(network(1), path, 2, [torch.zeros(2, 3, 4, 4)]), "a.ckpt"),
    "task": Reader("a.ckpt", _saved_task, lambda path: SegmentationTask.load(path, nn.Conv2d(3, 2, 1)), "a.ckpt"),
    "training": Reader("a.ckpt", _saved_task, lambda path: _training_in(str(path)), "a.ckpt"),
}


def held(reader: Reader, path: Path) -> str | None:
    """Read a damaged file; gives None where it was read, or told of in one good sentence, else what was wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            reader.read(path)
        except SeguqError as error:
            said = str(error)
            if reader.shown is None:
                return f"refused, though it can be done without: {said}"
            if reader.shown not in said:
                return f"the file is not named: {said}"
            return f"no one sentence: {said!r}" if "\n" in said or len(said) > 900 else None
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return None


WRONG: tuple[Any, ...] = (
    None, True, -1, 0, 0.7, 1e308, 10**40, "", "x", "../x", "a\0b", [], [[]], {}, {"a": 1}, [1, "a", None],
    float("nan"),
)  # fmt: skip
"""Values that take the place of what a key should have."""


def _places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _places(value, (*path, key))
    elif isinstance(tree, (list, tuple)):
        for index, value in enumerate(tree[:3]):
            yield from _places(value, (*path, index))


def _replaced(tree: Any, place: tuple[Any, ...], value: Any, remove: bool = False) -> Any:
    if not place:
        return value
    made = copy.copy(tree)
    made = list(made) if isinstance(made, tuple) else made
    key, rest = place[0], place[1:]
    if remove and not rest:
        del made[key]
    else:
        made[key] = _replaced(made[key], rest, value, remove)
    return made


def wrong_types(tree: Any, wrong: tuple[Any, ...] = WRONG) -> Iterator[Any]:
    """The same nest with each of its places taken by each of the wrong values, and without it."""
    for place in _places(tree):
        for value in wrong:
            yield _replaced(tree, place, value)
        if place:
            yield _replaced(tree, place, None, remove=True)


TENSORS: tuple[Any, ...] = (
    torch.tensor(float("nan")), torch.zeros(3, dtype=torch.complex64), torch.tensor(1e30), torch.zeros(0),
    torch.zeros(2, 2).to_sparse(), torch.zeros(2, device="meta"), 5, "x", None, [], {"a": torch.zeros(1)}, -1, 0.7,
)  # fmt: skip


def damages(reader: Reader, path: Path, seed: int, bits: int, cuts: int, every: int = 1) -> Iterator[bytes]:
    """Contents of a damaged file: cut off, with bits flipped, of another kind, of wrong types at every place.

    Args:
        reader: its file is at ``path``, whole; it is written over while wrong types are made.
        path: the file.
        seed: of the places that are damaged.
        bits: how many files with flipped bits.
        cuts: how many that are cut off.
        every: of the wrong types, each so-manieth is taken.
    """
    whole, generator = path.read_bytes(), random.Random(seed)
    yield from (b"", b"\0" * 200, b"\xff\xfe\x00\x80", b"some text\n", b"[" * 100_000, b'{"a":' * 100_000)
    yield from (b"null", b"[]", b"{}", b"3", b"PK\x03\x04", b"PAR1", b"\x80\x02}.", b"\x80\x02]q\x00.")
    for _ in range(cuts):
        yield whole[: generator.randrange(len(whole))]
    for _ in range(bits):
        damaged = bytearray(whole)
        for _ in range(generator.choice((1, 1, 2, 8))):
            damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        yield bytes(damaged)
    if path.suffix == ".json":
        for tree in itertools.islice(wrong_types(json.loads(whole)), seed % every, None, every):
            yield json.dumps(tree).encode()
    if path.suffix == ".ckpt":
        content = torch.load(io.BytesIO(whole), weights_only=True)
        for tree in itertools.islice(wrong_types(content, TENSORS), seed % every, None, every):
            torch.save(tree, path)
            yield path.read_bytes()
