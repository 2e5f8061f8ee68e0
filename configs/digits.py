"""Handwritten digits, 8x8, contained in the package: a first model in minutes on a laptop.

ddpm-jax train digits --workdir runs/digits

395,858 parameters.  Training takes 4 min 49 s on two shared CPU cores, compilation, evaluation and samples included.
The 297 held-out images have 2.226, 2.163 and 2.166 bits/dim (each +- 0.02) after 2,000, 4,000 and 6,000 steps (the
estimated bound; commit cf83ff1).  Ablations that led to this recipe: docs/experiments.md, section 6.
"""

from dataclasses import replace

from ddpm_jax.config import (
    Condition,
    Config,
    Data,
    Evaluation,
    Loss,
    Net,
    Optim,
    PatchTransformer,
    Schedule,
    Text,
)

config = Config(
    steps=6000,
    batch=64,
    log_every=200,
    sample_every=2000,
    save_every=2000,
    data=Data("digits"),
    schedule=Schedule("quad", beta_1=3e-4),
    net=Net(
        channels=24, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,), dropout=0.0, groups=8
    ),
    loss=Loss("hybrid", learned_variance=True, stratified=True),
    optim=Optim(learning_rate=4e-3, warmup=100, decay=6000, ema_decay=0.999, ema_warmup=True),
    evaluation=Evaluation(images=297),
)

# the same with the paper's schedule, loss and variance: ddpm-jax train digits:linear ..., 4 min 44 s on two
# CPU cores; 2.77 +- 0.02 bits/dim (commit f360827)
linear = replace(config, schedule=Schedule("linear"), loss=Loss(stratified=True))

# the former recipe, with 2.5 times the parameters (1,001,729): ddpm-jax train digits:wide ..., 5 min 46 s on two CPU
# cores; 2.88 +- 0.02 bits/dim (commit 677d031)
wide = replace(
    linear,
    steps=1500,
    batch=128,
    log_every=100,
    sample_every=500,
    save_every=500,
    net=replace(linear.net, channels=32, num_res_blocks=2, dropout=0.1),
    loss=Loss(),
    optim=replace(linear.optim, learning_rate=2e-3, decay=0),
)

# a patch transformer of 462,536 parameters in place of the U-Net: ddpm-jax train digits:patch ...
patch = replace(
    config,
    net=Net(
        kind="patch_transformer",
        dropout=0.0,
        transformer=PatchTransformer(patch_size=2, width=64, depth=6, heads=4),
    ),
    optim=replace(config.optim, learning_rate=2e-3),
)

# class-conditional: ddpm-jax train digits:labels ..., ddpm-jax sample RUN --labels all --guidance 1.5
# 9 min 52 s on two busy CPU cores; 99.8 +- 0.2 % of samples show the requested digit at guidance 1.5, 95.8 +- 0.9 % at
# guidance 1
labels = replace(wide, net=replace(wide.net, num_classes=10))

# text-conditional, in the same minutes: ddpm-jax train digits:text ..., ddpm-jax sample RUN --text "number seven"
# 416,384 parameters; 5,000 steps take as long as 6,000 without a text.  2.158 +- 0.006 bits/dim without a text;
# 98.0 +- 0.1 % of samples at guidance 1 show the digit of a sentence that is not among these (commit 7ad59a5)
text = replace(
    config,
    steps=5000,
    sample_every=2500,
    save_every=2500,
    net=replace(config.net, attention_resolutions=()),
    text=Text(layers=1, width=32, heads=2, length=44),
    optim=replace(config.optim, decay=5000),
    condition=Condition(
        dropout=0.3,
        templates=(
            "{}", "a {}", "the {}", "one {}", "my {}", "an old {}", "a large {}", "a black {}", "a bold {}", "digit {}",
            "the digit {}", "a digit: {}", "the number {}", "a number, {}", "a handwritten {}", "handwritten {}",
            "{}, handwritten", "your handwritten {}", "a {} written by hand", "the figure {}, written by hand",
            "one handwritten digit, a {}", "an image of a {}", "a picture of a {}", "a picture of the digit {}",
            "a picture with a {} in it", "a scan of the number {}", "a scanned {}", "this is a {}", "here is a {}",
            "it is a {}", "this shows the number {}", "a drawing of a {}", "{} drawn with a pen", "a thin {} in ink",
            "{} on paper", "a {} on white paper", "a {} from a form", "the {} that someone wrote",
            "he wrote the digit {}", "she drew a {}", "they wrote {} here", "write a {}", "please draw a {}",
            "show me a {}", "give me a {} now", "i want to see the number {}", "a {} as children write it",
            "some {}, badly written",
        )
    ),
)  # fmt: skip
