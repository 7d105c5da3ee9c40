"""Random numbers that belong to a region: a hash of its image, its number and the seed.

A region keeps its number whatever the order of the rows, the rows beside it, and the part of a pool that is looked at
first: a selection can be made again, extended, and made from a pool that is read piece by piece.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from seguq.core.seeds import derive_seed
from seguq.regions import RegionTable

Floats = npt.NDArray[np.float64]
Hashes = npt.NDArray[np.uint64]


def region_noise(pool: RegionTable, generator: np.random.Generator) -> Floats:
    """A number in (0, 1) for each region, uniform over regions and seeds.

    Args:
        pool: the regions.
        generator: where one number is drawn, the seed; another call gives other numbers.

    Returns:
        ``(rows,)``
    """
    return uniform_of(pool, draw_seed(generator), 0)


def uniform_of(pool: RegionTable, seed: int, which: int) -> Floats:
    """The same from a seed that was drawn, as many as are needed: each ``which`` gives others, ``(rows,)``."""
    numbers, ids = pool.image_numbers()
    return uniform(image_hashes(ids.to_pylist())[numbers], pool.column("region_id"), seed ^ (which << 32))


def generator_of(seed: int) -> np.random.Generator:
    """The generator that `seguq.acquisition.select` hands to a strategy."""
    return np.random.default_rng(derive_seed("select", seed))


def draw_seed(generator: np.random.Generator) -> int:
    """The one number that `region_noise` takes from a generator."""
    return int(generator.integers(0, 2**63))


def image_hashes(ids: Iterable[str]) -> Hashes:
    """64 bits of each image id."""
    digests = [hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest() for name in ids]
    return np.frombuffer(b"".join(digests), np.uint64)


def uniform(images: Hashes, regions: npt.NDArray[Any], seed: int) -> Floats:
    """A number in (0, 1) for each pair of an image's hash and a region's number.

    Example:
        >>> uniform(image_hashes(["a", "b"]), np.array([0, 0]), seed=1).round(3).tolist()
        [0.706, 0.154]
    """
    mixed = _mixed(images ^ _mixed(regions.astype(np.int64).astype(np.uint64) + _mixed(np.array([seed], np.uint64))))
    noise: Floats = ((mixed >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return noise


def gumbel(noise: Floats) -> Floats:
    """Uniform numbers as those of a Gumbel distribution.

    Example:
        >>> gumbel(np.array([np.exp(-np.exp(-2))])).round(6).tolist()
        [2.0]
    """
    return -np.log(-np.log(noise))


def _mixed(values: Hashes) -> Hashes:
    """The finalizer of SplitMix64 (Steele et al., Fast splittable pseudorandom number generators, 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Hashes = values ^ (values >> np.uint64(31))
    return mixed
