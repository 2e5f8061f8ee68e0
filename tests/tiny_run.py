"""Random parameters, and a run folder with a checkpoint of some, made in seconds: something to evaluate."""

import dataclasses
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import checkpoint, posthoc_ema, training
from ddpm_jax import config as configs
from ddpm_jax.keys import from_seed
from ddpm_jax.model import build

CONFIG = configs.Config(
    steps=3,
    schedule=configs.Schedule(T=20, beta_1=0.005, beta_T=0.6),
    net=configs.Net(8, (1,), 1, (8,), dropout=0.1),
    sampling=configs.Sampling(steps=20, tile=4, num=8),
)


def make_run(
    folder: pathlib.Path, config: configs.Config = CONFIG, *, shape=(8, 8, 1), levels=17, seed=0, label_names=()
) -> pathlib.Path:
    """Writes config.json and checkpoint 3 with random parameters, the raw ones other than the averaged ones."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(configs.to_json(config))
    model = build(config, shape, levels)
    shapes = jax.eval_shape(model.init, from_seed(0))
    rng = np.random.default_rng(seed)
    params, ema = (_random_like(rng, shapes) for _ in range(2))
    state = training.init(params, model.optimizer)._replace(step=np.int32(3), ema=ema)
    if config.optim.ema_lengths:
        averages = tuple(_random_like(rng, shapes) for _ in config.optim.ema_lengths)
        stored = posthoc_ema.PowerEmaState(np.int32(3), averages)
        state = state._replace(opt_state=(*state.opt_state[:-1], stored))
    meta = {
        "step": 3,
        "config": dataclasses.asdict(config),
        "image": {"shape": list(shape), "levels": levels, "label_names": list(label_names)},
        "versions": {},
    }
    with checkpoint.Checkpoints(folder / "checkpoints") as saved:
        saved.save(3, state, json.loads(json.dumps(meta)))
    return folder


def random_params(net, *inputs, seed=2, **conditions):
    """Parameters of ordinary size everywhere: at the start half of the network is silent, so it would hide a defect."""
    shapes = jax.eval_shape(lambda: net.init(from_seed(0), *inputs, **conditions))
    return jax.tree.map(jnp.asarray, _random_like(np.random.default_rng(seed), shapes))


def _random_like(rng: np.random.Generator, shapes):
    """Drawn by numpy: what draws a network's own takes seconds to compile."""

    def draw(path, leaf):
        spread = 0.2 if leaf.ndim == 1 else math.prod(leaf.shape[:-1]) ** -0.5
        return ((path[-1].key == "scale") + spread * rng.normal(size=leaf.shape)).astype(leaf.dtype)

    return jax.tree.map_with_path(draw, shapes)
