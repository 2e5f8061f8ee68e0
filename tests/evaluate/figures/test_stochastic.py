"""Continuations of an x_t, against closed forms.

For data N(0, I), ancestral sampling with mix 1 draws from the true p(x_s | x_t), but for the last step, which adds no
noise.  So x_0 given x_t has the mean signal_t x_t and the variance signal_1^2 - signal_t^2.
"""

import numpy as np
import pytest
from shared_evaluation import ideal_model, picture_column

from ddpm_jax import data
from ddpm_jax.evaluate import protocol
from ddpm_jax.evaluate.context import CommonFlags, EvaluationContext
from ddpm_jax.evaluate.figures import figure, stochastic
from ddpm_jax.evaluate.figures.progressive import ProgressiveOptions
from ddpm_jax.evaluate.figures.stochastic import StochasticOptions


@pytest.fixture(scope="module")
def continued(run_folder):
    model = ideal_model(run_folder)
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
    states = figure.draw_states(model, ProgressiveOptions(num=64), [20, 15, 10, 5, 0])
    np.testing.assert_array_equal(states[:, :-1], found.shared)
    for k in range(4):
        np.testing.assert_array_equal(found.ends[:, k, 0], states[:, -1])


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
        EvaluationContext(ideal_model(run_folder, steps=5), CommonFlags(), tmp_path),
        StochasticOptions(num=2, times=(1, 20)),
    )
    stochastic.run(run, options)
    assert "t = 20, 1; in a block: x_t, the image's own x_0, then 2 others" in capsys.readouterr().out
    (path,) = tmp_path.glob("stochastic-*.json")
    from_t20, from_t1 = protocol.read_measurements(path)
    assert (from_t20.protocol["t"], from_t1.protocol["t"]) == (20, 1)
    assert from_t20.value > 10 and from_t1.value < 1e-3  # from t = 1 one step is left, and it adds no noise
    (image,) = run.model.draw(seed=0, start=0, num=2)
    np.testing.assert_array_equal(picture_column(path.with_suffix(".png"), 1), data.to_integer(image.x, 256)[..., 0])


@pytest.mark.parametrize(
    ("options", "sampling", "text"),
    [
        (
            StochasticOptions(times=(12,)),
            {"steps": 4},
            r"--times: the reverse process of 4 steps does not visit t = 12; .* 14 and 7",
        ),
        (StochasticOptions(times=(21,)), {}, r"reverse process of 20 steps does not visit t = 21; .* visited 20$"),
        (StochasticOptions(times=()), {}, "--times must be one or more times, got none"),
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
        stochastic.sample_continuations(ideal_model(run_folder, **sampling), options)
