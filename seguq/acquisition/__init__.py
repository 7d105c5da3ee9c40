"""From scores to a selection within a budget."""

from seguq.acquisition.budget import Budget
from seguq.acquisition.select import select
from seguq.acquisition.selection import Selection
from seguq.acquisition.strategies import Random, Strategy, TopK

__all__ = ["Budget", "Random", "Selection", "Strategy", "TopK", "select"]
