import io
import random

import numpy as np
import pytest
import torch

import seguq
from seguq.core.errors import SeguqError
from seguq.inference import UncertaintyMaps


def some_maps(multilabel=False, probs=True, **changes):
    generator = torch.Generator().manual_seed(0)
    p = torch.softmax(torch.randn(2, 3, 4, 5, generator=generator), 1)
    settings = {
        "probs": p if probs else None,
        "maps": {name: torch.rand(2, 4, 5, generator=generator) for name in ("variance", "energy")},
        "image_ids": ["a/b ä", "c"],
        "estimator": "mc_dropout(layers=all)",
        "prediction": None if probs else p.argmax(1),
        "num_classes": None if probs else 3,
        "multilabel": multilabel,
    }
    return UncertaintyMaps(**{**settings, **changes})


saved_kinds = pytest.mark.parametrize(
    "maps",
    [some_maps(), some_maps(multilabel=True), some_maps(probs=False)],
    ids=["multiclass", "multilabel", "without probs"],
)


def test_the_prediction_is_the_class_of_the_largest_probability():
    maps = some_maps()
    assert torch.equal(maps.prediction, maps.probs.argmax(1))


def test_a_multilabel_prediction_is_one_where_a_label_is_above_a_half():
    maps = some_maps(multilabel=True)
    assert torch.equal(maps.prediction, (maps.probs > 0.5).long())


def test_names_are_in_the_order_of_the_maps():
    assert some_maps().names == ("variance", "energy")


def test_a_map_is_had_by_its_name():
    values = torch.rand(2, 4, 5)
    assert some_maps(maps={"variance": values})["variance"] is values


def test_a_name_is_in_the_maps_or_not():
    maps = some_maps()
    assert ("variance" in maps, "mutual_information" in maps) == (True, False)


def test_the_length_is_the_number_of_images():
    assert len(some_maps()) == 2


def test_ids_become_a_tuple_of_strings():
    assert some_maps(image_ids=[3, 4]).image_ids == ("3", "4")


@pytest.mark.parametrize(
    ("name", "holders"),
    [
        ("mutual_information", r"estimators with samples \(MCDropout, DeepEnsemble, SWAG\)"),
        ("max_logit", "Deterministic"),
        ("least_confidence", "every estimator"),
    ],
)
def test_a_map_that_is_not_there_is_a_key_error_that_says_which_estimators_have_it(name, holders):
    with pytest.raises(KeyError, match=rf"'{name}'.*mc_dropout\(layers=all\).*variance, energy.*{holders}"):
        some_maps()[name]


def test_an_unknown_name_is_a_key_error_that_lists_the_maps():
    with pytest.raises(KeyError, match=r"'surprise' is no measure.*variance, energy"):
        some_maps()["surprise"]


def test_maps_of_another_number_of_images_than_ids_are_an_error_with_both():
    with pytest.raises(SeguqError, match=r"'variance' holds 3 images, but there are 2 image ids"):
        some_maps(maps={"variance": torch.zeros(3, 4, 5)})


def test_probs_of_another_number_of_images_than_ids_are_an_error_with_both():
    with pytest.raises(SeguqError, match=r"probs holds? 3 images, but there are 2 image ids"):
        UncertaintyMaps(torch.zeros(3, 3, 4, 5), {}, ["a", "b"])


@pytest.mark.parametrize("missing", [{"prediction": None}, {"num_classes": None}])
def test_maps_without_probs_need_prediction_and_number_of_classes(missing):
    with pytest.raises(SeguqError, match=r"prediction= and num_classes="):
        some_maps(probs=False, **missing)


def test_asking_maps_without_probs_for_them_is_an_error_that_says_why():
    with pytest.raises(SeguqError, match="saved without probabilities"):
        some_maps(probs=False).probs  # noqa: B018


def test_repr_names_estimator_shape_classes_and_maps():
    text = repr(some_maps())
    assert text == "UncertaintyMaps(mc_dropout(layers=all), prediction (2, 4, 5), 3 classes, maps variance, energy)"


# other devices


def alike(one, other, probs=True):
    """Whether two maps hold the same."""
    return (
        one.names == other.names
        and all(torch.equal(one[name], other[name]) for name in one.names)
        and torch.equal(one.prediction, other.prediction)
        and (one.image_ids, one.estimator, one.num_classes, one.multilabel)
        == (other.image_ids, other.estimator, other.num_classes, other.multilabel)
        and (not probs or torch.equal(one.probs, other.probs))
    )


@saved_kinds
def test_to_moves_every_tensor(maps):
    moved = maps.to("meta")
    tensors = [moved[name] for name in moved.names] + ([moved.probs] if maps._probs is not None else [])
    assert {tensor.device.type for tensor in [*tensors, moved.prediction]} == {"meta"}


def test_to_leaves_the_maps_where_they_were():
    maps = some_maps()
    maps.to("meta")
    assert (maps.probs.device.type, maps["variance"].device.type) == ("cpu", "cpu")


@saved_kinds
def test_cpu_gives_the_same_maps(maps):
    assert alike(maps.cpu(), maps, probs=maps._probs is not None)


# one by one


@saved_kinds
def test_split_gives_the_maps_of_each_image(maps):
    for i, one in enumerate(maps.split()):
        probs = None if maps._probs is None else maps.probs[i : i + 1]
        expected = UncertaintyMaps(
            probs,
            {name: maps[name][i : i + 1] for name in maps.names},
            maps.image_ids[i : i + 1],
            maps.estimator,
            prediction=maps.prediction[i : i + 1],
            num_classes=maps.num_classes,
            multilabel=maps.multilabel,
        )
        assert alike(one, expected, probs=probs is not None)


def test_split_gives_as_many_as_there_are_images():
    assert [one.image_ids for one in some_maps().split()] == [("a/b ä",), ("c",)]


# on disk


@saved_kinds
def test_maps_that_were_saved_are_the_same_when_loaded(tmp_path, maps):
    maps.save(tmp_path / "maps.npz")
    assert alike(UncertaintyMaps.load(tmp_path / "maps.npz"), maps, probs=maps._probs is not None)


def test_maps_saved_without_probs_are_the_same_but_for_them(tmp_path):
    maps = some_maps()
    maps.save(tmp_path / "maps.npz", probs=False)
    loaded = UncertaintyMaps.load(tmp_path / "maps.npz")
    assert alike(loaded, maps, probs=False)
    with pytest.raises(SeguqError, match="saved without probabilities"):
        loaded.probs  # noqa: B018


def test_maps_saved_without_probs_take_less_room(tmp_path):
    maps = UncertaintyMaps(torch.rand(1, 5, 64, 64), {"variance": torch.rand(1, 64, 64)}, ["a"])
    maps.save(tmp_path / "with.npz")
    maps.save(tmp_path / "without.npz", probs=False)
    assert (tmp_path / "without.npz").stat().st_size < (tmp_path / "with.npz").stat().st_size / 3


def test_maps_that_were_loaded_can_be_saved_again(tmp_path):
    maps = some_maps()
    maps.save(tmp_path / "one.npz", probs=False)
    UncertaintyMaps.load(tmp_path / "one.npz").save(tmp_path / "two.npz")
    assert alike(UncertaintyMaps.load(tmp_path / "two.npz"), maps, probs=False)


@pytest.mark.parametrize("classes", [2, 256, 257, 1000])
def test_a_prediction_of_many_classes_is_the_same_when_loaded(tmp_path, classes):
    prediction = torch.tensor([[[0, classes - 1]]])
    UncertaintyMaps(None, {}, ["a"], prediction=prediction, num_classes=classes).save(tmp_path / "maps.npz")
    assert torch.equal(UncertaintyMaps.load(tmp_path / "maps.npz").prediction, prediction)


def test_a_file_holds_float32(tmp_path):
    some_maps(maps={"variance": torch.rand(2, 4, 5, dtype=torch.float64)}).save(tmp_path / "maps.npz")
    assert UncertaintyMaps.load(tmp_path / "maps.npz")["variance"].dtype == torch.float32


def test_a_file_can_be_read_by_numpy_alone(tmp_path):
    maps = some_maps()
    maps.save(tmp_path / "maps.npz")
    with np.load(tmp_path / "maps.npz", allow_pickle=False) as arrays:
        assert np.array_equal(arrays["map/variance"], maps["variance"].numpy())


def test_saving_leaves_nothing_else_in_the_folder(tmp_path):
    some_maps().save(tmp_path / "maps.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["maps.npz"]


@pytest.mark.parametrize("name", ["maps.npy", "maps", "maps.npz.tmp"])
def test_another_suffix_is_an_error_that_names_the_right_one(tmp_path, name):
    with pytest.raises(SeguqError, match=r"\.npz"):
        some_maps().save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_missing_is_an_error_that_names_it(tmp_path):
    with pytest.raises(SeguqError, match=r"nowhere\.npz does not exist"):
        UncertaintyMaps.load(tmp_path / "nowhere.npz")


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def npy():
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 100, b"some text\n", b"PK\x03\x04 and no more", npz(probs=np.zeros(3)), npz(), npy()],
    ids=["empty", "zeros", "text", "half a zip", "other arrays", "no arrays", "one array"],
)
def test_another_kind_of_file_is_an_error_that_names_it(tmp_path, content):
    (tmp_path / "maps.npz").write_bytes(content)
    with pytest.raises(SeguqError, match=r"maps\.npz cannot be read as saved maps"):
        UncertaintyMaps.load(tmp_path / "maps.npz")


def test_a_file_with_a_pickle_in_it_is_not_run(tmp_path):
    (tmp_path / "maps.npz").write_bytes(npz(meta=np.array([1, 3, 0]), image_ids=np.array([object()], dtype=object)))
    with pytest.raises(SeguqError, match=r"maps\.npz cannot be read"):
        UncertaintyMaps.load(tmp_path / "maps.npz")


def test_a_file_that_was_cut_off_anywhere_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "maps.npz"
    some_maps().save(path)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 97):
        path.write_bytes(whole[:length])
        with pytest.raises(SeguqError, match=r"maps\.npz"):
            UncertaintyMaps.load(path)


def test_a_damaged_byte_is_an_error_that_names_the_file_or_changes_nothing(tmp_path):
    path, maps = tmp_path / "maps.npz", some_maps()
    maps.save(path)
    whole, generator = path.read_bytes(), random.Random(0)
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            loaded = UncertaintyMaps.load(path)
        except SeguqError as error:
            assert "maps.npz" in str(error)
        else:
            # what is checked by no sum is the names of the arrays and the order of the zip, never their content
            shared = set(loaded.names) & set(maps.names)
            assert all(torch.equal(loaded[name], maps[name]) for name in shared)


@pytest.mark.parametrize(
    ("offset", "value"),
    [(6, 99), (8, 1), (10, 77), (10, 8), (10, 12), (10, 14)],
    ids=["version of zip", "encrypted", "unknown compression", "deflate", "bzip2", "lzma"],
)
def test_damage_in_the_directory_of_the_zip_is_an_error_that_names_the_file(tmp_path, offset, value):
    path = tmp_path / "maps.npz"
    some_maps().save(path)
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"PK\x01\x02") + offset] = value
    path.write_bytes(damaged)
    with pytest.raises(SeguqError, match=r"maps\.npz cannot be read"):
        UncertaintyMaps.load(path)


def test_another_schema_version_is_an_error_that_says_so(tmp_path):
    path = tmp_path / "maps.npz"
    some_maps().save(path)
    with np.load(path) as arrays:
        content = {name: arrays[name] for name in arrays.files}
    content["meta"][0] = 99
    np.savez(path, **content)
    with pytest.raises(SeguqError, match=r"maps\.npz.*another version.*schema 99"):
        UncertaintyMaps.load(path)


def test_the_package_hands_on_the_maps():
    assert seguq.UncertaintyMaps is UncertaintyMaps
