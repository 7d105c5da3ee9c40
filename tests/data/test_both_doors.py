"""A file that is read whole and one that is read by windows give the network the same values, or a sentence."""

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from seguq.core.errors import UsageError
from seguq.data import Normalization, RasterReader
from seguq.data.reading import read_picture

rasterio = pytest.importorskip("rasterio")

RNG = np.random.default_rng(0)
GRAY, COLOR = RNG.integers(0, 256, (20, 32), np.uint8), RNG.integers(0, 256, (20, 32, 3), np.uint8)
DEEP, FLOAT = RNG.integers(0, 2**16, (20, 32)).astype(np.uint16), RNG.random((20, 32), np.float32)


def by_tifffile(pixels, **settings):
    return lambda path: tifffile.imwrite(path, pixels, **settings)


def by_gdal(pixels, mask=None, **settings):
    def write(path):
        bands = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
        count, height, width = bands.shape
        profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": bands.dtype}
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", **profile, **settings) as file:
            file.write(bands)
            if mask is not None:
                file.write_mask(mask)

    return write


def by_pillow(pixels, orientation):
    def write(path):
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(pixels).save(path, "JPEG" if pixels.ndim == 3 else "TIFF", exif=exif)

    return write


HOLES = np.where(RNG.random((20, 32)) < 0.2, np.float32(-9999), FLOAT)
BLACK = np.where(RNG.random((20, 32, 1)) < 0.2, np.uint8(0), np.maximum(COLOR, 1))
KINDS = {
    "gray": by_tifffile(GRAY),
    "color": by_tifffile(COLOR, photometric="rgb"),
    "color in planes": by_tifffile(np.moveaxis(COLOR, -1, 0), photometric="rgb", planarconfig="separate"),
    "tiles": by_tifffile(COLOR, photometric="rgb", tile=(16, 16)),
    "16 bits": by_tifffile(DEEP),
    "12 bits in 16": by_gdal(DEEP >> 4, nbits=12),
    "1 bit": by_gdal(GRAY >> 7, nbits=1),
    "4 bits": by_gdal(GRAY >> 4, nbits=4),
    "float": by_tifffile(FLOAT),
    "white is zero": by_tifffile(GRAY, photometric="miniswhite"),
    "white is zero, 16 bits": by_tifffile(DEEP, photometric="miniswhite"),
    "upright": by_pillow(GRAY, 1),
    "nodata of float": by_gdal(HOLES, nodata=-9999),
    "nodata of bytes": by_gdal(BLACK, nodata=0),
    "nodata of bytes, white is zero": by_gdal(BLACK[..., 0], nodata=0, photometric="MINISWHITE"),
    "a mask of GDAL's": by_gdal(COLOR, mask=BLACK[..., 0] > 0),
}
REFUSED = {
    **{f"orientation {number}": by_tifffile(GRAY, extratags=[(274, 3, 1, number, True)]) for number in range(2, 9)},
    "orientation of a JPEG": by_pillow(COLOR, 6),
    "white is zero, float": by_tifffile(FLOAT, photometric="miniswhite"),
    "palette": by_tifffile(GRAY, photometric="palette", colormap=RNG.integers(0, 2**16, (3, 256)).astype(np.uint16)),
    "CMYK": by_tifffile(np.dstack([COLOR, GRAY]), photometric="separated"),
}


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("write", KINDS.values(), ids=KINDS.keys())
def test_values_are_the_same(write, tmp_path):
    write(tmp_path / "a.tif")
    picture = read_picture(tmp_path / "a.tif")
    pixels = picture.pixels / np.float32(255) if picture.pixels.dtype == np.uint8 else picture.pixels
    channels = pixels.shape[2]
    reader = RasterReader(tmp_path / "a.tif", Normalization((0.5,) * channels, (2.0,) * channels))
    found = reader.read(0, 0, *reader.size)
    known = ~picture.missing if picture.missing is not None else np.ones(pixels.shape[:2], np.bool_)
    expected = torch.from_numpy((pixels - 0.5) / 2).movedim(-1, 0)
    torch.testing.assert_close(found[:, known], expected[:, known], rtol=0, atol=1e-6)
    assert not found[:, ~known].any()


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("write", REFUSED.values(), ids=REFUSED.keys())
def test_what_windows_cannot_give_is_refused_in_a_sentence(write, tmp_path):
    write(tmp_path / "a.tif")
    with pytest.raises(UsageError, match=r"a\.tif"):
        RasterReader(tmp_path / "a.tif")
