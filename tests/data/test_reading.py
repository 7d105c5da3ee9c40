"""Image and mask files of every kind, whole and broken."""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image, ImageOps

from seguq.core.errors import SeguqError
from seguq.data import Classes, read_image, read_mask
from tests.data.builders import HEIGHT, WIDTH, Array, random_mask, random_pixels, smooth_pixels, write

LOSSLESS = [".png", ".bmp", ".tif", ".tiff"]
ALL = [".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"]
RGB = (HEIGHT, WIDTH, 3)


def floats(*shape: int) -> Array:
    return np.random.default_rng(1).normal(50, 200, shape).astype(np.float32)


# ---- whole images ----


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_an_rgb_image_is_read_bit_for_bit_in_rgb_order(tmp_path: Path, suffix: str) -> None:
    pixels = random_pixels(*RGB)
    assert_array_equal(read_image(write(tmp_path / f"a{suffix}", pixels)), pixels, strict=True)


@pytest.mark.parametrize("suffix", ALL)
def test_every_format_comes_as_height_width_rgb_in_uint8(tmp_path: Path, suffix: str) -> None:
    pixels = smooth_pixels()
    got = read_image(write(tmp_path / f"a{suffix}", pixels))
    assert (got.shape, got.dtype) == (RGB, np.uint8)
    assert np.abs(got.astype(int) - pixels).mean() < 4


@pytest.mark.parametrize("suffix", [".PNG", ".TIF", ".Bmp"])
def test_the_case_of_the_suffix_does_not_matter(tmp_path: Path, suffix: str) -> None:
    pixels = random_pixels(*RGB)
    write(tmp_path / "a", pixels, format={".PNG": "PNG", ".TIF": "TIFF", ".Bmp": "BMP"}[suffix])
    assert_array_equal(read_image((tmp_path / "a").rename(tmp_path / f"a{suffix}")), pixels)


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_a_gray_image_has_one_channel_with_the_stored_values(tmp_path: Path, suffix: str) -> None:
    pixels = random_pixels(HEIGHT, WIDTH)
    assert_array_equal(read_image(write(tmp_path / f"a{suffix}", pixels)), pixels[..., None], strict=True)


def test_a_gray_jpeg_has_one_channel(tmp_path: Path) -> None:
    assert read_image(write(tmp_path / "a.jpg", smooth_pixels()[..., 0])).shape == (HEIGHT, WIDTH, 1)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif"])
def test_a_gray_image_is_repeated_to_the_channels_wanted(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", random_pixels(HEIGHT, WIDTH))
    assert_array_equal(read_image(path, 3), np.repeat(read_image(path), 3, axis=2))


@pytest.mark.parametrize(("suffix", "options"), [(".png", {}), (".webp", {"lossless": True, "exact": True})])
def test_an_alpha_channel_is_dropped_to_reach_three_channels(
    tmp_path: Path, suffix: str, options: dict[str, Any]
) -> None:
    pixels = random_pixels(HEIGHT, WIDTH, 4)
    assert_array_equal(read_image(write(tmp_path / f"a{suffix}", pixels, **options), 3), pixels[..., :3])


def test_an_alpha_channel_is_kept_where_four_channels_are_wanted(tmp_path: Path) -> None:
    pixels = random_pixels(HEIGHT, WIDTH, 4)
    assert_array_equal(read_image(write(tmp_path / "a.png", pixels), 4), pixels)


def test_a_palette_image_comes_in_its_colors(tmp_path: Path) -> None:
    image = Image.fromarray(random_pixels(*RGB)).quantize(16)
    image.save(tmp_path / "a.png")
    assert_array_equal(read_image(tmp_path / "a.png"), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_16_bit_gray_image_is_scaled_to_the_unit_interval(tmp_path: Path, suffix: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH)).astype(np.uint16)
    got = read_image(write(tmp_path / f"a{suffix}", pixels))
    assert got.dtype == np.float32
    assert_allclose(got[..., 0], pixels / 65535, rtol=1e-6)


@pytest.mark.parametrize("channels", [3, 4])
def test_a_16_bit_color_png_keeps_its_depth_and_rgb_order(tmp_path: Path, channels: int) -> None:
    import cv2

    pixels = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, channels)).astype(np.uint16)
    swapped = pixels[..., [2, 1, 0, 3][:channels]]
    assert cv2.imwrite(str(tmp_path / "a.png"), swapped)
    assert_allclose(read_image(tmp_path / "a.png"), pixels / 65535, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_a_tiff_keeps_every_channel_in_its_place(tmp_path: Path, channels: int, dtype: type) -> None:
    pixels = np.random.default_rng(0).integers(0, 200, (HEIGHT, WIDTH, channels)).astype(dtype)
    layout = {"planarconfig": "contig"} if channels > 1 else {}
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", **layout)
    assert_allclose(read_image(tmp_path / "a.tif"), pixels / (65535 if dtype == np.uint16 else 1), rtol=1e-6)


def test_a_float_tiff_is_read_as_stored_without_scaling(tmp_path: Path) -> None:
    pixels = floats(HEIGHT, WIDTH, 5)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", planarconfig="contig")
    assert_array_equal(read_image(tmp_path / "a.tif"), pixels, strict=True)


def write_planar(path: Path, bands: Array) -> None:
    tifffile.imwrite(path, bands, photometric="minisblack", planarconfig="separate")


def write_stack(path: Path, bands: Array) -> None:
    tifffile.imwrite(path, bands, photometric="minisblack")


def write_plain_pages(path: Path, bands: Array) -> None:
    with tifffile.TiffWriter(path) as file:
        for band in bands:
            file.write(band, photometric="minisblack", metadata=None)


def write_page_by_page(path: Path, bands: Array) -> None:
    with tifffile.TiffWriter(path) as file:
        for band in bands:
            file.write(band, photometric="minisblack")


def write_imagej_channels(path: Path, bands: Array) -> None:
    tifffile.imwrite(path, bands, imagej=True, metadata={"axes": "CYX"})


@pytest.mark.parametrize(
    "writer", [write_planar, write_stack, write_plain_pages, write_page_by_page, write_imagej_channels]
)
@pytest.mark.parametrize("count", [2, 3, 5])
def test_bands_stored_one_after_the_other_become_the_last_axis(
    tmp_path: Path, writer: Callable[[Path, Array], None], count: int
) -> None:
    bands = floats(count, HEIGHT, WIDTH)
    writer(tmp_path / "a.tif", bands)
    assert_array_equal(read_image(tmp_path / "a.tif"), bands.transpose(1, 2, 0), strict=True)


@pytest.mark.parametrize("writer", [write_planar, write_plain_pages, write_imagej_channels])
def test_an_image_with_more_bands_than_rows_is_read_with_its_bands_last(
    tmp_path: Path, writer: Callable[[Path, Array], None]
) -> None:
    bands = floats(60, HEIGHT, WIDTH)
    writer(tmp_path / "a.tif", bands)
    assert_array_equal(read_image(tmp_path / "a.tif"), bands.transpose(1, 2, 0), strict=True)


@pytest.mark.parametrize("axes", ["ZYX", "TYX"])
def test_a_tiff_of_slices_or_times_is_an_error_that_names_file_and_axes(tmp_path: Path, axes: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", floats(5, HEIGHT, WIDTH), imagej=True, metadata={"axes": axes})
    with pytest.raises(SeguqError, match=rf"a\.tif.*{axes}"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_a_tiff_of_a_common_lossless_compression_is_read(tmp_path: Path, compression: str) -> None:
    pixels = random_pixels(*RGB)
    assert_array_equal(read_image(write(tmp_path / "a.tif", pixels, compression=compression)), pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_is_turned_as_its_exif_orientation_says(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write(tmp_path / "a.jpg", smooth_pixels(), quality=95, exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image)).astype(int)
    got = read_image(path)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= 6  # two decoders round differently; the colors span 200


# ---- broken images ----


def encoded(suffix: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(random_pixels(*RGB)).save(
        buffer, {".jpg": "JPEG", ".tif": "TIFF"}.get(suffix, suffix[1:]), **options
    )
    return buffer.getvalue()


def jpeg_with_thumbnail() -> bytes:
    """A JPEG whose EXIF block holds a whole small JPEG, as cameras write it."""
    whole, thumbnail = encoded(".jpg"), io.BytesIO()
    Image.fromarray(random_pixels(8, 8, 3)).save(thumbnail, "JPEG")
    small = thumbnail.getvalue()
    first = struct.pack("<2sHIHI", b"II", 42, 8, 0, 14)  # header, then an empty first directory
    second = (
        struct.pack("<H", 2) + struct.pack("<HHII", 0x0201, 4, 1, 44) + struct.pack("<HHII", 0x0202, 4, 1, len(small))
    )
    block = b"Exif\0\0" + first + second + struct.pack("<I", 0) + small
    return whole[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + whole[2:]


SOURCES = {
    "jpg": lambda: encoded(".jpg"),
    "progressive.jpg": lambda: encoded(".jpg", progressive=True),
    "thumbnail.jpg": jpeg_with_thumbnail,
    "png": lambda: encoded(".png"),
    "webp": lambda: encoded(".webp"),
    "lossless.webp": lambda: encoded(".webp", lossless=True),
    "bmp": lambda: encoded(".bmp"),
    "tif": lambda: encoded(".tif"),
    "deflate.tif": lambda: encoded(".tif", compression="tiff_adobe_deflate"),
}


def assert_one_sentence_that_names(error: pytest.ExceptionInfo[SeguqError], path: Path) -> None:
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source", SOURCES)
def test_the_files_that_are_cut_below_are_readable_when_whole(tmp_path: Path, source: str) -> None:
    path = tmp_path / f"a.{source}"
    path.write_bytes(SOURCES[source]())
    assert read_image(path).shape == RGB


@pytest.mark.parametrize("kept", [0.02, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.97, "all but one byte"])
@pytest.mark.parametrize("source", SOURCES)
def test_a_cut_off_file_is_an_error_that_names_it(tmp_path: Path, source: str, kept: float | str) -> None:
    path, content = tmp_path / f"a.{source}", SOURCES[source]()
    path.write_bytes(content[:-1] if isinstance(kept, str) else content[: int(kept * len(content))])
    with pytest.raises(SeguqError) as error:
        read_image(path)
    assert_one_sentence_that_names(error, path)


def test_a_jpeg_cut_off_and_filled_up_with_zeros_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path, content = tmp_path / "a.jpg", jpeg_with_thumbnail()
    path.write_bytes(content[: len(content) * 2 // 3] + bytes(len(content) // 3))
    with pytest.raises(SeguqError, match=r"a\.jpg"):
        read_image(path)


@pytest.mark.parametrize("extra", [b"\0" * 100, b"\n", b"a film \xff\xda follows"], ids=["zeros", "newline", "film"])
def test_bytes_after_the_end_of_a_jpeg_are_no_error(tmp_path: Path, extra: bytes) -> None:
    # phones append a film, cameras a second picture: whatever bytes these hold, the image before them is whole
    whole, longer = tmp_path / "whole.jpg", tmp_path / "longer.jpg"
    whole.write_bytes(encoded(".jpg"))
    longer.write_bytes(encoded(".jpg") + extra)
    assert_array_equal(read_image(longer), read_image(whole))


@pytest.mark.parametrize("suffix", ALL)
def test_an_empty_file_is_an_error_that_names_it(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.touch()
    with pytest.raises(SeguqError) as error:
        read_image(path)
    assert_one_sentence_that_names(error, path)


@pytest.mark.parametrize("suffix", ALL)
def test_text_under_the_name_of_an_image_is_an_error_that_names_it(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_text("<html>404: this page was not found</html>\n" * 20)
    with pytest.raises(SeguqError) as error:
        read_image(path)
    assert_one_sentence_that_names(error, path)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    with pytest.raises(SeguqError) as error:
        read_image(path)
    assert_one_sentence_that_names(error, path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_tiff_with_a_single_value_that_is_not_finite_is_an_error_that_names_it(
    tmp_path: Path, value: float, dtype: type
) -> None:
    pixels = floats(HEIGHT, WIDTH, 5).astype(dtype)
    pixels[7, 9, 4] = value
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", planarconfig="contig")
    with pytest.raises(SeguqError, match=r"a\.tif.*NaN"):
        read_image(tmp_path / "a.tif")


def test_a_value_too_large_for_single_precision_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.full((HEIGHT, WIDTH), 1e300))
    with pytest.raises(SeguqError, match=r"a\.tif"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint32, np.complex64])
def test_a_tiff_of_another_pixel_type_is_an_error_that_names_file_and_type(tmp_path: Path, dtype: type) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.ones((HEIGHT, WIDTH), dtype))
    with pytest.raises(SeguqError, match=rf"a\.tif.*{np.dtype(dtype).name}"):
        read_image(tmp_path / "a.tif")


def test_a_tiff_of_four_dimensions_is_an_error_that_names_file_and_shape(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", random_pixels(5, HEIGHT, WIDTH, 3), photometric="rgb")
    with pytest.raises(SeguqError, match=r"a\.tif.*\(5, 40, 48, 3\)"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(("has", "wanted"), [(3, 1), (3, 4), (5, 3), (5, 4), (2, 3)])
def test_other_channels_than_wanted_are_an_error_that_names_file_and_both_counts(
    tmp_path: Path, has: int, wanted: int
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", floats(HEIGHT, WIDTH, has), photometric="minisblack", planarconfig="contig")
    with pytest.raises(SeguqError, match=rf"a\.tif has {has} channels, but {wanted}"):
        read_image(tmp_path / "a.tif", wanted)


# ---- masks ----


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_an_index_mask_is_read_as_stored(tmp_path: Path, suffix: str, classes: Classes) -> None:
    mask = random_mask(HEIGHT, WIDTH, classes=3)
    mask[0, :5] = 255
    got = read_mask(write(tmp_path / f"m{suffix}", mask), classes)
    assert_array_equal(got, mask.astype(np.int64), strict=True)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_palette_png_gives_its_indices_not_its_colors(tmp_path: Path, bits: int, classes: Classes) -> None:
    mask = random_mask(HEIGHT, WIDTH, classes=2)
    image = Image.fromarray(mask).convert("P")
    image.putpalette([200, 10, 10, 90, 80, 70])
    image.save(tmp_path / "m.png", bits=bits)
    assert_array_equal(read_mask(tmp_path / "m.png", classes), mask)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_a_mask_of_one_bit_gives_0_and_1(tmp_path: Path, suffix: str, classes: Classes) -> None:
    mask = random_mask(HEIGHT, WIDTH).astype(bool)
    assert_array_equal(read_mask(write(tmp_path / f"m{suffix}", mask), classes), mask.astype(np.int64), strict=True)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_16_bit_mask_is_read_as_stored(tmp_path: Path, suffix: str, classes: Classes) -> None:
    mask = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH)).astype(np.uint16)
    assert_array_equal(read_mask(write(tmp_path / f"m{suffix}", mask), classes), mask)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_an_rgb_mask_gives_the_index_of_each_color(tmp_path: Path, suffix: str, classes: Classes) -> None:
    mask = random_mask(HEIGHT, WIDTH, classes=3)
    path = write(tmp_path / f"m{suffix}", np.array(classes.colors, np.uint8)[mask])
    assert_array_equal(read_mask(path, classes), mask.astype(np.int64), strict=True)


def test_the_alpha_channel_of_a_color_mask_does_not_matter(tmp_path: Path, classes: Classes) -> None:
    mask = random_mask(HEIGHT, WIDTH, classes=3)
    rgba = np.dstack([np.array(classes.colors, np.uint8)[mask], random_pixels(HEIGHT, WIDTH)])
    assert_array_equal(read_mask(write(tmp_path / "m.png", rgba), classes), mask)


def test_the_ignore_color_gives_the_ignore_index(tmp_path: Path, classes: Classes) -> None:
    rgb = np.zeros(RGB, np.uint8)
    rgb[3:5, 6:9] = 255
    expected = np.zeros((HEIGHT, WIDTH), np.int64)
    expected[3:5, 6:9] = classes.ignore_index
    assert_array_equal(read_mask(write(tmp_path / "m.png", rgb), classes), expected)


def test_a_color_of_no_class_is_an_error_that_names_file_and_color(tmp_path: Path, classes: Classes) -> None:
    rgb = np.zeros(RGB, np.uint8)
    rgb[-1, -1] = (3, 2, 1)
    with pytest.raises(SeguqError, match=r"m\.png.*\[3, 2, 1\]"):
        read_mask(write(tmp_path / "m.png", rgb), classes)


def test_a_float_mask_of_whole_numbers_gives_class_indices(tmp_path: Path, classes: Classes) -> None:
    mask = random_mask(HEIGHT, WIDTH, classes=3)
    tifffile.imwrite(tmp_path / "m.tif", mask.astype(np.float32))
    assert_array_equal(read_mask(tmp_path / "m.tif", classes), mask.astype(np.int64), strict=True)


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf])
def test_a_float_mask_with_a_value_that_is_no_whole_number_is_an_error_that_names_it(
    tmp_path: Path, value: float, classes: Classes
) -> None:
    mask = np.ones((HEIGHT, WIDTH), np.float32)
    mask[3, 4] = value
    tifffile.imwrite(tmp_path / "m.tif", mask)
    with pytest.raises(SeguqError, match=r"m\.tif.*whole numbers"):
        read_mask(tmp_path / "m.tif", classes)


@pytest.mark.parametrize("kept", [0, 0.02, 0.5, 0.97])
@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp"])
def test_a_cut_off_mask_is_an_error_that_names_the_file(
    tmp_path: Path, suffix: str, kept: float, classes: Classes
) -> None:
    path = write(tmp_path / f"m{suffix}", random_pixels(HEIGHT, WIDTH))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(SeguqError) as error:
        read_mask(path, classes)
    assert_one_sentence_that_names(error, path)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp"])
def test_text_under_the_name_of_a_mask_is_an_error_that_names_it(tmp_path: Path, suffix: str, classes: Classes) -> None:
    path = tmp_path / f"m{suffix}"
    path.write_text("not a mask at all, only text\n" * 20)
    with pytest.raises(SeguqError) as error:
        read_mask(path, classes)
    assert_one_sentence_that_names(error, path)


@pytest.mark.parametrize("what", ["image", "mask"])
def test_no_byte_of_a_png_can_change_and_give_other_pixels(tmp_path: Path, what: str) -> None:
    pixels = random_mask(12, 14) if what == "mask" else random_pixels(8, 9, 3)
    read: Any = (lambda path: read_mask(path, Classes.unnamed(256, -1))) if what == "mask" else read_image
    whole = write(tmp_path / "a.png", pixels).read_bytes()
    for at in range(len(whole)):
        (tmp_path / "a.png").write_bytes(bytes(byte ^ 16 * (i == at) for i, byte in enumerate(whole)))
        with contextlib.suppress(SeguqError):
            assert_array_equal(read(tmp_path / "a.png"), pixels)
