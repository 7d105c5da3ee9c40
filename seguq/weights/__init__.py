"""Checkpoints read safely, weights by name, and their hashes."""

from seguq.weights.checkpoint import read_checkpoint, weights_sha256
from seguq.weights.hashes import WeightHashes

__all__ = ["WeightHashes", "read_checkpoint", "weights_sha256"]
