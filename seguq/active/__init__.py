"""The active-learning loop: train, score the pool, choose, have it labeled, again; its state on disk."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seguq.active.loop import ActiveLearningLoop as ActiveLearningLoop

_HOMES = {"ActiveLearningLoop": "loop"}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"seguq.active.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'seguq.active' has no attribute {name!r}")
