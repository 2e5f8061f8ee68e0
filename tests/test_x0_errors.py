"""The analytic sampler of a run: errors from the command that measures them to images, and what is refused."""

import json
import re
import shutil

import numpy as np
import pytest
import tiny_run

import sample
from ddpm_jax import runs, samplers
from ddpm_jax.config import flags
from ddpm_jax.evaluate import likelihood
from ddpm_jax.evaluate.likelihood import Likelihood
from ddpm_jax.evaluate.subject import Which, images, split, subject


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run of random parameters with the errors of five images."""
    folder = tiny_run.make(tmp_path_factory.mktemp("analytic") / "run")
    assert likelihood.run(subject(str(folder), Which()), Likelihood(num=5)) == 0
    return folder


def model(folder, sampler="analytic", weights="ema", **sampling):
    return runs.Model(folder, step=None, weights=weights, sampling={"sampler": sampler, "steps": 5} | sampling)


def drawn(model):
    return np.concatenate([part.x for part in model.draw(seed=0, start=0, num=4)])


@pytest.fixture
def other(home, tmp_path):
    return shutil.copytree(home, tmp_path / "run")


def rewrite(folder, **changes):
    path = folder / "x0_errors.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_runs_images_are_those_of_the_sampler_with_the_errors_that_were_measured(home):
    run = model(home)
    # of five images by hand: the results that the command leaves beside hold the sums of each step
    (path,) = (home / "evaluation").glob("likelihood-*.npz")
    errors = np.append(0, likelihood.load(path).errors / 5)
    assert run.x0_errors is not None
    np.testing.assert_allclose(run.x0_errors, errors, rtol=1e-6)
    keys = samplers.image_keys(0, range(4))
    sampler = samplers.analytic(run.schedule, run.denoiser(run.params), errors)
    x_T = samplers.initial_noise(keys, (8, 8, 1))
    np.testing.assert_allclose(drawn(run), samplers.sample(keys, sampler, x_T, run.times), rtol=0, atol=1e-5)
    assert run.describe().endswith("; analytic, 5 steps")


def test_a_network_without_errors_has_the_variance_beta_tilde(other):
    rewrite(other, x0_errors=[0.0] * 21)
    certain = model(other)
    np.testing.assert_allclose(drawn(certain), drawn(model(other, "ancestral", mix=0.0)), rtol=0, atol=1e-5)
    rewrite(other, x0_errors=[0.5] * 21)
    doubting = certain.asking(certain.asked)
    assert (drawn(doubting) != drawn(certain)).any() and doubting.errors_hash != certain.errors_hash
    assert len(doubting._programs) == 1  # of which the errors are an argument


def test_errors_of_more_images_stay_and_those_of_fewer_go(other):
    run = model(other)
    first = run.errors_hash
    runs.errors.keep(other, run.fingerprint, run.config, np.full(20, 0.1), 4)
    assert model(other).errors_hash == first
    runs.errors.keep(other, run.fingerprint, run.config, np.full(20, 0.1), 6)
    assert model(other).errors_hash != first
    runs.errors.keep(other, "sha256:0", run.config, np.full(20, 0.1), 1)
    with pytest.raises(ValueError, match=re.escape("has the errors of sha256:0, not of sha256:")):
        model(other)


def test_an_evaluation_of_a_strided_chain_or_for_another_folder_leaves_the_run_alone(other):
    (other / "x0_errors.json").unlink()
    aside = subject(str(other), Which(out=str(other / "evaluation")))
    assert likelihood.run(aside, Likelihood(num=5)) == 0  # measured before
    run, options = subject(str(other), Which(sampling=flags.Sampling(steps=10))), Likelihood(num=5)
    name = likelihood.result(run, split(images(run), "test", 5), options)
    likelihood.save(name.with_suffix(".npz"), likelihood.blank(run.model, options, 5))
    name.with_suffix(".json").touch()
    assert likelihood.run(run, options) == 0
    assert not (other / "x0_errors.json").exists()


def test_what_is_missing_or_of_another_network_is_said_with_the_command_that_measures_it(home, other):
    command = f"python -m ddpm_jax.evaluate {home} likelihood --steps 20"
    with pytest.raises(ValueError, match=re.escape("x0_errors.json has the errors of sha256:")) as refused:
        model(home, weights="raw")
    assert command in str(refused.value)
    with pytest.raises(ValueError, match=re.escape("has errors with {'clip': True}, not {'clip': False}: python")):
        model(home, clip=False)
    rewrite(other, x0_errors=[0.1] * 20)
    with pytest.raises(ValueError, match=re.escape("x0_errors.json is damaged: 20 errors, not 21; remove it, and")):
        model(other)
    for damage in ("", "[1]", '{"x0_errors": [-1]}', '{"x0_errors": [1]}'):
        (other / "x0_errors.json").write_text(damage)
        with pytest.raises(ValueError, match=r"x0_errors\.json is damaged, remove it: "):
            model(other)
    (other / "x0_errors.json").unlink()
    text = f"--sampler analytic needs the network's errors, and there is no {other / 'x0_errors.json'}: python"
    with pytest.raises(FileNotFoundError, match=re.escape(text)):
        model(other)


def test_a_manifest_rests_on_the_errors(other, tmp_path, capsys):
    chosen = flags.Sampling(sampler="analytic", steps=5)
    asked = sample.Arguments(str(other), num=4, out=str(tmp_path / "out"), sampling=chosen)
    assert sample.draw(asked) == 0
    again = sample.Arguments(str(other), verify=str(tmp_path / "out" / "manifest.json"))
    assert sample.verify(again) == 0 and "equal: all 4 images" in capsys.readouterr().out
    rewrite(other, x0_errors=[0.5] * 21)
    with pytest.raises(ValueError, match=r"rests on x0_errors sha256:\w+, .*run holds sha256:"):
        sample.verify(again)
