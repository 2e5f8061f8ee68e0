"""bits/dim over a split: the number, where it comes from, and what an interruption does to it."""

import dataclasses
import json
import os
import signal
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import shared_evaluation

from ddpm_jax import data, gaussian, likelihood, pipeline, process, schedules, tracking
from ddpm_jax.evaluate import likelihood as evaluated
from ddpm_jax.evaluate import protocol
from ddpm_jax.evaluate.context import EvaluationContext, Interrupted, load_images, select_split
from ddpm_jax.evaluate.likelihood import LikelihoodOptions
from ddpm_jax.keys import from_seed
from ddpm_jax.models.unet import UNet
from ddpm_jax.process import distributed
from ddpm_jax.programs import cli


def of(folder, out, variance_mix=0.0, **sampling) -> EvaluationContext:
    return shared_evaluation.evaluation_context(folder, out, variance_mix=variance_mix, **sampling)


def measured(run: EvaluationContext, options: LikelihoodOptions):
    selected = select_split(load_images(run), options.split, options.num)
    found = evaluated.load_or_measure(run, selected, options)
    assert found is not None
    return found


def numbers(run: EvaluationContext, options: LikelihoodOptions):
    return {number.name: number for number in measured(run, options)[1]}


HUNDRED = {estimate: LikelihoodOptions(num=100, estimate=estimate) for estimate in (None, 2)}


@pytest.fixture(scope="module")
def straight(run_folder, tmp_path_factory):
    """The results of a hundred images: the exact bound and an estimate."""
    out = tmp_path_factory.mktemp("straight")
    for options in HUNDRED.values():
        numbers(of(run_folder, out), options)
    return out


def test_the_command_says_what_the_function_says(run_folder, tmp_path):
    """Over devices, in tiles, the last of them not full: each image's bound is that of the plain function."""
    run, options = of(run_folder, tmp_path), LikelihoodOptions(num=45)
    found = numbers(run, options)
    model = run.model

    @jax.jit
    def plain(key, integers):
        x0 = data.normalize(integers, 17)
        key = jax.random.fold_in(key, 2**32 - 2)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(45))
        denoise, decoder = model.denoiser(model.params), likelihood.discretized_gaussian(17)
        found = likelihood.vlb(keys, model.schedule, denoise, x0, variance_mix=0.0, decoder=decoder)
        return *(likelihood.bits_per_dim(nats, x0) for nats in (found.total, found.terms)), found.x0_mse[0]

    total, terms, mse = (np.asarray(part, np.float64) for part in plain(from_seed(0), data.load("digits").test[:45]))
    (path,) = tmp_path.glob("likelihood-*.npz")
    stored = evaluated.load(path)
    np.testing.assert_allclose(stored.total, total, rtol=2e-5)
    assert found["bits/dim"].value == pytest.approx(total.mean(), rel=1e-5)
    assert found["bits/dim"].error == pytest.approx(total.std(ddof=1) / 45**0.5, rel=1e-4)
    parts = [found[name].value for name in ("rate, bits/dim", "distortion, bits/dim", "prior, bits/dim")]
    assert sum(parts) == pytest.approx(found["bits/dim"].value, rel=1e-6)
    np.testing.assert_allclose(stored.terms / 45, terms.mean(1), rtol=1e-4)
    rmse = 127.5 * np.sqrt(mse.mean())
    assert found["RMSE of x_0, 0..255"].value == pytest.approx(rmse, rel=1e-5)


def test_the_estimate_is_within_three_standard_errors_of_the_exact_bound(run_folder, straight):
    run = of(run_folder, straight)
    exact, guess = (numbers(run, options)["bits/dim"] for options in HUNDRED.values())
    exactly, guessed = (measured(run, options)[0].total for options in HUNDRED.values())
    error = (guessed - exactly).std(ddof=1) / 10  # the images are the same: what differs is the draw of times and noise
    assert 0 < abs(guess.value - exact.value) < 3 * error
    assert error < guess.error * 1.5


@pytest.mark.parametrize("estimate", [None, 2])
def test_an_interrupted_measurement_goes_on_to_the_same_number(
    run_folder, straight, tmp_path, monkeypatch, capsys, estimate
):
    options = HUNDRED[estimate]
    run, update = of(run_folder, tmp_path), tracking.Progress.update
    monkeypatch.setattr(
        tracking.Progress, "update", lambda *args: (os.kill(os.getpid(), signal.SIGTERM), update(*args))
    )
    with pytest.raises(Interrupted):
        evaluated.run(run, options)
    assert "interrupted: 8 of 100 images are kept" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.json"))
    monkeypatch.undo()
    evaluated.run(run, options)
    assert "continued after 8 of 100 images" in capsys.readouterr().out
    (found,) = tmp_path.glob("*.npz")
    assert found.read_bytes() == (straight / found.name).read_bytes()


def test_a_measurement_whose_result_could_not_be_written_goes_on(run_folder, tmp_path, monkeypatch):
    """On a full disk the part is that of all images, the last of whose tiles is not full."""
    run, options = of(run_folder, tmp_path), LikelihoodOptions(num=10)
    with monkeypatch.context() as full:
        full.setattr(evaluated, "SAVE_SECONDS", -1)
        full.setattr(protocol, "write_measurements", mock.Mock(side_effect=OSError("No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            numbers(run, options)
    (part,) = tmp_path.glob("*.part.npz")
    assert evaluated.load(part).done == 10
    bits = numbers(run, options)["bits/dim"]
    assert bits.value == evaluated.load(part.with_name(part.name.replace(".part", ""))).total.mean()
    assert not part.exists()


def test_a_number_that_is_there_is_not_measured_again(run_folder, straight, monkeypatch):
    before = numbers(of(run_folder, straight), HUNDRED[None])
    monkeypatch.setattr(evaluated, "measure", None)
    assert numbers(of(run_folder, straight), HUNDRED[None]) == before


def test_a_number_that_is_there_is_not_one_of_a_condition(run_folder, straight):
    run = of(run_folder, straight)
    labelled = run._replace(model=run.model.with_request(pipeline.ConditionRequest((3,))))
    with pytest.raises(ValueError, match="for the unconditional network: leave out the labels 3"):
        numbers(labelled, HUNDRED[None])


def test_changing_any_field_changes_the_line(run_folder, tmp_path):
    plain = LikelihoodOptions(num=16, estimate=2)

    def line(options=plain, fingerprint=None, **flags):
        run = shared_evaluation.evaluation_context(run_folder, tmp_path, **flags)
        run.model.fingerprint = fingerprint or run.model.fingerprint
        fields = evaluated.protocol_fields(run, select_split(load_images(run), options.split, options.num), options)
        return protocol.format_line(protocol.Measurement("bits/dim", 3.75, 0.01, fields))

    lines = [
        line(),
        line(variance_mix=0.5),
        line(clip=False),
        line(weights="raw"),
        line(fingerprint="sha256:0123456789abcdef"),  # of another run
        *(
            line(dataclasses.replace(plain, **change))
            for change in (
                {"num": 17}, {"seed": 1}, {"estimate": 3}, {"estimate": None}, {"split": "train"}, {"decoder": "tanh"},
            )
        ),
        line(LikelihoodOptions(num=16), steps=10),
        line(LikelihoodOptions(num=16), steps=10, spacing="quadratic"),
    ]  # fmt: skip
    assert len(set(lines)) == len(lines)
    assert lines[0].startswith("bits/dim 3.750 ± 0.010 | ") and "mix=1" in lines[0]
    assert "n=16 | digits-test sha " in lines[0] and "| ema | ckpt=" in lines[0] and "step 3" in lines[0]


def test_the_json_is_the_line(run_folder, straight):
    run, options = of(run_folder, straight), HUNDRED[2]
    found = numbers(run, options)
    path = evaluated.result_path(run, select_split(load_images(run), "test", 100), options).with_suffix(".json")
    assert protocol.read_measurements(path) == list(found.values())
    written = json.loads(path.read_text())
    assert [row["line"] for row in written["numbers"]] == [protocol.format_line(number) for number in found.values()]
    assert written["made_with"]["versions"]["jax"] == jax.__version__


def test_the_estimates_over_twenty_seeds_cover_the_closed_form():
    """Data N(0.2, 1/4), 1000 linear steps, beta: 0.840462 nats.  Within two standard errors in 95 of 100 seeds, if the
    errors are right: of twenty, at least 16 (fewer come by chance in 3 of 1000 cases)."""
    schedule, mean, std, n, dims = schedules.linear(1000), 0.2, 0.5, 256, 16

    def net(x, t):
        signal, noise = (schedules.gather(column, t, x) for column in (schedule.signal, schedule.noise))
        return noise * (x - signal * mean) / (signal**2 * std**2 + noise**2)

    denoise = gaussian.denoiser(schedule, net, clip=False)

    @jax.jit
    def nats(key):
        data_key, key = jax.random.split(key)
        x0 = mean + std * jax.random.normal(data_key, (n, dims))
        found = likelihood.estimate_vlb(key, schedule, denoise, x0, strata=16, decoder=likelihood.gaussian_density)
        return found.total / dims

    keys = jax.jit(jax.random.split, static_argnums=1)(from_seed(0), 20)
    seeds = [np.asarray(nats(key), np.float64) for key in keys]
    off = np.array([(x.mean() - 0.840462) / (x.std(ddof=1) / n**0.5) for x in seeds])
    assert (abs(off) < 2).sum() >= 16
    assert abs(off.mean()) < 4 / 20**0.5


@pytest.mark.slow
def test_the_exact_bound_of_the_large_net_does_not_store_the_activations_of_its_steps():
    """35.7M parameters: 1000 steps take no more working memory than 10, but for the terms themselves."""
    net = UNet()
    x0 = jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(net.init, from_seed(0), x0, jax.ShapeDtypeStruct((4,), jnp.int32))

    def working_memory(T):
        schedule = schedules.cosine(T)

        def vlb_of_params(params, key, x0):
            denoise = gaussian.denoiser(schedule, lambda x, t: net.apply(params, x, t), clip=True)
            return likelihood.vlb(key, schedule, denoise, x0, decoder=likelihood.decoder_8bit)

        compiled = jax.jit(vlb_of_params).lower(params, from_seed(0), x0).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = working_memory(10), working_memory(1000)
    assert few > 1e6  # the compiler reports it
    assert many - few < 1e6


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (LikelihoodOptions(num=298), r"--num must be 1 to 297, the images in digits's test split, got 298"),
        (LikelihoodOptions(num=0), r"--num must be 1 to 297"),
    ],
)
def test_wrong_requests_are_refused(run_folder, tmp_path, options, text):
    with pytest.raises(ValueError, match=text):
        numbers(of(run_folder, tmp_path), options)


def test_an_estimate_of_a_strided_chain_is_refused(run_folder, tmp_path):
    with pytest.raises(ValueError, match="--estimate draws from all 20 timesteps: leave out --steps 10"):
        numbers(of(run_folder, tmp_path, steps=10), LikelihoodOptions(estimate=4))


@pytest.mark.parametrize("command", ["likelihood", "rate_distortion"])
@pytest.mark.parametrize("flag", [("--sampler", "ddim"), ("--eta", "0.0"), ("--order", "2")])
def test_the_bound_of_another_sampler_is_refused(run_folder, tmp_path, command, flag, capsys):
    assert cli.call(["evaluate", str(run_folder), command, *flag, "--out", str(tmp_path)]) == 2
    assert f"the bound is that of ancestral sampling: leave out {' '.join(flag)}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_bound_is_of_the_whole_chain_where_samples_take_strides(run_folder, straight):
    run, options = of(run_folder, straight), HUNDRED[None]
    fewer = run._replace(
        model=run.model.with_request(run.model.request, steps=5)
    )  # as a config with sampling.steps = 5 does
    written_at = {path: path.stat().st_mtime_ns for path in straight.iterdir()}
    evaluated.run(fewer, options)
    assert {path: path.stat().st_mtime_ns for path in straight.iterdir()} == written_at  # the bound that is there

    def method(run):
        run = evaluated.with_full_chain(run)
        return evaluated.protocol_fields(run, select_split(load_images(run), "test", 100), options)["method"]

    assert method(run) == method(fewer) == "exact T=20"
    assert method(of(run_folder, straight, steps=5)) == "exact 5 of T=20 uniform"


def test_a_part_of_something_else_is_not_taken_up(run_folder, tmp_path):
    run, options = of(run_folder, tmp_path), LikelihoodOptions(num=10)
    name = evaluated.result_path(run, select_split(load_images(run), "test", 10), options)
    evaluated.save(name.with_suffix(".part.npz"), evaluated.empty_result(run.model, options, 12))
    with pytest.raises(ValueError, match="belongs to another measurement: remove it to start again"):
        numbers(run, options)


def test_processes_that_measure_another_bound_are_refused(run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "_is_distributed", lambda: True)
    monkeypatch.setattr(distributed, "_allgather", lambda mine: np.stack([mine, mine + 1]))
    with pytest.raises(ValueError, match="the same weights, flags and images: it differs in process 1"):
        numbers(of(run_folder, tmp_path), HUNDRED[2])


def test_all_processes_go_on_where_the_first_does(run_folder, tmp_path, monkeypatch):
    """Another one may not see what is kept: its share of a round would be of other images, and its rounds more."""
    starts, tiles_from = [], evaluated.device_tiles
    monkeypatch.setattr(process, "is_main_process", lambda: False)
    monkeypatch.setattr(process, "broadcast", lambda mine: np.full_like(mine, 96))
    monkeypatch.setattr(evaluated, "device_tiles", lambda *args: (starts.append(args[1]), tiles_from(*args))[1])
    measured(of(run_folder, tmp_path), HUNDRED[None])
    assert starts == [96] and not list(tmp_path.iterdir())
    monkeypatch.setattr(process, "any_process", lambda mine: True)  # the first has the result
    with pytest.raises(SystemExit):
        measured(of(run_folder, tmp_path), HUNDRED[None])
