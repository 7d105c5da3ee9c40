"""Image files of any kind into arrays as they are stored, upright, with what the file says of them."""

from __future__ import annotations

import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from seguq.core.errors import SeguqError
from seguq.core.out_of_memory import ran_out_of_memory
from seguq.data.raster import Raster

_PNG = b"\x89PNG\r\n\x1a\n"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# a marker between the segments of a JPEG: not a stuffed 0, a restart marker or a fill byte
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])", re.DOTALL)
# what stands before an orientation in PNG, WebP and JPEG; most files have none of it, and need no second look
_MAY_BE_TURNED = (b"Exif\0\0", b"eXIf", b"EXIF", b"Raw profile type", b"adobe.xmp", b"ns.adobe.com/xap")


def decode_image(path: Path) -> Raster:
    """The pixels of an image: TIFF, JPEG, PNG, BMP, WebP, told by what the file holds and not by its name.

    Raises:
        SeguqError: naming the file, if it cannot be read.
    """
    content = _content(path)
    if content.startswith(TIFF):
        return _tiff(path)
    import cv2

    try:
        array = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        if ran_out_of_memory(error):
            raise
        raise SeguqError(f"{path} cannot be read as an image ({error.err})") from error
    if array is None:
        raise SeguqError(f"{path} cannot be read as an image: it is damaged or of another format")
    array = np.asarray(array)
    if array.ndim == 2:
        array = array[..., None]
    elif array.shape[2] >= 3:
        array = array[..., [2, 1, 0, *range(3, array.shape[2])]]
    depth, color_type = _png_type(content)
    if color_type == 4 and array.shape[2] == 4:  # gray and alpha, which OpenCV makes colors of
        array = array[..., [0, 3]]
    header = _header(content)
    _require_one_frame(path, header)
    raster = Raster(
        array, alpha=array.shape[2] in (2, 4), rgb=array.shape[2] >= 3, bits=16 if depth == 16 else 8 * array.itemsize
    )
    return raster.upright(_orientation(content, header))


def decode_mask(path: Path) -> Raster:
    """The pixels of a mask, as indices where there is a palette.

    Raises:
        SeguqError: naming the file, if it cannot be read.
    """
    content = _content(path)
    if content.startswith(TIFF):
        return _tiff(path)
    depth, color_type = _png_type(content)
    if depth == 16 and color_type != 0:  # Pillow would keep 8 of the 16 bits
        return decode_image(path)
    if content.startswith(_PNG) and not _checksums_fit(content):  # Pillow leaves those of pixels out
        raise SeguqError(f"{path} is damaged: a checksum of the PNG does not fit what it holds")
    header = _header(content)
    if header is None:
        raise SeguqError(f"{path} cannot be read as a mask: it is damaged, or no PNG, TIFF, BMP or WebP")
    _require_one_frame(path, header)
    lossy = "JPEG" if header.format == "JPEG" else "lossy WebP" if _is_lossy_webp(content) else None
    try:
        # OpenCV would turn the indices of a palette PNG, the usual form of masks, into its colors
        array = np.asarray(header)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises a wide range of errors on broken files
        raise SeguqError(f"{path} cannot be read as a mask ({type(error).__name__}: {error})") from error
    if color_type == 0 and depth in (2, 4):  # which Pillow spreads over 0 to 255
        array = array // (255 // (2**depth - 1))
    alpha = header.mode in ("LA", "PA", "RGBA")
    array = array if array.ndim == 3 else array[..., None]
    colors = header.getpalette() if header.mode in ("P", "PA") else None
    palette = None if colors is None else np.array(colors, np.uint8).reshape(-1, 3)
    raster = Raster(array, alpha, array.shape[2] - alpha == 3, 8 * array.itemsize, palette, lossy=lossy)
    return raster.upright(_orientation(content, header))


def size_in_header(path: Path) -> tuple[int, int] | None:
    """Height and width of an image as `decode_image` gives it, without decoding its pixels.

    Returns:
        None for what does not say it plainly, or is no image: decoding says more.

    Raises:
        SeguqError: naming the file, if it is missing, empty, or seen to be cut off.
    """
    content = _content(path)
    if content.startswith(TIFF):
        from seguq.data.tiff import tiff_size

        return tiff_size(path)
    header = _header(content)
    if header is None or getattr(header, "n_frames", 1) != 1:
        return None
    width, height = header.size
    return (width, height) if _orientation(content, header) in (5, 6, 7, 8) else (height, width)


def is_tiff(path: Path) -> bool:
    """Whether a file is a TIFF, by what it holds; these alone may say where there is no data."""
    with path.open("rb") as file:
        return file.read(4) in TIFF


def _tiff(path: Path) -> Raster:
    from seguq.data.tiff import decode_tiff

    raster, orientation = decode_tiff(path)
    return raster.upright(orientation)


def _content(path: Path) -> bytes:
    """What a file holds; of a TIFF, which is read in pieces, the beginning."""
    try:
        with path.open("rb") as file:
            content = file.read(4)
            content += b"" if content in TIFF else file.read()
    except OSError as error:
        raise SeguqError(f"{path} cannot be read: {error.strerror or error}") from error
    if not content:
        raise SeguqError(f"{path} is an empty file")
    if content.startswith(b"\xff\xd8\xff") and not _jpeg_is_whole(content):
        # decoders fill the rest of a JPEG that was cut off with gray, and say nothing
        raise SeguqError(f"{path} is cut off: the JPEG ends before its last scan does")
    return content


def _jpeg_is_whole(content: bytes) -> bool:
    """Whether a JPEG reaches its end marker; those of a thumbnail in it, or of what follows it, do not count."""
    at = 2
    while (marker := _JPEG_MARKER.search(content, at)) is not None:
        if marker[1] == b"\xd9":
            return True
        at = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2], "big")
    return False


def _png_type(content: bytes) -> tuple[int | None, int | None]:
    """Bit depth and color type of a PNG; None of other files."""
    return (content[24], content[25]) if content.startswith(b"\x89PNG") and len(content) > 25 else (None, None)


def _checksums_fit(content: bytes) -> bool:
    """Whether the chunks of a PNG that decide on its pixels hold what was written."""
    at, end = len(_PNG), len(content)
    while at + 12 <= end:
        size = int.from_bytes(content[at : at + 4], "big")
        name, data_end = content[at + 4 : at + 8], at + 8 + size
        if name == b"IEND" or data_end + 4 > end:  # where it is cut off, decoding says so
            break
        critical = not name[0] & 0x20  # by the case of its first letter
        if critical and zlib.crc32(memoryview(content)[at + 4 : data_end]) != int.from_bytes(
            content[data_end : data_end + 4], "big"
        ):
            return False
        at = data_end + 4
    return True


def _is_lossy_webp(content: bytes) -> bool:
    at = 12
    while content.startswith(b"RIFF") and at + 8 <= len(content):
        name, size = struct.unpack("<4sI", content[at : at + 8])
        if name == b"VP8 ":
            return True
        at += 8 + size + size % 2
    return False


def _header(content: bytes) -> Any:
    """A file opened by Pillow and not yet decoded; None for what it does not know, or cannot open.

    The plugins are asked themselves: ``Image.open`` refuses what has more pixels than a limit that holds for the whole
    process, and large masks are no attack.
    """
    from PIL import BmpImagePlugin, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

    plugins: dict[bytes, Any] = {
        b"\x89PNG": PngImagePlugin.PngImageFile,
        b"BM": BmpImagePlugin.BmpImageFile,
        b"RIFF": WebPImagePlugin.WebPImageFile,
        b"\xff\xd8\xff": JpegImagePlugin.JpegImageFile,
    }
    kind = next((plugin for start, plugin in plugins.items() if content.startswith(start)), None)
    try:
        return None if kind is None else kind(io.BytesIO(content))
    except Exception:  # whatever is wrong with it, the decoder says
        return None


def _require_one_frame(path: Path, header: Any) -> None:
    frames = getattr(header, "n_frames", 1)
    if frames != 1:
        raise SeguqError(f"{path} is a film of {frames} frames: save the one that is meant as an image of its own")


def _orientation(content: bytes, header: Any) -> int:
    if header is None or not any(mark in content for mark in _MAY_BE_TURNED):
        return 1
    from PIL import Image

    try:
        late = b"eXIf" in content and "exif" not in header.info  # behind the pixels, which are then read up to there
        exif = header.getexif() if late else Image.Image.getexif(header)
        return int(exif.get(0x0112, 1))
    except Exception:  # as viewers do: a damaged tag turns nothing
        return 1
