"""Readers of windows: the pixels that the transform of a data module would give."""

import numpy as np
import pytest
import torch

from seguq.core.errors import SeguqError, UsageError
from seguq.data import ArrayReader, Normalization, RasterReader
from seguq.data.transforms import evaluation_transform

NORMALIZATION = Normalization((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))


def pixels(dtype=np.uint8, shape=(40, 50, 3)):
    top = 1.0 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
    return (np.random.default_rng(0).random(shape) * top).astype(dtype)


def written(path, array, **settings):
    rasterio = pytest.importorskip("rasterio")
    settings = {"driver": "GTiff", "dtype": array.dtype, "count": array.shape[2], **settings}
    with rasterio.open(path, "w", height=array.shape[0], width=array.shape[1], **settings) as file:
        file.write(array.transpose(2, 0, 1))
    return path


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("kind", ["array", "raster", "tiled raster"])
def test_a_window_is_normalized_as_a_data_module_does(tmp_path, dtype, kind):
    array = pixels(dtype)
    if kind == "array":
        reader = ArrayReader(array, NORMALIZATION)
    else:
        tiles = {"tiled": True, "blockxsize": 16, "blockysize": 16} if kind == "tiled raster" else {}
        reader = RasterReader(written(tmp_path / "a.tif", array, **tiles), NORMALIZATION)
    assert reader.size == (40, 50)
    expected = evaluation_transform(NORMALIZATION)(image=array)["image"][3:13, 7:29].transpose(2, 0, 1)
    found = reader.read(3, 7, 10, 22)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_file_that_is_mapped_is_known_by_its_path(tmp_path):
    np.save(tmp_path / "a.npy", pixels())
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert ArrayReader(mapped).name.startswith(f"{tmp_path / 'a.npy'} of ")
    assert ArrayReader(mapped, name="mine").name == "mine"
    assert torch.equal(ArrayReader(mapped).read(0, 0, 5, 5), ArrayReader(pixels()).read(0, 0, 5, 5))


def test_an_array_in_memory_is_known_by_all_of_its_pixels():
    other = pixels()
    other[21, 33, 1] += 1
    assert ArrayReader(pixels()).name == ArrayReader(pixels().copy()).name != ArrayReader(other).name
    assert ArrayReader(pixels().T).name != ArrayReader(np.ascontiguousarray(pixels().T.reshape(50, 40, 3))).name


def test_something_else_than_an_array_is_refused():
    with pytest.raises(UsageError, match="must be a numpy array, but is a list"):
        ArrayReader([[0.0]])


def test_one_channel_may_come_without_its_axis():
    assert ArrayReader(pixels(shape=(40, 50))).read(0, 0, 5, 6).shape == (1, 5, 6)


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_bands_are_chosen_by_number(tmp_path):
    array = pixels(np.uint16, (40, 50, 5))
    reader = RasterReader(written(tmp_path / "a.tif", array), bands=[4, 2, 1])
    np.testing.assert_allclose(reader.read(0, 0, 9, 9), array[:9, :9, [3, 1, 0]].transpose(2, 0, 1) / 65535, atol=1e-6)
    with pytest.raises(UsageError, match=r"bands=\[0\] must be among the bands of .*, 1 to 5"):
        RasterReader(tmp_path / "a.tif", bands=[0])


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_pixels_without_data_are_given_the_mean(tmp_path):
    array = pixels(np.int16, (20, 30, 3))
    array[5:9, 5:9, 1] = -9999
    reader = RasterReader(written(tmp_path / "a.tif", array, nodata=-9999), NORMALIZATION)
    found = reader.read(0, 0, 20, 30)
    assert (found[1, 5:9, 5:9] == 0).all() and (found[0, 5:9, 5:9] != 0).all()
    floats = pixels(np.float32, (20, 30, 1))
    floats[3, 4] = np.nan
    found = RasterReader(written(tmp_path / "b.tif", floats)).read(0, 0, 20, 30)
    assert found[0, 3, 4] == 0 and torch.isfinite(found).all()


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_what_is_in_an_archive_is_read_where_it_is(tmp_path):
    import zipfile

    path = written(tmp_path / "a.tif", pixels())
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(path, "a.tif")
    reader = RasterReader(f"/vsizip/{tmp_path}/a.zip/a.tif")
    assert torch.equal(reader.read(1, 2, 5, 6), RasterReader(path).read(1, 2, 5, 6))


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_bands_that_are_no_channels_are_refused(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    with pytest.raises(UsageError, match="the array has pixels of type int64: make them 8 or 16 bit, or float"):
        ArrayReader(np.zeros((4, 4), np.int64))
    path = written(tmp_path / "p.tif", pixels(shape=(8, 8, 1)), photometric="palette")
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {0: (255, 0, 0, 255)})
    with pytest.raises(UsageError, match="holds palette indices, no colors"):
        RasterReader(path)
    assert RasterReader(written(tmp_path / "one.tif", pixels()), bands=2).read(0, 0, 4, 4).shape == (1, 4, 4)


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_wrong_arguments(tmp_path):
    with pytest.raises(UsageError, match=r"must be \(H, W\) or \(H, W, channels\), but the array has shape \(3,\)"):
        ArrayReader(np.zeros(3))
    with pytest.raises(UsageError, match="the normalization is of 3 channels, but the array has 4"):
        ArrayReader(pixels(shape=(8, 8, 4)), NORMALIZATION)
    pytest.importorskip("rasterio")
    with pytest.raises(UsageError, match=r"raster .*no\.tif does not exist"):
        RasterReader(tmp_path / "no.tif")
    (tmp_path / "bad.tif").write_bytes(b"II*\0 nothing")
    with pytest.raises(UsageError, match=r"bad\.tif cannot be read as a raster"):
        RasterReader(tmp_path / "bad.tif")
    with pytest.raises(UsageError, match=r"the normalization is of 3 channels, but .* has 4"):
        RasterReader(written(tmp_path / "four.tif", pixels(shape=(8, 8, 4))), NORMALIZATION)


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_a_file_that_is_cut_off_says_where(tmp_path):
    path = written(tmp_path / "a.tif", pixels(shape=(400, 500, 3)), tiled=True, blockxsize=64, blockysize=64)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    reader = RasterReader(path)
    with pytest.raises(SeguqError, match=r"a\.tif cannot be read at row 350, column 400: the file is damaged"):
        reader.read(350, 400, 50, 50)


def test_without_rasterio_the_way_to_it_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rasterio", None)
    with pytest.raises(UsageError, match=r"needs rasterio: pip install 'seguq\[gis\]'"):
        RasterReader("a.tif")
