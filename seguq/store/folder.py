"""A folder of predictions: float maps first, then pictures of them on one color scale. It can be filled in pieces."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from seguq.core.checks import require_plain_name
from seguq.core.errors import SeguqError, UsageError
from seguq.core.files import TEMPORARY_PREFIX, naming, remove_leftovers, write_json
from seguq.core.reading import listing, mapping, read_json, reading, text
from seguq.data.reading import read_image
from seguq.export.heatmap import colorize, overlay, with_color_bar
from seguq.export.images import to_rgb, write_index_png, write_png
from seguq.export.scale import Scale, ScaleFinder, label_of, read_scales
from seguq.inference import UncertaintyMaps

_SCHEMA_VERSION = 2
_LISTS = ".images-*.jsonl"
_PICTURES = ("heatmaps", "overlays")
_MOST_THREADS = 4  # each holds an image and its pictures


class PredictionFolder:
    """The results of one run over a folder of images.

    ``run.json`` (the settings, the ids of all images, and whether all their maps were written), ``maps/ID.npz``
    (float32 maps, scores of whole images, and features where there are some), ``predictions/ID.png`` (class indices),
    ``heatmaps/MEASURE/ID.png`` and ``overlays/MEASURE/ID.png`` (pictures), ``scale.json`` (what their colors mean).
    An image counts as done when its maps are there and no older than the image; since files are written whole, a run
    that was killed goes on where it stopped. Only files of listed images are ever removed, and each is listed before
    any of its files is written.

    Args:
        dir: the folder.
        settings: what the results depend on, plain values; a folder made with other settings is refused.
        overwrite: empty a folder of predictions made with other settings, instead of refusing it.
        clean: remove what a killed run has left; not while another process writes to the folder.
        process: number of this process, where several write.

    Raises:
        UsageError: if the folder holds something else, or results of other settings (saying which differ).
    """

    def __init__(
        self,
        dir: str | os.PathLike[str],
        settings: Mapping[str, Any],
        *,
        overwrite: bool = False,
        clean: bool = True,
        process: int = 0,
    ) -> None:
        self.dir = Path(dir)
        self.settings = json.loads(json.dumps(settings))
        self.images: set[str] = set()
        self.complete = False
        self._list = self.dir / _LISTS.replace("*", f"{process:05d}")
        run = self.dir / "run.json"
        if self.dir.exists() and not self.dir.is_dir():
            raise UsageError(f"{self.dir} is a file, not a folder")
        if run.is_file():
            found = read_run(self.dir)
            known, self.complete = found["settings"], found["complete"]
            self.images = {*found["images"], *_listed(self.dir)}
            names = sorted({*known, *self.settings})
            differing = [name for name in names if known.get(name) != self.settings.get(name)]
            if differing and overwrite:
                self._remove_all(known)
            elif differing:
                changes = "; ".join(
                    "another checkpoint, or one that was calibrated since"
                    if name == "checkpoint"
                    else "other weights"
                    if name == "weights"
                    else f"{name} was {known.get(name)!r}, now {self.settings.get(name)!r}"
                    for name in differing
                )
                raise UsageError(
                    f"{self.dir} was made with other settings ({changes}): choose another folder, or remove it"
                )
        elif self.dir.exists() and not all(item.name.startswith(TEMPORARY_PREFIX) for item in self.dir.iterdir()):
            raise UsageError(f"{self.dir} holds other files already: choose a new folder")
        else:
            self._keep_run()
        if clean:
            self._take_lists()
            remove_leftovers(self.dir)
            for name in ("maps", "predictions", "images", *_PICTURES):
                remove_leftovers(self.dir / name, below=True)

    def _keep_run(self) -> None:
        content = {"settings": self.settings, "complete": self.complete, "images": sorted(self.images)}
        write_json(self.dir / "run.json", {"version": _SCHEMA_VERSION, **content})

    def _take_lists(self) -> None:
        """Take what processes have noted into ``run.json``."""
        lists = list(self.dir.glob(_LISTS))
        if lists:
            self._keep_run()
        for file in lists:
            file.unlink(missing_ok=True)

    def expect(self, image_ids: Iterable[str] = ()) -> None:
        """Note that maps are going to be written, of these images and maybe of others; `finish` says when they are.

        Raises:
            SeguqError: for an id that cannot be the name of a file.
        """
        ids = list(image_ids)
        for image_id in ids:
            require_plain_name("the image id", image_id)
        self.images.update(ids)
        self.complete = False
        self._keep_run()

    def note(self, image_ids: Iterable[str]) -> None:
        """Note images before anything of them is written, where `expect` was not told of them.

        Where all maps were written before, they count as unfinished from now on.
        """
        new = [image_id for image_id in dict.fromkeys(image_ids) if image_id not in self.images]
        if not new and not self.complete:
            return
        for image_id in new:
            require_plain_name("the image id", image_id)
        with naming(self._list), self._list.open("ab") as file:
            file.write("".join(f"\n{json.dumps(image_id)}\n" for image_id in new).encode())
        self.images.update(new)
        self.complete = False

    def finish(self) -> None:
        """Note that the maps of all images are written; by one process, when all are done."""
        self.images.update(_listed(self.dir))
        self.complete = True
        self._keep_run()
        self._take_lists()

    def clear(self) -> None:
        """Remove all results, and nothing that this class has not written."""
        self._remove_all(self.settings)

    def _remove_all(self, settings: Mapping[str, Any]) -> None:
        self._remove_files(file for image_id in sorted(self.images) for file in self._files_of(image_id, settings))
        (self.dir / "scale.json").unlink(missing_ok=True)
        self.images, self.complete = set(), False
        self._keep_run()
        self._take_lists()

    def remove(self, image_ids: Sequence[str]) -> None:
        """Remove all results of some images."""
        self._remove_files(file for image_id in image_ids for file in self._files_of(image_id, self.settings))
        self.images.difference_update(image_ids)

    def own_files(self) -> list[Path]:
        """All files that this class may have written here, whether they are there or not."""
        files = [file for image_id in sorted(self.images) for file in self._files_of(image_id, self.settings)]
        return [self.dir / "run.json", self.dir / "scale.json", *self.dir.glob(_LISTS), *files]

    def _files_of(self, image_id: str, settings: Mapping[str, Any]) -> list[Path]:
        files = [self.maps_file(image_id), self._file("predictions", image_id), self.picture_file(image_id)]
        return files + self._pictures_of(image_id, settings)

    def _pictures_of(self, image_id: str, settings: Mapping[str, Any]) -> list[Path]:
        measures = settings.get("measures") or ()
        return [self._file(f"{name}/{measure}", image_id) for name in _PICTURES for measure in measures]

    def _remove_files(self, files: Iterable[Path]) -> None:
        for file in files:
            file.unlink(missing_ok=True)
            for folder in file.parents[: len(file.relative_to(self.dir).parts) - 1]:
                try:
                    folder.rmdir()
                except OSError:  # it is not empty, or not there
                    break

    def _file(self, folder: str, image_id: str, suffix: str = ".png") -> Path:
        require_plain_name("the folder", folder)
        require_plain_name("the image id", image_id)
        return self.dir / folder / f"{image_id}{suffix}"

    def picture_file(self, image_id: str) -> Path:
        """Where the image itself is kept as a picture, for those who have no file of it."""
        return self._file("images", image_id)

    def maps_file(self, image_id: str) -> Path:
        """Where the maps of an image are."""
        return self._file("maps", image_id, ".npz")

    def is_done(self, image_id: str, image: Path) -> bool:
        """Whether the maps of an image are there, and no older than it.

        What counts is when the file got its content here: the time that it carries may be older (a copy that keeps
        times) or lie in the future.
        """
        maps = self.maps_file(image_id)
        if not maps.is_file():
            return False
        stat = image.stat()
        return maps.stat().st_mtime_ns >= (stat.st_ctime_ns if os.name == "posix" else stat.st_mtime_ns)

    def save(self, maps: UncertaintyMaps, *, probs: bool = False) -> None:
        """Write the maps of each image of a batch, and of 2-D images the prediction; the maps last: it is done then."""
        self.note(maps.image_ids)
        for one in maps.split():
            (image_id,) = one.image_ids
            if not one.multilabel and len(one.spatial) == 2:
                write_index_png(self._file("predictions", image_id), one.prediction[0].cpu().numpy())
            one.save(self.maps_file(image_id), probs=probs)

    def scales(
        self,
        image_ids: Sequence[str],
        measures: Sequence[str],
        *,
        changed: bool,
        finders: Mapping[str, ScaleFinder] | None = None,
        seen: Collection[str] = (),
    ) -> dict[str, Scale]:
        """The color scale of each measure, one for all images.

        It is kept in ``scale.json``. Where maps have ``changed`` it is found anew, and if it comes out otherwise,
        pictures on the old scale are removed.

        Args:
            image_ids: the images that it is for.
            measures: names of measures.
            changed: whether maps have changed since the last time.
            finders: one for each measure, that have taken in the maps of some images already.
            seen: the ids of these images, whose files are not read again.
        """
        file = self.dir / "scale.json"
        known = read_scales(file)
        if known is not None and not changed and set(measures) <= set(known):
            # a run that was killed before it came here left maps that the scale does not know
            found_at = file.stat().st_mtime_ns
            if all(maps.stat().st_mtime_ns <= found_at for maps in map(self.maps_file, image_ids)):
                return known
        finders = finders or {measure: ScaleFinder() for measure in measures}
        for maps in self.stream([image_id for image_id in image_ids if image_id not in seen]):
            for measure, finder in finders.items():
                finder.add(maps[measure])
        found = {measure: finder.scale() for measure, finder in finders.items()}
        self.keep_scales(found)
        return found

    def keep_scales(self, scales: Mapping[str, Scale]) -> None:
        """Say what the colors of all pictures mean; pictures on another scale are removed."""
        content = {measure: scale.as_dict() for measure, scale in scales.items()}
        file = self.dir / "scale.json"
        if read_scales(file) != dict(scales):
            for image_id in self.images:
                self._remove_files(self._pictures_of(image_id, self.settings))
        write_json(file, content)

    def draw(self, image_id: str, image: Path | None, scales: Mapping[str, Scale]) -> None:
        """Draw the heat map and the overlay of each measure of an image, where they are missing or outdated.

        Of volumes nothing is drawn.

        Args:
            image_id: its maps have been saved.
            image: the file of the image; None: there is none, and so no overlay.
            scales: one for each measure.
        """
        done = self.maps_file(image_id).stat().st_mtime_ns
        names = _PICTURES if image is not None else _PICTURES[:1]
        targets = [self._file(f"{name}/{measure}", image_id) for measure in scales for name in names]
        if all(target.is_file() and target.stat().st_mtime_ns >= done for target in targets):
            return
        maps = UncertaintyMaps.load(self.maps_file(image_id))
        if len(maps.spatial) != 2:
            return
        shown = None if image is None else to_rgb(read_image(image, scale=self.settings.get("scale")))
        for measure, scale in scales.items():
            values = maps[measure][0].numpy()
            label = label_of(measure)
            colors = colorize(values, scale)
            write_png(self._file(f"heatmaps/{measure}", image_id), with_color_bar(colors, scale, label))
            if shown is None:
                continue
            laid_over = with_color_bar(overlay(shown, colors), scale, label)
            write_png(self._file(f"overlays/{measure}", image_id), laid_over)

    def draw_all(self, images: Mapping[str, Path], scales: Mapping[str, Scale]) -> Iterator[str]:
        """Do what `draw` does for many images, on a thread for each processor; encoding a picture leaves Python.

        Args:
            images: the file of each image, by its id; the maps of all of them have been saved.
            scales: one for each measure.

        Yields:
            The id of each image, once it and those before it are drawn.
        """

        def draw(item: tuple[str, Path]) -> str:
            self.draw(*item, scales)
            return item[0]

        threads = ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1), thread_name_prefix="draw")
        try:
            yield from threads.map(draw, images.items())
        finally:
            threads.shutdown(cancel_futures=True)

    def stream(self, image_ids: Sequence[str]) -> Iterator[UncertaintyMaps]:
        """The maps of one image after another."""
        for image_id in image_ids:
            yield UncertaintyMaps.load(self.maps_file(image_id))


def read_run(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What ``run.json`` of a folder of predictions says.

    Raises:
        UsageError: if the folder is none of predictions.
        SeguqError: if the file is damaged or of another schema version.
    """
    file = Path(path) / "run.json"
    if "\0" not in str(file) and not file.is_file():
        raise UsageError(f"{path} is no folder that seguq predict has written (it has no run.json)")
    with reading(file, advice="remove the folder and predict again"):
        content = mapping(read_json(file), "its content")
        version, settings = content["version"], mapping(content["settings"], "'settings'")
        for measure in listing(settings.get("measures", []), "'measures'"):
            text(measure, "a measure")
        if settings.get("images") is not None:
            text(settings["images"], "'images'")
        images = [text(image_id, "an image id") for image_id in listing(content.get("images", []), "'images'")]
        complete = bool(content.get("complete"))
        complete = complete and not any(Path(path).glob(_LISTS))  # what was noted since is not finished
    if version != _SCHEMA_VERSION:
        raise SeguqError(f"{file} was written by another version of seguq (schema {version})")
    for image_id in images:
        require_plain_name(f"{file}: the image id", image_id)
    return {"version": version, "settings": settings, "complete": complete, "images": images}


def _listed(folder: Path) -> set[str]:
    """The images that processes have noted since ``run.json`` was written."""
    found = set()
    for file in folder.glob(_LISTS):
        for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                image_id = json.loads(line)
            except ValueError:  # cut off by a kill, before anything of the image was written
                continue
            require_plain_name(f"{file}: the image id", image_id)
            found.add(image_id)
    return found


def predicted_ids(path: str | os.PathLike[str]) -> list[str]:
    """The ids of the images whose maps are in a folder of predictions, sorted.

    Raises:
        SeguqError: for a folder in it that cannot be read, whose maps would be left out.
    """
    maps = Path(path) / "maps"

    def unreadable(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # there are none yet
            raise SeguqError(f"{error.filename} cannot be read, so that its maps would be left out: {error.strerror}")

    files = (Path(top, name) for top, _, names in os.walk(maps, onerror=unreadable) for name in names)
    found = (file.relative_to(maps) for file in files if file.suffix == ".npz" and not file.name.startswith("."))
    return sorted(file.with_suffix("").as_posix() for file in found)


def mean_score(maps: UncertaintyMaps, measure: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The mean of a measure over each image, ``(B,)``: the simplest score of a whole image."""
    out: np.ndarray[tuple[int], np.dtype[np.float64]] = maps[measure].double().flatten(1).mean(1).cpu().numpy()
    return out
