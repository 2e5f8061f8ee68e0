"""Sample quality against NFE: the grid of samplers, the files, and refused requests."""

import json

import numpy as np
import pytest
from shared_evaluation import ddim_context

from ddpm_jax import data
from ddpm_jax.evaluate import nfe, protocol, samples
from ddpm_jax.evaluate.samples import SamplesOptions
from ddpm_jax.programs import cli


def test_calls_measures_each_sampler_at_each_number_of_steps(small, capsys):
    folder, out = small
    arguments = [folder, "nfe", "--num", "66", "--sets", "2", "--ancestral", "20", "--ddim", "4", "--unipc"]
    arguments += ["--dpm-solver-pp", "4", "--out", out]
    assert cli.call(["evaluate", *map(str, arguments)]) == 0
    lines = (out / "nfe.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert rows[0][:3] == ["", "NFE", "Fréchet distance"]
    assert [row[:2] for row in rows[2:]] == [
        ["ancestral", "20"], ["DDIM, uniform", "4"], ["DDIM, quadratic", "4"],
        ["DPM-Solver++, uniform", "4"], ["DPM-Solver++, quadratic", "4"], ["held-out images, 70", "-"],
    ]  # fmt: skip
    found = json.loads((out / "nfe.json").read_text())["rows"]
    assert [*found] == [*(f"{label}, {n} calls" for label, n, *_ in rows[2:-1]), "held-out images"]
    assert "| dpm_solver_pp 4 of 20 steps quadratic order=2" in found["DPM-Solver++, quadratic, 4 calls"][0]
    alone = ddim_context(folder, out, sampler="ddim", steps=4, spacing="quadratic")
    again = samples.measure_and_write(alone, SamplesOptions(num=66, sets=2))
    assert protocol.format_line(again[0]) == found["DDIM, quadratic, 4 calls"][0]
    assert data.read_png(out / "nfe.png").text["legend"] == nfe.LEGEND
    assert "curves in nfe.png" in capsys.readouterr().out


def test_calls_goes_from_few_steps_to_many_and_once_through_the_complete_chain():
    options = nfe.NfeOptions(ancestral=(20,), ddim=(20, 4, 2, 4), dpm_solver_pp=(), unipc=(2,))
    found = [(label, *selected.values()) for label, selected in nfe.sampler_grid(options, 20)]
    assert found == [
        ("ancestral", "ancestral", 20, "uniform"),
        ("DDIM, uniform", "ddim", 2, "uniform"),
        ("DDIM, uniform", "ddim", 4, "uniform"),
        ("DDIM", "ddim", 20, "uniform"),
        ("DDIM, quadratic", "ddim", 2, "quadratic"),
        ("DDIM, quadratic", "ddim", 4, "quadratic"),
        ("UniPC, uniform", "unipc", 2, "uniform"),
        ("UniPC, quadratic", "unipc", 2, "quadratic"),
    ]


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--ancestral", "1000"], "--ancestral must be 1 to 20, the steps of the schedule, got 1000"),
        (["--ancestral", "--ddim", "0", "5"], "--ddim must lie in [1, 1000000], got (0, 5)"),
        (["--ancestral", "--ddim", "--dpm-solver-pp", "--unipc"], "nothing to measure: --ancestral, --ddim, --dpm"),
        (["--ancestral", "20", "--spacings"], "are all empty, or --spacings is"),
    ],
)
def test_calls_refuses_before_anything_is_drawn(run_folder, tmp_path, capsys, flags, text):
    assert cli.call(["evaluate", str(run_folder), "nfe", *flags, "--out", str(tmp_path)]) == 2
    assert text in capsys.readouterr().err


def test_the_curves_of_calls_have_their_own_points_alone():
    def row(label, n, value):
        return nfe.Row(label, n, [protocol.Measurement("Fréchet distance", value, 0.1, {"n": 70})])

    panel = nfe.panel([row("ancestral", 20, 1.0), row("DDIM", 2, 4.0), row("DDIM", 5, 2.0)])
    assert panel.x == [2, 5, 20]
    np.testing.assert_array_equal(panel.ys["DDIM"], [4, 2, np.nan])
    np.testing.assert_array_equal(panel.ys["ancestral"], [np.nan, np.nan, 1])
