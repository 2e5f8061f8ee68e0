"""Samplers where the answer is known: Gaussian data; and what an image may depend on."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import data, gaussian, samplers, schedules
from ddpm_jax.gaussian import Estimate

SHAPES = [(8,), (4, 3), (4, 4, 2), (2, 3, 2, 2)]


def ideal(schedule, mean=0.2, std=0.5, mix=None):
    """E[x_0 | x_t] for data N(mean, std^2)."""

    def denoise(x_t, t):
        signal, noise = schedules.at(schedule.signal, t, x_t), schedules.at(schedule.noise, t, x_t)
        x0 = mean + std**2 * signal / (signal**2 * std**2 + noise**2) * (x_t - signal * mean)
        return Estimate(x0, (x_t - signal * x0) / noise, mix if mix is None else jnp.full_like(x_t, mix))

    return denoise


def none(keys, t, like):
    return jnp.zeros_like(like)


def push(make, chain):
    """Mean and variance at every time of the chain for x_T ~ N(0, 1): a step is affine in x and z, so three points."""
    sampler = make(lambda keys, t, like: jnp.array([[0.0], [0.0], [1.0]], like.dtype))
    keys = samplers.image_keys(0, range(3))
    step = jax.jit(lambda state, t, s: sampler.step(keys, state, t, s))
    mean, var, moments = 0.0, 1.0, [(0.0, 1.0)]
    for t, s in itertools.pairwise(chain):
        x = step(sampler.init(jnp.array([[0.0], [1.0], [0.0]]), t), t, s).x[:, 0]
        offset, slope, std = float(x[0]), float(x[1] - x[0]), float(x[2] - x[0])
        mean, var = offset + slope * mean, slope**2 * var + std**2
        moments.append((mean, var))
    return np.array(moments)


# --- moments


@pytest.mark.parametrize("spacing", ["uniform", "leading"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_of_a_point_has_the_forward_marginals(spacing, eta):
    # the family of equation 12 keeps q(x_t | x_0), for every eta
    with jax.enable_x64(True):
        schedule, chain, point = schedules.linear(1000), samplers.times(1000, 10, spacing=spacing), 0.4
        moments = push(lambda noise: samplers.ddim(schedule, ideal(schedule, point, 0.0), eta=eta, noise=noise), chain)
        signal, noise = np.asarray(schedule.signal)[chain], np.asarray(schedule.noise)[chain]
        # from N(0, 1) instead of q(x_T | x_0): what is left of the difference falls with each step
        started = point * signal[0], noise[0] ** 2
        close = max(abs(started[0]), abs(1 - started[1])) if spacing == "uniform" else 0.2
        np.testing.assert_allclose(moments[1:-1, 0], point * signal[1:-1], atol=close)
        np.testing.assert_allclose(moments[1:-1, 1], noise[1:-1] ** 2, atol=close)
        np.testing.assert_allclose(moments[-1], [point, 0], atol=1e-12)


def test_ancestral_of_a_point_and_of_noise_is_exact_at_its_two_ends():
    with jax.enable_x64(True):
        schedule, chain = schedules.cosine(1000), samplers.times(1000, 20)
        signal, noise = np.asarray(schedule.signal)[chain], np.asarray(schedule.noise)[chain]
        # beta-tilde is right when the data are a point, beta when they are standard normal
        point = push(lambda z: samplers.ancestral(schedule, ideal(schedule, 0.4, 0.0), mix=0.0, noise=z), chain)
        np.testing.assert_allclose(point[1:], np.stack([0.4 * signal, noise**2], 1)[1:], atol=1e-4)
        normal = push(lambda z: samplers.ancestral(schedule, ideal(schedule, 0.0, 1.0), mix=1.0, noise=z), chain)
        np.testing.assert_allclose(normal[:-1], np.stack([0 * signal, 0 * signal + 1], 1)[:-1], atol=1e-12)
        # the last step adds nothing: it is the mean of x_0
        assert normal[-1, 1] == pytest.approx(signal[-2] ** 2, abs=1e-12)


def recursion(schedule, chain, mean, std, kind, option):
    """Moments of the reverse chain from alpha-bars alone, by conditioning (x_s, x_t) on x_0."""
    alpha_bar = np.asarray(schedule.signal) ** 2
    m, v, out = 0.0, 1.0, [(0.0, 1.0)]
    for t, s in itertools.pairwise(chain):
        a, b = alpha_bar[t], alpha_bar[s]
        # x_0_hat = c + g x_t
        g = std**2 * np.sqrt(a) / (a * std**2 + 1 - a)
        c = mean * (1 - g * np.sqrt(a))
        small = (1 - b) * (1 - a / b) / (1 - a)
        if kind == "ancestral":
            spread = 0.0 if s == 0 else small ** (1 - option) * (1 - a / b) ** option
            on_x, on_x0 = np.sqrt(a / b) * (1 - b) / (1 - a), np.sqrt(b) * (1 - a / b) / (1 - a)
        else:
            spread = option**2 * small
            on_x = np.sqrt((1 - b - spread) / (1 - a))
            on_x0 = np.sqrt(b) - np.sqrt(a) * on_x
        slope = on_x + on_x0 * g
        m, v = slope * m + on_x0 * c, slope**2 * v + spread
        out.append((m, v))
    return np.array(out)


@pytest.mark.parametrize("steps", [5, 30])
@pytest.mark.parametrize("option", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("kind", "learned"), [("ancestral", False), ("ancestral", True), ("ddim", False)])
def test_moments_of_gaussian_data_follow_the_recursion(kind, option, steps, learned):
    chain = samplers.times(1000, steps)
    with jax.enable_x64(True):
        expected = recursion(schedules.linear(1000), chain, 0.2, 0.5, kind, option)
    schedule = schedules.linear(1000)
    if kind == "ddim":
        make = lambda noise: samplers.ddim(schedule, ideal(schedule), eta=option, noise=noise)  # noqa: E731
    else:
        denoise = ideal(schedule, mix=option if learned else None)
        make = lambda noise: samplers.ancestral(schedule, denoise, mix=0.3 if learned else option, noise=noise)  # noqa: E731
    found = push(make, chain)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("predicts", ["eps", "x0", "v", "mean"])
def test_samples_of_gaussian_data_have_its_moments_whatever_is_predicted(predicts):
    # 4096 images of 4 values; mix 0 and full grid, with the variance that the recursion gives
    T, n = 200, 4096
    schedule, chain = schedules.linear(T, 5e-4, 0.1), samplers.times(T, T)

    def net(x_t, t):
        found = ideal(schedule)(x_t, t)
        return gaussian.target(schedule, predicts, found.x0, found.eps, t)

    denoise = gaussian.denoiser(schedule, net, predicts, clip=False)
    keys = samplers.image_keys(0, range(n))
    draw = jax.jit(lambda x: samplers.sample(keys, samplers.ancestral(schedule, denoise, mix=0.0), x, chain))
    x = np.asarray(draw(samplers.initial_noise(keys, (4,))))
    with jax.enable_x64(True):
        mean, var = recursion(schedules.linear(T, 5e-4, 0.1), chain, 0.2, 0.5, "ancestral", 0.0)[-1]
    assert abs(x.mean() - mean) < 4 * np.sqrt(var / x.size)
    assert abs(x.var() - var) < 4 * var * np.sqrt(2 / x.size)
    assert abs(np.corrcoef(x.T)[np.triu_indices(4, 1)]).max() < 4 / np.sqrt(n)


# --- order


def test_ddim_is_a_first_order_solver_of_the_probability_flow():
    # for N(m, s^2) the flow is known: it carries quantiles along, x_t = signal m + sqrt(signal^2 s^2 + noise^2) u
    with jax.enable_x64(True):
        schedule = schedules.linear(1000)
        u = jnp.array([[-1.5], [0.3], [1.0]])
        signal, noise = schedule.signal[1000], schedule.noise[1000]
        x_T = signal * 0.2 + jnp.sqrt(signal**2 * 0.25 + noise**2) * u
        keys, sampler = samplers.image_keys(0, range(3)), samplers.ddim(schedule, ideal(schedule))
        errors = []
        for steps in (20, 40, 80, 160):
            x = samplers.sample(keys, sampler, x_T, samplers.times(1000, steps))
            errors.append(float(jnp.abs(x - (0.2 + 0.5 * u)).max()))
        orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert errors[0] < 0.2 and (abs(orders - 1) < 0.15).all(), (errors, orders)


def even_in_log_snr(schedule, steps, end):
    """Times from T to `end`, about even in log SNR: a smooth grid, as the order of a solver is defined on."""
    column = np.asarray(schedule.log_snr)
    grid = np.linspace(column[-1], column[end], steps + 1)
    return np.array([1 + np.abs(column[1:] - level).argmin() for level in grid], np.int32)


@pytest.mark.parametrize(("order", "least"), [(1, 0.9), (2, 1.85), (3, 2.8)])
def test_dpm_solver_pp_has_its_order(order, least):
    """From T to a hundredth of the noise, on 100,000 times, so that rounding to times does not show."""
    with jax.enable_x64(True):
        schedule, end = schedules.linear(100_000, 1e-6, 2e-4), 200
        u = jnp.array([[-1.5], [0.3], [1.0]])

        def quantiles(t):
            signal, noise = schedule.signal[t], schedule.noise[t]
            return signal * 0.2 + jnp.sqrt(signal**2 * 0.25 + noise**2) * u

        keys = samplers.image_keys(0, range(3))
        sampler = samplers.dpm_solver_pp(schedule, ideal(schedule), order=order)
        errors = []
        for steps in (20, 40, 80, 160):
            x = samplers.sample(keys, sampler, quantiles(100_000), even_in_log_snr(schedule, steps, end))
            errors.append(float(jnp.abs(x - quantiles(end)).max()))
        orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert (orders > least).all() and errors[0] < 0.2, (errors, orders)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("solver", [samplers.dpm_solver_pp, samplers.unipc])
def test_solvers_end_at_what_the_network_last_predicts(solver, order):
    """Down to the data, also in a single step and from pure noise, where SNR is 0 and h infinite."""
    betas = np.append(np.linspace(1e-4, 0.02, 99), 1.0)
    for schedule in (schedules.linear(100), schedules.from_betas(betas)):
        denoise = gaussian.denoiser(schedule, lambda x, t: 0.3 * jnp.sin(5 * x), "v")
        sampler = solver(schedule, denoise, order=order)
        keys, x_T = samplers.image_keys(0, range(2)), jnp.array([[0.5, -1.0], [2.0, 0.0]])
        for steps in (1, 2, 3, 10):
            last = samplers.trajectory(keys, sampler, x_T, samplers.times(100, steps), keep=[0])
            np.testing.assert_array_equal(last.x, last.x0)
            assert np.isfinite(last.x).all()


def test_dpm_solver_pp_of_order_1_is_ddim():
    with jax.enable_x64(True):
        schedule = schedules.linear(1000)
        denoise = gaussian.denoiser(schedule, lambda x, t: 0.5 * jnp.tanh(3 * x))
        keys, x_T = samplers.image_keys(0, range(2)), jnp.array([[0.5, -1.0], [2.0, 0.0]])
        one, two = (
            samplers.sample(keys, sampler, x_T, samplers.times(1000, 7))
            for sampler in (samplers.dpm_solver_pp(schedule, denoise, order=1), samplers.ddim(schedule, denoise))
        )
        np.testing.assert_allclose(one, two, rtol=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_first_predicts_as_ddim_does_and_corrects_nothing_where_the_prediction_came_true(order):
    with jax.enable_x64(True):
        schedule, keys = schedules.linear(1000), samplers.image_keys(0, range(2))
        x_T = jnp.array([[0.5, -1.0], [2.0, 0.0]])

        def images(solver, denoise, chain):
            return samplers.sample(keys, solver(schedule, denoise), x_T, np.array(chain))

        def unipc(schedule, denoise):
            return samplers.unipc(schedule, denoise, order=order)

        curved = gaussian.denoiser(schedule, lambda x, t: 0.5 * jnp.tanh(3 * x))
        first = [images(solver, curved, (1000, 600)) for solver in (unipc, samplers.ddim)]
        np.testing.assert_allclose(*first, rtol=1e-12)
        # data that are a single point: every x_0_hat is that point, and DDIM is exact
        point = gaussian.denoiser(schedule, lambda x, t: jnp.full_like(x, 0.3), "x0")
        whole = [images(solver, point, (1000, 700, 400, 200, 50)) for solver in (unipc, samplers.ddim)]
        np.testing.assert_allclose(*whole, rtol=1e-9)


@pytest.mark.parametrize("solver", [samplers.dpm_solver_pp, samplers.unipc])
def test_a_thousand_short_steps_lose_no_digits_in_float32(solver):
    schedule, x_T = schedules.linear(1000), np.random.default_rng(0).standard_normal((8, 3))

    def images(dtype):
        keys = samplers.image_keys(0, range(8))
        sampler = solver(schedule, ideal(schedule), order=3)
        return samplers.sample(keys, sampler, jnp.asarray(x_T, dtype), np.arange(1000, 0, -1))

    single = np.asarray(images(jnp.float32))
    with jax.enable_x64(True):
        np.testing.assert_allclose(single, images(jnp.float64), rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", [samplers.dpm_solver_pp, samplers.unipc])
def test_solvers_refuse_other_orders(solver):
    with pytest.raises(ValueError, match="order must be 1, 2 or 3, got 4"):
        solver(schedules.linear(10), lambda x, t: x, order=4)


def test_dpm_solver_pp_refuses_another_second_order():
    with pytest.raises(ValueError, match="second must be 'midpoint' or 'integral', got 'heun'"):
        samplers.dpm_solver_pp(schedules.linear(10), lambda x, t: x, second="heun")


def test_ddim_goes_back_to_the_noise_that_it_came_from():
    with jax.enable_x64(True):
        schedule = schedules.linear(1000)
        sampler, chain = samplers.ddim(schedule, ideal(schedule)), samplers.times(1000, 500)
        keys, x_T = samplers.image_keys(0, [0]), jnp.array([[-1.2, 0.4, 2.0]])
        state = sampler.init(x_T, 1000)
        x = samplers.sample(keys, sampler, x_T, chain[:-1])  # down to t = 1
        state = sampler.init(x, 1)
        step = jax.jit(lambda state, t, s: sampler.step(keys, state, t, s))
        for t, s in itertools.pairwise(chain[-2::-1]):
            state = step(state, t, s)
        np.testing.assert_allclose(state.x, x_T, atol=0.03)


# --- limits


@pytest.mark.parametrize(
    ("shape", "steps", "clip"),
    [((8,), 100, True), ((4, 3), 7, False), ((4, 4, 2), 100, False), ((2, 3, 2, 2), 7, True)],
)
def test_ddim_with_eta_1_is_ancestral_with_mix_0_path_by_path(shape, steps, clip):
    with jax.enable_x64(True):
        schedule, chain = schedules.linear(100, 1e-3, 0.2), samplers.times(100, steps)
        net = lambda x, t: 0.5 * jnp.tanh(3 * x)  # noqa: E731
        denoise = gaussian.denoiser(schedule, net, "x0" if clip else "v", clip=clip)
        keys = samplers.image_keys(3, range(2))
        x_T = samplers.initial_noise(keys, shape, jnp.float64)
        paths = [
            jax.jit(lambda x, sampler=sampler: samplers.trajectory(keys, sampler, x, chain, keep=chain))(x_T)
            for sampler in (samplers.ddim(schedule, denoise, eta=1.0), samplers.ancestral(schedule, denoise, mix=0.0))
        ]
        np.testing.assert_allclose(paths[0].x, paths[1].x, rtol=0, atol=1e-11)
        np.testing.assert_allclose(paths[0].x0, paths[1].x0, rtol=0, atol=1e-11)


def test_eta_0_is_deterministic_and_eta_1_is_not():
    schedule, chain = schedules.linear(100), samplers.times(100, 10)
    x_T = samplers.initial_noise(samplers.image_keys(0, range(3)), (4,))

    def run(seed, eta):
        return samplers.sample(
            samplers.image_keys(seed, range(3)), samplers.ddim(schedule, ideal(schedule), eta=eta), x_T, chain
        )

    np.testing.assert_array_equal(run(1, 0.0), run(2, 0.0))
    assert (run(1, 1.0) != run(2, 1.0)).all()
    np.testing.assert_array_equal(run(1, 1.0), run(1, 1.0))


@pytest.mark.parametrize("make", [samplers.ancestral, samplers.ddim], ids=lambda f: f.__name__)
@pytest.mark.parametrize("option", [0.0, 0.5, 1.0])
def test_the_last_step_gives_the_predicted_data_without_noise(make, option):
    schedule = schedules.linear(100)
    sampler = make(schedule, ideal(schedule), **{"mix" if make is samplers.ancestral else "eta": option})
    keys = samplers.image_keys(0, range(3))
    x_T = samplers.initial_noise(keys, (4,))
    for t in (1, 50, 100):
        x = samplers.sample(keys, sampler, x_T, np.array([t, 0]))
        np.testing.assert_allclose(x, ideal(schedule)(x_T, jnp.int32(t)).x0, rtol=1e-6)


@pytest.mark.parametrize("mix", [0.0, 0.5, 1.0, 1.3])
def test_a_learned_mix_takes_precedence(mix):
    schedule, chain = schedules.linear(100), samplers.times(100, 10)
    keys = samplers.image_keys(0, range(2))
    x_T = samplers.initial_noise(keys, (4,))
    learned = samplers.sample(keys, samplers.ancestral(schedule, ideal(schedule, mix=mix), mix=0.1), x_T, chain)
    fixed = samplers.sample(keys, samplers.ancestral(schedule, ideal(schedule), mix=mix), x_T, chain)
    np.testing.assert_allclose(learned, fixed, rtol=1e-6)
    assert np.isfinite(learned).all()


@pytest.mark.parametrize("make", [samplers.ancestral, samplers.ddim], ids=lambda f: f.__name__)
def test_a_start_without_signal(make):
    schedule, keys = schedules.jsd(50), samplers.image_keys(0, range(2))
    denoise = gaussian.denoiser(schedule, lambda x, t: 0.5 * x, "v")
    x_T = samplers.initial_noise(keys, (4,))
    assert np.isfinite(samplers.sample(keys, make(schedule, denoise), x_T, samplers.times(50, 10))).all()


# --- one image, one key


@pytest.mark.parametrize(
    ("make", "shape"), [*((samplers.ancestral, shape) for shape in SHAPES), (samplers.ddim, SHAPES[0])]
)
def test_an_image_depends_on_its_key_alone(make, shape):
    schedule, chain = schedules.linear(100), samplers.times(100, 5)
    option = {"mix": 0.5} if make is samplers.ancestral else {"eta": 0.5}
    sampler = make(schedule, gaussian.denoiser(schedule, lambda x, t: 0.5 * x, "v"), **option)

    def draw(keys):
        return samplers.sample(keys, sampler, samplers.initial_noise(keys, shape), chain)

    jitted = jax.jit(draw)
    whole = np.asarray(jitted(samplers.image_keys(7, range(16))))
    assert len(np.unique(whole.reshape(16, -1)[:, 0])) == 16
    shuffled = np.random.default_rng(0).permutation(16)
    np.testing.assert_array_equal(jitted(samplers.image_keys(7, shuffled)), whole[shuffled])
    for order in ([5], [3, 0, 15, 8]):
        # another size of batch is another program, whose last bits are its own; what is drawn is the same to the bit
        np.testing.assert_allclose(jitted(samplers.image_keys(7, order)), whole[order], rtol=0, atol=1e-6)
        for t in (0, 1, 57):
            noise = [
                samplers.step_noise(samplers.image_keys(7, i), jnp.int32(t), jnp.zeros((len(i), *shape)))
                for i in (order, range(16))
            ]
            np.testing.assert_array_equal(noise[0], noise[1][np.asarray(order)])


@pytest.mark.parametrize("make", [samplers.ancestral, samplers.ddim], ids=lambda f: f.__name__)
def test_an_image_is_the_same_on_any_number_of_devices(make):
    # tiles of one size, on as many devices as there are
    schedule, chain = schedules.linear(100), samplers.times(100, 5)
    sampler = make(schedule, gaussian.denoiser(schedule, lambda x, t: 0.5 * x, "v"))

    def draw(keys):
        return samplers.sample(keys, sampler, samplers.initial_noise(keys, (4, 3)), chain)

    images, noise = {}, {}
    for devices in (1, 2, 8):
        program = jax.pmap(draw, devices=jax.devices()[:devices])
        tiles = samplers.image_keys(7, range(16)).reshape(-1, devices, 2)
        drawn = jax.pmap(lambda keys: samplers.initial_noise(keys, (4, 3)), devices=jax.devices()[:devices])
        noise[devices] = np.concatenate([np.asarray(drawn(tile)).reshape(-1, 4, 3) for tile in tiles])
        images[devices] = np.concatenate([np.asarray(program(tile)).reshape(-1, 4, 3) for tile in tiles])
    np.testing.assert_array_equal(noise[1], noise[8])
    np.testing.assert_array_equal(noise[2], noise[8])
    np.testing.assert_array_equal(images[2], images[8])
    # the program for one device is compiled apart, and may contract a product and a sum where the other does not
    np.testing.assert_allclose(images[1], images[8], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(*(data.to_integer(images[devices], 256) for devices in (1, 8)))
    tile = jax.jit(draw)(samplers.image_keys(7, [4, 5]))
    np.testing.assert_array_equal(tile, images[1][4:6])


def test_the_noise_of_steps_images_and_the_start_is_independent():
    keys = samplers.image_keys(0, range(50))
    like = jnp.zeros((50, 200))
    draws = [samplers.initial_noise(keys, (200,))] + [
        samplers.step_noise(keys, jnp.int32(t), like) for t in (1, 2, 999)
    ]
    flat = np.stack(draws).reshape(4, -1)
    assert abs(np.corrcoef(flat)[np.triu_indices(4, 1)]).max() < 4 / np.sqrt(flat.shape[1])
    assert (abs(flat.var(1) - 1) < 4 * np.sqrt(2 / flat.shape[1])).all()


# --- trajectories


@pytest.mark.parametrize(
    ("make", "shape"), [*((samplers.ancestral, shape) for shape in SHAPES), (samplers.ddim, SHAPES[0])]
)
def test_kept_frames_are_those_of_a_run_that_keeps_all_and_end_in_the_sample(make, shape):
    schedule, chain = schedules.linear(100), samplers.times(100, 6)
    sampler = make(schedule, ideal(schedule))
    keys = samplers.image_keys(0, range(2))
    x_T = samplers.initial_noise(keys, shape)
    frames = lambda keep: jax.jit(lambda x: samplers.trajectory(keys, sampler, x, chain, keep=keep))(x_T)  # noqa: E731
    everything = frames(chain)
    keep = [0, int(chain[3]), 100]
    some = frames(keep)
    np.testing.assert_array_equal(some.t, keep)
    np.testing.assert_array_equal(some.x, everything.x[jnp.array([6, 3, 0])])
    np.testing.assert_array_equal(some.x0, everything.x0[jnp.array([6, 3, 0])])
    np.testing.assert_array_equal(some.x[2], x_T)
    assert (some.x0[2] == 0).all()
    np.testing.assert_array_equal(some.x[0], jax.jit(lambda x: samplers.sample(keys, sampler, x, chain))(x_T))
    # the x_0 on the way to a frame is what the frame before it predicts
    np.testing.assert_allclose(some.x0[1], ideal(schedule)(everything.x[2], jnp.int32(chain[2])).x0, atol=2e-6)


def test_memory_grows_with_keep_and_not_with_the_steps():
    schedule, keys = schedules.linear(1000), samplers.image_keys(0, range(2))
    sampler = samplers.ancestral(schedule, ideal(schedule))
    image = 2 * 64 * 64 * 4

    def needed(steps, count):
        chain = samplers.times(1000, steps)
        keep = chain[np.linspace(0, steps, count).astype(int)]
        run = jax.jit(lambda x: samplers.trajectory(keys, sampler, x, chain, keep=keep))
        compiled = run.lower(jax.ShapeDtypeStruct((2, 64, 64), jnp.float32)).compile().memory_analysis()
        return compiled.temp_size_in_bytes + compiled.output_size_in_bytes

    few, many, long = needed(50, 2), needed(50, 50), needed(1000, 2)
    assert abs(long - few) < image
    assert 2 * 48 * image * 0.9 < many - few < 4 * 48 * image * 1.1


# --- times


ONE_BASED = {
    ("ddim", 10): [1, 101, 201, 301, 401, 501, 601, 701, 801, 901],
    ("uniform", 10): [1, 112, 223, 334, 445, 556, 667, 778, 889, 1000],
    ("leading", 10): [1, 101, 201, 301, 401, 501, 601, 701, 801, 901],
    ("trailing", 10): [100, 200, 300, 400, 500, 600, 700, 800, 900, 1000],
    ("linspace", 10): [1, 112, 223, 334, 445, 556, 667, 778, 889, 1000],
    ("ddim", 30): [1 + 34 * i for i in range(30)],
    ("trailing", 3): [333, 667, 1000],
    ("leading", 3): [1, 334, 667],
    ("quadratic", 4): [1, 112, 445, 1000],
    ("uniform", 1): [1000],
    ("quadratic", 1): [1000],
    ("trailing", 1): [1000],
    ("leading", 1): [1],
    ("ddim", 1): [1],
}
"""Of 1000 steps, one more than the peers' own, which count from 0."""


@pytest.mark.parametrize(("spacing", "steps"), ONE_BASED)
def test_times_are_those_of_the_peers(spacing, steps):
    chain = samplers.times(1000, steps, spacing=spacing)
    np.testing.assert_array_equal(chain[::-1], [0, *ONE_BASED[spacing, steps]])
    assert chain.dtype == np.int32


@pytest.mark.parametrize("spacing", ["uniform", "leading", "trailing", "linspace", "ddim"])
def test_all_steps_are_all_times(spacing):
    np.testing.assert_array_equal(samplers.times(37, 37, spacing=spacing), np.arange(37, -1, -1))


@pytest.mark.parametrize("spacing", ["uniform", "leading", "trailing", "linspace", "quadratic"])
def test_times_fall_to_the_data_and_are_as_many_as_asked_for(spacing):
    for T, counts in ((1000, (1, 2, 3, 7, 20, 30, 50, 333, 999)), (50, range(1, 51)), (7, range(1, 8)), (1, (1,))):
        for steps in counts:
            chain = samplers.times(T, steps, spacing=spacing)
            assert len(chain) == steps + 1 and chain[-1] == 0 and chain[0] <= T and (np.diff(chain) < 0).all()
            if spacing != "leading" and (spacing, steps) != ("linspace", 1):
                assert chain[0] == T


def test_section_times():
    np.testing.assert_array_equal(samplers.section_times(1000, [10]), samplers.times(1000, 10))
    np.testing.assert_array_equal(samplers.section_times(20, [20]), np.arange(20, -1, -1))
    # 300 steps as 10 + 15 + 20: the example in the authors' own docstring
    chain = samplers.section_times(300, [10, 15, 20])[::-1]
    assert chain[0] == 0 and [((a < chain) & (chain <= a + 100)).sum() for a in (0, 100, 200)] == [10, 15, 20]
    assert {1, 100, 101, 200, 201, 300} <= set(chain)
    np.testing.assert_array_equal(chain[1:11], 1 + 11 * np.arange(10))
    np.testing.assert_array_equal(samplers.section_times(10, [0, 1]), [6, 0])
    np.testing.assert_array_equal(samplers.section_times(5, [3, 0]), [3, 2, 1, 0])  # sections of 3 and 2


# --- programs


def test_one_program_serves_all_seeds_images_and_etas():
    schedule, chain, traced = schedules.linear(100), samplers.times(100, 5), []

    @jax.jit
    def draw(keys, eta):
        traced.append(eta)
        sampler = samplers.ddim(schedule, ideal(schedule), eta=eta)
        return samplers.sample(keys, sampler, samplers.initial_noise(keys, (3,)), chain)

    images = [draw(samplers.image_keys(seed, [3, 4]), eta) for seed in (0, 1) for eta in (0.0, 0.7, 1.0)]
    assert len(traced) == 1 and len(np.unique(np.ravel(images))) == np.size(images)
    for eta, image in zip((0.0, 0.7, 1.0), images[:3], strict=True):
        keys = samplers.image_keys(0, [3, 4])
        sampler = samplers.ddim(schedule, ideal(schedule), eta=eta)
        plain = samplers.sample(keys, sampler, samplers.initial_noise(keys, (3,)), chain)
        np.testing.assert_allclose(image, plain, rtol=1e-5, atol=1e-6)


def test_the_times_may_be_traced():
    schedule, keys = schedules.linear(100), samplers.image_keys(0, range(2))
    x_T, sampler = samplers.initial_noise(keys, (3,)), samplers.ancestral(schedule, ideal(schedule))
    chain = samplers.times(100, 5)
    found = jax.jit(lambda chain: samplers.sample(keys, sampler, x_T, chain))(chain)
    np.testing.assert_allclose(found, samplers.sample(keys, sampler, x_T, chain), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("predicts", ["eps", "x0", "v", "mean"])
@pytest.mark.parametrize("learned", [False, True], ids=["fixed", "learned"])
def test_no_derivative_of_a_step_is_nan_at_either_end(predicts, learned):
    schedule, keys = schedules.linear(1000), samplers.image_keys(0, range(2))

    def total(x, raw, v, option, t, s):
        out = jnp.concatenate([raw, v], -1) if learned else raw
        denoise = gaussian.denoiser(schedule, lambda x, t: out, predicts, learned_variance=learned)
        steps = [
            samplers.ancestral(schedule, denoise, mix=option),
            samplers.ddim(schedule, denoise, eta=option),
        ]
        return sum(sampler.step(keys, sampler.init(x, t), t, s).x.sum() for sampler in steps)

    grad = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3)))
    rng = np.random.default_rng(0)
    x, raw = (jnp.asarray(rng.standard_normal((2, 3)), jnp.float32) for _ in range(2))
    for t, s in ((1, 0), (2, 1), (1000, 999), (1000, 0)):
        for option in (0.0, 0.5, 1.0):
            for v in (-1.0, 0.0, 1.0, 1.4):  # a network is free to leave [-1, 1]
                grads = grad(x, raw, jnp.full_like(x, v), option, t, s)
                assert all(np.isfinite(g).all() for g in grads), (t, s, option, v)


# --- errors

S10, X = schedules.linear(10), jnp.zeros((2, 3))
EULER = samplers.ddim(S10, ideal(S10))


def run(x=X, times=(10, 5, 0), keys=None, keep=None):
    keys = samplers.image_keys(0, range(2)) if keys is None else keys
    if keep is None:
        return samplers.sample(keys, EULER, x, np.array(times))
    return samplers.trajectory(keys, EULER, x, np.array(times), keep=keep)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: samplers.times(10, 0), "steps must be an integer in 1..T = 10, got 0"),
        (lambda: samplers.times(10, 11), "steps must be an integer in 1..T = 10, got 11"),
        (lambda: samplers.times(10, True), "steps must be an integer in 1..T = 10, got True"),
        (lambda: samplers.times(10, 2.0), "steps must be an integer in 1..T = 10, got 2.0"),
        (lambda: samplers.times(10, 5, spacing="even"), "'ddim', 'quadratic', got 'even'"),
        (lambda: samplers.times(1000, 999, spacing="ddim"), "no integer stride over 1000 steps gives 999 times"),
        (lambda: samplers.section_times(10, [3, 6]), "a section of 5 steps cannot give 6 times"),
        (lambda: samplers.section_times(10, [0, 0]), "counts must ask for at least one time, got [0, 0]"),
        (lambda: samplers.section_times(10, []), "counts must ask for at least one time, got []"),
        (lambda: run(times=(5, 5, 0)), "times must be a falling vector of at least two integers, got [5 5 0]"),
        (lambda: run(times=(0, 5, 10)), "times must be a falling vector of at least two integers, got [ 0  5 10]"),
        (lambda: run(times=(10.0, 0.0)), "times must be a falling vector of at least two integers, got [10.  0.]"),
        (lambda: run(times=(10,)), "times must be a falling vector of at least two integers, got [10]"),
        (lambda: run(times=(10, -1)), "times must be a falling vector of at least two integers, got [10 -1]"),
        (lambda: run(times=((10, 0),)), "times must be a falling vector of at least two integers, got [[10  0]]"),
        (lambda: run(keep=(0, 3, 4)), "keep asks for times that the chain does not visit: [3, 4]"),
        (lambda: run(X.astype(jnp.uint8)), "x_T must be float32 or float64, got uint8"),
        (lambda: run(X.astype(jnp.bfloat16)), "x_T must be float32 or float64, got bfloat16: cast it up first"),
        (lambda: run(keys=jax.random.key(0)), "keys must be one per image, shape (2,) (see image_keys), got ()"),
        (
            lambda: run(keys=samplers.image_keys(0, range(3))),
            "one key or one per example, [] or (2,), got (3,)",
        ),
        (lambda: run(keys=jnp.zeros(2, jnp.uint32)), "keys must be typed (jax.random.key), got uint32"),
        (
            lambda: samplers.initial_noise(jax.random.PRNGKey(0), (3,)),
            "keys must be typed (jax.random.key), got uint32",
        ),
    ],
)
def test_errors_name_the_value(call, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        call()
