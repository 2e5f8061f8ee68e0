"""Curves as PNG files: values that are not finite, legends, texts, and refused panels."""

import sys

import numpy as np
import pytest

from ddpm_jax import data
from ddpm_jax.evaluate import plots


def plotted(path, x, ys, *, text=None, **options):
    plots.write_panels(path, [plots.Panel(x, ys, "step", "loss", **options)], text=text)
    return path.read_bytes()


def test_what_is_not_finite_is_as_if_it_were_not_there(tmp_path):
    x, y = np.arange(6.0), np.array([1, np.nan, 3, np.inf, 2, 5])
    few = np.isfinite(y)
    whole = plotted(tmp_path / "a.png", x, {"a": y}, standard_errors={"a": np.full(6, 0.3)})
    assert whole == plotted(tmp_path / "b.png", x[few], {"a": y[few]}, standard_errors={"a": np.full(4, 0.3)})
    assert whole != plotted(tmp_path / "c.png", x[few], {"a": y[few]})  # the band is seen


def test_only_several_lines_have_a_legend():
    from matplotlib.figure import Figure

    for lines, named in ((["loss"], None), (["a", "b"], ["a", "b"])):
        axes = Figure().subplots()
        plots.draw_panel(axes, plots.Panel([1, 2], {line: [3, 4] for line in lines}, "step", "loss"))
        legend = axes.get_legend()
        assert named == (legend and [text.get_text() for text in legend.get_texts()])


def test_a_curve_keeps_text_and_leaves_the_state_of_pyplot_alone(tmp_path):
    before = "matplotlib.pyplot" in sys.modules
    plotted(tmp_path / "new" / "a.png", [1, 2], {"": [3, 4]}, text={"legend": "a ± b"})
    png = data.read_png(tmp_path / "new" / "a.png")
    assert png.text == {"legend": "a ± b"} and ("matplotlib.pyplot" in sys.modules) == before


def test_no_panels_are_refused(tmp_path):
    with pytest.raises(ValueError, match="panels: expected at least one panel, got none"):
        plots.write_panels(tmp_path / "a.png", [])
