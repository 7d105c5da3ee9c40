"""Images of any size through a network that sees windows: blended, and streamed from disk to disk."""

from seguq.inference.tiles.sliding_window import SlidingWindow

__all__ = ["SlidingWindow"]
