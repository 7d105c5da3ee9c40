"""How near pixels lie to borders, against the squares that near_border looks at."""

import pytest
import torch

from seguq.functional.borders import near_border, nearness_to_borders


@pytest.mark.parametrize("shape", [(2, 40, 50), (1, 7, 3), (1, 1, 1), (2, 9, 8, 7), (3, 20), (1, 5, 2)])
@pytest.mark.parametrize("doublings", [0, 1, 3])
def test_nearness_is_the_share_of_distances_within_which_there_is_another_class(shape, doublings):
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        classes = (torch.rand(shape, generator=generator) < 0.03).cumsum(-1) % 3
        near = [near_border(classes, 2**doubling) for doubling in range(doublings + 1)]
        assert torch.allclose(nearness_to_borders(classes, doublings), torch.stack(near).float().mean(0))
