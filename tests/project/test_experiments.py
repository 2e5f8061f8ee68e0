"""Experiments: rows that are made, kept, shared between tables and put on the page."""

import itertools
import json
import pathlib
import re

import numpy as np
import pytest

from benchmarks import condition_accuracy, evaluations
from ddpm_jax import config as configs
from ddpm_jax import data, tracking
from ddpm_jax.data.sources import DIGIT_NAMES
from ddpm_jax.model import check
from ddpm_jax.pipeline import image_parts
from experiments import manifold, nine_cells, one_step_denoising, results_page, run, tables

ROOT = pathlib.Path(__file__).parents[2]


def test_cells_differ_and_their_flags_are_those_of_train():
    """Every cell is a config that `train.py` takes, and another one than the others of its table."""
    import tyro

    for name, table in tables.TABLES.items():
        cell_names = {}
        for cell in table.cells:
            default = configs.load(ROOT / (cell.config or table.config))
            made = tyro.cli(configs.Config, args=[*table.flags, *cell.flags], default=default)
            check(made)
            assert made.schedule.T == cell.T, (name, cell.name)
            assert made not in cell_names, (name, cell.name, cell_names[made])
            cell_names[made] = cell.name
        assert len({cell.name for cell in table.cells}) == len(table.cells)


def test_no_measurement_has_more_steps_than_the_chain():
    measure = ("samples", "--num", "1000", "--steps", "250")
    assert run.limit_steps(measure, 50) == ("samples", "--num", "1000", "--steps", "50")
    assert run.limit_steps(measure, 4000) == measure


def test_a_row_that_another_table_has_is_taken_from_there(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    table, cell = tables.TABLES["training-digits"], tables.TABLES["training-digits"].cells[0]
    assert run.find_same_run(table, cell, 0) is None
    run.save_row(tmp_path / "objectives-digits.json", "ε, L_simple, fixed variance", 0, {"numbers": {"a": [1, 2]}})
    assert run.find_same_run(table, cell, 0) == {"numbers": {"a": [1, 2]}}
    assert run.find_same_run(table, cell, 1) is None
    assert run.find_same_run(table, table.cells[1], 0) is None
    assert run.find_same_run(tables.TABLES["targets-mnist"], tables.TABLES["targets-mnist"].cells[0], 0) is None


def test_unknown_tables_and_rows_are_refused():
    with pytest.raises(SystemExit, match="no table 'target'; known are targets-digits"):
        run.main(["target"])
    with pytest.raises(SystemExit, match="no row 'x0' in targets-digits; it has ε, constant"):
        run.main(["targets-digits", "--cells", "x0"])
    with pytest.raises(SystemExit, match=r"--run-minutes is for .* equal minutes, targets-digits is none"):
        run.main(["targets-digits", "--run-minutes", "1"])


def test_rows_are_selected_by_name_or_by_its_beginning():
    """A whole name selects one row, also if others begin so."""
    recipes, cells = tables.TABLES["recipe-digits"], tables.TABLES["cells-digits"]
    assert [cell.name for cell in run.select_cells("", recipes, ("rate 4e-3, falling",))] == ["rate 4e-3, falling"]
    assert len(run.select_cells("", cells, ("patch 4",))) == 9
    wanted = ("patch 1, predicts x₀", "U-Net, predicts v, error of ε")
    names = [cell.name for cell in run.select_cells("", cells, wanted)]
    assert names == [wanted[1], *(f"{wanted[0]}, error of {of}" for of in ("ε", "x₀", "v"))]
    assert len(run.select_cells("", cells, ())) == 45


def test_nine_cells_have_equal_minutes_and_say_how_long_they_take():
    for name, networks in tables.NETWORKS.items():
        table = tables.nine_cells(name, 2)
        for network in networks:
            cells = run.select_cells(name, table, (network.name,))
            flags = [dict(zip(cell.flags[::2], cell.flags[1::2], strict=True)) for cell in cells]
            named = [(f["--loss.predicts"], f.get("--loss.space", f["--loss.predicts"])) for f in flags]
            assert named == list(itertools.product(("eps", "x0", "v"), repeat=2))
            for steps in (int(f["--steps"]) for f in flags):
                assert abs(steps / network.steps_a_minute - 2) < 0.05
            assert all(f["--optim.decay"] == f["--steps"] for f in flags)
        made = nine_cells.config_of(table, table.cells[-1], "npz:own.npz")
        assert (made.loss.kind, made.loss.learned_variance, made.schedule.kind) == ("simple", False, "linear")
        assert (made.loss.predicts, made.loss.space, made.data.source) == ("v", "predicted", "npz:own.npz")
    row = {"seconds of training": 200.0, "seconds of measuring": 40.0}
    assert run.describe_duration(table, {}, 30, 2) == "30 runs missing of about 4.0 minutes, 1 hours"
    assert run.describe_duration(table, {"a": {"0": row}}, 45, 1).endswith("about 4.0 minutes, 3 hours")
    assert run.describe_duration(tables.TABLES["targets-digits"], {}, 3, 1) == "3 runs missing"


def test_the_sentences_of_the_table_are_in_no_training_text_and_name_the_digits_in_turn():
    cell = tables.TABLES["text-digits"].cells[1]
    config = configs.load(run.ROOT / cell.config)
    known = condition_accuracy.digit_texts(config.condition.templates)
    assert len(cell.texts) == 70 and len(set(known)) == 480 and not set(known) & set(cell.texts)
    assert all(name in text for name, text in zip(itertools.cycle(DIGIT_NAMES), cell.texts, strict=False))
    assert max(len(text) for text in (*known, *cell.texts)) <= config.text.length


def test_agreement_is_the_share_of_samples_of_the_requested_digit(tmp_path):
    digits = data.load("digits")
    names = np.asarray(digits.test_labels)
    in_turn = np.concatenate([np.asarray(digits.test)[names == i][:1] for i in range(10)] * 2)
    in_turn[3] = in_turn[4]  # a four in place of a three
    (tmp_path / "draws" / "a").mkdir(parents=True)
    image_parts.write_part(tmp_path / "draws" / "a", 0, in_turn)
    share, error = run.read_agreement(tmp_path)
    assert share == pytest.approx(0.95) and error == pytest.approx((0.95 * 0.05 / 20) ** 0.5)


def test_the_figure_of_nine_cells_shows_each_cell_in_its_place():
    """Rows are predictions, columns spaces; the best cell of a network is 1, and missing cells are left out."""
    cells = [cell.name for cell in tables.TABLES["cells-mnist"].cells]
    value = {name: 1.0 + i for i, name in enumerate(cells)}
    found = {
        name: {"0": {"numbers": {of: [value[name], 0.0] for of in ("bits/dim", "Fréchet distance")}}}
        for name in cells if name != cells[5]
    }  # fmt: skip
    axes = nine_cells.figure("cells-mnist", found).axes[:6]
    first, other = axes[0], axes[5]
    assert first.get_title() == "U-Net\nbits/dim" and other.get_title() == "patch 7\nFréchet distance"
    shown = np.ma.filled(first.images[0].get_array(), np.nan)
    np.testing.assert_allclose(10**shown, [[1, 2, 3], [4, 5, np.nan], [7, 8, 9]])
    assert {text.get_position(): text.get_text() for text in other.texts}[1, 0] == f"{value[cells[19]]:g}"
    assert cells[19] == "patch 7, predicts ε, error of x₀"
    assert [len(axis.texts) for axis in axes] == [8, 9, 9] * 2
    found[cells[0]] |= {"1": {"numbers": {of: [1.016, 0.0] for of in ("bits/dim", "Fréchet distance")}}}
    assert nine_cells.figure("cells-mnist", found).axes[0].texts[0].get_text() == "1.0080\n± 0.0080"


def test_a_program_that_fails_is_named_with_what_it_said():
    with pytest.raises(
        evaluations.ProgramFailed, match=r"train.py configs/nothing.py ended with status 2:(.|\n)*no config file"
    ):
        evaluations.run_program("train.py", "configs/nothing.py")


def test_means_have_the_error_of_seeds():
    assert results_page.mean_and_error([1.0, 2.0, 3.0]) == (2.0, pytest.approx(1 / 3**0.5))
    value, error = results_page.mean_and_error([4.0])
    assert value == 4 and error != error


def test_a_table_goes_where_its_marks_are():
    marked = "a\n<!-- one -->\nold\n<!-- end -->\nb\n<!-- two -->\n<!-- end -->\n"
    assert results_page.fill_table(marked, "two", ["x", "y"]) == marked.replace(
        "<!-- two -->\n", "<!-- two -->\nx\ny\n"
    )
    assert results_page.fill_table(marked, "one", ["new"]) == marked.replace("old", "new")
    with pytest.raises(ValueError, match="no place for three"):
        results_page.fill_table(marked, "three", [])


def test_the_pages_are_what_the_raw_results_make_of_them(tmp_path, monkeypatch):
    """`make results` on what is committed changes no byte of the tables, and draws every figure of the pages."""
    copied = tmp_path / "results"
    copied.mkdir()
    for path in (path for suffix in ("json", "npz") for path in (ROOT / "docs" / "results").glob(f"*.{suffix}")):
        (copied / path.name).write_bytes(path.read_bytes())
    page = (ROOT / "docs" / "experiments.md").read_text()
    (tmp_path / "experiments.md").write_text(page)
    monkeypatch.setattr(results_page, "RESULTS", copied)
    monkeypatch.setattr(results_page, "PAGE", tmp_path / "experiments.md")
    results_page.main()
    assert (tmp_path / "experiments.md").read_text() == page
    shown = re.findall(r"\]\(results/(.*?\.png)\)", page + (ROOT / "docs" / "results.md").read_text())
    assert {path.name for path in copied.glob("*.png")} == set(shown), "figures drawn, and figures that the pages show"


def test_only_x0_prediction_finds_a_plane_of_more_dimensions_than_the_network_is_wide():
    """What the width excludes: without a direction of the output, DDIM divides its noise by the signal at T, 1/19."""
    args = manifold.Arguments(width=16, steps=150, batch=32, samples=64, nfe=10, seeds=(0, 1))
    plane = manifold.embedding(64)
    np.testing.assert_allclose(plane.T @ plane, np.eye(2), atol=1e-6)
    off_plane = {
        predicts: [
            manifold.distances(x, plane)[manifold.OFF_PLANE] for x in manifold.train_and_sample(args, predicts, 64)
        ]
        for predicts in ("eps", "x0")
    }
    assert max(off_plane["x0"]) < 1 and min(off_plane["eps"]) > 15 * (62 - 16) ** 0.5


def test_distances_to_the_curve_are_those_of_displaced_points():
    plane, steps = manifold.embedding(8), np.linspace(0, 1, 500)
    on_curve = np.asarray(manifold.spiral(steps)) @ plane.T
    outwards = np.linalg.qr(np.concatenate([plane, np.eye(8)[:, :1]], 1))[0][:, 2]
    found = manifold.distances(on_curve + 3 * outwards, plane)
    assert found[manifold.IN_PLANE] == pytest.approx(0, abs=0.01)
    assert found[manifold.OFF_PLANE] == found[manifold.TOTAL] == pytest.approx(3, abs=1e-4)
    assert manifold.distances(on_curve[:1], plane)[manifold.COVERAGE] > 1  # one point is not the curve
    assert manifold.distances(on_curve * 1.1, plane)[manifold.IN_PLANE] == pytest.approx(0.13, abs=0.03)


@pytest.mark.slow
def test_a_network_that_sees_4_of_16_numbers_of_a_patch_knows_a_quarter_of_the_noise(tmp_path, monkeypatch):
    """A small row of the nine cells: at large t its error is the variance of the noise in the 12 unseen directions."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # compiled as for users
    bound = {"bound": ("likelihood", "--estimate", "2", "--num", "32")}
    monkeypatch.setattr(run, "nine_cells", lambda *args: tables.nine_cells(*args)._replace(measures=bound))
    row = "patch 4 with bottleneck 4, predicts ε, error of ε"
    args = ["cells-digits", "--run-minutes", "0.09", "--seeds", "0", "--runs", str(tmp_path), "--cells", row]
    run.main(args)
    kept = tmp_path / "cells-digits-0.09-minutes.json"
    stored = run.read_rows(kept)
    assert list(stored) == [row] and 3 < stored[row]["0"]["numbers"]["bits/dim"][0] < 10
    (folder,) = (tmp_path / "cells-digits-0.09-minutes").iterdir()
    losses = np.array(tracking.read_metrics(folder / "metrics.jsonl")[-1]["held_out_loss_by_tenth_of_t"])
    assert losses.min() > 0.6 and losses[4:].mean() == pytest.approx(12 / 16, abs=0.05)  # 0.003 without the bottleneck
    before = kept.stat().st_mtime_ns
    run.main(args)  # nothing is missing
    assert kept.stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_small_row_is_made_measured_and_kept(tmp_path, monkeypatch):
    """The whole way, with runs of three steps."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # for the programs
    table = tables.TABLES["targets-digits"]
    small = table._replace(
        flags=("--steps", "3", "--batch", "16", "--net.channels", "8", "--net.groups", "4", "--sample-every", "0"),
        measures={
            "bound": ("likelihood", "--estimate", "2", "--num", "16"),
            "errors": ("likelihood", "--steps", "5", "--num", "16"),
            "samples": ("samples", "--num", "80", "--steps", "2", "--variance-mix", "0"),
        },
        seeds=(0,),
    )
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    monkeypatch.setattr(results_page, "RESULTS", tmp_path)
    monkeypatch.setattr(run, "TABLES", {"targets-digits": small})
    selected = ["--cells", "ε, constant", "x₀, constant", "--runs", str(tmp_path / "runs")]
    run.main(["targets-digits", *selected, "--jobs", "2"])
    stored = json.loads((tmp_path / "targets-digits.json").read_text())
    assert set(stored) == {"ε, constant", "x₀, constant"}
    numbers = stored["x₀, constant"]["0"]["numbers"]
    assert set(numbers) >= {results_page.BY_T, *results_page.COLUMNS.values()}
    assert len(numbers[results_page.BY_T]) == 5 and all(
        0 < value < 255 for value in numbers[results_page.BY_T].values()
    )
    assert "--loss.predicts x0" in stored["x₀, constant"]["0"]["commands"][0]
    lines = results_page.run_table("targets-digits")
    assert len(lines) == 4 and lines[2].startswith("| ε, constant | ")
    assert [panel.title for panel in results_page.target_panels(stored)] == [
        "under a constant weight",
        "x₀ under every weight",
    ]
    before = (tmp_path / "targets-digits.json").stat().st_mtime_ns
    run.main(["targets-digits", *selected])  # nothing is missing
    assert (tmp_path / "targets-digits.json").stat().st_mtime_ns == before

    trained = tmp_path / "runs" / "targets-digits" / "as-configured-0"
    monkeypatch.setattr(one_step_denoising, "RESULTS", tmp_path)
    one_step_denoising.main(["jump-digits", str(trained), "--draws", "1", "--num", "80", "--nfe", "2", "5"])
    lines = results_page.one_step_table("jump-digits")
    assert sum(line.startswith("| t=") for line in lines) == 2 * len(one_step_denoising.START_FRACTIONS)
    found = json.loads((tmp_path / "jump-digits.json").read_text())
    assert set(found["t=1000, ddim, 5 calls"]["0"]["numbers"]) == {results_page.DISTANCE, results_page.ERROR}
    assert len(results_page.nfe_panels(found)) == 3
    with np.load(tmp_path / "jump-digits-images.npz") as stored:
        assert stored["t=1000, one jump"].shape == stored["t=100"].shape == (one_step_denoising.NUM_PICTURES, 8, 8, 1)
        rows = [label.get_text() for label in results_page.one_step_figure(stored).axes[0].get_yticklabels()]
        assert rows == ["image", "x_t", "one step", "ancestral, 2", "ancestral, 5", "ddim, 2", "ddim, 5"]
