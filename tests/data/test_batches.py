"""Other people's batches and model outputs."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from seguq.core.errors import SeguqError
from seguq.data import Batch, output_logits, unpack_batch

IMAGE = torch.rand(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))
MASK = torch.arange(96).reshape(2, 8, 6)
LOGITS = torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(1))
SMALL = torch.randn(2, 4, 4, 3, generator=torch.Generator().manual_seed(2))


# ---- batches ----


@pytest.mark.parametrize("batch", [IMAGE, (IMAGE,), [IMAGE], {"image": IMAGE}, {"pixel_values": IMAGE}])
def test_images_alone_come_without_mask_and_ids(batch: Any) -> None:
    got = unpack_batch(batch)
    assert got.image is IMAGE
    assert (got.mask, got.image_id) == (None, None)


@pytest.mark.parametrize("kind", [tuple, list])
def test_a_pair_is_image_and_mask(kind: type) -> None:
    got = unpack_batch(kind([IMAGE, MASK]))
    assert got.image is IMAGE
    assert got.mask is MASK


@pytest.mark.parametrize("kind", [tuple, list])
def test_texts_beside_an_image_are_ids(kind: type) -> None:
    got = unpack_batch((IMAGE, kind(["a", "b"])))
    assert got.image is IMAGE
    assert got.mask is None
    assert got.image_id == ("a", "b")


@pytest.mark.parametrize("kind", [tuple, list])
def test_the_third_item_is_the_ids(kind: type) -> None:
    assert unpack_batch(kind([IMAGE, MASK, ["a", "b"]])).image_id == ("a", "b")


@pytest.mark.parametrize("key", ["image", "images", "pixel_values", "input", "inputs", "x"])
def test_an_image_is_found_under_its_usual_keys(key: str) -> None:
    assert unpack_batch({key: IMAGE, "mask": MASK}).image is IMAGE


@pytest.mark.parametrize("key", ["mask", "masks", "labels", "label", "target", "targets", "y"])
def test_a_mask_is_found_under_its_usual_keys(key: str) -> None:
    assert unpack_batch({"image": IMAGE, key: MASK}).mask is MASK


@pytest.mark.parametrize("key", ["image_id", "image_ids", "id", "ids", "name", "filename"])
def test_ids_are_found_under_their_usual_keys(key: str) -> None:
    assert unpack_batch({"image": IMAGE, key: ["a", "b"]}).image_id == ("a", "b")


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (torch.tensor([4, 5]), ("4", "5")),
        (torch.tensor([[4], [5]]), ("4", "5")),
        ([4, 5], ("4", "5")),
        ("only", ("only",)),
        (("a", "b"), ("a", "b")),
        (None, None),
    ],
)
def test_ids_of_any_kind_become_strings(ids: Any, expected: tuple[str, ...] | None) -> None:
    assert unpack_batch({"image": IMAGE, "image_id": ids}).image_id == expected


def test_keys_that_mean_nothing_here_are_left_alone() -> None:
    got = unpack_batch({"meta": [1, 2], "image": IMAGE, "weather": "rain"})
    assert got.image is IMAGE
    assert (got.mask, got.image_id) == (None, None)


def test_a_batch_of_this_kind_is_handed_on() -> None:
    batch = Batch(IMAGE, MASK, ("a", "b"))
    assert unpack_batch(batch) == batch


def test_volumes_are_taken_in() -> None:
    assert unpack_batch((torch.zeros(2, 1, 4, 5, 6), torch.zeros(2, 4, 5, 6))).image.ndim == 5


@pytest.mark.parametrize(
    ("batch", "met"),
    [
        ({"picture": IMAGE, "truth": MASK}, "'picture': a tensor (2, 3, 8, 6), 'truth': a tensor (2, 8, 6)"),
        ({"image": IMAGE, "mask": "no tensor"}, "'image': a tensor (2, 3, 8, 6), 'mask': a str"),
        ({"image": [IMAGE]}, "'image': a list of (a tensor (2, 3, 8, 6))"),
        ({}, "a dict of"),
        ((), "a tuple of ()"),
        ((IMAGE, MASK, ["a"], 3), "a tensor (2, 3, 8, 6), a tensor (2, 8, 6), a list of (a str), a int"),
        (("no", "tensors"), "a tuple of (a str, a str)"),
        ((torch.zeros(8, 6), MASK), "a tensor (8, 6)"),
        (torch.zeros(8, 6), "a tensor (8, 6)"),
        (None, "a NoneType"),
        (3.5, "a float"),
    ],
)
def test_a_batch_that_does_not_fit_is_an_error_that_shows_what_was_met(batch: Any, met: str) -> None:
    with pytest.raises(SeguqError) as error:
        unpack_batch(batch)
    assert met in str(error.value)
    assert "\n" not in str(error.value)


# ---- model outputs ----


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        {"logits": LOGITS},
        {"out": LOGITS, "aux": SMALL},
        OrderedDict(out=LOGITS),
        SimpleNamespace(logits=LOGITS, loss=None),
        (LOGITS, SMALL),
        [LOGITS],
        ({"out": LOGITS}, 3),
        (SimpleNamespace(logits=LOGITS),),
    ],
    ids=[
        "tensor",
        "dict-logits",
        "dict-out",
        "ordered-dict",
        "object",
        "tuple",
        "list",
        "tuple-of-dict",
        "tuple-of-object",
    ],
)
def test_logits_are_found_in_every_usual_output(output: Any) -> None:
    assert output_logits(output) is LOGITS
    assert output_logits(output, (8, 6)) is LOGITS


def test_logits_win_over_out() -> None:
    assert output_logits({"out": SMALL, "logits": LOGITS}) is LOGITS


def test_smaller_logits_are_resized_bilinearly_to_the_size_asked_for() -> None:
    expected = torch.nn.functional.interpolate(SMALL, size=(8, 6), mode="bilinear", align_corners=False)
    assert_close(output_logits({"out": SMALL}, (8, 6)), expected, rtol=0, atol=0)


def test_smaller_logits_are_left_alone_where_no_size_is_asked_for() -> None:
    assert output_logits(SMALL) is SMALL


def test_logits_of_volumes_are_resized_trilinearly() -> None:
    small = torch.randn(1, 2, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(small, size=(4, 6, 8), mode="trilinear", align_corners=False)
    assert_close(output_logits(small, (4, 6, 8)), expected, rtol=0, atol=0)


def test_resized_logits_carry_gradients() -> None:
    small = SMALL.clone().requires_grad_()
    output_logits(small, (8, 6)).sum().backward()
    assert small.grad is not None


def test_logits_without_space_keep_their_two_dimensions() -> None:
    assert output_logits(torch.zeros(2, 4), ()).shape == (2, 4)


def test_logits_that_cannot_be_resized_are_an_error_with_both_shapes() -> None:
    with pytest.raises(SeguqError, match=r"\(2, 4, 9\).*\(8, 6\)"):
        output_logits(torch.zeros(2, 4, 9), (8, 6))


@pytest.mark.parametrize(
    ("output", "met"),
    [
        ({"prediction": LOGITS}, "'prediction': a tensor (2, 4, 8, 6)"),
        ({"logits": "none"}, "'logits': a str"),
        (torch.zeros(3), "a tensor (3,)"),
        ((), "a tuple of ()"),
        (("no", LOGITS), "a tuple of (a str, a tensor (2, 4, 8, 6))"),
        (SimpleNamespace(scores=LOGITS), "a SimpleNamespace"),
        (None, "a NoneType"),
    ],
)
def test_an_output_without_logits_is_an_error_that_shows_what_was_met(output: Any, met: str) -> None:
    with pytest.raises(SeguqError) as error:
        output_logits(output)
    assert met in str(error.value)
    assert "forward=" in str(error.value)
