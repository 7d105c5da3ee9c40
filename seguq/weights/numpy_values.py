"""Numbers, texts and arrays of NumPy in a checkpoint, made without NumPy's own unpickling.

A training that notes ``lr=np.float64(1e-3)`` has pickled NumPy's constructors. They would take an array of objects, or
a type with a layout that reads past its memory, as well; what stands in for them here takes plain numbers and texts.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

_PLAIN = re.compile(r"[biufc]\d{1,2}|[SU]\d{1,9}")


class _DType:
    """Stands in for ``numpy.dtype`` while a file is read."""

    def __init__(self, code: Any, *_: Any) -> None:
        code = code.decode() if isinstance(code, bytes) else code
        if not isinstance(code, str) or not _PLAIN.fullmatch(code):
            raise ValueError(f"it holds a NumPy value of type {code!r}, which is neither a number nor text")
        self.value = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        order = state[1].decode() if isinstance(state[1], bytes) else state[1]
        if order == ">":
            self.value = self.value.newbyteorder(">")
        elif order not in ("<", "|", "="):
            raise ValueError(f"it holds a NumPy value of byte order {order!r}")


class _Array:
    """Stands in for ``numpy.ndarray`` while a file is read."""

    def __init__(self) -> None:
        self.value = np.zeros(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        found = _values(dtype, data, math.prod(shape))
        self.value = found.reshape(shape, order="F" if fortran else "C").copy()


def _values(dtype: Any, data: Any, count: int) -> np.ndarray[Any, Any]:
    if not isinstance(dtype, _DType) or not isinstance(data, bytes) or len(data) != count * dtype.value.itemsize:
        raise ValueError("it holds a NumPy value that is no numbers or text, or cut off")
    return np.frombuffer(data, dtype.value) if len(data) else np.zeros(count, dtype.value)


def _scalar(dtype: Any, data: Any = None) -> Any:
    return _values(dtype, data, 1)[0]


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _no_bytes() -> bytes:
    """What ``bytes`` is called for in a pickle of torch's: to make an empty one."""
    return b""


# NumPy 1 has them under another name than NumPy 2
STAND_INS: list[tuple[Any, str]] = [
    (_DType, "numpy.dtype"),
    (_Array, "numpy.ndarray"),
    (_no_bytes, "__builtin__.bytes"),
    (_no_bytes, "builtins.bytes"),
    *(
        (stand_in, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for stand_in, name in ((_scalar, "scalar"), (_reconstruct, "_reconstruct"))
    ),
]
"""What stands in for what, as ``torch.serialization.add_safe_globals`` takes it."""


def settled(content: Any) -> Any:
    """What was read, with NumPy's own values in the place of what stood in for them."""
    return _settled(content, {})


def _settled(content: Any, seen: dict[int, Any]) -> Any:
    if isinstance(content, (_DType, _Array)):
        return content.value
    if id(content) in seen:
        return seen[id(content)]
    if isinstance(content, dict):
        seen[id(content)] = content
        for key, value in content.items():
            content[key] = _settled(value, seen)
    elif isinstance(content, list):
        seen[id(content)] = content
        content[:] = [_settled(value, seen) for value in content]
    elif type(content) is tuple:
        found = tuple(_settled(value, seen) for value in content)
        seen[id(content)] = content = (
            content if all(one is other for one, other in zip(found, content, strict=True)) else found
        )
    return content
