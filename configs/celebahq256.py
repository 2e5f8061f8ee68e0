"""CelebA-HQ, 256x256: the original's configuration (arXiv:2006.11239, appendix B and its code).

    ddpm-jax train celebahq256 --workdir runs/celebahq256 --data.source npz:celebahq256.npz

113,673,219 parameters.  Published for this configuration: 500,000 steps at 2.2 steps/s on a TPU v3-8.
"""

from dataclasses import replace

from ddpm_jax.config import Config, Data, Loss, Net, Optim, Sampling, Schedule

config = Config(
    steps=500_000,
    batch=64,
    data=Data("npz:celebahq256.npz", flip=True),
    schedule=Schedule("linear", T=1000, beta_1=1e-4, beta_T=0.02),
    net=Net(
        channels=128, channel_multipliers=(1, 1, 2, 2, 4, 4), num_res_blocks=2, attention_resolutions=(16,), dropout=0.0
    ),
    loss=Loss("simple", predicts="eps"),
    optim=Optim(learning_rate=2e-5, warmup=5000, clip=1.0, ema_decay=0.9999),
    sampling=Sampling("ancestral", steps=1000, variance_mix=0.0, num=16),
)

# the same in bfloat16, for accelerators: parameters, optimizer, average, statistics and loss stay in float32
bfloat16 = replace(config, net=replace(config.net, dtype="bfloat16"))
