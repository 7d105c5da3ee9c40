"""From scores to a selection within a budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seguq.acquisition.budget import Budget
from seguq.acquisition.select import select
from seguq.acquisition.selection import Selection
from seguq.acquisition.strategy import Keyed, Ranked, Strategy
from seguq.core.named import hand_on

if TYPE_CHECKING:
    from seguq.acquisition.power_top_k import PowerTopK as PowerTopK
    from seguq.acquisition.random_ import Random as Random
    from seguq.acquisition.top_k import TopK as TopK

__all__ = ["Budget", "Keyed", "Ranked", "Selection", "Strategy", "select"]
__getattr__ = hand_on(Strategy)
