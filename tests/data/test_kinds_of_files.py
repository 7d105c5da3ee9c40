"""Files as they are in the world: each kind is read as an independent reader reads it, or refused in one sentence."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image, ImageOps

from seguq.core.errors import SeguqError
from seguq.data import Classes, SegmentationFolder, check_files, list_images, read_image, read_mask
from tests.data.builders import Array, random_mask, random_pixels, write

H, W = 40, 48
GRAY, RGB, RGBA = random_pixels(H, W), random_pixels(H, W, 3), random_pixels(H, W, 4)
INDEX = random_mask(H, W)
TWO = Classes.unnamed(2)


def by_pillow(path: Path) -> Array:
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
        return np.asarray(upright.convert("RGB") if upright.mode == "P" else upright)


def pillow(pixels: Array, mode: str | None = None, **options: Any) -> Callable[[Path], Array]:
    def make(path: Path) -> Array:
        image = Image.fromarray(pixels)
        (image if mode is None else image.convert(mode)).save(path, **options)
        return by_pillow(path)

    return make


def tiff(pixels: Array, want: Array, **options: Any) -> Callable[[Path], Array]:
    def make(path: Path) -> Array:
        tifffile.imwrite(path, pixels, **options)
        return want

    return make


def turned(orientation: int, pixels: Array = RGB, **options: Any) -> Callable[[Path], Array]:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return pillow(pixels, exif=exif, **options)


def gdal(pixels: Array, want: Array | None = None, **options: Any) -> Callable[[Path], Array]:
    def make(path: Path) -> Array:
        rasterio = pytest.importorskip("rasterio")
        bands = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
        try:
            count, height, width = bands.shape
            shape = {"count": count, "height": height, "width": width}
            with rasterio.open(path, "w", driver="GTiff", dtype=pixels.dtype, **shape, **options) as file:
                file.write(bands)
        except rasterio.errors.RasterioError:
            pytest.skip("this GDAL cannot write it")
        return pixels if want is None else want

    return make


def png_of_bits(indices: Array, bits: int, path: Path) -> None:
    """A gray PNG of fewer than 8 bits, which neither Pillow nor OpenCV writes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    digits = np.unpackbits(indices[..., None], axis=2)[..., 8 - bits :]
    rows = b"".join(b"\0" + np.packbits(row.reshape(-1)).tobytes() for row in digits)
    head = struct.pack(">IIBBBBB", indices.shape[1], indices.shape[0], bits, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def gray_png(bits: int, of_index: Callable[[Array], Array]) -> Callable[[Path], Array]:
    def make(path: Path) -> Array:
        indices = GRAY % 2**bits
        png_of_bits(indices, bits, path)
        return of_index(indices)

    return make


def filled(pixels: Array) -> Array:
    """The first five rows hold no data: the mean of the others."""
    out = pixels.copy()
    mean = pixels[5:].mean((0, 1))
    out[:5] = np.round(mean) if pixels.dtype == np.uint8 else mean
    return out


def without_data(value: float, dtype: str) -> Callable[[Path], Array]:
    pixels = (RGB % 200 + 1).astype(dtype)
    pixels[:5] = value
    return gdal(pixels, filled(pixels), nodata=value)


def alpha_of_gray(path: Path) -> Array:
    Image.merge("LA", (Image.fromarray(GRAY), Image.fromarray(GRAY[::-1].copy()))).save(path)
    return np.dstack([GRAY] * 3)


IMAGES: dict[str, tuple[str, int | None, Callable[[Path], Array]]] = {
    "palette TIFF": ("a.tif", 3, pillow(RGB, "P")),
    "palette TIFF, LZW": ("a.tif", 3, pillow(RGB, "P", compression="tiff_lzw")),
    "white is zero, 8 bits": ("a.tif", 1, tiff(GRAY, 255 - GRAY, photometric="miniswhite")),
    "white is zero, fax": ("a.tif", 1, pillow(GRAY > 99, compression="group4")),
    **{f"turned PNG {tag}": ("a.png", 3, turned(tag)) for tag in range(1, 9)},
    **{f"turned TIFF {tag}": ("a.tif", 3, turned(tag, compression="tiff_deflate")) for tag in range(1, 9)},
    **{f"turned WebP {tag}": ("a.webp", 3, turned(tag, lossless=True)) for tag in (3, 6)},
    "PNG named TIFF": ("a.tif", 3, pillow(RGB, format="PNG")),
    "TIFF named PNG": ("a.png", 3, pillow(RGB, format="TIFF")),
    "gray and alpha PNG as RGB": ("a.png", 3, alpha_of_gray),
    "gray and alpha TIFF as RGB": ("a.tif", 3, alpha_of_gray),
    "RGBA TIFF as RGB": ("a.tif", 3, tiff(RGBA, RGBA[..., :3], photometric="rgb", extrasamples=["unassalpha"])),
    "RGBA TIFF as RGBA": ("a.tif", 4, tiff(RGBA, RGBA, photometric="rgb", extrasamples=["unassalpha"])),
    **{f"gray PNG, {b} bits": ("a.png", 1, gray_png(b, lambda i, b=b: i * (255 // (2**b - 1)))) for b in (2, 4)},
    "4 bits TIFF": ("a.tif", 1, gdal(GRAY % 16, GRAY % 16 * 17, nbits=4)),
    **{f"GDAL {name}": ("a.tif", 3, gdal(RGB, compress=name)) for name in ("lzw", "zstd", "lerc", "packbits", "lzma")},
    "GDAL WebP": ("a.tif", 3, gdal(RGB, compress="webp", webp_lossless=True)),
    "GDAL LZW band by band": ("a.tif", 4, gdal(RGBA, compress="lzw", interleave="band")),
    "GDAL float predictor": ("a.tif", 3, gdal((RGB / 255).astype(np.float32), compress="deflate", predictor=3)),
    **{f"nodata {v} {t}": ("a.tif", 3, without_data(v, t)) for v, t in ((0, "uint8"), (255, "uint8"))},
    **{
        f"nodata {v}": ("a.tif", 3, without_data(v, "float32")) for v in (-9999.0, float("nan"), -3.4028234663852886e38)
    },
}


@pytest.mark.parametrize("kind", IMAGES)
def test_an_image_is_read_as_an_independent_reader_reads_it(tmp_path: Path, kind: str) -> None:
    name, channels, make = IMAGES[kind]
    want = make(tmp_path / name)
    want = want.astype(np.uint8) * 255 if want.dtype == np.bool_ else want
    want = want if want.ndim == 3 else want[..., None]
    assert_allclose(read_image(tmp_path / name, channels), want, rtol=1e-5)


def palette_tiff(**options: Any) -> Callable[[Path], Array]:
    def make(path: Path) -> Array:
        image = Image.fromarray(INDEX)
        image.putpalette([0, 0, 0, 255, 0, 0])
        image.save(path, **options)
        return INDEX

    return make


def two_pages(path: Path) -> Array:
    tifffile.imwrite(path, np.stack([INDEX, INDEX]))
    return INDEX


def gray_and_alpha(path: Path) -> Array:
    Image.merge("LA", (Image.fromarray(INDEX), Image.fromarray(GRAY))).save(path)
    return INDEX


def nodata_mask(value: int) -> Callable[[Path], Array]:
    mask = INDEX.astype(np.int16)
    if value not in (0, 1):
        mask[:5] = value
    return gdal(mask, np.where(mask == value, 255, mask) if value not in (0, 1) else mask, nodata=value)


MASKS: dict[str, tuple[str, Callable[[Path], Array]]] = {
    "palette TIFF": ("a.tif", palette_tiff()),
    "palette TIFF, LZW": ("a.tif", palette_tiff(compression="tiff_lzw")),
    "fax": ("a.tif", pillow(INDEX > 0, compression="group4")),
    "gray and alpha PNG": ("a.png", gray_and_alpha),
    "gray and alpha TIFF": ("a.tif", gray_and_alpha),
    "two equal pages": ("a.tif", two_pages),
    "three equal channels": ("a.png", lambda path: (write(path, np.dstack([INDEX] * 3)), INDEX)[1]),
    **{f"gray PNG, {b} bits": ("a.png", gray_png(b, lambda i: i)) for b in (1, 2, 4)},
    **{f"turned PNG {tag}": ("a.png", turned(tag, INDEX)) for tag in (3, 6)},
    **{f"turned TIFF {tag}": ("a.tif", turned(tag, INDEX, compression="tiff_deflate")) for tag in (3, 6)},
    **{f"nodata {value}": ("a.tif", nodata_mask(value)) for value in (-1, -9999, 0)},
}


@pytest.mark.parametrize("kind", MASKS)
def test_a_mask_gives_its_indices(tmp_path: Path, kind: str) -> None:
    name, make = MASKS[kind]
    want = make(tmp_path / name).astype(np.int64)
    assert_array_equal(read_mask(tmp_path / name, TWO), want, strict=True)


def jpeg_named_png(path: Path) -> None:
    Image.fromarray(INDEX).save(path, format="JPEG")


REFUSED_MASKS: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "JPEG named PNG": ("a.png", jpeg_named_png, "JPEG, which changes class indices"),
    "JPEG in a TIFF": ("a.tif", lambda path: Image.fromarray(INDEX).save(path, compression="jpeg"), "JPEG"),
    "lossy WebP": ("a.webp", lambda path: Image.fromarray(RGB).save(path, lossless=False), "lossy WebP"),
    "white is zero": ("a.tif", lambda path: tifffile.imwrite(path, INDEX, photometric="miniswhite"), "white is zero"),
    "two pages": ("a.tif", lambda path: tifffile.imwrite(path, np.stack([INDEX, 1 - INDEX])), "2 channels or pages"),
    "five bands": ("a.tif", lambda path: tifffile.imwrite(path, random_pixels(5, H, W)), "5 channels or pages"),
}


@pytest.mark.parametrize("kind", REFUSED_MASKS)
def test_a_mask_that_would_be_read_wrongly_is_refused_in_one_sentence(tmp_path: Path, kind: str) -> None:
    name, make, says = REFUSED_MASKS[kind]
    make(tmp_path / name)
    with pytest.raises(SeguqError, match=says) as error:
        read_mask(tmp_path / name, TWO)
    assert str(tmp_path / name) in str(error.value)


def test_three_equal_channels_are_colors_where_a_gray_is_a_class(tmp_path: Path) -> None:
    classes = Classes(("road", "sky"), ((1, 1, 1), (0, 0, 0)))
    write(tmp_path / "a.png", np.dstack([INDEX] * 3))
    assert_array_equal(read_mask(tmp_path / "a.png", classes), 1 - INDEX.astype(np.int64))


def test_a_compression_that_nothing_here_knows_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gdal(RGB, compress="lerc")(tmp_path / "a.tif")
    monkeypatch.setattr("seguq.data.tiff._by_rasterio", lambda path, page: None)
    with pytest.raises(SeguqError, match="pip install imagecodecs") as error:
        read_image(tmp_path / "a.tif")
    assert "damaged" not in str(error.value)


def test_a_mask_above_the_limit_of_pillow_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.png", INDEX)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert_array_equal(read_mask(tmp_path / "a.png", TWO), INDEX)


def test_pixels_without_data_are_ignored_in_the_mask(tmp_path: Path) -> None:
    (tmp_path / "i").mkdir()
    without_data(-9999.0, "float32")(tmp_path / "i" / "a.tif")
    write(tmp_path / "m" / "a.png", INDEX)
    item = SegmentationFolder(tmp_path / "i", tmp_path / "m", TWO)[0]
    assert (item["mask"][:5] == 255).all()
    assert_array_equal(item["mask"][5:].numpy(), INDEX[5:])


def test_a_zero_in_one_channel_alone_stays_a_color(tmp_path: Path) -> None:
    pixels = np.full((H, W, 3), 9, np.uint8)
    pixels[3, 4] = (200, 0, 0)
    gdal(pixels, nodata=0)(tmp_path / "a.tif")
    assert_array_equal(read_image(tmp_path / "a.tif"), pixels)


# ---- scale ----


@pytest.mark.parametrize(("dtype", "largest"), [("uint16", 4095), ("float32", 255)])
def test_a_scale_gives_the_range_from_0_to_1(tmp_path: Path, dtype: str, largest: float) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.linspace(0, largest, H * W).reshape(H, W).astype(dtype))
    assert float(read_image(tmp_path / "a.tif", scale=largest).max()) == pytest.approx(1)


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf"), True, "many"])
def test_a_scale_that_is_no_number_above_0_is_refused(tmp_path: Path, scale: Any) -> None:
    write(tmp_path / "a.png", GRAY)
    with pytest.raises(SeguqError, match="scale"):
        read_image(tmp_path / "a.png", scale=scale)


@pytest.mark.parametrize(
    ("dtype", "largest", "scale", "told"),
    [
        ("uint16", 4095, None, True),
        ("uint16", 60000, None, False),
        ("uint16", 4095, 4095, False),
        ("uint16", 60000, 4095, True),
        ("float32", 255, None, True),
        ("float32", 1, None, False),
        ("float32", 255, 255, False),
        ("uint8", 20, None, False),
    ],
)
def test_the_check_warns_of_values_far_from_their_scale(
    tmp_path: Path, dtype: str, largest: float, scale: float | None, told: bool
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.linspace(0, largest, H * W).reshape(H, W).astype(dtype))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        check_files({"a": tmp_path / "a.tif"}, scale=scale, folder=tmp_path)
    assert any("scale" in str(one.message) for one in found) is told


@pytest.mark.parametrize(("values", "told"), [((0, 255), True), ((0, 1, 255), False), ((0,), False), ((1, 255), False)])
def test_the_check_warns_of_masks_of_0_and_255(tmp_path: Path, values: tuple[int, ...], told: bool) -> None:
    mask = np.resize(np.array(values, np.uint8), (H, W))
    images, masks = {"a": write(tmp_path / "i" / "a.png", RGB)}, {"a": write(tmp_path / "m" / "a.png", mask)}
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        check_files(images, masks, TWO, folder=tmp_path)
    assert any("0 and 255" in str(one.message) for one in found) is told


# ---- what would be left out of a folder ----


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "a.png", RGB)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "linked").symlink_to(tmp_path / "elsewhere")
    assert list(list_images(tmp_path / "images")) == ["linked/a"]


def broken_link(folder: Path) -> None:
    (folder / "b.png").symlink_to(folder / "gone.png")


def loop(folder: Path) -> None:
    (folder / "b").symlink_to(folder)


def link_to_itself(folder: Path) -> None:
    (folder / "b").symlink_to(folder / "b")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "b.png")


@pytest.mark.parametrize("spoil", [broken_link, loop, link_to_itself, pipe])
def test_what_would_be_left_out_of_a_folder_is_named(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    write(tmp_path / "a.png", RGB)
    spoil(tmp_path)
    with pytest.raises(SeguqError, match=str(tmp_path)):
        list_images(tmp_path)


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "sub" / "a.png", RGB)
    scandir = os.scandir

    def locked(folder: Path) -> Any:
        if Path(folder).name == "sub":
            raise PermissionError(13, "Permission denied", os.fspath(folder))  # as the system does
        return scandir(folder)

    with monkeypatch.context() as patched, pytest.raises(SeguqError, match="sub cannot be read"):
        patched.setattr(os, "scandir", locked)
        list_images(tmp_path)


@pytest.mark.parametrize(
    ("name", "says"), [("a.jpg", "a.jpg.*JPEG"), ("a.gif", "a.gif.*GIF"), ("a_mask.png", "a_mask.png")]
)
def test_a_mask_under_another_name_or_format_is_named(tmp_path: Path, name: str, says: str) -> None:
    write(tmp_path / "i" / "a.png", GRAY)
    write(tmp_path / "m" / name, GRAY)
    with pytest.raises(SeguqError, match=says):
        SegmentationFolder(tmp_path / "i", tmp_path / "m", TWO)


def test_two_masks_of_one_image_are_named(tmp_path: Path) -> None:
    for path in ("i/a.png", "m/a.png", "m/a.tif"):
        write(tmp_path / path, INDEX)
    with pytest.raises(SeguqError, match="two masks"):
        SegmentationFolder(tmp_path / "i", tmp_path / "m", TWO)


@pytest.mark.parametrize(
    "name", ["a\nb.png", "a\x1b[31m.png", os.fsdecode(b"Z\xfcrich.png"), "scan[/a].png", ":cat:.png"]
)
def test_a_name_writes_no_control_code_into_an_error(tmp_path: Path, name: str) -> None:
    try:
        (tmp_path / name).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes no such name")
    with pytest.raises(SeguqError, match="empty file") as error:
        read_image(tmp_path / name)
    assert str(error.value).isprintable()
    if name.isprintable():
        assert name in str(error.value)
