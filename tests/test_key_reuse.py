"""No program uses a key twice, nor lets JAX promote dtypes or ranks: one of each kind, traced under JAX's own checks,
which then refuse it.

Tracing is all that the checks take, so nothing is compiled here.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gaussian_data import ideal_denoiser

from ddpm_jax import config as configs
from ddpm_jax import (
    conformance,
    data,
    editing,
    gaussian,
    guidance,
    likelihood,
    losses,
    measurements,
    samplers,
    schedules,
    training,
)
from ddpm_jax.keys import from_seed, split_keys
from ddpm_jax.metrics import held_out
from ddpm_jax.metrics.classifier import ClassifierNetwork
from ddpm_jax.model import build
from ddpm_jax.models.unet import UNet
from ddpm_jax.pipeline import tiles
from ddpm_jax.preflight import lowering
from scripts import make_classifier

pytestmark = pytest.mark.usefixtures("key_reuse", "strict_promotion")

SCHEDULE, TIMES = schedules.linear(20, 5e-3, 0.6), samplers.times(20, 5)
X = np.zeros((4, 8, 8, 1), np.float32)
MASK = np.arange(8) < 4
KEY = jax.eval_shape(lambda: from_seed(0))
KEYS = jax.eval_shape(lambda: jax.random.split(from_seed(0), 4))


def net(x, t):
    return 0.5 * x


def wide(x, t):
    return jnp.concatenate([0.5 * x, 0.1 * x], -1)


def refused(function, *args) -> bool:
    try:
        jax.jit(function).trace(*args)
    except jax.errors.KeyReuseError:
        return True
    return False


# --- the check can fail


def uses_twice(key):
    return jax.random.normal(key) + jax.random.uniform(key)


def test_a_key_that_is_used_twice_is_refused():
    again = jax.jit(lambda keys: jax.vmap(uses_twice)(keys))
    with jax.debug_key_reuse(False):  # traced before, and kept
        again.trace(KEYS)
    assert refused(uses_twice, KEY) and refused(again, KEYS)
    assert refused(lambda key: (jax.random.split(key), jax.random.normal(key)), KEY)
    assert refused(lambda key: jax.lax.scan(lambda total, n: (total + jax.random.normal(key), n), 0.0, X[0, 0]), KEY)
    assert not refused(lambda key: [jax.random.normal(own) for own in jax.random.split(key)], KEY)


def test_a_program_of_the_library_that_forgets_to_split_its_keys_is_refused(monkeypatch):
    monkeypatch.setattr(losses, "split_keys", lambda keys, parts: [keys] * parts)
    assert refused(lambda keys: losses.simple_loss(keys, SCHEDULE, net, X), KEYS)


# --- losses and the bound


DRAWN = {
    "simple": losses.simple_loss,
    "weighted": functools.partial(losses.simple_loss, predicts="v", weight=losses.min_snr()),
    "variational": losses.variational_loss,
    "hybrid": losses.hybrid_loss,
}


@pytest.mark.parametrize("keys", [KEY, KEYS], ids=["one key", "keys"])
@pytest.mark.parametrize("loss", DRAWN)
def test_losses(loss, keys):
    says = wide if loss == "hybrid" else net
    assert not refused(lambda keys: DRAWN[loss](keys, SCHEDULE, says, X), keys)
    assert not refused(lambda keys: jax.grad(lambda x: DRAWN[loss](keys, SCHEDULE, says, x).sum())(X), keys)


def test_times_of_a_batch():
    def stratified(key):
        step_key, time_key = jax.random.split(key)
        t = losses.stratified_times(time_key, 20, jnp.arange(4), 4)
        return losses.simple_loss(step_key, SCHEDULE, net, X, t=t)

    assert not refused(stratified, KEY)
    assert not refused(lambda keys: losses.uniform_times(keys, 20), KEYS)


@pytest.mark.parametrize("keys", [KEY, KEYS], ids=["one key", "keys"])
@pytest.mark.parametrize("of", [likelihood.vlb, likelihood.estimate_vlb])
def test_the_bound_and_its_estimate(of, keys):
    options = {"decoder": likelihood.decoder_8bit}
    assert not refused(lambda keys: of(keys, SCHEDULE, ideal_denoiser(SCHEDULE), X, **options), keys)


def test_held_out_evaluation():
    def loss(keys, schedule, net, x0, t):
        return losses.simple_loss(keys, schedule, net, x0, t=t)

    denoise, options = (
        gaussian.denoiser(SCHEDULE, net),
        {"variance_mix": 1.0, "decoder": likelihood.decoder_8bit, "strata": 4},
    )
    assert not refused(held_out.make_evaluate_batch(SCHEDULE, net, denoise, loss, **options), KEYS, X)


# --- chains


DENOISE = ideal_denoiser(SCHEDULE)
SAMPLERS = {
    "ancestral": samplers.ancestral(SCHEDULE, DENOISE, variance_mix=0.5),
    "learned": samplers.ancestral(SCHEDULE, ideal_denoiser(SCHEDULE, variance_mix=0.5)),
    "analytic": samplers.analytic(SCHEDULE, DENOISE, np.full(21, 0.1, np.float32)),
    "ddim": samplers.ddim(SCHEDULE, DENOISE, eta=0.5),
    **{f"dpm_solver_pp {n}": samplers.dpm_solver_pp(SCHEDULE, DENOISE, order=n) for n in (1, 2, 3)},
    **{f"unipc {n}": samplers.unipc(SCHEDULE, DENOISE, order=n) for n in (1, 2, 3)},
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_and_trajectories(name):
    sampler = SAMPLERS[name]

    def images(keys):
        return samplers.sample(keys, sampler, samplers.initial_noise(keys, X.shape[1:]), TIMES)

    def frames(keys):
        x_T = samplers.initial_noise(keys, X.shape[1:])
        return samplers.trajectory(keys, sampler, x_T, TIMES, save_at=TIMES.tolist())

    assert not refused(images, KEYS) and not refused(frames, KEYS)
    assert not refused(lambda keys: sampler.step(keys, sampler.init(X, jnp.int32(20)), 20, 10).x, KEYS)


EDITS = {
    "inpainting": lambda sampler: editing.inpainting(SCHEDULE, sampler, X, MASK[:, None]),
    "from_image": lambda sampler: editing.sdedit(SCHEDULE, sampler, X),
    "both": lambda sampler: editing.inpainting(SCHEDULE, editing.sdedit(SCHEDULE, sampler, X), X, MASK[:, None]),
}


@pytest.mark.parametrize("name", ["ancestral", "ddim", "dpm_solver_pp 3"])
@pytest.mark.parametrize("edit", EDITS)
def test_chains_from_images(edit, name):
    sampler = EDITS[edit](SAMPLERS[name])
    times = editing.repaint_times(TIMES, jump=2, repeats=3) if sampler.allows_forward_steps else TIMES
    assert not refused(
        lambda keys: samplers.sample(keys, sampler, samplers.initial_noise(keys, X.shape[1:]), times), KEYS
    )


def test_pixels_as_a_condition_and_inversion():
    A = measurements.known_pixels(MASK[:, None])
    denoise = measurements.condition_on_measurement(SCHEDULE, DENOISE, A, A(X))
    sampler = samplers.ancestral(SCHEDULE, denoise)
    assert not refused(lambda keys: samplers.sample(keys, sampler, X, TIMES), KEYS)
    assert not refused(lambda x0: editing.invert(SCHEDULE, DENOISE, x0, TIMES), X)


def test_draws_of_a_law_and_the_samplers_under_test():
    assert not refused(lambda keys: conformance.sample_data(keys, conformance.checks.MIXTURE), KEYS)


def test_the_program_of_a_tile():
    def make_sampler(inputs, tile):
        return SAMPLERS["ancestral"]

    tile = tiles.Tile(jax.ShapeDtypeStruct((4,), jnp.uint32), None)
    begin, advance = tiles.begin_function(make_sampler, X.shape[1:]), tiles.advance_function(make_sampler)
    state = jax.eval_shape(begin, None, KEY, tile, TIMES[0])
    assert not refused(begin, None, KEY, tile, TIMES[0]) and not refused(advance, None, KEY, tile, state, TIMES)
    assert not refused(tiles.trajectory_function(make_sampler, X.shape[1:], TIMES, (20, 0)), None, KEY, tile)


# --- conditions and data


def test_conditions_that_are_dropped_and_texts_that_are_chosen():
    texts = np.zeros((4, 3, 5), np.uint8)

    def conditions(keys):
        drop_keys, text_keys = split_keys(keys, 2)
        condition = guidance.Condition(np.arange(4), guidance.random_caption(text_keys, texts))
        return guidance.drop_condition(drop_keys, condition, guidance.null_condition(condition, 4), 0.1)

    assert not refused(conditions, KEYS)

    def same_keys(keys):  # as a training step does: each folds a number of its own into them
        condition = guidance.Condition(np.arange(4), guidance.random_caption(keys, texts))
        return guidance.drop_condition(keys, condition, guidance.null_condition(condition, 4), 0.1)

    assert not refused(same_keys, KEYS)


def test_examples_and_their_mirror_images():
    def examples(keys, pixels):
        return data.gather_examples(keys, pixels, np.arange(4), levels=256, flip=True), data.random_flip(keys, X)

    assert not refused(examples, KEYS, np.zeros((9, 8, 8, 1), np.uint8))


# --- networks and training


def test_dropout():
    unet = UNet(
        channels=8,
        channel_multipliers=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(4,),
        out_channels=1,
        dropout=0.1,
    )
    params = jax.eval_shape(lambda: unet.init(from_seed(0), X, np.ones(4, np.int32)))
    apply = functools.partial(unet.apply, dropout_keys=None)
    assert not refused(apply, params, X, np.ones(4, np.int32))
    assert not refused(lambda params, keys: unet.apply(params, X, np.ones(4, int), dropout_keys=keys), params, KEYS)
    assert not refused(lambda key: unet.init(key, X, np.ones(4, np.int32)), KEY)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_training_step(accumulate):
    def loss_fn(params, keys, batch):
        return losses.simple_loss(keys, SCHEDULE, lambda x, t: params * x, batch).mean()

    optimizer = optax.sgd(0.1)
    step = training.make_step(loss_fn, optimizer, accumulate=accumulate)
    state = jax.eval_shape(lambda: training.init(jnp.ones(()), optimizer))
    assert not refused(step, KEY, state, X)


CONFIG = configs.Config(
    batch=8,
    data=configs.Data(flip=True, levels=256),
    schedule=configs.Schedule(T=20, beta_1=0.005, beta_T=0.6),
    net=configs.Net(8, (1,), 1, (8,), dropout=0.1),
    sampling=configs.Sampling(steps=4, tile=2),
    evaluation=configs.Evaluation(images=8, strata=4),
)
RUNS = {
    "labels and texts, stratified": dataclasses.replace(
        CONFIG,
        net=dataclasses.replace(CONFIG.net, num_classes=4),
        text=configs.Text(layers=1, width=8, heads=1, length=8),
        loss=configs.Loss(stratified=True),
    ),
    "a coarser image, in micro-batches": dataclasses.replace(
        CONFIG,
        net=dataclasses.replace(CONFIG.net, attention_resolutions=()),
        condition=configs.Condition(super_resolution_factor=2),
        loss=configs.Loss("hybrid"),
        optim=configs.Optim(accumulate=2),
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_programs_of_a_run(name):
    """The step over two devices, the sampler and the evaluation, as `train.py` has them."""
    config, images = RUNS[name], lowering.load_images(RUNS[name], (8, 8, 1), 16)
    model = build(config, (8, 8, 1), images.levels)
    lowering.lower_train_step(model, images, jax.devices()[:2])
    lowering.lower_sampler(model, jax.devices()[:2])
    lowering.lower_evaluation(model, images, jax.devices()[:1])


def test_the_classifiers_own_training():
    images, network = np.zeros((4, 8, 8, 1), np.float32), ClassifierNetwork(256, ((8, 1),), features=8, classes=4)
    params = jax.eval_shape(lambda: network.init(from_seed(0), images)["params"])
    loss = lambda params, key: make_classifier._loss(params, network, key, images, np.zeros(4, int), 0.1)  # noqa: E731
    assert not refused(jax.grad(loss), params, KEY)
