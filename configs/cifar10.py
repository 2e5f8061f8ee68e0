"""Unconditional CIFAR-10, 32x32: the original's configuration (arXiv:2006.11239, appendix B and its code).

    ddpm-jax prepare cifar10 --out data      (names the file to download, 170 MB; makes data/cifar10.npz)
    ddpm-jax train cifar10 --workdir runs/cifar10

35,746,307 parameters, 4.8 TFLOP per step.  Published for this configuration: FID 3.17, IS 9.46, at most 3.75
bits/dim, 800,000 steps in 10.6 hours on a TPU v3-8.  Variants: cifar10:bfloat16, cifar10:hybrid.
"""

from dataclasses import replace

from ddpm_jax.config import Config, Data, Loss, Net, Optim, Sampling, Schedule

config = Config(
    steps=800_000,
    batch=128,
    data=Data("npz:data/cifar10.npz", flip=True),
    schedule=Schedule("linear", T=1000, beta_1=1e-4, beta_T=0.02),
    net=Net(channels=128, channel_multipliers=(1, 2, 2, 2), num_res_blocks=2, attention_resolutions=(16,), dropout=0.1),
    loss=Loss("simple", predicts="eps"),
    optim=Optim(learning_rate=2e-4, warmup=5000, clip=1.0, ema_decay=0.9999),
    sampling=Sampling("ancestral", steps=1000, variance_mix=1.0),
)

# the same in bfloat16, for accelerators: parameters, optimizer, average, statistics and loss stay in float32
bfloat16 = replace(config, net=replace(config.net, dtype="bfloat16"))

# Nichol & Dhariwal (arXiv:2102.09672): cosine schedule of 4000 steps, learned variance, hybrid loss
hybrid = replace(
    config,
    steps=500_000,
    schedule=Schedule("cosine", T=4000),
    loss=Loss("hybrid"),
    net=replace(config.net, dropout=0.3),
    optim=replace(config.optim, learning_rate=1e-4, warmup=0, clip=None),
    data=replace(config.data, flip=False),
    sampling=Sampling("ancestral", steps=4000),
)
