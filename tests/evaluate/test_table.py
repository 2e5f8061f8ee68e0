"""The table of samplers: its rows, their settings, and a learned variance's single chain."""

import dataclasses
import json

import pytest
import shared_evaluation
import tiny_run
from shared_evaluation import ddim_context

from ddpm_jax import config as configs
from ddpm_jax import data
from ddpm_jax.evaluate import likelihood as bounds
from ddpm_jax.evaluate import protocol, sample_cache, table
from ddpm_jax.evaluate.context import load_images, select_split
from ddpm_jax.programs import cli

DIGITS = data.load("digits")


def test_the_table_has_a_row_for_each_sampler_and_the_baseline(small):
    folder, out = small
    arguments = [folder, "table", "--num", "66", "--sets", "2", "--ddim", "4", "--out", out]
    assert cli.call(["evaluate", *map(str, arguments)]) == 0
    rows = [line.split("|")[1:-1] for line in (out / "table.md").read_text().splitlines()]
    assert [row[0].strip() for row in rows[2:]] == [
        "held-out images", "training images, left out", "ancestral, mix 0", "ancestral, mix 1", "DDIM, 4 steps",
    ]  # fmt: skip
    cells = {row[0].strip(): dict(zip(map(str.strip, rows[0]), map(str.strip, row), strict=True)) for row in rows[2:]}
    assert cells["DDIM, 4 steps"]["bits/dim"] == "-"
    model = ddim_context(folder, out, sampler="ancestral", steps=20, variance_mix=0.0)
    again, _ = bounds.load_or_measure(model, select_split(load_images(model), "test"), bounds.LikelihoodOptions())
    assert float(cells["ancestral, mix 0"]["bits/dim"].split()[0]) == pytest.approx(again.total.mean(), abs=1e-2)
    assert " ± " in cells["ancestral, mix 1"]["Fréchet distance"]
    baseline, noise = (
        float(cells[row]["Fréchet distance"].split()[0]) for row in ("training images, left out", "DDIM, 4 steps")
    )
    assert 0 < baseline < 0.5 * noise


def test_more_steps_than_the_schedule_has_are_refused_before_anything_is_measured(run_folder, tmp_path, capsys):
    assert cli.call(["evaluate", str(run_folder), "table", "--num", "66", "--out", str(tmp_path / "out")]) == 2
    assert "--ddim must be 1 to 20, the steps of the schedule, got 10 50 250" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_table_of_a_learned_variance_has_one_chain(drawn, tmp_path, monkeypatch):
    """What is measured, and not the measurement: another network would have to be compiled for it."""
    protocols = {}

    def row(run, options, _):
        of_all = {"n": options.num, **sample_cache.protocol_fields(run, 0, "integer")}
        if run.model.config.sampling.sampler == "ancestral":
            of_all |= bounds.protocol_fields(run, select_split(DIGITS, "test"), bounds.LikelihoodOptions())
        protocols[run.model.config.sampling.sampler] = protocol.format_line(protocol.Measurement("x", 1.0, 0.1, of_all))
        return [protocol.Measurement("x", 1.0, 0.1, of_all)]

    run = shared_evaluation.replace_config(drawn, loss=configs.Loss("hybrid"))
    monkeypatch.setattr(table, "measure_row", row)
    table.run(run._replace(out=tmp_path), table.TableOptions(num=70, sets=1, ddim=(2,)))
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert list(rows) == [
        "held-out images", "training images, left out", "ancestral, learned variance", "DDIM, 2 steps",
    ]  # fmt: skip
    assert "learned" in protocols["ancestral"] and "mix" not in protocols["ancestral"]
    assert list(protocols) == ["ancestral", "ddim"]


@pytest.mark.slow
def test_the_whole_table_of_a_learned_variance(tmp_path):
    folder = tiny_run.make_run(tmp_path / "run", dataclasses.replace(tiny_run.CONFIG, loss=configs.Loss("hybrid")))
    arguments = [folder, "table", "--num", "70", "--sets", "1", "--ddim", "2", "--out", tmp_path]
    assert cli.call(["evaluate", *map(str, arguments)]) == 0
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert all("learned" in line and "mix" not in line for line in rows["ancestral, learned variance"])


def test_the_table_asks_for_the_settings_of_each_row(run_folder, tmp_path):
    other = ddim_context(run_folder, tmp_path).with_sampling(sampler="ddim", steps=3, eta=0.0)
    assert other.model.config.sampling.steps == 3 and other.model.step == 3
    assert sample_cache.protocol_fields(other, 0, "integer")["samples"] == "ddim 3 of 20 steps uniform eta=0"
