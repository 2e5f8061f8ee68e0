"""The training step: what it sees does not depend on the devices, and what it must not do it does not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax import losses, schedules, training

SCHEDULE = schedules.linear(100)
X0 = np.tanh(np.random.default_rng(0).normal(size=(16, 4, 4, 1))).astype(np.float32)


def net(params, x_t, t):
    """A denoiser small enough to compile in no time, and not linear in its parameters."""
    hidden = jnp.tanh(x_t * params["w"] + params["b"] * t[:, None, None, None] / 100)
    return hidden * params["w"] + params["b"]


def loss_fn(params, keys, batch):
    return losses.simple_loss(keys, SCHEDULE, functools.partial(net, params), batch["image"]).mean()


PARAMS = {"w": jnp.full((4, 4, 1), 0.5), "b": jnp.full((1,), 0.1)}
BATCH = {"image": X0}
KEY = jax.random.key(3)


def spread(batch, devices):
    return jax.tree.map(lambda a: a.reshape(devices, -1, *a.shape[1:]), batch)


def run(steps, devices=1, replicas=False, **options):
    """Final state and the metrics of each step, under jit or pmapped over so many devices."""
    optimizer = training.optimizer(1e-2, warmup=3)
    state, rows = training.init(PARAMS, optimizer), []
    if devices == 1 and not replicas:
        step = jax.jit(training.make_step(loss_fn, optimizer, ema_decay=0.9, **options))
        batch = BATCH
    else:
        body = training.make_step(loss_fn, optimizer, ema_decay=0.9, axis_name="batch", **options)
        step = jax.pmap(
            body, axis_name="batch", in_axes=(None, 0 if replicas else None, 0), out_axes=0 if replicas else None,
            devices=jax.devices()[:devices],
        )  # fmt: skip
        batch = spread(BATCH, devices)
        if replicas:
            state = jax.tree.map(lambda a: jnp.broadcast_to(a, (devices, *a.shape)), state)
    for _ in range(steps):
        state, metrics = step(KEY, state, batch)
        rows.append(metrics)
    return state, rows


@pytest.mark.parametrize("devices", [2, 8])
def test_any_number_of_devices_sees_the_same_training(devices):
    one, rows_one = run(5)
    many, rows_many = run(5, devices)
    for a, b in zip(rows_one, rows_many, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-6)
        np.testing.assert_allclose(a["grad_norm"], b["grad_norm"], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, many)


def test_every_replica_holds_the_same_bytes():
    state, _ = run(4, devices=8, replicas=True)
    for leaf in jax.tree.leaves(state):
        copies = np.asarray(leaf)
        assert all(copies[0].tobytes() == copy.tobytes() for copy in copies)


def test_without_the_mean_over_devices_the_replicas_part():
    """The control of the test above: the same comparison notices a step that forgets its `pmean`."""
    optimizer = training.optimizer(1e-2, warmup=0)
    body = training.make_step(loss_fn, optimizer, ema_decay=0.9)  # no axis_name: no pmean
    state = jax.tree.map(lambda a: jnp.broadcast_to(a, (8, *a.shape)), training.init(PARAMS, optimizer))
    state, _ = jax.pmap(body, in_axes=(None, 0, 0))(KEY, state, spread(BATCH, 8))
    copies = np.asarray(state.params["w"])
    assert any(copies[0].tobytes() != copy.tobytes() for copy in copies)


@pytest.mark.parametrize("parts", [2, 4, 16])
def test_micro_batches_give_the_gradient_of_the_whole_batch(parts):
    whole, rows_whole = run(3)
    cut, rows_cut = run(3, accumulate=parts)
    np.testing.assert_allclose(rows_whole[-1]["loss"], rows_cut[-1]["loss"], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole, cut)


def test_steps_differ_in_what_they_draw_and_a_repeated_step_does_not():
    optimizer = optax.sgd(0.0)
    step = jax.jit(training.make_step(loss_fn, optimizer, ema_decay=0.9))
    state = training.init(PARAMS, optimizer)
    first, metrics = step(KEY, state, BATCH)
    _, again = step(KEY, state, BATCH)
    _, other = step(KEY, first, BATCH)
    assert metrics["loss"] == again["loss"]
    assert metrics["loss"] != other["loss"]


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_but_the_step_number(poison):
    def bad_loss(params, keys, batch):
        loss = loss_fn(params, keys, {"image": batch["image"]})
        size = jnp.sqrt(jnp.abs(params["b"] - params["b"]).sum()) if poison == "gradient" else jnp.log(-1.0)
        return loss + jnp.where(batch["poison"].any(), size, 0.0)

    optimizer = training.optimizer(1e-2, warmup=0)
    step = jax.jit(training.make_step(bad_loss, optimizer, ema_decay=0.9))
    flags = {ok: {"image": X0, "poison": np.full(16, not ok)} for ok in (True, False)}
    state, metrics = step(KEY, training.init(PARAMS, optimizer), flags[poison != "loss"])
    if poison == "loss":
        assert metrics["skipped"] == 1
        expected = training.init(PARAMS, optimizer)
        assert state.step == 1
        for got, was in zip(jax.tree.leaves(state[1:]), jax.tree.leaves(expected[1:]), strict=True):
            np.testing.assert_array_equal(got, was)
        state, metrics = step(KEY, state, flags[True])
        assert metrics["skipped"] == 0 and np.isfinite(metrics["loss"])
        assert (np.asarray(state.params["w"]) != np.asarray(PARAMS["w"])).any()
    else:
        # sqrt at 0 has a finite value and an infinite derivative, even where `where` does not choose it
        assert np.isfinite(metrics["loss"]) and not np.isfinite(metrics["grad_norm"])
        assert metrics["skipped"] == 1
        np.testing.assert_array_equal(state.params["w"], PARAMS["w"])


def test_a_step_that_is_not_finite_on_one_device_is_skipped_on_all():
    def bad_loss(params, keys, batch):
        return loss_fn(params, keys, {"image": batch["image"]}) + jnp.where(batch["poison"].any(), jnp.nan, 0.0)

    optimizer = training.optimizer(1e-2, warmup=0)
    body = training.make_step(bad_loss, optimizer, ema_decay=0.9, axis_name="batch")
    poison = np.zeros(16, bool)
    poison[5] = True
    state = jax.tree.map(lambda a: jnp.broadcast_to(a, (8, *a.shape)), training.init(PARAMS, optimizer))
    step = jax.pmap(body, axis_name="batch", in_axes=(None, 0, 0))
    state, metrics = step(KEY, state, spread({"image": X0, "poison": poison}, 8))
    assert np.asarray(metrics["skipped"]).tolist() == [1] * 8
    np.testing.assert_array_equal(state.params["w"], np.broadcast_to(PARAMS["w"], (8, 4, 4, 1)))


def test_the_state_owns_its_buffers():
    """Parameters and average must not share a buffer, or donating the state hands one buffer over twice."""
    optimizer = training.optimizer(1e-2)
    state = training.init(PARAMS, optimizer)
    step = jax.jit(training.make_step(loss_fn, optimizer, ema_decay=0.9), donate_argnums=1)
    state, _ = step(KEY, state, BATCH)
    state, _ = step(KEY, state, BATCH)
    assert not PARAMS["w"].is_deleted()
    assert np.isfinite(state.ema["w"]).all()


@pytest.mark.parametrize(("warmup", "decay"), [(0, 0), (4, 0), (0, 10), (4, 10)])
def test_the_rate_rises_as_a_line_and_falls_as_a_cosine(warmup, decay):
    """Adam's step on a gradient that is always 1 is its rate."""
    optimizer = training.optimizer(0.1, warmup=warmup, decay=decay, clip=None)
    w, rates = jnp.zeros(()), []
    state = optimizer.init(w)
    for _ in range(13):
        update, state = optimizer.update(jnp.ones(()), state, w)
        rates.append(-float(update))
    n = np.arange(13)
    falling = 0.5 * (1 + np.cos(np.pi * np.clip((n - warmup) / (decay - warmup), 0, 1))) if decay else 1.0
    rising = np.minimum(1, n / warmup) if warmup else 1.0
    np.testing.assert_allclose(rates, 0.1 * rising * falling, atol=1e-6)


@pytest.mark.parametrize("decay", [-1, 3, 5])
def test_a_rate_that_falls_before_it_has_risen_is_refused(decay):
    with pytest.raises(ValueError, match=f"decay must be 0 or more steps than those of the warm-up, 5, got {decay}"):
        training.optimizer(0.1, warmup=5, decay=decay)


def test_the_average_has_its_closed_form():
    decay, n = 0.9, 30
    values = np.random.default_rng(1).normal(size=n)
    ema = jnp.zeros(())
    for value in values:
        ema = training.ema_update(ema, jnp.asarray(value, jnp.float32), decay)
    expected = (1 - decay) * (decay ** np.arange(n - 1, -1, -1) * values).sum()
    np.testing.assert_allclose(ema, expected, rtol=1e-5)


def test_a_warmed_up_average_forgets_where_it_began():
    """After n steps of decay (1 + k) / (10 + k) the start is left with weight 9! n! ... / (n + 9)! ~ n^-9."""
    decay, weight = training.ema_warmup(0.9999), 1.0
    for n in range(100):
        weight *= float(decay(jnp.asarray(n)))
    assert weight < 1e-10
    assert float(decay(jnp.asarray(10**7))) == pytest.approx(0.9999)


def test_batches_that_cannot_be_cut_are_refused():
    step = training.make_step(loss_fn, optax.sgd(0.1), accumulate=3)
    state = training.init(PARAMS, optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"batch of 16 cannot be cut into accumulate = 3 equal parts"):
        step(KEY, state, BATCH)
    ragged = {"image": X0, "label": np.zeros(3)}
    with pytest.raises(ValueError, match="same first axis"):
        training.make_step(loss_fn, optax.sgd(0.1))(KEY, state, ragged)


def test_one_compilation_for_every_step():
    optimizer, traced = training.optimizer(1e-2, warmup=0), []
    body = training.make_step(loss_fn, optimizer, ema_decay=training.ema_warmup(0.99))

    @functools.partial(jax.jit, donate_argnums=1)
    def step(key, state, batch):
        traced.append(batch)
        return body(key, state, batch)

    state = training.init(PARAMS, optimizer)
    for _ in range(3):
        state, _ = step(KEY, state, BATCH)
    assert len(traced) == 1
