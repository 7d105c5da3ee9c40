"""What is drawn of many images."""

import contextlib

import torch

from seguq.calibration.sample import Reservoir


def filled(batch, most=64, modes=(contextlib.nullcontext,)):
    """A reservoir that was given 1000 items in batches, in one mode after the other, and where the items lay."""
    drawn = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    items, found, places = torch.arange(1000.0).view(-1, 1).expand(-1, 3), Reservoir(most), set()
    for number, start in enumerate(range(0, 1000, batch)):
        with modes[number % len(modes)]():
            part = slice(start, start + batch)
            below = drawn[part] < found.rate
            found.add(drawn[part][below], {"logits": items[part][below]})
        places |= {column.untyped_storage().data_ptr() for column in found.items().values()}
    return found, places


def test_which_items_are_kept_does_not_depend_on_batches_or_modes():
    expected = filled(1000)[0].items()
    assert 32 <= len(expected["drawn"]) <= 64
    for batch in (1, 7, 300):
        for modes in ((contextlib.nullcontext,), (torch.inference_mode, contextlib.nullcontext)):
            found = filled(batch, modes=modes)[0].items()
            assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_items_are_not_kept_in_a_piece_for_each_batch():
    found, places = filled(1, most=500)
    assert len(found.items()["drawn"]) > 250
    assert len(places) <= 2 * 10  # of two columns, each time twice as large
