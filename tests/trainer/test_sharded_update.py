"""The sharded update: the steps of the whole one, from the same checkpoints, whatever the number of devices."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import run_programs

from ddpm_jax import posthoc_ema, trainer, training
from ddpm_jax.keys import from_seed

IMAGES = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
PARAMS = {"a": np.full((4, 3), 0.3, np.float32), "b": np.zeros(3, np.float32), "c": np.ones(1, np.float32)}
"""5 rows of 3 columns and a single number, which neither 2 nor 8 devices share without a rest."""
CLIP = 0.05


def loss_fn(params, keys, batch):
    """Fits a sine, with noise from each example's key; a bad batch has no finite gradient."""
    x = batch + 0.1 * jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys)
    out = jnp.tanh(x @ params["a"] + params["b"]).sum(-1) * params["c"][0]
    return jnp.mean((out - jnp.sin(x.sum(-1))) ** 2)


def model(shard_update):
    """What `sharded_update` reads of a model; most gradients of these steps are longer than `clip`."""
    adam = training.optimizer(1e-2, warmup=3, clip=CLIP, axis_name="batch" if shard_update else None)
    optimizer = optax.chain(adam, posthoc_ema.power_ema((0.1,)))
    return types.SimpleNamespace(optimizer=optimizer, config=types.SimpleNamespace(shard_update=shard_update))


@functools.cache
def step_on(devices, shard_update, by="pmap", accumulate=1):
    """(state, pixels, indices [devices, k, b]) -> (state, metrics), compiled."""
    body = training.make_step(
        loss_fn, model(shard_update).optimizer, ema_decay=training.ema_warmup(0.9), axis_name="batch",
        accumulate=accumulate, shard_update=shard_update,
    )  # fmt: skip

    def step(key, state, bad, pixels, indices, conditions):
        return body(key, state, pixels[indices])

    steps = trainer.parallelise(step, None, jax.devices()[:devices], by=by, shard_update=shard_update)

    def take(state, pixels, indices):
        state, _, metrics = steps(from_seed(1), state, np.int32(0), pixels, indices, None, None)
        return state, metrics

    return take


def run(start, steps, devices, shard_update, together=1, **options):
    """The whole state after so many steps from a whole state, and the metrics."""
    used, take = model(shard_update), step_on(devices, shard_update, **options)
    state = trainer.split_state(used.optimizer, host(start), devices) if shard_update else start
    rows = []
    first = int(start.step)
    for n in range(first, first + steps, together):
        indices = np.arange(n * 16, (n + together) * 16).reshape(together, devices, -1) % 64
        pixels = np.where(n == 30, np.inf, IMAGES)  # a step that all devices skip
        state, metrics = take(state, pixels, indices.swapaxes(0, 1))
        rows.append(metrics)
    return host((trainer.whole_state(used, state), jax.tree.map(lambda *each: np.concatenate(each), *rows)))


def host(tree):
    return jax.tree.map(np.asarray, tree)


@functools.cache
def fresh():
    return host(training.init(PARAMS, model(False).optimizer))


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-6), a, b)


def same_bits(a, b):
    return all(x.tobytes() == y.tobytes() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize(("devices", "by"), [(1, "pmap"), (2, "shard_map"), (8, "pmap")])
def test_sixty_steps_are_those_of_the_whole_update(devices, by):
    """With clipping, a skipped step, warm-up and an average for post-hoc EMA; and the same state has the same names."""
    (whole, rows), (shared, shared_rows) = run(fresh(), 60, devices, False), run(fresh(), 60, devices, True, by=by)
    assert rows["skipped"].sum() == 1 and (rows["grad_norm"] > CLIP).sum() > 50
    assert jax.tree.structure(whole) == jax.tree.structure(shared)
    assert [x.shape for x in jax.tree.leaves(whole)] == [x.shape for x in jax.tree.leaves(shared)]
    assert_close(whole, shared)
    np.testing.assert_allclose(rows["loss"], shared_rows["loss"], rtol=1e-6)
    np.testing.assert_allclose(rows["grad_norm"], shared_rows["grad_norm"], rtol=1e-5)


def test_a_run_goes_on_from_its_whole_state_bit_for_bit_and_on_other_devices_as_well():
    straight, half = run(fresh(), 20, 2, True)[0], run(fresh(), 8, 2, True)[0]
    assert same_bits(run(half, 12, 2, True)[0], straight)
    for devices, shard_update in ((8, True), (2, False)):
        assert_close(run(half, 12, devices, shard_update)[0], straight)


def test_steps_in_one_call_and_micro_batches():
    options = {"accumulate": 2, "together": 4}
    assert_close(run(fresh(), 8, 2, True, **options)[0], run(fresh(), 8, 2, False, **options)[0])


@pytest.mark.slow
def test_a_run_changes_between_shares_and_whole_and_its_files_are_those_of_any_run(tmp_path):
    """With previews, post-hoc averages and snapshots; each continues the other, on other devices."""
    (tmp_path / "tiny.py").write_text(run_programs.TINY)

    def train(name, steps, devices, shard_update):
        flags = ("--steps", steps, "--devices", devices, "--optim.ema-lengths", 0.1, "--snapshot-every", 1)
        shared = ("--shard-update",) if shard_update else ()
        workdir, preview = tmp_path / name, name in ("whole", "straight")
        run_programs.run("train.py", tmp_path / "tiny.py", "--workdir", workdir, *flags, *shared, preview=preview)
        return run_programs.load_state(tmp_path / name, steps)

    whole, straight = train("whole", 4, 2, False), train("straight", 4, 2, True)
    train("cut", 2, 2, True)
    assert same_bits(train("cut", 4, 2, True).tree, straight.tree)
    train("mixed", 1, 1, True)
    train("mixed", 2, 4, True)
    mixed = train("mixed", 4, 1, False)
    for one, other in ((whole, straight), (whole, mixed)):
        assert_close(one.tree, other.tree)
    assert {p.name for p in (tmp_path / "straight/snapshots").iterdir()} == {"1.npz", "2.npz", "3.npz", "4.npz"}
    pictures = [(tmp_path / name / "samples/4.png").read_bytes() for name in ("whole", "straight")]
    assert pictures[0] == pictures[1]
