"""Heat maps, overlays and pages for people: arrays in, arrays out; other functions write the files."""

from seguq.export.heatmap import color_bar, colorize, heatmap, outline, overlay, picture, tint
from seguq.export.images import to_rgb, write_index_png, write_png
from seguq.export.learning_curve import Curve, learning_curve
from seguq.export.scale import Scale, ScaleFinder
from seguq.export.sheet import Tile, contact_sheet, outline_regions

__all__ = [
    "Curve",
    "Scale",
    "ScaleFinder",
    "Tile",
    "color_bar",
    "colorize",
    "contact_sheet",
    "heatmap",
    "learning_curve",
    "outline",
    "outline_regions",
    "overlay",
    "picture",
    "tint",
    "to_rgb",
    "write_index_png",
    "write_png",
]
