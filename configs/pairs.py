"""Two handwritten digits beside each other, 8x16, drawn from their description.

python train.py configs/pairs.py --workdir runs/pairs
python sample.py runs/pairs --text "a three left of a five" --guidance 2

1,259,449 parameters; 19 min 13 s on one CPU core.  All of 200 samples at guidance 2 are the two digits asked for,
the right way round; and all of 200 of pairs that training has only the other way round.  At guidance 1, 98 +- 1 %.
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
