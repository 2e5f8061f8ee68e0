"""The analytic sampler of a run: errors from the command that measures them to images, and what is refused."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
import shared_evaluation

from ddpm_jax import samplers
from ddpm_jax.config import flags
from ddpm_jax.evaluate import likelihood
from ddpm_jax.evaluate.context import load_images, select_split
from ddpm_jax.evaluate.likelihood import LikelihoodOptions
from ddpm_jax.pipeline import x0_mse
from ddpm_jax.pipeline.verify import verify
from ddpm_jax.programs import sample


@pytest.fixture(scope="module", autouse=True)
def shared():
    with shared_evaluation.share_programs():
        yield


@pytest.fixture(scope="module")
def measured(run_folder, tmp_path_factory):
    """A run of random parameters with the errors of five images."""
    folder = shutil.copytree(run_folder, tmp_path_factory.mktemp("analytic") / "run")
    likelihood.run(shared_evaluation.evaluation_context(folder), LikelihoodOptions(num=5))
    return folder


@pytest.fixture
def home(measured):
    """That run, whose errors a test may change."""
    path = measured / "x0_errors.json"
    text = path.read_text()
    yield measured
    path.write_text(text)


def model(folder, weights="ema", **sampling):
    return shared_evaluation.shared_model(
        folder, weights=weights, sampling={"sampler": "analytic", "steps": 5} | sampling
    )


def drawn(model):
    return np.concatenate([part.x for part in model.draw(seed=0, start=0, num=4)])


def rewrite(folder, **changes):
    path = folder / "x0_errors.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_runs_images_are_those_of_the_sampler_with_the_errors_that_were_measured(home):
    run = model(home)
    # of five images by hand: the results that the command leaves beside hold the sums of each step
    (path,) = (home / "evaluation").glob("likelihood-*.npz")
    mse_by_t = np.append(0, likelihood.load(path).errors / 5)
    assert run.x0_mse is not None
    np.testing.assert_allclose(run.x0_mse, mse_by_t, rtol=1e-6)

    @jax.jit
    def plain(mse_by_t):
        keys = samplers.image_keys(0, range(4))
        sampler = samplers.analytic(run.schedule, run.denoiser(run.params), mse_by_t)
        return samplers.sample(keys, sampler, samplers.initial_noise(keys, (8, 8, 1)), run.times)

    np.testing.assert_allclose(drawn(run), plain(mse_by_t.astype(np.float32)), rtol=0, atol=1e-5)
    assert run.describe().endswith("; analytic, 5 steps")
    # and errors are an argument of what was compiled
    compiled = len(run._programs)
    rewrite(home, x0_errors=[0.5] * 21)
    doubting = run.with_request(run.request)
    np.testing.assert_allclose(drawn(doubting), plain(np.full(21, 0.5, np.float32)), rtol=0, atol=1e-5)
    assert (drawn(doubting) != drawn(run)).any() and doubting.x0_mse_digest != run.x0_mse_digest
    assert len(run._programs) == compiled


def test_errors_of_more_images_stay_and_those_of_fewer_go(home):
    run = model(home)
    digest = run.x0_mse_digest
    x0_mse.save(home, run.fingerprint, run.config, np.full(20, 0.1), 4)
    assert model(home).x0_mse_digest == digest
    x0_mse.save(home, run.fingerprint, run.config, np.full(20, 0.1), 6)
    assert model(home).x0_mse_digest != digest
    x0_mse.save(home, "sha256:0", run.config, np.full(20, 0.1), 1)
    with pytest.raises(ValueError, match=re.escape("has the errors of sha256:0, not of sha256:")):
        model(home)


def test_an_evaluation_of_a_strided_chain_or_for_another_folder_leaves_the_run_alone(home, tmp_path):
    home = shutil.copytree(home, tmp_path / "run")
    (home / "x0_errors.json").unlink()
    aside = shared_evaluation.evaluation_context(home, home / "evaluation")
    likelihood.run(aside, LikelihoodOptions(num=5))  # measured before
    run, options = shared_evaluation.evaluation_context(home, steps=10), LikelihoodOptions(num=5)
    name = likelihood.result_path(run, select_split(load_images(run), "test", 5), options)
    likelihood.save(name.with_suffix(".npz"), likelihood.empty_result(run.model, options, 5))
    name.with_suffix(".json").touch()
    likelihood.run(run, options)
    assert not (home / "x0_errors.json").exists()


def test_what_is_missing_or_of_another_network_is_said_with_the_command_that_measures_it(home):
    command = f"ddpm-jax evaluate {home} likelihood --steps 20"
    with pytest.raises(ValueError, match=re.escape("x0_errors.json has the errors of sha256:")) as refused:
        model(home, weights="raw")
    assert command in str(refused.value)
    with pytest.raises(ValueError, match=re.escape("has errors with {'clip': True}, not {'clip': False}: ddpm-jax")):
        model(home, clip=False)
    rewrite(home, x0_errors=[0.1] * 20)
    with pytest.raises(ValueError, match=re.escape("x0_errors.json is damaged: 20 errors, not 21; remove it, and")):
        model(home)
    for damage in ("", "[1]", '{"x0_errors": [-1]}', '{"x0_errors": [1]}'):
        (home / "x0_errors.json").write_text(damage)
        with pytest.raises(ValueError, match=r"x0_errors\.json is damaged, remove it: "):
            model(home)
    (home / "x0_errors.json").unlink()
    text = f"--sampler analytic needs the network's errors, and there is no {home / 'x0_errors.json'}: ddpm-jax"
    with pytest.raises(FileNotFoundError, match=re.escape(text)):
        model(home)


def test_a_manifest_rests_on_the_errors(home, tmp_path, capsys):
    selected = flags.SamplingOptions(sampler="analytic", steps=5)
    requested = sample.Arguments(str(home), num=4, out=str(tmp_path / "out"), sampling=selected)
    assert sample.draw(requested) == 0
    manifest = tmp_path / "out" / "manifest.json"
    assert verify(str(home), manifest) == 0 and "equal: all 4 images" in capsys.readouterr().out
    rewrite(home, x0_errors=[0.5] * 21)
    with pytest.raises(ValueError, match=r"rests on x0_errors sha256:\w+, .*run holds sha256:"):
        verify(str(home), manifest)
