import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seguq.core.seeds import derive_seed, generator_state, same_state, seeded

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]

part = st.one_of(st.integers(), st.text(st.characters(codec="utf-8")), st.text("0123456789:\x1f-int", max_size=6))
parts = st.lists(part, max_size=5)


@given(parts=parts)
@settings(deadline=None)
def test_a_derived_seed_lies_in_the_range_that_torch_and_numpy_take(parts):
    assert 0 <= derive_seed(*parts) < 2**63


@given(one=parts, other=parts)
@settings(deadline=None)
def test_different_parts_give_different_seeds(one, other):
    # an integer and the text of it are different parts
    same = [(type(part), part) for part in one] == [(type(part), part) for part in other]
    assert (derive_seed(*one) == derive_seed(*other)) == same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1, "23"), (12, "3")),
        (("1", "23"), ("12", "3")),
        (("ab",), ("a", "b")),
        ((1,), ("1",)),
        ((0, "a"), ("a", 0)),
        ((), ("",)),
        (("a",), ("a", "")),
        (("a\x1fstr:1:b",), ("a", "b")),
        ((1,), (-1,)),
    ],
)
def test_parts_that_read_alike_give_different_seeds(one, other):
    assert derive_seed(*one) != derive_seed(*other)


def test_a_derived_seed_is_the_same_in_another_process():
    code = "from seguq.core.seeds import derive_seed; print(derive_seed(7, 'image', -3, 'a/b.png'))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert int(out) == derive_seed(7, "image", -3, "a/b.png")


def test_a_derived_seed_stays_the_same_from_version_to_version():
    assert derive_seed(0, "image", 3) == 2_882_058_254_214_273_366


def test_derived_seeds_of_a_row_of_images_are_spread_evenly_over_their_range():
    seeds = torch.tensor([derive_seed(0, "image", i) for i in range(4000)])
    counts = torch.bincount(seeds >> 60, minlength=8)
    assert counts.sum() == 4000
    assert (counts - 500).abs().max() < 120  # more than five standard deviations


def draws(count=4):
    return torch.rand(count).tolist()


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_a_seeded_block_draws_the_same_each_time(seed):
    with seeded(seed, CPU):
        one = draws()
    torch.rand(3)
    with seeded(seed, CPU):
        assert draws() == one


def test_seeded_blocks_of_different_seeds_draw_differently():
    with seeded(1, CPU):
        one = draws()
    with seeded(2, CPU):
        assert draws() != one


def test_a_seeded_block_draws_as_after_manual_seed():
    with seeded(5, CPU):
        one = draws()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        assert draws() == one


def test_the_global_generator_is_left_as_it_was():
    before = torch.get_rng_state()
    with seeded(1, CPU):
        draws()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_global_generator_is_left_as_it_was_after_an_exception():
    before = torch.get_rng_state()
    with pytest.raises(ValueError), seeded(1, CPU):
        draws()
        raise ValueError
    assert torch.equal(torch.get_rng_state(), before)


def test_a_block_after_an_exception_in_another_thread_is_not_locked_out():
    def fail():
        with pytest.raises(ValueError), seeded(1, CPU):
            raise ValueError

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    entered = threading.Event()

    def enter():
        with seeded(2, CPU):
            entered.set()

    threading.Thread(target=enter, daemon=True).start()
    assert entered.wait(20)


NESTED = """
import torch
from seguq.core.seeds import seeded
cpu = torch.device("cpu")
with seeded(1, cpu):
    expected = torch.rand(8).tolist()
with seeded(1, cpu):
    first = torch.rand(4).tolist()
    with seeded(2, cpu):
        torch.rand(3)
    assert first + torch.rand(4).tolist() == expected
"""


def test_a_seeded_block_inside_another_leaves_its_draws_as_they_were():
    # in a process of its own, for a lock that one thread cannot take twice would never come back
    subprocess.run([sys.executable, "-c", NESTED], cwd=ROOT, check=True, timeout=100)


def test_threads_that_meet_draw_one_after_the_other():
    with seeded(1, CPU):
        expected = [draws() for _ in range(2)]
    inside, other_is_in = threading.Event(), threading.Event()
    actual = []

    def first():
        with seeded(1, CPU):
            actual.append(draws())
            inside.set()
            other_is_in.wait(0.3)  # the other thread has the time to come in, and must not
            actual.append(draws())

    def second():
        inside.wait(20)
        with seeded(2, CPU):
            other_is_in.set()
            draws()

    threads = [threading.Thread(target=target) for target in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert actual == expected


def test_many_threads_draw_what_each_draws_alone():
    def drawn(seed):
        with seeded(seed, CPU):
            return [draws(1) for _ in range(20)]

    expected = {seed: drawn(seed) for seed in range(8)}
    before = torch.get_rng_state()
    actual = {}
    start = threading.Barrier(8)

    def run(seed):
        start.wait()
        actual[seed] = drawn(seed)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert actual == expected
    assert torch.equal(torch.get_rng_state(), before)


def test_a_seeded_block_on_the_cpu_does_not_seed_other_devices(monkeypatch):
    seeds = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    with seeded(1, CPU):
        draws()
    assert seeds == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_global_generators_of_cuda_are_left_as_they_were():
    device = torch.device("cuda", torch.cuda.current_device())
    before = generator_state(device)
    with seeded(1, device):
        draws()
        torch.rand(3, device=device)
    assert same_state(before, generator_state(device))


def test_the_state_of_the_generator_is_the_same_while_nothing_is_drawn():
    before = generator_state(CPU)
    torch.rand(3, generator=torch.Generator().manual_seed(0))
    assert same_state(before, generator_state(CPU))


def test_the_state_of_the_generator_differs_after_a_draw():
    with seeded(0, CPU):
        before = generator_state(CPU)
        torch.rand(1)
        assert not same_state(before, generator_state(CPU))
