"""Interpolations of two images, against closed forms for data N(0, I) and against one another."""

import numpy as np
import pytest
from shared_evaluation import ideal_model, picture_column

from ddpm_jax import data
from ddpm_jax.evaluate.context import CommonFlags, EvaluationContext
from ddpm_jax.evaluate.figures import interpolation
from ddpm_jax.evaluate.figures.interpolation import InterpolationOptions

TEST = data.load("digits").test


def test_noise_and_steps_are_those_of_t_with_none_missing(run_folder):
    """Deterministic steps multiply by signal_s signal_t + noise_s noise_t: divided out, unit noise is left at every t.

    It is the same at every t.  With noise of t - 1 its variance would be off by a twentieth at t = 12, four standard
    errors; without the first of the steps it would be off by 3e-3 itself, and by another factor at t = 20.
    """
    model = ideal_model(run_folder, sampler="ddim", eta=0.0)
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
    model = ideal_model(run_folder)
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
    found = interpolation.interpolate(ideal_model(run_folder), TEST, InterpolationOptions(t=12, pairs=3, columns=5))
    to_b = np.linspace(0, 1, 5).reshape(1, -1, 1, 1, 1)
    straight = (1 - to_b) * found.decoded[:, :1] + to_b * found.decoded[:, -1:]
    np.testing.assert_allclose(found.decoded, straight, atol=1e-5)
    np.testing.assert_array_equal(found.pairs, [[0, 1], [2, 3], [4, 5]])
    np.testing.assert_array_equal(data.to_integer(found.sources, 17).reshape(TEST[:6].shape), TEST[:6])


def test_a_pair_the_other_way_round_is_mirrored(run_folder):
    there, back = (
        interpolation.interpolate(ideal_model(run_folder), TEST, InterpolationOptions(first=a, second=b, t=9))
        for a, b in ((3, 7), (7, 3))
    )
    np.testing.assert_array_equal(there.decoded, back.decoded[:, ::-1])
    np.testing.assert_array_equal(there.sources, back.sources[:, ::-1])


def test_lambda_0_is_the_reconstruction_of_a_whatever_b_is(run_folder, tmp_path, capsys):
    run = EvaluationContext(ideal_model(run_folder, steps=6), CommonFlags(), tmp_path)
    one, other = (interpolation.interpolate(run.model, TEST, InterpolationOptions(second=b, columns=4)) for b in (1, 9))
    np.testing.assert_array_equal(one.decoded[:, 0], other.decoded[:, 0])
    assert abs(one.decoded[:, -1] - other.decoded[:, -1]).max() > 0.1
    interpolation.run(run, InterpolationOptions(second=9, columns=4))
    out = capsys.readouterr().out
    assert "rows: test images 0 and 9 at t = 9; columns: image a, lambda = 0, 0.333, 0.667, 1, image b" in out
    (path,) = tmp_path.glob("interpolation-*.png")
    for column, image in ((0, TEST[0]), (5, TEST[9])):
        np.testing.assert_array_equal(
            picture_column(path, column), data.make_grid(image[None], 17, padding=0)[None, ..., 0]
        )
    np.testing.assert_array_equal(picture_column(path, 2), data.to_integer(other.decoded[:, 1], 256)[..., 0])


def test_coarse_to_fine_ends_in_a_mixture_of_pixels(run_folder):
    found = interpolation.interpolate(ideal_model(run_folder), TEST, InterpolationOptions(coarse_to_fine=True))
    np.testing.assert_array_equal(found.times, [20, 18, 15, 13, 10, 8, 5, 3, 0])
    a, b = np.asarray(data.normalize(TEST[:2], 17))
    for weight, between in zip(np.linspace(0, 1, 11), found.decoded[-1], strict=True):
        np.testing.assert_allclose(between, (1 - weight) * a + weight * b, atol=1e-6)
    error = ((found.decoded[:, 0] - a) ** 2).mean(axis=(1, 2, 3))
    assert error[-1] == 0 and (error[:-1] > 0.01).all()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            InterpolationOptions(t=12),
            r"--t: the reverse process of 4 steps does not visit t = 12; nearest to it are the visited 14 and 7",
        ),
        (
            InterpolationOptions(t=5, coarse_to_fine=True),
            "--coarse-to-fine has times of its own and one pair: leave out --t",
        ),
        (InterpolationOptions(pairs=2, coarse_to_fine=True), "--coarse-to-fine has times of its own and one pair"),
        (InterpolationOptions(pairs=149), "must stay within images 0 to 296 of the test split, got 0, 1 and 149"),
        (InterpolationOptions(first=-1), "must stay within images 0 to 296 of the test split, got -1, 1 and 1"),
    ],
)
def test_wrong_interpolations_are_refused(run_folder, options, text):
    with pytest.raises(ValueError, match=text):
        interpolation.interpolate(ideal_model(run_folder, steps=4), TEST, options)
