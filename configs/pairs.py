"""Two handwritten digits side by side, 8x16, conditioned on a text.

ddpm-jax train pairs --workdir runs/pairs
ddpm-jax sample runs/pairs --text "a three left of a five" --guidance 2

1,259,449 parameters; 19 min 13 s on one CPU core.  All of 200 samples at guidance 2 show the two requested digits in
order, and so do all of 200 samples of pairs that training has only in reverse order.  At guidance 1 it is 98 +- 1 %.
"""

from ddpm_jax.config import Condition, Config, Data, Evaluation, Loss, Net, Optim, Sampling, Text

config = Config(
    steps=1000,
    batch=128,
    log_every=100,
    sample_every=500,
    save_every=500,
    data=Data("pairs"),
    net=Net(
        channels=32,
        channel_multipliers=(1, 2),
        num_res_blocks=2,
        attention_resolutions=(4,),
        heads=4,
        dropout=0.1,
        groups=8,
    ),
    text=Text(layers=2, width=64, heads=4, length=32),
    condition=Condition(dropout=0.1),
    loss=Loss(predicts="v"),
    optim=Optim(learning_rate=2e-3, warmup=100, ema_decay=0.999, ema_warmup=True),
    sampling=Sampling(sampler="dpm_solver_pp", steps=25, guidance=2.0),
    evaluation=Evaluation(images=256, strata=4),
)
