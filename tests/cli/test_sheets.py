import cv2
import numpy as np
import pytest

from seguq.acquisition import Selection
from seguq.cli.sheets import draw_selection

ROW = {"rank": 1, "image_id": "a", "region_id": 0, "y0": 0, "x0": 0, "area": 4, "score": 0.5, "predicted_class": 1}


@pytest.mark.parametrize(
    ("size", "drawn"),
    [
        ((2, 3000), (2, 3000)),
        ((1500, 2), (3000, 4)),
        ((100, 100), (800, 800)),
        ((100, 1000), (400, 4000)),
        ((900, 5000), (900, 5000)),
    ],
)
def test_a_small_image_is_enlarged_but_a_strip_not_beyond_all_measure(size, drawn, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((*size, 3), np.uint8))
    selection = Selection([{**ROW, "y1": 2, "x1": 2}])
    draw_selection(selection, {"a": tmp_path / "a.png"}, tmp_path / "out")
    assert cv2.imread(str(tmp_path / "out" / "a.png")).shape[:2] == drawn
