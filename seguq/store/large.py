"""The maps of an image that is larger than memory, as arrays on disk that grow row by row."""

from __future__ import annotations

import io
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from seguq.core.checks import is_whole, require_plain_name
from seguq.core.errors import SeguqError, UsageError
from seguq.core.files import TEMPORARY_PREFIX, naming, remove_leftovers, write_json
from seguq.core.locks import Lock
from seguq.core.reading import mapping, read_json, reading, text, whole
from seguq.export.heatmap import colorize, heatmap
from seguq.export.images import write_png
from seguq.export.scale import ScaleFinder, label_of
from seguq.inference import UncertaintyMaps
from seguq.store.writer import writing

_SCHEMA_VERSION = 1
_META = "maps.json"
_PART = ".part"


class MapFiles:
    """One ``.npy`` file a map, ``(H, W)``, that any program can map into memory, and a small picture of each.

    ``maps.json`` says what they are of, and how many rows are done; until all are, the files end in ``.npy.part``. A
    run that was killed goes on after the last rows that had reached the disk. Written are the measures (float32),
    ``prediction`` (class indices; of independent labels one file each), and on request the probabilities, one file a
    class. ``MEASURE.png`` are heat maps of every k-th pixel, on a scale of their own.

    Args:
        dir: it is made; one that holds something else, or maps of another run, is refused.
        probs: write the probabilities, too.
        overview: the longest side of the pictures; 0 for none.

    Raises:
        UsageError: for another ``overview``, or if the folder holds something else.

    Example:
        >>> from seguq import SlidingWindow
        >>> from seguq.data import ArrayReader
        >>> est = SlidingWindow(torch.nn.Conv2d(3, 2, 1), window=32, calibrator=None)
        >>> folder = getfixture("tmp_path") / "maps"
        >>> est.stream(ArrayReader(np.zeros((70, 90, 3), np.uint8)), MapFiles(folder))
        >>> np.load(folder / "predictive_entropy.npy", mmap_mode="r").shape
        (70, 90)
    """

    def __init__(self, dir: str | os.PathLike[str], probs: bool = False, overview: int = 2048) -> None:
        self.dir = Path(dir)
        self.probs = probs
        if not is_whole(overview, 0):
            raise UsageError(f"overview must be a whole number of pixels, or 0 for none, but is {overview!r}")
        self.overview = overview
        self._about: dict[str, Any] = {}
        self._rows = 0
        self._ended = False
        self._files: dict[str, str] = {}  # types by name
        self._lock = Lock(self.dir, alone=True)

    def begin(self, about: dict[str, Any]) -> int:
        """Look at what is there; gives the number of rows that are done."""
        about = json.loads(json.dumps({**about, "probs": self.probs}))
        if self.dir.exists() and not self.dir.is_dir():
            raise UsageError(f"{self.dir} is a file, not a folder")
        meta = self.dir / _META
        if not meta.is_file() and self.dir.is_dir():
            others = [path for path in self.dir.iterdir() if not path.name.startswith(TEMPORARY_PREFIX)]
            if others:
                raise UsageError(f"{self.dir} holds other files: give MapFiles a folder of its own")
        with writing("MapFiles"):
            self.dir.mkdir(parents=True, exist_ok=True)
        self._lock.take()
        known = self._read(meta) if meta.is_file() else None
        if known is not None:
            names = sorted({*known["about"], *about})
            differing = [name for name in names if known["about"].get(name) != about.get(name)]
            if differing:
                raise UsageError(
                    f"{self.dir} holds maps of another run ({', '.join(differing)} differ): give MapFiles another "
                    "folder, or remove that one"
                )
        self._about = about
        self._rows, self._ended, self._files = 0, False, {}
        self._width = int(about["size"][1])
        remove_leftovers(self.dir)
        if known is None:
            self._note()
            return 0
        self._rows, self._ended, self._files = known["rows"], known["complete"], known["files"]
        for name, dtype in self._files.items() if self._rows else ():
            path = self._path(name)
            if not path.is_file() or path.stat().st_size < self._place(np.dtype(dtype)):
                raise UsageError(f"{path} is shorter than {_META} says, or gone: remove {self.dir}, and begin anew")
        return self._rows

    def close(self) -> None:
        """Let others into the folder."""
        self._lock.release()

    def _path(self, name: str) -> Path:
        require_plain_name("the map", name)
        whole = self.dir / f"{name}.npy"
        return whole if whole.is_file() else self.dir / f"{name}.npy{_PART}"

    def _place(self, dtype: np.dtype[Any]) -> int:
        """Where the next row begins in a file."""
        return len(self._header(dtype)) + self._rows * self._width * dtype.itemsize

    def _read(self, meta: Path) -> dict[str, Any]:
        with reading(meta, advice=f"remove {self.dir}, and begin anew"):
            known = mapping(read_json(meta), "its content")
            if known["schema"] != _SCHEMA_VERSION:
                raise UsageError(f"{meta} is of another version of seguq (schema {known['schema']}): remove {self.dir}")
            mapping(known["about"], "'about'")
            whole(known["rows"], "'rows'", 0)
            if not isinstance(known["complete"], bool):
                raise ValueError(f"'complete' is {known['complete']!r}")
            for name, dtype in mapping(known["files"], "'files'").items():
                require_plain_name("the map", name)
                if np.dtype(text(dtype, f"the type of {name!r}")).kind not in "fiu":
                    raise ValueError(f"the type of {name!r} is {dtype!r}")
        return known

    def _note(self) -> None:
        with writing("MapFiles"):
            content = {"schema": _SCHEMA_VERSION, "rows": self._rows, "complete": self._ended, "files": self._files}
            write_json(self.dir / _META, {**content, "about": self._about})

    def write(self, top: int, maps: UncertaintyMaps) -> None:
        """Write rows; they count once all of them are on the disk."""
        if top != self._rows:
            raise SeguqError(f"rows come in order: row {self._rows} is next, but row {top} came")
        found = {**{name: maps[name] for name in maps.names}, "prediction": maps.prediction}
        if self.probs:
            found["probs"] = maps.probs
        rows = 0
        with writing("MapFiles"):
            for name, values in found.items():
                require_plain_name("the map", name)
                layers = values[0].cpu() if values.ndim == 4 else values.cpu()
                rows = layers.shape[-2]
                for number, layer in enumerate(layers):
                    self._append(name if values.ndim == 3 else f"{name}-{number}", layer, maps.num_classes)
        self._rows += rows
        self._note()

    def _append(self, name: str, values: Tensor, num_classes: int) -> None:
        array: npt.NDArray[Any] = values.numpy()
        if array.dtype.kind == "f":
            array = array.astype(np.float32)
        else:
            array = array.astype(np.uint8 if num_classes <= 256 else np.int32)
        path = self.dir / f"{name}.npy{_PART}"
        self._files[name] = array.dtype.str
        with naming(path.with_suffix("")):
            if self._rows == 0:
                path.write_bytes(self._header(array.dtype))
            self._append_rows(path, array)

    def _append_rows(self, path: Path, array: npt.NDArray[Any]) -> None:
        with path.open("r+b") as file:
            file.seek(self._place(array.dtype))
            file.write(np.ascontiguousarray(array).tobytes())
            file.truncate()  # what a killed run had begun
            file.flush()
            os.fsync(file.fileno())

    def _header(self, dtype: np.dtype[Any]) -> bytes:
        buffer = io.BytesIO()
        shape = tuple(self._about["size"])
        descr = np.lib.format.dtype_to_descr(dtype)
        np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
        return buffer.getvalue()

    def end(self) -> None:
        """Give the files their names, and draw the pictures."""
        with writing("MapFiles"):
            for part in sorted(self.dir.glob(f"*.npy{_PART}")):
                part.replace(part.with_suffix(""))
            for name in self._about["measures"] if self.overview else ():
                picture = self.dir / f"{name}.png"
                if not picture.exists():
                    write_png(picture, self._drawn(name))
        self._ended = True
        self._note()

    def _drawn(self, name: str) -> npt.NDArray[np.uint8]:
        height, width = self._about["size"]
        step = math.ceil(max(height, width) / self.overview)
        dtype = np.dtype(np.float32)
        start, per_row = len(self._header(dtype)), width * dtype.itemsize
        with (self.dir / f"{name}.npy").open("rb") as file:  # a mapped file would be mapped as a whole
            rows = []
            for row in range(0, height, step):
                file.seek(start + row * per_row)
                rows.append(np.frombuffer(file.read(per_row), dtype)[::step])
        small = np.stack(rows)
        finder, known = ScaleFinder(), np.isfinite(small)
        finder.add(torch.from_numpy(small[known]))
        scale = finder.scale()
        small = np.where(known, small, scale.low)  # where the image holds no numbers
        if max(small.shape) > 8 * min(small.shape):  # beside a strip of few rows a color bar has no place
            return colorize(small, scale)
        return heatmap(small, scale, label_of(name))
