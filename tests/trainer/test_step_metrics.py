"""The first state of a run, the times of a step's examples, and metrics: skipped steps, the time of evaluations."""

import dataclasses
import re
import time

import jax
import numpy as np
import pytest
import tiny_run

from ddpm_jax import config as configs
from ddpm_jax import tracking, trainer
from ddpm_jax.keys import from_seed
from ddpm_jax.model import build

CONFIG = dataclasses.replace(
    tiny_run.CONFIG, batch=8, loss=configs.Loss(stratified=True), optim=configs.Optim(max_skipped=3)
)


@pytest.mark.parametrize("changes", [{}, {"remat": True}])
def test_the_first_state_of_the_host_is_that_of_the_compiled_program(changes):
    net = dataclasses.replace(CONFIG.net, num_classes=3, **changes)
    config = dataclasses.replace(
        CONFIG, net=net, text=configs.Text(1, 8, 2, 8), optim=configs.Optim(ema_lengths=(0.1,))
    )
    model = build(config, (8, 8, 1), 17)
    state = trainer.init_state(model, trainer.init_params(model, from_seed(3)))
    compiled = jax.device_get(jax.jit(model.init_state)(from_seed(3)))

    def check(path, a, b):  # flax's own layers are drawn by a program of their own
        rtol = 1e-6 if re.search("text|where", jax.tree_util.keystr(path)) else 0
        np.testing.assert_allclose(a, b, rtol, strict=True)

    jax.tree.map_with_path(check, state, compiled)


def test_stratified_times_differ_from_step_to_step_and_are_those_of_the_whole_batch_on_any_device():
    def times(step, places):
        return np.asarray(trainer.stratified_times(CONFIG, from_seed(0), step, np.asarray(places)))

    step_1, step_2 = times(1, range(8)), times(2, range(8))
    assert (step_1 != step_2).any() and len(set(step_1)) > 1
    np.testing.assert_array_equal(times(1, range(4, 8)), step_1[4:])
    assert trainer.stratified_times(tiny_run.CONFIG, from_seed(0), 1, np.arange(8)) is None


def test_only_skipped_steps_in_a_row_are_too_many(tmp_path):
    watch = trainer.StepMetrics(CONFIG, tmp_path, 0)
    zeros = {"quarter_share": np.full((1, 4), 0.25), "quarter_loss": np.zeros((1, 4)), "loss": np.ones(1)}
    for step, skipped in enumerate([1, 1, 0, 1, 1, 0, 1, 1], 1):
        metrics = {**zeros, "grad_norm": np.ones(1), "skipped": np.array([skipped])}
        watch.add(step, metrics, np.arange(8)[None])
    watch.flush()
    assert not watch.skip_limit_reached and [step for step, _ in watch.skipped_in_a_row] == [7, 8]
    watch.add(9, {**zeros, "grad_norm": np.ones(1), "skipped": np.ones(1, int)}, np.arange(8)[None])
    watch.flush()
    assert watch.skip_limit_reached and watch.skipped_in_a_row[0][0] == 7


def test_an_evaluation_between_two_lines_takes_no_time_of_training(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    metrics = trainer.StepMetrics(CONFIG, tmp_path, 0)
    row = {"quarter_share": np.full((1, 4), 0.25), "quarter_loss": np.zeros((1, 4)), "loss": np.ones(1)}

    def steps(count):
        for _ in range(count):
            now[0] += 0.5
            metrics.add(1, row | {"grad_norm": np.ones(1), "skipped": np.zeros(1, int)}, np.arange(8)[None])

    def evaluate():
        now[0] += 100
        return {"held_out_loss": 1.0}

    steps(6)
    metrics.write_evaluation(6, evaluate)
    steps(4)
    metrics.write_metrics(10)
    line = tracking.read_metrics(metrics.file.path)[-1]
    assert line["steps_per_s"] == 2 and line["images_per_s"] == 16
