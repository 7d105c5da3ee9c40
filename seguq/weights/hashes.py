"""Hashes of weights, computed again only where the weights have changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from seguq.weights.checkpoint import weights_sha256

_WHOLE, _PROBED = 2**14, 16  # values of a tensor that is read whole; and those that are read of a larger one
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class WeightHashes:
    """`weights_sha256` of models, remembered until a tensor of theirs is changed.

    A change is seen by where each tensor lies in memory and by the version that torch counts for it: all that torch
    itself does to weights (an optimizer's step, ``load_state_dict``, ``copy_``, another device) changes one of these.
    What is written past torch (through ``.data`` or numpy) changes neither. On the CPU it is seen by the values: all
    of a tensor of up to 16 384, and 16 here and there of a larger one, where a change that leaves these as they are
    goes unnoticed. Elsewhere, where reading values would make the CPU wait for the device, it is not seen: change
    weights there under ``torch.no_grad()`` in place of through ``.data``.

    A copy, pickled or not, remembers nothing.
    """

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()

    def __call__(self, model: nn.Module) -> str:
        """The hash of a model's weights."""
        tensors = [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]
        try:
            counted = [(tensor.data_ptr(), tensor._version, tensor.shape) for tensor in tensors]
        except RuntimeError:  # tensors made under inference mode do not count their changes
            return weights_sha256(model)
        known = self._known.get(model)
        if known is None or known.counted != counted or known.probe() != known.values:
            known = self._known[model] = _Known(weights_sha256(model), tensors, counted)
        return known.digest

    def __reduce__(self) -> Any:
        return WeightHashes, ()


class _Known:
    """A hash, and what is known of the tensors that it was taken of."""

    def __init__(self, digest: str, tensors: Sequence[Tensor], counted: list[Any]) -> None:
        self.digest, self.counted = digest, counted
        # their memory is held, so that no other tensor can come to lie in the same place
        self._held = [tensor.detach() for tensor in tensors]
        self._views = [_some_of(tensor) for tensor in self._held if tensor.device.type == "cpu" and tensor.numel()]
        self.values = self.probe()

    def probe(self) -> bytes:
        """Some of the values, as they are now."""
        return np.concatenate(self._views).tobytes() if self._views else b""


def _some_of(tensor: Tensor) -> np.ndarray[Any, Any]:
    """A view of the bits of all values of a small tensor, of some of a large one; whatever its strides."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    step = 1 if span <= _WHOLE else span // _PROBED
    return tensor.as_strided((-(-span // step),), (step,)).view(_BITS[tensor.element_size()]).numpy()
