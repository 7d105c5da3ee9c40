"""Heat maps, overlays and pages for people: arrays in, arrays out; other functions write the files."""

from seguq.export.heatmap import color_bar, colorize, heatmap, outline, overlay, picture, tint
from seguq.export.images import to_rgb, write_index_png, write_png
from seguq.export.scale import Scale, ScaleFinder

__all__ = [
    "Scale",
    "ScaleFinder",
    "color_bar",
    "colorize",
    "heatmap",
    "outline",
    "overlay",
    "picture",
    "tint",
    "to_rgb",
    "write_index_png",
    "write_png",
]
