"""The paper's sampling figures, held against closed forms, against sample.py and against one another.

For data N(0, I) the ideal denoiser is x_0 = signal_t x_t, and ancestral sampling with mix 1 draws from the true
p(x_s | x_t), but for the last step, which adds no noise.  So x_0 given x_t has the mean signal_t x_t and the variance
signal_1^2 - signal_t^2.
"""

import json

import jax
import numpy as np
import pytest
import shared_evaluation

from ddpm_jax import data, samplers
from ddpm_jax.config import Sampling, former_names
from ddpm_jax.evaluate import protocol, samples
from ddpm_jax.evaluate.context import CommonFlags, EvaluationContext
from ddpm_jax.evaluate.figures import figure, interpolation, predictions, progressive, stochastic
from ddpm_jax.evaluate.figures.interpolation import InterpolationOptions
from ddpm_jax.evaluate.figures.predictions import PredictionsOptions
from ddpm_jax.evaluate.figures.progressive import ProgressiveOptions
from ddpm_jax.evaluate.figures.stochastic import StochasticOptions
from ddpm_jax.keys import from_seed

TEST = data.load("digits").test


@pytest.fixture(scope="module", autouse=True)
def shared():
    with shared_evaluation.share_programs():
        yield


def exact(folder, **sampling):
    """Of data N(0, I)."""
    return shared_evaluation.ideal_model(folder, **sampling)


def columns(path, which):
    """The cells of one column of a picture of 8x8 images, eight times as large."""
    pixels = data.read_png(path).image[::8, ::8, 0]
    return np.stack([row[:, 9 * which + 1 :][:, :8] for row in np.split(pixels[1:], len(pixels) // 9)])[:, :8]


# --- progressive


def test_the_last_column_is_the_image_that_sample_py_draws(run_folder, tmp_path, capsys):
    run = shared_evaluation.evaluation_context(run_folder, tmp_path, sampler="ddim", steps=4)
    assert progressive.run(run, ProgressiveOptions(num=5, start=2, seed=3, frames=3)) == 0
    assert "images 2..6 of seed 3; columns: x_t at t = 20, 7, 0" in capsys.readouterr().out
    drawn = shared_evaluation.samples_of_sample_py(run_folder)
    (name,) = tmp_path.glob("progressive-*.json")
    ours, theirs = (json.loads(path.read_text()) for path in (name, drawn / "manifest.json"))
    assert ours["sha256"] == theirs["sha256"][2:7] and len(set(ours["sha256"])) == 5
    assert ours["kept"] == [20, 7, 0] and ours["fingerprint"] == theirs["fingerprint"]
    images = np.load(drawn / "samples.npz")["arr_0"][2:7]
    shown = columns(name.with_suffix(".png"), 2)
    np.testing.assert_allclose(shown, images[..., 0] * (255 / 16), atol=8.5)  # half a level of 17
    text = data.read_png(name.with_suffix(".png")).text
    assert "t = 20, 7, 0" in text["legend"] and json.loads(text["sampling"]) == former_names(
        theirs["sampling"], Sampling
    )
    assert name.with_suffix(".gif").stat().st_size > 0


def test_a_chain_continued_from_its_beginning_is_the_image_that_sample_py_draws(run_folder):
    model = shared_evaluation.evaluation_context(run_folder, sampler="ddim", steps=4).model
    i = np.array([3, 0, 11], np.uint32)
    x_T = np.asarray(samplers.initial_noise(samplers.image_keys(3, i), model.shape))
    found = figure.continue_sampling(model, 3, i[:, None], x_T, np.full(3, 20))
    images = np.load(shared_evaluation.samples_of_sample_py(run_folder) / "samples.npz")["arr_0"]
    off = data.to_integer(found, 17).astype(int) - images[i]
    assert abs(off).max() <= 1 and (off != 0).mean() < 0.01  # in tiles of another size


def test_times_are_spread_over_the_chain_with_both_ends():
    chain = samplers.times(1000, 50, spacing="ddim")
    kept = figure.evenly_spaced(chain, 11)
    assert (kept[0], kept[-1], len(kept)) == (981, 0, 11) and set(kept) <= set(chain)
    assert np.ptp(np.diff(kept)) <= 20
    np.testing.assert_array_equal(figure.evenly_spaced(chain, 99), chain)


# --- predictions


def test_predictions_are_labelled_with_the_time_they_are_made_from(run_folder, tmp_path):
    """At every time of the chain x_0 is signal_t x_t, and its error has the variance of x_0 given x_t."""
    model = exact(run_folder)
    x = figure.draw_states(model, ProgressiveOptions(num=40), model.times.tolist())
    found = predictions.measure(
        EvaluationContext(model, CommonFlags(), tmp_path), PredictionsOptions(num=40, frames=20)
    )
    np.testing.assert_array_equal(found.times, np.arange(20, 0, -1))
    signal = np.asarray(model.schedule.signal)
    expected = signal[found.times][:, None, None, None] * x[:, :-1]
    np.testing.assert_allclose(found.x0, expected, rtol=1e-5, atol=1e-6)
    for k, t in enumerate(found.times):
        value, error = figure.rmse(found.squared_error[:, k])
        assert abs(value - 127.5 * np.sqrt(signal[1] ** 2 - signal[t] ** 2)) <= 4 * (0 if t == 1 else error)


def test_the_last_prediction_is_the_image(run_folder, tmp_path, capsys):
    run = EvaluationContext(exact(run_folder), CommonFlags(), tmp_path)
    assert predictions.run(run, PredictionsOptions(num=3, frames=5)) == 0
    out = capsys.readouterr().out
    assert "x_0 predicted from x_t at t = 20, 15, 10, 6, 1" in out
    (path,) = tmp_path.glob("predictions-*.csv")
    header, *rows = [line.split(",") for line in path.read_text().splitlines()]
    assert [int(row[0]) for row in rows] == [20, 15, 10, 6, 1] and header[0] == "t"
    assert float(rows[-1][-2]) == 0 < float(rows[0][-2])
    numbers = protocol.read_measurements(path.with_suffix(".json"))
    assert [number.value for number in numbers] == pytest.approx([float(row[-2]) for row in rows], rel=1e-6)
    (image,) = run.model.draw(seed=0, start=0, num=3)
    np.testing.assert_array_equal(columns(path.with_suffix(".png"), 4), data.to_integer(image.x, 256)[..., 0])
    assert ("curves in " in out) == path.with_name(f"{path.stem}-curve.png").exists()


def test_the_last_distance_is_that_of_the_samples(run_folder, tmp_path):
    """The images that the last predictions are have the Fréchet distance that the samples of that seed have."""
    run = EvaluationContext(exact(run_folder), CommonFlags(), tmp_path)
    expected = {number.name: number.value for number in samples.measure(run, samples.SamplesOptions(num=160))}
    found = predictions.measure(run, PredictionsOptions(num=2, frames=5, quality=160))
    assert len(found.x0) == 2 and found.squared_error.shape == (160, 5)
    distance, bias = found.quality[-1]
    assert distance.value == pytest.approx(expected["Fréchet distance"], rel=1e-5)
    assert distance.protocol["features"] == samples.load_extractor(run.model, "classifier").name
    assert bias.name == "its bias" and found.quality[0][0].value != distance.value


# --- stochastic


@pytest.fixture(scope="module")
def continued(run_folder):
    model = exact(run_folder)
    return model, stochastic.sample_continuations(model, StochasticOptions(num=64, continuations=4))


def test_continuations_differ_by_the_variance_that_x_t_leaves_open(continued):
    """Two draws from p(x_0 | x_t) differ by twice its variance."""
    model, found = continued
    assert found.times == [20, 15, 10, 5]
    signal = np.asarray(model.schedule.signal)
    numbers = stochastic.measurements(found, {})
    assert [number.protocol["t"] for number in numbers] == found.times
    for number, t in zip(numbers, found.times, strict=True):
        assert abs(number.value - 127.5 * np.sqrt(2 * (signal[1] ** 2 - signal[t] ** 2))) < 4 * number.error
    assert (np.diff([number.value for number in numbers]) < 0).all()


def test_numbers_of_a_volume_are_those_of_the_same_pixels_in_an_image(continued):
    _, found = continued
    volumes = found.ends.reshape(*found.ends.shape[:3], 2, 4, 8, 1)
    as_volumes = stochastic.measurements(found._replace(ends=volumes), {})
    for one, other in zip(stochastic.measurements(found, {}), as_volumes, strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-12) and one.error == pytest.approx(other.error, rel=1e-9)


def test_the_first_continuation_is_the_chain_itself(continued):
    model, found = continued
    chain = figure.draw_states(model, ProgressiveOptions(num=64), [20, 15, 10, 5, 0])
    np.testing.assert_array_equal(chain[:, :-1], found.shared)
    for k in range(4):
        np.testing.assert_array_equal(found.ends[:, k, 0], chain[:, -1])


def test_continuations_share_the_mean_and_no_noise(continued):
    """What each adds to signal_t x_t is uncorrelated with x_t and, but for the chain's own, with all others."""
    model, found = continued
    signal = np.asarray(model.schedule.signal)[found.times][:, None, None, None, None]
    added = found.ends - signal * found.shared[:, :, None]
    rows = [found.shared[:, k].ravel() for k in range(4)][-1:]
    rows += [added[:, k, j].ravel() for k in range(4) for j in (1, 2, 3)]
    apart = np.corrcoef(rows)[np.triu_indices(len(rows), 1)]
    assert abs(apart).max() < 4.5 / np.sqrt(rows[0].size)  # of 78 the largest; four would fail in 1 of 200 seeds
    means = np.array([row.mean() / (row.std() / np.sqrt(row.size)) for row in rows])
    assert abs(means).max() < 4


def test_continuations_are_shown_and_written_down(run_folder, tmp_path, capsys):
    run, options = (
        EvaluationContext(exact(run_folder, steps=5), CommonFlags(), tmp_path),
        StochasticOptions(num=2, times=(1, 20)),
    )
    assert stochastic.run(run, options) == 0
    assert "t = 20, 1; in a block: x_t, the chain's own x_0, then 2 others" in capsys.readouterr().out
    (path,) = tmp_path.glob("stochastic-*.json")
    first, last = protocol.read_measurements(path)
    assert (first.protocol["t"], last.protocol["t"]) == (20, 1)
    assert first.value > 10 and last.value < 1e-3  # from t = 1 one step is left, and it adds no noise
    (image,) = run.model.draw(seed=0, start=0, num=2)
    np.testing.assert_array_equal(columns(path.with_suffix(".png"), 1), data.to_integer(image.x, 256)[..., 0])


@pytest.mark.parametrize("sampling", [{"variance_mix": 0.5}, {"sampler": "ddim", "eta": 0.3}])
def test_an_image_that_waits_goes_the_way_of_one_that_begins_there(run_folder, sampling):
    """Whatever their times, images in one program end where a chain from each one's time ends."""
    model = exact(run_folder, steps=6, **sampling)
    rng, start = np.random.default_rng(0), np.array([20, 12, 0, 5, 12, 1, 20])
    x = rng.normal(size=(7, 8, 8, 1)).astype(np.float32)
    paths = rng.integers(0, 99, (7, 2))
    found = figure.continue_sampling(model, 3, paths, x, start)
    sampler = model.sampler(model.params)

    @jax.jit
    def plain(paths, x, chain):
        keys = jax.vmap(lambda p: jax.random.fold_in(jax.random.fold_in(from_seed(3), p[0]), p[1]))(paths)
        return samplers.sample(keys, sampler, x, chain)

    for t in (12, 1):
        begun = plain(paths, x, model.times[model.times <= t])
        np.testing.assert_allclose(found[start == t], np.asarray(begun)[start == t], atol=1e-5)
    np.testing.assert_array_equal(found[2], x[2])


# --- interpolation


def test_noise_and_steps_are_those_of_t_with_none_missing(run_folder):
    """Deterministic steps multiply by signal_s signal_t + noise_s noise_t: divided out, unit noise is left at every t.

    It is the same at every t.  With noise of t - 1 its variance would be off by a twentieth at t = 12, four standard
    errors; without the first of the steps it would be off by 3e-3 itself, and by another factor at t = 20.
    """
    model = exact(run_folder, sampler="ddim", eta=0.0)
    signal, noise = np.asarray(model.schedule.signal, np.float64), np.asarray(model.schedule.noise, np.float64)
    drawn = []
    for t in (12, 20):
        found = interpolation.interpolate(model, TEST, InterpolationOptions(t=t, pairs=100, columns=2))
        s = np.arange(t)
        x_t = found.decoded / np.prod(signal[s] * signal[s + 1] + noise[s] * noise[s + 1])
        drawn.append((x_t - signal[t] * found.sources) / noise[t])
        deviates = drawn[-1].ravel()
        assert abs(deviates.mean()) < 4 / np.sqrt(deviates.size)
        assert abs(deviates.var() - 1) < 4 * np.sqrt(2 / deviates.size)
        a, b = drawn[-1][:, 0].ravel(), drawn[-1][:, 1].ravel()
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(a.size)
    np.testing.assert_allclose(drawn[0], drawn[1], atol=1e-3)  # an image has the same noise at every t


def test_reconstructions_are_off_by_what_the_chain_forgets_and_adds(run_folder):
    """x_0 is left with weight alpha-bar_t; the noise of x_t and of the reverse process comes on top."""
    model = exact(run_folder)
    options = InterpolationOptions(t=5, pairs=120, columns=2, seed=1)
    found = interpolation.interpolate(model, TEST, options)
    alpha_bar = np.asarray(model.schedule.signal, np.float64) ** 2
    squared = ((found.decoded - found.sources).astype(np.float64) ** 2).mean(axis=(2, 3, 4))
    fading = (1 - alpha_bar[5]) ** 2 * (found.sources.astype(np.float64) ** 2).mean(axis=(2, 3, 4))
    off = squared - fading - alpha_bar[5] * (1 - alpha_bar[5]) - (alpha_bar[1] - alpha_bar[5])
    assert abs(off.mean()) < 4 * off.mean(1).std(ddof=1) / np.sqrt(len(off))
    assert [number.value for number in interpolation.measurements(found, {})] == pytest.approx(
        127.5 * np.sqrt(squared.mean(0))
    )


def test_all_lambda_have_the_same_noise(run_folder):
    """An exact chain is linear in x_t: with the same noise everything in between is a mixture of the ends."""
    found = interpolation.interpolate(exact(run_folder), TEST, InterpolationOptions(t=12, pairs=3, columns=5))
    to_b = np.linspace(0, 1, 5).reshape(1, -1, 1, 1, 1)
    straight = (1 - to_b) * found.decoded[:, :1] + to_b * found.decoded[:, -1:]
    np.testing.assert_allclose(found.decoded, straight, atol=1e-5)
    np.testing.assert_array_equal(found.pairs, [[0, 1], [2, 3], [4, 5]])
    np.testing.assert_array_equal(data.to_integer(found.sources, 17).reshape(TEST[:6].shape), TEST[:6])


def test_a_pair_the_other_way_round_is_mirrored(run_folder):
    there, back = (
        interpolation.interpolate(exact(run_folder), TEST, InterpolationOptions(first=a, second=b, t=9))
        for a, b in ((3, 7), (7, 3))
    )
    np.testing.assert_array_equal(there.decoded, back.decoded[:, ::-1])
    np.testing.assert_array_equal(there.sources, back.sources[:, ::-1])


def test_lambda_0_is_the_reconstruction_of_a_whatever_b_is(run_folder, tmp_path, capsys):
    run = EvaluationContext(exact(run_folder, steps=6), CommonFlags(), tmp_path)
    one, other = (interpolation.interpolate(run.model, TEST, InterpolationOptions(second=b, columns=4)) for b in (1, 9))
    np.testing.assert_array_equal(one.decoded[:, 0], other.decoded[:, 0])
    assert abs(one.decoded[:, -1] - other.decoded[:, -1]).max() > 0.1
    assert interpolation.run(run, InterpolationOptions(second=9, columns=4)) == 0
    out = capsys.readouterr().out
    assert "rows: test images 0 and 9 at t = 9; columns: image a, lambda = 0, 0.333, 0.667, 1, image b" in out
    (path,) = tmp_path.glob("interpolation-*.png")
    for column, image in ((0, TEST[0]), (5, TEST[9])):
        np.testing.assert_array_equal(columns(path, column), data.make_grid(image[None], 17, padding=0)[None, ..., 0])
    np.testing.assert_array_equal(columns(path, 2), data.to_integer(other.decoded[:, 1], 256)[..., 0])


def test_coarse_to_fine_ends_in_a_mixture_of_pixels(run_folder):
    found = interpolation.interpolate(exact(run_folder), TEST, InterpolationOptions(coarse_to_fine=True))
    np.testing.assert_array_equal(found.times, [20, 18, 15, 13, 10, 8, 5, 3, 0])
    a, b = np.asarray(data.normalize(TEST[:2], 17))
    for weight, between in zip(np.linspace(0, 1, 11), found.decoded[-1], strict=True):
        np.testing.assert_allclose(between, (1 - weight) * a + weight * b, atol=1e-6)
    error = ((found.decoded[:, 0] - a) ** 2).mean(axis=(1, 2, 3))
    assert error[-1] == 0 and (error[:-1] > 0.01).all()


# --- what is refused


@pytest.mark.parametrize(
    ("options", "sampling", "text"),
    [
        (
            StochasticOptions(times=(12,)),
            {"steps": 4},
            r"--times: the chain of 4 steps does not visit t = 12; .* 14 and 7",
        ),
        (StochasticOptions(times=(21,)), {}, r"--times: the chain of 20 steps does not visit t = 21; .* visited 20$"),
        (StochasticOptions(times=(5, 0)), {}, r"--times must be one or more times above 0, the data, got \(5, 0\)"),
        (StochasticOptions(times=()), {}, r"--times must be one or more times above 0"),
        (StochasticOptions(continuations=1), {}, "--continuations must be at least 2, or nothing can differ, got 1"),
        (
            StochasticOptions(),
            {"sampler": "dpm_solver_pp"},
            "DPM-Solver\\+\\+ adds no noise: .* take --sampler ancestral",
        ),
        (StochasticOptions(), {"sampler": "unipc"}, "UniPC adds no noise: .* take --sampler ancestral"),
        (
            StochasticOptions(),
            {"sampler": "ddim"},
            "DDIM with eta 0 adds no noise: .* take --sampler ancestral, or DDIM with an --eta",
        ),
    ],
)
def test_wrong_continuations_are_refused(run_folder, options, sampling, text):
    with pytest.raises(ValueError, match=text):
        stochastic.sample_continuations(exact(run_folder, **sampling), options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            InterpolationOptions(t=12),
            r"--t: the chain of 4 steps does not visit t = 12; nearest to it are the visited 14 and 7",
        ),
        (
            InterpolationOptions(t=5, coarse_to_fine=True),
            "--coarse-to-fine has times of its own and one pair: leave out --t",
        ),
        (InterpolationOptions(pairs=2, coarse_to_fine=True), "--coarse-to-fine has times of its own and one pair"),
        (InterpolationOptions(columns=1), "--columns must be at least 2 and --pairs at least 1, got 1 and 1"),
        (InterpolationOptions(pairs=0), "--columns must be at least 2 and --pairs at least 1, got 11 and 0"),
        (InterpolationOptions(pairs=149), "must stay within images 0 to 296 of the test split, got 0, 1 and 149"),
        (InterpolationOptions(first=-1), "must stay within images 0 to 296 of the test split, got -1, 1 and 1"),
    ],
)
def test_wrong_interpolations_are_refused(run_folder, options, text):
    with pytest.raises(ValueError, match=text):
        interpolation.interpolate(exact(run_folder, steps=4), TEST, options)


def test_wrong_pictures_are_refused(run_folder, tmp_path):
    context = EvaluationContext(exact(run_folder), CommonFlags(), tmp_path)
    with pytest.raises(ValueError, match="--frames must be at least 2, the ends of the chain, got 1"):
        progressive.run(context, ProgressiveOptions(frames=1))
    with pytest.raises(ValueError, match="--quality must be 0 or at least --num, 8, got 3"):
        predictions.measure(context, PredictionsOptions(quality=3))
    with pytest.raises(ValueError, match="--quality must be above 64, the dimension of the features of digits-"):
        predictions.measure(context, PredictionsOptions(quality=64))
