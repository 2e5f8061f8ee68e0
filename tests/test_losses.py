"""Losses where their value is known, weightings against each other, and what an example's loss may depend on."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import gaussian, likelihood, losses, samplers, schedules
from ddpm_jax.gaussian import Estimate, Gaussian

SHAPES = [(5,), (4, 3), (4, 2, 3), (2, 3, 2, 2)]
PREDICTS = ["eps", "x0", "v", "mean"]
WEIGHTS = {
    "min_snr": losses.min_snr(5.0),
    "truncated_snr": losses.truncated_snr(),
    "snr": losses.snr,
    "snr_plus_one": losses.snr_plus_one,
    "p2": losses.p2(),
}
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))


def ideal(schedule, mean=0.2, std=0.5):
    """E[x_0 | x_t] for data N(mean, std^2)."""

    def denoise(x_t, t):
        signal, noise = schedules.at(schedule.signal, t, x_t), schedules.at(schedule.noise, t, x_t)
        x0 = mean + std**2 * signal / (signal**2 * std**2 + noise**2) * (x_t - signal * mean)
        return Estimate(x0, (x_t - signal * x0) / noise)

    return denoise


def saying(schedule, predicts, denoise, mix=None):
    """The network that predicts `predicts` and means what `denoise` says."""

    def net(x_t, t):
        found = denoise(x_t, t)
        out = gaussian.target(schedule, predicts, found.x0, found.eps, t)
        return out if mix is None else jnp.concatenate([out, jnp.full_like(out, 2 * mix - 1)], -1)

    return net


def rows(n, dims, seed=0):
    return jnp.asarray(0.2 + 0.5 * np.random.default_rng(seed).standard_normal((n, dims)))


def batch(shape, n, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.uniform(-1, 1, (n, *shape))), jnp.asarray(rng.standard_normal((n, *shape)))


# --- L_simple


@pytest.mark.parametrize("T", [10, 1000])
def test_the_simple_loss_of_the_ideal_network_is_what_cannot_be_known(T):
    # Var(eps | x_t) = SNR s^2 / (1 + SNR s^2), averaged over t
    schedule = schedules.linear(T)
    snr = np.exp(np.asarray(schedule.log_snr, np.float64)[1:])
    expected = (0.25 * snr / (0.25 * snr + 1)).mean()
    net = saying(schedule, "eps", ideal(schedule))
    found = np.asarray(jax.jit(lambda key: losses.simple_loss(key, schedule, net, rows(8192, 16)))(jax.random.key(0)))
    assert abs(found.mean() - expected) < 4 * found.std() / np.sqrt(found.size)


def test_a_network_that_says_nothing_has_the_noise_as_its_loss():
    found = losses.simple_loss(jax.random.key(1), schedules.linear(), lambda x, t: 0 * x, rows(2048, 16))
    assert abs(found.mean() - 1) < 4 * np.sqrt(2 / (2048 * 16))


def simple_losses(schedule, key, x0):
    net = lambda x, t: 0.5 * x  # noqa: E731
    weighted = losses.simple_loss(key, schedule, net, x0, predicts="v", weight=losses.min_snr())
    return losses.simple_loss(key, schedule, net, x0), weighted


def all_losses(schedule, key, x0):
    net, wide = lambda x, t: 0.5 * x, lambda x, t: jnp.concatenate([0.5 * x, 0.1 * x], -1)
    return (
        *simple_losses(schedule, key, x0),
        losses.variational_loss(key, schedule, net, x0, predicts="x0"),
        losses.variational_loss(key, schedule, wide, x0, learned_variance=True),
        losses.hybrid_loss(key, schedule, wide, x0),
    )


@every_shape
def test_the_loss_of_an_example_depends_on_its_key_alone(shape):
    schedule = schedules.linear(1000)
    x0 = batch(shape, 16)[0]
    several = all_losses if shape == SHAPES[1] else simple_losses
    call = jax.jit(lambda key, x0: jnp.stack(several(schedule, key, x0)))
    whole = np.asarray(call(samplers.image_keys(0, range(16)), x0))
    np.testing.assert_array_equal(call(jax.random.key(0), x0), whole)
    order = np.random.default_rng(0).permutation(16)
    np.testing.assert_array_equal(call(samplers.image_keys(0, order), x0[order]), whole[:, order])
    halves = [call(samplers.image_keys(0, range(i, i + 8)), x0[i : i + 8]) for i in (0, 8)]
    np.testing.assert_allclose(np.concatenate(halves, 1), whole, rtol=1e-5)
    assert len(np.unique(whole)) == whole.size


def test_a_batch_spread_over_devices_has_the_losses_of_one_device():
    schedule, x0 = schedules.linear(1000), batch((4, 3), 16)[0]
    call = lambda keys, x0: jnp.stack(all_losses(schedule, keys, x0), -1)  # noqa: E731
    whole = jax.jit(call)(samplers.image_keys(0, range(16)), x0)
    for devices in (2, 8):
        keys = samplers.image_keys(0, range(16)).reshape(devices, -1)
        spread = jax.pmap(call, devices=jax.devices()[:devices])(keys, x0.reshape(devices, -1, 4, 3))
        np.testing.assert_allclose(np.asarray(spread).reshape(16, -1), whole, rtol=1e-5)


def test_given_times_and_noise_replace_the_draws():
    schedule, (x0, eps) = schedules.linear(1000), batch((3,), 4)
    t = jnp.array([1, 10, 500, 1000])
    net = lambda x, t: 0.5 * x  # noqa: E731
    fixed = losses.denoising_loss(schedule, net, x0, t, eps)
    np.testing.assert_array_equal(losses.simple_loss(jax.random.key(0), schedule, net, x0, t=t, eps=eps), fixed)
    own_eps = losses.draw(jax.random.key(0), schedule, x0)[1]
    np.testing.assert_array_equal(losses.draw(jax.random.key(0), schedule, x0, t=t)[1], own_eps)


def test_drawn_times_are_uniform():
    t = np.asarray(losses.draw(jax.random.key(0), schedules.linear(10), jnp.zeros((20_000, 1)))[0])
    counts = np.bincount(t, minlength=11)
    assert counts[0] == 0 and counts.size == 11
    assert (abs(counts[1:] - 2000) < 4 * np.sqrt(20_000 * 0.1 * 0.9)).all()


# --- weightings


def weighted(schedule, predicts, weight, t):
    """[T] losses at all times of one wrong denoiser, said in the terms of `predicts`."""
    x0, eps = batch((3,), len(t))
    net = saying(schedule, predicts, ideal(schedule, 0.0, 0.3))
    return np.asarray(losses.denoising_loss(schedule, net, x0, t, eps, predicts=predicts, weight=weight))


@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("predicts", ["eps", "v", "mean"])
def test_a_weight_means_the_same_for_every_prediction(weight, predicts):
    with jax.enable_x64(True):
        schedule, t = schedules.linear(1000), jnp.arange(1, 1001)
        found = weighted(schedule, predicts, weight, t)
        np.testing.assert_allclose(found, weighted(schedule, "x0", weight, t), rtol=1e-7)


def test_weights_that_undo_a_prediction():
    with jax.enable_x64(True):
        schedule, t = schedules.linear(1000), jnp.arange(1, 1001)
        plain = {predicts: weighted(schedule, predicts, None, t) for predicts in PREDICTS}
        snr = np.exp(np.asarray(schedule.log_snr)[1:])
        np.testing.assert_allclose(weighted(schedule, "x0", losses.snr, t), plain["eps"], rtol=1e-9)
        np.testing.assert_allclose(weighted(schedule, "v", losses.snr_plus_one, t), plain["v"], rtol=1e-9)
        for gamma, k in ((1.0, 1.0), (0.5, 2.0), (0.0, 1.0)):
            expected = plain["eps"] * (k + snr) ** -gamma
            np.testing.assert_allclose(weighted(schedule, "eps", losses.p2(gamma, k), t), expected, rtol=1e-9)
        # on the noise: min(SNR, 5) / SNR is 1 in the later steps, from t = 132 or so
        ratio = weighted(schedule, "eps", losses.min_snr(5.0), t) / plain["eps"]
        assert np.allclose(ratio[snr < 5], 1) and (ratio[snr > 5] < 1).all() and 130 <= (snr > 5).sum() <= 132
        np.testing.assert_allclose(weighted(schedule, "x0", losses.truncated_snr(1.0), t)[259:], plain["x0"][259:])


def test_weights_are_finite_at_both_ends():
    for log_snr in (np.float32(9.2), np.float32(-20.0), -np.float32(np.inf)):
        for weight in WEIGHTS.values():
            assert np.isfinite(weight(jnp.asarray(log_snr)))


# --- the variational weight, DDPM equation 12


def test_the_variational_weight_is_half_the_relative_fall_of_the_snr():
    with jax.enable_x64(True):
        schedule = schedules.linear(1000)
        found = np.asarray(losses.variational_weight(schedule, jnp.arange(1, 1001), 0.0))
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
    assert losses.variational_weight(schedule, 1, 1.0).item() == pytest.approx(0.5 / 0.9999, rel=1e-5)
    assert [losses.variational_weight(schedule, 1, mix).item() for mix in (0.0, 0.5)] == [np.inf, np.inf]
    assert losses.variational_weight(schedule, 7).shape in ((), (1,))


@pytest.mark.parametrize("mix", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("predicts", PREDICTS)
def test_the_weighted_loss_is_the_networks_part_of_the_divergence(mix, predicts):
    with jax.enable_x64(True):
        schedule, t = schedules.linear(1000), jnp.arange(2, 1001)
        x0, eps = batch((3,), 999)
        denoise = ideal(schedule, 0.0, 0.3)
        x_t = gaussian.q_sample(schedule, x0, t, eps)
        law = gaussian.posterior(schedule, x0, x_t, t, t - 1)
        mean = gaussian.posterior(schedule, denoise(x_t, t).x0, x_t, t, t - 1).mean
        var = gaussian.reverse_variance(schedule, t, t - 1, x0, mix)
        part = gaussian.kl(law, Gaussian(mean, var)) - gaussian.kl(law, Gaussian(law.mean, var))
        net = saying(schedule, predicts, denoise)
        found = losses.weighted_loss(schedule, net, x0, t, eps, predicts=predicts, mix=mix)
        np.testing.assert_allclose(found, part.mean(1), rtol=1e-6)


# --- the bound as a loss


@pytest.mark.parametrize("learned", [False, True], ids=["fixed", "learned"])
@pytest.mark.parametrize("mix", [0.0, 1.0])
def test_the_variational_loss_averages_to_the_bound(mix, learned):
    # N(0.2, 0.5^2), 50 steps with the known bound 2.719203 or 0.755722, less L_T; learned, beta_1 in the last step
    T, each, dims = 50, 64, 512
    schedule = schedules.linear(T, 2e-3, 0.4)
    x0, t = rows(T * each, dims), jnp.tile(jnp.arange(1, T + 1), each)
    net = saying(schedule, "v", ideal(schedule), mix if learned else None)
    options = {"predicts": "v", "decoder": likelihood.density, "learned_variance": learned, "t": t}
    found = losses.variational_loss(jax.random.key(0), schedule, net, x0, mix=0.7 if learned else mix, **options)
    found = np.asarray(found, np.float64).reshape(each, T).mean(1)
    alpha_bar = np.asarray(schedule.signal, np.float64)[-1] ** 2
    known = {0.0: 2.719203, 1.0: 0.755722}[mix]
    known -= 0.5 * (alpha_bar * (0.2**2 + 0.5**2) - alpha_bar - np.log(1 - alpha_bar))
    if learned and mix == 1.0:
        error = 0.25 * 2e-3 / (0.25 * 0.998 + 2e-3)
        small = likelihood.decoder_variance(schedule).item()
        known += 0.5 * (np.log(2e-3 / small) + error / 2e-3 - error / small)
    assert abs(found.mean() - known) < 4 * found.std(ddof=1) / np.sqrt(each)


def test_the_hybrid_loss_teaches_the_mean_by_the_simple_loss_and_the_variance_by_the_bound():
    schedule, (x0, eps) = schedules.linear(1000), batch((4, 3), 6)
    t = jnp.array([1, 2, 10, 100, 500, 1000])

    def net(params):
        return lambda x, t: jnp.concatenate([params["mean"] * x, params["variance"] * jnp.tanh(x)], -1)

    params = {"mean": jnp.float32(0.3), "variance": jnp.float32(0.2)}
    key, given = jax.random.key(0), {"t": t, "eps": eps}
    hybrid = jax.grad(lambda p: losses.hybrid_loss(key, schedule, net(p), x0, vlb_scale=0.25, **given).sum())(params)
    options = {"learned_variance": True, **given}
    bound = jax.grad(lambda p: losses.variational_loss(key, schedule, net(p), x0, **options).sum())(params)
    simple = jax.grad(lambda p: losses.simple_loss(key, schedule, lambda x, t: p["mean"] * x, x0, **given).sum())(
        params
    )
    assert hybrid["mean"] == simple["mean"] and bound["mean"] != 0
    np.testing.assert_allclose(hybrid["variance"], 0.25 * bound["variance"], rtol=1e-5)
    assert hybrid["variance"] != 0
    whole = losses.hybrid_loss(key, schedule, net(params), x0, vlb_scale=0.25, **given)
    parts = losses.denoising_loss(schedule, net(params), x0, t, eps, learned_variance=True)
    parts += 0.25 * losses.variational_loss(key, schedule, net(params), x0, **options)
    np.testing.assert_allclose(whole, parts, rtol=1e-5)


@pytest.mark.parametrize("predicts", PREDICTS)
def test_no_derivative_is_nan_at_either_end(predicts):
    schedule, (x0, eps) = schedules.linear(1000), batch((3,), 3)
    t, key = jnp.array([1, 2, 1000]), jax.random.key(0)

    def total(w):
        net, wide = lambda x, t: w[0] * x, lambda x, t: jnp.concatenate([w[0] * x, w[1] + w[2] * x], -1)
        given = {"predicts": predicts, "t": t, "eps": eps}
        parts = [losses.simple_loss(key, schedule, net, x0, weight=w, **given) for w in (None, *WEIGHTS.values())]
        parts += [losses.variational_loss(key, schedule, net, x0, mix=0.5, **given)]
        parts += [losses.variational_loss(key, schedule, wide, x0, learned_variance=True, **given)]
        parts += [losses.hybrid_loss(key, schedule, wide, x0, weight=losses.min_snr(), **given)]
        parts += [losses.weighted_loss(schedule, net, x0, t, eps, predicts=predicts, mix=1.0)]
        return jnp.stack(parts).sum()

    value_and_grad = jax.jit(jax.value_and_grad(total))
    for w in ([0.0, 0.0, 0.0], [0.3, -1.0, 0.0], [1.0, 1.0, 0.5], [-2.0, 0.0, 1.0]):
        value, grad = value_and_grad(jnp.array(w))
        assert np.isfinite(value) and np.isfinite(grad).all()


@pytest.mark.parametrize("predicts", ["x0", "v"])
def test_a_last_step_without_signal_has_finite_losses(predicts):
    schedule, (x0, eps) = schedules.jsd(50), batch((3,), 2)
    t = jnp.array([50, 50])
    for weight in (None, *WEIGHTS.values()):
        net = lambda w: lambda x, t: w * x  # noqa: E731
        loss = lambda w, weight=weight: losses.denoising_loss(  # noqa: E731
            schedule, net(w), x0, t, eps, predicts=predicts, weight=weight
        ).sum()
        assert np.isfinite(jax.value_and_grad(loss)(0.3)).all()


# --- times


@pytest.mark.parametrize(("T", "size"), [(1000, 64), (1000, 1000), (10, 64), (7, 3)])
def test_stratified_times_cover_the_steps_evenly(T, size):
    for seed in range(20):
        t = np.asarray(losses.stratified_times(jax.random.key(seed), T, jnp.arange(size), size))
        assert t.min() >= 1 and t.max() <= T
        # any stretch of steps holds its share of the batch, give or take one at each end
        inside = np.cumsum(np.bincount(t, minlength=T + 1))[1:]
        assert abs(inside - np.arange(1, T + 1) * size / T).max() < 2
        for devices in (2, 8):
            if size % devices == 0:
                parts = [
                    losses.stratified_times(jax.random.key(seed), T, part, size)
                    for part in jnp.arange(size).reshape(devices, -1)
                ]
                np.testing.assert_array_equal(np.concatenate(parts), t)


def test_each_stratified_time_is_uniform():
    keys = jax.random.split(jax.random.key(0), 20_000)
    t = np.asarray(jax.jit(jax.vmap(lambda key: losses.stratified_times(key, 10, jnp.arange(4), 4)))(keys))
    for place in range(4):
        counts = np.bincount(t[:, place], minlength=11)[1:]
        assert (abs(counts - 2000) < 4 * np.sqrt(20_000 * 0.1 * 0.9)).all()


def test_stratified_times_take_the_noise_out_of_a_batchs_loss():
    schedule, x0 = schedules.linear(1000), rows(64, 64)
    net = saying(schedule, "eps", ideal(schedule))

    def means(key):
        t = losses.stratified_times(jax.random.fold_in(key, 1), 1000, jnp.arange(64), 64)
        simple = losses.simple_loss(key, schedule, net, x0).mean()
        return simple, losses.simple_loss(key, schedule, net, x0, t=t).mean()

    simple, even = map(np.asarray, jax.jit(jax.vmap(means))(jax.random.split(jax.random.key(0), 200)))
    assert even.std() < 0.5 * simple.std()
    assert abs(even.mean() - simple.mean()) < 4 * simple.std() / np.sqrt(200)


# --- importance sampling


def test_importance_is_uniform_until_every_time_has_been_seen_often_enough():
    history = losses.loss_history(4, 2)
    np.testing.assert_allclose(losses.importance(history), 0.25)
    history = losses.record_losses(history, jnp.array([1, 2, 3, 4, 1, 2, 3]), jnp.arange(7.0) + 1)
    np.testing.assert_allclose(losses.importance(history), 0.25)
    history = losses.record_losses(history, jnp.array([4]), jnp.array([8.0]))
    p = np.asarray(losses.importance(history, 0.0), np.float64)
    rms = np.sqrt([(1 + 25) / 2, (4 + 36) / 2, (9 + 49) / 2, (16 + 64) / 2])
    np.testing.assert_allclose(p, rms / rms.sum(), rtol=1e-6)
    mixed = np.asarray(losses.importance(history, 0.1))
    np.testing.assert_allclose(mixed, 0.9 * p + 0.1 / 4, rtol=1e-6)


def test_a_history_holds_the_latest_losses_of_each_time():
    rng, T, length = np.random.default_rng(0), 5, 3
    history, told = losses.loss_history(T, length), {t: [] for t in range(1, T + 1)}
    record = jax.jit(losses.record_losses)
    for _ in range(6):
        t, loss = rng.integers(1, T + 1, 8), rng.uniform(size=8).astype(np.float32)
        history = record(history, jnp.asarray(t), jnp.asarray(loss))
        for a, b in zip(t, loss, strict=True):
            told[int(a)].append(b)
        for t, seen in told.items():
            assert history.seen[t - 1] == min(len(seen), length)
            kept = seen[-length:]
            np.testing.assert_array_equal(history.losses[t - 1][: len(kept)], np.array(kept, np.float32))


def test_importance_leaves_the_mean_and_lowers_the_variance():
    means = np.array([8.0, 3.0, 1.0, 0.5, 0.1])
    history = losses.loss_history(5, 1)
    history = losses.record_losses(history, jnp.arange(1, 6), jnp.asarray(means, jnp.float32))
    p = np.asarray(losses.importance(history), np.float64)
    weighted = means / (5 * p)
    assert p.sum() == pytest.approx(1, rel=1e-6) and (p * weighted).sum() == pytest.approx(means.mean(), rel=1e-12)
    assert (p * weighted**2).sum() - means.mean() ** 2 < 0.01 * means.var()
    dark = losses.record_losses(losses.loss_history(3, 1), jnp.arange(1, 4), jnp.zeros(3))
    assert np.isfinite(losses.importance(dark)).all()


# --- errors

S10, X, T3 = schedules.linear(10), jnp.zeros((3, 2)), jnp.array([1, 2, 3])


def same(x, t):
    return x


def loss(x0=X, t=T3, eps=X, **options):
    return losses.denoising_loss(S10, same, x0, t, eps, **options)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: loss(eps=X[:2]), "eps must have the shape of x0, (3, 2), got (2, 2)"),
        (lambda: loss(t=T3[:2]), "times must be integers of shape () or (3,), got int32 (2,)"),
        (lambda: loss(t=T3 / 2), "times must be integers of shape () or (3,), got float32 (3,)"),
        (
            lambda: loss(t=np.array([0, 1, 2])),
            "t must lie in 1..10 (steps are counted from 1",
        ),
        (lambda: loss(X.astype(jnp.uint8)), "x0 must be float32 or float64, got uint8: scale images to [-1, 1] first"),
        (lambda: loss(predicts="score"), "predicts must be one of 'eps', 'x0', 'v', 'mean', got 'score'"),
        (
            lambda: loss(learned_variance=True),
            "a learned variance doubles the last axis: the network must return (3, 4)",
        ),
        (
            lambda: losses.hybrid_loss(jax.random.key(0), S10, same, X),
            "a learned variance doubles the last axis: the network must return (3, 4), got (3, 2)",
        ),
        (
            lambda: losses.simple_loss(jax.random.key(0), S10, same, X.astype(jnp.bfloat16)),
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
            lambda: losses.variational_loss(jax.random.key(0), S10, same, X, predicts="x"),
            "predicts must be one of 'eps', 'x0', 'v', 'mean', got 'x'",
        ),
    ],
)
def test_errors_name_the_value(call, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        call()
