"""Workloads of one network in this library and in others, each in a process that takes turns.

    python -m benchmarks.workloads NAME SPEC    # ours, ours-sharded or one of `peers.MAKERS`; JSON of a `WorkloadSpec`

Workloads are "train" (training steps), "network" (function evaluations), "sample" (DDIM with as many function
evaluations), "likelihood" (the bound with as many, only this library's) and "product" (matrix products, for the
machine's peak).  A training step is the same everywhere: noise at random timesteps, L_simple, gradients clipped to a
norm of 1, Adam and EMA; images are random and in memory.
"""

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.alternating import Workload, max_rss, serve

NUM_MATMULS = 4  # the products of square matrices that make a turn


@dataclasses.dataclass(frozen=True)
class WorkloadSpec:
    """One configuration of a benchmark.

    Attributes:
        config: a config's file.
        shape: of an image, (H, W, C).
        batch: images at a time, in training and sampling.
        unet: the arguments of diffusers' `UNet2DModel`.
        parameters: their number.
        steps, nfe: in one turn of "train", and of "network" and "sample".
        dtype: float32, or bfloat16 (in the others: autocast).
        sampler: of this library; others have DDIM.
    """

    config: str
    shape: tuple[int, ...]
    batch: int
    unet: dict[str, Any]
    parameters: int
    steps: int = 2
    nfe: int = 4
    dtype: str = "float32"
    sampler: str = "ddim"


def ours(spec: WorkloadSpec, shard_update: bool = False) -> dict[str, Workload]:
    """Workloads of this library, as its programs run them."""
    from ddpm_jax import process

    process.initialize()
    import jax
    import jax.numpy as jnp
    import numpy as np

    from ddpm_jax import data, likelihood

    devices = jax.local_devices()
    model, images = make_model(spec, shard_update=shard_update)
    train, _, state = train_workload(model, images, spec.steps)
    params = jax.tree.map(jnp.array, state.params)
    one = jax.make_jaxpr(model.net(params, model.empty_condition(1)))(jnp.zeros((1, *spec.shape)), jnp.ones(1, int))
    metadata = {"parameters": sum(leaf.size for leaf in jax.tree.leaves(params)), "operations": count_flops(one.jaxpr)}

    over, times = (len(devices), spec.batch // len(devices)), model.times
    x0 = jnp.reshape(data.normalize(jnp.asarray(images.train[: spec.batch]), 256), (*over, *spec.shape))
    empty_conditions, scalars = model.empty_condition(over[1]), model.scalars()

    def vlb(params, keys, x0):
        denoise = model.denoiser(params, empty_conditions, scalars)
        return likelihood.vlb(
            keys, model.schedule, denoise, x0, variance_mix=1.0, decoder=model.decoder, times=times
        ).total

    vlb_program = jax.pmap(vlb, axis_name="batch", in_axes=(None, 0, 0))
    keys = jnp.reshape(jax.random.split(jax.random.key(0, impl="threefry2x32"), spec.batch), over)

    side, dtype = product_kind(spec, devices[0].platform)
    matrix = jnp.asarray(np.random.default_rng(0).standard_normal((len(devices), side, side)), dtype)
    product = jax.pmap(jnp.matmul)

    def products():
        out = matrix
        for _ in range(NUM_MATMULS):
            out = product(matrix, matrix)
        jax.block_until_ready(out)

    return {
        "train": Workload(train.run, {**metadata, **train.metadata}),
        **{name: Workload(run, metadata) for name, run in sampling(model, params, spec.batch, spec.nfe).items()},
        "likelihood": Workload(lambda: jax.block_until_ready(vlb_program(params, keys, x0)), metadata),
        "product": Workload(products, {"operations": 2 * side**3 * NUM_MATMULS * len(devices)}),
    }


def make_model(spec: WorkloadSpec, **fields: Any) -> tuple[Any, Any]:
    """This library's model of a specification, with other fields of its config, and random images."""
    import jax
    import numpy as np

    from ddpm_jax import config as configs
    from ddpm_jax.model import build
    from ddpm_jax.preflight import lowering

    config = configs.load(spec.config)
    config = dataclasses.replace(
        config, batch=spec.batch, net=dataclasses.replace(config.net, dtype=spec.dtype),
        sampling=dataclasses.replace(config.sampling, sampler=spec.sampler, steps=spec.nfe,
                                     tile=spec.batch // jax.local_device_count(), guidance=1.0),
        **fields,
    )  # fmt: skip
    images = lowering.load_images(config, tuple(spec.shape), max(spec.batch, 256))
    images = images._replace(train=np.random.default_rng(0).integers(0, 256, images.train.shape, np.uint8))
    return build(config, spec.shape, 256), images


def train_workload(model: Any, images: Any, steps: int) -> tuple[Workload, Any, Any]:
    """Training steps of this library, with the seconds that one takes to lower and to compile.

    Returns:
        workload, the compiled step, and the state before the first step, which the first turn uses up.
    """
    import jax
    import numpy as np

    from ddpm_jax import data, trainer
    from ddpm_jax.conditions import DatasetConditions
    from ddpm_jax.data.device_loader import make_device_loader
    from ddpm_jax.preflight import lowering

    config, devices = model.config, jax.local_devices()
    mesh = jax.sharding.Mesh(np.array(devices), ("batch",))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    init_key, run_key, order_key, _ = trainer.run_keys(0)
    run_key, bad = jax.device_put((run_key, np.int32(0)), replicated)
    begun = time.perf_counter()
    lowered = lowering.lower_train_step(model, images, devices)
    middle = time.perf_counter()
    step = lowered.compile()
    metadata = {"lowering, seconds": middle - begun, "compilation, seconds": time.perf_counter() - middle}
    state = trainer.place_state(model, trainer.init_state(model, trainer.init_params(model, init_key)))
    order = data.EpochShuffle(order_key, len(images.train))
    fed = make_device_loader(images.train, order, config.batch, devices)
    batch = next(fed.batches(0))
    batch_conditions = DatasetConditions(config, images).device_batch(batch.indices)
    latest = [state]

    def train():
        for _ in range(steps):
            latest[0] = step(run_key, latest[0], bad, batch.pixels, batch.pixel_indices, batch_conditions, None)[0]
        jax.block_until_ready(latest[0])

    return Workload(train, {name: round(seconds, 2) for name, seconds in metadata.items()}), step, state


def sampling(model: Any, params: Any, batch: int, nfe: int) -> dict[str, Callable[[], Any]]:
    """A reverse process of this library, "sample", and as many as `nfe` function evaluations, "network"."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from ddpm_jax.pipeline import tiles

    over = (jax.local_device_count(), batch // jax.local_device_count())
    x, t = jnp.zeros((*over, *model.shape)), jnp.ones(over, int)
    forward = jax.pmap(lambda p, x, t: model.network.apply({"params": p}, x, t), "batch", in_axes=(None, 0, 0))

    def network():
        out = x
        for _ in range(nfe):
            out = forward(params, x, t)
        jax.block_until_ready(out)

    inputs, times = tiles.SamplerInputs(params, model.scalars()), model.times
    program = tiles.sampling_program(tiles.sampler_factory(model), model.shape)
    conditions = jax.tree.map(lambda a: a.reshape(*over, *a.shape[1:]), model.empty_condition(batch))
    tile, key = tiles.Tile(np.arange(batch).reshape(over), conditions), jax.random.key(0, impl="threefry2x32")
    return {"network": network, "sample": lambda: jax.block_until_ready(list(program(inputs, key, tile, times)))}


def product_kind(spec: WorkloadSpec, platform: str) -> tuple[int, str]:
    """The side of the matrices whose products show a platform's peak, and their precision."""
    return (1536, "float32") if platform == "cpu" else (8192, spec.dtype)


def count_flops(jaxpr: Any) -> int:
    """Floating-point operations of a program's convolutions and matrix products, two for each multiplication."""
    total = 0
    for equation in jaxpr.eqns:
        for inner in equation.params.values():
            # of what depends on the platform, the last is what is done on most
            inner = inner[-1] if isinstance(inner, tuple) and inner and hasattr(inner[-1], "jaxpr") else inner
            inner = getattr(inner, "jaxpr", inner)
            total += count_flops(inner) if hasattr(inner, "eqns") else 0
        out = equation.outvars[0].aval
        if equation.primitive.name == "conv_general_dilated":
            kernel, numbers = equation.invars[1].aval.shape, equation.params["dimension_numbers"].rhs_spec
            total += 2 * out.size * math.prod(kernel[axis] for axis in numbers[1:])
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2 * out.size * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    return total


def jax_memory() -> int:
    """Peak bytes of this library on the device, or of the process where the platform does not count them (a CPU)."""
    import jax

    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use") or max_rss()


def main(name: str, spec_json: str) -> None:
    spec = WorkloadSpec(**json.loads(spec_json))
    if name.startswith("ours"):
        serve(ours(spec, shard_update=name == "ours-sharded"), jax_memory)
    else:
        from benchmarks import peers

        serve(peers.MAKERS[name](spec), peers.torch_memory)


if __name__ == "__main__":
    main(*sys.argv[1:])
