"""Laws and limits of the Gaussian transitions, of what a network may predict, and of their derivatives."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_data import PREDICTS, SHAPES, normals, to_numpy
from jax.test_util import check_grads

from ddpm_jax import gaussian, samplers, schedules
from ddpm_jax.gaussian import Gaussian
from ddpm_jax.keys import example_keys, from_seed, split_keys, standard_normal

TIMES = np.array([1, 2, 3, 10, 300, 500, 999, 1000], np.int32)
JUMPS = np.array([(1000, 999), (1000, 500), (1000, 1), (500, 499), (500, 20), (3, 2), (3, 1), (2, 1)], np.int32)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
every_prediction = pytest.mark.parametrize("predicts", PREDICTS)
every_precision = pytest.mark.parametrize(
    ("shape", "wide"), [*((shape, False) for shape in SHAPES), (SHAPES[0], True), (SHAPES[3], True)]
)


@functools.cache
def found(shape, wide=False) -> dict:
    """What the tests of shapes look at, in one program for a shape and a precision: numpy arrays."""
    with jax.enable_x64(wide):
        linear = schedules.linear(1000)
        # jsd has no signal at T
        return to_numpy(_found(linear, [schedules.cosine(1000), schedules.jsd(1000)], *normals(shape)))


@jax.jit
def _found(linear, others, x0, eps):
    t, x_t, out = TIMES, gaussian.q_sample(linear, x0, TIMES, eps), {}
    out |= {"x0": x0, "eps": eps, "marginal": gaussian.marginal(linear, x0, t), "x_t": x_t}
    out["without noise"] = gaussian.q_sample(linear, x0, t, jnp.zeros_like(x0))
    out["at the data"] = [gaussian.posterior(schedule, x0, eps, t, 0 * t) for schedule in (linear, *others)]

    a, b, c = np.array([(1000, 999, 998), (1000, 500, 1), (500, 100, 0), (3, 2, 1), (2, 1, 0), (999, 2, 1)], np.int32).T
    one, other = x0[:6], eps[:6]
    one_jump, direct = gaussian.posterior(linear, one, other, a, b), gaussian.posterior(linear, one, other, a, c)
    coefficient = gaussian.posterior(linear, jnp.zeros_like(one), jnp.ones_like(one), b, c).mean
    out["two jumps"] = gaussian.posterior(linear, one, one_jump.mean, b, c), one_jump, direct, coefficient

    a, b = JUMPS.T
    there, expected = gaussian.marginal(others[0], x0, a), gaussian.marginal(others[0], x0, b)
    coefficient = gaussian.posterior(others[0], 0 * x0, 0 * x0 + 1, a, b).mean
    out["and back"] = gaussian.posterior(others[0], x0, there.mean, a, b), there, expected, coefficient

    for predicts in PREDICTS:
        target = gaussian.target(linear, predicts, x0, eps, t)
        back = gaussian.estimate(linear, predicts, target, x_t, t)
        out["inverse", predicts] = back.x0, back.eps, gaussian.q_sample(linear, back.x0, t, back.eps)
        # eps as an x_t, and x0 as what a network says of it
        for clip in (False, True):
            denoised = gaussian.denoiser(linear, lambda x, t: x0, predicts, clip=clip)(eps, t)
            plain = gaussian.estimate(linear, predicts, x0, eps, t)
            signal = schedules.gather(linear.signal, t, x0)
            out["denoiser", predicts, clip] = (
                denoised.x0, gaussian.q_sample(linear, denoised.x0, t, denoised.eps), plain.x0, signal,
            )  # fmt: skip

    v = jnp.linspace(-1, 1.5, x0.size).reshape(x0.shape)
    net = lambda x, t: jnp.concatenate([x0, v], -1)  # noqa: E731
    learned = gaussian.denoiser(linear, net, "v", learned_variance=True, clip=True)(eps, t)
    out["learned"] = learned, gaussian.denoiser(linear, lambda x, t: x0, "v", clip=True)(eps, t)[:2]
    return {str(name): value for name, value in out.items()}


# --- q(x_t | x_0)


@every_shape
def test_marginal_is_the_law_that_q_sample_draws_from(shape):
    of = found(shape)
    mean, var = of["marginal"]
    np.testing.assert_allclose((of["x_t"] - mean) / np.sqrt(var), of["eps"], atol=1e-4)
    np.testing.assert_array_equal(of["without noise"], mean)


def test_moments_of_the_forward_chain_walked_step_by_step():
    # x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) z, 40 000 walks; the standard errors are those of a normal law
    n, schedule = 40_000, schedules.linear(1000)
    law = jax.jit(lambda t: gaussian.marginal(schedule, np.full((1, 1), 0.7, np.float32), t))
    draw = jax.jit(lambda t, eps: gaussian.q_sample(schedule, np.full((n, 1), 0.7, np.float32), t, eps))
    for t in (1, 300, 1000):
        walk, rng = np.full(n, 0.7), np.random.default_rng(t)
        for beta in np.linspace(1e-4, 0.02, 1000)[:t]:
            walk = np.sqrt(1 - beta) * walk + np.sqrt(beta) * rng.standard_normal(n)
        mean, var = (np.asarray(a).item() for a in law(t))
        drawn = np.asarray(draw(t, rng.standard_normal((n, 1)).astype(np.float32)))
        for x in (walk, drawn):
            assert abs(x.mean() - mean) < 4 * np.sqrt(var / n), t
            assert abs(x.var() - var) < 4 * var * np.sqrt(2 / n), t


# --- q(x_s | x_t, x_0)


@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine, schedules.const])
def test_bayes_rule_between_a_step_the_marginals_and_the_posterior(make):
    """q(x_s | x_t, x_0) q(x_t | x_0) = q(x_t | x_s) q(x_s | x_0) as densities, for any s < t and at any points."""

    def log_density(x, law):
        return -0.5 * ((x - law.mean) ** 2 / law.var + np.log(2 * np.pi * law.var))

    with jax.enable_x64(True):
        schedule, (t, s) = make(1000), JUMPS.T
        x0, x_s, x_t = np.random.default_rng(1).normal(size=(3, len(t), 4))
        there = log_density(x_s, gaussian.posterior(schedule, x0, x_t, t, s)), gaussian.marginal(schedule, x0, t)
        forward = log_density(x_t, gaussian.transition(schedule, x_s, t, s)), gaussian.marginal(schedule, x0, s)
        left, right = there[0] + log_density(x_t, there[1]), forward[0] + log_density(x_s, forward[1])
    np.testing.assert_allclose(left, right, rtol=1e-9)


def test_one_step_forward_is_that_of_the_paper_and_from_the_data_it_is_the_marginal():
    with jax.enable_x64(True):
        schedule, x = schedules.linear(1000), np.random.default_rng(2).normal(size=(len(TIMES), 3))
        step, beta = gaussian.transition(schedule, x, TIMES, TIMES - 1), np.asarray(schedule.beta)[TIMES, None]
        np.testing.assert_allclose(beta[:, 0], np.linspace(1e-4, 0.02, 1000)[TIMES - 1], rtol=1e-11)
        np.testing.assert_allclose(step.mean, np.sqrt(1 - beta) * x, rtol=1e-12)
        np.testing.assert_allclose(step.var, beta, rtol=1e-12)
        from_data, law = gaussian.transition(schedule, x, TIMES, 0 * TIMES), gaussian.marginal(schedule, x, TIMES)
        np.testing.assert_allclose(from_data.mean, law.mean, rtol=1e-15)
        np.testing.assert_allclose(from_data.var, law.var, rtol=1e-15)
        # and two steps are one: the mean goes on, the variance is carried and added to
        (t, s), u = JUMPS[:6].T, np.zeros(6, int)
        whole = gaussian.transition(schedule, x[:6], t, u)
        to_s, of_ones = gaussian.transition(schedule, x[:6], s, u), gaussian.transition(schedule, 1 + 0 * x[:6], t, s)
        np.testing.assert_allclose(of_ones.mean * to_s.mean, whole.mean, rtol=1e-12)
        np.testing.assert_allclose(of_ones.mean[:, :1] ** 2 * to_s.var + of_ones.var, whole.var, rtol=1e-11)


def test_posterior_is_the_chain_conditioned_by_linear_algebra():
    T, x0 = 12, 0.7
    betas = np.random.default_rng(0).uniform(0.01, 0.5, T)
    # the chain as a linear map of its noises: row t of `walk` is x_t's
    walk, mean = np.zeros((T + 1, T)), np.full(T + 1, x0)
    for t in range(1, T + 1):
        walk[t] = np.sqrt(1 - betas[t - 1]) * walk[t - 1]
        walk[t, t - 1] = np.sqrt(betas[t - 1])
        mean[t] = np.sqrt(1 - betas[t - 1]) * mean[t - 1]
    cov = walk @ walk.T
    x_t, pairs = -0.3, [(t, s) for t in range(1, T + 1) for s in range(t)]
    with jax.enable_x64(True):
        schedule, (t, s) = schedules.from_betas(betas), np.array(pairs).T
        law = to_numpy(gaussian.posterior(schedule, np.full(len(t), x0), np.full(len(t), x_t), t, s))
    for (t, s), found_mean, found_var in zip(pairs, law.mean, law.var, strict=True):
        expected = mean[s] + cov[s, t] / cov[t, t] * (x_t - mean[t])
        assert found_mean == pytest.approx(expected, abs=1e-12), (t, s)
        assert found_var == pytest.approx(cov[s, s] - cov[s, t] ** 2 / cov[t, t], abs=1e-12), (t, s)


@every_shape
def test_posterior_at_the_data_is_the_data(shape):
    for law in found(shape)["at the data"]:
        np.testing.assert_array_equal(law.mean, found(shape)["x0"])
        assert (law.var == 0).all()


@every_precision
def test_two_jumps_have_the_law_of_one(shape, wide):
    then, one_jump, direct, coefficient = found(shape, wide)["two jumps"]
    tol = {"rtol": 1e-11, "atol": 1e-14} if wide else {"rtol": 2e-5, "atol": 1e-6}
    np.testing.assert_allclose(then.mean, direct.mean, **tol)
    composed = then.var + coefficient**2 * one_jump.var
    np.testing.assert_allclose(composed, np.broadcast_to(direct.var, coefficient.shape), rtol=tol["rtol"])


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[3]])
def test_forward_to_t_and_back_to_s_is_forward_to_s(shape):
    back, there, expected, coefficient = found(shape, True)["and back"]
    np.testing.assert_allclose(back.mean, expected.mean, rtol=1e-10)
    np.testing.assert_allclose(back.var + coefficient**2 * there.var, expected.var + 0 * coefficient, rtol=1e-10)


# --- the reverse variance


@functools.cache
def reverse_variance():
    return jax.jit(gaussian.reverse_variance)


@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine], ids=lambda f: f.__name__)
def test_reverse_variance_runs_from_the_posteriors_to_beta(make):
    with jax.enable_x64(True):
        schedule, (t, s), like = make(1000), JUMPS.T, np.zeros((len(JUMPS), 2))
        var = np.stack([reverse_variance()(schedule, t, s, like, mix)[:, 0] for mix in np.linspace(0, 1, 5)])
        np.testing.assert_allclose(var[0], gaussian.posterior(schedule, like, like, t, s).var[:, 0], rtol=1e-12)
        signal = np.asarray(schedule.signal)
    np.testing.assert_allclose(var[-1], 1 - (signal[t] / signal[s]) ** 2, rtol=1e-10)
    assert (np.diff(var, axis=0) > 0).all()
    np.testing.assert_allclose(var[2], np.sqrt(var[0] * var[-1]), rtol=1e-12)


def test_reverse_variance_at_the_data_is_beta_1_or_nothing():
    schedule, like = schedules.linear(1000), np.zeros((1, 1), np.float32)
    large, *smaller = (np.asarray(reverse_variance()(schedule, 1, 0, like, mix)).item() for mix in (1.0, 0.0, 0.5, 0.9))
    assert large == pytest.approx(1e-4, rel=1e-6) and smaller == [0, 0, 0]


def test_reverse_variance_takes_a_mix_for_each_component():
    schedule, like, t = schedules.linear(1000), np.zeros((2, 3), np.float32), np.array([7, 700])
    mix = np.array([[0.0, 0.5, 1.0], [1.0, 0.5, 0.0]], np.float32)
    both = np.asarray(reverse_variance()(schedule, t, t - 1, like, mix))
    for i in range(2):
        for j in range(3):
            one = reverse_variance()(schedule, t[i], t[i] - 1, like[:1, :1], mix[i, j])
            np.testing.assert_allclose(both[i, j], np.ravel(one)[0], rtol=1e-6, err_msg=f"{i}, {j}")


# --- what a network may predict


TOLERANCE = {"eps": (5e-5, 1e-6), "x0": (1e-6, 5e-5), "v": (1e-6, 1e-6), "mean": (5e-3, 5e-5)}
"""Float32 errors of x0 and eps: those of "eps" and "mean" are divided by the little signal of x_T."""


@every_precision
@every_prediction
def test_target_and_estimate_are_inverses(shape, predicts, wide):
    of = found(shape, wide)
    x0, eps, again = of[str(("inverse", predicts))]
    scale = 1e-8 if wide else 1.0
    np.testing.assert_allclose(x0, of["x0"], rtol=0, atol=TOLERANCE[predicts][0] * scale)
    np.testing.assert_allclose(eps, of["eps"], rtol=0, atol=TOLERANCE[predicts][1] * scale)
    np.testing.assert_allclose(again, of["x_t"], rtol=0, atol=4e-6 * scale)


def test_targets_are_what_they_are_called():
    schedule, (x0, eps), t = schedules.linear(1000), normals((3,)), TIMES

    @jax.jit
    def v_and_x(x0, eps):
        mean = gaussian.target(schedule, "mean", x0, eps, 1)
        return gaussian.target(schedule, "v", x0, eps, t), gaussian.q_sample(schedule, x0, t, eps), mean

    # v is the tangent of the circle that x_t draws: orthogonal to x_t, of its length
    v, x_t, mean = to_numpy(v_and_x(x0, eps))
    np.testing.assert_allclose(v**2 + x_t**2, x0**2 + eps**2, rtol=1e-5)
    ends = [to_numpy(v_and_x(*pair)) for pair in ((np.ones_like(x0), 0 * x0), (0 * x0, np.ones_like(x0)))]
    np.testing.assert_allclose(sum(v * x_t for v, x_t, _ in ends), 0, atol=1e-7)
    # at t = 1 the mean of what came before is the data
    np.testing.assert_array_equal(mean, x0)


def test_a_last_step_without_signal_still_has_its_data():
    schedule, (x0, eps) = schedules.jsd(50), normals((3,))

    @jax.jit
    def back():
        outs = {predicts: gaussian.target(schedule, predicts, x0, eps, 50) for predicts in ("x0", "v", "mean")}
        return {predicts: gaussian.estimate(schedule, predicts, out, eps, 50) for predicts, out in outs.items()}

    for predicts, estimate in to_numpy(back()).items():
        np.testing.assert_allclose(estimate.x0, x0, atol=1e-5, err_msg=predicts)
        np.testing.assert_array_equal(estimate.eps, eps, err_msg=predicts)
        assert estimate.variance_mix is None


@every_shape
@every_prediction
@pytest.mark.parametrize("clip", [False, True])
def test_denoiser_keeps_x_t_together(shape, predicts, clip):
    of = found(shape)
    x0, again, plain, signal = of[str(("denoiser", predicts, clip))]
    # x_t is the difference of two terms, each of which is rounded
    assert (np.abs(again - of["eps"]) <= 1e-6 * (1 + np.abs(signal * x0))).all()
    assert (np.abs(x0).max() <= 1) == clip
    inside = np.abs(plain) < 1
    assert inside.any() and not inside.all()
    np.testing.assert_array_equal(x0[inside], plain[inside])


@every_shape
def test_denoiser_halves_a_learned_variance(shape):
    learned, plain = found(shape)["learned"]
    np.testing.assert_array_equal(learned.x0, plain[0])
    np.testing.assert_array_equal(learned.eps, plain[1])
    assert learned.variance_mix.shape == (8, *shape)
    assert (
        learned.variance_mix.ravel()[0] == 0 and learned.variance_mix.ravel()[-1] == 1.25
    )  # -1 is beta-tilde, 1 is beta, and no clamp


def test_data_beyond_1_are_kept_unless_clipping_is_asked_for():
    schedule, x_t, t = schedules.linear(1000), np.array([[0.2, -1.5], [1.0, 0.4]], np.float32), np.array([5, 900])
    denoiser = functools.partial(gaussian.denoiser, schedule, lambda x, t: 3 * x, "x0")
    np.testing.assert_array_equal(denoiser()(x_t, t).x0, 3 * x_t)
    np.testing.assert_array_equal(denoiser(clip=True)(x_t, t).x0, np.clip(3 * x_t, -1, 1))


def test_denoiser_gives_the_network_one_time_for_each_example():
    schedule, times = schedules.linear(10), []

    def net(x, t):
        times.append(np.asarray(t))
        return x

    gaussian.denoiser(schedule, net, "x0", clip=False)(np.zeros((3, 2), np.float32), 4)
    np.testing.assert_array_equal(times[0], [4, 4, 4])


# --- the divergence


def quadrature(mean_p, var_p, mean_q, var_q):
    x = np.linspace(mean_p - 12 * np.sqrt(var_p), mean_p + 12 * np.sqrt(var_p), 20_001)

    def log_density(mean, var):
        return -0.5 * ((x - mean) ** 2 / var + np.log(2 * np.pi * var))

    p = np.exp(log_density(mean_p, var_p))
    return np.trapezoid(p * (log_density(mean_p, var_p) - log_density(mean_q, var_q)), x)


LAWS = [(0.0, 1.0, 0.0, 1.0), (0.3, 0.2, -0.1, 0.21), (0.0, 1.0, 2.0, 0.5), (1.0, 1e-3, 1.0, 4.0), (0.0, 3.0, 0.0, 1.9)]


@pytest.mark.parametrize("numbers", LAWS)
def test_kl_is_the_integral(numbers):
    mean_p, var_p, mean_q, var_q = (np.array([value]) for value in numbers)
    with jax.enable_x64(True):
        found = np.asarray(gaussian.kl(Gaussian(mean_p, var_p), Gaussian(mean_q, var_q))).item()
        # and does not know the units of x
        moved = gaussian.kl(Gaussian(3 * mean_p + 1, 9 * var_p), Gaussian(3 * mean_q + 1, 9 * var_q))
    assert found == pytest.approx(quadrature(*numbers), rel=1e-9, abs=1e-12)
    assert np.asarray(moved).item() == pytest.approx(found, rel=1e-12, abs=1e-14)


def test_kl_is_positive_and_zero_for_equal_laws_alone():
    rng = np.random.default_rng(0)
    mean_p, mean_q = rng.standard_normal((2, 1000, 2)).astype(np.float32)
    var_p, var_q = np.exp(2 * rng.standard_normal((2, 1000, 2))).astype(np.float32)
    p = Gaussian(mean_p, var_p)
    for q in (Gaussian(mean_q, var_q), Gaussian(mean_p, var_q), Gaussian(mean_q, var_p)):
        assert (np.asarray(gaussian.kl(p, q)) > 0).all()
    assert (np.asarray(gaussian.kl(p, p)) == 0).all()


def test_kl_of_independent_components_adds_up():
    # against the general formula, with matrices, after a rotation
    rng = np.random.default_rng(1)
    mean_p, mean_q, turn = rng.standard_normal(4), rng.standard_normal(4), np.linalg.qr(rng.standard_normal((4, 4)))[0]
    var_p, var_q = np.exp(rng.standard_normal((2, 4)))
    cov_p, cov_q = turn @ np.diag(var_p) @ turn.T, turn @ np.diag(var_q) @ turn.T
    gap, inverse = turn @ (mean_p - mean_q), np.linalg.inv(cov_q)
    whole = 0.5 * (np.trace(inverse @ cov_p) + gap @ inverse @ gap - 4)
    whole += 0.5 * (np.linalg.slogdet(cov_q)[1] - np.linalg.slogdet(cov_p)[1])
    with jax.enable_x64(True):
        parts = np.asarray(gaussian.kl(Gaussian(mean_p, var_p), Gaussian(mean_q, var_q)))
    assert parts.sum() == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("apart", [0.3, 0.1, 1e-2, 1e-3, 1e-4])
def test_kl_of_nearly_equal_laws_keeps_its_digits_in_float32(apart):
    var_q = np.float32(0.37)
    var_p = np.float32(0.37 * (1 + apart))
    d = float(var_p) / float(var_q) - 1
    exact = 0.5 * (d - np.log1p(d))
    zero = np.zeros(1, np.float32)
    found = np.asarray(gaussian.kl(Gaussian(zero, var_p), Gaussian(zero, var_q))).item()
    # a float32 ratio would be off by 6e-8; here only by that part of d
    assert abs(found - exact) < 1e-7 * abs(d)


# --- transformations


def all_laws(x0, x_t, t, s, mix):
    schedule = schedules.linear(1000)
    laws = [
        gaussian.q_sample(schedule, x0, t, x_t),
        gaussian.marginal(schedule, x0, t),
        gaussian.posterior(schedule, x0, x_t, t, s),
        gaussian.reverse_variance(schedule, t, s, x0, mix),
        gaussian.kl(Gaussian(x0, mix**2 + 0.1), Gaussian(x_t, mix + 0.1)),
        *(gaussian.target(schedule, predicts, x0, x_t, t) for predicts in PREDICTS),
        *(gaussian.estimate(schedule, predicts, x0, x_t, t) for predicts in PREDICTS),
    ]
    return jax.tree.map(lambda a: jnp.broadcast_to(a, x0.shape), laws)


def test_jit_vmap_and_pmap_change_nothing():
    x0, x_t, mix = normals((4, 3), 8, 3)
    arguments = (x0, x_t, TIMES, np.array([0, 1, 0, 9, 20, 499, 1, 999], np.int32), 1 / (1 + np.exp(-mix)))
    one_each = [a[:, None] for a in arguments]
    plain = to_numpy(all_laws(*arguments))
    jitted = jax.jit(all_laws)(*arguments)
    mapped, spread = (
        jax.tree.map(lambda a: np.asarray(a)[:, 0], of(all_laws)(*one_each))
        for of in (lambda laws: jax.jit(jax.vmap(laws)), jax.pmap)
    )
    for other in (jitted, mapped, spread):
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)


def test_derivatives_are_those_of_finite_differences():
    with jax.enable_x64(True):
        x0, x_t, mix = normals((2,), 4, 3)
        t, s = np.array([1000, 500, 20, 2], np.int32), np.array([999, 3, 19, 1], np.int32)
        laws = jax.jit(lambda x0, x_t, mix: all_laws(x0, x_t, t, s, mix))
        check_grads(laws, (x0, x_t, 1 / (1 + np.exp(-mix))), 1, ["rev"], rtol=1e-5)


def test_no_derivative_is_nan_at_either_end():
    cases = [(predicts, learned) for predicts in PREDICTS for learned in (False, True)]

    def total(x0, x_t, raws, mix, schedule, t, s):
        """What each kind of network says is a variable of its own, so that the derivative says which one is wrong."""
        parts = []
        for (predicts, learned), raw in zip(cases, raws, strict=True):
            out = jnp.concatenate([raw, jnp.tanh(raw)], -1) if learned else raw
            found = gaussian.denoiser(schedule, lambda x, t: out, predicts, learned_variance=learned, clip=True)(x_t, t)
            selected = found.variance_mix if learned else mix
            reverse = Gaussian(
                gaussian.posterior(schedule, found.x0, x_t, t, s).mean,
                gaussian.reverse_variance(schedule, t, s, x_t, selected),
            )
            law = gaussian.posterior(schedule, x0, x_t, t, s)
            parts += [found, reverse, law, gaussian.target(schedule, predicts, x0, x_t, t)]
            parts.append(gaussian.estimate(schedule, predicts, raw, x_t, t))
            # the data itself, s = 0, is a point: a divergence from it is infinite
            parts.append(gaussian.kl(*(Gaussian(law.mean, law.var + (s == 0)) for law in (law, reverse))))
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(parts))

    grad = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3)))
    x0, x_t, raw = normals((3,), count=3)
    for make in (schedules.linear, schedules.cosine):
        for t, s in ((1, 0), (2, 1), (1000, 999), (1000, 0)):
            for scale in (0.0, 1.0, 1e4):
                raws = [np.float32(scale) * raw] * len(cases)
                *others, on_raws, on_mix = to_numpy(grad(x0, x_t, raws, np.full_like(x0, 0.3), make(1000), t, s))
                for case, found in zip(cases, on_raws, strict=True):
                    assert np.isfinite(found).all(), (make.__name__, case, t, s, scale)
                assert all(np.isfinite(g).all() for g in (*others, on_mix)), (make.__name__, t, s, scale)


# --- keys


def test_a_key_for_each_example():
    several = jax.jit(lambda key: (example_keys(key, 4), example_keys(key, 9)))
    keys, again = (np.asarray(jax.random.key_data(keys)) for keys in several(from_seed(3)))
    np.testing.assert_array_equal(keys, again[:4])
    assert len(np.unique(again, axis=0)) == 9
    held = jax.random.split(from_seed(5), 4)
    np.testing.assert_array_equal(jax.random.key_data(example_keys(held, 4)), jax.random.key_data(held))


def test_noise_of_an_example_is_its_keys_alone():
    noise = jax.jit(lambda keys: {s: standard_normal(keys, jnp.zeros((len(keys), *s))) for s in (SHAPES[0], SHAPES[3])})
    order = [4, 1, 5]
    whole, some = (to_numpy(noise(samplers.image_keys(0, indices))) for indices in (range(6), order))
    for shape, z in whole.items():
        np.testing.assert_array_equal(some[shape], z[order], err_msg=f"{shape}")


def test_sets_of_keys_are_independent():
    sets = jax.jit(lambda keys: [jax.random.key_data(part) for part in split_keys(keys, 3)])
    data = np.stack(sets(samplers.image_keys(0, range(5))))
    assert len(np.unique(data.reshape(15, -1), axis=0)) == 15


def test_noise_is_standard_normal():
    z = jax.jit(lambda keys: standard_normal(keys, jnp.zeros((100, 1000), jnp.float32)))
    z = np.asarray(z(samplers.image_keys(1, range(100))))
    n = z.size
    assert z.dtype == np.float32
    assert abs(z.mean()) < 4 / np.sqrt(n) and abs((z**2).mean() - 1) < 4 * np.sqrt(2 / n)
    assert abs((z[:-1] * z[1:]).mean()) < 4 / np.sqrt(n)  # between examples


# --- errors

LINEAR, X, T3 = schedules.linear(10), np.zeros((3, 2), np.float32), jnp.asarray(np.array([1, 2, 3], np.int32))
ERRORS = {
    "uint8": (lambda x, t: (x.astype(np.uint8), t), "must be float32 or float64, got uint8: scale images to [-1, 1]"),
    "int32": (lambda x, t: (x.astype(np.int32), t), "must be float32 or float64, got int32: scale images to [-1, 1]"),
    "bfloat16": (lambda x, t: (x.astype(jnp.bfloat16), t), "float32 or float64, got bfloat16: cast it up first"),
    "float16": (lambda x, t: (x.astype(np.float16), t), "must be float32 or float64, got float16: cast it up first"),
    "no batch": (lambda x, t: (x[0, 0], t[0]), "must have a batch axis, got shape ()"),
    "float t": (lambda x, t: (x, t / 2), "times must be integers of shape () or (3,), got float32 (3,)"),
    "t of another batch": (lambda x, t: (x, t[:2]), "times must be integers of shape () or (3,), got int32 (2,)"),
    "t per component": (lambda x, t: (x, t[:, None]), "times must be integers of shape () or (3,), got int32 (3, 1)"),
    "t = 0": (lambda x, t: (x, 0), "t must lie in 1..10 (steps count from 1, 0 is the data), got 0"),
    "t = T + 1": (lambda x, t: (x, 11), "t must lie in 1..10 (steps count from 1, 0 is the data), got 11"),
    "t = -1": (lambda x, t: (x, np.array([1, -1, 2])), "t must lie in 1..10"),
}
FUNCTIONS = {
    "q_sample": lambda x, t: gaussian.q_sample(LINEAR, x, t, x),
    "marginal": lambda x, t: gaussian.marginal(LINEAR, x, t),
    "posterior": lambda x, t: gaussian.posterior(LINEAR, x, x, t, t - 1),
    "reverse_variance": lambda x, t: gaussian.reverse_variance(LINEAR, t, t - 1, x),
    "target": lambda x, t: gaussian.target(LINEAR, "mean", x, x, t),
    "estimate": lambda x, t: gaussian.estimate(LINEAR, "mean", x, x, t),
}


@pytest.mark.parametrize("wrong", ERRORS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_errors_name_the_value(function, wrong):
    spoil, text = ERRORS[wrong]
    with pytest.raises(ValueError, match=re.escape(text)):
        FUNCTIONS[function](*spoil(X, T3))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: gaussian.q_sample(LINEAR, X, T3, X[:, :1]), "eps must have the shape of x0, (3, 2), got (3, 1)"),
        (lambda: gaussian.posterior(LINEAR, X, X[:1], T3, 0), "x_t must have the shape of x0, (3, 2), got (1, 2)"),
        (lambda: gaussian.target(LINEAR, "v", X, X[0], T3), "eps must have the shape of x0, (3, 2), got (2,)"),
        (lambda: gaussian.estimate(LINEAR, "v", X[:2], X, T3), "out must have the shape of x_t, (3, 2), got (2, 2)"),
        (lambda: gaussian.posterior(LINEAR, X, X, T3, T3 / 2), "must be integers of shape () or (3,), got float32"),
        (lambda: gaussian.posterior(LINEAR, X, X, 3, 3), "s must be smaller than t, got s = 3 and t = 3"),
        (lambda: gaussian.posterior(LINEAR, X, X, 3, 5), "s must be smaller than t, got s = 5 and t = 3"),
        (lambda: gaussian.posterior(LINEAR, X, X, 3, -1), "s must lie in 0..9"),
        (lambda: gaussian.posterior(LINEAR, X, X, 10, 10), "s must lie in 0..9"),
        (lambda: gaussian.reverse_variance(LINEAR, 2, np.array([1, 2, 0]), X), "smaller than t, got s = [1 2 0]"),
        (lambda: gaussian.target(LINEAR, "noise", X, X, T3), "must be one of 'eps', 'x0', 'v', 'mean', got 'noise'"),
        (lambda: gaussian.estimate(LINEAR, "x_0", X, X, T3), "must be one of 'eps', 'x0', 'v', 'mean', got 'x_0'"),
        (lambda: gaussian.denoiser(LINEAR, None, "score"), "must be one of 'eps', 'x0', 'v', 'mean', got 'score'"),
        (
            lambda: gaussian.denoiser(LINEAR, lambda x, t: x, learned_variance=True)(X, T3),
            "a learned variance doubles channels: the network must return (3, 4), got (3, 2)",
        ),
        (
            lambda: gaussian.denoiser(LINEAR, lambda x, t: x[:, :1])(X, T3),
            "out must have the shape of x_t, (3, 2), got (3, 1)",
        ),
        (lambda: example_keys(jax.random.PRNGKey(0), 2), "keys must be typed (jax.random.key), got uint32"),
        (lambda: example_keys(0, 2), "keys must be typed (jax.random.key), got int"),
        (
            lambda: example_keys(jax.random.split(from_seed(0), 3), 2),
            "keys must be one key or one per example, [] or (2,), got (3,)",
        ),
    ],
)
def test_errors_say_what_would_be_right(call, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        call()
