"""Multistep samplers: DPM-Solver++ and UniPC, by polynomials through the latest predictions of x_0.

Both solve the deterministic flow (the probability flow ODE) from t to s, with lambda = log(signal / noise) as its time:

    x_s = noise_s / noise_t x_t + signal_s int_0^h exp(u - h) p(u) du,    h = lambda_s - lambda_t

where p is the polynomial through the x_0_hat of the latest function evaluations, t's at u = 0.  In Newton's form

    p(u) = x_0_hat_t + first_difference u + second_difference u (u + step_size)

with step_size = lambda_t - lambda of the evaluation before t; differences are 0 if there are too few evaluations.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import gaussian
from ddpm_jax.gaussian import Denoiser
from ddpm_jax.samplers.chain import Sampler
from ddpm_jax.schedules import Schedule, gather

QUADRATURE = [((1 + float(y)) / 2, float(m) / 2) for y, m in zip(*np.polynomial.legendre.leggauss(8), strict=True)]
"""Gauss-Legendre nodes and weights on [0, 1]: exact for polynomials up to degree 15, and exp to the last digit."""


class MultistepState(NamedTuple):
    """A `State` with the last two steps; step sizes [] are in half log SNR, infinite if there is no step.

    step_size: of the step to t.
    previous_x0, previous_step_size: the x_0 predicted one step earlier [B, ...], and the size of that step.
    """

    x: jax.Array
    x0: jax.Array
    t: jax.Array
    step_size: jax.Array
    previous_x0: jax.Array
    previous_step_size: jax.Array


class UniPCState(NamedTuple):
    """A `MultistepState` to be corrected by correction_weight [] (x_0_hat_t - expected_x0 [B, ...])."""

    x: jax.Array
    x0: jax.Array
    t: jax.Array
    step_size: jax.Array
    previous_x0: jax.Array
    previous_step_size: jax.Array
    expected_x0: jax.Array
    correction_weight: jax.Array


_AnyState = MultistepState | UniPCState
_Integrals = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def dpm_solver_pp(
    schedule: Schedule,
    denoise: Denoiser,
    *,
    order: Literal[1, 2, 3] = 2,
    solver_type: Literal["midpoint", "integral"] = "midpoint",
) -> Sampler:
    """DPM-Solver++ (Lu et al., arXiv:2211.01095), multistep.

    See the module for the step; p is of degree order - 1.  Order 1 is `ddim` with eta 0.  One function evaluation for
    each step.  The first steps, with too few evaluations before them, and the step to the data, whose h is infinite,
    are of lower order.

    Args:
        solver_type: the integral of u in order 2: "midpoint" takes h / 2 for u, as the paper does, "integral" the
            integral itself, as order 3 does and diffusers with solver_type "heun".

    Raises:
        ValueError: if the order is not 1, 2 or 3, or `solver_type` has another value.
    """
    _check_order(order)
    if solver_type not in ("midpoint", "integral"):
        raise ValueError(f"solver_type must be 'midpoint' or 'integral', got {solver_type!r}")

    def step(keys: jax.Array, state: MultistepState, t: jax.Array, s: jax.Array) -> MultistepState:
        x0 = gaussian.apply_denoiser(denoise, state.x, t).x0
        h, integrals = _integrals(schedule, t, s, state.x)
        first_difference, second_difference = _differences(state, x0, order)
        if order == 2 and solver_type == "midpoint":
            integrals = _midpoint(h, integrals)
        x = _polynomial_step(schedule, state, state.x, x0, s, integrals, first_difference, second_difference)
        return MultistepState(x, x0, s, h, state.x0, state.step_size)

    return Sampler(_init_multistep, step)


def unipc(schedule: Schedule, denoise: Denoiser, *, order: Literal[1, 2, 3] = 2) -> Sampler:
    """UniPC (Zhao et al., arXiv:2302.04867), multistep: a predictor, and a corrector from the same function evaluation.

    The predictor is that of `dpm_solver_pp`, with p of degree order - 1.  The next step's evaluation gives x_0_hat at
    s, and the corrector repeats the step with the polynomial of one degree more through this point, integrated exactly:
    it adds

        signal_s int_0^h exp(u - h) prod_k (u - u_k) / (h - u_k) du (x_0_hat_s - p(h)),    u_k the nodes of p

    So one evaluation for each step gives about one order more than dpm_solver_pp: 2, 3 and 3.4 are measured.  The
    paper's B(h) makes a difference in two places: the predictor of order 2 has it here too, the corrector of order 1
    has not.  The step to the data is of order 1 and is not corrected.

    The correction also moves pixels that are set between two steps, as by `editing.inpainting`.

    Raises:
        ValueError: if the order is not 1, 2 or 3.
    """
    _check_order(order)

    def init(x: jax.Array, t: jax.Array) -> UniPCState:
        return UniPCState(*_init_multistep(x, t), jnp.zeros_like(x), jnp.zeros((), x.dtype))

    def step(keys: jax.Array, state: UniPCState, t: jax.Array, s: jax.Array) -> UniPCState:
        x0 = gaussian.apply_denoiser(denoise, state.x, t).x0
        x_t = state.x + state.correction_weight * (x0 - state.expected_x0)
        h, integrals = _integrals(schedule, t, s, x_t)
        first_difference, second_difference = _differences(state, x0, order)
        predictor_integrals = _midpoint(h, integrals) if order == 2 else integrals
        x = _polynomial_step(schedule, state, x_t, x0, s, predictor_integrals, first_difference, second_difference)
        width = jnp.where(jnp.isfinite(h), h, 1.0)  # the step to the data is not corrected: its weight is 0
        weight = _corrector_weight(state, width, integrals, order)
        expected = x0 + width * first_difference + width * (width + _finite_step_size(state)) * second_difference
        expected -= jnp.where(weight > 0, (integrals[1] - predictor_integrals[1]) / weight, 0.0) * first_difference
        return UniPCState(x, x0, s, h, state.x0, state.step_size, expected, gather(schedule.signal, s, x0) * weight)

    return Sampler(init, step)


def _check_order(order: int) -> None:
    if order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3, got {order!r}")


def _init_multistep(x: jax.Array, t: jax.Array) -> MultistepState:
    zeros, infinite = jnp.zeros_like(x), jnp.full((), jnp.inf, x.dtype)
    return MultistepState(x, zeros, t, infinite, zeros, infinite)


def _integrals(schedule: Schedule, t: jax.Array, s: jax.Array, like: jax.Array) -> tuple[jax.Array, _Integrals]:
    """h, and int_0^h exp(u - h) u^k du for k = 0..3: 1, 0, 0, 0 if h is infinite."""
    h = -0.5 * gaussian.log_snr_ratio(schedule, t, s, like)
    integrals = [-jnp.expm1(-h)]
    for k in (1, 2, 3):
        # in parts; of a short step that would be a difference of nearly equal numbers, and quadrature is exact
        short = jnp.minimum(h, 1.0)
        by_nodes = short ** (k + 1) * sum(m * y**k * jnp.exp(short * (y - 1)) for y, m in QUADRATURE)
        integrals.append(jnp.where(h < 1, by_nodes, jnp.where(jnp.isfinite(h), h**k - k * integrals[-1], 0.0)))
    return h, (integrals[0], integrals[1], integrals[2], integrals[3])


def _midpoint(h: jax.Array, integrals: _Integrals) -> _Integrals:
    """The integrals with that of u by the midpoint, h / 2 for u."""
    u0, _, u2, u3 = integrals
    return u0, jnp.where(jnp.isfinite(h), u0 * h / 2, 0.0), u2, u3


def _differences(state: _AnyState, x0: jax.Array, order: int) -> tuple[jax.Array, jax.Array]:
    """First and second divided difference; 0 beyond the order."""
    first_difference = (x0 - state.x0) / state.step_size
    second_difference = (first_difference - (state.x0 - state.previous_x0) / state.previous_step_size) / (
        state.step_size + state.previous_step_size
    )
    return first_difference if order > 1 else jnp.zeros_like(x0), second_difference if order > 2 else jnp.zeros_like(x0)


def _polynomial_step(
    schedule: Schedule,
    state: _AnyState,
    x_t: jax.Array,
    x0: jax.Array,
    s: jax.Array,
    integrals: _Integrals,
    first_difference: jax.Array,
    second_difference: jax.Array,
) -> jax.Array:
    """x_s, by the polynomial through the predictions."""
    u0, u1, u2, _ = integrals
    integral = u0 * x0 + u1 * first_difference + (u2 + _finite_step_size(state) * u1) * second_difference
    return (
        gather(schedule.noise, s, x_t) / gather(schedule.noise, state.t, x_t) * x_t
        + gather(schedule.signal, s, x_t) * integral
    )


def _corrector_weight(state: _AnyState, h: jax.Array, integrals: _Integrals, order: int) -> jax.Array:
    """int_0^h exp(u - h) prod_k (u - u_k) / (h - u_k) du; the nodes of p are 0 and the order - 1 evaluations before."""
    _, u1, u2, u3 = integrals
    # the factor of an earlier node is a u + b; 1 if there is none
    a = 1 / (h + state.step_size) if order > 1 else jnp.zeros_like(h)
    c = 1 / (h + state.step_size + state.previous_step_size) if order > 2 else jnp.zeros_like(h)
    b, d = 1 - h * a, 1 - h * c
    return (a * c * u3 + (a * d + b * c) * u2 + b * d * u1) / h


def _finite_step_size(state: _AnyState) -> jax.Array:
    """The size of the step to t; 0 if there was none and the second difference is 0."""
    return jnp.where(jnp.isfinite(state.step_size), state.step_size, 0.0)
