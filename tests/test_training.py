"""The training step: what it sees does not depend on the devices, and what it must not do it does not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from goldens_loader import precision
from jax.sharding import Mesh, PartitionSpec

from ddpm_jax import losses, schedules, training
from ddpm_jax.keys import from_seed

SCHEDULE = schedules.linear(100)
X0 = np.tanh(np.random.default_rng(0).normal(size=(16, 4, 4, 1))).astype(np.float32)


def net(params, x_t, t):
    """A denoiser small enough to compile in no time, and not linear in its parameters."""
    hidden = jnp.tanh(x_t * params["w"] + params["b"] * t[:, None, None, None] / 100)
    return hidden * params["w"] + params["b"]


def loss_fn(params, keys, batch):
    return losses.simple_loss(keys, SCHEDULE, functools.partial(net, params), batch["image"]).mean()


def poisoned(params, keys, batch):
    """The loss of a batch that says of each example what is to go wrong with it: 1 the loss, 2 the gradient."""
    # a root at 0 has a finite value and an infinite derivative; at 1 it has both
    far = (batch["poison"] != 2).all()
    root = jnp.sqrt(jnp.abs(params["b"] - params["b"]).sum() + far) - far
    return loss_fn(params, keys, batch) + root + jnp.where((batch["poison"] == 1).any(), jnp.nan, 0.0)


PARAMS = {"w": np.full((4, 4, 1), 0.5, np.float32), "b": np.full(1, 0.1, np.float32)}
BATCH = {"image": X0}


def optimizer():
    return training.optimizer(1e-2, warmup=3)


@functools.cache
def jitted(accumulate=1):
    """(key, state, batch) -> (state, metrics), compiled once; the first call says so."""
    traced = []
    body = training.make_step(loss_fn, optimizer(), ema_decay=training.ema_warmup(0.9), accumulate=accumulate)

    @functools.partial(jax.jit, donate_argnums=1)
    def step(key, state, batch):
        traced.append(batch)
        return body(key, state, batch)

    return step, traced


@functools.cache
def mapped(devices, loss_fn=poisoned, axis_name="batch"):
    """The same over devices, with a state for each replica."""
    body = training.make_step(loss_fn, optimizer(), ema_decay=training.ema_warmup(0.9), axis_name=axis_name)
    return jax.pmap(body, axis_name="batch", in_axes=(None, 0, 0), devices=jax.devices()[:devices])


def spread(batch, devices):
    return jax.tree.map(lambda a: a.reshape(devices, -1, *a.shape[1:]), batch)


def copies(tree, devices):
    return jax.tree.map(lambda a: np.broadcast_to(np.asarray(a), (devices, *np.shape(a))), tree)


def run(steps, accumulate=1):
    """Final state and the metrics of each step."""
    state, rows = training.init(PARAMS, optimizer()), []
    for _ in range(steps):
        state, metrics = jitted(accumulate)[0](from_seed(3), state, BATCH)
        rows.append(metrics)
    return jax.tree.map(np.asarray, (state, rows))


def run_on(devices, steps, poison=None):
    """The same with a state of each replica, [devices, ...]; poison: what goes wrong in each example."""
    state, rows = copies(training.init(PARAMS, optimizer()), devices), []
    batch = spread(BATCH | {"poison": np.zeros(16, np.int32) if poison is None else poison}, devices)
    for _ in range(steps):
        state, metrics = mapped(devices)(from_seed(3), state, batch)
        rows.append(metrics)
    return jax.tree.map(np.asarray, (state, rows))


@pytest.mark.parametrize("devices", [2, 8])
def test_any_number_of_devices_sees_the_same_training(devices):
    one, rows_one = run(5)
    many, rows_many = run_on(devices, 5)
    for a, b in zip(rows_one, rows_many, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"][0], rtol=1e-6)
        np.testing.assert_allclose(a["grad_norm"], b["grad_norm"][0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[0], atol=1e-6), one, many)
    # every replica holds the same bytes
    for leaf in jax.tree.leaves((many, rows_many)):
        assert all(leaf[0].tobytes() == copy.tobytes() for copy in leaf)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_shard_map_and_vmap_give_the_gradient_of_one_device(accumulate):
    body = training.make_step(loss_fn, optimizer(), accumulate=accumulate, axis_name="batch")
    mesh, whole, rows = Mesh(np.array(jax.devices()[:2]), ("batch",)), PartitionSpec(), PartitionSpec("batch")
    args = from_seed(3), training.init(PARAMS, optimizer())
    sharded = jax.shard_map(body, mesh=mesh, in_specs=(whole, whole, rows), out_specs=whole)
    mapped = jax.vmap(body, axis_name="batch", in_axes=(None, None, 0))
    for of, batch in ((sharded, BATCH), (mapped, spread(BATCH, 2))):
        found = jax.jit(of)(*args, batch)[1]["grad_norm"]
        np.testing.assert_allclose(found, np.broadcast_to(run(1)[1][0]["grad_norm"], found.shape), rtol=1e-5)


def test_without_the_mean_over_devices_the_replicas_part():
    """The control of the test above: the same comparison notices a step that forgets its `pmean`."""
    state = copies(training.init(PARAMS, optimizer()), 8)
    state, _ = mapped(8, loss_fn, None)(from_seed(3), state, spread(BATCH, 8))
    moments = np.asarray(state.opt_state[1][0].mu["w"])
    assert any(moments[0].tobytes() != other.tobytes() for other in moments)


def test_micro_batches_give_the_gradient_of_the_whole_batch():
    whole, rows_whole = run(3)
    cut, rows_cut = run(3, accumulate=4)
    np.testing.assert_allclose(rows_whole[-1]["loss"], rows_cut[-1]["loss"], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole, cut)


def test_steps_differ_in_what_they_draw_and_a_repeated_step_does_not():
    step, start = jitted()[0], lambda: training.init(PARAMS, optimizer())
    after_one, metrics = step(from_seed(3), start(), BATCH)
    _, again = step(from_seed(3), start(), BATCH)
    # the warm-up's first step has the rate 0: the parameters are those of the beginning
    np.testing.assert_array_equal(after_one.params["w"], PARAMS["w"])
    _, other = step(from_seed(3), after_one, BATCH)
    assert metrics["loss"] == again["loss"]
    assert metrics["loss"] != other["loss"]


@pytest.mark.parametrize("poison", [1, 2], ids=["loss", "gradient"])
def test_a_step_that_is_not_finite_on_one_device_changes_nothing_on_any_but_the_step_number(poison):
    devices, wrong = 8, np.where(np.arange(16) == 5, poison, 0).astype(np.int32)
    before, _ = run_on(devices, 3)
    fine = spread(BATCH | {"poison": 0 * wrong}, devices)
    state, metrics = jax.tree.map(
        np.asarray, mapped(devices)(from_seed(3), before, spread(BATCH | {"poison": wrong}, devices))
    )
    assert metrics["skipped"].tolist() == [1] * devices
    finite = [np.isfinite(metrics[name]).all() for name in ("loss", "grad_norm")]
    assert finite == [poison == 2, poison == 1]
    assert (state.step == before.step + 1).all() and (before.ema["w"] != before.params["w"]).any()
    for got, was in zip(jax.tree.leaves(state[1:]), jax.tree.leaves(before[1:]), strict=True):
        np.testing.assert_array_equal(got, was)
    after, metrics = jax.tree.map(np.asarray, mapped(devices)(from_seed(3), state, fine))
    assert (metrics["skipped"] == 0).all() and np.isfinite(metrics["loss"]).all()
    assert (after.params["w"] != before.params["w"]).any()


@pytest.mark.parametrize("clip", [None, 1.0])
def test_the_optimizer_is_that_of_optax_but_for_skipped_steps(clip):
    """For small gradients, clipped ones, and one that is not finite."""
    grads = [jax.tree.map(lambda p, s=size: np.full(p.shape, s), PARAMS) for size in (0.01, -3.0, np.nan, 0.1)]
    adam = optax.adam(optax.linear_schedule(0.0, 1e-2, 3))
    theirs = adam if clip is None else optax.chain(optax.clip_by_global_norm(clip), adam)
    ours = training.optimizer(1e-2, warmup=3, clip=clip)

    with precision("float64"):
        params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), PARAMS)
        state, expected_state = ours.init(params), theirs.init(params)
        for grad in grads:
            finite = bool(np.isfinite(grad["b"]).all())
            updates, new = jax.jit(ours.update)(grad, state, params, finite=finite)
            if not finite:
                jax.tree.map(np.testing.assert_array_equal, new, state)
                continue
            expected, expected_state = jax.jit(theirs.update)(grad, expected_state, params)
            assert jax.tree.structure(new) == jax.tree.structure(expected_state)
            for found, wanted, rtol in ((new, expected_state, 1e-12), (updates, expected, 1e-6)):  # a rate is a float32
                for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
                    np.testing.assert_allclose(a, b, rtol=rtol, strict=True)
            state = new


def test_the_average_is_of_the_parameters_that_each_step_leaves():
    expected = PARAMS["w"]
    for n in range(1, 4):
        state, _ = run(n)
        decay = min(0.9, n / (9 + n))
        expected = decay * expected + (1 - decay) * state.params["w"]
        np.testing.assert_allclose(state.ema["w"], expected, rtol=1e-6, err_msg=f"step {n}")
    assert (np.abs(state.params["w"] - PARAMS["w"]) > 1e-4).all()


def test_the_state_owns_its_buffers():
    """Parameters and average must not share a buffer, or donating the state hands one buffer over twice."""
    params = jax.tree.map(jnp.asarray, PARAMS)
    state = training.init(params, optimizer())
    for _ in range(2):
        state, _ = jitted()[0](from_seed(3), state, BATCH)
    assert not params["w"].is_deleted()
    assert np.isfinite(state.ema["w"]).all()


def test_one_compilation_for_every_step():
    run(3)
    assert len(jitted(1)[1]) == 1


@pytest.mark.parametrize(("warmup", "decay"), [(0, 0), (4, 0), (0, 10), (4, 10)])
def test_the_rate_rises_as_a_line_and_falls_as_a_cosine(warmup, decay):
    """Adam's step on a gradient that is always 1 is its rate."""
    optimizer = training.optimizer(0.1, warmup=warmup, decay=decay, clip=None)
    w = np.zeros((), np.float32)

    def step(state, gradient):
        update, state = optimizer.update(gradient, state, w)
        return state, -update

    rates = jax.jit(lambda: jax.lax.scan(step, optimizer.init(w), jnp.ones(13))[1])()
    n = np.arange(13)
    falling = 0.5 * (1 + np.cos(np.pi * np.clip((n - warmup) / (decay - warmup), 0, 1))) if decay else 1.0
    rising = np.minimum(1, n / warmup) if warmup else 1.0
    np.testing.assert_allclose(rates, 0.1 * rising * falling, atol=2e-6)


@pytest.mark.parametrize("decay", [3, 5])
def test_a_rate_that_falls_before_it_has_risen_is_refused(decay):
    with pytest.raises(ValueError, match=f"decay must be 0 or more steps than those of the warm-up, 5, got {decay}"):
        training.optimizer(0.1, warmup=5, decay=decay)


def test_the_average_has_its_closed_form():
    decay, n = 0.9, 30
    values = np.random.default_rng(1).normal(size=n)
    ema = np.zeros((), np.float32)
    for value in values.astype(np.float32):
        ema = training.ema_update(ema, value, decay)
    expected = (1 - decay) * (decay ** np.arange(n - 1, -1, -1) * values).sum()
    np.testing.assert_allclose(ema, expected, rtol=1e-5)


def test_a_warmed_up_average_forgets_where_it_began():
    """After n steps of decay (1 + k) / (10 + k) the start is left with weight 9! n! ... / (n + 9)! ~ n^-9."""
    decay = training.ema_warmup(0.9999)
    assert np.prod(np.float64(decay(np.arange(100)))) < 1e-10
    assert float(decay(10**7)) == pytest.approx(0.9999)


@pytest.mark.parametrize("decay", [training.ema_warmup(0.9), np.float32(0.9)], ids=["warm-up", "float32"])
def test_parameters_of_any_type_keep_it(decay):
    step = training.make_step(lambda params, keys, batch: (params["w"] ** 2).mean(), optimizer(), ema_decay=decay)
    for dtype in (jnp.bfloat16, jnp.float16):
        state = training.init({"w": jnp.ones(3, dtype)}, optimizer())
        assert all(leaf.dtype == dtype for leaf in jax.eval_shape(step, from_seed(0), state, X0)[0].ema.values())


def test_batches_that_cannot_be_cut_are_refused():
    step = training.make_step(loss_fn, optax.sgd(0.1), accumulate=3)
    state = training.init(PARAMS, optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"batch of 16 cannot be cut into accumulate = 3 equal parts"):
        step(from_seed(3), state, BATCH)
    ragged = {"image": X0, "label": np.zeros(3)}
    with pytest.raises(ValueError, match="same first axis"):
        training.make_step(loss_fn, optax.sgd(0.1))(from_seed(3), state, ragged)


def test_micro_batches_are_a_loop_but_on_a_cpu():
    state = training.init(PARAMS, optax.sgd(0.1))

    def loops(platform):
        step = training.make_step(loss_fn, optax.sgd(0.1), accumulate=2, platform=platform)
        return jax.jit(step).lower(from_seed(3), state, BATCH).as_text().count("stablehlo.while")

    assert loops("tpu") > loops("cpu") == loops(None)
