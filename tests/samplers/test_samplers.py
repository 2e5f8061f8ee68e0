"""Samplers where the answer is known: Gaussian data; and what an image may depend on.

A chain that is only looked at in the end goes step by step through one compiled step, whatever its times: a scan would
be another program for each length.
"""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_data import SHAPES, default_precision, ideal_denoiser, to_numpy

from ddpm_jax import conformance, data, gaussian, samplers, schedules
from ddpm_jax.keys import from_seed

POINTS = np.array([[0.5, -1.0], [2.0, 0.0]])


def walk(step, state, times):
    """The state at the end, by a compiled step(state, t, s)."""
    for t, s in itertools.pairwise(np.asarray(times, np.int32)):
        state = step(state, t, s)
    return state


def stepping(*solvers):
    """Several samplers in one compiled step: (init, step) for `walk`, states in a tuple."""

    def init(x, t):
        return tuple(solver.init(jnp.asarray(default_precision(x)), jnp.int32(t)) for solver in solvers)

    @jax.jit
    def step(states, t, s):
        keys = samplers.image_keys(0, range(states[0].x.shape[0]))
        return tuple(solver.step(keys, state, t, s) for solver, state in zip(solvers, states, strict=True))

    return init, step


def ends(solvers, x, times):
    """x where each sampler arrives."""
    init, step = stepping(*solvers)
    return [np.asarray(state.x) for state in walk(step, init(x, times[0]), times)]


# --- moments


@functools.cache
def affine(kind: str):
    """A compiled step on many (option, t, s) at once: offset, slope and standard deviation of each, [n] and [n].

    A step is affine in x and in the noise z, so that three points show it.
    """

    @jax.jit
    def moves(schedule, mean, std, options, t, s):
        def one(option, t, s):
            def noise(keys, t, like):
                return jnp.array([[0.0], [0.0], [1.0]], like.dtype)

            if kind == "ddim":
                sampler = samplers.ddim(schedule, ideal_denoiser(schedule, mean, std), eta=option, noise=noise)
            elif kind == "learned":
                sampler = samplers.ancestral(
                    schedule, ideal_denoiser(schedule, mean, std, option), variance_mix=0.3, noise=noise
                )
            else:
                sampler = samplers.ancestral(
                    schedule, ideal_denoiser(schedule, mean, std), variance_mix=option, noise=noise
                )
            x = jnp.array([[0.0], [1.0], [0.0]], schedule.signal.dtype)
            x = sampler.step(None, sampler.init(x, t), t, s).x[:, 0]
            return x[0], x[1] - x[0], x[2] - x[0]

        return jax.vmap(one)(options, t, s)

    return moves


def push(schedule, kind, option, times, mean=0.2, std=0.5):
    """Mean and variance at every time of the chain for x_T ~ N(0, 1)."""
    t, s = (np.pad(side, (0, 30 - side.size), constant_values=end) for side, end in ((times[:-1], 1), (times[1:], 0)))
    steps = affine(kind)(schedule, *default_precision([mean, std]), default_precision(np.full(30, option)), t, s)
    m, v, moments = 0.0, 1.0, [(0.0, 1.0)]
    for offset, scale, spread in np.asarray(steps, np.float64).T[: len(times) - 1]:
        m, v = offset + scale * m, scale**2 * v + spread**2
        moments.append((m, v))
    return np.array(moments)


@pytest.mark.parametrize("spacing", ["uniform", "leading"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_of_a_point_has_the_forward_marginals(spacing, eta):
    # the family of equation 12 keeps q(x_t | x_0), for every eta
    with jax.enable_x64(True):
        schedule, times, point = schedules.linear(1000), samplers.times(1000, 10, spacing=spacing), 0.4
        moments = push(schedule, "ddim", eta, times, point, 0.0)
        signal, noise = np.asarray(schedule.signal)[times], np.asarray(schedule.noise)[times]
    # from N(0, 1) instead of q(x_T | x_0): what is left of the difference falls with each step
    started = point * signal[0], noise[0] ** 2
    close = max(abs(started[0]), abs(1 - started[1])) if spacing == "uniform" else 0.2
    np.testing.assert_allclose(moments[1:-1, 0], point * signal[1:-1], atol=close)
    np.testing.assert_allclose(moments[1:-1, 1], noise[1:-1] ** 2, atol=close)
    np.testing.assert_allclose(moments[-1], [point, 0], atol=1e-12)


def test_ancestral_of_a_point_and_of_noise_is_exact_at_its_two_ends():
    with jax.enable_x64(True):
        schedule, times = schedules.cosine(1000), samplers.times(1000, 20)
        signal, noise = np.asarray(schedule.signal)[times], np.asarray(schedule.noise)[times]
        # beta-tilde is right when the data are a point, beta when they are standard normal
        point = push(schedule, "ancestral", 0.0, times, 0.4, 0.0)
        np.testing.assert_allclose(point[1:], np.stack([0.4 * signal, noise**2], 1)[1:], atol=1e-4)
        normal = push(schedule, "ancestral", 1.0, times, 0.0, 1.0)
        np.testing.assert_allclose(normal[:-1], np.stack([0 * signal, 0 * signal + 1], 1)[:-1], atol=1e-12)
    # the last step adds nothing: it is the mean of x_0
    assert normal[-1, 1] == pytest.approx(signal[-2] ** 2, abs=1e-12)


def recursion(schedule, times, mean, std, kind, option):
    """Moments of the reverse chain from alpha-bars alone, by conditioning (x_s, x_t) on x_0."""
    alpha_bar = np.asarray(schedule.signal) ** 2
    m, v, out = 0.0, 1.0, [(0.0, 1.0)]
    for t, s in itertools.pairwise(times):
        a, b = alpha_bar[t], alpha_bar[s]
        # x_0_hat = c + g x_t
        g = std**2 * np.sqrt(a) / (a * std**2 + 1 - a)
        c = mean * (1 - g * np.sqrt(a))
        small = (1 - b) * (1 - a / b) / (1 - a)
        if kind == "ddim":
            spread = option**2 * small
            on_x = np.sqrt((1 - b - spread) / (1 - a))
            on_x0 = np.sqrt(b) - np.sqrt(a) * on_x
        else:
            spread = 0.0 if s == 0 else small ** (1 - option) * (1 - a / b) ** option
            on_x, on_x0 = np.sqrt(a / b) * (1 - b) / (1 - a), np.sqrt(b) * (1 - a / b) / (1 - a)
        factor = on_x + on_x0 * g
        m, v = factor * m + on_x0 * c, factor**2 * v + spread
        out.append((m, v))
    return np.array(out)


@pytest.mark.parametrize("steps", [5, 30])
@pytest.mark.parametrize("option", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["ancestral", "learned", "ddim"])
def test_moments_of_gaussian_data_follow_the_recursion(kind, option, steps):
    times = samplers.times(1000, steps)
    with jax.enable_x64(True):
        expected = recursion(schedules.linear(1000), times, 0.2, 0.5, kind, option)
    found = push(schedules.linear(1000), kind, option, times)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_samples_of_gaussian_data_have_its_moments_whatever_is_predicted():
    # 2048 images of 4 values by each kind of network; mix 0 and full grid, with the variance that the recursion gives
    T, n, predicts = 100, 2048, ["eps", "x0", "v", "mean"]
    schedule, times = schedules.linear(T, 1e-3, 0.2), samplers.times(T, T)

    def denoiser(predicts):
        def net(x_t, t):
            found = ideal_denoiser(schedule)(x_t, t)
            return gaussian.target(schedule, predicts, found.x0, found.eps, t)

        return gaussian.denoiser(schedule, net, predicts, clip=False)

    def denoise(x_t, t):
        parts = [denoiser(kind)(x, t) for kind, x in zip(predicts, jnp.split(x_t, 4), strict=True)]
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)

    @jax.jit
    def draw(keys):
        x_T = samplers.initial_noise(keys, (4,))
        return samplers.sample(keys, samplers.ancestral(schedule, denoise, variance_mix=0.0), x_T, times)

    images = np.asarray(draw(samplers.image_keys(0, range(4 * n)))).reshape(4, n, 4)
    with jax.enable_x64(True):
        mean, var = recursion(schedules.linear(T, 1e-3, 0.2), times, 0.2, 0.5, "ancestral", 0.0)[-1]
    for kind, x in zip(predicts, images, strict=True):
        assert abs(x.mean() - mean) < 4 * np.sqrt(var / x.size), kind
        assert abs(x.var() - var) < 4 * var * np.sqrt(2 / x.size), kind
        assert abs(np.corrcoef(x.T)[np.triu_indices(4, 1)]).max() < 4 / np.sqrt(n), kind


# --- order


def test_solvers_have_their_order():
    """From T to a hundredth of the noise, on 100,000 times, so that rounding to times does not show.

    For N(m, s^2) the probability flow is known: it carries quantiles along, x_t = signal m + sqrt(signal^2 s^2 +
    noise^2) u.
    """
    with jax.enable_x64(True):
        schedule, end, u = schedules.linear(100_000, 1e-6, 2e-4), 200, np.array([[-1.5], [0.3], [1.0]])
        signal, noise = (np.asarray(column) for column in schedule[:2])

        def quantiles(t):
            return signal[t] * 0.2 + np.sqrt(signal[t] ** 2 * 0.25 + noise[t] ** 2) * u

        denoise = ideal_denoiser(schedule)
        solvers = [samplers.ddim(schedule, denoise)]
        solvers += [samplers.dpm_solver_pp(schedule, denoise, order=order) for order in (1, 2, 3)]
        solvers += [samplers.unipc(schedule, denoise, order=order) for order in (1, 2)]
        init, step = stepping(*solvers)
        max_errors = []
        for steps in (20, 40, 80):
            times = conformance.uniform_log_snr_times(schedule, steps, end)
            states = walk(step, init(quantiles(100_000), 100_000), times)
            max_errors.append([np.abs(np.asarray(state.x) - quantiles(end)).max() for state in states])
    max_errors = np.array(max_errors)
    orders = np.log2(max_errors[:-1] / max_errors[1:])
    least = [0.9, 0.9, 1.85, 2.8, 1.8, 2.6]
    assert (orders > least).all() and (max_errors[0] < 0.2).all(), (max_errors, orders)


def test_ddim_is_a_first_order_solver_of_the_probability_flow():
    # down to the data, with the spacing that it is used with
    with jax.enable_x64(True):
        schedule, u = schedules.linear(1000), np.array([[-1.5], [0.3], [1.0]])
        signal, noise = float(schedule.signal[1000]), float(schedule.noise[1000])
        x_T = signal * 0.2 + np.sqrt(signal**2 * 0.25 + noise**2) * u
        init, step = stepping(samplers.ddim(schedule, ideal_denoiser(schedule)))
        max_errors = []
        for steps in (20, 40, 80, 160):
            (state,) = walk(step, init(x_T, 1000), samplers.times(1000, steps))
            max_errors.append(np.abs(np.asarray(state.x) - (0.2 + 0.5 * u)).max())
    orders = np.log2(np.array(max_errors[:-1]) / max_errors[1:])
    assert max_errors[0] < 0.2 and (abs(orders - 1) < 0.15).all(), (max_errors, orders)


@pytest.mark.parametrize("solver", [samplers.dpm_solver_pp, samplers.unipc])
def test_solvers_end_at_what_the_network_last_predicts(solver):
    """Down to the data, also in a single step and from pure noise, where SNR is 0 and h infinite."""
    keys = samplers.image_keys(0, range(2))

    def solvers(schedule):
        denoise = gaussian.denoiser(schedule, lambda x, t: 0.3 * jnp.sin(5 * x), "v", clip=True)
        return [solver(schedule, denoise, order=order) for order in (1, 2, 3)]

    @jax.jit
    def step(schedule, states, t, s):
        return [sampler.step(keys, state, t, s) for sampler, state in zip(solvers(schedule), states, strict=True)]

    betas = np.append(np.linspace(1e-4, 0.02, 99), 1.0)
    for schedule in (schedules.linear(100), schedules.from_betas(betas)):
        start = [sampler.init(jnp.asarray(default_precision(POINTS)), jnp.int32(100)) for sampler in solvers(schedule)]
        for steps in (1, 2, 3, 10):
            last = walk(functools.partial(step, schedule), start, samplers.times(100, steps))
            for order, state in enumerate(last, 1):
                np.testing.assert_array_equal(state.x, state.x0, err_msg=f"order {order}, {steps} steps")
                assert np.isfinite(state.x).all(), (order, steps)


def test_dpm_solver_pp_of_order_1_is_ddim():
    with jax.enable_x64(True):
        schedule = schedules.linear(1000)
        denoise = gaussian.denoiser(schedule, lambda x, t: 0.5 * jnp.tanh(3 * x), clip=True)
        solvers = samplers.dpm_solver_pp(schedule, denoise, order=1), samplers.ddim(schedule, denoise)
        np.testing.assert_allclose(*ends(solvers, POINTS, samplers.times(1000, 7)), rtol=1e-9)


def test_unipc_first_predicts_as_ddim_does_and_corrects_nothing_where_the_prediction_came_true():
    with jax.enable_x64(True):
        schedule = schedules.linear(1000)
        curved = gaussian.denoiser(schedule, lambda x, t: 0.5 * jnp.tanh(3 * x), clip=True)
        # data that are a single point: every x_0_hat is that point, and DDIM is exact
        point = gaussian.denoiser(schedule, lambda x, t: jnp.full_like(x, 0.3), "x0", clip=True)
        for denoise, times, tolerance in ((curved, (1000, 600), 1e-12), (point, (1000, 700, 400, 200, 50), 1e-9)):
            solvers = [samplers.unipc(schedule, denoise, order=order) for order in (1, 2, 3)]
            *found, expected = ends([*solvers, samplers.ddim(schedule, denoise)], POINTS, times)
            for order, x in enumerate(found, 1):
                np.testing.assert_allclose(x, expected, rtol=tolerance, err_msg=f"order {order}, {times}")


def test_a_thousand_short_steps_lose_no_digits_in_float32():
    x_T = np.random.default_rng(0).standard_normal((8, 3))

    @jax.jit
    def images(schedule, x):
        keys, times = samplers.image_keys(0, range(8)), np.arange(1000, 0, -1)
        solvers = [
            solver(schedule, ideal_denoiser(schedule), order=3) for solver in (samplers.dpm_solver_pp, samplers.unipc)
        ]
        return [samplers.sample(keys, sampler, x, times) for sampler in solvers]

    single = to_numpy(images(schedules.linear(1000), default_precision(x_T)))
    with jax.enable_x64(True):
        np.testing.assert_allclose(single, to_numpy(images(schedules.linear(1000), x_T)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", [samplers.dpm_solver_pp, samplers.unipc])
def test_solvers_refuse_other_orders(solver):
    with pytest.raises(ValueError, match="order must be 1, 2 or 3, got 4"):
        solver(schedules.linear(10), lambda x, t: x, order=4)


def test_dpm_solver_pp_refuses_another_second_order():
    with pytest.raises(ValueError, match="solver_type must be 'midpoint' or 'integral', got 'heun'"):
        samplers.dpm_solver_pp(schedules.linear(10), lambda x, t: x, solver_type="heun")


def test_ddim_goes_back_to_the_noise_that_it_came_from():
    with jax.enable_x64(True):
        schedule, x_T = schedules.linear(1000), np.array([[-1.2, 0.4, 2.0]])
        init, step = stepping(samplers.ddim(schedule, ideal_denoiser(schedule)))
        down = samplers.times(1000, 500)[:-1]  # to t = 1
        (bottom,) = walk(step, init(x_T, 1000), down)
        (top,) = walk(step, init(bottom.x, 1), down[::-1])
        np.testing.assert_allclose(top.x, x_T, atol=0.03)


def test_options_in_float64_leave_images_in_float32():
    with jax.enable_x64(True):
        schedule, x = schedules.linear(10, 5e-3, 0.6), jnp.ones((2, 3), jnp.float32)
        denoise = gaussian.denoiser(schedule, lambda x, t: 0.5 * x, "v")
        for sampler in (
            samplers.ddim(schedule, denoise, eta=np.float64(0.5)),
            samplers.ancestral(schedule, denoise, variance_mix=np.float64(0.5)),
            samplers.analytic(schedule, denoise, np.full(11, 0.1)),
        ):
            draw = functools.partial(samplers.sample, sampler=sampler, x_T=x, times=samplers.times(10, 3))
            assert jax.eval_shape(draw, samplers.image_keys(0, range(2))).dtype == jnp.float32


# --- limits


def test_ddim_with_eta_1_is_ancestral_with_mix_0_path_by_path():
    with jax.enable_x64(True):
        schedule, keys = schedules.linear(100, 1e-3, 0.2), samplers.image_keys(3, range(2))
        net = lambda x, t: 0.5 * jnp.tanh(3 * x)  # noqa: E731
        for shape, steps, predicts, clip in (((4, 3), 100, "x0", True), ((2, 3, 2, 2), 7, "v", False)):
            denoise, times = gaussian.denoiser(schedule, net, predicts, clip=clip), samplers.times(100, steps)

            @jax.jit
            def paths(keys, denoise=denoise, times=times, shape=shape):
                x_T = samplers.initial_noise(keys, shape, jnp.float64)
                both = (
                    samplers.ddim(schedule, denoise, eta=1.0),
                    samplers.ancestral(schedule, denoise, variance_mix=0.0),
                )
                return [samplers.trajectory(keys, sampler, x_T, times, save_at=times) for sampler in both]

            one, other = to_numpy(paths(keys))
            np.testing.assert_allclose(one.x, other.x, rtol=0, atol=1e-11, err_msg=f"{shape}")
            np.testing.assert_allclose(one.x0, other.x0, rtol=0, atol=1e-11, err_msg=f"{shape}")


def test_one_program_serves_all_seeds_images_etas_and_times():
    schedule, traced, x_T = schedules.linear(100), [], np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)

    @jax.jit
    def draw(keys, eta, times):
        traced.append(eta)
        return samplers.sample(keys, samplers.ddim(schedule, ideal_denoiser(schedule), eta=eta), x_T, times)

    def run(seed, eta, indices=(3, 4), spacing="uniform"):
        return np.asarray(draw(samplers.image_keys(seed, indices), eta, samplers.times(100, 5, spacing=spacing)))

    images = [run(seed, eta) for seed in (0, 1) for eta in (0.7, 1.0)] + [run(0, 1.0, (5, 6)), run(0, 1.0, (7, 8))]
    images += [run(0, 1.0, spacing="quadratic")]
    assert len(np.unique(images)) == np.size(images)
    np.testing.assert_array_equal(run(0, 0.0), run(1, 0.0))  # eta 0 draws nothing
    np.testing.assert_array_equal(run(1, 1.0), images[3])
    assert len(traced) == 1
    # and it draws what one draws that knows them
    sampler = samplers.ddim(schedule, ideal_denoiser(schedule), eta=0.7)
    plain = samplers.sample(samplers.image_keys(0, [3, 4]), sampler, jnp.asarray(x_T), samplers.times(100, 5))
    np.testing.assert_allclose(images[0], plain, rtol=1e-5, atol=1e-6)


def test_the_last_step_gives_the_predicted_data_without_noise():
    schedule, keys = schedules.linear(100), samplers.image_keys(0, range(3))
    x_T = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)

    @jax.jit
    def last(option, t):
        denoise, times = ideal_denoiser(schedule), jnp.stack([t, 0])
        made = samplers.ancestral(schedule, denoise, variance_mix=option), samplers.ddim(schedule, denoise, eta=option)
        return [samplers.sample(keys, sampler, x_T, times) for sampler in made], denoise(x_T, t).x0

    for option in (0.0, 0.5, 1.0):
        for t in (1, 50, 100):
            images, x0 = to_numpy(last(np.float32(option), np.int32(t)))
            for name, x in zip(("ancestral", "ddim"), images, strict=True):
                np.testing.assert_allclose(x, x0, rtol=1e-6, err_msg=f"{name}, {option}, t = {t}")


def test_a_learned_mix_takes_precedence():
    schedule, times, keys = schedules.linear(100), samplers.times(100, 10), samplers.image_keys(0, range(2))
    x_T = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)

    @jax.jit
    def both(mix):
        learned = samplers.ancestral(schedule, ideal_denoiser(schedule, variance_mix=mix), variance_mix=0.1)
        fixed = samplers.ancestral(schedule, ideal_denoiser(schedule), variance_mix=mix)
        return [samplers.sample(keys, sampler, x_T, times) for sampler in (learned, fixed)]

    for mix in (0.0, 0.5, 1.0, 1.3):
        learned, fixed = to_numpy(both(np.float32(mix)))
        np.testing.assert_allclose(learned, fixed, rtol=1e-6, err_msg=f"mix {mix}")
        assert np.isfinite(learned).all(), mix


def test_a_start_without_signal():
    schedule = schedules.jsd(50)
    denoise = gaussian.denoiser(schedule, lambda x, t: 0.5 * x, "v", clip=True)
    solvers = samplers.ancestral(schedule, denoise), samplers.ddim(schedule, denoise)
    assert np.isfinite(ends(solvers, POINTS, samplers.times(50, 10))).all()


# --- one image, one key


def test_an_image_depends_on_its_key_alone():
    schedule, times = schedules.linear(100), samplers.times(100, 5)
    denoise = gaussian.denoiser(schedule, lambda x, t: 0.5 * x, "v", clip=True)
    ancestral, ddim = samplers.ancestral(schedule, denoise, variance_mix=0.5), samplers.ddim(schedule, denoise, eta=0.5)
    kinds = [(f"ancestral, {shape}", ancestral, shape) for shape in SHAPES] + [("ddim", ddim, SHAPES[1])]

    @functools.partial(jax.jit, static_argnums=1)
    def draw(keys, kinds):
        images = {
            name: samplers.sample(keys, sampler, samplers.initial_noise(keys, shape), times)
            for name, sampler, shape in kinds
        }
        like = jnp.zeros((keys.shape[0], *SHAPES[1]))
        return images, [samplers.step_noise(keys, jnp.int32(t), like) for t in (0, 1, 57)]

    whole, noise = to_numpy(draw(samplers.image_keys(7, range(16)), tuple(kinds)))
    shuffled = np.random.default_rng(0).permutation(16)
    again, _ = to_numpy(draw(samplers.image_keys(7, shuffled), tuple(kinds)))
    for name, x in whole.items():
        assert len(np.unique(x.reshape(16, -1)[:, 0])) == 16, name
        np.testing.assert_array_equal(again[name], x[shuffled], err_msg=name)
    # another size of batch is another program, whose last bits are its own; what is drawn is the same to the bit
    for order in ([5], [3, 0, 15, 8]):
        some, own = to_numpy(draw(samplers.image_keys(7, order), (kinds[1], kinds[4])))
        for name, x in some.items():
            np.testing.assert_allclose(x, whole[name][order], rtol=0, atol=1e-6, err_msg=name)
        for few, all_of_them in zip(own, noise, strict=True):
            np.testing.assert_array_equal(few, all_of_them[order])


def test_an_image_is_the_same_on_any_number_of_devices():
    # tiles of one size, on as many devices as there are
    schedule, times = schedules.linear(100), samplers.times(100, 5)
    denoise = gaussian.denoiser(schedule, lambda x, t: 0.5 * x, "v", clip=True)
    both = samplers.ancestral(schedule, denoise), samplers.ddim(schedule, denoise, eta=0.5)

    def draw(keys):
        x_T = samplers.initial_noise(keys, (4, 3))
        return x_T, *(samplers.sample(keys, sampler, x_T, times) for sampler in both)

    drawn = {}
    for devices in (1, 2, 8):
        draw_on_devices = jax.pmap(draw, devices=jax.devices()[:devices])
        tiles = [to_numpy(draw_on_devices(tile)) for tile in samplers.image_keys(7, range(16)).reshape(-1, devices, 2)]
        drawn[devices] = [np.concatenate([x.reshape(-1, 4, 3) for x in part]) for part in zip(*tiles, strict=True)]
    np.testing.assert_array_equal(drawn[1][0], drawn[8][0])
    tile = to_numpy(jax.jit(draw)(samplers.image_keys(7, [4, 5])))
    for one, two, eight, alone in zip(drawn[1], drawn[2], drawn[8], tile, strict=True):
        np.testing.assert_array_equal(two, eight)
        # the program for one device is compiled apart, and may contract a product and a sum where the other does not
        np.testing.assert_allclose(one, eight, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(*(data.to_integer(x, 256) for x in (one, eight)))
        np.testing.assert_array_equal(alone, one[4:6])


def test_the_noise_of_steps_images_and_the_start_is_independent():
    @jax.jit
    def all_noise(keys):
        like = jnp.zeros((50, 200))
        noise = [samplers.step_noise(keys, jnp.int32(t), like) for t in (1, 2, 999)]
        return jnp.stack([samplers.initial_noise(keys, (200,)), *noise]).reshape(4, -1)

    flat = np.asarray(all_noise(samplers.image_keys(0, range(50))))
    assert abs(np.corrcoef(flat)[np.triu_indices(4, 1)]).max() < 4 / np.sqrt(flat.shape[1])
    assert (abs(flat.var(1) - 1) < 4 * np.sqrt(2 / flat.shape[1])).all()


# --- trajectories


@pytest.mark.parametrize(("make", "shape"), [(samplers.ancestral, (2, 3, 2, 2)), (samplers.ddim, (8,))])
def test_kept_frames_are_those_of_a_run_that_keeps_all_and_end_in_the_sample(make, shape):
    schedule, times = schedules.linear(100), samplers.times(100, 6)
    denoise, keys = ideal_denoiser(schedule), samplers.image_keys(0, range(2))
    frames, x_T = [0, int(times[3]), 100], np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)

    @jax.jit
    def run(x_T):
        sampler = make(schedule, denoise)
        everything, some = (samplers.trajectory(keys, sampler, x_T, times, save_at=saved) for saved in (times, frames))
        expected = denoise(everything.x[2], jnp.int32(times[2])).x0
        return everything, some, samplers.sample(keys, sampler, x_T, times), expected

    everything, some, end, expected = to_numpy(run(x_T))
    np.testing.assert_array_equal(some.t, frames)
    np.testing.assert_array_equal(some.x, everything.x[[6, 3, 0]])
    np.testing.assert_array_equal(some.x0, everything.x0[[6, 3, 0]])
    np.testing.assert_array_equal(some.x[2], x_T)
    assert (some.x0[2] == 0).all()
    np.testing.assert_array_equal(some.x[0], end)
    # the x_0 on the way to a frame is what the frame before it predicts
    np.testing.assert_allclose(some.x0[1], expected, atol=2e-6)


def test_memory_grows_with_keep_and_not_with_the_steps():
    schedule, keys = schedules.linear(1000), samplers.image_keys(0, range(2))
    sampler = samplers.ancestral(schedule, ideal_denoiser(schedule))
    image = 2 * 64 * 64 * 4

    def needed(steps, count):
        times = samplers.times(1000, steps)
        save_at = times[np.linspace(0, steps, count).astype(int)]
        run = jax.jit(lambda x: samplers.trajectory(keys, sampler, x, times, save_at=save_at))
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
    ("log_snr", 10): [1, 6, 23, 74, 203, 411, 604, 758, 887, 1000],
    ("karras", 10): [1, 19, 103, 302, 512, 664, 776, 865, 938, 1000],
    ("log_snr", 2): [1, 1000],
    ("karras", 1): [1000],
}
"""Of the linear schedule's 1000 steps, one more than the peers' own, which count from 0: the last ones are those of
diffusers' DPMSolverMultistepScheduler with use_lu_lambdas and with use_karras_sigmas."""


@pytest.mark.parametrize(("spacing", "steps"), ONE_BASED)
def test_times_are_those_of_the_peers(spacing, steps):
    times = samplers.times(schedules.linear(1000), steps, spacing=spacing)
    np.testing.assert_array_equal(times[::-1], [0, *ONE_BASED[spacing, steps]])
    assert times.dtype == np.int32
    if spacing not in ("log_snr", "karras"):
        np.testing.assert_array_equal(samplers.times(1000, steps, spacing=spacing), times)


@pytest.mark.parametrize("spacing", samplers.Spacing.__args__)
def test_all_steps_are_all_times(spacing):
    np.testing.assert_array_equal(samplers.times(schedules.linear(37), 37, spacing=spacing), np.arange(37, -1, -1))


@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine, schedules.jsd], ids=lambda f: f.__name__)
@pytest.mark.parametrize("spacing", [kind for kind in samplers.Spacing.__args__ if kind != "ddim"])
def test_times_fall_to_the_data_and_are_as_many_as_asked_for(spacing, make):
    for T, counts in ((1000, (1, 2, 3, 7, 20, 30, 50, 333, 999)), (50, range(1, 51)), (7, range(1, 8)), (1, (1,))):
        schedule = make(T)
        for steps in counts:
            times = samplers.times(schedule, steps, spacing=spacing)
            assert len(times) == steps + 1 and times[-1] == 0 and times[0] <= T and (np.diff(times) < 0).all()
            if spacing != "leading" and (spacing, steps) != ("linspace", 1):
                assert times[0] == T


@pytest.mark.parametrize(("spacing", "power"), [("log_snr", 0), ("karras", 1 / 7)])
def test_strides_in_the_noise_are_as_even_as_rows_allow(spacing, power):
    # rows so dense that rounding to them is a hundredth of a stride; the second schedule leaves nothing at T
    fine = schedules.from_log_snr(lambda u: 9 - 19 * u, 20_000)
    without_end = schedules.from_log_snr(lambda u: np.where(u < 1, 9 - 19 * u, -np.inf), 20_000)
    for schedule, steps in ((fine, 12), (without_end, 12)):
        log_sigma = -0.5 * np.asarray(schedule.log_snr, np.float64)
        times = samplers.times(schedule, steps, spacing=spacing)[:-1]
        assert (times[0], times[-1]) == (schedule.T, 1)
        rows = np.minimum(times, schedule.T - np.isinf(log_sigma[-1]))
        strides = np.diff(np.exp(power * log_sigma[rows]) if power else log_sigma[rows])
        np.testing.assert_allclose(strides, strides.mean(), rtol=0.01)


def test_section_times():
    np.testing.assert_array_equal(samplers.section_times(1000, [10]), samplers.times(1000, 10))
    np.testing.assert_array_equal(samplers.section_times(20, [20]), np.arange(20, -1, -1))
    # 300 steps as 10 + 15 + 20: the example in the authors' own docstring
    times = samplers.section_times(300, [10, 15, 20])[::-1]
    assert times[0] == 0 and [((a < times) & (times <= a + 100)).sum() for a in (0, 100, 200)] == [10, 15, 20]
    assert {1, 100, 101, 200, 201, 300} <= set(times)
    np.testing.assert_array_equal(times[1:11], 1 + 11 * np.arange(10))
    np.testing.assert_array_equal(samplers.section_times(10, [0, 1]), [6, 0])
    np.testing.assert_array_equal(samplers.section_times(5, [3, 0]), [3, 2, 1, 0])  # sections of 3 and 2


# --- derivatives


def test_no_derivative_of_a_step_is_nan_at_either_end():
    schedule, keys = schedules.linear(1000), samplers.image_keys(0, range(2))
    cases = [(predicts, learned) for predicts in ("eps", "x0", "v", "mean") for learned in (False, True)]

    def total(x, outs, option, t, s):
        """Each network's output is a variable of its own, so that the derivative says which one is wrong."""
        ends = []
        for (predicts, learned), out in zip(cases, outs, strict=True):
            denoise = gaussian.denoiser(schedule, lambda x, t: out, predicts, learned_variance=learned, clip=True)
            both = (
                samplers.ancestral(schedule, denoise, variance_mix=option),
                samplers.ddim(schedule, denoise, eta=option),
            )
            ends += [sampler.step(keys, sampler.init(x, t), t, s).x.sum() for sampler in both]
        return sum(ends)

    grad = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
    rng = np.random.default_rng(0)
    x, raw = rng.standard_normal((2, 2, 3)).astype(np.float32)
    for t, s in ((1, 0), (2, 1), (1000, 999), (1000, 0)):
        for option in (0.0, 0.5, 1.0):
            for v in (-1.0, 0.0, 1.0, 1.4):  # a network is free to leave [-1, 1]
                both = np.concatenate([raw, np.full_like(raw, v)], -1)
                on_x, on_outs, on_option = grad(x, [both if learned else raw for _, learned in cases], option, t, s)
                for case, found in zip(cases, on_outs, strict=True):
                    assert np.isfinite(found).all(), (case, t, s, option, v)
                assert np.isfinite(on_x).all() and np.isfinite(on_option), (t, s, option, v)


# --- errors

S10, X = schedules.linear(10), np.zeros((2, 3), np.float32)


def run(x=X, times=(10, 5, 0), keys=None, save_at=None):
    keys, sampler = samplers.image_keys(0, range(2)) if keys is None else keys, samplers.ddim(S10, ideal_denoiser(S10))
    if save_at is None:
        return samplers.sample(keys, sampler, x, np.array(times))
    return samplers.trajectory(keys, sampler, x, np.array(times), save_at=save_at)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: samplers.times(10, 0), "steps must be an integer in 1..T = 10, got 0"),
        (lambda: samplers.times(10, 11), "steps must be an integer in 1..T = 10, got 11"),
        (lambda: samplers.times(10, True), "steps must be an integer in 1..T = 10, got True"),
        (lambda: samplers.times(10, 2.0), "steps must be an integer in 1..T = 10, got 2.0"),
        (lambda: samplers.times(10, 5, spacing="even"), "'quadratic', 'log_snr', 'karras', got 'even'"),
        (lambda: samplers.times(10, 5, spacing="karras"), "give times the schedule in place of T = 10"),
        (lambda: samplers.times(1000, 999, spacing="ddim"), "no integer stride over 1000 steps gives 999 times"),
        (lambda: samplers.section_times(10, [3, 6]), "a section of 5 steps cannot give 6 times"),
        (lambda: samplers.section_times(10, [0, 0]), "and ask for at least one time, got [0, 0]"),
        (lambda: samplers.section_times(10, []), "and ask for at least one time, got []"),
        (lambda: run(times=(5, 5, 0)), "times must be a falling vector of at least two integers, got [5 5 0]"),
        (lambda: run(times=(0, 5, 10)), "times must be a falling vector of at least two integers, got [ 0  5 10]"),
        (lambda: run(times=(10.0, 0.0)), "times must be a falling vector of at least two integers, got [10.  0.]"),
        (lambda: run(times=(10,)), "times must be a falling vector of at least two integers, got [10]"),
        (lambda: run(times=(10, -1)), "times must be a falling vector of at least two integers, got [10 -1]"),
        (lambda: run(times=((10, 0),)), "times must be a falling vector of at least two integers, got [[10  0]]"),
        (lambda: run(save_at=(0, 3, 4)), "save_at has times that the reverse process does not visit: [3, 4]"),
        (lambda: run(X.astype(jnp.uint8)), "x_T must be float32 or float64, got uint8"),
        (lambda: run(X.astype(jnp.bfloat16)), "x_T must be float32 or float64, got bfloat16: cast it up first"),
        (lambda: run(keys=from_seed(0)), "keys must be one per image, shape (2,) (see image_keys), got ()"),
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
