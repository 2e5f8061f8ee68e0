"""MNIST, 28x28, from an .npz file with `train` and `test` images (uint8).

python train.py configs/mnist.py --workdir runs/mnist --data.source npz:mnist.npz

Not tuned, and not yet trained to its end with this code.
"""

from ddpm_jax.config import Config, Data, Net, Optim

config = Config(
    steps=20_000,
    batch=64,
    log_every=100,
    sample_every=2000,
    save_every=1000,
    data=Data("npz:mnist.npz"),
    net=Net(channels=32, multipliers=(1, 2, 4), blocks=2, attention_at=(7,), dropout=0.1, groups=8),
    optim=Optim(learning_rate=5e-4, warmup=500, ema_decay=0.9995, ema_warmup=True),
)

wide = config
