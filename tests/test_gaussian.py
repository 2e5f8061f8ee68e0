"""Laws and limits of the Gaussian transitions, of what a network may predict, and of their derivatives."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from ddpm_jax import gaussian, samplers, schedules
from ddpm_jax.gaussian import Gaussian

SHAPES = [(5,), (4, 3), (4, 2, 3), (2, 3, 2, 2)]
PREDICTS = ["eps", "x0", "v", "mean"]
TIMES = [1, 2, 3, 10, 300, 500, 999, 1000]
JUMPS = [(1000, 999), (1000, 500), (1000, 1), (500, 499), (500, 20), (3, 2), (3, 1), (2, 1)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
every_prediction = pytest.mark.parametrize("predicts", PREDICTS)


def batch(shape, n=8, count=2):
    """Arrays [n, *shape] of reproducible normal numbers, in the precision that JAX keeps."""
    rng = np.random.default_rng(7)
    return [jnp.asarray(rng.standard_normal((n, *shape))) for _ in range(count)]


# --- q(x_t | x_0)


@every_shape
def test_marginal_is_the_law_that_q_sample_draws_from(shape):
    schedule, t = schedules.linear(1000), jnp.array(TIMES)
    x0, eps = batch(shape)
    law = gaussian.marginal(schedule, x0, t)
    x_t = gaussian.q_sample(schedule, x0, t, eps)
    np.testing.assert_allclose((x_t - law.mean) / jnp.sqrt(law.var), eps, atol=1e-4)
    np.testing.assert_array_equal(gaussian.q_sample(schedule, x0, t, jnp.zeros_like(x0)), law.mean)


@pytest.mark.parametrize("t", [1, 300, 1000])
def test_moments_of_the_forward_chain_walked_step_by_step(t):
    # x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) z, 40 000 walks; the standard errors are those of a normal law
    n, rng = 40_000, np.random.default_rng(t)
    walk = np.full(n, 0.7)
    for beta in np.linspace(1e-4, 0.02, 1000)[:t]:
        walk = np.sqrt(1 - beta) * walk + np.sqrt(beta) * rng.standard_normal(n)
    mean, var = gaussian.marginal(schedules.linear(1000), jnp.full((1, 1), 0.7), t)
    assert abs(walk.mean() - mean.item()) < 4 * np.sqrt(var.item() / n)
    assert abs(walk.var() - var.item()) < 4 * var.item() * np.sqrt(2 / n)
    eps = jnp.asarray(rng.standard_normal((n, 1)))
    drawn = gaussian.q_sample(schedules.linear(1000), jnp.full((n, 1), 0.7), t, eps)
    assert abs(drawn.mean() - mean.item()) < 4 * np.sqrt(var.item() / n)
    assert abs(drawn.var() - var.item()) < 4 * var.item() * np.sqrt(2 / n)


# --- q(x_s | x_t, x_0)


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
    with jax.enable_x64(True):
        schedule = schedules.from_betas(betas)
        for t in range(1, T + 1):
            for s in range(t):
                x_t = -0.3
                law = gaussian.posterior(schedule, jnp.array([x0]), jnp.array([x_t]), t, s)
                assert law.mean.item() == pytest.approx(mean[s] + cov[s, t] / cov[t, t] * (x_t - mean[t]), abs=1e-12)
                assert law.var.item() == pytest.approx(cov[s, s] - cov[s, t] ** 2 / cov[t, t], abs=1e-12)


@every_shape
@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine, schedules.jsd], ids=lambda f: f.__name__)
def test_posterior_at_the_data_is_the_data(make, shape):
    x0, x_t = batch(shape)
    law = gaussian.posterior(make(1000), x0, x_t, jnp.array(TIMES), 0 * jnp.array(TIMES))
    np.testing.assert_array_equal(law.mean, x0)
    assert (law.var == 0).all()


@every_shape
@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
def test_two_jumps_have_the_law_of_one(shape, wide):
    with jax.enable_x64(True) if wide else jax.enable_x64(False):
        schedule = schedules.linear(1000)
        t, s, u = jnp.array([(1000, 999, 998), (1000, 500, 1), (500, 100, 0), (3, 2, 1), (2, 1, 0), (999, 2, 1)]).T
        x0, x_t = batch(shape, 6)
        first, direct = gaussian.posterior(schedule, x0, x_t, t, s), gaussian.posterior(schedule, x0, x_t, t, u)
        then = gaussian.posterior(schedule, x0, first.mean, s, u)
        slope = gaussian.posterior(schedule, jnp.zeros_like(x0), jnp.ones_like(x0), s, u).mean
        tol = {"rtol": 1e-11, "atol": 1e-14} if wide else {"rtol": 2e-5, "atol": 1e-6}
        np.testing.assert_allclose(then.mean, direct.mean, **tol)
        composed = then.var + slope**2 * first.var
        np.testing.assert_allclose(composed, jnp.broadcast_to(direct.var, x0.shape), rtol=tol["rtol"])


@every_shape
def test_forward_to_t_and_back_to_s_is_forward_to_s(shape):
    with jax.enable_x64(True):
        schedule = schedules.cosine(1000)
        t, s = jnp.array(JUMPS).T
        (x0,) = batch(shape, len(JUMPS), 1)
        there, expected = gaussian.marginal(schedule, x0, t), gaussian.marginal(schedule, x0, s)
        back = gaussian.posterior(schedule, x0, there.mean, t, s)
        slope = gaussian.posterior(schedule, 0 * x0, 0 * x0 + 1, t, s).mean
        np.testing.assert_allclose(back.mean, expected.mean, rtol=1e-10)
        np.testing.assert_allclose(back.var + slope**2 * there.var, expected.var + 0 * x0, rtol=1e-10)


# --- the reverse variance


@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine], ids=lambda f: f.__name__)
def test_reverse_variance_runs_from_the_posteriors_to_beta(make):
    with jax.enable_x64(True):
        schedule = make(1000)
        t, s = jnp.array(JUMPS).T
        like = jnp.zeros((len(JUMPS), 2))
        mixes = np.linspace(0, 1, 5)
        var = np.stack([gaussian.reverse_variance(schedule, t, s, like, mix)[:, 0] for mix in mixes])
        np.testing.assert_allclose(var[0], gaussian.posterior(schedule, like, like, t, s).var[:, 0], rtol=1e-12)
        beta = 1 - (schedule.signal[t] / schedule.signal[s]) ** 2
        np.testing.assert_allclose(var[-1], beta, rtol=1e-10)
        assert (np.diff(var, axis=0) > 0).all()
        np.testing.assert_allclose(var[2], np.sqrt(var[0] * var[-1]), rtol=1e-12)


def test_reverse_variance_at_the_data_is_beta_1_or_nothing():
    schedule, like = schedules.linear(1000), jnp.zeros((1, 1))
    assert gaussian.reverse_variance(schedule, 1, 0, like, 1.0).item() == pytest.approx(1e-4, rel=1e-6)
    assert [gaussian.reverse_variance(schedule, 1, 0, like, mix).item() for mix in (0.0, 0.5, 0.9)] == [0, 0, 0]


def test_reverse_variance_takes_a_mix_for_each_component():
    schedule, like = schedules.linear(1000), jnp.zeros((2, 3))
    mix = jnp.array([[0.0, 0.5, 1.0], [1.0, 0.5, 0.0]])
    t = jnp.array([7, 700])
    both = gaussian.reverse_variance(schedule, t, t - 1, like, mix)
    for i in range(2):
        for j in range(3):
            one = gaussian.reverse_variance(schedule, int(t[i]), int(t[i]) - 1, like[:1, :1], mix[i, j].item())
            np.testing.assert_allclose(both[i, j], one[0, 0] if one.ndim else one, rtol=1e-6)


# --- what a network may predict


TOLERANCE = {"eps": (5e-5, 1e-6), "x0": (1e-6, 5e-5), "v": (1e-6, 1e-6), "mean": (5e-3, 5e-5)}
"""Float32 errors of x0 and eps: those of "eps" and "mean" are divided by the little signal of x_T."""


@every_shape
@every_prediction
@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
def test_target_and_estimate_are_inverses(shape, predicts, wide):
    with jax.enable_x64(True) if wide else jax.enable_x64(False):
        schedule, t = schedules.linear(1000), jnp.array(TIMES)
        x0, eps = batch(shape)
        x_t = gaussian.q_sample(schedule, x0, t, eps)
        out = gaussian.target(schedule, predicts, x0, eps, t)
        found = gaussian.estimate(schedule, predicts, out, x_t, t)
        scale = 1e-8 if wide else 1.0
        np.testing.assert_allclose(found.x0, x0, rtol=0, atol=TOLERANCE[predicts][0] * scale)
        np.testing.assert_allclose(found.eps, eps, rtol=0, atol=TOLERANCE[predicts][1] * scale)
        again = gaussian.q_sample(schedule, found.x0, t, found.eps)
        np.testing.assert_allclose(again, x_t, rtol=0, atol=4e-6 * scale)
        assert found.mix is None


def test_targets_are_what_they_are_called():
    schedule = schedules.linear(1000)
    x0, eps = batch((3,))
    t = jnp.array(TIMES)
    # v is the tangent of the circle that x_t draws: orthogonal to x_t, of its length
    v, x_t = gaussian.target(schedule, "v", x0, eps, t), gaussian.q_sample(schedule, x0, t, eps)
    np.testing.assert_allclose(v**2 + x_t**2, x0**2 + eps**2, rtol=1e-5)
    unit, zero = jnp.ones_like(x0), jnp.zeros_like(x0)
    orthogonal = gaussian.target(schedule, "v", unit, zero, t) * gaussian.q_sample(schedule, unit, t, zero)
    orthogonal += gaussian.target(schedule, "v", zero, unit, t) * gaussian.q_sample(schedule, zero, t, unit)
    np.testing.assert_allclose(orthogonal, 0, atol=1e-7)
    # at t = 1 the mean of what came before is the data
    np.testing.assert_array_equal(gaussian.target(schedule, "mean", x0, eps, 1), x0)


@pytest.mark.parametrize("predicts", ["x0", "v", "mean"])
def test_a_last_step_without_signal_still_has_its_data(predicts):
    schedule = schedules.jsd(50)
    x0, eps = batch((3,))
    out = gaussian.target(schedule, predicts, x0, eps, 50)
    found = gaussian.estimate(schedule, predicts, out, eps, 50)
    np.testing.assert_allclose(found.x0, x0, atol=1e-5)
    np.testing.assert_array_equal(found.eps, eps)


@every_shape
@every_prediction
@pytest.mark.parametrize("clip", [False, True])
def test_denoiser_keeps_x_t_together(shape, predicts, clip):
    schedule, t = schedules.linear(1000), jnp.array(TIMES)
    x_t, out = batch(shape)
    found = gaussian.denoiser(schedule, lambda x, t: out, predicts, clip=clip)(x_t, t)
    again = gaussian.q_sample(schedule, found.x0, t, found.eps)
    # x_t is the difference of two terms, each of which is rounded
    rounding = 1e-6 * (1 + jnp.abs(schedules.at(schedule.signal, t, x_t) * found.x0))
    assert (jnp.abs(again - x_t) <= rounding).all()
    assert (jnp.abs(found.x0).max() <= 1) == clip
    plain = gaussian.estimate(schedule, predicts, out, x_t, t)
    inside = jnp.abs(plain.x0) < 1
    assert inside.any() and not inside.all()
    np.testing.assert_array_equal(found.x0[inside], plain.x0[inside])


@every_shape
def test_denoiser_halves_a_learned_variance(shape):
    schedule, t = schedules.linear(1000), jnp.array(TIMES)
    x_t, out = batch(shape)
    v = jnp.linspace(-1, 1.5, x_t.size).reshape(x_t.shape)
    net = lambda x, t: jnp.concatenate([out, v], -1)  # noqa: E731
    plain = gaussian.denoiser(schedule, lambda x, t: out, "v")(x_t, t)
    found = gaussian.denoiser(schedule, net, "v", learned_variance=True)(x_t, t)
    np.testing.assert_array_equal(found.x0, plain.x0)
    np.testing.assert_array_equal(found.eps, plain.eps)
    assert found.mix.shape == x_t.shape
    assert found.mix.ravel()[0] == 0 and found.mix.ravel()[-1] == 1.25  # -1 is beta-tilde, 1 is beta, and no clamp


def test_denoiser_gives_the_network_one_time_for_each_example():
    schedule, x_t = schedules.linear(10), jnp.zeros((3, 2))
    told = []
    gaussian.denoiser(schedule, lambda x, t: told.append(t) or x)(x_t, 4)
    np.testing.assert_array_equal(told[0], [4, 4, 4])


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
    with jax.enable_x64(True):
        mean_p, var_p, mean_q, var_q = (jnp.array([value]) for value in numbers)
        found = gaussian.kl(Gaussian(mean_p, var_p), Gaussian(mean_q, var_q)).item()
        assert found == pytest.approx(quadrature(*numbers), rel=1e-9, abs=1e-12)
        # and does not know the units of x
        moved = gaussian.kl(Gaussian(3 * mean_p + 1, 9 * var_p), Gaussian(3 * mean_q + 1, 9 * var_q)).item()
        assert moved == pytest.approx(found, rel=1e-12, abs=1e-14)


def test_kl_is_positive_and_zero_for_equal_laws_alone():
    rng = np.random.default_rng(0)
    mean_p, mean_q = (jnp.asarray(rng.standard_normal((1000, 2)), jnp.float32) for _ in range(2))
    var_p, var_q = (jnp.asarray(np.exp(2 * rng.standard_normal((1000, 2))), jnp.float32) for _ in range(2))
    assert (gaussian.kl(Gaussian(mean_p, var_p), Gaussian(mean_q, var_q)) > 0).all()
    assert (gaussian.kl(Gaussian(mean_p, var_p), Gaussian(mean_p, var_q)) > 0).all()
    assert (gaussian.kl(Gaussian(mean_p, var_p), Gaussian(mean_q, var_p)) > 0).all()
    assert (gaussian.kl(Gaussian(mean_p, var_p), Gaussian(mean_p, var_p)) == 0).all()


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
        parts = gaussian.kl(*(Gaussian(jnp.asarray(m), jnp.asarray(v)) for m, v in ((mean_p, var_p), (mean_q, var_q))))
        assert parts.sum() == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("apart", [0.3, 0.1, 1e-2, 1e-3, 1e-4])
def test_kl_of_nearly_equal_laws_keeps_its_digits_in_float32(apart):
    var_q = np.float32(0.37)
    var_p = np.float32(0.37 * (1 + apart))
    d = float(var_p) / float(var_q) - 1
    exact = 0.5 * (d - np.log1p(d))
    zero = jnp.zeros(1)
    found = gaussian.kl(Gaussian(zero, jnp.asarray(var_p)), Gaussian(zero, jnp.asarray(var_q))).item()
    # a float32 ratio would be off by 6e-8; here only by that part of d
    assert abs(found - exact) < 1e-7 * abs(d)


# --- transformations


def all_laws(x0, x_t, t, s, mix, predicts="v"):
    schedule = schedules.linear(1000)
    laws = [
        gaussian.q_sample(schedule, x0, t, x_t),
        gaussian.marginal(schedule, x0, t),
        gaussian.posterior(schedule, x0, x_t, t, s),
        gaussian.reverse_variance(schedule, t, s, x0, mix),
        gaussian.kl(Gaussian(x0, mix**2 + 0.1), Gaussian(x_t, mix + 0.1)),
        gaussian.target(schedule, predicts, x0, x_t, t),
        gaussian.estimate(schedule, predicts, x0, x_t, t),
    ]
    return jax.tree.map(lambda a: jnp.broadcast_to(a, x0.shape), laws)


@pytest.mark.parametrize(("predicts", "shape"), [("mean", (2, 3, 2, 2)), ("v", (5,))])
def test_jit_vmap_and_pmap_change_nothing(predicts, shape):
    laws = lambda *given: all_laws(*given, predicts)  # noqa: E731
    x0, x_t, mix = batch(shape, 8, 3)
    t, s = jnp.array(TIMES), jnp.array([0, 1, 0, 9, 20, 499, 1, 999])
    given = (x0, x_t, t, s, jax.nn.sigmoid(mix))
    one_each = [a[:, None] for a in given]
    plain = laws(*given)
    jitted = jax.jit(laws)(*given)
    mapped = jax.tree.map(lambda a: a[:, 0], jax.vmap(laws)(*one_each))
    spread = jax.tree.map(lambda a: a[:, 0], jax.pmap(laws)(*one_each))
    for other in (jitted, mapped, spread):
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)


@every_prediction
def test_derivatives_are_those_of_finite_differences(predicts):
    with jax.enable_x64(True):
        x0, x_t, mix = batch((2,), 4, 3)
        t, s = jnp.array([1000, 500, 20, 2]), jnp.array([999, 3, 19, 1])
        laws = lambda x0, x_t, mix: all_laws(x0, x_t, t, s, mix, predicts)  # noqa: E731
        check_grads(laws, (x0, x_t, jax.nn.sigmoid(mix)), 1, ["rev"], rtol=1e-5)


@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine], ids=lambda f: f.__name__)
@pytest.mark.parametrize("learned", [False, True], ids=["fixed", "learned"])
@every_prediction
def test_no_derivative_is_nan_at_either_end(make, learned, predicts):
    schedule = make(1000)

    def total(x0, x_t, raw, mix, t, s):
        out = jnp.concatenate([raw, jnp.tanh(raw)], -1) if learned else raw
        found = gaussian.denoiser(schedule, lambda x, t: out, predicts, learned_variance=learned)(x_t, t)
        chosen = found.mix if learned else mix
        reverse = Gaussian(
            gaussian.posterior(schedule, found.x0, x_t, t, s).mean,
            gaussian.reverse_variance(schedule, t, s, x_t, chosen),
        )
        law = gaussian.posterior(schedule, x0, x_t, t, s)
        parts = [found, reverse, law, gaussian.target(schedule, predicts, x0, x_t, t)]
        parts.append(gaussian.estimate(schedule, predicts, raw, x_t, t))
        # the data itself, s = 0, is a point: a divergence from it is infinite
        parts.append(gaussian.kl(*(Gaussian(law.mean, law.var + (s == 0)) for law in (law, reverse))))
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(parts))

    grad = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3)))
    for t, s in ((1, 0), (2, 1), (1000, 999), (1000, 0)):
        for scale in (0.0, 1.0, 1e4):
            x0, x_t, raw = batch((3,), count=3)
            grads = grad(x0, x_t, scale * raw, jnp.full(x0.shape, 0.3), t, s)
            assert all(np.isfinite(g).all() for g in grads), (t, s, scale)


# --- keys


def test_a_key_for_each_example():
    keys = gaussian.example_keys(jax.random.key(3), 4)
    again = gaussian.example_keys(jax.random.key(3), 9)
    np.testing.assert_array_equal(jax.random.key_data(keys), jax.random.key_data(again)[:4])
    assert len(np.unique(jax.random.key_data(again), axis=0)) == 9
    held = jax.random.split(jax.random.key(5), 4)
    np.testing.assert_array_equal(jax.random.key_data(gaussian.example_keys(held, 4)), jax.random.key_data(held))


@every_shape
def test_noise_of_an_example_is_its_keys_alone(shape):
    keys = samplers.image_keys(0, range(6))
    whole = gaussian.standard_normal(keys, jnp.zeros((6, *shape)))
    order = [4, 1, 5]
    some = gaussian.standard_normal(samplers.image_keys(0, order), jnp.zeros((3, *shape)))
    np.testing.assert_array_equal(some, whole[jnp.array(order)])


def test_noise_is_standard_normal():
    z = gaussian.standard_normal(samplers.image_keys(1, range(100)), jnp.zeros((100, 1000)))
    n = z.size
    assert abs(z.mean()) < 4 / np.sqrt(n) and abs((z**2).mean() - 1) < 4 * np.sqrt(2 / n)
    assert abs((z[:-1] * z[1:]).mean()) < 4 / np.sqrt(n)  # between examples
    wide = gaussian.standard_normal(samplers.image_keys(1, range(2)), jnp.zeros((2, 3), jnp.float32))
    assert wide.dtype == jnp.float32


# --- errors

LINEAR, X, T3 = schedules.linear(10), jnp.zeros((3, 2)), jnp.array([1, 2, 3])
ERRORS = {
    "uint8": (lambda x, t: (x.astype(jnp.uint8), t), "must be float32 or float64, got uint8: scale images to [-1, 1]"),
    "int32": (lambda x, t: (x.astype(jnp.int32), t), "must be float32 or float64, got int32: scale images to [-1, 1]"),
    "bfloat16": (lambda x, t: (x.astype(jnp.bfloat16), t), "float32 or float64, got bfloat16: cast it up first"),
    "float16": (lambda x, t: (x.astype(jnp.float16), t), "must be float32 or float64, got float16: cast it up first"),
    "no batch": (lambda x, t: (x[0, 0], t[0]), "must have a batch axis, got shape ()"),
    "float t": (lambda x, t: (x, t / 2), "times must be integers of shape () or (3,), got float32 (3,)"),
    "t of another batch": (lambda x, t: (x, t[:2]), "times must be integers of shape () or (3,), got int32 (2,)"),
    "t per component": (lambda x, t: (x, t[:, None]), "times must be integers of shape () or (3,), got int32 (3, 1)"),
    "t = 0": (lambda x, t: (x, 0), "t must lie in 1..10 (steps are counted from 1, 0 is the data), got 0"),
    "t = T + 1": (lambda x, t: (x, 11), "t must lie in 1..10 (steps are counted from 1, 0 is the data), got 11"),
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
        (lambda: gaussian.estimate(LINEAR, "v", X[:2], X, T3), "x_t must have the shape of out, (2, 2), got (3, 2)"),
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
            "a learned variance doubles the last axis: the network must return (3, 4), got (3, 2)",
        ),
        (lambda: gaussian.denoiser(LINEAR, lambda x, t: x[:, :1])(X, T3), "x_t must have the shape of out, (3, 1)"),
        (lambda: gaussian.example_keys(jax.random.PRNGKey(0), 2), "keys must be typed (jax.random.key), got uint32"),
        (lambda: gaussian.example_keys(0, 2), "keys must be typed (jax.random.key), got int"),
        (
            lambda: gaussian.example_keys(jax.random.split(jax.random.key(0), 3), 2),
            "keys must be one key or one per example, [] or (2,), got (3,)",
        ),
    ],
)
def test_errors_say_what_would_be_right(call, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        call()
