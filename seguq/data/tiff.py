"""TIFF files: every layout, photometric and compression that can be told apart without a guess."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np

from seguq.core.errors import SeguqError
from seguq.core.out_of_memory import ran_out_of_memory
from seguq.data.raster import Array, Raster

_GRAY_OR_COLOR = ("MINISWHITE", "MINISBLACK", "RGB", "PALETTE", "YCBCR", "LINEAR_RAW")
_LAYOUTS = ("YX", "YXS", "YXC", "YXQ", "QYX")  # of an image, channels last or none
_JPEG = (6, 7, 34892)  # old, new, lossy
_OFTEN_MISSING = "pip install imagecodecs"


class _Offsets(logging.Handler):
    """Collects what tifffile logs, and does not raise, of offsets behind the end of a file that this thread reads."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.thread = threading.get_ident()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.thread == self.thread and "offset" in message:
            self.messages.append(message)


def decode_tiff(path: Path) -> tuple[Raster, int]:
    """The pixels as they are stored, and the orientation (1 to 8) that they are shown in.

    Raises:
        SeguqError: naming the file, if it is cut off or damaged, needs a package to be decompressed, or is no image
            (height, width[, channels]) of gray, colors or a palette.
    """
    import tifffile

    offsets = _Offsets()
    logging.getLogger("tifffile").addHandler(offsets)
    try:
        with tifffile.TiffFile(path) as file:
            raster, orientation, axes = _decoded(path, file)
    except SeguqError:
        raise
    except Exception as error:  # tifffile raises a wide range of errors on broken files
        if ran_out_of_memory(error):
            raise
        raise SeguqError(f"{path} cannot be read as TIFF ({type(error).__name__}: {error})") from error
    finally:
        logging.getLogger("tifffile").removeHandler(offsets)
    if offsets.messages:
        raise SeguqError(f"{path} is cut off or damaged: {offsets.messages[0]}")
    if axes is not None:
        raise SeguqError(
            f"{path} has axes {axes} of shape {raster.pixels.shape}: an image is (height, width[, channels])"
        )
    return raster, orientation


def _decoded(path: Path, file: Any) -> tuple[Raster, int, str | None]:
    """The raster, its orientation, and its axes where these are not those of an image."""
    series = file.series[0]
    page = series.keyframe
    photometric = getattr(page.photometric, "name", str(page.photometric))
    if photometric not in _GRAY_OR_COLOR:
        raise SeguqError(f"{path} holds colors as {photometric}: convert it to RGB")
    alike = [
        other
        for other in file.series
        if (other.shape, other.dtype) == (series.shape, series.dtype) and not _is_mask(other.keyframe)
    ]
    array, axes = _pixels(path, series), series.axes
    if len(alike) > 1 and array.ndim == 2:  # bands written page by page
        array, axes = np.stack([_pixels(path, other) for other in alike]), "I" + axes
    samples = "S" in axes or photometric == "RGB"
    if _bands_first(axes, array.shape):
        array = np.moveaxis(array, 0, -1)
    elif axes not in _LAYOUTS:
        return Raster(array), 1, axes
    if array.ndim == 2:
        array = array[..., None]
    tags = page.tags
    extra = page.extrasamples
    raster = Raster(
        array,
        alpha=samples and bool(extra) and array.shape[2] > 1 and int(extra[-1]) in (1, 2),
        rgb=photometric in ("RGB", "YCBCR"),
        bits=int(page.bitspersample),
        palette=_palette(page) if photometric == "PALETTE" else None,
        white_is_zero=photometric == "MINISWHITE",
        nodata=_nodata(tags.valueof(42113)),
        masked=_masked(path, file, array),
        lossy="JPEG" if int(page.compression) in _JPEG else None,
    )
    return raster, int(tags.valueof(274, default=1)), None


def _bands_first(axes: str, shape: tuple[int, ...]) -> bool:
    """Whether bands are stored one after the other; tifffile calls axes Q that the file does not name."""
    return axes in ("SYX", "CYX", "IYX") or (axes == "QYX" and shape[0] < min(shape[1:]))


def tiff_size(path: Path) -> tuple[int, int] | None:
    """Height and width, upright, as the tags have them; None where they do not say it plainly."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            axes, shape = series.axes, tuple(int(side) for side in series.shape)
            turned = int(series.keyframe.tags.valueof(274, default=1)) in (5, 6, 7, 8)
    except Exception as error:  # whatever is wrong with it, decoding says
        if ran_out_of_memory(error):
            raise
        return None
    bands_first = _bands_first(axes, shape)
    if not bands_first and axes not in _LAYOUTS:
        return None
    height, width = shape[1:] if bands_first else shape[:2]
    return (width, height) if turned else (height, width)


def _is_mask(page: Any) -> bool:
    return bool(int(page.subfiletype) & 4)


def _masked(path: Path, file: Any, array: Array) -> Array | None:
    """Where GDAL's mask, a page of its own, says that there is no data."""
    mask = next((one for one in file.series if _is_mask(one.keyframe) and one.shape == array.shape[:2]), None)
    return None if mask is None else _pixels(path, mask) == 0


def _palette(page: Any) -> Array:
    colors = np.asarray(page.colormap)
    # of 16 bits; some programs write 8 (as libtiff tells them apart)
    return np.ascontiguousarray((colors >> 8 if colors.max(initial=0) > 255 else colors).T.astype(np.uint8))


def _nodata(text: Any) -> float | None:
    try:
        return float(str(text).strip("\0 "))
    except ValueError:  # no such tag, or "none"
        return None


def _pixels(path: Path, series: Any) -> Array:
    """The pixels of a series, by whichever package knows its compression."""
    page = series.keyframe
    # tifffile alone leaves them as brightness and color difference
    raw = getattr(page.photometric, "name", "") == "YCBCR" and int(page.compression) not in _JPEG
    if not raw:
        try:
            array: Array = series.asarray()
            return array
        except (ValueError, NotImplementedError, ImportError) as error:
            if not (isinstance(error, ImportError) or "imagecodecs" in str(error)):
                raise
    elif int(page.tags.valueof(274, default=1)) != 1:
        # those who make RGB of them also turn them, each in a way of its own
        raise SeguqError(f"{path} holds colors as YCBCR that have to be turned: convert it to RGB")
    pages = [_page(path, one) for one in series.pages]
    stacked: Array = np.stack(pages).reshape(series.shape)
    return stacked


def _page(path: Path, page: Any) -> Array:
    page = page.aspage()
    for decoder in (_by_rasterio, _by_opencv, _by_pillow):
        array = decoder(path, page)
        if array is not None and (array.shape, array.dtype) == (page.shape, page.dtype):
            return array
    name = getattr(page.compression, "name", str(page.compression))
    what = f"is compressed with {name}" if int(page.compression) != 1 else "is packed in a way"
    if int(page.predictor) == 3:
        what += " and a floating point predictor"
    raise SeguqError(f"{path} {what} that is read with the package imagecodecs alone: {_OFTEN_MISSING}")


def _by_rasterio(path: Path, page: Any) -> Array | None:
    try:
        import rasterio
        from rasterio.io import MemoryFile
    except ImportError:
        return None
    try:
        # from memory: GDAL takes no name that is not UTF-8, and would look at files that lie beside
        with (
            MemoryFile(path.read_bytes()) as content,
            rasterio.open(f"GTIFF_DIR:{page.index + 1}:{content.name}") as file,
        ):
            array: Array = file.read()
    except rasterio.errors.RasterioError as error:
        if "not supported" in str(error) or "codec" in str(error) or "not configured" in str(error):
            return None
        raise
    if page.dtype == np.bool_:
        array = array.astype(np.bool_)
    if len(page.shape) == 2:
        array = array[0]
    elif not page.axes.startswith("S"):
        array = np.moveaxis(array, 0, -1)
    return array


def _is_plain(page: Any) -> bool:
    """Whether it is the first page, and shown as it is stored."""
    return page.index == 0 and int(page.tags.valueof(274, default=1)) == 1


def _by_opencv(path: Path, page: Any) -> Array | None:
    """Where it loses no channel, and turns and inverts nothing."""
    import cv2

    known = page.photometric.name in ("MINISBLACK", "RGB", "YCBCR") and page.shape[2:] in ((), (3,))
    if not _is_plain(page) or not known:
        return None
    array = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        return None
    return np.asarray(array[..., ::-1] if array.ndim == 3 else array)


def _by_pillow(path: Path, page: Any) -> Array | None:
    """Palette indices, and gray or colors with alpha."""
    from PIL import Image

    if (
        page.index != 0
        or int(page.tags.valueof(274, default=1)) != 1
        or page.photometric.name not in ("PALETTE", "RGB")
    ):
        return None
    try:
        with Image.open(path) as image:
            return np.asarray(image) if image.mode in ("P", "RGBA") else None
    except MemoryError:
        raise
    except Exception:  # it knows fewer compressions than others
        return None
