"""Rows of docs/results.md trained and measured anew, of each table one."""

import pytest

from experiments import jump, page, run
from experiments.tables import TABLES

ROWS = {
    "targets-digits": "ε, constant",
    "objectives-digits": "ε, L, fixed variance",
    "schedules-digits": "linear, T = 50",
    "training-digits": "dropout 0",
}
"""`targets-mnist` needs images that the package does not have."""

MEASURED = [name for name in ROWS if len(run.read(run.RESULTS / f"{name}.json").get(ROWS[name], {})) > 2]
"""Those whose seeds are all there."""


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURED)
def test_a_row_comes_out_again(name, tmp_path, monkeypatch):
    """Within four standard deviations over seeds of their mean; on another processor the same seed is another run."""
    table, kept = TABLES[name], run.read(run.RESULTS / f"{name}.json")
    (cell,) = [cell for cell in table.cells if cell.name == ROWS[name]]
    measures = {measure: table.measures[measure] for measure in ("bound", "errors")}
    args = run.Arguments(name, runs=str(tmp_path))
    numbers = run.row(table._replace(measures=measures), cell, 0, tmp_path, args)["numbers"]
    known = [seed["numbers"] for seed in kept[cell.name].values()]
    for what in ("bits/dim", *page.AT):
        mean, _ = page.mean([value(each, what, cell.T) for each in known])
        allowed = 4 * (1 + 1 / len(known)) ** 0.5 * deviation(kept, cell.name, what, table)
        assert abs(value(numbers, what, cell.T) - mean) < allowed, (what, value(numbers, what, cell.T), mean, allowed)
    if name == "targets-digits" and (jumps := run.read(run.RESULTS / "jump-digits.json")):
        monkeypatch.setattr(jump, "RESULTS", tmp_path)
        jump.main(["jump-digits", str(next(tmp_path.iterdir())), "--calls", "2"])
        for row, found in run.read(tmp_path / "jump-digits.json").items():
            if row.endswith("one jump"):
                error = found["0"]["numbers"][page.ERROR]
                mean, seeds = page.of_seeds(jumps, row, page.ERROR)
                assert error == pytest.approx(mean, abs=10 * seeds), row


def value(numbers, what: str | float, T: int) -> float:
    """bits/dim, or the error of x_0 at a part of T."""
    return numbers[what][0] if isinstance(what, str) else page.near(numbers[page.BY_T], what * T)


def deviation(kept, row: str, what: str | float, table) -> float:
    """Of one seed: the row's own, and at least the median of those of the table's rows, for three seeds may agree."""
    lengths = {cell.name: cell.T for cell in table.cells}
    values = {name: [value(seed["numbers"], what, lengths[name]) for seed in kept[name].values()] for name in kept}
    found = {name: page.mean(each)[1] * len(each) ** 0.5 for name, each in values.items() if len(each) > 1}
    return max(found[row], sorted(found.values())[len(found) // 2])
