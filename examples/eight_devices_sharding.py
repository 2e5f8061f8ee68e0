"""Training on several devices with jit and sharded arrays: no axis is named, the compiler sums the gradients.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python examples/eight_devices_sharding.py

The step is the one of a single device; where the arrays lie decides how it is divided.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddpm_jax import UNet, data, gaussian, keys, losses, samplers, schedules, training

BATCH = 32


def main(steps=5, num=16):
    """Trains on all devices and draws `num` images on them; returns the losses, those of one device, and the images."""
    images = data.normalize(data.load("digits").train, levels=17)
    schedule = schedules.linear(1000)
    net = UNet(
        channels=8, channel_multipliers=(1,), num_res_blocks=1, attention_resolutions=(), groups=4, out_channels=1
    )
    params = jax.jit(net.init)(keys.from_seed(0), images[:1], jnp.ones((1,), int))

    def loss(params, example_keys, x0):
        return losses.simple_loss(example_keys, schedule, partial(net.apply, params), x0).mean()

    mesh = Mesh(jax.local_devices(), ("batch",))
    divided, whole = NamedSharding(mesh, PartitionSpec("batch")), NamedSharding(mesh, PartitionSpec())
    optimizer = training.optimizer(1e-3, warmup=0)
    step = jax.jit(training.make_step(loss, optimizer, ema_decay=0.99))
    single = training.init(params, optimizer)
    state, key = jax.device_put((single, keys.from_seed(2)), whole)
    order = data.EpochShuffle(keys.from_seed(1), len(images))
    found = [], []
    for n in range(steps):
        x0 = images[order.indices(n, BATCH)]
        state, metrics = step(key, state, jax.device_put(x0, divided))
        single, expected = step(keys.from_seed(2), single, x0)
        found[0].append(float(metrics["loss"]))
        found[1].append(float(expected["loss"]))
        print(f"step {n + 1}: loss {found[0][-1]:.6f} on {mesh.size} devices, {found[1][-1]:.6f} on one")

    @jax.jit
    def draw(params, image_keys):
        denoise = gaussian.denoiser(schedule, partial(net.apply, params), predicts="eps", clip=True)
        x_T = samplers.initial_noise(image_keys, images.shape[1:])
        return samplers.sample(image_keys, samplers.ddim(schedule, denoise), x_T, samplers.times(1000, 10))

    x = draw(state.ema, jax.device_put(samplers.image_keys(seed=0, indices=range(num)), divided))
    print(f"{num} images, {x.addressable_shards[0].data.shape[0]} on each device")
    return *found, x


if __name__ == "__main__":
    main()
