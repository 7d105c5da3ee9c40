"""Which image is which, told from samplers alone."""

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from seguq.data.positions import PositionCounter


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(5))


def run(loader, rank=0, processes=1):
    counter = PositionCounter(loader, rank, processes)
    return [(counter.take(len(batch)), batch.tolist()) for batch in loader]


def test_a_loader_in_order_gives_the_indices_of_its_data_set():
    for positions, batch in run(DataLoader(range(7), batch_size=3)):
        assert positions.indices == positions.numbers == tuple(batch)
        assert all(positions.real)


def test_a_list_of_batches_gives_its_indices():
    for positions, batch in run(DataLoader(range(5), batch_sampler=[[4, 1], [0], [3, 2]])):
        assert positions.indices == tuple(batch)


@pytest.mark.parametrize(
    "loader", [DataLoader(range(6), batch_size=2, shuffle=True), DataLoader(Stream(), batch_size=2)]
)
def test_where_the_order_is_not_known_there_are_running_numbers(loader):
    found = [positions for positions, _ in run(loader)]
    assert [number for positions in found for number in positions.numbers] == list(range(len(list(loader.dataset))))
    assert all(positions.indices is None for positions in found)


def test_no_random_number_is_drawn():
    loader = DataLoader(range(6), batch_size=2, shuffle=True)
    before = torch.get_rng_state()
    PositionCounter(loader).take(2)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("images", [5, 6, 7, 2])
def test_over_three_processes_every_image_is_real_exactly_once(images, shuffle):
    real, numbers, data = [], [], range(images)
    for rank in range(3):
        sampler = DistributedSampler(data, num_replicas=3, rank=rank, shuffle=shuffle)
        for positions, batch in run(DataLoader(data, batch_size=2, sampler=sampler), rank, 3):
            assert positions.indices == tuple(batch)
            real += [index for index, counted in zip(batch, positions.real, strict=True) if counted]
            numbers += positions.numbers
    assert sorted(real) == list(range(images))
    assert len(set(numbers)) == len(numbers)


def test_over_processes_running_numbers_are_unique():
    numbers = [
        n
        for rank in range(2)
        for positions, _ in run(DataLoader(Stream(), batch_size=2), rank, 2)
        for n in positions.numbers
    ]
    assert len(set(numbers)) == len(numbers) == 10


def test_what_is_no_loader_has_running_numbers():
    assert PositionCounter(iter([1])).take(2).numbers == (0, 1)
