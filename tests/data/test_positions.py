"""Which image is which, told from samplers alone."""

import lightning.pytorch
import lightning.pytorch.overrides.distributed
import pytest
import pytorch_lightning
import pytorch_lightning.overrides.distributed
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

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


def test_more_images_than_the_sampler_has_are_not_given_indices_of_others():
    counter = PositionCounter(DataLoader(range(3), batch_size=2))
    assert counter.take(2).indices == (0, 1)
    last = counter.take(2)
    assert (last.numbers, last.indices) == ((2, 3), None)


def test_a_loader_that_leaves_out_the_last_batch_gives_the_indices_of_the_others():
    for positions, batch in run(DataLoader(range(7), batch_size=3, drop_last=True)):
        assert positions.indices == tuple(batch)


def test_workers_make_no_difference():
    for positions, batch in run(DataLoader(range(7), batch_size=3, num_workers=2)):
        assert positions.indices == tuple(batch)


def test_a_sequential_sampler_of_ones_own_is_followed():
    class Backwards(SequentialSampler):
        def __iter__(self):
            return iter(range(len(self.data_source) - 1, -1, -1))

    data = range(5)
    for positions, batch in run(DataLoader(data, batch_size=2, sampler=Backwards(data))):
        assert positions.indices == tuple(batch)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DataLoader(range(6), batch_size=2, sampler=SubsetRandomSampler(range(4))),
        lambda: DataLoader(range(6), batch_size=2, sampler=WeightedRandomSampler([1.0] * 6, 6)),
        lambda: DataLoader(range(6), batch_sampler=Pairs(SequentialSampler(range(6)), 2, False)),
        lambda: DataLoader([torch.arange(2), torch.arange(2)], batch_size=None),
    ],
    ids=["a random part", "weighted", "batches of a class of one's own", "no batches"],
)
def test_of_samplers_that_are_not_known_there_are_running_numbers_only(make):
    found = [positions for positions, _ in run(make())]
    numbers = [number for positions in found for number in positions.numbers]
    assert numbers == list(range(len(numbers)))
    assert all(positions.indices is None and all(positions.real) for positions in found)


class Pairs(BatchSampler):
    """Its batches come in another order than its sampler's."""

    def __iter__(self):
        return reversed(list(super().__iter__()))


def test_a_distributed_sampler_that_drops_the_rest_repeats_no_image():
    data, real = range(7), []
    for rank in range(3):
        sampler = DistributedSampler(data, num_replicas=3, rank=rank, shuffle=False, drop_last=True)
        for positions, batch in run(DataLoader(data, batch_size=2, sampler=sampler), rank, 3):
            assert all(positions.real)
            real += batch
    assert sorted(real) == list(range(6))


def test_the_order_of_a_shuffled_distributed_sampler_is_that_of_its_epoch():
    data = range(8)
    sampler = DistributedSampler(data, num_replicas=2, rank=1, seed=5)
    seen = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for positions, batch in run(DataLoader(data, batch_size=2, sampler=sampler), 1, 2):
            assert positions.indices == tuple(batch)
            seen.append(tuple(batch))
    assert len(set(seen)) > 2


@pytest.mark.parametrize("package", [pytorch_lightning, lightning.pytorch], ids=lambda package: package.__name__)
def test_the_sampler_that_lightning_puts_around_one_when_predicting_is_seen_through(package):
    wrapper = package.overrides.distributed._IndexBatchSamplerWrapper
    batches = wrapper(BatchSampler(SequentialSampler(range(5)), 2, False))
    for positions, batch in run(DataLoader(range(5), batch_sampler=batches)):
        assert positions.indices == tuple(batch)


@pytest.mark.parametrize("package", [pytorch_lightning, lightning.pytorch], ids=lambda package: package.__name__)
def test_the_sampler_that_lightning_uses_over_processes_when_predicting_repeats_no_image(package):
    data, real = range(5), []
    for rank in range(2):
        sampler = package.overrides.distributed.UnrepeatedDistributedSampler(
            data, num_replicas=2, rank=rank, shuffle=False
        )
        for positions, batch in run(DataLoader(data, batch_size=2, sampler=sampler), rank, 2):
            assert positions.indices == tuple(batch)
            assert all(positions.real)
            real += batch
    assert sorted(real) == list(data)
