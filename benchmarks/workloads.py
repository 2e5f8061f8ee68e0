"""Workloads of one network in this library and in others, each in a process that takes turns.

    python -m benchmarks.workloads NAME SPEC        # NAME is of LIBRARIES; SPEC is JSON, see `WorkloadSpec`

Workloads are "train" (training steps), "network" (function evaluations), "sample" (DDIM with as many function
evaluations), "likelihood" (the bound with as many, only this library's) and "product" (matrix products, for the
machine's peak).  A training step is the same everywhere: noise at random timesteps, L_simple, gradients clipped to a
norm of 1, Adam and EMA; images are random and in memory.
"""

import dataclasses
import importlib.metadata
import json
import math
import os
import sys
import types
from collections.abc import Callable
from typing import Any

from benchmarks.alternating import Workload, serve

LIBRARIES = ("ours", "ours-sharded", "diffusers", "diffusers-compiled", "denoising-diffusion-pytorch")
MATRIX_SIDE, NUM_MATMULS = 1536, 4  # the sides of square matrices, and how many products make a turn


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
    """

    config: str
    shape: tuple[int, ...]
    batch: int
    unet: dict[str, Any]
    parameters: int
    steps: int = 2
    nfe: int = 4
    dtype: str = "float32"


def ours(
    spec: WorkloadSpec, shard_update: bool = False, on_step: Callable[[Any], None] = lambda step: None
) -> dict[str, Workload]:
    """Workloads of this library, as its programs run them; `on_step` is called with the compiled training step."""
    from ddpm_jax import process
    from ddpm_jax.conditions import DatasetConditions

    process.initialize()
    import jax
    import jax.numpy as jnp
    import numpy as np

    from ddpm_jax import config as configs
    from ddpm_jax import data, likelihood, trainer
    from ddpm_jax.model import build
    from ddpm_jax.pipeline import tiles
    from ddpm_jax.preflight import lowering

    devices = jax.local_devices()
    config = configs.load(spec.config)
    config = dataclasses.replace(
        config, batch=spec.batch, shard_update=shard_update, net=dataclasses.replace(config.net, dtype=spec.dtype),
        sampling=dataclasses.replace(config.sampling, sampler="ddim", steps=spec.nfe,
                                     tile=spec.batch // len(devices), guidance=1.0),
    )  # fmt: skip
    images = lowering.load_images(config, tuple(spec.shape), max(spec.batch, 256))
    images = images._replace(train=np.random.default_rng(0).integers(0, 256, images.train.shape, np.uint8))
    model = build(config, spec.shape, 256)
    schedule, net = model.schedule, model.network
    mesh = jax.sharding.Mesh(np.array(devices), ("batch",))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    run_key, order_key = trainer.run_keys(0)[1:3]
    run_key, bad = jax.device_put((run_key, np.int32(0)), replicated)
    step = lowering.lower_train_step(model, images, devices).compile()
    on_step(step)
    state = trainer.place_state(model, lowering.train_state(model)[0](jax.random.key(0, impl="threefry2x32")))
    fed = data.device_loader.make_device_loader(
        images.train, data.EpochShuffle(order_key, len(images.train)), config.batch, devices
    )
    batch = next(fed.batches(0))
    batch_conditions = DatasetConditions(config, images).device_batch(batch.indices)
    latest = [state]

    def train():
        for _ in range(spec.steps):
            latest[0] = step(run_key, latest[0], bad, batch.pixels, batch.pixel_indices, batch_conditions, None)[0]
        jax.block_until_ready(latest[0])

    params = jax.tree.map(jnp.array, state.params)
    over = (len(devices), spec.batch // len(devices))
    x, t = jnp.zeros((*over, *spec.shape)), jnp.ones(over, int)
    forward = jax.pmap(lambda p, x, t: net.apply({"params": p}, x, t), axis_name="batch", in_axes=(None, 0, 0))

    def network():
        out = x
        for _ in range(spec.nfe):
            out = forward(params, x, t)
        jax.block_until_ready(out)

    inputs, times = tiles.SamplerInputs(params, model.scalars()), model.times
    sample_program = tiles.sampling_program(tiles.sampler_factory(model), model.shape)
    indices = np.arange(spec.batch).reshape(over)
    conditions = jax.tree.map(lambda a: a.reshape(*over, *a.shape[1:]), model.empty_condition(spec.batch))
    tile, key = tiles.Tile(indices, conditions), jax.random.key(0, impl="threefry2x32")

    x0 = jnp.reshape(data.normalize(jnp.asarray(images.train[: spec.batch]), 256), (*over, *spec.shape))

    def vlb(params, keys, x0):
        denoise = model.denoiser(params, empty_conditions, inputs.scalars)
        return likelihood.vlb(keys, schedule, denoise, x0, variance_mix=1.0, decoder=model.decoder, times=times).total

    empty_conditions = model.empty_condition(over[1])
    vlb_program = jax.pmap(vlb, axis_name="batch", in_axes=(None, 0, 0))
    keys = jnp.reshape(jax.random.split(key, spec.batch), over)

    matrix = jnp.ones((len(devices), MATRIX_SIDE, MATRIX_SIDE))
    product = jax.pmap(jnp.matmul)

    def products():
        out = matrix
        for _ in range(NUM_MATMULS):
            out = product(matrix, matrix)
        jax.block_until_ready(out)

    one = jax.make_jaxpr(lambda p: net.apply({"params": p}, x[0, :1], t[0, :1]))(params)
    metadata = {"parameters": sum(leaf.size for leaf in jax.tree.leaves(params)), "operations": count_flops(one.jaxpr)}
    return {
        "train": Workload(train, metadata),
        "network": Workload(network, metadata),
        "sample": Workload(lambda: jax.block_until_ready(list(sample_program(inputs, key, tile, times))), metadata),
        "likelihood": Workload(lambda: jax.block_until_ready(vlb_program(params, keys, x0)), metadata),
        "product": Workload(products, {"operations": 2 * MATRIX_SIDE**3 * NUM_MATMULS * len(devices)}),
    }


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


def diffusers(spec: WorkloadSpec, *, compiled: bool = False) -> dict[str, Workload]:
    """Workloads of diffusers' `UNet2DModel` and `DDIMScheduler`, as in its training example."""
    from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
    from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0

    net, noise, ddim = UNet2DModel.from_config(spec.unet), DDPMScheduler(), DDIMScheduler()
    ddim.set_timesteps(spec.nfe)

    def predict(net, x, t):
        return net(x, t, return_dict=False)[0]

    def draw(net, x):
        for t in ddim.timesteps:
            x = ddim.step(predict(net, x, t), t, x, eta=0.0, use_clipped_model_output=True).prev_sample
        return x

    attentions = [module for module in net.modules() if isinstance(module, Attention)]
    for attention in attentions:
        attention.set_processor(AttnProcessor())  # whose products are counted, as those of the fused one are not
    operations = count_torch_flops(spec, net, predict)
    for attention in attentions:
        attention.set_processor(AttnProcessor2_0())
    return torch_workloads(spec, net, operations, noise.add_noise, predict, draw, "diffusers", compiled=compiled)


def lucidrains_unet(spec: WorkloadSpec) -> Any:
    """denoising-diffusion-pytorch's `Unet` with the number of channels that comes nearest to `spec.parameters`."""
    try:
        import torchvision  # noqa: F401  # pyright: ignore[reportMissingImports]
    except Exception:  # its transforms of files are not used
        for name in ("torchvision", "torchvision.transforms", "torchvision.utils"):
            sys.modules[name] = types.ModuleType(name)
        vision = sys.modules["torchvision"]
        vision.transforms, vision.utils = sys.modules["torchvision.transforms"], sys.modules["torchvision.utils"]  # type: ignore
    from denoising_diffusion_pytorch import Unet  # pyright: ignore[reportMissingImports]

    dim_mults = tuple(width // spec.unet["block_out_channels"][0] for width in spec.unet["block_out_channels"])

    def unet(channels: int):
        return Unet(channels, dim_mults=dim_mults, channels=spec.shape[-1], flash_attn=False)

    return unet(
        min(range(8, 257, 4), key=lambda n: abs(sum(p.numel() for p in unet(n).parameters()) - spec.parameters))
    )


def denoising_diffusion_pytorch(spec: WorkloadSpec) -> dict[str, Workload]:
    """Workloads of denoising-diffusion-pytorch's `Unet`, another network."""
    net = lucidrains_unet(spec)
    from denoising_diffusion_pytorch import GaussianDiffusion  # pyright: ignore[reportMissingImports]

    model = GaussianDiffusion(net, image_size=spec.shape[0], timesteps=1000, sampling_timesteps=spec.nfe,
                              beta_schedule="linear", auto_normalize=False)  # fmt: skip

    def draw(net, x):
        return model.ddim_sample(tuple(x.shape))

    def predict(net, x, t):
        return net(x, t.expand(len(x)))

    def add_noise(x, eps, t):
        return model.q_sample(x, t, eps)

    operations = count_torch_flops(spec, net, predict)
    return torch_workloads(spec, net, operations, add_noise, predict, draw, "denoising-diffusion-pytorch")


def count_torch_flops(spec: WorkloadSpec, net: Any, predict: Any) -> int:
    """Floating-point operations of convolutions and matrix products, for one image and function evaluation."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.zeros(1, spec.shape[-1], *spec.shape[:-1])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        predict(net.eval(), x, torch.zeros((), dtype=torch.long))
    return counter.get_total_flops()


def torch_workloads(
    spec: WorkloadSpec, net: Any, flops: int, add_noise: Any, predict: Any, draw: Any, *packages: str,
    compiled: bool = False,
):  # fmt: skip
    """Workloads of a PyTorch network.

    Args:
        flops: of one function evaluation of one image.
        add_noise: (x_0, noise, t) -> x_t.
        predict: (net, x_t, t) -> the noise.
        draw: (net, x_T) -> x_0.
        packages: reported with their versions, beside PyTorch.
    """
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    shape = (spec.batch, spec.shape[-1], *spec.shape[:-1])
    net = net.to(memory_format=torch.channels_last)
    versions = {package: importlib.metadata.version(package) for package in ("torch", *packages)}
    metadata = {"parameters": sum(p.numel() for p in net.parameters()), "operations": flops, "versions": versions}
    net.train()
    model = torch.compile(net) if compiled else net
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-4, fused=True)
    average = [p.detach().clone() for p in net.parameters()]
    x0 = torch.rand(shape).contiguous(memory_format=torch.channels_last) * 2 - 1
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=spec.dtype == "bfloat16")

    def train():
        net.train()
        for _ in range(spec.steps):
            eps, t = torch.randn_like(x0), torch.randint(0, 1000, (spec.batch,))
            with autocast:
                out = predict(model, add_noise(x0, eps, t), t)
            loss = torch.nn.functional.mse_loss(out.float(), eps)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            torch._foreach_lerp_(average, list(net.parameters()), 1e-4)

    t = torch.full((spec.batch,), 500)

    def network():
        net.eval()
        with torch.inference_mode(), autocast:
            for _ in range(spec.nfe):
                predict(model, x0, t)

    def sample():
        net.eval()
        with torch.inference_mode(), autocast:
            draw(model, torch.randn(shape).contiguous(memory_format=torch.channels_last))

    matrix = torch.ones(MATRIX_SIDE, MATRIX_SIDE)

    def products():
        for _ in range(NUM_MATMULS):
            matrix @ matrix

    return {
        "train": Workload(train, metadata),
        "network": Workload(network, metadata),
        "sample": Workload(sample, metadata),
        "product": Workload(products, {"operations": 2 * MATRIX_SIDE**3 * NUM_MATMULS}),
    }


def main(name: str, spec_json: str) -> None:
    spec = WorkloadSpec(**json.loads(spec_json))
    makers = {
        "ours": ours, "ours-sharded": lambda spec: ours(spec, shard_update=True),
        "diffusers": diffusers, "diffusers-compiled": lambda spec: diffusers(spec, compiled=True),
        "denoising-diffusion-pytorch": denoising_diffusion_pytorch,
    }  # fmt: skip
    serve(makers[name](spec))


if __name__ == "__main__":
    main(*sys.argv[1:])
