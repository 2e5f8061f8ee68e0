"""The sweep over lengths of the average: rows, files, and refused requests."""

import dataclasses
import json
import math

import numpy as np
import pytest
import tiny_run
from shared_evaluation import evaluation_context

from ddpm_jax import data, pipeline
from ddpm_jax.checkpoint import snapshots
from ddpm_jax.evaluate import ema, protocol, samples
from ddpm_jax.evaluate.samples import SamplesOptions
from ddpm_jax.programs import cli


@pytest.fixture(scope="module")
def averaged(small, tmp_path_factory):
    """The small run with averages after 3 steps, and snapshots of other averages after 1 and 2."""
    home = tmp_path_factory.mktemp("averaged")
    source = pipeline.Pipeline(small[0], step=None, weights="ema", sampling={}).config.data
    optim = dataclasses.replace(tiny_run.CONFIG.optim, ema_lengths=(0.05, 0.1))
    config = dataclasses.replace(tiny_run.CONFIG, data=source, optim=optim, snapshot_every=1)
    folder = tiny_run.make_run(home / "run", config)
    model = pipeline.Pipeline(folder, step=None, weights="raw", sampling={})
    for step in (1, 2):
        averages = (model.params, model.with_weights("ema").params)
        snapshots.save(folder / "snapshots", step, averages, {"step": step, "count": step})
    return folder, home / "results"


def call(folder, out, *flags):
    flags = ("--num", 66, "--sets", 2, "--sampler", "ddim", "--steps", 4, "--out", out, *flags)
    return cli.call(["evaluate", *map(str, (folder, "ema", *flags))])


@pytest.mark.slow
def test_a_sweep_measures_each_length_beside_the_other_weights(averaged, capsys):
    folder, out = averaged
    assert call(folder, out, "--lengths", 0.09, 0.05, "--estimate", 2) == 0
    lines = (out / "ema.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert rows[0][:3] == ["weights", "bits/dim", "Fréchet distance"]
    assert [row[0] for row in rows[2:]] == ["raw", "ema", "ema:0.05", "ema:0.09", "held-out images, 70"]
    assert rows[-1][1] == "-" and all(row[1] != "-" for row in rows[2:-1])
    assert len({row[2] for row in rows[2:]}) == 5
    found = json.loads((out / "ema.json").read_text())["rows"]
    assert "| estimate of T=20, 2 of each of 2 strata |" in found["ema:0.09"][0]
    assert "| ema:0.09 | ckpt=" in found["ema:0.09"][1] and "ddim 4 of 20 steps" in found["ema:0.09"][1]
    alone = evaluation_context(folder, out, weights="ema:0.09", sampler="ddim", steps=4)
    again = samples.measure_and_write(alone, SamplesOptions(num=66, sets=2))
    assert protocol.format_line(again[0]) == found["ema:0.09"][1]
    assert data.read_png(out / "ema.png").text["legend"] == ema.LEGEND
    assert "curves in ema.png" in capsys.readouterr().out


def test_without_an_estimate_the_sweep_has_sample_metrics_alone(averaged, tmp_path):
    assert call(averaged[0], tmp_path, "--lengths", 0.09) == 0
    rows = json.loads((tmp_path / "ema.json").read_text())["rows"]
    assert [*rows] == ["raw", "ema", "ema:0.09", "held-out images"]
    assert len({row[0].partition(" | ")[0] for row in rows.values()}) == 4  # four distances
    for weights in ("raw", "ema", "ema:0.09"):
        assert f"| {weights} | ckpt=" in rows[weights][0]


def test_without_lengths_those_within_reach_are_measured(averaged):
    context = evaluation_context(averaged[0])
    lengths = ema.select_lengths(context, ema.EmaOptions())
    assert {0.05, 0.1} <= {*lengths} < {*ema.LENGTHS} and lengths == sorted(lengths)
    assert ema.select_lengths(context, ema.EmaOptions(lengths=(0.1, 0.05, 0.1))) == [0.05, 0.1]


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--lengths", 0.05, 0.001], "'ema:0.001' is out of reach of 2 snapshots"),
        (["--lengths", 0.5], "--lengths must lie in (0, 0.2886], got (0.5,)"),
        (["--lengths"], "--lengths must be one or more lengths, got none"),
    ],
)
def test_a_sweep_refuses_before_anything_is_drawn(averaged, tmp_path, capsys, flags, text):
    assert call(averaged[0], tmp_path, *flags) == 2
    assert text in capsys.readouterr().err and not [*tmp_path.iterdir()]


def test_a_run_without_averages_has_no_sweep(small, tmp_path, capsys):
    assert call(small[0], tmp_path) == 2
    assert "kept no averages for post-hoc EMA" in capsys.readouterr().err


def test_the_figure_has_a_curve_over_lengths_and_level_lines():
    def row(weights, length, value):
        return ema.Row(weights, length, [protocol.Measurement("bits/dim", value, 0.1, {"n": 70})])

    held = [protocol.Measurement("Fréchet distance", 3.0, math.nan, {"n": 70})]
    rows = [row("raw", math.nan, 4.0), row("ema", math.nan, 2.0), row("ema:0.05", 0.05, 1.5), row("ema:0.1", 0.1, 1.0)]
    panel = ema.panel(rows, held, "bits/dim")
    assert panel.x == [0.05, 0.1] and [*panel.ys] == ["post-hoc EMA", "raw", "ema"]
    np.testing.assert_array_equal(panel.ys["post-hoc EMA"], [1.5, 1.0])
    np.testing.assert_array_equal(panel.ys["raw"], [4.0, 4.0])
