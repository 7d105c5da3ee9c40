"""Memory that runs out is told as such, whichever library says it and however."""

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from seguq.core.errors import SeguqError, UsageError
from seguq.core.out_of_memory import NotEnoughMemoryError, memory_for, ran_out_of_memory
from seguq.core.reading import reading

TOO_MUCH = {
    "NumPy": lambda: np.empty(2**50, np.uint8),
    "torch": lambda: torch.empty(2**50, dtype=torch.uint8),
    "OpenCV": lambda: cv2.resize(np.zeros((1, 1, 3), np.uint8), (2**24, 2**24)),
    "Python": lambda: bytes(2**50),
}
every_library = pytest.mark.parametrize("ask", TOO_MUCH.values(), ids=TOO_MUCH.keys())


@every_library
def test_it_is_known_what_is_wanted_and_how_much(ask):
    with pytest.raises(NotEnoughMemoryError) as caught, memory_for("image 'a'", "make it smaller"):
        ask()
    assert str(caught.value).startswith("not enough memory for image 'a'")
    assert str(caught.value).endswith(": make it smaller")


@every_library
def test_a_file_that_does_not_fit_is_not_called_damaged(ask):
    with pytest.raises(SeguqError, match=r"a\.ckpt does not fit into memory"), reading("a.ckpt", "a checkpoint"):
        ask()


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("not enough memory"), cv2.error("no")])
def test_other_errors_are_what_they_were(error):
    assert not ran_out_of_memory(error)
    with pytest.raises(type(error)) as caught, memory_for("image 'a'", "make it smaller"):
        raise error
    assert caught.value is error


class Failing(Dataset):
    """Raises, for each item, an error of ours."""

    def __init__(self, kind):
        self.kind = kind

    def __len__(self):
        return 1

    def __getitem__(self, index):
        try:
            raise KeyError("a")
        except KeyError as error:
            raise self.kind("a.png is damaged: by a\nline") from error


@pytest.mark.parametrize("kind", [SeguqError, UsageError, NotEnoughMemoryError])
def test_an_error_of_a_process_that_loads_data_arrives_as_its_sentence(kind):
    with pytest.raises(kind) as caught:
        list(DataLoader(Failing(kind), num_workers=1))
    assert str(caught.value) == r"a.png is damaged: by a\nline"
