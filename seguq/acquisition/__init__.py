"""From scores to a selection within a budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seguq.acquisition.budget import Budget
from seguq.acquisition.select import select
from seguq.acquisition.selection import Selection
from seguq.acquisition.strategy import Keyed, Ranked, Strategy
from seguq.core.named import hand_on

if TYPE_CHECKING:
    from seguq.acquisition.best_of_each_image import BestOfEachImage as BestOfEachImage
    from seguq.acquisition.clasp import ClaSP as ClaSP
    from seguq.acquisition.class_aware_random import ClassAwareRandom as ClassAwareRandom
    from seguq.acquisition.class_balanced import ClassBalanced as ClassBalanced
    from seguq.acquisition.class_weighted import ClassWeighted as ClassWeighted
    from seguq.acquisition.core_set import CoreSet as CoreSet
    from seguq.acquisition.herd_then_uncertain import HerdThenUncertain as HerdThenUncertain
    from seguq.acquisition.k_means_plus_plus import KMeansPlusPlus as KMeansPlusPlus
    from seguq.acquisition.mixed import Mixed as Mixed
    from seguq.acquisition.power_top_k import PowerTopK as PowerTopK
    from seguq.acquisition.random_ import Random as Random
    from seguq.acquisition.spatial_spread import SpatialSpread as SpatialSpread
    from seguq.acquisition.top_k import TopK as TopK
    from seguq.acquisition.top_then_random import TopThenRandom as TopThenRandom

__all__ = ["Budget", "Keyed", "Ranked", "Selection", "Strategy", "select"]
__getattr__ = hand_on(Strategy)
