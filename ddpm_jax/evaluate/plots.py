"""Curves as PNG files.

matplotlib is the optional extra `figures`, imported when something is drawn and not before.  Figures are
objects without a window or backend; the state of pyplot does not change.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ddpm_jax import process

MISSING_MESSAGE = "curves need matplotlib, which is not installed: pip install 'ddpm-jax[figures]'"
MAX_MARKED_POINTS = 40  # lines of at most so many points get markers

Scale = Literal["linear", "log"]

_METRICS = {
    "grad_norm": "gradient norm",
    "images_per_s": "images/s",
    "held_out_loss": "held-out loss",
    "nearest_train_median": "distance to nearest training image",
    "copied_share": "share of copied samples",
}


class MissingExtra(ValueError):
    """matplotlib is not installed; the message says how to install it."""


class Panel(NamedTuple):
    """One plot: axes and lines."""

    x: ArrayLike  # [n] where the values are
    ys: Mapping[str, ArrayLike]  # name -> [n] values.  Values that are not finite are left out
    xlabel: str  # with units
    ylabel: str
    title: str = ""  # above the axes
    standard_errors: Mapping[str, ArrayLike] = {}  # name -> [n] of the line of that name, shaded to both sides
    xscale: Scale = "linear"
    yscale: Scale = "linear"


def write_panels(
    path: str | pathlib.Path, panels: Sequence[Panel], *, columns: int = 0, text: Mapping[str, str] | None = None
) -> None:
    """Writes panels to a PNG file; a panel of more than one line gets a legend.

    Args:
        columns: number of panels side by side; 0: all.
        text: names and values kept in the file, latin-1; the versions of programs are not.

    Raises:
        MissingExtra: if matplotlib is not installed.
        ValueError: if there are no panels.
    """
    if not panels:
        raise ValueError("panels: expected at least one panel, got none")
    try:
        import matplotlib.figure
    except ImportError:
        raise MissingExtra(MISSING_MESSAGE) from None
    columns = min(columns or len(panels), len(panels))
    rows = -(-len(panels) // columns)
    figure = matplotlib.figure.Figure(figsize=(1 + 4.2 * columns, 3.6 * rows), dpi=150, layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).flat
    for panel, axes in zip(panels, places, strict=False):  # panels first: they end first
        draw_panel(axes, panel)
    for axes in places:  # those that are left
        axes.set_visible(False)
    save_figure(path, figure, text)


def write_panels_if_installed(path: pathlib.Path, panels: Sequence[Panel], *, text=None) -> None:
    """As `write_panels`, and prints where the curves are, or that matplotlib is not installed."""
    try:
        write_panels(path, panels, text=text)
        print(f"curves in {path.name}")
    except MissingExtra as missing:
        print(f"no curves: {missing}")


def save_figure(path: str | pathlib.Path, figure: Any, text: Mapping[str, str] | None = None) -> None:
    """Writes matplotlib's figure to a PNG file, whole or not at all; text as in `write_panels`."""
    with process.atomic_file(pathlib.Path(path)) as file:
        # matplotlib writes its version into each file: the same curve would be another file after an update
        figure.savefig(file, format="png", metadata={"Software": None, **(text or {})})


def training_panels(rows: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Loss, loss by quarter of t, and held-out bits/dim over the steps, as far as the lines of metrics have them."""
    row, over = [], "training step"
    steps, loss = column(rows, "loss")
    if np.isfinite(loss).any():
        _, quarters = column(rows, "loss_by_quarter_of_t")
        lines = {f"{name} quarter of 1..T": y for name, y in zip(("1st", "2nd", "3rd", "4th"), quarters.T, strict=True)}
        row.append(Panel(steps, {"loss": loss}, over, "training loss", yscale=scale(loss)))
        row.append(Panel(steps, lines, over, "training loss by t", yscale=scale(quarters)))
    steps, bits = column(rows, "held_out_bits_per_dim")
    if np.isfinite(bits).any():
        name, (_, error) = "estimated bound", column(rows, "held_out_bits_per_dim_se")
        row.append(Panel(steps, {name: bits}, over, "held-out bits/dim", standard_errors={name: error}))
    return row


def metric_panels(rows: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Those of `training_panels`, then gradient norm, speed, and further metrics of held-out images and samples."""
    panels = training_panels(rows)
    for name, label in _METRICS.items():
        steps, values = column(rows, name)
        if np.isfinite(values).any():
            panels.append(Panel(steps, {label: values}, "training step", label, yscale=scale(values)))
    return panels


def column(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the lines that have a metric; what is null is nan."""
    having = [row for row in rows if name in row]
    return np.array([row["step"] for row in having]), np.array([row[name] for row in having], np.float64)


def scale(values: np.ndarray) -> Scale:
    """Logarithmic for positive values over more than a decade."""
    return "log" if np.nanmin(values) > 0 and np.nanmax(values) > 10 * np.nanmin(values) else "linear"


def draw_panel(axes: Any, panel: Panel) -> None:
    """Draws a panel on matplotlib's axes."""
    x = np.asarray(panel.x, np.float64)
    for i, (name, values) in enumerate(panel.ys.items()):
        y = np.asarray(values, np.float64)
        finite = np.isfinite(x) & np.isfinite(y)
        marker = "o" if finite.sum() <= MAX_MARKED_POINTS else ""
        axes.plot(x[finite], y[finite], color=f"C{i}", label=name, linewidth=1.5, marker=marker, markersize=3.5)
        if name in panel.standard_errors:
            error = np.asarray(panel.standard_errors[name], np.float64)[finite]
            axes.fill_between(x[finite], y[finite] - error, y[finite] + error, color=f"C{i}", alpha=0.2, linewidth=0)
    axes.set_xscale(panel.xscale)
    axes.set_yscale(panel.yscale)
    for axis, scale in ((axes.xaxis, panel.xscale), (axes.yaxis, panel.yscale)):
        if scale == "log":
            plain_log_labels(axis)
    axes.set_xlabel(panel.xlabel)
    axes.set_ylabel(panel.ylabel)
    if panel.title:
        axes.set_title(panel.title, fontsize="medium")
    axes.grid(True, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if len(panel.ys) > 1:
        axes.legend(frameon=False, fontsize="small")


def plain_log_labels(axis: Any) -> None:
    """Writes the numbers of a logarithmic axis as they are, and those between powers of ten where these are few."""
    from matplotlib import ticker

    class Few(ticker.LogFormatter):
        def __call__(self, x, pos=None):
            return f"{x:g}" if super().__call__(x, pos) else ""

    axis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(Few(labelOnlyBase=False, minor_thresholds=(1.5, 0.7)))
