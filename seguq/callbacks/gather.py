"""What several processes hold, brought together."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, distributed


def gathered(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Tensors by name, of any sizes, of each process: the same list in all of them; in main memory."""
    own = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    if not (distributed.is_available() and distributed.is_initialized()):
        return [own]
    found: list[dict[str, Tensor]] = [{} for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(found, own)
    return found
