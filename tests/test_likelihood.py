"""The bound where it is known: Gaussian data, whose ideal denoiser is a line; and the decoders against quadrature."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from ddpm_jax import gaussian, likelihood, samplers, schedules
from ddpm_jax.gaussian import Estimate, Gaussian

KEY = jax.random.key(0)


def ideal(schedule, mean: float, std: float, mix=None):
    """E[x_0 | x_t] for data N(mean, std^2)."""

    def denoise(x_t, t):
        signal, noise = schedules.at(schedule.signal, t, x_t), schedules.at(schedule.noise, t, x_t)
        x0 = mean + std**2 * signal / (signal**2 * std**2 + noise**2) * (x_t - signal * mean)
        chosen = None if mix is None else jnp.broadcast_to(schedules.at(mix, t, x_t), x_t.shape)
        return Estimate(x0, (x_t - signal * x0) / noise, chosen)

    return denoise


def known_terms(alpha_bar, chain, mean, std, mix, first_var, x0=None):
    """[n] expected terms in nats, ascending, of N(mean, std^2), or of the one value x0 of it; then the prior."""
    terms = []
    for t, s in zip(chain[:-1][::-1], chain[1:][::-1], strict=True):
        at, as_ = alpha_bar[t], alpha_bar[s]
        total = at * std**2 + 1 - at
        gain = std**2 * np.sqrt(at) / total
        error = std**2 * (1 - at) / total
        if x0 is not None:
            error = (x0 - mean) ** 2 * (1 - gain * np.sqrt(at)) ** 2 + gain**2 * (1 - at)
        if s == 0:
            terms.append(0.5 * np.log(2 * np.pi * first_var) + 0.5 * error / first_var + 0 * error)
            continue
        beta = 1 - at / as_
        small = beta * (1 - as_) / (1 - at)
        c1 = np.sqrt(as_) * beta / (1 - at)
        var = small + c1**2 * std**2 * (1 - at) / total if mix == "best" else small ** (1 - mix) * beta**mix
        terms.append(0.5 * (np.log(var / small) + small / var - 1 + c1**2 * error / var))
    last = alpha_bar[chain[0]]
    square = mean**2 + std**2 if x0 is None else x0**2
    return np.array(terms), 0.5 * (last * square + (1 - last) - 1 - np.log(1 - last))


def alpha_bars(schedule):
    return np.asarray(schedule.signal, np.float64) ** 2


def rows(mean, std, n, dims, seed=0):
    return jnp.asarray(mean + std * np.random.default_rng(seed).standard_normal((n, dims)), jnp.float32)


# --- the bound


@pytest.mark.parametrize(("T", "dims"), [(1000, 1024), (50, 1 << 14)])
def test_the_bound_of_standard_normal_data_is_its_entropy(T, dims):
    # with mix 1 the model is the true reverse process: the bound of each x_0 is -log N(x_0; 0, 1), exactly
    n, schedule = 16, schedules.linear(T, 0.1 / T, 20 / T)
    x0, options = rows(0, 1, n, dims), {"mix": 1.0, "decoder": likelihood.density, "decoder_var": 0.1 / T}
    found = jax.jit(lambda key: likelihood.bound(key, schedule, ideal(schedule, 0, 1), x0, **options))(
        jax.random.key(0)
    )
    # the data's own fluctuation is known, and taken out: the standard error is that of eps, as the images tell
    surprise = (0.5 * x0**2).mean(1) - 0.5
    estimates = np.asarray(found.total / dims - surprise)
    error = estimates.std(ddof=1) / np.sqrt(n)
    assert error < 0.02 and abs(estimates.mean() - 1.4189385) < 4 * error
    np.testing.assert_allclose(found.total, found.prior + found.terms.sum(0), rtol=1e-6)


CASES = [
    # data, schedule, its bound in nats per component for beta-tilde, beta, and the best variance of all
    ((0.2, 0.5), (schedules.linear, 1000), (1.295718, 0.840462, 0.725792)),
    ((0.2, 0.5), (schedules.linear, 50, 2e-3, 0.4), (2.719203, 0.755722, 0.725792)),
    ((0.0, 0.3), (schedules.cosine, 50), (0.977409, 0.292574, 0.214966)),
    ((-0.5, 1.0), (schedules.linear, 50, 2e-3, 0.4), (3.647505, 1.427414, 1.418940)),
]


@pytest.mark.parametrize(("data", "named", "known"), CASES, ids=["linear1000", "linear50", "cosine50", "wide"])
@pytest.mark.parametrize("which", ["small", "large", "best"])
def test_the_bound_of_gaussian_data_is_the_known_one(data, named, known, which):
    schedule = named[0](*named[1:])
    with jax.enable_x64(True):
        alpha_bar = alpha_bars(named[0](*named[1:]))
    T, chain = schedule.T, np.arange(schedule.T, -1, -1)
    mix = {"small": 0.0, "large": 1.0, "best": "best"}[which]
    beta = np.r_[np.nan, 1 - alpha_bar[1:] / alpha_bar[:-1]]
    small = np.r_[np.nan, beta[1:] * (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:])]
    small[1] = small[2]
    mixes, first_var = None, small[1]
    if mix == "best":
        error = data[1] ** 2 * (1 - alpha_bar) / (alpha_bar * data[1] ** 2 + 1 - alpha_bar)
        best = small[2:] + alpha_bar[1:-1] * (beta[2:] / (1 - alpha_bar[2:])) ** 2 * error[2:]
        first_var = error[1]
        mixes = np.r_[0, np.log(np.r_[first_var, best] / small[1:]) / np.log(beta[1:] / small[1:])]
        mixes = jnp.asarray(mixes, jnp.float32)
    terms, prior = known_terms(alpha_bar, chain, *data, mix, first_var)
    assert terms.sum() + prior == pytest.approx(known[["small", "large", "best"].index(which)], abs=2e-6)

    # and of the images at hand, eps alone being random
    n, dims = (16, 256) if T == 1000 else (32, 2048)
    x0, denoise = rows(*data, n, dims), ideal(schedule, *data, mixes)
    options = {"mix": 0.5 if mix == "best" else mix, "decoder": likelihood.density}
    found = jax.jit(lambda key: likelihood.bound(key, schedule, denoise, x0, **options))(jax.random.key(1))
    here, prior_here = known_terms(alpha_bar, chain, *data, mix, first_var, np.asarray(x0, np.float64))
    np.testing.assert_allclose(found.prior, prior_here.sum(-1), rtol=1e-4, atol=1e-5)
    off = np.asarray(found.terms, np.float64) - here.sum(-1)
    spread = off.std(axis=1, ddof=1) / np.sqrt(n)
    assert (abs(off.mean(1)) < 6 * spread + 1e-3).all()  # each term; of `n` images, so with the tails of Student's law
    assert abs(off.sum(0).mean()) < 4 * off.sum(0).std(ddof=1) / np.sqrt(n)
    ideal_error = data[1] ** 2 * (1 - alpha_bar) / (alpha_bar * data[1] ** 2 + 1 - alpha_bar)
    np.testing.assert_allclose(found.mse.mean(1), ideal_error[1:], rtol=6 * np.sqrt(2 / (n * dims)))


@pytest.mark.parametrize("spacing", ["uniform", "ddim", "quadratic"])
@pytest.mark.parametrize("mix", [0.0, 1.0])
def test_the_bound_of_a_strided_chain(spacing, mix):
    schedule, chain, data = schedules.linear(1000), samplers.times(1000, 20, spacing=spacing), (0.2, 0.5)
    with jax.enable_x64(True):
        alpha_bar = alpha_bars(schedules.linear(1000))
    x0 = rows(*data, 32, 2048)
    options = {"mix": mix, "decoder": likelihood.density, "decoder_var": 1e-3, "times": chain}
    found = jax.jit(lambda key: likelihood.bound(key, schedule, ideal(schedule, *data), x0, **options))(
        jax.random.key(2)
    )
    terms, prior = known_terms(alpha_bar, chain, *data, mix, 1e-3, np.asarray(x0, np.float64))
    off = np.asarray(found.total, np.float64) - (terms.sum(0) + prior).sum(-1)
    assert found.terms.shape == (20, 32)
    assert abs(off.mean()) < 4 * off.std(ddof=1) / np.sqrt(32)


def test_the_last_step_takes_the_chains_own_second_step():
    schedule = schedules.linear(1000)
    small = gaussian.reverse_variance(schedule, 2, 1, jnp.zeros((1, 1)), 0.0).item()
    assert small == pytest.approx(5.453188e-5, rel=1e-6)
    assert likelihood.decoder_variance(schedule) == pytest.approx(small)
    strided = likelihood.decoder_variance(schedule, np.array([1000, 100, 7, 0]))
    assert strided == pytest.approx(gaussian.reverse_variance(schedule, 100, 7, jnp.zeros((1, 1)), 0.0).item())
    assert likelihood.decoder_variance(schedules.const(1, 0.3)) == pytest.approx(0.3)


@pytest.mark.parametrize("shape", [(5,), (4, 3), (4, 2, 3), (2, 3, 2, 2)], ids=lambda shape: "x".join(map(str, shape)))
def test_the_bound_of_an_image_does_not_depend_on_its_batch(shape):
    schedule = schedules.linear(20, 5e-3, 0.6)
    x0 = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (6, *shape)), jnp.float32)

    @jax.jit
    def bounds(keys, x0):
        options = {"decoder": likelihood.decoder_8bit}
        return (
            likelihood.bound(keys, schedule, ideal(schedule, 0, 0.5), x0, **options),
            likelihood.bound_estimate(keys, schedule, ideal(schedule, 0, 0.5), x0, **options),
        )

    whole = bounds(samplers.image_keys(0, range(6)), x0)
    one_key = bounds(jax.random.key(0), x0)
    some = bounds(samplers.image_keys(0, [4, 1]), x0[jnp.array([4, 1])])
    for a, b, c in zip(*map(jax.tree.leaves, (whole, one_key, some)), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(c, a[..., jnp.array([4, 1])], rtol=1e-5)


# --- the estimate


def test_the_estimate_is_unbiased_and_knows_its_error():
    schedule, data, images, seeds, dims = schedules.linear(1000), (0.2, 0.5), 8, 64, 16
    with jax.enable_x64(True):
        alpha_bar = alpha_bars(schedules.linear(1000))
    x0 = jnp.repeat(rows(*data, images, dims), seeds, axis=0)
    options = {"mix": 1.0, "decoder": likelihood.density, "decoder_var": 1e-4}
    estimate = jax.jit(lambda key: likelihood.bound_estimate(key, schedule, ideal(schedule, *data), x0, **options))
    found = estimate(jax.random.key(0))
    terms, prior = known_terms(alpha_bar, np.arange(1000, -1, -1), *data, 1.0, 1e-4, np.asarray(x0, np.float64))
    np.testing.assert_allclose(found.prior, prior.sum(-1), rtol=1e-4)
    # L_0 is always evaluated, so its own eps is no part of the standard error of the sampled terms
    off = np.asarray(found.total - found.decoder - found.prior, np.float64) - terms[1:].sum((0, 2))
    errors = np.asarray(found.standard_error, np.float64)
    n = images * seeds
    assert abs(off.mean()) < 4 * off.std() / np.sqrt(n)
    # the squared standard error is an unbiased estimate of the variance; its own error from the sample at hand
    excess = off**2 - errors**2
    assert abs(excess.mean()) < 4 * excess.std() / np.sqrt(n)
    # two draws for each of 14 strata: Student's tails, with few degrees of freedom
    inside = np.abs(off) < 2 * errors
    assert 0.85 < inside.mean() < 0.98
    for image in range(images):
        mine = slice(image * seeds, (image + 1) * seeds)
        assert abs(off[mine].mean()) < 3 * np.sqrt((errors[mine] ** 2).mean() / seeds)


@pytest.mark.parametrize("T", [1, 2, 3, 7])
def test_the_estimate_of_a_short_chain_is_nearly_the_bound(T):
    # with a stratum for each step the times are certain: what is left is eps, of which it draws two
    schedule, data = schedules.linear(T, 0.05, 0.6), (0.0, 0.5)
    x0 = rows(*data, 64, 512)
    options = {"mix": 1.0, "decoder": likelihood.density}
    exact = likelihood.bound(jax.random.key(0), schedule, ideal(schedule, *data), x0, **options)
    found = likelihood.bound_estimate(jax.random.key(1), schedule, ideal(schedule, *data), x0, strata=4096, **options)
    gap = np.asarray(found.total - exact.total, np.float64)
    assert abs(gap.mean()) < 4 * gap.std(ddof=1) / np.sqrt(64)
    np.testing.assert_array_equal(found.prior, exact.prior)
    assert (np.asarray(found.standard_error) == 0).all() == (T == 1)


@pytest.mark.parametrize("T", [1, 2, 3, 50, 1000])
@pytest.mark.parametrize("strata", [1, 3, 16, 200])
def test_the_strata_are_all_of_the_later_steps_once(T, strata):
    low, high = likelihood._strata(T, strata)
    covered = [t for a, b in zip(low, high, strict=True) for t in range(a, b + 1)]
    assert covered == list(range(2, T + 1)) and len(low) <= strata


# --- a learned variance


@pytest.mark.parametrize("mix", [0.0, 1.0])
def test_a_constant_learned_variance_is_the_fixed_one_but_for_the_last_step(mix):
    schedule, data = schedules.linear(30, 3e-3, 0.5), (0.2, 0.5)
    x0 = rows(*data, 4, 8)
    fixed = likelihood.bound(
        jax.random.key(0), schedule, ideal(schedule, *data), x0, mix=mix, decoder=likelihood.density
    )
    learned = likelihood.bound(
        jax.random.key(0), schedule, ideal(schedule, *data, jnp.full(31, mix)), x0, mix=0.5, decoder=likelihood.density
    )
    np.testing.assert_array_equal(learned.terms[1:], fixed.terms[1:])
    first_var = None if mix == 0 else 3e-3  # it runs from beta-tilde_2 to beta_1
    options = {"mix": mix, "decoder": likelihood.density, "decoder_var": first_var}
    same = likelihood.bound(jax.random.key(0), schedule, ideal(schedule, *data), x0, **options)
    np.testing.assert_allclose(learned.terms[0], same.terms[0], rtol=1e-5)
    assert (mix == 0) == np.allclose(fixed.terms[0], learned.terms[0])


# --- precision and derivatives of the terms


@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine], ids=lambda f: f.__name__)
@pytest.mark.parametrize("mix", [0.0, 0.3, 1.0])
def test_terms_keep_their_digits_in_float32(make, mix):
    rng, t = np.random.default_rng(0), np.arange(1, 1001)
    x0, guess = rng.uniform(-1, 1, (2, 1000, 3)).astype(np.float32)

    def terms():
        schedule = make(1000)
        found = Estimate(jnp.asarray(guess, schedule.signal.dtype), jnp.asarray(guess, schedule.signal.dtype))
        data = jnp.asarray(x0, schedule.signal.dtype)
        options = {"decoder": likelihood.density, "first_var": 1e-3, "mix": mix}
        return np.asarray(likelihood.term_given(schedule, found, data, t, t - 1, **options), np.float64)

    with jax.enable_x64(True):
        exact = terms()
    # an error of 5e-9 in each of a thousand steps is one of 5e-6 in a bound of about 1
    np.testing.assert_allclose(terms(), exact, rtol=1e-5, atol=5e-9)
    # and are the divergence of the two laws
    with jax.enable_x64(True):
        schedule, data = make(1000), jnp.asarray(x0[1:], jnp.float64)
        x_t = jnp.asarray(rng.standard_normal(data.shape))
        law = gaussian.posterior(schedule, data, x_t, t[1:], t[1:] - 1)
        mean = gaussian.posterior(schedule, jnp.asarray(guess[1:], jnp.float64), x_t, t[1:], t[1:] - 1).mean
        reverse = Gaussian(mean, gaussian.reverse_variance(schedule, t[1:], t[1:] - 1, data, mix))
        np.testing.assert_allclose(exact[1:], gaussian.kl(law, reverse), rtol=1e-6)


DECODERS = {
    "discretized": likelihood.decoder_8bit,
    "tanh": likelihood.discretized_tanh(256),
    "softmax": likelihood.softmax(256),
    "density": likelihood.density,
}


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
@pytest.mark.parametrize("learned", [False, True], ids=["fixed", "learned"])
def test_no_derivative_of_a_term_is_nan(decoder, learned):
    schedule = schedules.linear(1000)
    data = jnp.asarray(np.linspace(-1, 1, 256)[[0, 1, 77, 128, 254, 255]], jnp.float32)[None]

    def total(guess, raw, t, s):
        found = Estimate(guess, guess, (raw + 1) / 2 if learned else None)
        options = {"decoder": decoder, "first_var": likelihood.decoder_variance(schedule)}
        return likelihood.term_given(schedule, found, data, t, s, mix=0.3, **options).sum()

    grad = jax.jit(jax.grad(total, argnums=(0, 1)))
    for t, s in ((1, 0), (2, 1), (1000, 999), (1000, 0), (500, 0)):
        for guess in (data, data + 0.01, 0 * data + 3, 0 * data - 30, -data):
            for raw in (-1.0, 0.0, 1.0, 1.4):
                assert all(np.isfinite(g).all() for g in grad(guess, jnp.full_like(data, raw), t, s)), (t, s, raw)


# --- decoders


@pytest.mark.parametrize("levels", [2, 17, 256, 65536])
@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("decoder", [likelihood.discretized, likelihood.discretized_tanh, likelihood.softmax])
def test_probabilities_sum_to_one(decoder, levels, wide):
    with jax.enable_x64(True) if wide else jax.enable_x64(False):
        grid = jnp.asarray(np.linspace(-1, 1, levels))
        log_prob = jax.jit(lambda mean, std: decoder(levels)(grid[:, None], Gaussian(mean, std**2)))
        if decoder is likelihood.softmax:  # [levels, levels] would not fit: the values are its own grid
            if levels > 256:
                return
            log_prob = jax.jit(
                lambda mean, std: decoder(levels)(grid[:, None], Gaussian(0 * grid[:, None] + mean, std**2))
            )
        for mean in (-1.4, -1.0, -0.3, 0.0, 0.111, 0.99, 1.0, 50.0):
            for std in (1e-3, 7.4e-3, 0.1, 1.0, 30.0):
                mass = np.exp(np.asarray(log_prob(mean, std), np.float64)).sum()
                # the floor of the tanh decoder adds up to 1e-12 for each value
                assert abs(mass - 1) < (1e-9 + 1e-12 * levels if wide else 2e-4), (mean, std)


def by_quadrature(x0, mean, std, levels):
    """log of the Gaussian's mass on the bin of x0, by Gauss and Legendre and, for the open ends, scipy's float64."""
    half = 1 / (levels - 1)
    nodes, weights = np.polynomial.legendre.leggauss(120)
    out = np.empty(x0.size)
    for i, x in enumerate(x0):
        low, high = (x - half - mean) / std, (x + half - mean) / std
        if x < -1 + half:
            out[i] = scipy.special.log_ndtr(high)
            continue
        if x > 1 - half:
            out[i] = scipy.special.log_ndtr(-low)
            continue
        # mirrored to the upper tail, from the point nearest to the mean, as far as anything is left
        near, far = (low, high) if abs(low) < abs(high) else (-high, -low)
        start = max(near, -12.0)
        stop = min(far, max(start, 0.0) + 40 / (3 + max(start, 0.0)))
        z = start + (stop - start) * (nodes + 1) / 2
        scale = 0.5 * max(start, 0.0) ** 2
        total = (weights * np.exp(scale - 0.5 * z**2)).sum() * (stop - start) / 2
        out[i] = np.log(total) - scale - 0.5 * np.log(2 * np.pi)
    return out


SPREADS = [(17, 0.5), (17, 0.02), (256, 7.4e-3), (256, 0.1), (256, 2.0), (256, 1e-3), (65536, 7.4e-3), (65536, 1e-5)]


@pytest.mark.parametrize(("levels", "std"), SPREADS)
@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
def test_the_discretised_gaussian_is_the_integral_of_its_density(levels, std, wide):
    rng = np.random.default_rng(levels)
    index = np.unique(np.r_[0, 1, levels // 2, levels - 2, levels - 1, rng.integers(0, levels, 12)])
    with jax.enable_x64(True) if wide else jax.enable_x64(False):
        x0 = jnp.asarray(np.linspace(-1, 1, levels)[index])
        log_prob = jax.jit(lambda mean, var: likelihood.discretized(levels)(x0, Gaussian(mean, var)))
        for mean in (-3.0, -1.0, -0.2, 0.0, 0.437, 1.05, 20.0):
            var = jnp.asarray(std**2)
            # the values as they are held, so that what is compared is the decoder and not the rounding of its input
            exact_mean, exact_std = float(jnp.asarray(mean)), float(np.sqrt(np.float64(var)))
            exact = by_quadrature(np.asarray(x0, np.float64), exact_mean, exact_std, levels)
            found = np.asarray(log_prob(mean, var), np.float64)
            assert np.isfinite(found).all()
            np.testing.assert_allclose(found, exact, rtol=1e-9 if wide else 2e-5, atol=1e-9 if wide else 2e-4)


@pytest.mark.parametrize("std", [1e-3, 7.4e-3, 0.03, 0.3])
def test_the_originals_decoder_is_near_where_it_matters(std):
    with jax.enable_x64(True):
        x0, means = jnp.asarray(np.linspace(-1, 1, 256)), jnp.linspace(-1, 1, 33)[:, None]
        law = Gaussian(means, jnp.asarray(std**2))
        exact, near = likelihood.decoder_8bit(x0, law), likelihood.discretized_tanh(256)(x0, law)
    exact, near = np.asarray(exact), np.asarray(near)
    apart = np.abs(near - exact)
    assert apart[exact > -6].max() < 0.07 and apart[exact > -8].max() < 0.25
    assert near.min() >= np.log(1e-12)


def test_a_wide_softmax_is_the_discretised_gaussian():
    # both are density times bin width, where the density hardly changes across a bin and little lies outside
    x0 = jnp.asarray(np.linspace(-1, 1, 256), jnp.float32)
    law = Gaussian(jnp.full_like(x0, 0.05), jnp.full_like(x0, 0.1**2))
    near = np.abs(x0 - 0.05) < 0.3
    a, b = likelihood.softmax(256)(x0, law)[near], likelihood.decoder_8bit(x0, law)[near]
    np.testing.assert_allclose(a, b, rtol=0, atol=3e-3)
    own = likelihood.softmax(256, 1 / 256 - 1, 1 - 1 / 256)
    values = jnp.asarray(np.linspace(1 / 256 - 1, 1 - 1 / 256, 256), jnp.float32)
    assert jnp.exp(own(values, law)).sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("levels", [256, 65536])
def test_derivatives_far_off_are_those_of_the_density(levels):
    # far out in the tail the mass of a bin falls as its nearer edge does: d log p / d mean = (edge - mean) / var
    std, half = 0.01, 1 / (levels - 1)
    x0 = jnp.asarray(np.linspace(-1, 1, levels)[[levels // 3]], jnp.float32)
    log_prob = likelihood.discretized(levels)
    grad = jax.jit(jax.grad(lambda mean: log_prob(x0, Gaussian(mean, jnp.float32(std**2))).sum()))
    for mean, apart in ((-2.0, 0.01), (2.0, 0.01), (-40.0, 0.5), (40.0, 0.5)):
        towards = (float(x0[0]) + np.sign(mean) * half - mean) / std**2
        found = grad(jnp.full((1,), mean, jnp.float32)).item()
        assert found == pytest.approx(
            towards, rel=apart
        )  # 4000 standard deviations off it is the direction that counts


def test_the_density_integrates_to_one():
    x = jnp.linspace(-12, 12, 4001)
    for mean, var in ((0.0, 1.0), (1.0, 0.01), (-2.0, 2.0)):
        mass = np.trapezoid(np.exp(likelihood.density(x, Gaussian(mean, jnp.float32(var)))), x)
        assert mass == pytest.approx(1, abs=1e-5)


# --- the rest


@pytest.mark.parametrize("t", [1, 300, 1000])
def test_the_prior_is_the_integral(t):
    schedule = schedules.linear(1000)
    x0 = jnp.array([[0.9, -0.4], [0.0, 1.0]])
    law = gaussian.marginal(schedule, x0, t)
    z = np.linspace(-15, 15, 60_001)
    exact = np.zeros(2)
    for i in range(2):
        for j in range(2):
            mean, var = float(law.mean[i, j]), float(jnp.ravel(law.var)[0])
            log_p = -0.5 * ((z - mean) ** 2 / var + np.log(2 * np.pi * var))
            exact[i] += np.trapezoid(np.exp(log_p) * (log_p + 0.5 * z**2 + 0.5 * np.log(2 * np.pi)), z)
    np.testing.assert_allclose(likelihood.prior_kl(schedule, x0, t), exact, rtol=1e-4, atol=2e-8)


def test_a_uniform_guess_costs_a_bit_for_each_bit():
    # eight bits a component for a decoder that knows nothing
    x0 = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 4, 4, 2)) / 127.5 - 1, jnp.float32)
    law = Gaussian(0 * x0, jnp.float32(1e8))
    nats = -likelihood.softmax(256)(x0, law).sum((1, 2, 3))
    np.testing.assert_allclose(likelihood.bits_per_dim(nats, x0), 8, rtol=1e-6)


S10, X = schedules.linear(10), jnp.zeros((3, 2))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: likelihood.discretized(1), "levels must be an integer of at least 2, got 1"),
        (lambda: likelihood.discretized_tanh(2.5), "levels must be an integer of at least 2, got 2.5"),
        (lambda: likelihood.softmax(True), "levels must be an integer of at least 2, got True"),
        (
            lambda: bound(times=np.array([10, 5, 1])),
            "fall from at most T = 10 to 0, got [10  5  1]",
        ),
        (lambda: bound(times=np.array([11, 0])), "must be integers that fall from at most T = 10 to 0, got [11  0]"),
        (lambda: bound(times=np.array([5, 5, 0])), "must be integers that fall from at most T = 10 to 0, got [5 5 0]"),
        (lambda: bound(times=np.array([0])), "must be integers that fall from at most T = 10 to 0, got [0]"),
        (lambda: bound(times=np.array([9.0, 0.0])), "must be integers that fall from at most T = 10 to 0, got [9. 0.]"),
        (lambda: bound(X.astype(jnp.uint8)), "x0 must be float32 or float64, got uint8: scale images to [-1, 1] first"),
        (lambda: estimate(X.astype(jnp.uint8)), "x0 must be float32 or float64, got uint8: scale images to [-1, 1]"),
        (lambda: estimate(strata=0), "strata must be at least 1, got 0"),
        (lambda: bound(key=jax.random.PRNGKey(0)), "keys must be typed (jax.random.key), got uint32"),
        (
            lambda: estimate(key=samplers.image_keys(0, [1])),
            "one key or one per example, [] or (3,), got (1,)",
        ),
    ],
)
def test_errors_name_the_value(call, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        call()


def bound(x0=X, key=None, **options):
    key = jax.random.key(0) if key is None else key
    return likelihood.bound(key, S10, ideal(S10, 0, 1), x0, decoder=likelihood.density, **options)


def estimate(x0=X, key=None, **options):
    key = jax.random.key(0) if key is None else key
    return likelihood.bound_estimate(key, S10, ideal(S10, 0, 1), x0, decoder=likelihood.density, **options)
