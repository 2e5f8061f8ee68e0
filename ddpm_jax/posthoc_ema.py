"""Post-hoc EMA: averages of the parameters with power-function profiles, and others of any length made of them.

Karras et al. (arXiv:2312.02696), section 3 and appendix C.  With the parameters theta(tau) after update tau, the
average after t updates is the integral of p(tau) theta(tau) over 0 < tau < t, with the profile

    p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1)

Its length sigma_rel is the standard deviation of p divided by t: at every t the average covers the same share of the
training.  Training keeps a few such averages; least squares over their profiles give the weights by which snapshots of
them add up to an average of another length.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddpm_jax.training import Params

MAX_LENGTH = 12**-0.5
"""The length of the uniform average, gamma = 0."""

_RESOLUTION = 2.0**16


class Profiles(NamedTuple):
    """n profiles: the exponents gamma [n], and the numbers of updates t [n] after which they end."""

    gamma: np.ndarray
    t: np.ndarray


class PowerEmaState(NamedTuple):
    """The number of updates, [] int32, and the averages after them, a tree of parameters for each length."""

    count: jax.Array
    averages: tuple[Params, ...]


def gamma_of_length(length: float) -> float:
    """The exponent of a profile of this length sigma_rel: the largest root of a cubic equation.

    Raises:
        ValueError: if the length lies outside (0, 12^(-1/2)].
    """
    if not 0 < length <= MAX_LENGTH:
        raise ValueError(f"a relative length must lie in (0, {MAX_LENGTH:.4f}], got {length}")
    # sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))
    roots = np.roots([1, 7, 16 - length**-2, 12 - length**-2])
    return max(0.0, float(roots.real.max()))


def power_ema(lengths: Sequence[float]) -> optax.GradientTransformation:
    """An optax transformation that averages the parameters after each update and leaves the updates unchanged.

    It must be the last of an `optax.chain`.  The rule is average + (1 - beta_t) (theta_t - average) with
    beta_t = (1 - 1/t)^(gamma + 1), for the updates t = 1, 2, ...; it is exact for parameters that are constant between
    updates.  beta_1 is 0, so the initial parameters have no weight.

    Raises:
        ValueError: as `gamma_of_length`; when it updates, if it gets no parameters.
    """
    gammas = [gamma_of_length(length) for length in lengths]

    def init(params: Params) -> PowerEmaState:
        averages = tuple(jax.tree.map(jnp.zeros_like, params) for _ in gammas)
        return PowerEmaState(jnp.zeros((), jnp.int32), averages)

    def update(updates: Params, state: Any, params: Params = None) -> tuple[Params, PowerEmaState]:
        if params is None:
            raise ValueError("power_ema averages parameters: call update(updates, state, params)")
        count, new = state.count + 1, optax.apply_updates(params, updates)
        log_share = jnp.log1p(-1 / count.astype(jnp.float32))  # 1 - 1/t itself has too few digits when t is large

        def corrected(gamma: float, average: Params) -> Params:
            gain = -jnp.expm1((gamma + 1) * log_share)  # 1 - beta_t
            return jax.tree.map(lambda a, p: a + gain.astype(a.dtype) * (p - a), average, new)

        return updates, PowerEmaState(count, tuple(map(corrected, gammas, state.averages)))

    return optax.GradientTransformation(init, update)


def kept_averages(opt_state: Any) -> PowerEmaState:
    """The averages in the state of an optimizer that is a chain with `power_ema` as its last part."""
    return opt_state[-1]


def inner_products(a: Profiles, b: Profiles) -> np.ndarray:
    """The integrals [n, m] of p_a p_b over all tau, of n and m profiles."""
    gamma_a, t_a = a.gamma[:, None], a.t[:, None]
    shorter, longer = np.minimum(t_a, b.t), np.maximum(t_a, b.t)
    of_last = np.where(t_a <= b.t, b.gamma, gamma_a)
    return (gamma_a + 1) * (b.gamma + 1) / (gamma_a + b.gamma + 1) / longer * (shorter / longer) ** of_last


def fit(profiles: Profiles, length: float, t: float) -> tuple[np.ndarray, float]:
    """The weights [n] by which the kept profiles approximate the one of this length that ends after t updates.

    They minimise the integral of the squared difference.  Unlike the paper's they sum to 1: an error of the sum would
    scale the parameters.  They are multiples of 2^-16, so that rounding errors, which differ between machines, do not
    change them; a profile that is itself kept has the weight 1.

    Returns:
        The weights, and the norm of the difference relative to that of the profile.

    Raises:
        ValueError: as `gamma_of_length`.
    """
    target = Profiles(np.array([gamma_of_length(length)]), np.array([float(t)]))
    gram, right = inner_products(profiles, profiles), inner_products(profiles, target)[:, 0]
    scale, n = 1 / np.sqrt(np.diag(gram)), len(right)  # of profiles with norm 1 the equations are well conditioned
    equations = np.zeros((n + 1, n + 1))
    equations[:n, :n] = gram * scale * scale[:, None]
    equations[n, :n] = equations[:n, n] = scale
    solution = np.linalg.lstsq(equations, np.append(right * scale, 1.0), rcond=None)[0][:n] * scale
    weights = np.round(solution * _RESOLUTION) / _RESOLUTION
    weights[np.argmax(np.abs(weights))] += 1 - weights.sum()
    norm = float(inner_products(target, target)[0, 0])
    return weights, float(np.sqrt(max(0.0, 1 + (weights @ gram @ weights - 2 * weights @ right) / norm)))


def weighted_sum(weights: Iterable[float], trees: Iterable[Any]) -> Any:
    """The sum of trees of float32 arrays with these weights, one after the other in float64, as float32 on the host."""
    total = None
    for weight, tree in zip(weights, trees, strict=True):
        part = jax.tree.map(lambda leaf, weight=weight: weight * np.asarray(leaf, np.float64), tree)
        total = part if total is None else jax.tree.map(np.add, total, part)
    return jax.tree.map(lambda leaf: leaf.astype(np.float32), total)
