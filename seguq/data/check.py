"""The fast check before the first step: every file is read once, in parallel, and remembered until it changes."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from seguq.core.checks import LabelWatch, is_whole
from seguq.core.errors import SeguqError
from seguq.core.files import write_json
from seguq.core.out_of_memory import NotEnoughMemoryError
from seguq.core.progress import progress
from seguq.core.reading import mapping, read_json, reading
from seguq.data.classes import Classes
from seguq.data.reading import fits, read_indices, read_picture, require_scale

_VERSION = 3
_SHOW_PROGRESS_FROM = 200

Record = dict[str, Any]


def _cache_file(folder: Path) -> Path:
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a container's user may have no home
        home = Path(tempfile.gettempdir())
    return home / "seguq" / "checks" / (hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32] + ".json")


def _load_cache(path: Path) -> dict[str, Record]:
    try:
        with reading(path):
            content = mapping(read_json(path), "its content")
            if content["version"] != _VERSION:
                return {}
            files = mapping(content["files"], "'files'")
            return {key: entry for key, entry in files.items() if _is_entry(entry)}
    except SeguqError:
        return {}  # what is not known is looked at again


def _is_entry(entry: Any) -> bool:
    """Whether this is what is remembered of a file: its stamp, and the record of an image or a mask."""
    record = entry.get("record") if isinstance(entry, dict) else None
    if not isinstance(record, dict) or "stamp" not in entry:
        return False
    size, wrong = record.get("size"), record.get("wrong", [])
    if not isinstance(size, list) or len(size) != 2 or not isinstance(wrong, list):
        return False
    image = {"channels", "alpha", "range", "largest"} <= set(record)
    known = image or "wrong" in record
    sizes = (*size, record.get("channels", 1))
    return known and all(is_whole(number, 1) for number in sizes) and all(map(is_whole, wrong))


def _save_cache(path: Path, files: dict[str, Record]) -> None:
    try:
        write_json(path, {"version": _VERSION, "files": files})
    except OSError:
        return  # a home that cannot be written to costs time at the next start, nothing else


def _image_record(path: Path) -> Record:
    found = read_picture(path)
    height, width, channels = found.pixels.shape
    return {
        "size": [height, width],
        "channels": channels,
        "alpha": found.alpha,
        "range": found.range,
        "largest": found.largest,
    }


def _mask_record(path: Path, classes: Classes) -> Record:
    import numpy as np

    mask = read_indices(path, classes)
    values = np.unique(mask).astype(np.int64)  # few: each is there once
    ignored = values == classes.ignore_index
    wrong = values[((values < 0) | (values >= len(classes))) & ~ignored]
    return {
        "size": list(mask.shape),
        "wrong": wrong[:1].tolist(),
        "holds": [bool((~ignored).any()), bool((values[~ignored] > 0).any()), bool(ignored.any())],
    }


def _records(jobs: Mapping[Path, Callable[[Path], Record]], folder: Path, context: str) -> dict[Path, Record]:
    """Read each file, or take what is remembered of it; a file's error is its record."""
    cache_path = _cache_file(folder)
    cache = _load_cache(cache_path)
    keys: dict[Path, str] = {}
    stamps: dict[Path, list[int]] = {}
    lacking: dict[Path, Record] = {}
    for path in jobs:
        try:
            stat = path.stat()
        except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
            lacking[path] = {"error": f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"}
            continue
        keys[path] = f"{context}|{path.resolve()}"
        stamps[path] = [stat.st_size, stat.st_mtime_ns]
    out = {path: cache[key]["record"] for path, key in keys.items() if cache.get(key, {}).get("stamp") == stamps[path]}
    out |= lacking
    todo = [path for path in jobs if path not in out]

    def read(path: Path) -> Record:
        try:
            return jobs[path](path)
        except SeguqError as error:
            return {"error": str(error), "memory": isinstance(error, NotEnoughMemoryError)}

    with ThreadPoolExecutor(max_workers=min(8, (os.cpu_count() or 1) + 2)) as pool:
        results: Iterable[Record] = pool.map(read, todo)
        if len(todo) >= _SHOW_PROGRESS_FROM:
            results = progress(results, f"checking {folder.name}", total=len(todo))
        out |= dict(zip(todo, results, strict=True))
    for path in todo:
        if out[path].get("memory"):  # it may well fit alone, as it will lie there later
            out[path] = read(path)
        if "error" not in out[path]:
            cache[keys[path]] = {"stamp": stamps[path], "record": out[path]}
    if todo:
        _save_cache(cache_path, cache)
    return out


def check_files(
    images: Mapping[str, Path],
    masks: Mapping[str, Path] | None = None,
    classes: Classes | None = None,
    *,
    channels: int | None = None,
    scale: float | None = None,
    folder: str | os.PathLike[str],
    partial: str | os.PathLike[str] | None = None,
) -> dict[str, tuple[int, int]]:
    """Check images, and their masks where there are any, before work starts.

    Args:
        images: files by image id.
        masks: mask files by image id.
        classes: the classes of the masks.
        channels: the number of channels that the model takes; None: not checked.
        scale: as in `read_image`; None where nobody has set one.
        folder: the folder that they lie in, for messages and for what is remembered between runs.
        partial: of masks in which most pixels have no label yet, the folder that they lie in; ignored pixels are then
            no sign of a mistake.

    Returns:
        The size (height, width) of each image, by id.

    Raises:
        SeguqError: naming the first file that cannot be read, holds NaN, differs in size from its image, holds a class
            index out of range, or has an unsuitable number of channels; and how many more there are.

    Warns where values are far from what they are scaled by (the largest of a 16-bit file below an eighth of its range,
    or of a float file above 1), and where the labels of all masks are 0 beside ignored pixels (masks of 0 and 255).
    """
    folder = Path(folder)
    require_scale(scale)
    image_records = _records(dict.fromkeys(images.values(), _image_record), folder / "images", "image")
    mask_records: dict[Path, Record] = {}
    if masks is not None and classes is not None:
        known = classes
        context = f"mask|{known.colors}|{known.ignore_colors}|{known.ignore_index}"
        mask_records = _records(
            dict.fromkeys(masks.values(), lambda path: _mask_record(path, known)),
            folder / "masks" if partial is None else Path(partial),
            context,
        )

    problems: list[str] = []
    for image_id, path in images.items():
        record = image_records[path]
        if "error" in record:
            problems.append(record["error"])
            continue
        found = record["channels"]
        if channels is not None and not fits(found, record["alpha"], channels):
            problems.append(f"{path} has {found} channels, but the model takes {channels}")
        if masks is not None and classes is not None:
            problems += _mask_problems(masks[image_id], mask_records[masks[image_id]], record["size"], classes)
    if problems:
        others = len(problems) - 1
        more = f" (and {others} more {'problem' if others == 1 else 'problems'} like this)" if others else ""
        raise SeguqError(problems[0] + more)
    _warn_of_scale(image_records, scale)
    if masks is not None and classes is not None and partial is None:
        _warn_of_labels(folder, mask_records, classes)
    return {image_id: tuple(image_records[path]["size"]) for image_id, path in images.items()}


def _mask_problems(path: Path, record: Record, size: list[int], classes: Classes) -> list[str]:
    if "error" in record:
        return [record["error"]]
    if record["size"] != size:
        (mh, mw), (h, w) = record["size"], size
        return [f"{path} is {mw} x {mh} pixels, but its image is {w} x {h}: the two must have the same size"]
    wrong = record["wrong"]
    if wrong:
        return [
            f"{path} holds the class index {wrong[0]}, but classes.json has the classes 0..{len(classes) - 1} "
            f"and ignores {classes.ignore_index}"
        ]
    return []


def _warn_of_scale(records: Mapping[Path, Record], scale: float | None) -> None:
    """Say so where the values of files are far from what they are divided by."""
    for white, name in ((65535.0, "16-bit"), (1.0, "float")):
        files = {path: record["largest"] for path, record in records.items() if record["range"] == white}
        by = white if scale is None else scale
        if white == 1.0:  # of floats with a scale it is nobody's business how large they are
            odd = {path: value for path, value in files.items() if scale is None and value > 1}
        else:
            odd = {path: value for path, value in files.items() if value > by or (scale is None and 0 < value < by / 8)}
        if not odd:
            continue
        path, value = max(odd.items(), key=lambda item: item[1])
        others = f" (and {len(odd) - 1} more of {len(files)})" if len(odd) > 1 else ""
        warnings.warn(
            f"the {name} file {path}{others} has values up to {value:g}, which are scaled to {value / by:.3g} where "
            f"networks expect a range from 0 to 1: set scale to the value that stands for 1, such as {_guess(value)} "
            "(--data.scale of seguq fit, --scale of the other commands), in training and in prediction alike",
            stacklevel=3,
        )


def _guess(value: float) -> int:
    """The largest value of the fewest bits, 8 or more, that hold a value."""
    return int(2 ** max(8, math.ceil(math.log2(value + 1))) - 1) if value > 1 else 1


def _warn_of_labels(folder: Path, records: Mapping[Path, Record], classes: Classes) -> None:
    watch = LabelWatch(classes.ignore_index)
    for record in records.values():
        watch.seen += torch.tensor(record["holds"])
    watch.report(f"the masks in {folder}")
