"""Samples against data: the numbers, their floor, what is kept, and what is refused."""

import dataclasses
import json
import os
import signal
import sys
import tracemalloc

import numpy as np
import pytest
import shared_evaluation
import tiny_run

from ddpm_jax import config as configs
from ddpm_jax import data, tracking
from ddpm_jax.evaluate import likelihood as bounds
from ddpm_jax.evaluate import nfe, protocol, sample_cache, samples, table
from ddpm_jax.evaluate.context import EvaluationContext, load_images, select_split
from ddpm_jax.evaluate.samples import SamplesOptions
from ddpm_jax.metrics import classifier, frechet, manifold
from ddpm_jax.programs import cli
from ddpm_jax.programs.evaluate import COMMANDS

DIGITS = data.load("digits")


@pytest.fixture(scope="module", autouse=True)
def shared():
    with shared_evaluation.share_programs():
        yield


@pytest.fixture(scope="module")
def drawn(run_folder, tmp_path_factory):
    """Samples of four steps, 132 of seed 3, once."""
    run = of(run_folder, tmp_path_factory.mktemp("drawn"))
    assert sample_cache.ensure_samples(run, 132, 3, "integer") is not None
    return run


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The same run of fewer digits, 400 and 70, and a folder for results: whole commands are at work for seconds."""
    home = tmp_path_factory.mktemp("small")
    np.savez(home / "few.npz", train=DIGITS.train[:400], test=DIGITS.test[:70])
    config = dataclasses.replace(tiny_run.CONFIG, data=configs.Data(f"npz:{home / 'few.npz'}", levels=17))
    return tiny_run.make_run(home / "run", config), home / "results"


def asked(num, **options) -> SamplesOptions:
    return SamplesOptions(num=num, seed=3, **options)


def of(folder, out, **sampling) -> EvaluationContext:
    return shared_evaluation.evaluation_context(folder, out, **{"sampler": "ddim", "steps": 4} | sampling)


def values(found):
    return {number.name: number.value for number in found}


def lines_of(found):
    return [protocol.format_line(number) for number in found]


# --- numbers


def test_the_numbers_are_those_of_the_images_that_sample_draws(run_folder, drawn):
    """Drawn here, or by sample.py into a file: the same images, and the distance of their features by hand."""
    file = shared_evaluation.samples_of_sample_py(run_folder) / "samples.npz"
    images = np.load(file)["arr_0"]
    (kept,) = (drawn.out / "draws").iterdir()
    np.testing.assert_array_equal(np.concatenate(list(sample_cache.read_chunks(kept, 0, 80))), images)

    found = values(samples.measure_and_write(drawn, asked(80)))
    filed = values(samples.measure_and_write(drawn, asked(80, samples=str(file))))
    assert repr(filed) == repr(found)
    judge = classifier.load("digits")
    ours, theirs = judge(images), judge(DIGITS.train)
    distance = frechet.frechet_distance(frechet.moments(ours.features), frechet.moments(theirs.features))
    assert found["Fréchet distance"] == pytest.approx(distance, rel=1e-9)
    near = manifold.precision_recall(ours.features, theirs.features, k=3)
    assert (found["precision, k=3"], found["recall, k=3"]) == near
    assert found["classes present, of 10"] == len(set(ours.probabilities.argmax(1)))


def test_the_reference_against_itself_is_nothing(drawn, tmp_path):
    np.savez(tmp_path / "train.npz", arr_0=DIGITS.train)
    found = values(samples.measure_and_write(drawn, SamplesOptions(num=1500, samples=str(tmp_path / "train.npz"))))
    assert abs(found["Fréchet distance"]) < 1e-3
    assert found["precision, k=3"] == found["recall, k=3"] == found["coverage, k=5"] == 1
    assert found["distance of class shares"] == 0


def test_one_half_of_the_data_against_the_other_is_positive_and_stable():
    """First against second half, in one piece or streamed: above what rounding leaves, the same, and a small part of
    the distance of images that are out of focus."""
    judge = classifier.load("digits")
    whole = [frechet.moments(judge(part).features) for part in (DIGITS.train[:750], DIGITS.train[750:])]
    distance = frechet.frechet_distance(*whole)
    eye = samples.Extractor("eye", "distance", judge.dimension, judge, lambda a, b: [])
    for batch in (60, 749):
        parts = [
            samples.accumulate([half[i : i + batch] for i in range(0, 750, batch)], eye, 750).moments()
            for half in (DIGITS.train[:750], DIGITS.train[750:])
        ]
        assert frechet.frechet_distance(*parts) == pytest.approx(distance, rel=1e-5)
    wide = np.pad(DIGITS.train[750:].astype(float), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    blurred = sum(wide[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)) / 9
    off = frechet.frechet_distance(whole[0], frechet.moments(judge(blurred.astype(np.float32)).features))
    assert 0.5 < distance < 0.2 * off


def test_held_out_images_are_the_floor(drawn):
    floor = values(samples.held_out_baseline(drawn, asked(80)))
    noise = values(samples.measure_and_write(drawn, asked(80)))  # of a network that has learnt nothing
    assert floor["Fréchet distance"] < 0.5 * noise["Fréchet distance"]
    assert floor["precision, k=3"] > 0.8 > noise["precision, k=3"]
    assert floor["share with p > 0.9"] > 0.9


def test_training_images_left_out_are_held_against_the_others(drawn):
    """The first of the sets by hand: seventy at random, and the moments of the rest."""
    found = values(samples.train_baseline(drawn, SamplesOptions(num=70)))
    order = np.random.RandomState(0).permutation(1500)
    features = classifier.load("digits")(DIGITS.train).features
    parts = [frechet.moments(features[places]) for places in (order[:70], order[70:])]
    assert found["Fréchet distance"] == pytest.approx(frechet.frechet_distance(*parts), rel=1e-9)
    with pytest.raises(ValueError, match="--num 751 of 1500 training images cannot be held against the others"):
        samples.train_baseline(drawn, SamplesOptions(num=751))


def test_sets_give_a_mean_and_its_error(drawn):
    """Two sets of 66 of one seed: their mean is what each alone gives, and half their difference is the error."""
    both = samples.measure_and_write(drawn, asked(66, sets=2))
    (kept,) = (drawn.out / "draws").iterdir()
    images = np.concatenate(list(sample_cache.read_chunks(kept, 0, 132)))
    judge = classifier.load("digits")
    reference = frechet.moments(judge(DIGITS.train).features)
    parts = [images[:66], images[66:]]
    alone = [frechet.frechet_distance(frechet.moments(judge(part).features), reference) for part in parts]
    assert both[0].value == pytest.approx(np.mean(alone), rel=1e-9)
    assert both[0].error == pytest.approx(abs(alone[0] - alone[1]) / 2, rel=1e-6)


def test_few_images_are_warned_of_with_the_bias(drawn, capsys):
    samples.measure_and_write(drawn, asked(80))
    assert (
        "80 images are fewer than 10,000: their Fréchet distance is too large by an unknown" in capsys.readouterr().err
    )
    samples.held_out_baseline(drawn, SamplesOptions(num=297))
    said = capsys.readouterr().err
    bias = float(said.split("too large by about ")[1].split(";")[0])
    held = values(samples.held_out_baseline(drawn, SamplesOptions(num=297)))
    assert bias == pytest.approx(held["bias of the Fréchet distance at this n"], rel=1e-2)
    assert bias > 0


# --- what is kept


def test_an_interrupted_drawing_goes_on_to_the_same_samples(run_folder, drawn, tmp_path, monkeypatch, capsys):
    expected = samples.measure_and_write(drawn, asked(100))
    run, update = of(run_folder, tmp_path), tracking.Progress.update
    monkeypatch.setattr(tracking.Progress, "update", lambda *args: (os.kill(os.getpid(), signal.SIGINT), update(*args)))
    assert samples.run(run, asked(100)) == 4
    assert "interrupted: 8 of 100 images are kept" in capsys.readouterr().out
    monkeypatch.undo()
    assert lines_of(samples.measure_and_write(run, asked(100))) == lines_of(expected)


def test_more_samples_are_drawn_on(run_folder, tmp_path):
    run = of(run_folder, tmp_path)
    first = sample_cache.ensure_samples(run, 10, 0, "float")
    before = np.concatenate(list(sample_cache.read_chunks(first, 0, 10)))
    assert sample_cache.ensure_samples(run, 25, 0, "float") == first
    assert [stop for _, stop, _ in sample_cache.list_parts(first)] == [10, 25]
    np.testing.assert_array_equal(np.concatenate(list(sample_cache.read_chunks(first, 0, 10))), before)
    assert sum(len(part) for part in sample_cache.read_chunks(first, 4, 21)) == 17
    assert sample_cache.ensure_samples(run, 10, 1, "float") != first


def test_floats_are_the_integers_unrounded(run_folder, tmp_path):
    run = of(run_folder, tmp_path)
    integers, floats = (
        np.concatenate(list(sample_cache.read_chunks(sample_cache.ensure_samples(run, 9, 0, form), 0, 9)))
        for form in ("integer", "float")
    )
    assert integers.dtype == np.uint8 and floats.dtype == np.float32
    np.testing.assert_array_equal(np.rint(floats), integers)
    assert floats.min() >= 0 and floats.max() <= 16 and (floats != integers).any()


def test_the_reference_is_seen_once_and_again_when_it_changes(run_folder, tmp_path):
    run, seen = of(run_folder, tmp_path), []

    def judge(images):
        seen.append(len(images))
        return images.reshape(len(images), -1)[:, :3].astype(np.float32), np.ones((len(images), 1), np.float32)

    eye = samples.Extractor("eye 1", "distance", 3, judge, lambda a, b: [])
    train = select_split(DIGITS, "train")
    first, again = samples.cached_reference(run, train, eye), samples.cached_reference(run, train, eye)
    assert sum(seen) == 1500
    for a, b in zip(first.halves, again.halves, strict=True):
        assert a.n == b.n and a.mean.tobytes() == b.mean.tobytes() and a.scatter.tobytes() == b.scatter.tobytes()
    # complete, as it is: the moments of all training images
    whole = np.cov(DIGITS.train.reshape(1500, -1)[:, :3].astype(float), rowvar=False)
    np.testing.assert_allclose(first.moments().covariance, whole, rtol=1e-9, atol=1e-12)
    changed = DIGITS.train.copy()
    changed[1400, 0, 0] ^= 1  # a thousand are hashed at a time
    samples.cached_reference(run, select_split(DIGITS._replace(train=changed), "train"), eye)
    samples.cached_reference(run, train, eye._replace(name="eye 2"))
    assert sum(seen) == 4500


def test_changing_any_field_changes_the_line(run_folder, drawn, tmp_path):
    def line(run, **options):
        options = dataclasses.asdict(SamplesOptions()) | {"num": 80} | options
        facts = sample_cache.protocol_fields(run, options["seed"], options["format"])
        return protocol.format_line(
            protocol.Measurement("x", 1.0, 0.1, {"n": options["num"], "sets": options["sets"], **facts})
        )

    lines = [
        line(drawn),
        line(drawn, num=81),
        line(drawn, sets=2),
        line(drawn, seed=1),
        line(drawn, format="float"),
        line(of(run_folder, tmp_path, steps=5)),
        line(of(run_folder, tmp_path, eta=0.5)),
        line(of(run_folder, tmp_path, spacing="trailing")),
        line(of(run_folder, tmp_path, sampler="ancestral")),
        line(of(run_folder, tmp_path, sampler="ancestral", variance_mix=0.0)),
        line(of(run_folder, tmp_path, clip=False)),
        line(of(run_folder, tmp_path, weights="raw")),
    ]
    assert len(set(lines)) == len(lines)


@pytest.mark.slow
def test_fifty_thousand_images_are_seen_in_less_than_a_gigabyte():
    """Features and logits as large as Inception's, 2048 and 1008."""
    block = np.random.default_rng(0).standard_normal((1024, 2048)).astype(np.float32)
    eye = samples.Extractor("eye", "FID", 2048, lambda x: (block[: len(x)], block[: len(x), :1008]), lambda a, b: [])
    images = (np.zeros((1024, 1, 1, 1), np.uint8)[: 50_000 - first] for first in range(0, 50_000, 1024))
    tracemalloc.start()
    seen = samples.accumulate(images, eye, 50_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seen.moments().n == 50_000 and len(seen.features) == 10_000 and len(seen.scores) == 50_000
    assert peak < 1e9


# --- the table


def test_the_table_has_a_row_for_each_sampler_and_the_floor(small):
    folder, out = small
    arguments = [folder, "table", "--num", "66", "--sets", "2", "--ddim", "4", "--out", out]
    assert cli.call(["evaluate", *map(str, arguments)]) == 0
    rows = [line.split("|")[1:-1] for line in (out / "table.md").read_text().splitlines()]
    assert [row[0].strip() for row in rows[2:]] == [
        "held-out images", "training images, left out", "ancestral, mix 0", "ancestral, mix 1", "DDIM, 4 steps",
    ]  # fmt: skip
    cells = {row[0].strip(): dict(zip(map(str.strip, rows[0]), map(str.strip, row), strict=True)) for row in rows[2:]}
    assert cells["DDIM, 4 steps"]["bits/dim"] == "-"
    model = of(folder, out, sampler="ancestral", steps=20, variance_mix=0.0)
    again = bounds.load_or_measure(model, select_split(load_images(model), "test"), bounds.LikelihoodOptions())
    assert float(cells["ancestral, mix 0"]["bits/dim"].split()[0]) == pytest.approx(again.total.mean(), abs=1e-2)
    assert " ± " in cells["ancestral, mix 1"]["Fréchet distance"]
    floor, noise = (
        float(cells[row]["Fréchet distance"].split()[0]) for row in ("training images, left out", "DDIM, 4 steps")
    )
    assert 0 < floor < 0.5 * noise


def test_the_table_of_a_learned_variance_has_one_chain(drawn, tmp_path, monkeypatch):
    """What is measured, and not the measurement: another network would have to be compiled for it."""
    asked = {}

    def row(run, options, _):
        of_all = {"n": options.num, **sample_cache.protocol_fields(run, 0, "integer")}
        if run.model.config.sampling.sampler == "ancestral":
            of_all |= bounds.protocol_fields(run, select_split(DIGITS, "test"), bounds.LikelihoodOptions())
        asked[run.model.config.sampling.sampler] = protocol.format_line(protocol.Measurement("x", 1.0, 0.1, of_all))
        return [protocol.Measurement("x", 1.0, 0.1, of_all)]

    run = shared_evaluation.replace_config(drawn, loss=configs.Loss("hybrid"))
    monkeypatch.setattr(table, "with_sampling", lambda old, sampling: old._replace(
        model=run.model.with_request(run.model.request, **sampling)))  # fmt: skip
    monkeypatch.setattr(table, "measure_row", row)
    assert table.run(run._replace(out=tmp_path), table.TableOptions(num=70, sets=1, ddim=(2,))) == 0
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert list(rows) == [
        "held-out images", "training images, left out", "ancestral, learned variance", "DDIM, 2 steps",
    ]  # fmt: skip
    assert "learned" in asked["ancestral"] and "mix" not in asked["ancestral"] and list(asked) == ["ancestral", "ddim"]


@pytest.mark.slow
def test_the_whole_table_of_a_learned_variance(tmp_path):
    folder = tiny_run.make_run(tmp_path / "run", dataclasses.replace(tiny_run.CONFIG, loss=configs.Loss("hybrid")))
    arguments = [folder, "table", "--num", "70", "--sets", "1", "--ddim", "2", "--out", tmp_path]
    assert cli.call(["evaluate", *map(str, arguments)]) == 0
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert all("learned" in line and "mix" not in line for line in rows["ancestral, learned variance"])


# --- quality against calls


def test_calls_measures_each_sampler_at_each_number_of_steps(small, capsys):
    folder, out = small
    arguments = [folder, "calls", "--num", "66", "--sets", "2", "--ancestral", "20", "--ddim", "4", "--unipc"]
    arguments += ["--dpm-solver-pp", "4", "--out", out]
    assert cli.call(["evaluate", *map(str, arguments)]) == 0
    lines = (out / "calls.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert rows[0][:3] == ["", "NFE", "Fréchet distance"]
    assert [row[:2] for row in rows[2:]] == [
        ["ancestral", "20"], ["DDIM, uniform", "4"], ["DDIM, quadratic", "4"],
        ["DPM-Solver++, uniform", "4"], ["DPM-Solver++, quadratic", "4"], ["held-out images, 70", "-"],
    ]  # fmt: skip
    found = json.loads((out / "calls.json").read_text())["rows"]
    assert [*found] == [*(f"{label}, {n} calls" for label, n, *_ in rows[2:-1]), "held-out images"]
    assert "| dpm_solver_pp 4 of 20 steps quadratic order=2" in found["DPM-Solver++, quadratic, 4 calls"][0]
    alone = of(folder, out, sampler="ddim", steps=4, spacing="quadratic")
    again = samples.measure_and_write(alone, SamplesOptions(common=alone.flags, num=66, sets=2))
    assert protocol.format_line(again[0]) == found["DDIM, quadratic, 4 calls"][0]
    assert data.read_png(out / "calls.png").text["legend"] == nfe.LEGEND
    assert "curves in calls.png" in capsys.readouterr().out


def test_calls_goes_from_few_steps_to_many_and_once_through_the_complete_chain():
    options = nfe.NfeOptions(ancestral=(20,), ddim=(20, 4, 2, 4), dpm_solver_pp=(), unipc=(2,))
    found = [(label, *chosen.values()) for label, chosen in nfe.sampler_grid(options, 20)]
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
    ],
)
def test_calls_refuses_before_anything_is_drawn(run_folder, tmp_path, capsys, flags, text):
    assert cli.call(["evaluate", str(run_folder), "calls", *flags, "--out", str(tmp_path)]) == 2
    assert text in capsys.readouterr().err


def test_the_curves_of_calls_have_their_own_points_alone():
    def row(label, n, value):
        return nfe.Row(label, n, [protocol.Measurement("Fréchet distance", value, 0.1, {"n": 70})])

    panel = nfe.panel([row("ancestral", 20, 1.0), row("DDIM", 2, 4.0), row("DDIM", 5, 2.0)])
    assert panel.x == [2, 5, 20]
    np.testing.assert_array_equal(panel.ys["DDIM"], [4, 2, np.nan])
    np.testing.assert_array_equal(panel.ys["ancestral"], [np.nan, np.nan, 1])


# --- what is refused


def test_too_few_images_are_refused_before_anything_is_drawn(drawn):
    before = list((drawn.out / "draws").rglob("*"))
    with pytest.raises(ValueError, match="--num must be above 64, the dimension of the features of digits-classifier"):
        samples.measure(drawn, SamplesOptions(num=64))
    assert list((drawn.out / "draws").rglob("*")) == before


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.zeros((99, 8, 8, 3), np.uint8), "images 8x8x3 of 17 levels, but .* makes images 8x8x1 of 17 levels"),
        (np.zeros((99, 9, 8, 1), np.uint8), "images 9x8x1"),
        (np.full((99, 8, 8, 1), 255, np.uint8), "images 8x8x1 of 256 levels, but .* 17 levels: sets of different"),
        (np.zeros((99, 8, 8, 1), np.float32), r"expected integer images \[n, H, W, C\], got float32"),
        (np.zeros((79, 8, 8, 1), np.uint8), "holds 79 images, --num 80 --sets 1 ask for more"),
    ],
)
def test_files_of_other_images_are_refused(drawn, tmp_path, array, text):
    np.savez(tmp_path / "s.npz", arr_0=array)
    with pytest.raises(ValueError, match=text):
        samples.measure(drawn, SamplesOptions(num=80, samples=str(tmp_path / "s.npz")))


def test_a_file_without_samples_is_refused(drawn, tmp_path):
    np.savez(tmp_path / "s.npz", images=np.zeros(3))
    with pytest.raises(ValueError, match="expected images under the name arr_0, found images"):
        samples.measure(drawn, SamplesOptions(num=80, samples=str(tmp_path / "s.npz")))


def test_features_that_are_not_finite_are_refused():
    def judge(images):
        features = np.zeros((len(images), 2), np.float32)
        features[3] = np.nan
        return features, features

    eye = samples.Extractor("eye", "distance", 2, judge, lambda a, b: [])
    with pytest.raises(ValueError, match="1 of 4 rows of features are not finite"):
        samples.accumulate([np.zeros((9, 1, 1, 1), np.uint8)], eye, 9)


def test_images_without_a_classifier_are_told_what_there_is(drawn):
    run = shared_evaluation.replace_config(drawn, shape=(8, 8, 3), levels=256)
    with pytest.raises(ValueError, match="no classifier for images 8x8x3 of 256 levels; there are digits"):
        samples.measure(run, SamplesOptions(num=80))


def test_a_missing_extra_is_named(run_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    assert cli.call(["evaluate", str(run_folder), "samples", "--features", "inception", "--out", str(tmp_path)]) == 2
    assert "pip install 'ddpm-jax[eval]'" in capsys.readouterr().err


def test_the_reference_warns_where_the_classifier_knows_nothing(drawn, tmp_path, capsys):
    """Noise in the shape of digits is not digits."""
    noise = np.random.default_rng(0).integers(0, 17, (200, 8, 8, 1)).astype(np.uint8)
    np.savez(tmp_path / "noise.npz", train=noise, test=noise[:90])
    run = shared_evaluation.replace_config(drawn, data=configs.Data(f"npz:{tmp_path / 'noise.npz'}", levels=17))
    samples.held_out_baseline(run._replace(out=tmp_path), SamplesOptions(num=80))
    assert "of the reference images: was it trained on such images?" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_its_flags(command, capsys):
    """No two flags of a command, its own and the shared ones, may have one name."""
    with pytest.raises(SystemExit, match="0"):
        cli.call(["evaluate", "run", command, "--help"])
    assert "--sampler" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "status"), [(["--help"], 0), ([], 2), (["run"], 2), (["run", "nothing"], 2)])
def test_a_call_without_a_command_lists_them(arguments, status, capsys):
    assert cli.call(["evaluate", *arguments]) == status
    said = capsys.readouterr()
    for name in COMMANDS:
        assert f"  {name}" in said.out + said.err


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert cli.call(["evaluate", str(tmp_path), "likelihood"]) == 2
    assert "holds no checkpoints: it is not the folder of a run" in capsys.readouterr().err


def test_the_table_asks_for_the_settings_of_each_row(run_folder, tmp_path):
    other = table.with_sampling(of(run_folder, tmp_path), {"sampler": "ddim", "steps": 3, "eta": 0.0})
    assert other.model.config.sampling.steps == 3 and other.model.step == 3
    assert sample_cache.protocol_fields(other, 0, "integer")["samples"] == "ddim 3 of 20 steps uniform eta=0"
