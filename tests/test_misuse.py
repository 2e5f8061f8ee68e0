"""What would give a plausible number and be wrong: outputs that broadcast, times and options outside their range.

Shapes, and what is known on the host, are errors; of times in arrays on a device, which nobody waits for, comes NaN.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import (
    conformance,
    denoisers,
    editing,
    gaussian,
    guidance,
    likelihood,
    losses,
    measurements,
    samplers,
    schedules,
    training,
)

T = 10
SCHEDULE = schedules.linear(T, 5e-3, 0.6)
X = np.linspace(-1, 1, 2 * 3 * 3, dtype=np.float32).reshape(2, 3, 3)
KEYS = samplers.image_keys(0, range(2))
TIMES = samplers.times(T, 2)
T2 = np.array([3, 10], np.int32)


def grey(x, t):
    """One channel for three."""
    return 0.5 * x[..., :1]


def same(x, t):
    return 0.5 * x


def wide(x, t):
    return jnp.concatenate([0.5 * x, 0.1 * x], -1)


def denoise(x, t, x0=same, eps=same, variance_mix=None):
    return gaussian.Estimate(x0(x, t), eps(x, t), variance_mix)


GREY_X0, GREY_EPS = functools.partial(denoise, x0=grey), functools.partial(denoise, eps=grey)
BAD_MIX = functools.partial(denoise, variance_mix=jnp.zeros(3))  # would be taken for one of each channel


def sample(of):
    return lambda denoise: samplers.sample(KEYS, of(denoise), jnp.asarray(X), TIMES)


LOSSES = {
    "denoising": lambda net: losses.denoising_loss(SCHEDULE, net, X, T2, X),
    "weighted": lambda net: losses.denoising_loss(SCHEDULE, net, X, T2, X, predicts="v", weight=losses.snr),
    "simple": lambda net: losses.simple_loss(KEYS, SCHEDULE, net, X),
    "equation 12": lambda net: losses.weighted_loss(SCHEDULE, net, X, T2, X),
    "variational": lambda net: losses.variational_loss(KEYS, SCHEDULE, net, X),
    "hybrid": lambda net: losses.hybrid_loss(KEYS, SCHEDULE, net, X),
    "denoiser": lambda net: gaussian.denoiser(SCHEDULE, net)(X, T2),
}
USES = {
    "bound": lambda of: likelihood.vlb(KEYS, SCHEDULE, of, X, decoder=likelihood.gaussian_density),
    "bound_estimate": lambda of: likelihood.estimate_vlb(KEYS, SCHEDULE, of, X, decoder=likelihood.gaussian_density),
    "ancestral": sample(lambda of: samplers.ancestral(SCHEDULE, of)),
    "analytic": sample(lambda of: samplers.analytic(SCHEDULE, of, np.full(T + 1, 0.1, np.float32))),
    "ddim": sample(lambda of: samplers.ddim(SCHEDULE, of, eta=0.5)),
    "dpm_solver_pp": sample(lambda of: samplers.dpm_solver_pp(SCHEDULE, of)),
    "unipc": sample(lambda of: samplers.unipc(SCHEDULE, of)),
    "ddim_inverse": lambda of: editing.invert(SCHEDULE, of, X, TIMES),
    "measured": lambda of: measurements.condition_on_measurement(SCHEDULE, of, measurements.grey, X[..., :1])(X, T2),
    "limited": lambda of: denoisers.limit_x0(SCHEDULE, of, denoisers.clip)(X, T2),
    "scaled": lambda of: denoisers.scale_eps(SCHEDULE, of, 1.1)(X, T2),
}


@pytest.mark.parametrize("name", LOSSES)
def test_an_output_that_broadcasts_is_no_loss(name):
    with pytest.raises(ValueError, match=r"shape|return"):
        LOSSES[name](grey)


@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("wrong", [GREY_X0, GREY_EPS, BAD_MIX], ids=["x0", "eps", "mix"])
def test_an_estimate_that_broadcasts_is_refused(name, wrong):
    with pytest.raises(ValueError, match=r"denoiser's (x0|eps|mix) must"):
        USES[name](wrong)


def test_noise_times_and_images_of_another_shape_are_refused():
    for wrong in (
        lambda: losses.denoising_loss(SCHEDULE, same, X, T2, X[..., :1]),
        lambda: losses.simple_loss(KEYS, SCHEDULE, same, X, eps=X[:1]),
        lambda: losses.simple_loss(KEYS, SCHEDULE, same, X, t=T2[:1]),
        lambda: losses.variational_loss(KEYS, SCHEDULE, same, X, t=np.array([[3], [10]])),
        lambda: editing.slerp(X, X[..., :1], 0.5),
        lambda: editing.slerp(X, X, np.ones((3, 3), np.float32)),
        lambda: sample(lambda of: editing.sdedit(SCHEDULE, samplers.ddim(SCHEDULE, of), X[..., :1]))(denoise),
        lambda: sample(lambda of: editing.inpainting(SCHEDULE, samplers.ddim(SCHEDULE, of), X[0], X > 0))(denoise),
        lambda: measurements.condition_on_measurement(SCHEDULE, denoise, measurements.grey, X)(X, T2),
    ):
        with pytest.raises(ValueError, match="shape"):
            wrong()


@pytest.mark.parametrize("shape", [(2, 3), (4, 3, 3), (1, 2, 3, 3)])
def test_a_mask_that_would_change_the_shape_of_images_is_refused(shape):
    mask, x = np.ones(shape, bool), jnp.asarray(X)
    for wrong in (
        lambda: sample(lambda of: editing.inpainting(SCHEDULE, samplers.ddim(SCHEDULE, of), X, mask))(denoise),
        lambda: measurements.known_pixels(mask)(x),
    ):
        with pytest.raises(ValueError, match=rf"mask must have .* \(2, 3, 3\), got {re.escape(str(shape))}"):
            wrong()


def test_known_images_that_are_not_scaled_are_refused():
    with pytest.raises(ValueError, match=r"known must be float32 or float64, got uint8: scale images to \[-1, 1\]"):
        sample(lambda of: editing.inpainting(SCHEDULE, samplers.ddim(SCHEDULE, of), X.astype(np.uint8), X > 0))(denoise)


# --- times


OF_T = {
    "q_sample": lambda t: gaussian.q_sample(SCHEDULE, X, t, X),
    "marginal": lambda t: gaussian.marginal(SCHEDULE, X, t),
    "posterior": lambda t: gaussian.posterior(SCHEDULE, X, X, t, t - 1),
    "reverse_variance": lambda t: gaussian.reverse_variance(SCHEDULE, t, t - 1, X),
    **{
        f"estimate {of}": lambda t, of=of: gaussian.estimate(SCHEDULE, of, X, X, t) for of in ("eps", "x0", "v", "mean")
    },
    "target v": lambda t: gaussian.target(SCHEDULE, "v", X, X, t),
    "target mean": lambda t: gaussian.target(SCHEDULE, "mean", X, X, t),
    "denoiser": lambda t: gaussian.denoiser(SCHEDULE, same)(X, t),
    "clipped": lambda t: gaussian.denoiser(SCHEDULE, same, "x0", clip=True)(X, t),
    "limited": lambda t: denoisers.limit_x0(SCHEDULE, gaussian.denoiser(SCHEDULE, same), denoisers.clip)(X, t),
    "denoising_loss": lambda t: losses.denoising_loss(SCHEDULE, same, X, t, X),
    "simple_loss": lambda t: losses.simple_loss(KEYS, SCHEDULE, same, X, predicts="x0", weight=losses.snr, t=t),
    "variational_loss": lambda t: losses.variational_loss(KEYS, SCHEDULE, same, X, t=t),
    "hybrid_loss": lambda t: losses.hybrid_loss(KEYS, SCHEDULE, wide, X, t=t),
    "weighted_loss": lambda t: losses.weighted_loss(SCHEDULE, same, X, t, X),
    "variational_weight": lambda t: losses.variational_weight(SCHEDULE, t),
    "term": lambda t: likelihood.vlb_term(
        KEYS, SCHEDULE, denoise, X, t, t - 1, decoder=likelihood.gaussian_density, decoder_var=0.1
    ),
    "prior_kl": lambda t: likelihood.prior_kl(SCHEDULE, X, t),
    "ideal": lambda t: conformance.ideal_denoiser(SCHEDULE, conformance.gaussian_data(np.zeros(3), np.eye(3)))(
        X[0, :2], t
    ),
}


@pytest.mark.parametrize("jitted", [False, True], ids=["out of jit", "in jit"])
@pytest.mark.parametrize("name", OF_T)
def test_of_times_on_a_device_that_a_schedule_has_not_comes_nan_and_of_the_others_not(name, jitted):
    of = jax.jit(OF_T[name]) if jitted else OF_T[name]
    for wrong in (0, -1, T + 1, 2**31 - 1):
        invalid, valid = ([np.broadcast_to(leaf, (2, *np.shape(leaf)[1:]))[i] for leaf in jax.tree.leaves(
            of(jnp.array([wrong, 5], jnp.int32)))] for i in range(2))  # fmt: skip
        assert all(np.isnan(leaf).all() for leaf in invalid), wrong
        assert all(np.isfinite(leaf).all() for leaf in valid), wrong


@pytest.mark.parametrize("name", OF_T)
def test_times_that_are_known_are_refused(name):
    for wrong in (np.array([0, 5]), np.array([T + 1, 5])):
        with pytest.raises(ValueError, match=rf"t must lie in 1\.\.{T}"):
            OF_T[name](wrong)
    for wrong in (-1, 0, T + 1):
        with pytest.raises(ValueError, match=rf"t must lie in 1\.\.{T} .*got {wrong}"):
            OF_T[name](wrong)


def test_of_a_step_that_does_not_fall_comes_nan():
    t, s = jnp.array([5, 5, 5, 5]), jnp.array([5, 6, -1, 4])
    x = np.ones((4, 2), np.float32)
    for found in (gaussian.posterior(SCHEDULE, x, x, t, s).mean, gaussian.reverse_variance(SCHEDULE, t, s, x)):
        np.testing.assert_array_equal(np.isnan(np.broadcast_to(found, x.shape)).all(1), [True, True, True, False])


@pytest.mark.parametrize("name", ["ancestral", "analytic", "ddim", "dpm_solver_pp", "unipc"])
def test_a_chain_from_beyond_the_schedule_ends_in_nan(name):
    of = {
        "ancestral": lambda: samplers.ancestral(SCHEDULE, denoise),
        "analytic": lambda: samplers.analytic(SCHEDULE, denoise, np.full(T + 1, 0.1, np.float32)),
        "ddim": lambda: samplers.ddim(SCHEDULE, denoise),
        "dpm_solver_pp": lambda: samplers.dpm_solver_pp(SCHEDULE, denoise),
        "unipc": lambda: samplers.unipc(SCHEDULE, denoise),
    }[name]()
    assert np.isnan(samplers.sample(KEYS, of, jnp.asarray(X), np.array([T + 1, 5, 0]))).all()
    assert np.isfinite(samplers.sample(KEYS, of, jnp.asarray(X), np.array([T, 5, 0]))).all()


def test_a_loss_at_no_time_shows_in_the_history():
    history = losses.empty_loss_history(3, 1)
    for t in (0, -1, 4):
        wrong = losses.record_losses(history, jnp.array([1, 2, 3, t]), jnp.ones(4))
        assert np.isnan(losses.importance_probabilities(wrong)).all(), t
    assert np.isfinite(
        losses.importance_probabilities(losses.record_losses(history, jnp.array([1, 2, 3]), jnp.ones(3)))
    ).all()


def test_moments_and_flow_know_their_times():
    law = conformance.gaussian_data(np.zeros(2), np.eye(2))
    for wrong in (-1, T + 1):
        with pytest.raises(ValueError, match=rf"a time must lie in 0\.\.{T}, got {wrong}"):
            conformance.marginal_moments(SCHEDULE, law, wrong)
        with pytest.raises(ValueError, match=rf"a time must lie in 0\.\.{T}, got {wrong}"):
            conformance.probability_flow(SCHEDULE, law, np.ones((1, 2)), 5, wrong)


# --- options


NAN = float("nan")
OPTIONS = {
    "eta": (lambda v: samplers.ddim(SCHEDULE, denoise, eta=v), (2, -0.1, NAN), r"eta must lie in \[0, 1\]"),
    "mix": (
        lambda v: samplers.ancestral(SCHEDULE, denoise, variance_mix=v), (2, -0.1, NAN),
        r"mix must lie in \[0, 1\]",
    ),
    "mix of the bound": (
        lambda v: likelihood.vlb(KEYS, SCHEDULE, denoise, X, variance_mix=v, decoder=likelihood.gaussian_density),
        (2, -0.1, NAN), r"mix must lie in \[0, 1\]",
    ),
    "mix of its estimate": (
        lambda v: likelihood.estimate_vlb(
            KEYS, SCHEDULE, denoise, X, variance_mix=v, decoder=likelihood.gaussian_density
        ),
        (2, -0.1, NAN), r"mix must lie in \[0, 1\]",
    ),
    "mix of the loss": (
        lambda v: losses.variational_loss(KEYS, SCHEDULE, same, X, variance_mix=v), (2, -0.1, NAN),
        r"mix must lie in \[0, 1\]",
    ),
    "factor": (lambda v: denoisers.scale_eps(SCHEDULE, denoise, v), (0, -1, NAN), "factor must be positive"),
    "factors": (
        lambda v: denoisers.scale_eps(SCHEDULE, denoise, np.full(v, 1.01)), (T, T + 2, (T + 1, 1)),
        r"factor must be a number or a column \(11,\)",
    ),
    "null label": (
        lambda v: guidance.null_condition(guidance.Condition(label=np.zeros(2, np.uint8)), v), (256, 1000),
        "labels of uint8 cannot hold the null label .*: give them as int32",
    ),
    "sections": (lambda v: samplers.section_times(T, v), ([-1, 3], [1.5, 3], [True, 3], []), "counts must"),
    "T of times": (lambda v: samplers.times(v, 2), (0, 2.5, True), "T must be an integer"),
    "T of sections": (lambda v: samplers.section_times(v, [1]), (0, 2.5, True), "T must be an integer"),
    "jump": (lambda v: editing.repaint_times(TIMES, jump=v, repeats=2), (0, 1.5, NAN), "jump and repeats must be"),
    "repeats": (lambda v: editing.repaint_times(TIMES, jump=1, repeats=v), (0, 1.5, NAN), "jump and repeats must be"),
    "clip": (lambda v: training.optimizer(1e-3, clip=v), (0, -1, NAN), "clip must be positive, or None"),
    "rate": (lambda v: training.optimizer(v), (-1, NAN, float("inf")), "learning_rate must be"),
    "warmup": (lambda v: training.optimizer(1e-3, warmup=v), (-1, 1.5), "warmup and decay must be"),
    "decay": (lambda v: training.optimizer(1e-3, warmup=0, decay=v), (-1, 1.5), "warmup and decay must be"),
    "b1": (lambda v: training.optimizer(1e-3, b1=v), (1, -0.1, NAN), r"b1 and b2 must lie in \[0, 1\)"),
    "b2": (lambda v: training.optimizer(1e-3, b2=v), (1, -0.1, NAN), r"b1 and b2 must lie in \[0, 1\)"),
    "eps": (lambda v: training.optimizer(1e-3, eps=v), (0, -1, NAN), "eps must be positive"),
    "ema": (
        lambda v: training.make_step(None, training.optimizer(1e-3), ema_decay=v), (1.0, -0.1, NAN),
        r"ema_decay must lie in \[0, 1\)",
    ),
    "accumulate": (
        lambda v: training.make_step(None, training.optimizer(1e-3), accumulate=v), (0, -1, 1.5), "accumulate must be",
    ),
    "slerp": (lambda v: editing.slerp(v * X, X, np.float32(0.5)), (0,), "have no direction"),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_options_outside_their_range_are_refused(name):
    of, values, message = OPTIONS[name]
    for wrong in values:
        with pytest.raises(ValueError, match=message):
            of(wrong)


def test_of_an_eta_on_a_device_outside_its_range_comes_nan():
    draw = jax.jit(lambda eta: samplers.sample(KEYS, samplers.ddim(SCHEDULE, denoise, eta=eta), jnp.asarray(X), TIMES))
    assert np.isnan(draw(1.5)).all() and np.isnan(draw(-0.5)).all() and np.isfinite(draw(1.0)).all()


def test_of_a_direction_that_there_is_not_comes_nan():
    a = jnp.array([[1.0, 0], [0, 0], [1, 0], [1, 0]])
    b = jnp.array([[0.0, 1], [1, 0], [-1, 0], [2, 0]])
    found = np.asarray(editing.slerp(a, b, jnp.float32(0.5)))
    np.testing.assert_array_equal(np.isnan(found).all(1), [False, True, True, False])
    np.testing.assert_allclose(found[[0, 3]], [[0.5**0.5, 0.5**0.5], [1.5, 0]], rtol=1e-6)
