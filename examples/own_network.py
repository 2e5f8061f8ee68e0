"""A network of your own: a plain JAX function that learns points of a spiral.

    python examples/own_network.py

A network is any function (x_t, t) -> output.  Losses and samplers take arrays of any shape, here [B, 2].
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp

from ddpm_jax import gaussian, keys, losses, samplers, schedules, training

T, WIDTH = 200, 64


def spiral(key, num):
    """Points [num, 2] of a spiral in [-1, 1]^2."""
    angle = jax.random.uniform(key, (num,), minval=1.0, maxval=3.0) * 2 * jnp.pi
    return angle[:, None] / (6 * jnp.pi) * jnp.stack([jnp.cos(angle), jnp.sin(angle)], 1)


def init(key):
    sizes = (2 + 16, WIDTH, WIDTH, 2)
    shapes = list(itertools.pairwise(sizes))
    drawn = [jax.random.normal(k, shape) for k, shape in zip(jax.random.split(key, len(shapes)), shapes, strict=True)]
    return [(w / len(w) ** 0.5, jnp.zeros(w.shape[1])) for w in drawn]


def net(params, x_t, t):
    """The predicted noise: a multilayer perceptron of the point and of waves of the time."""
    angle = jnp.broadcast_to(t, x_t.shape[:1])[:, None] / T * 2.0 ** jnp.arange(8)
    h = jnp.concatenate([x_t, jnp.sin(angle), jnp.cos(angle)], 1)
    for w, b in params[:-1]:
        h = jax.nn.silu(h @ w + b)
    w, b = params[-1]
    return h @ w + b


def main(steps=3000, num=500):
    """Trains and samples; returns the mean distance of the samples to the spiral."""
    schedule = schedules.linear(T, 5e-4, 0.1)

    def loss(params, keys, x0):
        return losses.simple_loss(keys, schedule, partial(net, params), x0).mean()

    optimizer = training.optimizer(3e-3, warmup=50)
    step = jax.jit(training.make_step(loss, optimizer, ema_decay=0.99))
    state = training.init(init(keys.from_seed(0)), optimizer)
    points = spiral(keys.from_seed(1), 4096)
    for n in range(steps):
        state, metrics = step(keys.from_seed(2), state, points[n % 16 :: 16])
    print(f"loss {metrics['loss']:.3f}")

    denoise = gaussian.denoiser(schedule, partial(net, state.ema), predicts="eps")
    image_keys = samplers.image_keys(seed=0, indices=range(num))
    x_T = samplers.initial_noise(image_keys, (2,))
    x = samplers.sample(image_keys, samplers.ancestral(schedule, denoise), x_T, samplers.times(T, T))
    distance = jnp.linalg.norm(x[:, None] - points, axis=-1).min(1).mean()
    print(f"mean distance of {num} samples to the spiral: {distance:.3f}")
    return float(distance)


if __name__ == "__main__":
    main()
