"""What lies on disk and is resumed: folders of predictions, maps of large images, tables that come in pieces."""

from seguq.store.folder import PredictionFolder
from seguq.store.large import MapFiles

__all__ = ["MapFiles", "PredictionFolder"]
