"""Training on several devices with pmap: the same losses as on one device.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python examples/eight_devices_pmap.py

On a machine with several GPUs or TPU chips leave XLA_FLAGS out.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import UNet, data, keys, losses, schedules, training

BATCH = 32


def main(steps=5):
    """Prints the loss of each step on all devices and on one, and returns both lists."""
    images = data.normalize(data.load("digits").train, levels=17)
    schedule = schedules.linear(1000)
    net = UNet(
        channels=8, channel_multipliers=(1,), num_res_blocks=1, attention_resolutions=(), groups=4, out_channels=1
    )
    params = jax.jit(net.init)(keys.from_seed(0), images[:1], jnp.ones((1,), int))

    def loss(params, example_keys, x0):
        return losses.simple_loss(example_keys, schedule, partial(net.apply, params), x0).mean()

    optimizer = training.optimizer(1e-3, warmup=0)
    make_step = partial(training.make_step, loss, optimizer, ema_decay=0.99)
    devices = jax.local_devices()
    if BATCH % len(devices):
        raise ValueError(f"a batch of {BATCH} cannot be spread over {len(devices)} devices")

    # the state whole on every device, the batch [devices, images of each, ...]; the step averages over "batch"
    spread = jax.pmap(make_step(axis_name="batch"), axis_name="batch", in_axes=(None, None, 0), out_axes=None)
    alone = jax.jit(make_step())
    found = [], []
    state = single = training.init(params, optimizer)
    order = data.EpochShuffle(keys.from_seed(1), len(images))
    for n in range(steps):
        x0 = images[order.indices(n, BATCH)]
        parts = np.reshape(x0, (len(devices), -1, *x0.shape[1:]))
        state, metrics = spread(keys.from_seed(2), state, parts)
        single, expected = alone(keys.from_seed(2), single, x0)
        found[0].append(float(metrics["loss"]))
        found[1].append(float(expected["loss"]))
        print(f"step {n + 1}: loss {found[0][-1]:.6f} on {len(devices)} devices, {found[1][-1]:.6f} on one")
    return found


if __name__ == "__main__":
    main()
