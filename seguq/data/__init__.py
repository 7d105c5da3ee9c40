"""Images and masks on disk, batches, augmentation, and the Lightning data module."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seguq.data.batches import Batch as Batch
    from seguq.data.batches import output_logits as output_logits
    from seguq.data.batches import unpack_batch as unpack_batch
    from seguq.data.check import check_files as check_files
    from seguq.data.classes import Classes as Classes
    from seguq.data.folder import SegmentationFolder as SegmentationFolder
    from seguq.data.folder import list_images as list_images
    from seguq.data.image_source import ImageSource as ImageSource
    from seguq.data.labeled import Labeled as Labeled
    from seguq.data.labeled_data import LabeledData as LabeledData
    from seguq.data.large import ArrayReader as ArrayReader
    from seguq.data.large import RasterReader as RasterReader
    from seguq.data.module import SegmentationData as SegmentationData
    from seguq.data.normalization import Normalization as Normalization
    from seguq.data.normalization import encoder_normalization as encoder_normalization
    from seguq.data.nuclei import nuclei_mini as nuclei_mini
    from seguq.data.reading import read_image as read_image
    from seguq.data.reading import read_mask as read_mask
    from seguq.data.statistics import measured_normalization as measured_normalization

# handed on lazily: a drop-in user who needs `unpack_batch` alone should load neither Lightning nor OpenCV
_HOMES = {
    "ArrayReader": "large",
    "Batch": "batches",
    "Classes": "classes",
    "ImageSource": "image_source",
    "Labeled": "labeled",
    "LabeledData": "labeled_data",
    "Normalization": "normalization",
    "RasterReader": "large",
    "SegmentationData": "module",
    "SegmentationFolder": "folder",
    "check_files": "check",
    "encoder_normalization": "normalization",
    "list_images": "folder",
    "measured_normalization": "statistics",
    "nuclei_mini": "nuclei",
    "output_logits": "batches",
    "read_image": "reading",
    "read_mask": "reading",
    "unpack_batch": "batches",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"seguq.data.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'seguq.data' has no attribute {name!r}")
