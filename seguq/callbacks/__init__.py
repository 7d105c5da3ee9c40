"""What a user adds to a Trainer."""

from seguq.callbacks.calibrate import Calibrate

__all__ = ["Calibrate"]
