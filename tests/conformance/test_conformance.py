"""The conformance kit: its laws against scipy, the library's samplers by it, and that it finds what is wrong."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ddpm_jax import conformance, gaussian, likelihood, samplers, schedules
from ddpm_jax.conformance.checks import GAUSSIAN, MIXTURE
from ddpm_jax.keys import from_seed

LINE = conformance.mixture_data([0.3, 0.7], [[-0.8], [0.5]], [[[0.01]], [[0.09]]])
TIME_GRIDS = [samplers.times(schedules.linear(1000), 10, spacing=spacing) for spacing in samplers.Spacing.__args__]


# --- the laws


def test_the_flow_of_a_mixture_on_a_line_carries_quantiles():
    with jax.enable_x64(True):
        schedule = schedules.linear(1000)
        x_T = np.array([[-2.0], [-0.4], [0.1], [1.7]])
        x_0 = conformance.probability_flow(schedule, LINE, x_T, 1000, 0)
        signal, noise = float(schedule.signal[1000]), float(schedule.noise[1000])

        def below(x, signal, noise):
            return sum(
                w * stats.norm.cdf(x, signal * m, np.sqrt(signal**2 * v + noise**2))
                for w, m, v in zip([0.3, 0.7], [-0.8, 0.5], [0.01, 0.09], strict=True)
            )

        np.testing.assert_allclose(below(x_0, 1.0, 0.0), below(x_T, signal, noise), atol=1e-8)
        np.testing.assert_allclose(conformance.probability_flow(schedule, LINE, x_0, 0, 1000), x_T, atol=1e-7)


def test_a_mixture_of_one_gaussian_twice_flows_as_the_closed_form():
    (mean,), (cov,) = GAUSSIAN.means, GAUSSIAN.axes @ (GAUSSIAN.variances[..., None] * GAUSSIAN.axes.swapaxes(1, 2))
    twice = conformance.mixture_data([0.4, 0.6], [mean, mean], [cov, cov])
    x_T, schedule = np.array([[0.3, -1.2], [2.0, 0.5]]), schedules.linear(1000)
    ends = [conformance.probability_flow(schedule, law, x_T, 1000, 0) for law in (GAUSSIAN, twice)]
    # the tables' float32 rows are no exact sines and cosines
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-6)


def test_the_ideal_denoiser_is_the_score_of_the_mixture():
    # Tweedie: E[eps | x] = -noise * gradient of log p(x_t); the gradient of scipy's density, by central differences
    with jax.enable_x64(True):
        schedule = schedules.linear(1000)
        ideal = jax.jit(conformance.ideal_denoiser(schedule, MIXTURE))
        covs = MIXTURE.axes @ (MIXTURE.variances[..., None] * MIXTURE.axes.swapaxes(1, 2))
        x, h = np.random.default_rng(0).normal(size=(5, 2)) * 0.7, 1e-5
        for t in (1, 300, 1000):
            signal, noise = float(schedule.signal[t]), float(schedule.noise[t])

            def log_p(x, signal=signal, noise=noise):
                parts = [
                    w * stats.multivariate_normal.pdf(x, signal * m, signal**2 * c + noise**2 * np.eye(2))
                    for w, m, c in zip(MIXTURE.weights, MIXTURE.means, covs, strict=True)
                ]
                return np.log(np.sum(parts, axis=0))

            score = np.stack([(log_p(x + h * e) - log_p(x - h * e)) / (2 * h) for e in np.eye(2)], axis=-1)
            found = jax.tree.map(np.asarray, ideal(x, np.int32(t)))
            np.testing.assert_allclose(found.eps, -noise * score, rtol=1e-6, atol=1e-7, err_msg=f"t = {t}")
            np.testing.assert_allclose(signal * found.x0 + noise * found.eps, x, atol=1e-12, err_msg=f"t = {t}")


def test_draws_have_the_moments_of_the_law():
    n = 40_000
    x = np.asarray(jax.jit(lambda keys: conformance.sample_data(keys, MIXTURE))(samplers.image_keys(0, range(n))))
    mean, cov = conformance.marginal_moments(schedules.linear(10), MIXTURE, 0)
    assert (abs(x.mean(0) - mean) < 4 * np.sqrt(np.diag(cov) / n)).all()
    # no fourth moment of these data exceeds that of a Gaussian
    assert (abs(np.cov(x.T) - cov) < 4 * np.sqrt(2 / n) * np.sqrt(np.outer(np.diag(cov), np.diag(cov)))).all()


# --- the library's samplers


def closed_form(schedule, times, sampler, option, law=GAUSSIAN):
    """Terminal mean and covariance for one Gaussian from N(0, I): recursions of numbers along the axes of the data."""
    alpha_bar = np.asarray(schedule.signal, np.float64) ** 2
    (mean,), (variances,), (axes,) = law.means, law.variances, law.axes
    # along an axis x = m + A u + noise: m and A of the mean, A A of the variance
    m, root, var = np.zeros(2), np.ones(2), np.zeros(2)
    for t, s in itertools.pairwise(times):
        a, b, c = alpha_bar[t], alpha_bar[s], axes.T @ mean
        gain = variances * np.sqrt(a) / (a * variances + 1 - a)
        small = (1 - b) * (1 - a / b) / (1 - a)
        coefficients = np.sqrt(a / b) * (1 - b) / (1 - a), np.sqrt(b) * (1 - a / b) / (1 - a)
        spread = 0.0
        if sampler == "ancestral" and s:
            spread = small ** (1 - option) * (1 - a / b) ** option
        if sampler == "analytic" and s:  # and what x_t leaves unknown of x_0
            spread = small + coefficients[1] ** 2 * variances * (1 - a) / (a * variances + 1 - a)
        if sampler == "ddim":
            spread = option**2 * small
            on_x = np.sqrt((1 - b - spread) / (1 - a))
            coefficients = on_x, np.sqrt(b) - np.sqrt(a) * on_x
        factor = coefficients[0] + coefficients[1] * gain
        m = factor * m + coefficients[1] * c * (1 - gain * np.sqrt(a))
        root, var = factor * root, factor**2 * var + spread
    return axes @ m, axes @ np.diag(root**2 + var) @ axes.T


def closed_form_of_a_solver(schedule, times, sampler, order):
    """The same of those that remember: x [2, D] is offset and slope in u, and so is each x_0_hat."""
    alpha_bar = np.asarray(schedule.signal, np.float64) ** 2
    (mean,), (variances,), (axes,) = GAUSSIAN.means, GAUSSIAN.variances, GAUSSIAN.axes
    c, x, past = axes.T @ mean, np.stack([np.zeros(2), np.ones(2)]), []  # past: (lambda, x_0_hat)
    before = None  # x and alpha_bar where the last step began, and what was known there
    for t, s in itertools.pairwise(times):
        a, b = alpha_bar[t], alpha_bar[s]
        gain = variances * np.sqrt(a) / (a * variances + 1 - a)
        found = gain * x + np.stack([c * (1 - gain * np.sqrt(a)), np.zeros(2)])
        now = (0.5 * np.log(a / (1 - a)), found)
        if sampler == "unipc" and before:
            x = solved(*before, a, [*past, now], past[-1][0], halfway=False)
        past = [*past, now][-order:]
        before = x, a
        x = solved(x, a, b, past, now[0], halfway=order == 2 and len(past) == 2)
    return axes @ x[0], axes @ np.diag(x[1] ** 2) @ axes.T


def solved(x, a, b, past, start, *, halfway):
    """x at b from x at a: int_0^h exp(u - h) p(u) du by quadrature, p as Lagrange has it; or p(h / 2) for all u."""
    if b == 1:  # the data, infinitely far: only the last x_0_hat counts
        return past[-1][1]
    knots, h = np.array([p[0] for p in past]) - start, 0.5 * np.log(b / (1 - b)) - start
    nodes, masses = np.polynomial.legendre.leggauss(40)
    u, masses = h * (nodes + 1) / 2, masses * h / 2
    masses = masses * np.exp(u - h)
    if halfway:  # the paper's choice
        u, masses = np.array([h / 2]), np.array([-np.expm1(-h)])
    polynomials = [np.prod([(u - k) / (own - k) for k in np.delete(knots, i)], axis=0) for i, own in enumerate(knots)]
    total = sum((masses * basis).sum() * p[1] for basis, p in zip(polynomials, past, strict=True))
    return np.sqrt((1 - b) / (1 - a)) * x + np.sqrt(b) * total


SOLVERS = {"dpm_solver_pp": samplers.dpm_solver_pp, "unipc": samplers.unipc}
KINDS = [
    *(("ancestral", mix) for mix in (0.0, 0.5, 1.0)),
    *(("ddim", eta) for eta in (0.0, 0.5, 1.0)),
    *((name, order) for name in SOLVERS for order in (1, 2, 3)),
]


def make(kind, option):
    if kind == "ancestral":
        return lambda schedule, denoise, noise: samplers.ancestral(schedule, denoise, variance_mix=option, noise=noise)
    if kind == "ddim":
        return lambda schedule, denoise, noise: samplers.ddim(schedule, denoise, eta=option, noise=noise)
    return lambda schedule, denoise, noise: SOLVERS[kind](schedule, denoise, order=option)


def predicting(schedule, predicts, law=GAUSSIAN):
    """The ideal denoiser by way of a network that predicts this."""
    best = conformance.ideal_denoiser(schedule, law)

    def net(x_t, t):
        found = best(x_t, t)
        return gaussian.target(schedule, predicts, found.x0, found.eps, t)

    return gaussian.denoiser(schedule, net, predicts, clip=False)


def near_the_closed_form(found, truths):
    for (mean, cov), (true_mean, true_cov) in zip(found, truths, strict=True):
        np.testing.assert_allclose(mean, true_mean, rtol=0, atol=1e-4)
        np.testing.assert_allclose(cov, true_cov, rtol=0, atol=1e-4)


PREDICTS = ["eps", "x0", "v", "mean"]
PAIRS = [(*kind, PREDICTS[i % 4]) for i, kind in enumerate(KINDS)]
PAIRS += [(*kind, predicts) for kind in (("ddim", 0.5), ("unipc", 3)) for predicts in PREDICTS]
"""A sampler's moments and what a network predicts know nothing of each other: every one of both, and two with all."""


@pytest.mark.parametrize(("kind", "option", "predicts"), dict.fromkeys(PAIRS))
def test_terminal_moments_are_the_closed_form_with_every_spacing(kind, option, predicts):
    # an x_0 from a mean at T is 7000 times a difference of numbers of order 1: in float32 that leaves three digits
    with jax.enable_x64(predicts == "mean"):
        schedule, start = schedules.linear(1000), (np.zeros(2), np.eye(2))
        found = conformance.terminal_moments(
            make(kind, option), schedule, predicting(schedule, predicts), TIME_GRIDS, start=start
        )
    truth = closed_form_of_a_solver if kind in SOLVERS else closed_form
    near_the_closed_form(found, [truth(schedule, times, kind, option) for times in TIME_GRIDS])


@pytest.mark.parametrize("predicts", ["v", "mean"])
def test_terminal_moments_of_the_analytic_variance_are_the_closed_form_with_every_spacing(predicts):
    law = conformance.gaussian_data([0.2, -0.1], 0.25 * np.eye(2))
    with jax.enable_x64(predicts == "mean"):
        schedule, start = schedules.linear(1000), (np.zeros(2), np.eye(2))
        signal, noise = (np.asarray(column) for column in schedule[:2])
        x0_mse = 0.25 * noise**2 / (0.25 * signal**2 + noise**2)
        of = lambda schedule, denoise, noise: samplers.analytic(schedule, denoise, x0_mse, noise=noise)  # noqa: E731
        found = conformance.terminal_moments(of, schedule, predicting(schedule, predicts, law), TIME_GRIDS, start=start)
    near_the_closed_form(found, [closed_form(schedule, times, "analytic", None, law) for times in TIME_GRIDS])


def test_the_analytic_variance_draws_gaussian_data_exactly_in_any_number_of_steps():
    # with the posterior's own mean and variance every step is the exact reversal, however long it is
    law, schedule = conformance.gaussian_data([0.2, -0.1], 0.25 * np.eye(2)), schedules.linear(1000)
    # Var[x_0 | x_t] = s^2 noise^2 / (signal^2 s^2 + noise^2)
    signal, noise = (np.asarray(column) for column in schedule[:2])
    x0_mse = 0.25 * noise**2 / (0.25 * signal**2 + noise**2)
    of = lambda schedule, denoise, noise: samplers.analytic(schedule, denoise, x0_mse, noise=noise)  # noqa: E731
    cases = [(steps, end) for steps in (1, 2, 10) for end in (1, 200)]
    chains = [np.append(np.linspace(1000, end, steps + 1)[:-1].astype(int), end) for steps, end in cases]
    start = conformance.marginal_moments(schedule, law, 1000)
    found = conformance.terminal_moments(of, schedule, conformance.ideal_denoiser(schedule, law), chains, start=start)
    for (steps, end), moments in zip(cases, found, strict=True):
        for ours, true in zip(moments, conformance.marginal_moments(schedule, law, end), strict=True):
            np.testing.assert_allclose(ours, true, rtol=0, atol=1e-5, err_msg=f"{steps} steps to {end}")


def test_the_bound_measures_the_errors_that_the_analytic_variance_asks_for():
    # of 4000 examples of 2 components; the square of a normal has a variance of twice its mean's square
    law, schedule, n = conformance.gaussian_data([0.2, -0.1], 0.25 * np.eye(2)), schedules.linear(50, 2e-3, 0.3), 4000

    @jax.jit
    def measured_x0_mse(keys, key):
        vlb_args = schedule, conformance.ideal_denoiser(schedule, law), conformance.sample_data(keys, law)
        return likelihood.vlb(key, *vlb_args, decoder=likelihood.gaussian_density).x0_mse.mean(1)

    found = np.asarray(measured_x0_mse(samplers.image_keys(0, range(n)), from_seed(1)))
    signal, noise = (np.asarray(column)[1:] for column in schedule[:2])
    truth = 0.25 * noise**2 / (0.25 * signal**2 + noise**2)
    np.testing.assert_array_less(abs(found / truth - 1), 4 * np.sqrt(2 / (2 * n)))


ORDERS = {
    "ancestral": 1, "ddim": 1, "dpm_solver_pp, order 1": 1, "dpm_solver_pp, order 2": 2, "dpm_solver_pp, order 3": 3,
    "unipc, order 1": 2, "unipc, order 2": 3, "unipc, order 3": 3.5,
}  # fmt: skip
"""Measured; the last would be 4, but for its first steps, which have not had enough calls."""


def sound(name, steps=(40, 80, 160)):
    """Checks a sampler of the library, in float64."""
    with jax.enable_x64(True):
        report = conformance.check(name, conformance.BUILT_IN[name], steps=steps)
    order = ORDERS.get(name) or ORDERS[name.partition(",")[0]]
    assert report.name == name and report.steps.tolist() == list(steps)
    assert report.nfe_per_step == 1 and report.is_reproducible and report.batch_difference < 1e-6
    assert report.deterministic == (not name.startswith("ancestral") and name != "ddim, eta 1")
    assert np.isnan(report.flow_error).all() == np.isnan(report.flow_order) == (not report.deterministic)
    if report.deterministic:
        assert abs(report.flow_order - order) < 0.25 and report.flow_error[0] < 0.1
    # the moments of Gaussian data may converge one order faster
    assert report.cov_order > order - 0.15 and report.mean_error.max() < 1e-9
    text = conformance.format_table([report])
    assert name in text and len({len(line) for line in text.splitlines()}) == 1


def test_a_solver_has_its_order_and_gives_the_same_bits():
    sound("unipc, order 2", (40, 80))


@pytest.mark.slow
@pytest.mark.parametrize("name", conformance.BUILT_IN)
def test_every_sampler_has_its_order_and_gives_the_same_bits(name):
    sound(name)


def test_a_sampler_that_is_wrong_is_found():
    """Its images move with their batch, in steps that go a hundredth too far, with the noise of the whole batch."""

    def mixed(schedule, denoise, noise):
        right = samplers.ddim(schedule, denoise)

        def step(keys, state, t, s):
            state = right.step(keys, state, t, s)
            return state._replace(x=1.01 * state.x + 0.01 * noise(keys, t, state.x).mean(0))

        return samplers.Sampler(right.init, step)

    report = conformance.check("mixed", mixed, steps=(20, 40))
    assert not report.deterministic and report.cov_order < 0 and report.batch_difference > 1e-3
    # and one whose images know their place in the batch
    repeats, _ = conformance.reproducibility(placed)
    assert not repeats


def placed(schedule, denoise, noise):
    right = samplers.ddim(schedule, denoise)

    def step(keys, state, t, s):
        state = right.step(keys, state, t, s)
        return state._replace(x=state.x + 0.01 * jnp.arange(state.x.shape[0])[:, None])

    return samplers.Sampler(right.init, step)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: conformance.gaussian_data([0.0], np.eye(2)),
            "a mixture has weights [K], means [K, D] and covariances",
        ),
        (lambda: conformance.gaussian_data([0.0], [[-1.0]]), "symmetric, without negative eigenvalues, got [[[-1.0]]]"),
        (
            lambda: conformance.mixture_data([0.5], [[0.0]], [[[1.0]]]),
            "weights must be positive and of sum 1, got [0.5]",
        ),
        (
            lambda: samplers.analytic(schedules.linear(10), predicting(schedules.linear(10), "eps"), np.ones(10)),
            "x0_mse must have a row for each t in 0..T, (11,): (10,)",
        ),
        (
            lambda: conformance.uniform_log_snr_times(schedules.linear(100), 90, 1),
            "90 steps, even in log SNR from 100 to 1, would visit a time twice",
        ),
    ],
)
def test_errors_name_the_value(call, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        call()
