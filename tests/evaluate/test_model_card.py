"""Rate and distortion against closed forms, copies that were planted, and a report that holds what the files hold."""

import json
import math
import re
import shutil
import sys
import urllib.parse

import numpy as np
import pytest
import shared_evaluation

from ddpm_jax import config as configs
from ddpm_jax import data, tracking
from ddpm_jax.config import flags
from ddpm_jax.evaluate import likelihood, model_card, plots, protocol, sample_cache
from ddpm_jax.evaluate.context import CommonFlags, EvaluationContext, open_context
from ddpm_jax.evaluate.figures import figure, neighbours, progressive, rate_distortion
from ddpm_jax.evaluate.figures.neighbours import NeighboursOptions
from ddpm_jax.evaluate.figures.progressive import ProgressiveOptions
from ddpm_jax.evaluate.figures.rate_distortion import RateDistortionOptions
from ddpm_jax.evaluate.likelihood import LikelihoodOptions
from ddpm_jax.evaluate.model_card import ReportOptions
from ddpm_jax.programs import evaluate as program

DIGITS = data.load("digits")


@pytest.fixture(scope="module", autouse=True)
def shared():
    with shared_evaluation.share_programs():
        yield


of = shared_evaluation.evaluation_context


# --- rate and distortion


def test_rate_and_distortion_of_gaussian_data_are_the_known_ones(run_folder, tmp_path):
    """12,800 values: their mean square is known to sqrt(2 / 12800) = 1.25 %, and each squared error as well."""
    n, var, levels = 200, 1 / 25, 65536
    x0 = np.random.default_rng(0).normal(0, var**0.5, (n, 8, 8, 1))
    test = np.rint((x0 + 1) * (levels - 1) / 2).astype(np.uint16)
    np.savez(tmp_path / "gauss.npz", train=test[:2], test=test)
    which = CommonFlags(source=f"npz:{tmp_path / 'gauss.npz'}")
    ideal = EvaluationContext(
        shared_evaluation.ideal_model(run_folder, shared_evaluation.Narrow, tile=25), which, tmp_path
    )
    # so many levels that rounding to them is no matter
    ideal = shared_evaluation.replace_config(ideal, levels=levels, data=configs.Data(levels=levels))
    assert rate_distortion.run(ideal, RateDistortionOptions()) == 0
    (path,) = tmp_path.glob("rate_distortion-*.csv")
    found = rate_distortion.read_csv(path)

    bar = np.r_[1, np.cumprod(1 - np.linspace(0.005, 0.6, 20))]  # the run's alpha-bar
    error = var * (1 - bar) / (bar * var + 1 - bar)  # of the ideal estimate at each t
    t = np.arange(20, 1, -1)
    beta = 1 - bar[t] / bar[t - 1]
    small = beta * (1 - bar[t - 1]) / (1 - bar[t])
    random = 0.5 * bar[t - 1] * (beta / (1 - bar[t])) ** 2 * error[t] / beta
    prior = 0.5 * (bar[-1] * var + (1 - bar[-1]) - 1 - np.log(1 - bar[-1]))
    known = np.r_[prior, prior + np.cumsum(0.5 * (np.log(beta / small) + small / beta - 1) + random)] / np.log(2)
    slack = 4 * (2 / x0.size) ** 0.5
    np.testing.assert_array_equal(found.times, np.arange(20, 0, -1))
    limit = slack * np.r_[bar[-1] * var, bar[-1] * var + np.cumsum(random)] / np.log(2)  # as if all erred alike
    assert (abs(found.rate - known) < limit + 1e-6).all()
    assert (np.diff(known) > 3 * limit[1:]).all()  # so that no row passes for the next one
    np.testing.assert_allclose(found.rmse, 127.5 * np.sqrt(error[:0:-1]), rtol=slack / 2)


@pytest.mark.parametrize(("sampling", "ten"), [({}, range(20, 0, -2)), ({"steps": 7, "spacing": "quadratic"}, None)])
def test_the_last_row_is_the_bound_without_the_decoder(run_folder, tmp_path, capsys, monkeypatch, sampling, ten):
    run = of(run_folder, tmp_path, **sampling)._replace(model=shared_evaluation.ideal_model(run_folder, **sampling))
    assert likelihood.run(run, LikelihoodOptions(num=5)) == 0
    monkeypatch.setattr(likelihood, "measure", None)  # the number is there: it is not measured again
    assert rate_distortion.run(run, RateDistortionOptions(num=5)) == 0
    (path,) = tmp_path.glob("rate_distortion-*.csv")
    (kept,) = tmp_path.glob("likelihood-*.json")
    bound = {number.name: number for number in protocol.read_measurements(kept)}
    total = bound["bits/dim"].value - bound["distortion, bits/dim"].value
    found = rate_distortion.read_csv(path)
    assert found.rate[-1] == pytest.approx(total, rel=1e-6)
    assert found.rate[0] == pytest.approx(bound["prior, bits/dim"].value, rel=1e-6)
    assert found.rmse[-1] == pytest.approx(bound["RMSE of x_0, 0..255"].value, rel=1e-6)
    assert (np.diff(found.rate) >= 0).all()
    np.testing.assert_array_equal(found.times, run.model.times[:-1])
    rate, rmse = protocol.read_measurements(path.with_suffix(".json"))
    assert rate.value == pytest.approx(total, rel=1e-6) and rmse == bound["RMSE of x_0, 0..255"]._replace(
        name=rmse.name
    )
    assert rate.protocol == bound["bits/dim"].protocol
    table = path.with_suffix(".md").read_text().partition("\n\n")[0]
    assert table in capsys.readouterr().out
    shown = [int(row) for row in re.findall(r"^\| (\d+)", table, re.MULTILINE)]
    assert shown == (list(ten) if ten else (21 - found.times[::-1]).tolist())


def test_what_the_csv_holds_comes_back(run_folder, tmp_path):
    values = np.random.default_rng(0).uniform(0, 1, (4, 3)) * [[1e-6], [1], [1e2], [1e5]]
    values[1] = np.nan  # as errors are where there is one image
    files = figure.FigureFiles(of(run_folder, tmp_path), "curve", {})
    columns = [np.array([9, 4, 1], np.int32), np.array([1, 6, 9]), values[3], values[2], values[0], values[1]]
    files.save_csv(rate_distortion.CSV_HEADER, zip(*columns, strict=True))
    back = rate_distortion.read_csv(files.path.with_suffix(".csv"))
    np.testing.assert_array_equal(back.times, [9, 4, 1])
    np.testing.assert_allclose(back[1:], values, rtol=1e-6)


def test_an_estimate_has_no_rate_and_distortion(run_folder, tmp_path):
    estimate = likelihood.empty_result(of(run_folder, tmp_path).model, LikelihoodOptions(estimate=2), 3)
    with pytest.raises(ValueError, match="an estimate does not have the term of every step"):
        rate_distortion.from_vlb(estimate)


# --- neighbours


@pytest.fixture(scope="module")
def drawn(run_folder, tmp_path_factory):
    """Eight samples, where the command looks for them before it draws any, and those samples."""
    out = tmp_path_factory.mktemp("drawn")
    run = of(run_folder, out, steps=4)
    model = shared_evaluation.ideal_model(
        run_folder, steps=4
    )  # the network says nothing here, and to compile it takes seconds
    kept = sample_cache.ensure_samples(run._replace(model=model), 8, 0, "integer")
    return out, np.concatenate(list(sample_cache.read_chunks(kept, 0, 8)))


def planted(folder, out, drawn, train, flip=False):
    """The run with these training images, its samples being drawn."""
    shutil.copytree(drawn[0], out, dirs_exist_ok=True)
    np.savez(out / "planted.npz", train=train, test=DIGITS.test)
    run = of(folder, out, source=f"npz:{out / 'planted.npz'}", steps=4)
    return shared_evaluation.replace_config(run, data=configs.Data(levels=17, flip=flip))


def result(out):
    (path,) = out.glob("neighbours-*.json")
    return json.loads(path.read_text()), data.read_png(path.with_suffix(".png")).image[::8, ::8, 0]


@pytest.mark.parametrize("flip", [False, True])
def test_a_planted_copy_comes_first(run_folder, tmp_path, drawn, flip):
    samples, train = drawn[1], DIGITS.train[:90].copy()
    train[37] = samples[5][:, ::-1] if flip else samples[5]
    run = planted(run_folder, tmp_path, drawn, train, flip)
    assert neighbours.run(run, NeighboursOptions(num=8, rows=3, k=2)) == 0
    found, picture = result(tmp_path)
    first, second, *_ = found["neighbours"]
    assert (first["sample"], first["train"][0], first["mirrored"][0], first["distance"][0]) == (5, 37, flip, 0)
    # the others by the formula: root mean square over pixels, over all training images, mirrored where training mirrors
    every = np.concatenate([train, train[:, :, ::-1]]) if flip else train
    direct = np.sqrt(((samples[:, None].astype(float) - every) ** 2).mean((2, 3, 4)))
    nearest = np.sort(direct, 1)[:, :2]
    assert second["distance"] == pytest.approx(nearest[second["sample"]], rel=1e-12)
    assert [row["sample"] for row in found["neighbours"]] == np.argsort(nearest[:, 0], kind="stable").tolist()
    median = next(
        n["value"] for n in found["numbers"] if n["name"] == "nearest training image, samples, median, RMS in levels"
    )
    assert median == pytest.approx(np.median(nearest[:, 0]))
    # columns of the picture: the sample, two pixels of grey, its neighbours
    np.testing.assert_array_equal(picture[1:9, 1:9], np.rint(samples[5][..., 0] * (255 / 16)))
    np.testing.assert_array_equal(picture[1:9, 11:19], picture[1:9, 1:9])
    assert picture.shape == (3 * 9 + 1, 10 + 2 * 9 + 1)


def test_copies_of_everything_are_called_copies(run_folder, tmp_path, drawn, capsys):
    run = planted(run_folder, tmp_path, drawn, np.concatenate([DIGITS.train[:40], drawn[1]]))
    assert neighbours.run(run, NeighboursOptions(num=8, rows=8, k=1, features="classifier")) == 0
    found, _ = result(tmp_path)
    assert found["verdict"] == "copies" and f"verdict in pixels: {found['reason']}\n" in capsys.readouterr().out
    for row in found["neighbours"]:  # in the classifier's features as well, to the rounding of its batches
        assert row["train"] == [40 + row["sample"]] and row["distance"][0] < 1e-3


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (NeighboursOptions(num=4, rows=5), "--rows must be 1 to --num, 4, got 5"),
        (NeighboursOptions(num=4, rows=1, k=1501), "--k must be 1 to 1500, the number of training images, got 1501"),
    ],
)
def test_rows_that_cannot_be_shown_are_refused(run_folder, tmp_path, options, text):
    with pytest.raises(ValueError, match=text):
        neighbours.run(of(run_folder, tmp_path), options)


# --- the report


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
    neighbours.run(run._replace(model=shared_evaluation.ideal_model(folder)), NeighboursOptions(num=4, rows=2, k=2))
    raw = EvaluationContext(
        shared_evaluation.ideal_model(folder, weights="raw"), CommonFlags(flags.Weights("raw")), run.out
    )
    progressive.run(raw, ProgressiveOptions(num=1, frames=2))
    return folder


@pytest.fixture(scope="module")
def card(finished, tmp_path_factory):
    """A copy of that folder, which is another place, and the report that was written there."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("card") / "moved")
    assert model_card.run(open_context(str(folder), CommonFlags()), ReportOptions()) == 0
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
    for command in model_card.COMMANDS:
        assert (f": `ddpm-jax evaluate RUN {command}`" in text) == (command not in done), command
    assert "Reverse process, x_t over time (of other weights)" in text
    assert set(program.COMMANDS) - {"report"} <= set(model_card.COMMANDS)  # or what they measure would go unnoticed


def test_a_report_elsewhere_takes_the_runs_pictures_along(finished, tmp_path):
    out = tmp_path / "results of mine"
    shutil.copytree(finished / "evaluation", out)
    assert model_card.run(of(finished, out), ReportOptions()) == 0
    found = links((out / "report.md").read_text())
    assert "report/samples-20.png" in found and all((out / link).is_file() for link in found)
    assert not (finished / "report.md").exists()


def test_a_run_without_anything_says_what_it_lacks(run_folder, tmp_path, capsys):
    assert model_card.run(of(run_folder, tmp_path, source="npz:gone.npz"), ReportOptions()) == 0
    text, out = (tmp_path / "report.md").read_text(), capsys.readouterr().out
    for lacking in (
        "not there: the data, so their number and hashes are missing: load: no file gone.npz",
        "not there: losses of training: RUN/metrics.jsonl is missing or empty",
        "not there: samples from training",
    ):
        assert f"\n- {lacking}" in text and f"\n  {lacking}" in out
    assert links(text) == []


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
    assert model_card.run(of(finished, tmp_path), ReportOptions()) == 0
    said = "not drawn: training curves: curves need matplotlib, which is not installed: pip install 'ddpm-jax[figures]'"
    assert said in capsys.readouterr().out and said in (tmp_path / "report.md").read_text()
    assert rate_distortion.run(of(finished, tmp_path), RateDistortionOptions(num=3)) == 0
    assert "no curves: curves need matplotlib" in capsys.readouterr().out
    assert list(tmp_path.glob("rate_distortion-*.csv")) and not list(tmp_path.glob("rate_distortion-*.png"))


def test_a_file_that_is_no_result_is_named(finished, tmp_path, capsys):
    (tmp_path / "notes.json").write_text("{}")
    assert model_card.run(of(finished, tmp_path), ReportOptions()) == 0
    assert f"left out: {tmp_path / 'notes.json'} holds no numbers" in capsys.readouterr().out
    (tmp_path / "notes.json").write_text("{")
    with pytest.raises(ValueError, match=r"notes\.json is not JSON \(.*\): remove it"):
        model_card.run(of(finished, tmp_path), ReportOptions())
    (tmp_path / "notes.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"notes\.json is no result, but \[1\]: remove it"):
        model_card.run(of(finished, tmp_path), ReportOptions())
    (tmp_path / "notes.json").write_text('{"numbers": [{}]}')
    with pytest.raises(ValueError, match=r"notes\.json is damaged \(KeyError: 'name'\): remove it"):
        model_card.run(of(finished, tmp_path), ReportOptions())


# --- curves


def plotted(path, x, ys, *, text=None, **options):
    plots.write_panels(path, [plots.Panel(x, ys, "step", "loss", **options)], text=text)
    return path.read_bytes()


def test_what_is_not_finite_is_as_if_it_were_not_there(tmp_path):
    x, y = np.arange(6.0), np.array([1, np.nan, 3, np.inf, 2, 5])
    few = np.isfinite(y)
    whole = plotted(tmp_path / "a.png", x, {"a": y}, errors={"a": np.full(6, 0.3)})
    assert whole == plotted(tmp_path / "b.png", x[few], {"a": y[few]}, errors={"a": np.full(4, 0.3)})
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
    kept = data.read_png(tmp_path / "new" / "a.png")
    assert kept.text == {"legend": "a ± b"} and ("matplotlib.pyplot" in sys.modules) == before


@pytest.mark.parametrize(
    ("panel", "text"),
    [
        (plots.Panel([1, 2], {}, "x", "y"), r"panel 'y': expected x \[n\] and at least one line, got \(2,\) and 0"),
        (plots.Panel([1, 2], {"a": [1]}, "x", "y"), r"panel 'y': 'a' has shape \(1,\), x has \(2,\)"),
        (plots.Panel([1], {"a": [1]}, "x", "y", errors={"b": [1]}), "errors of 'b', which is none of its lines: a"),
        (plots.Panel([1], {"a": [np.nan]}, "x", "y"), "none of its values is finite"),
        (plots.Panel([1, 2], {"a": [0, 1]}, "x", "y", yscale="log"), "a logarithmic y axis has no place for 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path, panel, text):
    with pytest.raises(ValueError, match=text):
        plots.write_panels(tmp_path / "a.png", [panel])


def test_no_panels_are_refused(tmp_path):
    with pytest.raises(ValueError, match="panels: expected at least one panel, got none"):
        plots.write_panels(tmp_path / "a.png", [])
