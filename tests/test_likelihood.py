"""The bound where it is known: Gaussian data, whose ideal denoiser is a line; and the decoders against quadrature."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from gaussian_data import default_precision, gaussian_samples, ideal_denoiser, to_numpy

from ddpm_jax import gaussian, likelihood, samplers, schedules
from ddpm_jax.gaussian import Estimate, Gaussian
from ddpm_jax.keys import from_seed


def known_terms(alpha_bar, times, mean, std, mix, first_var, x0=None):
    """[n] expected terms in nats, ascending, of N(mean, std^2), or of the one value x0 of it; then the prior."""
    terms = []
    for t, s in zip(times[:-1][::-1], times[1:][::-1], strict=True):
        a_t, a_s = alpha_bar[t], alpha_bar[s]
        total = a_t * std**2 + 1 - a_t
        gain = std**2 * np.sqrt(a_t) / total
        error = std**2 * (1 - a_t) / total
        if x0 is not None:
            error = (x0 - mean) ** 2 * (1 - gain * np.sqrt(a_t)) ** 2 + gain**2 * (1 - a_t)
        if s == 0:
            terms.append(0.5 * np.log(2 * np.pi * first_var) + 0.5 * error / first_var + 0 * error)
            continue
        beta = 1 - a_t / a_s
        small = beta * (1 - a_s) / (1 - a_t)
        c1 = np.sqrt(a_s) * beta / (1 - a_t)
        var = small + c1**2 * std**2 * (1 - a_t) / total if mix == "best" else small ** (1 - mix) * beta**mix
        terms.append(0.5 * (np.log(var / small) + small / var - 1 + c1**2 * error / var))
    last = alpha_bar[times[0]]
    square = mean**2 + std**2 if x0 is None else x0**2
    return np.array(terms), 0.5 * (last * square + (1 - last) - 1 - np.log(1 - last))


def alpha_bars(make, *args):
    """The schedule's own, in float64."""
    with jax.enable_x64(True):
        return np.asarray(make(*args).signal, np.float64) ** 2


# --- the bound


@pytest.mark.parametrize(("T", "dims"), [(1000, 512), (50, 1 << 13)])
def test_the_bound_of_standard_normal_data_is_its_entropy(T, dims):
    # with mix 1 the model is the true reverse process: the bound of each x_0 is -log N(x_0; 0, 1), exactly
    n, schedule = 16, schedules.linear(T, 0.1 / T, 20 / T)
    x0, options = (
        gaussian_samples(n, dims, 0, 1),
        {"variance_mix": 1.0, "decoder": likelihood.gaussian_density, "decoder_var": 0.1 / T},
    )
    found = to_numpy(
        jax.jit(lambda key: likelihood.vlb(key, schedule, ideal_denoiser(schedule, 0, 1), x0, **options))(from_seed(0))
    )
    # the data's own fluctuation is known, and taken out: the standard error is that of eps, as the images tell
    surprise = (0.5 * x0**2).mean(1) - 0.5
    entropy_estimates = found.total / dims - surprise
    error = entropy_estimates.std(ddof=1) / np.sqrt(n)
    assert error < 0.02 and abs(entropy_estimates.mean() - 1.4189385) < 4 * error
    np.testing.assert_allclose(found.total, found.prior + found.terms.sum(0), rtol=1e-5)


CASES = {
    # data, schedule, its bound in nats per component for beta-tilde, beta, and the best variance of all
    "linear1000": ((0.2, 0.5), (schedules.linear, 1000), (1.295718, 0.840462, 0.725792)),
    "linear50": ((0.2, 0.5), (schedules.linear, 50, 2e-3, 0.4), (2.719203, 0.755722, 0.725792)),
    "cosine50": ((0.0, 0.3), (schedules.cosine, 50), (0.977409, 0.292574, 0.214966)),
    "wide": ((-0.5, 1.0), (schedules.linear, 50, 2e-3, 0.4), (3.647505, 1.427414, 1.418940)),
}


@functools.cache
def bound_of(learned: bool):
    """(key, schedule, mean, std, mix, x0) -> Bound: one program for all data; a learned mix is a column."""

    @jax.jit
    def found(key, schedule, mean, std, mix, x0):
        denoise = ideal_denoiser(schedule, mean, std, mix if learned else None)
        fixed = 0.5 if learned else mix
        return likelihood.vlb(key, schedule, denoise, x0, variance_mix=fixed, decoder=likelihood.gaussian_density)

    return found


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("which", ["small", "large", "best"])
def test_the_bound_of_gaussian_data_is_the_known_one(name, which):
    data, named, known = CASES[name]
    schedule, alpha_bar = named[0](*named[1:]), alpha_bars(*named)
    T, times = schedule.T, np.arange(schedule.T, -1, -1)
    mix = {"small": 0.0, "large": 1.0, "best": "best"}[which]
    beta = np.r_[np.nan, 1 - alpha_bar[1:] / alpha_bar[:-1]]
    small = np.r_[np.nan, beta[1:] * (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:])]
    small[1] = small[2]
    ideal_error = data[1] ** 2 * (1 - alpha_bar) / (alpha_bar * data[1] ** 2 + 1 - alpha_bar)
    mixes, first_var = mix, small[1]
    if mix == "best":
        best = small[2:] + alpha_bar[1:-1] * (beta[2:] / (1 - alpha_bar[2:])) ** 2 * ideal_error[2:]
        first_var = ideal_error[1]
        mixes = np.r_[0, np.log(np.r_[first_var, best] / small[1:]) / np.log(beta[1:] / small[1:])]
    terms, prior = known_terms(alpha_bar, times, *data, mix, first_var)
    assert terms.sum() + prior == pytest.approx(known[["small", "large", "best"].index(which)], abs=2e-6)

    # and of the images at hand, eps alone being random
    n, dims = (16, 128) if T == 1000 else (32, 1024)
    x0 = gaussian_samples(n, dims, *data)
    args = schedule, *default_precision(data), default_precision(mixes), x0
    found = to_numpy(bound_of(mix == "best")(from_seed(1), *args))
    image_terms, image_prior = known_terms(alpha_bar, times, *data, mix, first_var, np.asarray(x0, np.float64))
    np.testing.assert_allclose(found.prior, image_prior.sum(-1), rtol=1e-4, atol=1e-5)
    off = np.asarray(found.terms, np.float64) - image_terms.sum(-1)
    spread = off.std(axis=1, ddof=1) / np.sqrt(n)
    assert (abs(off.mean(1)) < 6 * spread + 1e-3).all()  # each term; of `n` images, so with the tails of Student's law
    assert abs(off.sum(0).mean()) < 4 * off.sum(0).std(ddof=1) / np.sqrt(n)
    np.testing.assert_allclose(found.x0_mse.mean(1), ideal_error[1:], rtol=6 * np.sqrt(2 / (n * dims)))


@pytest.mark.parametrize("spacing", ["ddim", "quadratic"])
def test_the_bound_of_a_strided_chain(spacing):
    schedule, times, data = schedules.linear(1000), samplers.times(1000, 20, spacing=spacing), (0.2, 0.5)
    x0, alpha_bar = gaussian_samples(32, 1024, *data), alpha_bars(schedules.linear, 1000)

    @jax.jit
    def strided_vlb(key, mix):
        options = {"variance_mix": mix, "decoder": likelihood.gaussian_density, "decoder_var": 1e-3, "times": times}
        return likelihood.vlb(key, schedule, ideal_denoiser(schedule, *data), x0, **options)

    for mix in (0.0, 1.0):
        found = to_numpy(strided_vlb(from_seed(2), np.float32(mix)))
        terms, prior = known_terms(alpha_bar, times, *data, mix, 1e-3, np.asarray(x0, np.float64))
        off = np.asarray(found.total, np.float64) - (terms.sum(0) + prior).sum(-1)
        assert found.terms.shape == (20, 32)
        assert abs(off.mean()) < 4 * off.std(ddof=1) / np.sqrt(32), mix


def test_the_last_step_takes_the_chains_own_second_step():
    schedule, like = schedules.linear(1000), np.zeros((1, 1), np.float32)
    small = gaussian.reverse_variance(schedule, 2, 1, like, 0.0).item()
    assert small == pytest.approx(5.453188e-5, rel=1e-6)
    assert likelihood.decoder_variance(schedule).item() == pytest.approx(small)
    strided = likelihood.decoder_variance(schedule, np.array([1000, 100, 7, 0])).item()
    assert strided == pytest.approx(gaussian.reverse_variance(schedule, 100, 7, like, 0.0).item())
    assert likelihood.decoder_variance(schedules.const(1, 0.3)).item() == pytest.approx(0.3)


def test_the_bound_of_an_image_does_not_depend_on_its_batch():
    schedule, x0 = schedules.linear(20, 5e-3, 0.6), np.random.default_rng(0).uniform(-1, 1, (6, 4, 3)).astype("f4")

    @jax.jit
    def bounds(keys, x0):
        args, options = (schedule, ideal_denoiser(schedule, 0, 0.5), x0), {"decoder": likelihood.gaussian_density}
        return likelihood.vlb(keys, *args, **options), likelihood.estimate_vlb(keys, *args, **options)

    whole = to_numpy(bounds(samplers.image_keys(0, range(6)), x0))
    one_key = to_numpy(bounds(from_seed(0), x0))
    some = to_numpy(bounds(samplers.image_keys(0, [4, 1]), x0[[4, 1]]))
    for a, b, c in zip(*map(jax.tree.leaves, (whole, one_key, some)), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(c, a[..., [4, 1]], rtol=1e-5)


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 2, 2)], ids=["4x3", "2x3x2x2"])
def test_terms_are_sums_over_the_components_of_any_shape(shape):
    # the noise of an example of n components is that of a vector of n, in whatever shape
    schedule, n = schedules.linear(20, 5e-3, 0.6), 6
    x0 = np.random.default_rng(0).uniform(-1, 1, (n, np.prod(shape))).astype(np.float32)
    t = np.array([1, 2, 3, 10, 19, 20])

    @jax.jit
    def terms(keys, x0):
        first_var = likelihood.decoder_variance(schedule)
        options = {"variance_mix": 0.5, "decoder": likelihood.gaussian_density, "decoder_var": first_var}
        found = likelihood.vlb_term(keys, schedule, ideal_denoiser(schedule, 0, 0.5), x0, t, t - 1, **options)
        return found, likelihood.prior_kl(schedule, x0, 20)

    keys = samplers.image_keys(0, range(n))
    flat, shaped = (to_numpy(terms(keys, x)) for x in (x0, x0.reshape(n, *shape)))
    for a, b in zip(jax.tree.leaves(flat), jax.tree.leaves(shaped), strict=True):
        assert b.shape == (n,)
        np.testing.assert_allclose(b, a, rtol=1e-5)


# --- the estimate


def test_the_estimate_is_unbiased_and_knows_its_error():
    schedule, data, images, seeds, dims = schedules.linear(1000), (0.2, 0.5), 8, 64, 16
    alpha_bar = alpha_bars(schedules.linear, 1000)
    x0 = np.repeat(gaussian_samples(images, dims, *data), seeds, axis=0)
    options = {"variance_mix": 1.0, "decoder": likelihood.gaussian_density, "decoder_var": 1e-4}
    estimate = jax.jit(
        lambda key: likelihood.estimate_vlb(key, schedule, ideal_denoiser(schedule, *data), x0, **options)
    )
    found = to_numpy(estimate(from_seed(0)))
    terms, prior = known_terms(alpha_bar, np.arange(1000, -1, -1), *data, 1.0, 1e-4, np.asarray(x0, np.float64))
    np.testing.assert_allclose(found.prior, prior.sum(-1), rtol=1e-4)
    # L_0 is always evaluated, so its own eps is no part of the standard error of the sampled terms
    off = np.asarray(found.total - found.decoder_nll - found.prior, np.float64) - terms[1:].sum((0, 2))
    standard_errors = np.asarray(found.standard_error, np.float64)
    n = images * seeds
    assert abs(off.mean()) < 4 * off.std() / np.sqrt(n)
    # the squared standard error is an unbiased estimate of the variance; its own error from the sample at hand
    excess = off**2 - standard_errors**2
    assert abs(excess.mean()) < 4 * excess.std() / np.sqrt(n)
    # two draws for each of 14 strata: Student's tails, with few degrees of freedom
    inside = np.abs(off) < 2 * standard_errors
    assert 0.85 < inside.mean() < 0.98
    for image in range(images):
        mine = slice(image * seeds, (image + 1) * seeds)
        assert abs(off[mine].mean()) < 3 * np.sqrt((standard_errors[mine] ** 2).mean() / seeds)


@pytest.mark.parametrize("T", [1, 2, 7])
def test_the_estimate_of_a_short_chain_is_nearly_the_bound(T):
    # with a stratum for each step the times are certain: what is left is eps, of which it draws two
    schedule, data, x0 = schedules.linear(T, 0.05, 0.6), (0.0, 0.5), gaussian_samples(64, 512, 0.0, 0.5)

    @jax.jit
    def both(key, other):
        args = schedule, ideal_denoiser(schedule, *data), x0
        options = {"variance_mix": 1.0, "decoder": likelihood.gaussian_density}
        return likelihood.vlb(key, *args, **options), likelihood.estimate_vlb(other, *args, strata=4096, **options)

    exact, found = to_numpy(both(*jax.random.split(from_seed(0))))
    gap = np.asarray(found.total - exact.total, np.float64)
    assert abs(gap.mean()) < 4 * gap.std(ddof=1) / np.sqrt(64)
    np.testing.assert_array_equal(found.prior, exact.prior)
    assert (found.standard_error == 0).all() == (T == 1)


@pytest.mark.parametrize("T", [1, 2, 3, 50, 1000])
@pytest.mark.parametrize("strata", [1, 3, 16, 200])
def test_the_strata_are_all_of_the_later_steps_once(T, strata):
    low, high = likelihood._strata(T, strata)
    covered = [t for a, b in zip(low, high, strict=True) for t in range(a, b + 1)]
    assert covered == list(range(2, T + 1)) and len(low) <= strata


# --- a learned variance


def test_a_constant_learned_variance_is_the_fixed_one_but_for_the_last_step():
    schedule, data, x0 = schedules.linear(30, 3e-3, 0.5), (0.2, 0.5), gaussian_samples(4, 8)

    @jax.jit
    def bounds(mix, first_var):
        def vlb_of(denoise, mix, **options):
            key = from_seed(0)
            return likelihood.vlb(
                key, schedule, denoise, x0, variance_mix=mix, decoder=likelihood.gaussian_density, **options
            )

        fixed, learned = ideal_denoiser(schedule, *data), ideal_denoiser(schedule, *data, jnp.full(31, mix))
        return vlb_of(fixed, mix), vlb_of(learned, 0.5), vlb_of(fixed, mix, decoder_var=first_var)

    smallest = likelihood.decoder_variance(schedule)
    for mix in (0.0, 1.0):
        first_var = smallest if mix == 0 else np.float32(3e-3)  # it runs from beta-tilde_2 to beta_1
        fixed, learned, same = to_numpy(bounds(np.float32(mix), first_var))
        np.testing.assert_array_equal(learned.terms[1:], fixed.terms[1:], err_msg=f"mix {mix}")
        np.testing.assert_allclose(learned.terms[0], same.terms[0], rtol=1e-5, err_msg=f"mix {mix}")
        assert (mix == 0) == np.allclose(fixed.terms[0], learned.terms[0]), mix


# --- precision and derivatives of the terms


def test_terms_keep_their_digits_in_float32():
    rng, t = np.random.default_rng(0), np.arange(1, 1001, dtype=np.int32)
    x0, guess = rng.uniform(-1, 1, (2, 1000, 3)).astype(np.float32)
    x_t = rng.standard_normal((999, 3))

    @jax.jit
    def terms(schedule, x0, guess, x_t, mix):
        options = {"decoder": likelihood.gaussian_density, "decoder_var": 1e-3, "variance_mix": mix}
        found = likelihood.vlb_term_from_estimate(schedule, Estimate(guess, guess), x0, t, t - 1, **options)
        # and the divergence of the two laws
        law, reverse = (gaussian.posterior(schedule, x[1:], x_t, t[1:], t[1:] - 1) for x in (x0, guess))
        var = gaussian.reverse_variance(schedule, t[1:], t[1:] - 1, x0[1:], mix)
        return found, gaussian.kl(law, Gaussian(reverse.mean, var))

    for make in (schedules.linear, schedules.cosine):
        for mix in (0.0, 0.3, 1.0):
            name = f"{make.__name__}, mix {mix}"
            single = to_numpy(terms(make(1000), x0, guess, default_precision(x_t), np.float32(mix)))[0]
            with jax.enable_x64(True):
                exact, divergence = to_numpy(
                    terms(make(1000), *map(default_precision, (x0, guess, x_t)), np.float64(mix))
                )
            # an error of 5e-9 in each of a thousand steps is one of 5e-6 in a bound of about 1
            np.testing.assert_allclose(single, exact, rtol=1e-5, atol=5e-9, err_msg=name)
            np.testing.assert_allclose(exact[1:], divergence, rtol=1e-6, err_msg=name)


DECODERS = {
    "discretized": likelihood.decoder_8bit,
    "tanh": likelihood.discretized_gaussian_tanh(256),
    "softmax": likelihood.softmax_decoder(256),
    "density": likelihood.gaussian_density,
}


def test_no_derivative_of_a_term_is_nan():
    schedule = schedules.linear(1000)
    data = np.linspace(-1, 1, 256)[[0, 1, 77, 128, 254, 255]].astype(np.float32)[None]
    cases = [(name, learned) for name in DECODERS for learned in (False, True)]

    def total(variables, t, s):
        """Each case has variables of its own, so that the derivative says which one is wrong."""
        options = {"variance_mix": 0.3, "decoder_var": likelihood.decoder_variance(schedule)}
        terms = []
        for (name, learned), (guess, raw) in zip(cases, variables, strict=True):
            found = Estimate(guess, guess, (raw + 1) / 2 if learned else None)
            terms.append(
                likelihood.vlb_term_from_estimate(schedule, found, data, t, s, decoder=DECODERS[name], **options).sum()
            )
        return sum(terms)

    guesses = [data, data + 0.01, 0 * data + 3, 0 * data - 30, -data]
    variables = [(guess, np.full_like(data, raw)) for guess in guesses for raw in (-1.0, 0.0, 1.0, 1.4)]
    stacked = tuple(map(np.stack, zip(*variables, strict=True)))
    grad = jax.jit(jax.vmap(jax.grad(total), in_axes=(0, None, None)))
    for t, s in ((1, 0), (2, 1), (1000, 999), (1000, 0), (500, 0)):
        for case, found in zip(cases, to_numpy(grad([stacked] * len(cases), t, s)), strict=True):
            for i, (guess, raw) in enumerate(variables):
                assert all(np.isfinite(g[i]).all() for g in found), (case, t, s, guess, raw[0, 0])


def test_the_derivative_of_a_single_step_without_signal_is_finite():
    schedule, data = schedules.jsd(1), np.float32([[-1.0, 0.1, 1.0]])
    options = {"decoder": likelihood.decoder_8bit, "decoder_var": likelihood.decoder_variance(schedule)}

    def total(guess):
        return likelihood.vlb_term_from_estimate(schedule, Estimate(guess, guess), data, 1, 0, **options).sum()

    assert np.isfinite(jax.grad(total)(0.5 * data)).all()


# --- decoders

MEANS = [-3.0, -1.4, -1.0, -0.3, 0.0, 0.111, 0.437, 0.99, 1.05, 20.0, 50.0]
STDS = [1e-5, 1e-3, 7.4e-3, 0.02, 0.1, 0.5, 2.0, 30.0]
MAKERS = {
    "discretized": likelihood.discretized_gaussian, "tanh": likelihood.discretized_gaussian_tanh,
    "softmax": likelihood.softmax_decoder,
}  # fmt: skip


@functools.cache
def table(levels: int, wide: bool):
    """log p of every value by each decoder [means, stds, levels], with what means and standard deviations are held as.

    Of 65536 levels only some laws, and not by the softmax over all of them.
    """
    many = levels > 256
    with jax.enable_x64(wide):
        means = default_precision([-1.0, 0.111, 20.0] if many else MEANS)[:, None, None]
        var = default_precision(np.square([1e-5, 7.4e-3, 0.5] if many else STDS))[:, None]
        grid, decoders = default_precision(np.linspace(-1, 1, levels)), dict(list(MAKERS.items())[: 2 if many else 3])

        @jax.jit
        def all_of_them(mean, var):
            like = 0 * grid + 0 * mean + 0 * var
            return {name: make(levels)(grid + like, Gaussian(mean + like, var)) for name, make in decoders.items()}

        found = {name: np.asarray(log_p, np.float64) for name, log_p in all_of_them(means, var).items()}
    return found, np.asarray(grid, np.float64), np.float64(means).ravel(), np.sqrt(np.float64(var)).ravel()


@pytest.mark.parametrize("levels", [2, 17, 256, 65536])
@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
def test_probabilities_sum_to_one(levels, wide):
    found, _, means, stds = table(levels, wide)
    for name, log_p in found.items():
        # the least probability of the tanh decoder adds up to 1e-12 for each value
        ordinary = stds > 5e-4  # narrower ones meet the rounding of the values in float32
        off = abs(np.exp(log_p[:, ordinary]).sum(-1) - 1)
        i, j = np.unravel_index(off.argmax(), off.shape)
        assert off.max() < (1e-9 + 1e-12 * levels if wide else 2e-4), (name, means[i], stds[ordinary][j], off.max())


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


@pytest.mark.parametrize("levels", [17, 256, 65536])
@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
def test_the_discretised_gaussian_is_the_integral_of_its_density(levels, wide):
    rng = np.random.default_rng(levels)
    index = np.unique(np.r_[0, 1, levels // 2, levels - 2, levels - 1, rng.integers(0, levels, 12)])
    found, grid, means, stds = table(levels, wide)
    for i, mean in enumerate(means):
        for j, std in enumerate(stds):
            # the values as they are held, so that what is compared is the decoder and not the rounding of its input
            exact, log_p = by_quadrature(grid[index], mean, std, levels), found["discretized"][i, j, index]
            assert np.isfinite(log_p).all(), (mean, std)
            close = {"rtol": 1e-9, "atol": 1e-9} if wide else {"rtol": 2e-5, "atol": 2e-4}
            np.testing.assert_allclose(log_p, exact, **close, err_msg=f"mean {mean}, std {std}")


def test_the_originals_decoder_is_near_where_it_matters():
    with jax.enable_x64(True):
        x0, means = np.linspace(-1, 1, 256), np.linspace(-1, 1, 33)[:, None]
        both = jax.jit(lambda std: [DECODERS[name](x0, Gaussian(means, std**2)) for name in ("discretized", "tanh")])
        for std in (1e-3, 7.4e-3, 0.03, 0.3):
            exact, near = to_numpy(both(std))
            apart = np.abs(near - exact)
            assert apart[exact > -6].max() < 0.07 and apart[exact > -8].max() < 0.25, std
            assert near.min() >= np.log(1e-12), std


def test_a_wide_softmax_is_the_discretised_gaussian():
    # both are density times bin width, where the density hardly changes across a bin and little lies outside
    x0, values = (np.linspace(-end, end, 256).astype(np.float32) for end in (1.0, 1 - 1 / 256))

    @jax.jit
    def log_probs(x0, values):
        law = Gaussian(jnp.full_like(x0, 0.05), jnp.full_like(x0, 0.1**2))
        own = likelihood.softmax_decoder(256, 1 / 256 - 1, 1 - 1 / 256)(values, law)
        return DECODERS["softmax"](x0, law), DECODERS["discretized"](x0, law), own

    a, b, own = to_numpy(log_probs(x0, values))
    near = np.abs(x0 - 0.05) < 0.3
    np.testing.assert_allclose(a[near], b[near], rtol=0, atol=3e-3)
    assert np.exp(own).sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("levels", [256, 65536])
def test_derivatives_far_off_are_those_of_the_density(levels):
    # far out in the tail the mass of a bin falls as its nearer edge does: d log p / d mean = (edge - mean) / var
    std, half = 0.01, 1 / (levels - 1)
    x0 = np.linspace(-1, 1, levels)[[levels // 3]].astype(np.float32)
    log_prob = likelihood.discretized_gaussian(levels)
    grad = jax.jit(jax.grad(lambda mean: log_prob(x0, Gaussian(mean, jnp.float32(std**2))).sum()))
    for mean, apart in ((-2.0, 0.01), (2.0, 0.01), (-40.0, 0.5), (40.0, 0.5)):
        towards = (float(x0[0]) + np.sign(mean) * half - mean) / std**2
        found = grad(np.full(1, mean, np.float32)).item()
        # 4000 standard deviations off it is the direction that counts
        assert found == pytest.approx(towards, rel=apart), mean


def test_the_density_integrates_to_one():
    x, density = np.linspace(-12, 12, 4001).astype(np.float32), jax.jit(likelihood.gaussian_density)
    for mean, var in ((0.0, 1.0), (1.0, 0.01), (-2.0, 2.0)):
        mass = np.trapezoid(np.exp(np.asarray(density(x, Gaussian(np.float32(mean), np.float32(var))))), x)
        assert mass == pytest.approx(1, abs=1e-5), (mean, var)


# --- the rest


def test_the_prior_is_the_integral():
    schedule, x0 = schedules.linear(1000), np.array([[0.9, -0.4], [0.0, 1.0]], np.float32)
    both = jax.jit(lambda t: (gaussian.marginal(schedule, x0, t), likelihood.prior_kl(schedule, x0, t)))
    z = np.linspace(-15, 15, 60_001)
    for t in (1, 300, 1000):
        law, found = to_numpy(both(t))
        exact = np.zeros(2)
        for i in range(2):
            for j in range(2):
                mean, var = float(law.mean[i, j]), float(np.ravel(law.var)[0])
                log_p = -0.5 * ((z - mean) ** 2 / var + np.log(2 * np.pi * var))
                exact[i] += np.trapezoid(np.exp(log_p) * (log_p + 0.5 * z**2 + 0.5 * np.log(2 * np.pi)), z)
        np.testing.assert_allclose(found, exact, rtol=1e-4, atol=2e-8, err_msg=f"t = {t}")


def test_a_uniform_guess_costs_a_bit_for_each_bit():
    # eight bits a component for a decoder that knows nothing
    x0 = (np.random.default_rng(0).integers(0, 256, (3, 4, 4, 2)) / 127.5 - 1).astype(np.float32)

    @jax.jit
    def bits(x0):
        nats = -DECODERS["softmax"](x0, Gaussian(0 * x0, jnp.float32(1e8))).sum((1, 2, 3))
        return likelihood.bits_per_dim(nats, x0)

    np.testing.assert_allclose(bits(x0), 8, rtol=1e-6)


S10, X = schedules.linear(10), np.zeros((3, 2), np.float32)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: likelihood.discretized_gaussian(1), "levels must be an integer of at least 2, got 1"),
        (lambda: likelihood.discretized_gaussian_tanh(2.5), "levels must be an integer of at least 2, got 2.5"),
        (lambda: likelihood.softmax_decoder(True), "levels must be an integer of at least 2, got True"),
        (
            lambda: vlb(times=np.array([10, 5, 1])),
            "fall from at most T = 10 to 0, got [10  5  1]",
        ),
        (lambda: vlb(times=np.array([11, 0])), "must be integers that fall from at most T = 10 to 0, got [11  0]"),
        (lambda: vlb(times=np.array([5, 5, 0])), "must be integers that fall from at most T = 10 to 0, got [5 5 0]"),
        (lambda: vlb(times=np.array([0])), "must be integers that fall from at most T = 10 to 0, got [0]"),
        (lambda: vlb(times=np.array([9.0, 0.0])), "must be integers that fall from at most T = 10 to 0, got [9. 0.]"),
        (lambda: vlb(X.astype(np.uint8)), "x0 must be float32 or float64, got uint8: scale images to [-1, 1] first"),
        (lambda: estimate(X.astype(np.uint8)), "x0 must be float32 or float64, got uint8: scale images to [-1, 1]"),
        (lambda: estimate(strata=0), "strata must be at least 1, got 0"),
        (lambda: vlb(key=jax.random.PRNGKey(0)), "keys must be typed (jax.random.key), got uint32"),
        (
            lambda: estimate(key=samplers.image_keys(0, [1])),
            "one key or one per example, [] or (3,), got (1,)",
        ),
    ],
)
def test_errors_name_the_value(call, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        call()


def vlb(x0=X, key=None, **options):
    key = from_seed(0) if key is None else key
    return likelihood.vlb(key, S10, ideal_denoiser(S10, 0, 1), x0, decoder=likelihood.gaussian_density, **options)


def estimate(x0=X, key=None, **options):
    key = from_seed(0) if key is None else key
    return likelihood.estimate_vlb(
        key, S10, ideal_denoiser(S10, 0, 1), x0, decoder=likelihood.gaussian_density, **options
    )
