"""Regions kept on disk: cut once, and cut anew wherever anything differs or a file is not what was written."""

import io
import multiprocessing

import numpy as np
import pytest
import torch

from seguq.core import log
from seguq.core.files import TEMPORARY_PREFIX
from seguq.regions import Grid, Partition, Superpixels, cached
from seguq.regions import cache as module


class Counting(Partition):
    """Bright and dark pixels; it counts how often it is asked."""

    needs_image = True
    of_image_alone = True
    calls = 0

    def __init__(self, above=100, names=("a",)):
        self.above, self.names = above, names

    def __call__(self, image, maps=None):
        assert maps is None
        type(self).calls += 1
        return torch.from_numpy((np.asarray(image)[..., 0] > self.above).astype(np.int32) - 1)


@pytest.fixture(autouse=True)
def _from_nought():
    Counting.calls = 0


def picture(seed=0, dtype=np.uint8, shape=(9, 12, 3)):
    return np.random.default_rng(seed).integers(0, 200, shape).astype(dtype)


def test_an_image_is_cut_once(tmp_path):
    for _ in range(3):
        kept = cached(Counting(), tmp_path)
        assert torch.equal(kept(picture()), Counting()(picture()))
    assert Counting.calls == 1 + 3  # those of the test
    assert kept(picture()).dtype == torch.int32
    kept(picture())[:] = 7  # what was handed out is the caller's
    assert torch.equal(kept(picture()), Counting()(picture()))


def test_a_tensor_finds_the_file_of_the_same_array(tmp_path):
    kept = cached(Counting(), tmp_path)
    kept(picture())
    kept(torch.from_numpy(picture()).permute(2, 0, 1))
    assert Counting.calls == 1


OTHERS = {
    "pixels": (Counting(), picture(1)),
    "one pixel": (Counting(), np.where(np.arange(324).reshape(9, 12, 3) == 323, 1, picture()).astype(np.uint8)),
    "type": (Counting(), picture().view(np.int8)),
    "shape": (Counting(), picture().reshape(12, 9, 3)),
    "channels": (Counting(), picture().reshape(9, 18, 2)),
    "argument": (Counting(101), picture()),
    "type of an argument": (Counting(100.0), picture()),
    "text within an argument": (Counting(names=("b",)), picture()),
    "class": (type("Other", (Counting,), {})(), picture()),
}


@pytest.mark.parametrize("other", OTHERS)
def test_whatever_differs_is_cut_anew(tmp_path, other):
    cached(Counting(), tmp_path)(picture())
    partition, image = OTHERS[other]
    assert torch.equal(cached(partition, tmp_path)(image), partition(image))
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["_code", "_version"])
def test_other_code_or_another_version_of_a_package_is_cut_anew(tmp_path, monkeypatch, name):
    cached(Counting(), tmp_path)(picture())
    monkeypatch.setattr(module, name, lambda _: "another")
    cached(Counting(), tmp_path)(picture())
    assert Counting.calls == 2 and len(list(tmp_path.iterdir())) == 2


class Reading(Counting):
    needs = ("variance",)


class Blind(Counting):
    needs_image = False


class Silent(Counting):
    of_image_alone = False


@pytest.mark.parametrize(
    "partition",
    [Grid(4), Reading(), Blind(), Silent(), Counting(above=torch.tensor(3)), Counting(names=[len])],
    ids=["grid", "reads a map", "looks at no image", "does not say so", "a tensor", "a function"],
)
def test_what_does_not_follow_from_the_image_and_plain_arguments_is_not_kept(tmp_path, partition):
    assert cached(partition, tmp_path) is partition


def test_a_class_without_a_source_is_not_kept(tmp_path):
    made = {}
    exec("from tests.regions.test_cache import Counting\nclass Typed(Counting): pass", made)
    made["Typed"].__module__ = "__console__"
    partition = made["Typed"]()
    assert cached(partition, tmp_path) is partition


def test_a_file_with_any_one_byte_changed_gives_the_same_regions(tmp_path):
    kept, expected = cached(Counting(), tmp_path), Counting()(picture())
    kept(picture())
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        assert torch.equal(kept(picture()), expected), place


def npz(**arrays):
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


SPOILED = {
    "empty": b"",
    "half": None,
    "another file": b"\x89PNG",
    "other labels": npz(other=np.zeros((9, 12), np.int32)),
    "another size": npz(labels=np.zeros((12, 9), np.int32)),
    "another type": npz(labels=np.zeros((9, 12))),
    "below -1": npz(labels=np.full((9, 12), -2, np.int32)),
    "huge": npz(labels=np.zeros((90, 120), np.int32)),
    "objects": npz(labels=np.full((9, 12), None)),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_a_file_that_is_not_what_was_written_is_replaced(tmp_path, kind):
    kept = cached(Counting(), tmp_path)
    kept(picture())
    (file,) = tmp_path.iterdir()
    good = file.read_bytes()
    file.write_bytes(good[: len(good) // 2] if SPOILED[kind] is None else SPOILED[kind])
    assert torch.equal(kept(picture()), Counting()(picture()))
    calls = Counting.calls
    assert torch.equal(kept(picture()), cached(Counting(), tmp_path)(picture()))
    assert Counting.calls == calls


def test_a_folder_that_cannot_be_written_costs_time_and_is_said_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(log, "_said", set())
    monkeypatch.setattr(log.logger, "propagate", True)
    (tmp_path / "kept").write_text("a file")
    kept = cached(Counting(), tmp_path / "kept")
    for seed in (0, 1):
        assert torch.equal(kept(picture(seed)), Counting()(picture(seed)))
    (record,) = caplog.records
    assert "they cannot be kept in" in record.message and "kept" in record.message


def test_a_partition_that_does_not_keep_to_the_rules_writes_nothing(tmp_path):
    class Wrong(Counting):
        def __call__(self, image, maps=None):
            return torch.zeros(1, 1, dtype=torch.int32)

    cached(Wrong(), tmp_path)(picture())
    assert list(tmp_path.iterdir()) == []


def _cut(folder, barrier, seeds):
    kept = cached(Superpixels(20), folder)
    images = [picture(seed, shape=(40, 50, 3)) for seed in seeds]
    barrier.wait()
    for image in images:
        kept(image)


def test_processes_that_meet_leave_one_good_file_an_image_for_all_others(tmp_path, monkeypatch):
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(3)
    started = [fork.Process(target=_cut, args=(tmp_path, barrier, range(6))) for _ in range(3)]
    for process in started:
        process.start()
    for process in started:
        process.join()
        assert process.exitcode == 0
    files = list(tmp_path.iterdir())
    assert len(files) == 6 and not [file for file in files if file.name.startswith(TEMPORARY_PREFIX)]
    images = [picture(seed, shape=(40, 50, 3)) for seed in range(6)]
    expected = [Superpixels(20)(image) for image in images]
    monkeypatch.setattr(Superpixels, "__call__", None)  # all of them are read
    kept = cached(Superpixels(20), tmp_path)
    assert all(torch.equal(kept(image), labels) for image, labels in zip(images, expected, strict=True))
