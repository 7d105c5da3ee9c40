"""A pass through a model recorded once, and its random part run again for each further sample."""

from seguq.inference.replay.samples import Replay

__all__ = ["Replay"]
