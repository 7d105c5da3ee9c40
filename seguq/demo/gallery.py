"""The demo's gallery: image, truth, prediction, errors and uncertainty of labeled images, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from seguq.data import nuclei_mini, read_image
from seguq.data.classes import Classes
from seguq.export import Scale, ScaleFinder, colorize, picture, tint, to_rgb, write_png
from seguq.export.heatmap import COLORMAP, with_color_bar
from seguq.export.page import captioned, image_tag, picture_row, text
from seguq.export.scale import label_of
from seguq.inference import UncertaintyMaps

_ERROR = (230, 60, 60)


@dataclass
class Example:
    """One labeled image with its maps."""

    maps: UncertaintyMaps
    mask: Tensor
    split: str

    def wrong(self) -> npt.NDArray[np.bool_]:
        """Labeled pixels whose prediction is wrong, ``(H, W)``."""
        wrong: npt.NDArray[np.bool_] = ((self.maps.prediction[0] != self.mask) & (self.mask != 255)).numpy()
        return wrong


def legend(scale: Scale, measure: str) -> str:
    """The colors of a measure, from its lowest to its highest value."""
    import matplotlib

    stops = ", ".join(matplotlib.colors.to_hex(matplotlib.colormaps[COLORMAP](i / 8)) for i in range(9))
    bar = f'<span class="bar" style="background: linear-gradient(to right, {stops})"></span>'
    return f"<span>{text(label_of(measure))}: {scale.low:g}{bar}{scale.high:g}</span>"


def _swatch(color: tuple[int, int, int], name: str) -> str:
    return f'<span><i style="background: rgb{color}"></i>{text(name)}</span>'


def common_scale(maps: Sequence[UncertaintyMaps], measure: str) -> Scale:
    """One color scale of a measure for several images."""
    finder = ScaleFinder()
    for item in maps:
        finder.add(item[measure])
    return finder.scale()


def gallery(examples: Sequence[Example], classes: Classes) -> str:
    """The section of labeled images."""
    measures = ("predictive_entropy", "mutual_information")
    scales = {measure: common_scale([example.maps for example in examples], measure) for measure in measures}
    key = "".join(_swatch(color, name) for color, name in zip(classes.colors, classes.names, strict=True))
    key += _swatch(_ERROR, "wrong pixels") + "".join(legend(scales[measure], measure) for measure in measures)
    out = [
        "<h2>Where it is wrong, and whether it knows</h2>"
        "<p>The predictive entropy is all of the uncertainty; the mutual information is the part that comes from the "
        "model's own ignorance, and that labels can reduce. Shown are the most uncertain test images, and three "
        "stained ones. Good uncertainty is bright where the errors are.</p>"
        f'<div class="legend">{key}</div>'
    ]
    kinds = {"test": "Fluorescence, as in training (test images)", "stained": "Stained tissue, never seen in training"}
    for split, title in kinds.items():
        out.append(f"<h3>{title}</h3>")
        for example in examples:
            if example.split == split:
                out.append(_example_row(example, classes.colors, scales))
    return "".join(out)


def _tiles(
    example: Example, colors: Sequence[tuple[int, int, int]], scales: Mapping[str, Scale]
) -> dict[str, npt.NDArray[np.uint8]]:
    """The pictures of one labeled image: itself, truth, prediction, errors, and each measure."""
    (image_id,) = example.maps.image_ids
    folder = "ood" if example.split == "stained" else "test"
    image = to_rgb(read_image(nuclei_mini() / "images" / folder / f"{image_id}.jpg"))
    truth, prediction = example.mask.numpy(), example.maps.prediction[0].numpy()
    heat = {measure: colorize(example.maps[measure][0].numpy(), scale) for measure, scale in scales.items()}
    return {
        "image": image,
        "truth": picture(truth, colors),
        "prediction": picture(prediction, colors),
        "errors": tint(image, example.wrong(), _ERROR, 0.85),
        **heat,
    }


def _example_row(example: Example, colors: Sequence[tuple[int, int, int]], scales: Mapping[str, Scale]) -> str:
    notes = {
        "image": example.maps.image_ids[0],
        "errors": f"{100 * example.wrong().sum() / max((example.mask != 255).sum().item(), 1):.1f} % of pixels",
        **{measure: f"mean {float(example.maps[measure].mean()):.3f}" for measure in scales},
    }
    flat = ("truth", "prediction")
    return picture_row(
        captioned(
            image_tag(tile, name, ".png" if name in flat else ".jpg"),
            f"<b>{name.replace('_', ' ')}</b> {text(notes.get(name, ''))}",
        )
        for name, tile in _tiles(example, colors, scales).items()
    )


def write_overview(path: Path, examples: Sequence[Example], colors: Sequence[tuple[int, int, int]]) -> None:
    """One picture of it all: an image of each kind with truth, prediction, errors and uncertainty side by side."""
    scales = {"predictive_entropy": common_scale([example.maps for example in examples], "predictive_entropy")}
    first = [next((e for e in examples if e.split == split), None) for split in ("test", "stained")]
    rows = []
    for example in filter(None, first):
        tiles = [
            np.pad(tile, ((4, 4), (4, 4), (0, 0)), constant_values=255)
            for tile in _tiles(example, colors, scales).values()
        ]
        rows.append(np.hstack(tiles))
    write_png(path, with_color_bar(np.vstack(rows), scales["predictive_entropy"], label_of("predictive_entropy")))
