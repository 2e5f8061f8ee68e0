"""ddpm-jax plot: the curves of metrics.jsonl as a PNG file."""

import json
import sys

from run_programs import run

from ddpm_jax import data
from ddpm_jax.evaluate import plots


def write_metrics(folder, steps):
    rows = []
    for step in steps:
        rows.append({"step": step, "loss": 1 / step, "loss_by_quarter_of_t": [1.0, 0.5, None, 0.1], "grad_norm": 2.0})
        rows.append({"step": step, "held_out_bits_per_dim": 3.0, "held_out_bits_per_dim_se": 0.1, "copying": "new"})
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 5')
    return folder


def test_the_curves_of_a_run_that_is_not_finished_are_drawn_three_in_a_row(tmp_path, monkeypatch):
    drawn, save = [], plots.save_figure
    monkeypatch.setattr(
        plots, "save_figure", lambda path, figure, text: (drawn.append(figure), save(path, figure, text))
    )
    folder = write_metrics(tmp_path / "run", [10, 20, 30])
    shown = run("-m", "ddpm_jax", "plot", folder).stdout
    assert shown == f"curves in {folder / 'curves.png'}\n"
    height, width, _ = data.read_png(folder / "curves.png").image.shape
    assert (height, width) == (2 * 540, 150 + 3 * 630)  # at 150 dots per inch
    axes = drawn[0].axes
    assert [each.get_ylabel() for each in axes if each.get_visible()] == [
        "training loss", "training loss by t", "held-out bits/dim", "gradient norm",
    ]  # fmt: skip
    assert list(axes[0].lines[0].get_xdata()) == [10, 20, 30] and list(axes[3].lines[0].get_ydata()) == [2, 2, 2]


def test_a_file_may_be_named_and_what_cannot_be_drawn_is_an_error(tmp_path):
    run("-m", "ddpm_jax", "plot", write_metrics(tmp_path / "run", [10]), "--out", tmp_path / "new" / "a.png")
    assert data.read_png(tmp_path / "new" / "a.png").image.shape[2] == 4
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    assert "has no metrics yet" in run("-m", "ddpm_jax", "plot", tmp_path / "run", status=2).stderr
    assert "No such file" in run("-m", "ddpm_jax", "plot", tmp_path / "none", status=2).stderr


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    shown = run("-m", "ddpm_jax", "plot", write_metrics(tmp_path / "run", [10]), status=2).stderr
    assert shown == "plot: curves need matplotlib, which is not installed: pip install 'ddpm-jax[figures]'\n"
