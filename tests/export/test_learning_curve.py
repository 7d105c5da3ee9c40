"""Learning curves: what is drawn, and that nothing hides it."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from seguq.core.errors import UsageError
from seguq.export.learning_curve import Curve, learning_curve


def curve(name="a", x=(1, 2, 4), value=(0.3, 0.4, 0.5), half=0.05):
    value = np.array(value)
    return Curve(name, x, value, value - half, value + half)


def drawn(*curves, **settings):
    """The axes of a figure that was drawn."""
    figure = learning_curve(curves, "x", "y", **settings)
    FigureCanvasAgg(figure).draw()
    return figure.axes[0]


def names(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_the_band_spans_the_interval():
    (band,) = drawn(curve()).collections[:1]
    corners = band.get_paths()[0].vertices
    for x, low, high in ((1, 0.25, 0.35), (4, 0.45, 0.55)):
        assert {round(y, 9) for at, y in corners if at == x} == {low, high}


@pytest.mark.parametrize(("x", "scale"), [((1, 2, 10), "linear"), ((1, 2, 11), "log"), ((0, 2, 100), "linear")])
def test_x_is_logarithmic_where_more_than_a_decade_is_spanned(x, scale):
    assert drawn(curve(x=x)).get_xscale() == scale


def test_a_decade_is_that_of_all_curves_together():
    assert drawn(curve(x=(1, 2, 3)), curve("b", x=(20, 30, 40))).get_xscale() == "log"


def test_names_stand_in_the_order_in_which_curves_end():
    assert names(drawn(curve("low"), curve("high", value=(0.1, 0.2, 0.9)))) == ["high", "low"]


def test_the_legend_hides_nothing():
    axes = drawn(*(curve(f"strategy {i}", value=np.linspace(0.2, 0.5 + 0.01 * i, 3)) for i in range(12)))
    box = axes.get_legend().get_window_extent()
    assert box.x0 >= axes.get_window_extent().x1
    assert box.x1 <= axes.figure.bbox.x1 and box.y0 >= 0


def test_twelve_curves_are_told_apart():
    lines = drawn(*(curve(str(i)) for i in range(12))).get_lines()
    assert len({(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines}) == 12


def test_a_round_that_is_not_known_leaves_the_others():
    axes = drawn(Curve("a", [1, 2, 3, 4], [0.1, np.nan, 0.3, 0.4], [0, np.nan, 0.2, 0.3], [0.2, np.nan, 0.4, 0.5]))
    assert list(axes.get_lines()[0].get_xdata()) == [1, 3, 4]


def bars(axes):
    return [segment for item in axes.collections if hasattr(item, "get_segments") for segment in item.get_segments()]


def test_a_point_by_itself_has_its_interval_too():
    np.testing.assert_allclose(bars(drawn(curve(x=(5,), value=(0.3,)))), [[[5, 0.25], [5, 0.35]]])


def test_points_in_a_band_have_no_bars():
    assert bars(drawn(curve())) == []


def test_all_labels_are_a_line_with_its_share_below():
    axes = drawn(curve(), reference=(0.6, 0.55, 0.65))
    heights = [float(line.get_ydata()[0]) for line in axes.get_lines()[1:]]
    assert heights == pytest.approx([0.6, 0.57])
    assert names(axes) == ["all labels, 0.600", "95 % of that", "a"]


def test_names_are_text_and_no_formulas():
    assert names(drawn(curve("cost in $ and \\foo $\n"))) == ["cost in $ and \\foo $\\n"]


def test_a_long_name_keeps_both_ends():
    (name,) = names(drawn(curve("first " + "x" * 100 + " last")))
    assert len(name) <= 41 and name.startswith("first") and name.endswith("last")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: learning_curve([], "x", "y"), "at least one curve"),
        (lambda: drawn(Curve("a", [1, 2], [0.1], [0], [1])), r"'a' has \(2,\), \(1,\)"),
        (lambda: drawn(curve(x=(1, np.nan, 3))), "must be finite"),
        (lambda: drawn(curve(x=(3, 2, 1))), "must not fall"),
    ],
)
def test_arrays_that_do_not_go_together_are_wrong_use(make, told):
    with pytest.raises(UsageError, match=told):
        make()
