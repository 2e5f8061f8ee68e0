"""Rows of docs/experiments.md trained and measured anew."""

import json
import pathlib
from typing import Any

import pytest

from benchmarks import evaluations
from ddpm_jax import tracking
from ddpm_jax.evaluate import protocol
from experiments import one_step_denoising, results_page, run
from experiments.tables import TABLES

TARGETS = "targets-digits", "ε, constant"
RECIPE = "recipe-digits", "all that helped, 24 channels, one block, quad from 3e-4, hybrid"
SHARED = {
    "objectives-digits": "ε, L_simple, fixed variance",
    "schedules-digits": "linear, T = 1000",
    "training-digits": "as configured",
}
"""Rows that are one run, for a run takes minutes.  MNIST's tables need images that the package lacks."""


pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def optimised(monkeypatch):
    """Programs are compiled as they are for users."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)


def test_the_row_of_three_tables_comes_out_again(tmp_path):
    (flags,) = {(TABLES[name].config, TABLES[name].flags, cell(name, row).flags) for name, row in SHARED.items()}
    assert not flags[2]
    numbers = trained(*next(iter(SHARED.items())), tmp_path)
    for name, row in SHARED.items():
        check(numbers, name, row)


def test_the_noise_predicting_row_comes_out_again_and_one_jump_from_it(tmp_path, monkeypatch):
    """Rows of section 1, and the run of section 2 whose images are denoised in one step."""
    check(trained(*TARGETS, tmp_path / "runs"), *TARGETS)
    (again,) = (tmp_path / "runs").iterdir()
    stored = run.read_rows(run.RESULTS / "jump-digits.json")
    monkeypatch.setattr(one_step_denoising, "RESULTS", tmp_path)
    one_step_denoising.main(["jump-digits", str(again), "--nfe", "2"])
    found = run.read_rows(tmp_path / "jump-digits.json")
    rows = [row for row in found if row.endswith("one jump")]
    assert len(rows) == len(one_step_denoising.START_FRACTIONS)
    for row in rows:
        mean, error = results_page.seed_mean(stored, row, results_page.ERROR)
        assert found[row]["0"]["numbers"][results_page.ERROR] == pytest.approx(mean, abs=10 * error), row


def test_the_recipe_that_became_the_config_comes_out_again_and_draws_new_digits_of_all_kinds(tmp_path):
    """Noise, or a network that ignores the time, gets nowhere near the bounds of its samples."""
    check(trained(*RECIPE, tmp_path), *RECIPE)
    (folder,) = tmp_path.iterdir()
    rows = tracking.read_metrics(folder / "metrics.jsonl")
    quarters = [row["loss_by_quarter_of_t"] for row in rows if "loss" in row][-1]
    assert quarters == sorted(quarters, reverse=True)  # noise is easier to tell the more of it there is
    assert rows[-1]["copying"] == "new" and rows[-1]["channels_off"] == []

    drawn = ("--num", "128", "--sampler", "ddim", "--steps", "50")
    evaluations.run_program("-m", "ddpm_jax", "evaluate", str(folder), "samples", *drawn)
    (path,) = (folder / "evaluation").glob("samples-*.json")
    found = {number.name: number.value for number in protocol.read_measurements(path)}
    # an untrained network, by 100 steps: a distance of 180, a precision of 0.01 and a share of 0.25
    assert found["Fréchet distance"] < 25
    assert found["precision, k=3"] > 0.7 and found["share with p > 0.9"] > 0.85
    assert found["classes present, of 10"] == 10
    evaluations.run_program("-m", "ddpm_jax", "evaluate", str(folder), "neighbours", *drawn)
    (path,) = (folder / "evaluation").glob("neighbours-*.json")
    assert json.loads(path.read_text())["verdict"] == "new"


def trained(name: str, row: str, folder: pathlib.Path) -> dict[str, Any]:
    """The numbers of a row, but for those of samples."""
    measures = {measure: TABLES[name].measures[measure] for measure in ("bound", "errors")}
    table = TABLES[name]._replace(measures=measures)
    return run.train_and_measure(table, cell(name, row), 0, folder, run.Arguments(name))["numbers"]


def cell(name: str, row: str):
    (found,) = [each for each in TABLES[name].cells if each.name == row]
    return found


def check(numbers: dict[str, Any], name: str, row: str) -> None:
    """Within four standard deviations over seeds of their mean; on another processor the same seed is another run."""
    table, stored = TABLES[name], run.read_rows(run.RESULTS / f"{name}.json")
    known, T = [seed["numbers"] for seed in stored[row].values()], cell(name, row).T
    assert len(known) == len(table.seeds)
    for what in ("bits/dim", *results_page.X0_ERROR_FRACTIONS):
        mean, _ = results_page.mean_and_error([value(each, what, T) for each in known])
        allowed = 4 * (1 + 1 / len(known)) ** 0.5 * deviation(stored, row, what, table)
        assert abs(value(numbers, what, T) - mean) < allowed, (what, value(numbers, what, T), mean, allowed)


def value(numbers, what: str | float, T: int) -> float:
    """bits/dim, or the error of x_0 at a part of T."""
    return numbers[what][0] if isinstance(what, str) else results_page.error_near(numbers[results_page.BY_T], what * T)


def deviation(stored, row: str, what: str | float, table) -> float:
    """Of one seed: the row's own, and at least the median of those of the table's rows, for three seeds may agree."""
    lengths = {cell.name: cell.T for cell in table.cells}
    values = {name: [value(seed["numbers"], what, lengths[name]) for seed in stored[name].values()] for name in stored}
    found = {
        name: results_page.mean_and_error(each)[1] * len(each) ** 0.5 for name, each in values.items() if len(each) > 1
    }
    return max(found[row], sorted(found.values())[len(found) // 2])
