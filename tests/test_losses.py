"""Losses where their value is known, weightings against each other, and what an example's loss may depend on."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_data import PREDICTS, SHAPES, default_precision, gaussian_samples, ideal_denoiser, ideal_net, to_numpy

from ddpm_jax import gaussian, likelihood, losses, samplers, schedules
from ddpm_jax.gaussian import Gaussian
from ddpm_jax.keys import from_seed

WEIGHTS = {
    "min_snr": losses.min_snr(5.0),
    "truncated_snr": losses.truncated_snr(),
    "snr": losses.snr,
    "snr_plus_one": losses.snr_plus_one,
    "p2": losses.p2(),
}


def batch(shape, n, seed=0):
    """Data in [-1, 1] and noise, [n, *shape]."""
    rng = np.random.default_rng(seed)
    return default_precision(rng.uniform(-1, 1, (n, *shape))), default_precision(rng.standard_normal((n, *shape)))


# --- L_simple


def test_the_simple_loss_of_the_ideal_network_is_what_cannot_be_known():
    # Var(eps | x_t) = SNR s^2 / (1 + SNR s^2), averaged over t
    def loss(key, schedule):
        return losses.simple_loss(
            key, schedule, ideal_net(schedule, "eps", ideal_denoiser(schedule)), gaussian_samples(4096, 16)
        )

    for T in (10, 1000):
        schedule = schedules.linear(T)
        snr = np.exp(np.asarray(schedule.log_snr, np.float64)[1:])
        expected = (0.25 * snr / (0.25 * snr + 1)).mean()
        found = np.asarray(jax.jit(loss)(from_seed(0), schedule))
        assert abs(found.mean() - expected) < 4 * found.std() / np.sqrt(found.size), T


def test_a_network_that_says_nothing_has_the_noise_as_its_loss():
    schedule = schedules.linear()
    found = jax.jit(lambda key: losses.simple_loss(key, schedule, lambda x, t: 0 * x, gaussian_samples(2048, 16)))
    assert abs(np.mean(found(from_seed(1))) - 1) < 4 * np.sqrt(2 / (2048 * 16))


def all_losses(schedule, key, x0):
    """[5, B] one of each kind."""
    net, wide = lambda x, t: 0.5 * x, lambda x, t: jnp.concatenate([0.5 * x, 0.1 * x], -1)
    return jnp.stack([
        losses.simple_loss(key, schedule, net, x0),
        losses.simple_loss(key, schedule, net, x0, predicts="v", weight=losses.min_snr()),
        losses.variational_loss(key, schedule, net, x0, predicts="x0", decoder=likelihood.gaussian_density),
        losses.variational_loss(key, schedule, wide, x0, learned_variance=True, decoder=likelihood.gaussian_density),
        losses.hybrid_loss(key, schedule, wide, x0, decoder=likelihood.gaussian_density),
    ])  # fmt: skip


def test_the_loss_of_an_example_depends_on_its_key_alone():
    schedule, (x0, _) = schedules.linear(1000), batch((4, 3), 16)
    call = jax.jit(functools.partial(all_losses, schedule))
    whole = np.asarray(call(samplers.image_keys(0, range(16)), x0))
    np.testing.assert_array_equal(call(from_seed(0), x0), whole)
    order = np.random.default_rng(0).permutation(16)
    np.testing.assert_array_equal(call(samplers.image_keys(0, order), x0[order]), whole[:, order])
    halves = [call(samplers.image_keys(0, range(i, i + 8)), x0[i : i + 8]) for i in (0, 8)]
    np.testing.assert_allclose(np.concatenate(halves, 1), whole, rtol=1e-5)
    assert len(np.unique(whole)) == whole.size


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_a_loss_is_a_mean_over_components_of_any_shape(shape):
    schedule, (x0, eps), t = schedules.linear(1000), batch((24,), 5), np.array([1, 10, 100, 500, 1000])
    net, wide = lambda x, t: 0.5 * x, lambda x, t: jnp.concatenate([0.5 * x, 0.1 * x], -1)

    @jax.jit
    def each(x0, eps):
        """All of them, at given times and noise."""
        options = {"decoder": likelihood.gaussian_density, "t": t, "eps": eps}
        key = from_seed(0)
        return jnp.stack([
            losses.denoising_loss(schedule, net, x0, t, eps, predicts="v", weight=losses.min_snr()),
            losses.denoising_loss(schedule, wide, x0, t, eps, learned_variance=True),
            losses.weighted_loss(schedule, net, x0, t, eps, predicts="x0"),
            losses.variational_loss(key, schedule, wide, x0, learned_variance=True, **options),
            losses.hybrid_loss(key, schedule, wide, x0, **options),
        ])  # fmt: skip

    size = int(np.prod(shape))
    flat = each(x0[:, :size].reshape(5, size), eps[:, :size].reshape(5, size))
    found = each(*(a[:, :size].reshape(5, *shape) for a in (x0, eps)))
    assert found.shape == (5, 5)
    np.testing.assert_allclose(found, flat, rtol=1e-5)


def test_a_batch_spread_over_devices_has_the_losses_of_one_device():
    schedule, (x0, _) = schedules.linear(1000), batch((4, 3), 16)
    call = functools.partial(all_losses, schedule)
    whole = np.asarray(jax.jit(call)(samplers.image_keys(0, range(16)), x0))
    for devices in (2, 8):
        keys = samplers.image_keys(0, range(16)).reshape(devices, -1)
        spread = jax.pmap(call, devices=jax.devices()[:devices])(keys, x0.reshape(devices, -1, 4, 3))
        np.testing.assert_allclose(np.concatenate(spread, 1), whole, rtol=1e-5, err_msg=f"{devices} devices")


def test_given_times_and_noise_replace_the_draws():
    schedule, (x0, eps), t = schedules.linear(1000), batch((3,), 4), np.array([1, 10, 500, 1000], np.int32)
    net = lambda x, t: 0.5 * x  # noqa: E731

    @jax.jit
    def found(key):
        fixed = losses.denoising_loss(schedule, net, x0, t, eps)
        simple = losses.simple_loss(key, schedule, net, x0, t=t, eps=eps)
        return (
            fixed,
            simple,
            losses.draw_times_and_noise(key, schedule, x0),
            losses.draw_times_and_noise(key, schedule, x0, t=t),
        )

    fixed, simple, (own_t, own_eps), (same_t, same_eps) = to_numpy(found(from_seed(0)))
    np.testing.assert_array_equal(simple, fixed)
    np.testing.assert_array_equal(same_eps, own_eps)
    np.testing.assert_array_equal(same_t, t)
    assert (own_t != t).any()


def test_drawn_times_are_uniform():
    schedule = schedules.linear(10)
    t = np.asarray(
        jax.jit(lambda key: losses.draw_times_and_noise(key, schedule, np.zeros((20_000, 1), "f4"))[0])(from_seed(0))
    )
    counts = np.bincount(t, minlength=11)
    assert counts[0] == 0 and counts.size == 11
    assert (abs(counts[1:] - 2000) < 4 * np.sqrt(20_000 * 0.1 * 0.9)).all()


# --- weightings


@functools.cache
def weighted():
    """{(predicts, weight): [T] losses at all times of one wrong denoiser, by what a network predicts}, in float64."""
    weights = {"none": None, **WEIGHTS, "snr >= 1": losses.truncated_snr(1.0)}
    weights |= {(gamma, k): losses.p2(gamma, k) for gamma, k in P2}
    t = np.arange(1, 1001, dtype=np.int32)
    with jax.enable_x64(True):
        schedule, (x0, eps) = schedules.linear(1000), batch((3,), 1000)

        @jax.jit
        def found():
            return {
                predicts: [
                    losses.denoising_loss(schedule, net, x0, t, eps, predicts=predicts, weight=weight)
                    for weight in weights.values()
                ]
                for predicts in PREDICTS
                for net in [ideal_net(schedule, predicts, ideal_denoiser(schedule, 0.0, 0.3))]
            }

        snr = np.exp(np.asarray(schedule.log_snr)[1:])
        each = {(p, w): loss for p, row in to_numpy(found()).items() for w, loss in zip(weights, row, strict=True)}
    return each, snr


P2 = ((1.0, 1.0), (0.5, 2.0), (0.0, 1.0))


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("predicts", ["eps", "v", "mean"])
def test_a_weight_means_the_same_for_every_prediction(weight, predicts):
    found, _ = weighted()
    np.testing.assert_allclose(found[predicts, weight], found["x0", weight], rtol=1e-7)


def test_weights_that_undo_a_prediction():
    found, snr = weighted()
    np.testing.assert_allclose(found["x0", "snr"], found["eps", "none"], rtol=1e-9)
    np.testing.assert_allclose(found["v", "snr_plus_one"], found["v", "none"], rtol=1e-9)
    for gamma, k in P2:
        np.testing.assert_allclose(found["eps", (gamma, k)], found["eps", "none"] * (k + snr) ** -gamma, rtol=1e-9)
    # on the noise: min(SNR, 5) / SNR is 1 in the later steps, from t = 132 or so
    ratio = found["eps", "min_snr"] / found["eps", "none"]
    assert np.allclose(ratio[snr < 5], 1) and (ratio[snr > 5] < 1).all() and 130 <= (snr > 5).sum() <= 132
    np.testing.assert_allclose(found["x0", "snr >= 1"][259:], found["x0", "none"][259:])


@pytest.mark.parametrize("schedule", ["linear", "no signal at T"])
def test_the_loss_in_a_space_is_the_squared_error_of_predictions_converted_to_it(schedule):
    """For networks that predict any quantity; without signal at T, for those that have an x_0 there."""
    with jax.enable_x64(True):
        table = schedules.linear(1000)
        table, kinds = (table, PREDICTS) if schedule == "linear" else (schedules.zero_terminal_snr(table), ["x0", "v"])
        t = np.array([1, 2, 50, 300, 700, 999, 1000])
        x0, eps = batch((3,), len(t))

        @functools.partial(jax.jit, static_argnums=(0, 1))
        def both(predicts, space):
            net = lambda x, t: 0.7 * x + 0.1  # noqa: E731
            x_t = gaussian.q_sample(table, x0, t, eps)
            found = gaussian.estimate(table, predicts, net(x_t, t), x_t, t)
            converted = gaussian.target(table, space, found.x0, found.eps, t)
            error = ((converted - gaussian.target(table, space, x0, eps, t)) ** 2).mean(1)
            weight = losses.space_weight(space)
            return losses.denoising_loss(table, net, x0, t, eps, predicts=predicts, weight=weight), error

        for predicts, space in itertools.product(kinds, ["eps", "x0", "v"]):
            loss, error = to_numpy(both(predicts, space))
            np.testing.assert_allclose(loss, error, rtol=1e-7, atol=1e-20, err_msg=f"{predicts} in {space}")
            assert (loss > 0).sum() == len(t) - (schedule != "linear" and space == "eps")


def test_weights_are_finite_at_both_ends():
    found = jax.jit(lambda log_snr: [weight(log_snr) for weight in WEIGHTS.values()])
    for log_snr in (np.float32(9.2), np.float32(-20.0), -np.float32(np.inf)):
        assert np.isfinite(found(log_snr)).all(), log_snr


@pytest.mark.parametrize("weight", [losses.snr, losses.min_snr(), losses.p2(), losses.truncated_snr()])
def test_a_weighted_loss_of_the_noise_without_signal_is_the_limit_of_one_with_little(weight):
    x0, eps = (a.astype(np.float32) for a in batch((3,), 1))
    none = schedules.jsd(10)
    little = none._replace(log_snr=none.log_snr.at[10].set(-60.0))

    def loss(schedule):
        return losses.denoising_loss(schedule, lambda x, t: 0.7 * x, x0, np.array([10]), eps, weight=weight)

    expected = loss(little)
    np.testing.assert_allclose(loss(none), np.where(expected < 1e9, expected, np.inf), rtol=1e-5)


# --- the variational weight, DDPM equation 12


@functools.cache
def variational_weight():
    return jax.jit(losses.variational_weight)


def test_the_variational_weight_is_half_the_relative_fall_of_the_snr():
    with jax.enable_x64(True):
        schedule = schedules.linear(1000)
        found = np.asarray(variational_weight()(schedule, np.arange(1, 1001), 0.0))
    betas = np.linspace(1e-4, 0.02, 1000)
    alpha_bar = np.cumprod(1 - betas)
    snr = alpha_bar / (1 - alpha_bar)
    np.testing.assert_allclose(found[1:], 0.5 * (snr[:-1] / snr[1:] - 1), rtol=1e-11)
    assert found[0] == np.inf
    known = {2: 0.5997, 10: 0.0864, 50: 0.0193, 100: 0.01027, 250: 0.00537, 500: 0.00551, 1000: 0.01020}
    for t, value in known.items():
        assert found[t - 1] == pytest.approx(value, abs=6e-5 if t < 100 else 6e-6)
    later = found[1:]
    assert abs(np.argmin(later) + 2 - 350) < 20 and later.max() / later.min() == pytest.approx(120, rel=0.05)
    assert later[:9].sum() / later.sum() == pytest.approx(0.18, abs=0.01)
    assert later[:49].sum() / later.sum() == pytest.approx(0.32, abs=0.01)


def test_the_variational_weight_is_finite_at_the_first_step_for_beta_alone():
    schedule = schedules.linear(1000)
    # 1 / (2 beta_1) beta_1^2 / (beta_1 (1 - beta_1)) = 1 / (2 (1 - beta_1))
    large, small, between = (np.asarray(variational_weight()(schedule, 1, mix)).item() for mix in (1.0, 0.0, 0.5))
    assert large == pytest.approx(0.5 / 0.9999, rel=1e-5) and [small, between] == [np.inf, np.inf]
    assert jax.eval_shape(losses.variational_weight, schedule, 7).shape in ((), (1,))


def test_the_weighted_loss_is_the_networks_part_of_the_divergence():
    with jax.enable_x64(True):
        schedule, t, (x0, eps) = schedules.linear(1000), np.arange(2, 1001, dtype=np.int32), batch((3,), 999)
        denoise = ideal_denoiser(schedule, 0.0, 0.3)

        @jax.jit
        def both(mix):
            x_t = gaussian.q_sample(schedule, x0, t, eps)
            law = gaussian.posterior(schedule, x0, x_t, t, t - 1)
            mean = gaussian.posterior(schedule, denoise(x_t, t).x0, x_t, t, t - 1).mean
            var = gaussian.reverse_variance(schedule, t, t - 1, x0, mix)
            part = gaussian.kl(law, Gaussian(mean, var)) - gaussian.kl(law, Gaussian(law.mean, var))
            nets = {predicts: ideal_net(schedule, predicts, denoise) for predicts in PREDICTS}
            return part.mean(1), {
                predicts: losses.weighted_loss(schedule, net, x0, t, eps, predicts=predicts, variance_mix=mix)
                for predicts, net in nets.items()
            }

        for mix in (0.0, 0.5, 1.0):
            part, found = to_numpy(both(mix))
            for predicts, loss in found.items():
                np.testing.assert_allclose(loss, part, rtol=1e-6, err_msg=f"{predicts}, mix {mix}")


# --- the bound as a loss


@pytest.mark.parametrize("learned", [False, True], ids=["fixed", "learned"])
def test_the_variational_loss_averages_to_the_bound(learned):
    # N(0.2, 0.5^2), 50 steps with the known bound 2.719203 or 0.755722, less L_T; learned, beta_1 in the last step
    T, each, dims = 50, 64, 256
    schedule, x0, t = (
        schedules.linear(T, 2e-3, 0.4),
        gaussian_samples(T * each, dims),
        np.tile(np.arange(1, T + 1), each),
    )

    @jax.jit
    def loss(key, mix):
        net = ideal_net(schedule, "v", ideal_denoiser(schedule), mix if learned else None)
        options = {"predicts": "v", "decoder": likelihood.gaussian_density, "learned_variance": learned, "t": t}
        return losses.variational_loss(key, schedule, net, x0, variance_mix=0.7 if learned else mix, **options)

    for mix in (0.0, 1.0):
        found = np.asarray(loss(from_seed(0), np.float32(mix)), np.float64).reshape(each, T).mean(1)
        alpha_bar = np.asarray(schedule.signal, np.float64)[-1] ** 2
        known = {0.0: 2.719203, 1.0: 0.755722}[mix]
        known -= 0.5 * (alpha_bar * (0.2**2 + 0.5**2) - alpha_bar - np.log(1 - alpha_bar))
        if learned and mix == 1.0:
            error = 0.25 * 2e-3 / (0.25 * 0.998 + 2e-3)
            small = likelihood.decoder_variance(schedule).item()
            known += 0.5 * (np.log(2e-3 / small) + error / 2e-3 - error / small)
        assert abs(found.mean() - known) < 4 * found.std(ddof=1) / np.sqrt(each), mix


def test_the_hybrid_loss_teaches_the_mean_by_the_simple_loss_and_the_variance_by_the_bound():
    schedule, (x0, eps), t = schedules.linear(1000), batch((4, 3), 6), np.array([1, 2, 10, 100, 500, 1000], np.int32)

    @jax.jit
    def found(params, key):
        def net(p):
            return lambda x, t: jnp.concatenate([p["mean"] * x, p["variance"] * jnp.tanh(x)], -1)

        drawn = {"t": t, "eps": eps}

        def hybrid(p):
            return losses.hybrid_loss(key, schedule, net(p), x0, vlb_scale=0.25, **drawn)

        def variational(p):
            return losses.variational_loss(key, schedule, net(p), x0, learned_variance=True, **drawn)

        def simple(p):
            return losses.simple_loss(key, schedule, lambda x, t: p["mean"] * x, x0, **drawn)

        parts = losses.denoising_loss(schedule, net(params), x0, t, eps, learned_variance=True)
        gradients = [jax.grad(lambda p, loss=loss: loss(p).sum())(params) for loss in (hybrid, variational, simple)]
        return *gradients, hybrid(params), parts + 0.25 * variational(params)

    params = {"mean": np.float32(0.3), "variance": np.float32(0.2)}
    hybrid, variational, simple, whole, parts = to_numpy(found(params, from_seed(0)))
    np.testing.assert_allclose(hybrid["mean"], simple["mean"], rtol=1e-6)
    assert variational["mean"] != 0 and abs(variational["mean"]) > 1e-3 * abs(simple["mean"])
    np.testing.assert_allclose(hybrid["variance"], 0.25 * variational["variance"], rtol=1e-5)
    assert hybrid["variance"] != 0
    np.testing.assert_allclose(whole, parts, rtol=1e-5)


def test_no_derivative_is_nan_at_either_end():
    schedule, (x0, eps), t = schedules.linear(1000), batch((3,), 3), np.array([1, 2, 1000], np.int32)

    def total(w, key):
        """Each kind of network has a row of its own, so that the derivative says which one is wrong."""
        parts = []
        for predicts, (a, b, c) in zip(PREDICTS, w, strict=True):
            net, wide = lambda x, t, a=a: a * x, lambda x, t, a=a, b=b, c=c: jnp.concatenate([a * x, b + c * x], -1)
            kwargs = {"predicts": predicts, "t": t, "eps": eps}
            parts += [losses.simple_loss(key, schedule, net, x0, weight=w, **kwargs) for w in (None, *WEIGHTS.values())]
            parts += [losses.weighted_loss(schedule, net, x0, t, eps, predicts=predicts, variance_mix=1.0)]
            # the decoder's derivatives, which do not know what is predicted, are long to compile
            kwargs["decoder"] = likelihood.decoder_8bit if predicts == "eps" else likelihood.gaussian_density
            parts += [losses.variational_loss(key, schedule, net, x0, variance_mix=0.5, **kwargs)]
            parts += [losses.variational_loss(key, schedule, wide, x0, learned_variance=True, **kwargs)]
            parts += [losses.hybrid_loss(key, schedule, wide, x0, weight=losses.min_snr(), **kwargs)]
        return jnp.stack(parts).sum(), jnp.stack(parts)

    value_and_grad = jax.jit(jax.value_and_grad(total, has_aux=True))
    for w in ([0.0, 0.0, 0.0], [0.3, -1.0, 0.0], [1.0, 1.0, 0.5], [-2.0, 0.0, 1.0]):
        (_, parts), gradients = value_and_grad(np.tile(np.float32(w), (4, 1)), from_seed(0))
        assert np.isfinite(parts).all(), w
        for predicts, gradient in zip(PREDICTS, gradients, strict=True):
            assert np.isfinite(gradient).all(), (predicts, w)


def test_a_last_step_without_signal_has_finite_losses():
    schedule, (x0, eps), t = schedules.jsd(50), batch((3,), 2), np.array([50, 50], np.int32)
    cases = [(predicts, name) for predicts in ("x0", "v") for name in ("none", *WEIGHTS)]

    def each(ws):
        return jnp.stack([
            losses.denoising_loss(
                schedule, lambda x, t: w * x, x0, t, eps, predicts=predicts, weight=WEIGHTS.get(name)
            ).sum()
            for (predicts, name), w in zip(cases, ws, strict=True)
        ])  # fmt: skip

    ws = np.full(len(cases), 0.3, np.float32)
    value, gradient = to_numpy(jax.jit(lambda ws: (each(ws), jax.grad(lambda ws: each(ws).sum())(ws)))(ws))
    wrong = [case for case, a, b in zip(cases, value, gradient, strict=True) if not np.isfinite([a, b]).all()]
    assert not wrong


# --- times


def test_stratified_times_cover_the_steps_evenly():
    seeds = jax.random.split(from_seed(0), 20)
    for T, size in ((1000, 64), (1000, 1000), (10, 64), (7, 3)):
        # of each seed, for the whole batch and, if there are as many as that, for the parts of 8 devices
        draw = jax.jit(jax.vmap(losses.stratified_times, in_axes=(0, None, None, None)), static_argnums=(1, 3))
        times = np.asarray(draw(seeds, T, np.arange(size), size))
        assert times.min() >= 1 and times.max() <= T and len(np.unique(times[:, 0])) > 1, (T, size)
        for t in times:
            # any stretch of steps holds its share of the batch, give or take one at each end
            inside = np.cumsum(np.bincount(t, minlength=T + 1))[1:]
            assert abs(inside - np.arange(1, T + 1) * size / T).max() < 2, (T, size)
        if size == 64:
            parts = [draw(seeds, T, part, size) for part in np.arange(size).reshape(8, -1)]
            np.testing.assert_array_equal(np.concatenate(parts, 1), times, err_msg=f"{T}, {size}")


def test_each_stratified_time_is_uniform():
    keys = jax.random.split(from_seed(0), 20_000)
    t = np.asarray(jax.jit(jax.vmap(lambda key: losses.stratified_times(key, 10, jnp.arange(4), 4)))(keys))
    for index in range(4):
        counts = np.bincount(t[:, index], minlength=11)[1:]
        assert (abs(counts - 2000) < 4 * np.sqrt(20_000 * 0.1 * 0.9)).all()


def test_stratified_times_take_the_noise_out_of_a_batchs_loss():
    schedule, x0 = schedules.linear(1000), gaussian_samples(64, 64)
    net = ideal_net(schedule, "eps", ideal_denoiser(schedule))

    def means(key):
        t = losses.stratified_times(jax.random.fold_in(key, 1), 1000, jnp.arange(64), 64)
        simple = losses.simple_loss(key, schedule, net, x0).mean()
        return simple, losses.simple_loss(key, schedule, net, x0, t=t).mean()

    simple, even = map(np.asarray, jax.jit(jax.vmap(means))(jax.random.split(from_seed(0), 200)))
    assert even.std() < 0.5 * simple.std()
    assert abs(even.mean() - simple.mean()) < 4 * simple.std() / np.sqrt(200)


# --- importance sampling


@functools.cache
def record():
    return jax.jit(losses.record_losses)


@functools.cache
def importance():
    return jax.jit(losses.importance_probabilities)


def test_importance_is_uniform_until_every_time_has_been_seen_often_enough():
    history = losses.empty_loss_history(4, 2)
    np.testing.assert_allclose(importance()(history), 0.25)
    history = record()(history, np.array([1, 2, 3, 4, 1, 2, 3]), np.arange(7, dtype=np.float32) + 1)
    np.testing.assert_allclose(importance()(history), 0.25)
    history = record()(history, np.array([4]), np.array([8.0], np.float32))
    p = np.asarray(importance()(history, 0.0), np.float64)
    rms = np.sqrt([(1 + 25) / 2, (4 + 36) / 2, (9 + 49) / 2, (16 + 64) / 2])
    np.testing.assert_allclose(p, rms / rms.sum(), rtol=1e-6)
    mixed = np.asarray(importance()(history, 0.1))
    np.testing.assert_allclose(mixed, 0.9 * p + 0.1 / 4, rtol=1e-6)


def test_a_history_holds_the_latest_losses_of_each_time():
    rng, T, length = np.random.default_rng(0), 5, 3
    history, recorded = losses.empty_loss_history(T, length), {t: [] for t in range(1, T + 1)}
    for _ in range(6):
        t, loss = rng.integers(1, T + 1, 8), rng.uniform(size=8).astype(np.float32)
        history = to_numpy(record()(history, t, loss))
        for a, b in zip(t, loss, strict=True):
            recorded[int(a)].append(b)
        for t, recorded_losses in recorded.items():
            assert history.counts[t - 1] == min(len(recorded_losses), length)
            latest = recorded_losses[-length:]
            np.testing.assert_array_equal(history.losses[t - 1][: len(latest)], np.array(latest, np.float32))


def test_importance_leaves_the_mean_and_lowers_the_variance():
    means = np.array([8.0, 3.0, 1.0, 0.5, 0.1])
    history = losses.empty_loss_history(5, 1)
    history = record()(history, np.arange(1, 6), means.astype(np.float32))
    p = np.asarray(importance()(history), np.float64)
    weighted = means / (5 * p)
    assert p.sum() == pytest.approx(1, rel=1e-6) and (p * weighted).sum() == pytest.approx(means.mean(), rel=1e-12)
    assert (p * weighted**2).sum() - means.mean() ** 2 < 0.01 * means.var()
    dark = losses.LossHistory(np.zeros((5, 1), np.float32), np.ones(5, np.int32))
    assert np.isfinite(importance()(dark)).all()


# --- errors

S10, X, T3 = schedules.linear(10), np.zeros((3, 2), np.float32), np.array([1, 2, 3], np.int32)


def same(x, t):
    return x


def loss(x0=X, t=T3, eps=X, **options):
    return losses.denoising_loss(S10, same, x0, t, eps, **options)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: loss(eps=X[:2]), "eps must have the shape of x0, (3, 2), got (2, 2)"),
        (lambda: loss(t=T3[:2]), "times must be integers of shape () or (3,), got int32 (2,)"),
        (
            lambda: loss(t=jnp.asarray(T3 / 2, jnp.float32)),
            "times must be integers of shape () or (3,), got float32 (3,)",
        ),
        (
            lambda: loss(t=np.array([0, 1, 2])),
            "t must lie in 1..10 (steps count from 1",
        ),
        (lambda: loss(X.astype(np.uint8)), "x0 must be float32 or float64, got uint8: scale images to [-1, 1] first"),
        (lambda: loss(predicts="score"), "predicts must be one of 'eps', 'x0', 'v', 'mean', got 'score'"),
        (
            lambda: loss(learned_variance=True),
            "a learned variance doubles channels: the network must return (3, 4)",
        ),
        (
            lambda: losses.hybrid_loss(from_seed(0), S10, same, X),
            "a learned variance doubles channels: the network must return (3, 4), got (3, 2)",
        ),
        (
            lambda: losses.simple_loss(from_seed(0), S10, same, X.astype(jnp.bfloat16)),
            "x0 must be float32 or float64, got bfloat16: cast it up first",
        ),
        (
            lambda: losses.simple_loss(jax.random.PRNGKey(0), S10, same, X),
            "keys must be typed (jax.random.key), got uint32",
        ),
        (
            lambda: losses.variational_loss(samplers.image_keys(0, range(2)), S10, same, X),
            "keys must be one key or one per example, [] or (3,), got (2,)",
        ),
        (
            lambda: losses.variational_loss(from_seed(0), S10, same, X, predicts="x"),
            "predicts must be one of 'eps', 'x0', 'v', 'mean', got 'x'",
        ),
    ],
)
def test_errors_name_the_value(call, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        call()
