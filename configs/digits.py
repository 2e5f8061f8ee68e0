"""Handwritten digits, 8x8, from the package itself: a first model in minutes on a laptop.

python train.py configs/digits.py --workdir runs/digits
"""

from ddpm_jax.config import Config, Data, Evaluation, Net, Optim, Sampling

config = Config(
    steps=1500,
    batch=128,
    log_every=100,
    sample_every=500,
    save_every=500,
    data=Data("digits"),
    net=Net(channels=32, multipliers=(1, 2), blocks=2, attention_at=(4,), dropout=0.1, groups=8),
    optim=Optim(learning_rate=2e-3, warmup=100, ema_decay=0.999, ema_warmup=True),
    sampling=Sampling(tile=32),
    evaluation=Evaluation(images=297),
)
