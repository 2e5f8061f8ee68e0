"""Inpainting, pictures to start from and inversion where the answer is known: Gaussian data of any covariance."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import denoisers, editing, measurements, samplers, schedules
from ddpm_jax.gaussian import Estimate

MEAN = np.array([0.2, -0.1, 0.3, 0.0])
COV = 0.25 * 0.8 ** np.abs(np.subtract.outer(np.arange(4), np.arange(4)))
MASK = np.array([True, False, False, True])
SEEN = np.array([0.7, 9.0, 9.0, -0.5])  # what is under the rest of the mask must not matter


def ideal(schedule):
    """E[x_0 | x_t] for data N(MEAN, COV)."""

    def denoise(x_t, t):
        signal, noise = schedules.gather(schedule.signal, t, x_t), schedules.gather(schedule.noise, t, x_t)
        values, vectors = (jnp.asarray(part, x_t.dtype) for part in np.linalg.eigh(COV))
        mean = jnp.asarray(MEAN, x_t.dtype)
        gain = signal * values / (signal**2 * values + noise**2)
        x0 = mean + ((x_t - signal * mean) @ vectors * gain) @ vectors.T
        return Estimate(x0, (x_t - signal * x0) / noise)

    return denoise


def ideal_given(schedule, known, mask):
    """E[x_0 | x_t, known pixels], with these set exactly."""
    A = measurements.known_pixels(mask)
    denoise = measurements.condition_on_measurement(schedule, ideal(schedule), A, A(known), iterations=2)
    return denoisers.limit_x0(schedule, denoise, lambda x0: jnp.where(mask, known, x0))


def conditional(rows, values, mean=MEAN, cov=COV):
    """Mean and covariance of N(mean, cov) given some of its components."""
    gain = cov[:, rows] @ np.linalg.inv(cov[np.ix_(rows, rows)])
    return mean + gain @ (values - mean[rows]), cov - gain @ cov[rows]


WANTED = [part[~MASK] for part in conditional([0, 3], SEEN[[0, 3]])]
WANTED[1] = WANTED[1][:, ~MASK]


def law(schedule, times, mix, *, corrected=False):
    """Mean and covariance of the unknown pixels when known ones are replaced after each ancestral step, in float64.

    If corrected, the step's x_0 is the conditional mean given the known pixels too.
    """
    alpha_bar, one = np.asarray(schedule.signal, np.float64) ** 2, np.eye(4)
    m, v = np.zeros(4), one
    for t, s in itertools.pairwise(times):
        a, b = alpha_bar[t], alpha_bar[s]
        if s > t:
            m, v = np.sqrt(b / a) * m, b / a * v + (1 - b / a) * one
            continue
        gain = np.sqrt(a) * COV @ np.linalg.inv(a * COV + (1 - a) * one)
        rest = MEAN - np.sqrt(a) * gain @ MEAN
        if corrected:
            left = COV - np.sqrt(a) * gain @ COV
            pull = left[:, MASK] @ np.linalg.inv(left[np.ix_(MASK, MASK)])
            gain, rest = gain - pull @ gain[MASK], rest + pull @ (SEEN - rest)[MASK]
        small = (1 - b) * (1 - a / b) / (1 - a)
        spread = 0.0 if s == 0 else small ** (1 - mix) * (1 - a / b) ** mix
        on_x, on_x0 = np.sqrt(a / b) * (1 - b) / (1 - a), np.sqrt(b) * (1 - a / b) / (1 - a)
        transition = on_x * one + on_x0 * gain
        m = transition @ m + on_x0 * rest
        v = transition @ v @ transition.T + spread * one
        m[MASK], v[MASK], v[:, MASK] = np.sqrt(b) * SEEN[MASK], 0, 0
        v[MASK, MASK] = 1 - b
    return m[~MASK], v[np.ix_(~MASK, ~MASK)]


def walk(step, keys, state, times):
    """The state at the end, by a compiled step: a scan would be another program for each length."""
    for t, s in itertools.pairwise(np.asarray(times, np.int32)):
        state = step(keys, state, t, s)
    return state


# --- known pixels, written into the chain


@pytest.mark.parametrize("corrected", [False, True])
def test_the_inpainted_chain_has_the_law_that_its_steps_say(corrected):
    schedule, n, known = schedules.linear(100, 1e-3, 0.2), 8192, SEEN[None].astype("f4")
    denoise = ideal(schedule)
    if corrected:
        denoise = ideal_given(schedule, known, MASK)
    sampler = editing.inpainting(schedule, samplers.ancestral(schedule, denoise, variance_mix=0.5), known, MASK)
    step, keys = jax.jit(sampler.step), samplers.image_keys(1, range(n))
    for jump, repeats in ((1, 1),) if corrected else ((1, 1), (4, 3)):
        times, keys = (
            editing.repaint_times(samplers.times(100, 25), jump=jump, repeats=repeats),
            samplers.image_keys(1, range(n)),
        )
        x_T = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)
        x = np.asarray(walk(step, keys, sampler.init(x_T, jnp.int32(times[0])), times).x, np.float64)
        mean, cov = law(schedule, times, 0.5, corrected=corrected)
        assert (np.abs(x[:, ~MASK].mean(0) - mean) < 4 * np.sqrt(np.diag(cov) / n)).all(), (jump, repeats)
        error = np.sqrt((np.outer(np.diag(cov), np.diag(cov)) + cov**2) / n)
        assert (np.abs(np.cov(x[:, ~MASK].T) - cov) < 4 * error).all(), (jump, repeats)
        np.testing.assert_array_equal(x[:, MASK], np.broadcast_to(SEEN[MASK].astype("f4"), (n, 2)))


def test_going_over_times_again_brings_replaced_pixels_near_the_conditional_law():
    """What is left of the bias of the mean and of the covariance: the standard deviation there is 0.27."""
    with jax.enable_x64(True):
        schedule, times = schedules.linear(1000), samplers.times(1000, 250)
        left = []
        for repeats in (1, 5, 20):
            mean, cov = law(schedule, editing.repaint_times(times, jump=1, repeats=repeats), 1.0)
            left.append((abs(mean - WANTED[0]).max(), abs(cov - WANTED[1]).max()))
    assert left[0][0] > 0.05 and left[0][1] > 0.035  # replacement alone is off by a fifth of a standard deviation
    assert left[1][0] < 0.0125 and left[1][1] < 0.0075
    assert left[2][0] < 0.004 and left[2][1] < 0.0025


def test_known_pixels_written_into_a_chain_that_is_conditioned_leave_the_conditional_law():
    with jax.enable_x64(True):
        schedule, left = schedules.linear(1000), []
        for steps in (50, 250, 1000):
            mean, cov = law(schedule, samplers.times(1000, steps), 1.0, corrected=True)
            left.append(max(abs(mean - WANTED[0]).max(), abs(cov - WANTED[1]).max()))
    # what is left are errors of the solver, which fall with the steps
    assert left[0] < 0.015 and left[1] < 3e-3 and left[2] < 6e-4, left


def lugmayr(steps, jump, repeats):
    """The schedule of the paper's appendix, down and up by ones, zero-based and -1 for the data."""
    jumps = {j: repeats - 1 for j in range(0, steps - jump, jump)}
    t, visited = steps, []
    while t >= 1:
        t -= 1
        visited.append(t)
        if jumps.get(t, 0) > 0:
            jumps[t] -= 1
            for _ in range(jump):
                t += 1
                visited.append(t)
    return [*visited, -1]


@pytest.mark.parametrize(("steps", "jump", "repeats"), [(250, 10, 10), (50, 7, 2), (12, 1, 3), (9, 8, 2), (5, 9, 4)])
def test_times_go_back_up_where_the_paper_s_do(steps, jump, repeats):
    paper = lugmayr(steps, jump, repeats)
    turns = [paper[0], *(b for a, b, c in zip(paper, paper[1:], paper[2:], strict=False) if b - a != c - b), -1]
    found = editing.repaint_times(np.arange(steps, -1, -1, dtype=np.int32), jump=jump, repeats=repeats)
    ours = found.tolist()
    ours = [ours[0], *(b for a, b, c in zip(ours, ours[1:], ours[2:], strict=False) if (b > a) != (c > b)), 0]
    assert ours == [t + 1 for t in turns]
    # the paper's starts at the highest time, before which there is nothing to fall from
    assert (np.diff(found) < 0).sum() == sum(b < a for a, b in itertools.pairwise(paper))


@pytest.mark.parametrize("solver", ["ancestral", "dpm_solver_pp"])
def test_a_mask_without_known_pixels_changes_nothing_and_one_of_all_gives_the_image(solver):
    schedule, falling, keys = schedules.linear(100), samplers.times(100, 12), samplers.image_keys(0, range(3))
    known = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    x_T = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    plain = samplers.ancestral(schedule, ideal(schedule), variance_mix=0.5)
    if solver == "dpm_solver_pp":
        plain = samplers.dpm_solver_pp(schedule, ideal(schedule), order=3)
    step, painted = (
        jax.jit(plain.step),
        jax.jit(lambda mask, *step_args: editing.inpainting(schedule, plain, known, mask).step(*step_args)),
    )

    def run(mask, times):
        sampler = editing.inpainting(schedule, plain, known, mask)
        state = sampler.init(jnp.asarray(x_T), jnp.int32(times[0]))
        return np.asarray(walk(functools.partial(painted, mask), keys, state, times).x)

    empty, full, again = np.zeros(4, bool), np.ones(4, bool), editing.repaint_times(falling, jump=3, repeats=2)
    np.testing.assert_array_equal(run(full, again), known)
    without = walk(step, keys, plain.init(jnp.asarray(x_T), jnp.int32(falling[0])), falling).x
    np.testing.assert_allclose(run(empty, falling), without, rtol=0, atol=1e-6)
    assert np.isfinite(run(empty, again)).all()


def test_no_noise_is_drawn_twice_however_often_a_time_is_visited():
    """A sampler that is nothing but the noise it draws, over times that rise: every image of it is another."""
    schedule = schedules.linear(100)
    times = editing.repaint_times(samplers.times(100, 8), jump=2, repeats=3)

    def step(keys, state, t, s):
        return samplers.State(samplers.step_noise(keys, t, state.x), state.x0, s)

    noise = samplers.Sampler(lambda x, t: samplers.State(x, jnp.zeros_like(x), t), step)
    keys, known, signal = samplers.image_keys(0, range(50)), np.zeros((1, 40), np.float32), np.asarray(schedule.signal)
    sampler = editing.inpainting(schedule, noise, known, np.arange(40) < 20)
    move = jax.jit(lambda state, t, s: sampler.step(keys, state, t, s))
    x_T = jax.jit(lambda keys: samplers.initial_noise(keys, (40,)))(keys)
    state, drawn = sampler.init(x_T, jnp.int32(times[0])), [np.asarray(x_T)]
    for t, s in itertools.pairwise(times):
        before, state = state, move(state, t, s)
        x = np.asarray(state.x)
        if s > t:  # what the forward step added
            x = x - signal[s] / signal[t] * np.asarray(before.x)
        drawn += [] if s == 0 else [x]
    # what the sampler itself drew for pixels that were known, in the first pass
    own = jax.jit(lambda t: samplers.step_noise(keys, t, x_T))
    first_pass = times[: 1 + np.argmax(np.diff(times) > 0)]
    hidden = [np.asarray(own(t))[:, :20] for t in first_pass]
    for name, arrays in (("all", drawn), ("known", [x[:, :20] for x in drawn] + hidden)):
        flat = np.stack([x.reshape(-1) / x.std() for x in arrays])
        most = abs(np.corrcoef(flat)[np.triu_indices(len(flat), 1)]).max()
        assert len(flat) > 20 and most < 5 / np.sqrt(flat.shape[1]), name


def test_another_image_and_mask_are_no_other_program():
    schedule, keys, traced = schedules.linear(100), samplers.image_keys(0, range(2)), []
    x_T = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    times = editing.repaint_times(samplers.times(100, 6), jump=2, repeats=2)

    @jax.jit
    def draw(known, mask):
        traced.append(known)
        denoise = ideal_given(schedule, known, mask)
        inner = editing.sdedit(schedule, samplers.ancestral(schedule, denoise), known)
        return samplers.sample(keys, editing.inpainting(schedule, inner, known, mask), x_T, times)

    for value, count in ((0.1, 1), (0.9, 4), (-0.3, 0)):
        x = np.asarray(draw(np.full((1, 4), value, np.float32), np.arange(4) < count))
        assert (x[:, :count] == np.float32(value)).all() and np.isfinite(x).all()
    assert len(traced) == 1


# --- pictures to start from


def test_a_chain_from_an_image_keeps_more_of_it_the_later_it_begins():
    """From strength 1 on, nothing but the share signal_T; for Gaussian data the way down is affine in the image."""
    schedule, times, keys = schedules.linear(1000), samplers.times(1000, 100), samplers.image_keys(0, range(2))
    x_T = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    image = np.array([[0.9, -0.9, 0.9, -0.9]], np.float32)
    plain = samplers.ddim(schedule, ideal(schedule))
    sampler, step = editing.sdedit(schedule, plain, image), jax.jit(plain.step)
    assert sampler.step is plain.step
    np.testing.assert_array_equal(editing.truncate_times(times, 1.0), times)
    off = []
    for strength in (0.02, 0.3, 1.0):
        part = editing.truncate_times(times, strength)
        assert part[0] <= strength * 1000 < times[len(times) - len(part) - 1] or strength == 1
        x = np.asarray(walk(step, keys, sampler.init(jnp.asarray(x_T), jnp.int32(part[0])), part).x)
        off.append(np.sqrt(np.mean((x - image) ** 2)))
    assert off[0] < 0.1 and (np.diff(off) > 0).all()
    without = walk(step, keys, plain.init(jnp.asarray(x_T), jnp.int32(1000)), times).x
    np.testing.assert_allclose(x, without, atol=2 * float(schedule.signal[1000]))


def test_an_inverted_image_comes_back():
    with jax.enable_x64(True):
        schedule, times = schedules.linear(1000), samplers.times(1000, 50)
        x0 = np.random.default_rng(0).normal(size=(3, 4)) * 0.5

        @jax.jit
        def there_and_back(x0):
            keys, backs = samplers.image_keys(0, range(3)), {}
            for iterations in (1, 3, 10):
                latent = editing.invert(schedule, ideal(schedule), x0, times, iterations=iterations)
                backs[iterations] = samplers.sample(keys, samplers.ddim(schedule, ideal(schedule)), latent, times)
            return backs

        max_errors = {iterations: np.abs(back - x0).max() for iterations, back in there_and_back(x0).items()}
    assert max_errors[1] < 0.2 and max_errors[3] < 0.02 and max_errors[10] < 1e-5, max_errors


def test_inversion_follows_the_exact_flow_to_the_noise():
    """The probability flow carries x_0 = m + C^1/2 u to signal m + (signal^2 C + noise^2)^1/2 u."""
    with jax.enable_x64(True):
        schedule = schedules.linear(1000)
        values, vectors = np.linalg.eigh(COV)
        u = np.random.default_rng(0).normal(size=(3, 4))
        x0 = MEAN + (u @ vectors * np.sqrt(values)) @ vectors.T
        a, noise = float(schedule.signal[1000]), float(schedule.noise[1000])
        x_T = a * MEAN + (u @ vectors * np.sqrt(a**2 * values + noise**2)) @ vectors.T
        inverse = editing.ddim_inverse(schedule, ideal(schedule))
        step, off = jax.jit(inverse.step), []
        for n in (100, 1000):
            times = samplers.times(1000, n)[::-1]
            end = walk(step, None, inverse.init(jnp.asarray(x0), jnp.int32(0)), times)
            off.append(np.abs(np.asarray(end.x) - x_T).max())
    assert off[0] < 0.15 and off[1] < off[0] / 5, off


def test_slerp_keeps_the_length_of_noise_and_meets_both_ends():
    a, b = np.random.default_rng(0).normal(size=(2, 2, 40, 50)).astype(np.float32)
    slerp = jax.jit(editing.slerp)

    def between(a, b, weights):
        return np.asarray(slerp(a, b, np.array(weights, np.float32)))

    np.testing.assert_allclose(between(a, b, [0, 0]), a, atol=1e-6)
    np.testing.assert_allclose(between(a, b, [1, 1]), b, atol=1e-6)
    middle = between(a, b, [0.5, 0.25])
    # 2000 components: a mean square of 1 within 4 standard errors, where the straight line has 0.5 and 0.625
    assert (abs(np.square(middle).mean((1, 2)) - 1) < 4 * np.sqrt(2 / 2000)).all()
    np.testing.assert_allclose(between(a, b, [0.3, 0.3]), between(b, a, [0.7, 0.7]), atol=1e-5)
    np.testing.assert_allclose(between(a, a, [0.3, 0.3]), a, rtol=1e-6)
    np.testing.assert_allclose(slerp(a, b, np.float32(0.5))[0], middle[0], rtol=1e-6)


def test_given_images_in_float64_leave_the_others_in_float32():
    with jax.enable_x64(True):
        schedule, x, given = schedules.linear(10, 5e-3, 0.6), jnp.ones((2, 4), jnp.float32), np.ones((2, 4))
        denoise, keys = ideal(schedule), samplers.image_keys(0, range(2))
        measured = measurements.condition_on_measurement(schedule, denoise, lambda x: 2 * x, given, noise=0.1)
        for sampler in (
            editing.inpainting(schedule, samplers.ddim(schedule, denoise), given, given > 0),
            editing.sdedit(schedule, samplers.ddim(schedule, denoise), given),
            samplers.ddim(schedule, measured),
        ):
            draw = functools.partial(samplers.sample, sampler=sampler, x_T=x, times=samplers.times(10, 3))
            assert jax.eval_shape(draw, keys).dtype == jnp.float32


def test_slerp_of_equal_images_has_the_derivative_of_the_straight_line():
    a = np.random.default_rng(0).normal(size=(1, 12)).astype(np.float32)
    found = jax.jacobian(lambda x: editing.slerp(x, a, np.float32(0.25))[0])(a)[:, 0]
    np.testing.assert_allclose(found, 0.75 * np.eye(12), atol=1e-6)


@pytest.mark.parametrize("times", [[100, 29, 0], [3, 1, 0]])
def test_the_strength_that_a_refusal_names_leaves_a_step(times):
    with pytest.raises(ValueError, match="leaves no step") as refusal:
        editing.truncate_times(times, 0.1)
    named = float(re.search(r"take (\S+) or more", str(refusal.value))[1])
    np.testing.assert_array_equal(editing.truncate_times(times, named), times[1:])


# --- refusals


def test_wrong_requests_are_refused():
    schedule, times = schedules.linear(100), samplers.times(100, 10)
    plain, x = samplers.ancestral(schedule, ideal(schedule)), np.zeros((1, 4), np.float32)
    soft = np.full(4, 0.5, np.float32)
    cases = [
        (lambda: editing.inpainting(schedule, plain, x, soft), "mask must be bool, True where a pixel is known"),
        (lambda: editing.ddim_inverse(schedule, ideal(schedule), iterations=0), "iterations must be at least 1, got 0"),
        (
            lambda: editing.repaint_times(times, jump=0, repeats=2),
            "jump and repeats must be integers of at least 1, got 0 and 2",
        ),
        (lambda: editing.truncate_times(times, 1.5), "strength must lie in (0, 1], got 1.5"),
        (lambda: editing.truncate_times(times, 0.001), "strength 0.001 leaves no step of 10: take 0.01 or more"),
        (lambda: samplers.sample(samplers.image_keys(0, [0]), plain, x, [5, 7, 0]), "times must be a falling vector"),
    ]
    for call, text in cases:
        with pytest.raises(ValueError, match=re.escape(text)):
            call()
    both = editing.inpainting(schedule, plain, x, MASK)
    with pytest.raises(ValueError, match=r"no two neighbours equal, got \[5 5 0\]"):
        samplers.sample(samplers.image_keys(0, [0]), both, x, [5, 5, 0])
