"""Parameters of layers and their initialisation."""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ddpm_jax import keys

_on_host = contextvars.ContextVar("on_host", default=False)


@contextlib.contextmanager
def drawn_on_host() -> Iterator[None]:
    """Context in which `parameter` draws by numpy, bit for bit the same, even while the network is traced.

    Its keys must not be traced.  Layers that do not use `parameter` are not affected.
    """
    token = _on_host.set(True)
    try:
        yield
    finally:
        _on_host.reset(token)


def parameter(module: nn.Module, name: str, init: Callable[..., Any], shape: tuple[int, ...]) -> jax.Array:
    """A float32 parameter, as `module.param` returns it.

    That traces `init` at each call to compare shapes, which is nearly half of the time of tracing a network.
    """
    if module.has_variable("params", name):
        value = module.get_variable("params", name)
        if getattr(value, "shape", None) == shape:
            return value
    with jax.ensure_compile_time_eval() if _on_host.get() else contextlib.nullcontext():
        return module.param(name, init, shape, jnp.float32)


def at_least_float32(dtype: DTypeLike) -> jnp.dtype:
    """The dtype of sums and statistics: float64 for float64, else float32."""
    return jnp.dtype(jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32)


def add_bias(x: jax.Array, bias: jax.Array, shift: jax.Array | None = None) -> jax.Array:
    """x [B, ..., C] + bias [C] + shift [B, C], in the dtype of x; sums and gradients in float32 or wider."""
    wide = at_least_float32(x.dtype)
    terms = (bias.astype(wide)[None],) if shift is None else (bias.astype(wide)[None], shift.astype(wide))
    if shift is not None and x.dtype != wide:  # the barrier keeps one sum over pixels for both gradients
        terms = jax.lax.optimization_barrier(tuple(jnp.broadcast_to(term, shift.shape) for term in terms))
    inner = tuple(range(1, x.ndim - 1))
    return functools.reduce(lambda y, term: y + jnp.expand_dims(term, inner), terms, x.astype(wide)).astype(x.dtype)


def constant(value: float) -> Callable[..., Any]:
    """Initialisation with one number."""
    return lambda key, shape, dtype: (np if _on_host.get() else jnp).full(shape, value, dtype)


def fan_average(scale: float = 1.0) -> Callable[..., Any]:
    """Uniform initialisation with variance scale / mean(fan-in, fan-out)."""
    if scale == 0:
        return constant(0)
    traced = nn.initializers.variance_scaling(scale, "fan_avg", "uniform")

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array | np.ndarray:
        if not _on_host.get():
            return traced(key, shape, dtype)
        fan = math.prod(shape[:-2]) * (shape[-2] + shape[-1]) / 2
        return keys.uniform_on_host(key, shape) * np.sqrt(3 * np.float32(scale / fan))

    return draw
