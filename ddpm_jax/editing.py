"""Image editing: inpainting, image-to-image, inversion and interpolation.

Each is a `Sampler` around a sampler or a denoiser, so they combine with each other and any network:

    inpainting    RePaint: known pixels are set after every step, and times may go back up
    sdedit        SDEdit: the reverse process from a noised image instead of from noise
    ddim_inverse  the deterministic reverse process backwards, from an image to its noise

A mask is True where a pixel is known.  Known pixels are kept exactly.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import gaussian, samplers
from ddpm_jax.gaussian import Denoiser
from ddpm_jax.keys import FORWARD_STREAM, KNOWN_STREAM, REPEAT_STREAM, fold_in_all
from ddpm_jax.samplers import Sampler, SamplerState, State
from ddpm_jax.schedules import Schedule, gather


class RePaintState(NamedTuple):
    """A `State` with the number of forward steps so far, forward_steps [], and the inner sampler's state."""

    x: jax.Array
    x0: jax.Array
    t: jax.Array
    forward_steps: jax.Array
    inner_state: SamplerState


def inpainting(schedule: Schedule, sampler: Sampler, known: jax.Array, mask: jax.Array) -> Sampler:
    """RePaint: the sampler with known pixels drawn from q(x_s | known) after each step to s; `known` itself at s = 0.

    Times may rise (`repaint_times`): from t to a later s the whole image takes one step of the forward process,
    x_s ~ q(x_s | x_t), without a function evaluation, and the inner sampler starts afresh.  Lugmayr et al.
    (arXiv:2201.09865), algorithm 1.  As there, a step to s does not use the known pixels at s, so the others fit them
    only after they are noised and denoised again.  docs/editing.md measures the bias for data of a known law;
    `measurements.condition_on_measurement` has none there.

    No noise is drawn twice: after the n-th forward step the keys are fold_in(fold_in(key_i, REPEAT_STREAM), n).  If no
    pixel is known and times fall, the samples are those of the inner sampler.

    Args:
        known: [B, ...] or [1, ...] images, data units; pixels outside the mask are not used.
        mask: bool, True where known; its shape broadcasts to the images'.

    Raises:
        ValueError: if the mask is not boolean; when it starts, if known or mask has not a shape as above.
    """
    check_mask(mask)

    def init(x: jax.Array, t: jax.Array) -> RePaintState:
        check_image("known", known, x)
        check_mask(mask, x)
        inner = sampler.init(x, t)
        return RePaintState(inner.x, inner.x0, inner.t, jnp.zeros((), jnp.uint32), inner)

    def step(keys: jax.Array, state: RePaintState, t: jax.Array, s: jax.Array) -> RePaintState:
        keys = _pass_keys(keys, state.forward_steps)

        def reverse_step() -> SamplerState:
            inner = sampler.step(keys, state.inner_state, t, s)
            eps = samplers.step_noise(fold_in_all(keys, KNOWN_STREAM), s, inner.x)
            signal, noise = gather(schedule.signal, s, inner.x), gather(schedule.noise, s, inner.x)
            return inner._replace(x=jnp.where(mask, signal * jnp.asarray(known, eps.dtype) + noise * eps, inner.x))

        def forward_step() -> SamplerState:
            scale = gather(schedule.signal, s, state.x) / gather(schedule.signal, t, state.x)
            std = gather(schedule.noise, s, state.x) * jnp.sqrt(gaussian.one_minus_snr_ratio(schedule, s, t, state.x))
            eps = samplers.step_noise(fold_in_all(keys, FORWARD_STREAM), s, state.x)
            return sampler.init(scale * state.x + std * eps, s)

        inner = jax.lax.cond(s < t, reverse_step, forward_step)
        return RePaintState(inner.x, inner.x0, inner.t, state.forward_steps + (s > t).astype(jnp.uint32), inner)

    return Sampler(init, step, allows_forward_steps=True)


def repaint_times(times: np.ndarray, *, jump: int, repeats: int) -> np.ndarray:
    """RePaint's times: int32, falling but for the jumps up, after which each stretch is sampled again.

    Wherever a multiple of `jump` steps is left before the last one, times go back up by `jump` steps and fall again,
    until they have fallen `repeats` times.  The schedule of Lugmayr et al. (arXiv:2201.09865, figure 9 in its
    appendix), but with one step up for each jump, which has the same law.

    Args:
        times: [n+1] falling integers, e.g. `samplers.times(T, n)`.
        jump: steps up, at least 1; no more than jump steps are not repeated.
        repeats: 1 leaves the times as they are.

    Returns:
        Times for a sampler that allows forward steps: a step down is one function evaluation, a step up is none.

    Raises:
        ValueError: if jump or repeats is below 1.
    """
    if not all(isinstance(n, (int, np.integer)) and n >= 1 for n in (jump, repeats)):
        raise ValueError(f"jump and repeats must be integers of at least 1, got {jump} and {repeats}")
    base_times, n = [int(t) for t in times], len(times) - 1
    visited = base_times[:1]
    for left in range(n - 1, -1, -1):
        visited.append(base_times[n - left])
        if left and (left - 1) % jump == 0 and left + jump <= n:
            again = base_times[n - left - jump : n - left + 1]
            visited += again * (repeats - 1)
    return np.array(visited, np.int32)


def sdedit(schedule: Schedule, sampler: Sampler, image: jax.Array) -> Sampler:
    """SDEdit: the sampler started at x_t = signal_t image + noise_t eps, where eps is the given x_T.

    Meng et al. (arXiv:2108.01073), algorithm 1, with the sampler's own reverse process, over `truncate_times`.  From
    t = T this is sampling from noise, but for the share signal_T of the image.

    Args:
        image: [B, ...] or [1, ...], data units.
    """

    def init(x: jax.Array, t: jax.Array) -> SamplerState:
        check_image("image", image, x)
        signal, noise = gather(schedule.signal, t, x), gather(schedule.noise, t, x)
        return sampler.init(signal * jnp.asarray(image, x.dtype) + noise * x, t)

    return sampler._replace(init=init)


def truncate_times(times: np.ndarray, strength: float) -> np.ndarray:
    """SDEdit's times: those of at most strength times the first.

    Args:
        times: [n+1] falling integers.
        strength: in (0, 1]; 1 is all of them.

    Raises:
        ValueError: if strength lies outside, or leaves no step.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength must lie in (0, 1], got {strength}")
    times = np.asarray(times)
    shares = times / times[0]  # 29 / 100 is 0.29, while 0.29 * 100 is less than 29
    part = times[shares <= strength]
    if len(part) < 2:
        raise ValueError(f"strength {strength:g} leaves no step of {len(times) - 1}: take {shares[-2]} or more")
    return part


def ddim_inverse(schedule: Schedule, denoise: Denoiser, *, iterations: int = 2) -> Sampler:
    """DDIM inversion: the inverse of `samplers.ddim` with eta 0, over rising times.

    A step from t to s > t returns an x_s that ddim maps to x_t, the solution of

        x_s = signal_s (x_t - noise_t eps_hat(x_s, s)) / signal_t + noise_s eps_hat(x_s, s)

    by fixed-point iteration from x_s = x_t.  One iteration is the usual inversion (Song et al., arXiv:2010.02502,
    section 5.4, with eps_hat at s: at the data there is no other); with more the reconstruction is closer, see
    docs/editing.md.  With clipping ddim's last step has no inverse, as it maps many x_s to one x_0; any of them is
    returned.

    Args:
        iterations: function evaluations for each step.

    Raises:
        ValueError: if iterations is below 1.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")

    def step(keys: jax.Array, state: State, t: jax.Array, s: jax.Array) -> State:
        x = state.x
        scale = gather(schedule.signal, s, x) / gather(schedule.signal, t, x)
        gain = gather(schedule.noise, s, x) - scale * gather(schedule.noise, t, x)

        def iterate(_: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            estimate = gaussian.apply_denoiser(denoise, carry[0], s)
            return scale * x + gain * estimate.eps, estimate.x0

        x_s, x0 = jax.lax.fori_loop(0, iterations, iterate, (x, state.x0))
        return State(x_s, x0, s)

    return Sampler(lambda x, t: State(x, jnp.zeros_like(x), t), step, allows_forward_steps=True)


def invert(
    schedule: Schedule, denoise: Denoiser, x0: jax.Array, times: np.ndarray | Sequence[int], *, iterations: int = 2
) -> jax.Array:
    """The x_T [B, ...] from which `samplers.ddim` with eta 0 makes x_0 over these times, by `ddim_inverse`.

    Args:
        x0: [B, ...] images, data units.
        times: [n+1] falling integers, as for sampling.
    """
    unused_keys = samplers.image_keys(0, range(x0.shape[0]))  # nothing is drawn
    inverse = ddim_inverse(schedule, denoise, iterations=iterations)
    return samplers.sample(unused_keys, inverse, x0, np.asarray(times)[::-1])


def slerp(a: jax.Array, b: jax.Array, weight: jax.Array) -> jax.Array:
    """Spherical interpolation from a (weight 0) to b (weight 1), each image a single vector: [B, ...].

        (sin((1 - w) angle) a + sin(w angle) b) / sin(angle)

    Shoemake (1985).  Between two draws of noise, points of the arc have the length of a draw, those of the straight
    line have not.  Where a and b have the same direction, it is the straight line; where one of them is 0, or they have
    opposite directions, NaN.

    Args:
        a, b: [B, ...].
        weight: [B] or [], in [0, 1].

    Raises:
        ValueError: if a and b are not float arrays of one shape, the weight has another one, or a numpy array holds an
            image of zeros.
    """
    gaussian.check_batch(a=a, b=b)
    if jnp.shape(weight) not in ((), a.shape[:1]):
        raise ValueError(f"weight must have the shape () or {a.shape[:1]}, got {jnp.shape(weight)}")
    if any(isinstance(end, np.ndarray) and not end.reshape(len(end), -1).any(1).all() for end in (a, b)):
        raise ValueError("a and b must not be 0: such images have no direction")
    axes = tuple(range(1, a.ndim))
    w = jnp.broadcast_to(weight, a.shape[:1]).reshape((-1,) + (1,) * (a.ndim - 1)).astype(a.dtype)
    lengths = jnp.sqrt(jnp.sum(a**2, axes, keepdims=True) * jnp.sum(b**2, axes, keepdims=True))
    cosine = jnp.clip(jnp.sum(a * b, axes, keepdims=True) / lengths, -1, 1)
    near = 1 - cosine**2 < 1e-8
    angle = jnp.arccos(jnp.where(near, 0, cosine))  # at 1 it has no derivative
    sine = jnp.where(near, jnp.where(cosine > 0, 1, jnp.nan), jnp.sin(angle))
    of_a = jnp.where(near, 1 - w, jnp.sin((1 - w) * angle)) / sine
    of_b = jnp.where(near, w, jnp.sin(w * angle)) / sine
    return of_a * a + of_b * b


def _pass_keys(keys: jax.Array, forward_steps: jax.Array) -> jax.Array:
    """The keys before any forward step, and others after each; selected as data, as a selection of keys uses them."""
    again = jax.random.key_data(fold_in_all(fold_in_all(keys, REPEAT_STREAM), forward_steps))
    data = jnp.where(forward_steps == 0, jax.random.key_data(keys), again)
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(keys))


def check_image(name: str, image: jax.Array, x: jax.Array, shape_of: str = "x") -> None:
    """Raises a ValueError unless the image is one for each of x, or one for all."""
    gaussian.check_batch(**{name: image})
    if image.shape[1:] != x.shape[1:] or image.shape[0] not in (1, x.shape[0]):
        raise ValueError(f"{name} must have the shape of {shape_of}, {x.shape}, or of one for all, got {image.shape}")


def check_mask(mask: jax.Array, x: jax.Array | None = None) -> None:
    """Raises a ValueError unless the mask is boolean and, given x, its shape broadcasts to that of x."""
    if mask.dtype != jnp.bool_:
        raise ValueError(f"mask must be bool, True where a pixel is known (there are no soft masks), got {mask.dtype}")
    if x is None:
        return
    pairs = zip(reversed(mask.shape), reversed(x.shape), strict=False)
    if mask.ndim > x.ndim or any(m not in (1, n) for m, n in pairs):
        raise ValueError(f"mask must have a shape that broadcasts to that of the images, {x.shape}, got {mask.shape}")
