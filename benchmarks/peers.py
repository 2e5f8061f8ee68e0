"""Workloads of other libraries, in PyTorch, see `benchmarks.workloads`: on the GPU if PyTorch has one, else the CPU."""

import importlib.metadata
import os
import sys
import types
from typing import Any

from benchmarks.alternating import Workload, max_rss
from benchmarks.workloads import NUM_MATMULS, WorkloadSpec, product_kind


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
                              beta_schedule="linear", auto_normalize=False).to(torch_device())  # fmt: skip

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

    device = torch_device()
    x = torch.zeros(1, spec.shape[-1], *spec.shape[:-1], device=device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        predict(net.to(device).eval(), x, torch.zeros((), dtype=torch.long, device=device))
    return counter.get_total_flops()


def torch_device() -> str:
    """The GPU if PyTorch has one, else the CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


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
    device, synchronize = torch_device(), lambda: None
    if device == "cuda":  # as XLA has it: TF32, and convolutions by trial
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark = True, True
        synchronize = torch.cuda.synchronize
    shape = (spec.batch, spec.shape[-1], *spec.shape[:-1])
    net = net.to(device, memory_format=torch.channels_last)
    versions = {package: importlib.metadata.version(package) for package in ("torch", *packages)}
    metadata = {"parameters": sum(p.numel() for p in net.parameters()), "operations": flops, "versions": versions}
    net.train()
    model = torch.compile(net) if compiled else net
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-4, fused=True)
    average = [p.detach().clone() for p in net.parameters()]
    x0 = torch.rand(shape, device=device).contiguous(memory_format=torch.channels_last) * 2 - 1
    autocast = torch.autocast(device, torch.bfloat16, enabled=spec.dtype == "bfloat16")

    def train():
        net.train()
        for _ in range(spec.steps):
            eps, t = torch.randn_like(x0), torch.randint(0, 1000, (spec.batch,), device=device)
            with autocast:
                out = predict(model, add_noise(x0, eps, t), t)
            loss = torch.nn.functional.mse_loss(out.float(), eps)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            torch._foreach_lerp_(average, list(net.parameters()), 1e-4)
        synchronize()

    t = torch.full((spec.batch,), 500, device=device)

    def network():
        net.eval()
        with torch.inference_mode(), autocast:
            for _ in range(spec.nfe):
                predict(model, x0, t)
        synchronize()

    def sample():
        net.eval()
        with torch.inference_mode(), autocast:
            draw(model, torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last))
        synchronize()

    side, dtype = product_kind(spec, device)
    matrix = torch.randn(side, side, device=device, dtype=getattr(torch, dtype))

    def products():
        for _ in range(NUM_MATMULS):
            matrix @ matrix
        synchronize()

    return {
        "train": Workload(train, metadata),
        "network": Workload(network, metadata),
        "sample": Workload(sample, metadata),
        "product": Workload(products, {"operations": 2 * side**3 * NUM_MATMULS}),
    }


def torch_memory() -> int:
    """Peak bytes of PyTorch on the GPU, or of the process without one."""
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else max_rss()


MAKERS = {
    "diffusers": diffusers,
    "diffusers-compiled": lambda spec: diffusers(spec, compiled=True),
    "denoising-diffusion-pytorch": denoising_diffusion_pytorch,
}
"""Workloads of a specification, by library."""
