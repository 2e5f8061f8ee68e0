"""The model card: it holds what the files hold, and names what is missing."""

import json
import math
import re
import shutil
import sys
import urllib.parse

import numpy as np
import pytest
from shared_evaluation import evaluation_context, ideal_model

from ddpm_jax import data, tracking
from ddpm_jax.config import flags
from ddpm_jax.evaluate import likelihood, model_card, protocol
from ddpm_jax.evaluate.context import CommonFlags, EvaluationContext, open_context
from ddpm_jax.evaluate.figures import neighbours, progressive, rate_distortion
from ddpm_jax.evaluate.figures.neighbours import NeighboursOptions
from ddpm_jax.evaluate.figures.progressive import ProgressiveOptions
from ddpm_jax.evaluate.figures.rate_distortion import RateDistortionOptions
from ddpm_jax.evaluate.likelihood import LikelihoodOptions
from ddpm_jax.evaluate.model_card import ReportOptions
from ddpm_jax.programs import evaluate as evaluation

DIGITS = data.load("digits")


@pytest.fixture(scope="module")
def finished(run_folder, tmp_path_factory):
    """A run's folder with metrics, grids and some evaluations, one of them of other weights; never changed."""
    folder = shutil.copytree(run_folder, tmp_path_factory.mktemp("finished") / "my run")
    metrics = tracking.MetricsLog(folder / "metrics.jsonl")
    for step in range(1, 4):
        quarters = [0.5, 0.3, None if step == 1 else 0.1, 0.01 / step]
        metrics.write(
            {"step": step, "loss": 1 / step, "loss_by_quarter_of_t": quarters, "skipped": 1, "images_per_s": 7}
        )
    held_out = {"held_out_loss": 0.25, "held_out_bits_per_dim": 4.321, "held_out_bits_per_dim_se": 0.012}
    metrics.write({"step": 3, **held_out})
    (folder / "samples").mkdir()
    for step in (3, 20):
        data.write_png(folder / "samples" / f"{step}.png", data.make_grid(DIGITS.test[:step], 17))
    run = open_context(str(folder), CommonFlags())
    likelihood.run(run, LikelihoodOptions(num=3))
    rate_distortion.run(run, RateDistortionOptions(num=3))
    neighbours.run(run._replace(model=ideal_model(folder)), NeighboursOptions(num=4, rows=2, k=2))
    raw = EvaluationContext(ideal_model(folder, weights="raw"), CommonFlags(flags.Weights("raw")), run.out)
    progressive.run(raw, ProgressiveOptions(num=1, frames=2))
    return folder


@pytest.fixture(scope="module")
def card(finished, tmp_path_factory):
    """A copy of that folder, which is another place, and the report that was written there."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("card") / "moved")
    model_card.run(open_context(str(folder), CommonFlags()), ReportOptions())
    return folder, (folder / "report.md").read_text()


def links(text):
    return [urllib.parse.unquote(link) for link in re.findall(r"\]\(([^)]+)\)", text)]


def test_every_number_is_in_the_report_with_its_protocol(card):
    folder, text = card
    paths = list((folder / "evaluation").glob("*.json"))
    lines = [row["line"] for path in paths for row in json.loads(path.read_text()).get("numbers", [])]
    assert len(paths) == 4 and len(lines) == 5 + 2 + 9
    for line in lines:
        assert f"\n{line}\n" in text
    assert "4.321 ± 0.012, estimated bound at step 3" in text and "| steps skipped | 3 |" in text
    verdict = next(json.loads(path.read_text())["reason"] for path in paths if path.stem.startswith("neighbours"))
    assert verdict in text
    model = open_context(str(folder), CommonFlags()).model
    for fact in (model.fingerprint, "step 3 of 3", "1,500 training and 297 held-out", "| `schedule.T` | 1000 | 20 |"):
        assert fact in text


def test_every_link_exists_wherever_the_folder_goes(card, tmp_path):
    folder, text = card
    pictures = {path.name for path in (folder / "evaluation").iterdir() if path.suffix in (".png", ".gif")}
    moved = folder.rename(tmp_path / "moved again")
    found = links(text)
    there = [(moved / link).is_file() for link in found]
    moved.rename(folder)
    assert all(there)
    assert {link.rpartition("/")[2] for link in found} == pictures | {"20.png", "training.png"}


def test_what_was_not_measured_is_named_with_its_command(card):
    text = card[1]
    done = {"likelihood", "rate_distortion", "neighbours"}  # of progressive there is only one of other weights
    done |= {"ema"}  # for which the run keeps no averages
    for command in model_card.COMMANDS:
        assert (f": `ddpm-jax evaluate RUN {command}`" in text) == (command not in done), command
    assert "Reverse process, x_t over time (of other weights)" in text
    assert set(evaluation.COMMANDS) - {"report"} <= set(model_card.COMMANDS)  # or what they measure would go unnoticed


def test_a_report_elsewhere_takes_the_runs_pictures_along(finished, tmp_path):
    out = tmp_path / "results of mine"
    shutil.copytree(finished / "evaluation", out)
    model_card.run(evaluation_context(finished, out), ReportOptions())
    found = links((out / "report.md").read_text())
    assert "report/samples-20.png" in found and all((out / link).is_file() for link in found)
    assert not (finished / "report.md").exists()


@pytest.mark.parametrize("line", [None, {"step": 1, "skipped": 1, "seen": ""}])  # of a step that was not finite
def test_a_run_without_anything_says_what_it_lacks(run_folder, tmp_path, capsys, line):
    run = shutil.copytree(run_folder, tmp_path / "run")
    if line is not None:
        tracking.MetricsLog(run / "metrics.jsonl").write(line)
    model_card.run(evaluation_context(run, tmp_path, source="npz:gone.npz"), ReportOptions())
    text, out = (tmp_path / "report.md").read_text(), capsys.readouterr().out
    for lacking in (
        "not there: the data, so their number and hashes are missing: load: no file gone.npz",
        "not there: losses of training: RUN/metrics.jsonl is missing or has none",
        "not there: samples from training",
    ):
        assert f"\n- {lacking}" in text and f"\n  {lacking}" in out
    assert links(text) == []


def test_results_of_a_renamed_command_are_read(run_folder, tmp_path):
    own = evaluation_context(run_folder, tmp_path).weights_fields()["ckpt"]
    line = f"Fréchet distance 12 | n=66 | ckpt={own} | seed=0"
    (tmp_path / "calls.json").write_text(json.dumps({"rows": {"DDIM, uniform, 4 calls": [line]}, "made_with": {}}))
    (tmp_path / "calls.md").write_text("| | NFE |\n|---|---|\n| DDIM | 4 |\n")
    model_card.run(evaluation_context(run_folder, tmp_path), ReportOptions())
    text = (tmp_path / "report.md").read_text()
    assert "Sample quality against function evaluations, calls.json:\n\n| | NFE |" in text and f"\n{line}\n" in text
    assert "`ddpm-jax evaluate RUN nfe`" not in text


def test_a_bar_does_not_end_a_cell(tmp_path):
    card = model_card.ModelCard(tmp_path)
    card.add_table(("field", "here"), [("data.source", "npz:a|b.npz"), ("steps", 3)])
    assert card.parts == ["| field | here |\n|---|---|\n| data.source | npz:a\\|b.npz |\n| steps | 3 |"]


def test_names_and_texts_are_neither_markup_nor_code(tmp_path):
    card = model_card.ModelCard(tmp_path)
    card.add_table(("name",), [("<img src=x onerror=y>|\x1b[2J\n# b",)])
    data.write_png(tmp_path / "a.png", np.zeros((1, 1, 1), np.uint8))
    card.add_image(tmp_path / "a.png", "<b>: ```c")
    assert card.parts == [
        "| name |\n|---|\n| '&lt;img src=x onerror=y&gt;\\|\\x1b[2J\\n# b' |",
        "![&lt;b&gt;](a.png)",
        "&lt;b&gt;: ```c",
    ]
    assert model_card.code_block("text", "a\n```\n<b>\n````\n") == "`````text\na\n```\n<b>\n````\n`````"
    line = protocol.format_line(
        protocol.Measurement("x", 1.0, math.nan, {"asked": "labels a | n=9", "data": "b | n=8", "n": 7})
    )
    assert line == "x 1 | asked=labels a \\| n=9 | b \\| n=8 | n=7"


def test_a_bound_of_one_image_has_no_error_bar():
    row = {"step": 3, "held_out_loss": 0.25, "held_out_bits_per_dim": 4.321, "held_out_bits_per_dim_se": None}
    assert ("held-out bits/dim", "4.321, estimated bound at step 3") in model_card.training_summary([row])


def test_without_matplotlib_the_report_is_written_and_says_so(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    shutil.copy(*finished.glob("evaluation/likelihood-*.npz"), tmp_path)
    shutil.copy(*finished.glob("evaluation/likelihood-*.json"), tmp_path)
    model_card.run(evaluation_context(finished, tmp_path), ReportOptions())
    message = "not drawn: training curves: curves need matplotlib, which is not installed: pip install 'ddpm-jax[fig"
    assert message in capsys.readouterr().out and message in (tmp_path / "report.md").read_text()
    rate_distortion.run(evaluation_context(finished, tmp_path), RateDistortionOptions(num=3))
    assert "no curves: curves need matplotlib" in capsys.readouterr().out
    assert list(tmp_path.glob("rate_distortion-*.csv")) and not list(tmp_path.glob("rate_distortion-*.png"))


def test_a_file_that_is_no_result_is_named(finished, tmp_path, capsys):
    (tmp_path / "notes.json").write_text("{}")
    model_card.run(evaluation_context(finished, tmp_path), ReportOptions())
    assert f"left out: {tmp_path / 'notes.json'} holds no numbers" in capsys.readouterr().out
    (tmp_path / "notes.json").write_text("{")
    with pytest.raises(ValueError, match=r"notes\.json is not JSON \(.*\): remove it"):
        model_card.run(evaluation_context(finished, tmp_path), ReportOptions())
    (tmp_path / "notes.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"notes\.json is no result, but \[1\]: remove it"):
        model_card.run(evaluation_context(finished, tmp_path), ReportOptions())
    (tmp_path / "notes.json").write_text('{"numbers": [{}]}')
    with pytest.raises(ValueError, match=r"notes\.json is damaged \(KeyError: 'name'\): remove it"):
        model_card.run(evaluation_context(finished, tmp_path), ReportOptions())
    (tmp_path / "notes.json").rename(tmp_path / "table.json").write_text("{}")
    with pytest.raises(ValueError, match=r"table\.json is damaged \(it has no rows\): remove it"):
        model_card.run(evaluation_context(finished, tmp_path), ReportOptions())
