"""Laws and known values of the noise schedules."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import schedules


def straight(T: int = 1000) -> schedules.Schedule:
    return schedules.from_log_snr(lambda u: 13.3 - 18.3 * u, T)


NAMED = [
    schedules.linear, schedules.cosine, schedules.quad, schedules.const, schedules.jsd,
    schedules.warmup10, schedules.warmup50, straight,
]  # fmt: skip
every_schedule = pytest.mark.parametrize("make", NAMED, ids=lambda f: f.__name__)


def columns(schedule: schedules.Schedule) -> list[np.ndarray]:
    return [np.asarray(column, np.float64) for column in schedule]


@every_schedule
@pytest.mark.parametrize("T", [2, 10, 1000])
def test_variance_is_preserved_and_snr_falls_from_the_data(make, T):
    with jax.enable_x64(True):
        schedule = make(T)
        signal, noise, log_snr, tail = columns(schedule)
    assert schedule.T == T == len(signal) - 1
    np.testing.assert_allclose(signal**2 + noise**2, 1, rtol=0, atol=5e-15)
    assert (signal[0], noise[0], log_snr[0]) == (1, 0, np.inf)
    assert (np.diff(log_snr[1:]) < 0).all() and np.isfinite(log_snr[1:-1]).all()
    assert (np.diff(signal) < 0).all() and (np.diff(noise) > 0).all()
    assert (tail == 0).all()


@every_schedule
def test_the_columns_agree_with_each_other(make):
    with jax.enable_x64(True):
        signal, noise, log_snr, _ = columns(make(1000))
    last = -1 if signal[-1] == 0 else None
    np.testing.assert_allclose(log_snr[1:last], 2 * np.log(signal[1:last] / noise[1:last]), atol=1e-11)


@every_schedule
@pytest.mark.parametrize("wide", [False, True])
def test_beta_and_alpha_bar_are_those_of_the_paper(make, wide):
    with jax.enable_x64(wide):
        schedule = make(1000)
        beta, alpha_bar = (np.asarray(column) for column in (schedule.beta, schedule.alpha_bar))
        assert beta.dtype == alpha_bar.dtype == schedule.signal.dtype and (beta[0], alpha_bar[0]) == (0, 1)
    np.testing.assert_allclose(np.cumprod(1 - beta.astype(np.float64)), alpha_bar, rtol=1e-10 if wide else 1e-4)
    betas = np.random.default_rng(0).uniform(1e-6, 0.1, 100)
    np.testing.assert_allclose(schedules.from_betas(betas).beta[1:], betas, rtol=1e-5)


@pytest.mark.parametrize("T", [1, 10, 1000])
def test_betas_are_recovered_from_the_table(T):
    betas = np.random.default_rng(0).uniform(1e-6, 0.1, T)
    with jax.enable_x64(True):
        signal, noise, log_snr, _ = columns(schedules.from_betas(betas))
    np.testing.assert_allclose(1 - (signal[1:] / signal[:-1]) ** 2, betas, rtol=0, atol=1e-14)
    # the noise of one step is what its two rows leave: noise_t^2 = (1 - beta_t) noise_s^2 + beta_t
    np.testing.assert_allclose(noise[1:] ** 2 - (1 - betas) * noise[:-1] ** 2, betas, rtol=0, atol=1e-14)
    np.testing.assert_allclose(1 / (1 + np.exp(log_snr[1])), betas[0], rtol=1e-12)


def test_the_ends_of_each_rise_of_the_betas():
    with jax.enable_x64(True):
        ends = {f.__name__: columns(f(1000))[0] for f in NAMED[:-1]}
    first_beta = {name: 1 - signal[1] ** 2 for name, signal in ends.items()}
    last_beta = {name: 1 - (signal[-1] / signal[-2]) ** 2 for name, signal in ends.items()}
    for name in ("linear", "quad", "warmup10", "warmup50"):
        assert first_beta[name] == pytest.approx(1e-4, rel=1e-10) and last_beta[name] == pytest.approx(0.02, rel=1e-10)
    assert first_beta["const"] == pytest.approx(0.02) and last_beta["const"] == pytest.approx(0.02)
    assert first_beta["jsd"] == pytest.approx(1e-3) and last_beta["jsd"] == 1
    assert last_beta["cosine"] == pytest.approx(0.999)


def test_linear_known_values():
    with jax.enable_x64(True):
        signal, noise, log_snr, _ = columns(schedules.linear(1000))
    known = {1: 0.9999, 2: 0.99978009207, 10: 0.99810520479, 100: 0.89701814567, 500: 0.078587242882}
    for t, alpha_bar in known.items():
        assert signal[t] ** 2 == pytest.approx(alpha_bar, rel=1e-10)
    assert signal[1000] ** 2 == pytest.approx(4.0358297654e-5, rel=1e-10)
    assert np.argmax(log_snr < 0) == 260
    assert np.argmax(log_snr < np.log(5)) in (131, 132)
    # beta-tilde_2 / beta_2
    assert (noise[1] / noise[2]) ** 2 == pytest.approx(0.4547, abs=5e-5)


def test_cosine_known_values():
    with jax.enable_x64(True):
        signal, _, log_snr, _ = columns(schedules.cosine(1000))
    assert signal[500] ** 2 == pytest.approx(0.49384359, abs=5e-9)
    assert signal[1000] ** 2 == pytest.approx(2.4288e-9, rel=1e-4)
    assert np.argmax(log_snr < 0) == 497


def test_from_log_snr_rebuilds_a_schedule_from_its_log_snr():
    with jax.enable_x64(True):
        linear = schedules.linear(1000)
        rows = np.asarray(linear.log_snr)[1:]
        again = schedules.from_log_snr(lambda u: rows[np.round(u * 999).astype(int)], 1000)
    for a, b in zip(columns(again), columns(linear), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@every_schedule
def test_no_signal_is_left_at_the_end_of_a_rescaled_schedule(make):
    single = columns(schedules.zero_terminal_snr(make(1000)))
    with jax.enable_x64(True):
        before, (signal, noise, log_snr, _) = columns(make(1000)), columns(schedules.zero_terminal_snr(make(1000)))
    assert (signal[-1], noise[-1], log_snr[-1]) == (0, 1, -np.inf)
    # a straight line through the signals of before, which keeps the first
    np.testing.assert_allclose(noise[1], before[1][1], rtol=1e-10)
    straight = before[0][1] * (before[0][1:] - before[0][-1]) / (before[0][1] - before[0][-1])
    np.testing.assert_allclose(signal[1:], straight, rtol=1e-11, atol=1e-14)
    # and a table in float32 loses nothing on the way: rows and tails are what float64 gives
    whole = single[2][1:-1] + single[3][1:-1]
    np.testing.assert_allclose(whole, log_snr[1:-1], rtol=1e-9, atol=1e-9)


def test_from_log_snr_takes_an_end_without_signal():
    schedule = schedules.from_log_snr(lambda u: np.where(u < 1, 10 - 20 * u, -np.inf), 50)
    assert schedule.signal[-1] == 0 and schedule.noise[-1] == 1 and schedule.log_snr[-1] == -jnp.inf
    assert np.isfinite(columns(schedule)[3]).all()


@every_schedule
def test_float32_keeps_the_differences_of_neighbouring_rows(make):
    with jax.enable_x64(True):
        exact = np.diff(columns(make(1000))[2][1:])
    schedule = make(1000)
    t = np.arange(2, 1001)
    fall = schedules.log_snr_ratio(schedule, t, t - 1, np.zeros(999, np.float32))
    assert fall.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(fall, np.float64), exact, rtol=1e-6)


@every_schedule
def test_dtype_is_what_jax_keeps(make):
    assert {column.dtype for column in make(20)} == {jnp.dtype("float32")}
    with jax.enable_x64(True):
        assert {column.dtype for column in make(20)} == {jnp.dtype("float64")}


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 2, 4), (3, 2, 4, 1), (3, 2, 4, 1, 2)])
def test_a_row_meets_each_example_of_a_batch(shape):
    schedule, x, t = schedules.linear(10), np.ones(shape, np.float32), np.array([1, 5, 10])
    noise, scaled_x = np.asarray(schedule.noise), np.asarray(schedules.gather(schedule.noise, t, x)) * x
    assert scaled_x.shape == shape
    for i, k in enumerate(t):
        assert (scaled_x[i] == noise[k]).all()
    row = schedules.gather(schedule.noise, 5, x)
    assert row.shape == () and row == noise[5] and row.dtype == np.float32


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: schedules.from_betas(np.full(3, 0.1, np.float32)), "float64 vector [T], got float32 (3,)"),
        (lambda: schedules.from_betas([1, 1]), "float64 vector [T], got int64 (2,)"),
        (lambda: schedules.from_betas(np.full((2, 2), 0.1)), "float64 vector [T], got float64 (2, 2)"),
        (lambda: schedules.from_betas(np.zeros(0)), "float64 vector [T], got float64 (0,)"),
        (lambda: schedules.from_betas(np.array([0.1, 0.0])), "betas must lie in (0, 1]: beta_2 is 0.0"),
        (lambda: schedules.from_betas(np.array([0.1, 0.2, 1.5])), "betas must lie in (0, 1]: beta_3 is 1.5"),
        (lambda: schedules.from_betas(np.array([0.1, 1.0, 0.2])), "only the last beta may be 1, beta_2 of 3 is"),
        (lambda: schedules.const(10, 1.0), "only the last beta may be 1, beta_1 of 10 is"),
        (lambda: schedules.from_betas(np.array([np.nan])), "betas must lie in (0, 1]: beta_1 is nan"),
        (lambda: schedules.linear(beta_T=2.0), "betas must lie in (0, 1]: beta_"),
        (lambda: schedules.linear(0), "T must be an integer of at least 1, got 0"),
        (lambda: schedules.cosine(2.5), "T must be an integer of at least 1, got 2.5"),
        (lambda: schedules.quad(beta_1=-1e-4), "beta_1 and beta_T must be positive, got -0.0001 and 0.02"),
        (lambda: schedules.quad(-1), "T must be an integer of at least 1, got -1"),
        (lambda: schedules.const(True), "T must be an integer of at least 1, got True"),
        (lambda: schedules.jsd("9"), "T must be an integer of at least 1, got '9'"),
        (lambda: schedules.warmup10(0), "T must be an integer of at least 1, got 0"),
        (lambda: straight(1), "T must be an integer of at least 2, got 1"),
        (lambda: schedules.zero_terminal_snr(schedules.linear(1)), "T must be an integer of at least 2, got 1"),
        (lambda: schedules.from_log_snr(lambda u: u[1:], 4), "f must map [T] to [T] = (4,), it returned (3,)"),
        (lambda: schedules.from_log_snr(lambda u: u, 4), "f must fall strictly from f(0) to f(1), without NaN or +inf"),
        (lambda: schedules.from_log_snr(lambda u: 0 * u, 4), "f must fall strictly"),
        (lambda: schedules.from_log_snr(lambda u: np.where(u > 0, -u, np.inf), 4), "f must fall strictly"),
        (lambda: schedules.from_log_snr(lambda u: np.where(u > 0, -u, np.nan), 4), "f must fall strictly"),
    ],
)
def test_errors_name_the_value(build, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        build()
